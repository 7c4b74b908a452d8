"""Patching: a grid of cells, each a set of layers at a named place, and what the metrics read in every one.

Clean -> corrupt, trained -> base and base -> trained are the same function with other arguments (methods
12.3). With the rows of one position replaced, later layers still read the target's own keys and values of the
positions before.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.alike import check_alike
from mechinterp.model import Model
from mechinterp.sites import Site, SiteName
from patching.cases import Case, check_cases, one_case
from patching.cells import Cell, Edit, Untouched, stage_of, untouched
from patching.donors import Donor, FromRun, Null, Values, derangement, norm_matched, rows_of_another
from patching.grid import PatchGrid
from patching.metrics import Metric
from patching.sweep import Swept, sweep_cells


def patch_residual(
    source: Model,
    target: Model,
    tokens: Int[Tensor, "1 position"],
    metric: Metric | Sequence[Metric],
    *,
    positions: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    source_tokens: Int[Tensor, "1 position"] | None = None,
    alignment: Mapping[int, int] | None = None,
    site: SiteName = "resid_post",
    layers: Sequence[int] | None = None,
    nulls: Sequence[Null] = (),
    seed: int = 0,
) -> PatchGrid:
    """One text, layer by position: the source's rows at `site` put into the target, one cell at a time.

    positions: absolute ones, each a column, or named sets of them, each patched together; all up to the last
    row that is read unless given. source_tokens: other ids for the source (clean -> corrupt); of another
    length they need `alignment`. nulls: placebos of the same size, from `seed`.
    Raises ValueError or IndexError before any compute.
    """
    metrics = (metric,) if isinstance(metric, Metric) else tuple(metric)
    case = one_case(tokens, metrics, positions, source_tokens, alignment)
    return patch_cases(FromRun(source), target, [case], site=site, layers=layers, nulls=nulls, seed=seed)


@torch.no_grad()
def patch_cases(
    donor: Donor,
    target: Model,
    cases: Sequence[Case],
    *,
    site: SiteName = "resid_post",
    layers: Sequence[int] | Sequence[Sequence[int]] | None = None,
    nulls: Sequence[Null] = (),
    seed: int = 0,
) -> PatchGrid:
    """Many texts, layer by place; a set of layers is patched together.

    Every case gives one grid of its own, from two passes and a sweep. Raises ValueError or IndexError before
    any compute of the case that is wrong.
    """
    columns = tuple(cases[0].places) if cases else ()
    return sweep_cases(donor, target, cases, site, layers, columns, grid_cells, nulls, seed)


CellsOf = Callable[[Case, Sequence[Sequence[int]], SiteName, "Placed"], list[Cell]]


def sweep_cases(
    donor: Donor,
    target: Model,
    cases: Sequence[Case],
    site: SiteName,
    layers: Sequence[int] | Sequence[Sequence[int]] | None,
    columns: tuple[str, ...],
    cells_of: CellsOf,
    nulls: Sequence[Null],
    seed: int,
) -> PatchGrid:
    """The grids of all cases: `cells_of` makes a map's cells, layer sets first, `columns` within them."""
    check_cases(cases)
    if isinstance(donor, FromRun):
        check_alike(donor.source, target)
    sets = layer_sets(target, layers)
    sites = [Site(site, layer) for layer in sorted({layer for part in sets for layer in part})]
    for one in sites:
        target.check_site(one)
    if "shuffled" in nulls and len(cases) < 2:
        raise ValueError("nulls='shuffled' takes rows of other cases; give two or more, or use 'random'")
    given = [donor.values(target, case, sites, union(case)) for case in cases]
    others = derangement(len(cases), torch.Generator().manual_seed(seed)) if len(cases) > 1 else [0]
    swept: list[Swept] = []
    for number, case in enumerate(cases):
        run = untouched(target, case.tokens, case.metrics)
        own = own_values(run, case, sites) if "random" in nulls else {}
        maps = [_rows(case, given[number][0])]
        for kind in nulls:
            generator = torch.Generator().manual_seed(seed + 1 + number)
            other = _rows(cases[others[number]], given[others[number]][0])
            maps.append(_null(kind, _rows(case, own), maps[0], other, generator))
        cells = [cell for rows in maps for cell in cells_of(case, sets, site, rows)]
        swept.append(sweep_cells(run, cells, case.metrics))
    return PatchGrid.of(
        donor.name, target, cases, site, sets, columns, swept,
        torch.stack([value for _, value in given]), tuple(nulls), seed,
    )  # fmt: skip


Placed = dict[tuple[Site, str], Float[Tensor, "position *shape"]]


def grid_cells(case: Case, sets: Sequence[Sequence[int]], site: SiteName, rows: Placed) -> list[Cell]:
    """The cells of one map, layer sets first, places within them."""
    return [
        tuple(Edit(Site(site, layer), positions, rows[Site(site, layer), name]) for layer in part)
        for part in sets
        for name, positions in case.places.items()
    ]


def layer_sets(
    target: Model, layers: Sequence[int] | Sequence[Sequence[int]] | None
) -> tuple[tuple[int, ...], ...]:
    """Layers that are patched together: each by itself where single ones are named; all by default."""
    named = range(target.dims.n_layers) if layers is None else layers
    sets = tuple((one,) if isinstance(one, int) else tuple(one) for one in named)
    if not sets or not all(sets) or len(set(sets)) < len(sets):
        raise ValueError(f"layers {list(named)} must name each layer or set of layers once, and at least one")
    return sets


def union(case: Case) -> list[int]:
    """Every position of a case that any of its places names."""
    return sorted({position for positions in case.places.values() for position in positions})


def own_values(run: Untouched, case: Case, sites: Sequence[Site]) -> Values:
    """The untouched run's rows at the sites, for all positions of the case; behind the last row, its last."""
    at = [min(position, run.rows[-1]) for position in union(case)]
    if len(run.residual) and all(site.name in ("resid_pre", "resid_post") for site in sites):
        return {site: run.residual[stage_of(site), at] for site in sites}
    seen = run.model.forward(run.tokens, capture=sites, positions=at, logits_at=())
    return {site: seen[site][0] for site in sites}


def _rows(case: Case, values: Values) -> Placed:
    """The rows of each place, from those of all its positions."""
    index = {position: i for i, position in enumerate(union(case))}
    return {
        (site, name): rows[[index[position] for position in positions]]
        for site, rows in values.items()
        for name, positions in case.places.items()
    }


def _null(kind: Null, own: Placed, given: Placed, other: Placed, generator: torch.Generator) -> Placed:
    if kind == "random":
        return {key: norm_matched(own[key], rows, generator) for key, rows in given.items()}
    if kind == "shuffled":
        return {key: rows_of_another(other[key], len(rows), generator) for key, rows in given.items()}
    raise ValueError(f"nulls are 'random' and 'shuffled', not {kind!r}")
