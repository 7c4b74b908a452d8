"""The fast engine: a cell runs the layers above its edit and the positions from it on, and nothing else.

All cells that begin at one position go up through the layers together and join at their own layer, over the
untouched run's keys and values of the positions before. Unedited rows of a cell stand as the untouched run
left them, so the numbers are those of a full forward, to rounding.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.activations import State
from mechinterp.backends.protocol import Block, Pass, RunsBlocks
from mechinterp.backends.turns import turn
from mechinterp.batches import shrinking
from mechinterp.rows import layout
from mechinterp.sites import Site
from patching.cells import Cell, Edit, Untouched, stage_of

Read = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Ran:
    """`deviation`: how far a cell without edits came out from the untouched run, relative to its logits."""

    values: Float[Tensor, "cell metric"]
    token_layers: int
    deviation: float


@dataclass(eq=False)
class Suffix:
    """Cells that begin at one position, as they join, and the edits that each of them makes on its way."""

    start: int
    cells: list[Cell]
    residual: dict[int, list[tuple[int, Edit]]] = field(default_factory=lambda: defaultdict(list))
    inside: dict[Site, list[tuple[int, Edit]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self):
        for index, cell in enumerate(self.cells):
            for edit in cell:
                if edit.site.name in ("resid_pre", "resid_post"):
                    self.residual[stage_of(edit.site)].append((index, edit))
                else:
                    self.inside[edit.site].append((index, edit))

    @property
    def joins(self) -> list[int]:
        """The stage at which each cell joins; cells come in this order."""
        return [entry(cell) for cell in self.cells]

    def edited(self, x: Tensor, edits: Iterable[tuple[int, Edit]]) -> Tensor:
        """x with each edit's rows in their place, in x's dtype; x is left alone."""
        x = x.clone()
        for index, edit in edits:
            here = [i for i, p in enumerate(edit.positions) if p < self.start + x.shape[1]]
            slots = torch.tensor([edit.positions[i] - self.start for i in here], device=x.device)
            value = edit.value[here].to(x)
            if edit.head is None:
                x[index, slots] = value
            else:
                x[index, slots, edit.head] = value
        return x


@dataclass(frozen=True, eq=False)
class Visit:
    """The edits inside one layer, for the block that runs it."""

    suffix: Suffix
    layer: int
    n: int

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(sorted(site for site in self.suffix.inside if site.layer == self.layer))

    def visit(self, site: Site, x: Tensor) -> Tensor:
        return self.suffix.edited(x, [(i, edit) for i, edit in self.suffix.inside[site] if i < self.n])


def run(run: Untouched, cells: Sequence[Cell], read: Read, slots: int) -> Ran:
    """What `read` makes of every cell's logits at the run's rows; `slots` bounds how many run together."""
    starts: dict[int, list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        starts[min(edit.positions[0] for edit in cell)].append(index)
    control = sorted(starts)[len(starts) // 2]
    found: Tensor | None = None
    executed, deviation = 0, 0.0
    for start, members in starts.items():
        members = sorted(members, key=lambda i: entry(cells[i]))
        logits_of = _Columns(run, start, slots, [()] if start == control else [])
        for part, logits in logits_of([cells[i] for i in members]):
            if len(logits) > len(part):
                deviation = relative(logits[0], run.logits)
                logits = logits[1:]
            values = read(logits)
            found = torch.empty(len(cells), values.shape[1]) if found is None else found
            found[[members[i] for i in part]] = values
        executed += logits_of.token_layers
    assert found is not None  # the caller has at least one cell
    return Ran(found, executed, deviation)


@dataclass(eq=False)
class _Columns:
    """The cells of one start, in batches that shrink where memory runs out."""

    run: Untouched
    start: int
    slots: int
    control: list[Cell]
    token_layers: int = 0

    def __call__(self, cells: list[Cell]) -> Iterator[tuple[range, Tensor]]:
        size = max(1, self.slots // (self.run.tokens.shape[1] - self.start))
        with _blocks(self.run, self.start) as block:

            def logits(part: range) -> Tensor:
                control = self.control if part.start == 0 else []
                return self._logits(block, Suffix(self.start, [*control, *cells[part.start : part.stop]]))

            yield from shrinking(len(cells), size, logits)

    def _logits(self, block: Block, suffix: Suffix) -> Float[Tensor, "cell row d_vocab"]:
        run, start = self.run, self.start
        x, joins = run.residual.new_empty(0, run.tokens.shape[1] - start, run.residual.shape[2]), suffix.joins
        last = len(run.residual) - 1
        for stage in range(min(joins), last + 1):
            joined = sum(join <= stage for join in joins)
            if joined > len(x):
                x = torch.cat([x, run.residual[stage, start:].expand(joined - len(x), -1, -1)])
            if suffix.residual[stage]:
                x = suffix.edited(x, suffix.residual[stage])
            if stage < last:
                x = block(stage, x, Visit(suffix, stage, len(x))).to(run.residual.device)
                self.token_layers += x.shape[0] * x.shape[1]
        after = [row - start for row in run.rows if row >= start]
        before = run.logits[: len(run.rows) - len(after)].expand(len(x), -1, -1)
        logits = run.model.unembed(x[:, after]).float()
        return torch.cat([before.to(logits), logits], 1)


@contextmanager
def _blocks(run: Untouched, start: int) -> Iterator[Block]:
    """The blocks of the run's model over its first `start` slots; no other pass runs on them meanwhile."""
    backend, state = run.model.backend, run.state
    assert isinstance(backend, RunsBlocks) and isinstance(state, State)  # `untouched` kept them
    tokens = run.tokens[:, start:].to(backend.device)
    rows, _ = layout(tokens, None, start, None, None)
    with turn(backend), backend.blocks(Pass(tokens, rows, None, cache=state.cache)) as block:
        yield block


def entry(cell: Cell) -> int:
    """The stage at which a cell leaves the untouched run; a cell without edits leaves it at once."""
    return min((stage_of(edit.site) for edit in cell), default=0)


def relative(found: Tensor, expected: Tensor) -> float:
    """How far logits came out from those of the untouched run, relative to these."""
    expected = expected.to(found)
    return float((found - expected).norm() / expected.norm())
