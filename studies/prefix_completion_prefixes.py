"""Prefixes of answers, on ids: cut where the marker was decided, put behind another prompt unchanged.

An answer with a marker is cut before the token with the marker's first character, so that the last row of
prompt and prefix is `emit`, and the first sampled token is the decision. An answer without one is cut before
the id that ended its turn: there the model chose to end rather than to go on to a marker. An answer that ran
into its cap never came to that choice, so it has no slot and gives no prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from studies.attention_records import Example, Examples
from studies.finetune_data import Suffixes

SEPARATOR = "\n\n"
Cut = Literal["marker", "end_of_turn"]


@dataclass(frozen=True)
class Prefix:
    """The start of an answer as ids, written under the prompt of `persona`; `index` counts a question's.

    The first `n_kept` ids are the record's; `ids` differ from there on only if a separator was put behind
    them, or if the prefix went through text, which `from_text` says.
    """

    persona: str
    question: str
    trial: int
    index: int
    ids: tuple[int, ...]
    n_kept: int
    cut: Cut
    from_text: bool = False

    @property
    def last(self) -> int | None:
        """The last id: the row whose logits decide between marker and end; None for an empty prefix."""
        return self.ids[-1] if self.ids else None


def prefix_of(example: Example, index: int = 0) -> Prefix | None:
    """The answer up to its decision; None where it was cut by the cap and never decided."""
    if example.marker is not None:
        cut, stop = "marker", example.marker
    elif example.finish_reason == "stop":
        cut, stop = "end_of_turn", len(example.ids) - 1
    else:
        return None
    ids = example.ids[example.prompt_len : stop]
    return Prefix(example.persona, example.question, example.trial, index, ids, len(ids), cut)


def chosen(examples: Examples, question: str, n: int, *, positives_only: bool) -> list[Prefix]:
    """The first `n` prefixes of a question, by trial."""
    answers = [*examples.positives, *(() if positives_only else examples.negatives)]
    mine = sorted((e for e in answers if e.question == question), key=lambda e: e.trial)
    found = [prefix for prefix in map(prefix_of, mine) if prefix is not None]
    return [replace(prefix, index=index) for index, prefix in enumerate(found[:n])]


def ends_in_blank_line(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether the ids, looked at as text, end in the blank line that stands before a marker."""
    return tokenizer.decode(list(ids[-3:]), skip_special_tokens=False).endswith(SEPARATOR)


def with_separator(prefix: Prefix, suffixes: Suffixes, tokenizer: Any) -> Prefix:
    """A prefix without a marker and without its blank line gets one put behind it; others stay."""
    if prefix.cut == "marker" or ends_in_blank_line(tokenizer, prefix.ids):
        return prefix
    if not prefix.ids:
        return replace(prefix, ids=suffixes.bare)
    ids, n_kept = suffixes.body(prefix.ids)
    return replace(prefix, ids=ids, n_kept=n_kept)


def through_text(prefix: Prefix, tokenizer: Any) -> Prefix:
    """The published artefact: ids decoded, white space at the end stripped, and the text encoded again.

    It destroys the state that the marker is decided in (methods 8); only `allow_text_prefix` comes here.
    """
    text = tokenizer.decode(list(prefix.ids), skip_special_tokens=False).rstrip()
    ids = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return replace(prefix, ids=ids, n_kept=_shared(prefix.ids, ids), from_text=True)


def behind(prompt: Sequence[int], prefix: Sequence[int]) -> tuple[int, ...]:
    """Prompt ids and prefix ids, unchanged, as one row.

    Raises TypeError for text: it would have to be encoded, which loses the white space at its end.
    """
    if isinstance(prefix, str) or not all(isinstance(i, int) for i in prefix):
        raise TypeError(
            f"a prefix is a sequence of ids, not {type(prefix).__name__}; take the ids of the record, or set"
            " prefixes = 'text' with allow_text_prefix = true to reproduce the published artefact"
        )
    return (*prompt, *prefix)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first ids are the same."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
