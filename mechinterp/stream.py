"""A batch of running sequences: its cache, the ids not yet in it, and the edits that are on.

Rows of unequal length are left-padded, so that all of them decide their next token in the last slot. What the
keys and values hold is exact at every moment: natural, or as the current edits made them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.activations import Activations, State, with_parts
from mechinterp.backends.protocol import Pass, Recorder, Replays
from mechinterp.backends.turns import turn
from mechinterp.interventions import Intervention
from mechinterp.model import Model
from mechinterp.sites import Site
from mechinterp.where import Generated, Newest, Rows


@dataclass(eq=False)
class Stream:
    """Mutable, private to one call of `sample`. `tokens` are all ids so far, left-padded."""

    model: Model
    tokens: Int[Tensor, "row slot"]
    pad_left: Int[Tensor, "row"] | None
    prompt_slots: int
    prompt_lengths: Int[Tensor, "row"]
    state: State | None = None
    edits: tuple[Intervention, ...] = ()
    edited_from: int | None = None
    rebuild: "Rebuild | None" = None
    weighed: frozenset[Intervention] = frozenset()

    @staticmethod
    def start(model: Model, rows: Sequence[Int[Tensor, "_"]]) -> "Stream":
        lengths = torch.tensor([len(row) for row in rows], device=model.backend.device)
        longest = int(lengths.max())
        tokens = torch.zeros(len(rows), longest, dtype=torch.long, device=model.backend.device)
        for i, row in enumerate(rows):
            tokens[i, longest - len(row) :] = row
        pad = longest - lengths
        return Stream(model, tokens, pad if bool(pad.any()) else None, longest, lengths)

    @property
    def is_natural(self) -> bool:
        """Whether nothing that was edited is seen by the next token."""
        return self.edited_from is None and not self.edits

    def push(self, token: Int[Tensor, "row"]) -> None:
        column = rearrange(token.to(self.tokens.device), "row -> row 1")
        self.tokens = torch.cat([self.tokens, column], 1)

    def enter(self, edits: tuple[Intervention, ...], cache: Literal["fresh", "carry"]) -> None:
        """Begins a phase. A fresh one goes on from natural keys and values of the ids so far."""
        if cache == "fresh" and self.state is not None and self.edited_from is not None:
            self._make_natural()
        self.edits = edits
        if self.edited_from is None:
            self.rebuild = Rebuild.plan(self.model, edits) if edits else None
        elif edits:
            self.rebuild = None  # edits on top of carried ones: only a whole natural pass undoes both

    def step(self, watch: "object | None") -> tuple[Float[Tensor, "row d_vocab"], Activations]:
        """The logits that decide the next token, from a pass over all ids that are not yet in the cache."""
        if self.state is None:
            self._share_prompt()
        n_before = 0 if self.state is None else self.state.n_slots
        seen = self._pass(self.tokens[:, n_before:], self.edits, watch)
        self.state = seen.state
        newest = [isinstance(edit.where, Newest) for edit in self.edits]
        if any(newest):
            self._forget_newest()
        if any(n for n, is_newest in zip(seen.applied, newest, strict=True) if not is_newest):
            start = n_before if self.edited_from is None else self.edited_from
            self.edited_from = max(start, self._first_edited_slot(start))
        assert seen.logits is not None  # the pass asks for the last slot's
        return seen.logits[:, -1], seen

    # --------------------------------------------------------------------------------------------------------
    # ----

    def _pass(
        self, tokens: Tensor, edits: tuple[Intervention, ...], watch: object | None, logits: bool = True
    ) -> Activations:
        """One pass over the next slots; captures and logits at the last one, where every row decides."""
        n_before = 0 if self.state is None else self.state.n_slots
        rows = self._rows(n_before, tokens.shape[1])
        last = torch.full((len(tokens), 1), tokens.shape[1] - 1, device=tokens.device)
        site: Site | None = getattr(watch, "site", None)
        capture = tuple(sorted({site, *getattr(watch, "capture", ())})) if site is not None else ()
        natural = set() if site is None else set(with_parts((site,)))
        keep = None if self.rebuild is None else self.rebuild.site
        request = Pass(
            tokens=tokens,
            rows=rows,
            pad_left=self.pad_left,
            capture=with_parts(capture),
            slots=last,
            interventions=edits,
            logit_slots=last if logits else last[:, :0],
            cache=None if self.state is None else self.state.cache,
            keep_cache=True,
            natural=tuple(natural | ({keep} if keep is not None else set())),
            weighed=self.weighed,
        )
        seen = self.model.run(request, self.prompt_lengths, capture)
        self.weighed |= {edit for edit, n in zip(edits, seen.applied, strict=True) if n}
        if keep is not None:
            assert self.rebuild is not None  # `keep` came from it
            self.rebuild.kept.append(seen.natural[keep])
        return seen

    def _rows(self, start: int, n: int) -> Rows:
        slot = torch.arange(start, start + n, device=self.tokens.device)[None]
        pad = 0 if self.pad_left is None else self.pad_left[:, None]
        position = (slot - pad).expand(len(self.tokens), -1)
        return Rows(position, position - (self.prompt_lengths[:, None] - 1), position >= 0)

    def _share_prompt(self) -> None:
        """Prefills equal prompts once, up to the token before the last, where every row is edited alike or
        not at all.
        """
        edits = tuple(e for e in self.edits if not isinstance(e.where, (Generated, Newest)))
        if (
            self.tokens.shape[1] < 2
            or self.tokens.shape[1] > self.prompt_slots
            or not all(map(_alike, edits))
        ):
            return
        unique, inverse = self.tokens.unique(dim=0, return_inverse=True)
        if len(unique) == len(self.tokens):
            return
        first = torch.stack([(inverse == i).nonzero()[0, 0] for i in range(len(unique))])
        pad = None if self.pad_left is None else self.pad_left[first]
        shared = Stream(self.model, unique, pad, self.prompt_slots, self.prompt_lengths[first])
        if self.rebuild is not None and edits:
            shared.rebuild = Rebuild(self.rebuild.site, self.rebuild.layer, [])
        seen = shared._pass(unique[:, :-1], edits, None, logits=False)
        assert seen.state is not None  # passes of a stream keep their cache
        self.state = seen.state.select(inverse)
        self.weighed |= shared.weighed
        if any(seen.applied):
            self.edited_from = 0
        if self.rebuild is not None and shared.rebuild is not None:
            self.rebuild.kept += [kept[inverse] for kept in shared.rebuild.kept]

    def _first_edited_slot(self, start: int) -> int:
        """Edits of generated rows leave the prompt's slots before its last natural."""
        only_generated = all(isinstance(e.where, (Generated, Newest)) for e in self.edits)
        return max(start, self.prompt_slots - 1) if only_generated else start

    def _forget_newest(self) -> None:
        """Runs the newest slot again without the edits, so that the cache never holds them."""
        assert self.state is not None  # a step has just set it
        n = self.state.n_slots
        self.state.cache.crop(n - 1)
        self.state = State(self.state.cache, n - 1, self.state.pad_left, self.state.prompt_lengths)
        natural = tuple(e for e in self.edits if not isinstance(e.where, Newest))
        self.state = self._pass(self.tokens[:, n - 1 : n], natural, None, logits=False).state

    def _make_natural(self) -> None:
        """Natural keys and values of the ids in the cache: only the layers that the edits reached, where we
        can.
        """
        assert self.state is not None and self.edited_from is not None  # checked by `enter`
        if self.rebuild is not None and isinstance(self.model.backend, Replays):
            self.rebuild.run(self)
        else:
            n, self.state = self.state.n_slots, None
            self.state = self._pass(self.tokens[:, :n], (), None, logits=False).state
        self.edited_from, self.rebuild = None, None


def _alike(edit: Intervention) -> bool:
    """Whether an edit is the same in every batch row."""
    shared = 2 if edit.site.name == "z" else 1
    per_row = isinstance(edit.strength, Tensor) or any(tensor.ndim > shared for tensor in edit.tensors())
    return edit.batch_rows is None and not per_row


@dataclass(eq=False)
class Rebuild:
    """What it takes to undo edits above a layer: the natural residual that entered it, slot by slot.

    Layers below `layer` never saw the edits, so their keys and values are natural already; the ones from it
    on are run once, in parallel, over the slots from the first edited one.
    """

    site: Site
    layer: int
    kept: list[Float[Tensor, "row slot d_model"]]

    @staticmethod
    def plan(model: Model, edits: tuple[Intervention, ...]) -> "Rebuild | None":
        if not isinstance(model.backend, Replays) or any(isinstance(e.where, Newest) for e in edits):
            return None
        lowest = min(edit.site.layer for edit in edits)
        if all(e.site.name == "resid_post" for e in edits if e.site.layer == lowest):
            return Rebuild(Site("resid_post", lowest), lowest + 1, [])
        return Rebuild(Site("resid_pre", lowest), lowest, [])

    def run(self, stream: Stream) -> None:
        state, start, backend = stream.state, stream.edited_from, stream.model.backend
        assert (
            state is not None and start is not None and isinstance(backend, Replays)
        )  # `_make_natural` checked
        if self.layer >= stream.model.dims.n_layers:
            return
        residual = torch.cat(self.kept, 1)
        n = state.n_slots
        residual = residual[:, residual.shape[1] - (n - start) :]
        state.cache.crop(start)
        request = Pass(
            tokens=stream.tokens[:, start:n],
            rows=stream._rows(start, n - start),
            pad_left=stream.pad_left,
            logit_slots=torch.zeros(len(stream.tokens), 0, dtype=torch.long),
            cache=state.cache,
            keep_cache=True,
        )
        with turn(backend):
            backend.replay(request, Recorder(request), self.layer, residual)
