"""Attention knock-out over windows of layers: what is lost when rows may not look at a region.

The causal counterpart of attention fractions: they say where a row looks, this says what that look is worth.
What is left of a row's attention renormalises (`mechinterp.knockout`). Tokens before the first of the rows
cannot feel it, so their keys and values are computed once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.activations import State
from mechinterp.backends.verify import TOLERANCE
from mechinterp.batches import shrinking
from mechinterp.knockout import KnockOut
from mechinterp.model import Model
from mechinterp.rows import one_text
from patching.cases import Case, check_cases
from patching.grid import PatchGrid
from patching.incremental import relative
from patching.metrics import Metric
from patching.residual import layer_sets
from patching.sweep import ROWS, Swept, read

Region = tuple[int, ...]
Window = tuple[int, ...]


def sliding(layers: Sequence[int], width: int) -> list[Window]:
    """Every run of `width` layers in a row: (0, 1, 2), (1, 2, 3), ..."""
    if not 1 <= width <= len(layers):
        raise ValueError(f"a window over {len(layers)} layers is 1..{len(layers)} wide, not {width}")
    return [tuple(layers[i : i + width]) for i in range(len(layers) - width + 1)]


def knock_out(
    model: Model,
    tokens: Int[Tensor, "1 position"],
    metric: Metric | Sequence[Metric],
    *,
    rows: Sequence[int],
    region: Sequence[int] | Mapping[str, Sequence[int]],
    windows: Sequence[int] | Sequence[Sequence[int]] | None = None,
    heads: Sequence[int] | None = None,
    placebos: int = 0,
    seed: int = 0,
) -> PatchGrid:
    """One text, windows of layers by region: the rows may not attend to the region there.

    rows, region: absolute positions, several regions by name. windows: single layers by default; `sliding`,
    `up_to` and `from_on` make others. heads: all by default. placebos: how many regions of the same size are
    drawn from the other positions before the rows, each a null map beside the real one.
    Raises ValueError or IndexError for what is not there, and for a row that would be left no key.
    """
    metrics = (metric,) if isinstance(metric, Metric) else tuple(metric)
    named = region if isinstance(region, Mapping) else {"region": region}
    places = {name: tuple(int(p) for p in where) for name, where in named.items()}
    if ROWS_PLACE in places:
        raise ValueError(f"a region cannot be called {ROWS_PLACE!r}, which names the rows; call it otherwise")
    case = Case(
        one_text(tokens, many="knock_out_cases"), metrics, {ROWS_PLACE: tuple(int(r) for r in rows), **places}
    )
    return knock_out_cases(
        model, [case], rows=ROWS_PLACE, windows=windows, heads=heads, placebos=placebos, seed=seed
    )


ROWS_PLACE = "rows"


@torch.no_grad()
def knock_out_cases(
    model: Model,
    cases: Sequence[Case],
    *,
    rows: str,
    windows: Sequence[int] | Sequence[Sequence[int]] | None = None,
    heads: Sequence[int] | None = None,
    placebos: int = 0,
    seed: int = 0,
) -> PatchGrid:
    """Many texts: the rows at place `rows` of each may not attend to its other places, one at a time.

    The grid's columns are those places, its values one a case. Raises ValueError or IndexError for what is
    not there, and for a row that would be left no key.
    """
    check_cases(cases)
    if rows not in cases[0].places or len(cases[0].places) < 2:
        raise ValueError(
            f"the cases have places {list(cases[0].places)}; name the rows' own as rows=, beside one or more"
            " regions"
        )
    sets = layer_sets(model, windows)
    columns = tuple(name for name in cases[0].places if name != rows)
    swept = []
    for number, case in enumerate(cases):
        regions = [case.places[name] for name in columns]
        generator = torch.Generator().manual_seed(seed + number)
        maps = [regions, *(_placebo(case, rows, columns, generator) for _ in range(placebos))]
        cells = [(part, region) for drawn in maps for part in sets for region in drawn]
        swept.append(_swept(model, case, case.places[rows], cells, heads))
    return PatchGrid.of(
        f"no attention from {rows}", model, cases, "attention", sets, columns, swept,
        torch.full((len(cases), len(cases[0].metrics)), torch.nan),
        tuple(f"placebo {i + 1}" for i in range(placebos)), seed,
    )  # fmt: skip


def _placebo(case: Case, rows: str, columns: tuple[str, ...], generator: torch.Generator) -> list[Region]:
    """For each region as many other positions, before the first row and drawn without replacement.

    Position 0 is never drawn: as the attention sink it is like no other.
    """
    drawn = []
    for name in columns:
        first = min(case.places[rows])
        region = {p for p in case.places[name] if p < first}
        others = [p for p in range(1, first) if p not in region]
        if len(others) < len(region):
            raise ValueError(
                f"{name!r} of case {case.name!r} holds {len(region)} of the {first} positions before the"
                " rows, and a placebo needs as many others besides position 0; leave placebos out"
            )
        order = torch.randperm(len(others), generator=generator)[: len(region)]
        drawn.append(tuple(sorted(others[i] for i in order.tolist())))
    return drawn


# the engine -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A text up to the last row that is read, and its keys and values before `start`."""

    model: Model
    ids: Int[Tensor, "position"]
    read_at: tuple[int, ...]
    logits: Float[Tensor, "row d_vocab"]
    rows: tuple[int, ...]
    heads: tuple[int, ...] | None
    start: int
    state: State | None


def _swept(
    model: Model,
    case: Case,
    rows: tuple[int, ...],
    cells: Sequence[tuple[Window, Region]],
    heads: Sequence[int] | None,
) -> Swept:
    """Cells as rows of a batch that goes on from one prefix, held against a row without a knock-out."""
    read_at = tuple(sorted({metric.at for metric in case.metrics}))
    ids = torch.as_tensor(case.tokens)[: read_at[-1] + 1]
    seen = model.forward(ids[None], logits_at=read_at)
    assert seen.logits is not None  # rows were asked for
    kept = tuple(row for row in rows if row < len(ids))
    chosen = None if heads is None else tuple(heads)
    start = min(kept, default=0)
    logits = seen.logits[0].float()
    baseline = read(case.metrics, read_at, logits[None])[0]
    values = baseline.repeat(len(cells), 1)
    # a key after every row is hidden from all of them already
    acting = [i for i, (_, region) in enumerate(cells) if any(p <= max(kept, default=-1) for p in region)]
    if not acting:
        return Swept(values, baseline, "none: no cell could act on what is read", 0)
    state = model.forward(ids[None, :start], logits_at=(), keep_cache=True).state if start else None
    prepared = _Prepared(model, ids, read_at, logits, kept, chosen, start, state)
    wanted, engine = [cells[i] for i in acting], "one prefix for all cells"
    found, deviation = _run(prepared, wanted, case.metrics)
    if start and not deviation <= TOLERANCE[model.backend.dtype]:
        prepared = _Prepared(model, ids, read_at, logits, kept, chosen, 0, None)
        found, _ = _run(prepared, wanted, case.metrics)
        engine = f"whole passes: a cell without a knock-out came out {deviation:.1e} off"
    values[acting] = found
    ran = prepared.start + (len(acting) + 1) * (len(ids) - prepared.start)
    return Swept(values, baseline, engine, ran * model.dims.n_layers)


def _run(
    prepared: _Prepared, cells: Sequence[tuple[Window, Region]], metrics: Sequence[Metric]
) -> tuple[Float[Tensor, "cell metric"], float]:
    """What the metrics read in each cell; how far a row without a knock-out came out from the whole pass."""
    deviation, found = 0.0, []
    size = max(1, ROWS // (len(prepared.ids) - prepared.start))
    control: list[None] = [None]

    def run(part: range) -> Tensor:
        return _logits(prepared, [*(control if part.start == 0 else ()), *cells[part.start : part.stop]])

    for part, logits in shrinking(len(cells), size, run):
        if part.start == 0:
            deviation = relative(logits[0], prepared.logits)
            logits = logits[1:]
        found.append(read(metrics, prepared.read_at, logits))
    return torch.cat(found), deviation


def _logits(
    prepared: _Prepared, cells: Sequence[tuple[Window, Region] | None]
) -> Float[Tensor, "cell row d_vocab"]:
    """One pass over the tokens from `start` on, a cell in each batch row."""
    n, start = len(cells), prepared.start
    knockouts = []
    for row, cell in enumerate(cells):
        if cell is not None:
            keys = tuple(p for p in cell[1] if p < len(prepared.ids))
            knockouts.append(KnockOut(cell[0], prepared.rows, keys, prepared.heads, (row,)))
    state = None
    if prepared.state is not None:
        state = prepared.state.select(torch.zeros(n, dtype=torch.long, device=prepared.model.backend.device))
    after = [row for row in prepared.read_at if row >= start]
    seen = prepared.model.forward(
        prepared.ids[None, start:].expand(n, -1), cache=state, knockouts=knockouts, logits_at=after
    )
    assert seen.logits is not None  # `after` holds the last token at least
    before = prepared.logits[: len(prepared.read_at) - len(after)].expand(n, -1, -1)
    return torch.cat([before.to(seen.logits.device), seen.logits.float()], 1)
