"""Parts of a block: attention and MLP outputs and single heads, patched from a run or ablated (methods 12.4).

Ablation is patching with another donor: zeros, the mean of chosen rows, or another run's rows (resampling).
Ranges of layers are ablated together too, because single layers can stand in for each other.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from mechinterp.model import Model
from mechinterp.sites import Site, SiteName
from patching.cases import Case
from patching.cells import Cell, Edit
from patching.donors import Donor, Null
from patching.grid import PatchGrid
from patching.residual import Placed, patch_cases, sweep_cases

Part = Literal["attn_out", "mlp_out", "z"]


@torch.no_grad()
def patch_heads(
    donor: Donor,
    target: Model,
    cases: Sequence[Case],
    *,
    place: str,
    layers: Sequence[int] | None = None,
    nulls: Sequence[Null] = (),
    seed: int = 0,
) -> PatchGrid:
    """Layer by head: one head's `z` at the positions of a place, all other heads untouched.

    Under grouped-query attention a head is still a query head. Ablates heads where the donor is no run.
    """
    if cases and place not in cases[0].places:
        raise ValueError(f"there is no place {place!r}; the cases have {', '.join(cases[0].places)}")
    heads = range(target.dims.n_heads)

    def cells_of(case: Case, sets: Sequence[Sequence[int]], site: SiteName, rows: Placed) -> list[Cell]:
        def edit(layer: int, head: int) -> Edit:
            at = Site(site, layer)
            return Edit(at, case.places[place], rows[at, place][:, head], head)

        return [tuple(edit(layer, head) for layer in part) for part in sets for head in heads]

    columns = tuple(f"head {head}" for head in heads)
    return sweep_cases(donor, target, cases, "z", layers, columns, cells_of, nulls, seed)


def ablate(
    donor: Donor,
    model: Model,
    cases: Sequence[Case],
    *,
    part: Part,
    layers: Sequence[int] | Sequence[Sequence[int]] | None = None,
    nulls: Sequence[Null] = (),
    seed: int = 0,
) -> PatchGrid:
    """What is lost without a part of a block at each place: layer sets by places.

    donor: `Zero()`, `MeanOver()`, or `FromRun(other)` for resampling. `up_to` and `from_on` give the
    cumulative ranges of layers.
    """
    return patch_cases(donor, model, cases, site=part, layers=layers, nulls=nulls, seed=seed)


def up_to(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Growing ranges from the first layer on: (0,), (0, 1), ..."""
    return [tuple(layers[: i + 1]) for i in range(len(layers))]


def from_on(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Shrinking ranges that end with the last layer: (0, ..., n), (1, ..., n), ..."""
    return [tuple(layers[i:]) for i in range(len(layers))]
