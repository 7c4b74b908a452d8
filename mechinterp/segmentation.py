"""One region per position of a prompt: a partition by construction, so attention fractions sum to their row.

Two readings of the same tokens. As rendered, regions are *blocks*: a turn's markup belongs to the turn
(segmentation A of methods 9.4). `content_only()` moves structural positions to a region of their own (B).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SYSTEM, SYSTEM_DEFAULT, USER, HEADER, ANSWER = (
    "system",
    "system_default",
    "user",
    "assistant_header",
    "answer",
)
CHAT_REGIONS = (SYSTEM, SYSTEM_DEFAULT, USER, HEADER, ANSWER)
SPECIALS = "specials"


@dataclass(frozen=True, eq=False)
class TokenMarks:
    """What can be said of token ids alone: which are control tokens, which are newlines."""

    control: Bool[Tensor, "position"]
    newline_exact: Bool[Tensor, "position"]  # decodes to exactly "\n" or "\n\n"
    newline_trailing: Bool[
        Tensor, "position"
    ]  # other text that ends in a newline, such as ".\n\n" or "\n\n\n"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Which region each position belongs to, and which positions are no message's own text.

    `special` is template text and control tokens. `marks` describes the ids (absent: no newline is known, and
    `special` counts as control). `turn` is the index of the message that a position belongs to, -1 for none.
    Raises ValueError where lengths differ, a name is empty or twice there, or a region has no name.
    """

    names: tuple[str, ...]
    region: Int[Tensor, "position"]
    special: Bool[Tensor, "position"]
    marks: TokenMarks = field(default=None)  # pyright: ignore[reportAssignmentType]
    turn: Int[Tensor, "position"] = field(default=None)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.marks is None:
            none = torch.zeros_like(self.special)
            object.__setattr__(self, "marks", TokenMarks(self.special, none, none))
        if self.turn is None:
            object.__setattr__(self, "turn", torch.full_like(self.region, -1))
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise ValueError(f"region names must differ and not be empty; these do not: {self.names}")
        marks = (self.marks.control, self.marks.newline_exact, self.marks.newline_trailing)
        lengths = {len(part) for part in (self.region, self.special, self.turn, *marks)}
        if len(lengths) != 1:
            raise ValueError(
                f"every part of a segmentation has one entry a position; got lengths {sorted(lengths)}"
            )
        if len(self) and not 0 <= int(self.region.min()) <= int(self.region.max()) < len(self.names):
            low, high = int(self.region.min()), int(self.region.max())
            raise ValueError(
                f"region holds {low}..{high}, but only 0..{len(self.names) - 1} have a name; "
                "give each position the index of one of the names"
            )

    def __len__(self) -> int:
        return self.region.shape[0]

    def positions(self, name: str, *, turn: int | None = None) -> Int[Tensor, "k"]:
        """Absolute positions of one region, ascending; of one message only if `turn` is its index."""
        mask = self.region == self._index(name)
        return (mask if turn is None else mask & (self.turn == turn)).nonzero().flatten()

    def one_hot(self) -> Float[Tensor, "position region"]:
        """A 1 where the position is in the region: `pattern @ one_hot()` are the fractions of attention."""
        return torch.nn.functional.one_hot(self.region.long(), len(self.names)).float()

    def content_only(
        self,
        newlines: Literal["exact", "any_trailing"] = "exact",
        *,
        role_words: Literal["content", "special"] = "content",
    ) -> "Segmentation":
        """Segmentation B of methods 9.4: control and newline tokens and the assistant header are `specials`.

        `newlines="exact"` is the published set (ids that decode to exactly one or two newlines, also inside a
        message); `"any_trailing"` adds tokens that end in a newline. The published set leaves the words
        "system" and "user" of the markup in their regions; `role_words="special"` takes all template text.
        """
        structural = self.marks.control | self.marks.newline_exact
        if HEADER in self.names:
            structural = structural | (self.region == self._index(HEADER))
        if newlines == "any_trailing":
            structural = structural | self.marks.newline_trailing
        elif newlines != "exact":
            raise ValueError(f"newlines is 'exact' or 'any_trailing', not {newlines!r}")
        if role_words == "special":
            structural = structural | self.special
        elif role_words != "content":
            raise ValueError(f"role_words is 'content' or 'special', not {role_words!r}")
        return self._with(SPECIALS, structural)

    def extended(self, n_tokens: int, name: str, marks: TokenMarks | None = None) -> "Segmentation":
        """The same, with `n_tokens` positions of region `name` behind it (a generated answer).

        Without `marks` (`chat.token_marks(tokenizer, tokens)` makes them) nothing is known of the new ids, so
        `content_only()` keeps their newlines and stop tokens as content.
        """
        if n_tokens < 0:
            raise ValueError(f"a prompt cannot be extended by {n_tokens} tokens; pass 0 or more")
        if marks is not None and len(marks.control) != n_tokens:
            raise ValueError(f"marks describe {len(marks.control)} tokens, but {n_tokens} are added")
        names = self.names if name in self.names else (*self.names, name)
        unknown = self.special.new_zeros(n_tokens)
        new = marks or TokenMarks(unknown, unknown, unknown)
        return Segmentation(
            names,
            torch.cat([self.region, self.region.new_full((n_tokens,), names.index(name))]),
            torch.cat([self.special, new.control]),
            TokenMarks(
                torch.cat([self.marks.control, new.control]),
                torch.cat([self.marks.newline_exact, new.newline_exact]),
                torch.cat([self.marks.newline_trailing, new.newline_trailing]),
            ),
            torch.cat([self.turn, self.turn.new_full((n_tokens,), -1)]),
        )

    def with_region(self, name: str, positions: Sequence[int] | Int[Tensor, "k"]) -> "Segmentation":
        """The same, with these positions moved from their regions to region `name`; still a partition."""
        where = torch.as_tensor(positions, dtype=torch.long, device=self.region.device).flatten()
        outside = where[(where < 0) | (where >= len(self))].tolist()
        if outside:
            raise ValueError(f"positions are 0..{len(self) - 1}; there is no {outside[0]}")
        mask = torch.zeros_like(self.special)
        mask[where] = True
        return self._with(name, mask)

    def _with(self, name: str, mask: Bool[Tensor, "position"]) -> "Segmentation":
        names = self.names if name in self.names else (*self.names, name)
        return replace(self, names=names, region=self.region.masked_fill(mask, names.index(name)))

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"there is no region {name!r}; the regions are {', '.join(self.names)}")
        return self.names.index(name)
