"""What a sweep is made of: edits, cells of edits, and the untouched run that they change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.activations import State
from mechinterp.backends.protocol import RunsBlocks
from mechinterp.model import Model
from mechinterp.sites import WRITABLE, Site
from patching.metrics import Metric


@dataclass(frozen=True, eq=False)
class Edit:
    """Puts `value` in place of a site's rows at `positions`, or of one head's in `z`."""

    site: Site
    positions: tuple[int, ...]
    value: Float[Tensor, "position *shape"]
    head: int | None = None


Cell = tuple[Edit, ...]


@dataclass(frozen=True, eq=False)
class Untouched:
    """A run before any edit: what enters every layer and leaves the last, and the logits at `rows`.

    Tokens after the last row are cut off: under a causal mask nothing in them can reach it.
    """

    model: Model
    tokens: Int[Tensor, "1 position"]
    residual: Float[Tensor, "stage position d_model"]
    rows: tuple[int, ...]
    logits: Float[Tensor, "row d_vocab"]
    state: State | None


@torch.no_grad()
def untouched(model: Model, tokens: Int[Tensor, "position"], metrics: Sequence[Metric]) -> Untouched:
    """The run that cells edit, up to the last row that a metric reads."""
    rows = tuple(sorted({metric.at for metric in metrics}))
    if not rows or rows[0] < 0 or rows[-1] >= len(tokens):
        raise IndexError(f"metrics read rows {list(rows)}; the text has positions 0..{len(tokens) - 1}")
    n = model.dims.n_layers
    sites = [*(Site("resid_pre", layer) for layer in range(n)), Site("resid_post", n - 1)]
    ids = torch.as_tensor(tokens)[None, : rows[-1] + 1]
    fast = runs_blocks(model)
    seen = model.forward(ids, capture=sites if fast else (), logits_at=rows, keep_cache=fast)
    residual = torch.stack([seen[site][0] for site in sites]) if fast else torch.empty(0, 0, 0)
    assert seen.logits is not None  # no layer was named to stop after
    return Untouched(model, ids, residual, rows, seen.logits[0].float(), seen.state)


def runs_blocks(model: Model) -> bool:
    """Whether the model's backend has the parts of the fast engine."""
    return isinstance(model.backend, RunsBlocks) and model.backend.runs_blocks


def stage_of(site: Site) -> int:
    """Residual streams by number: stage l enters layer l, and the last one leaves the last layer."""
    return site.layer + (site.name == "resid_post")


def check(run: Untouched, cell: Cell) -> None:
    """Raises ValueError or IndexError for a cell that the run's model cannot take."""
    if not cell:
        raise ValueError("a cell without edits is the untouched run; leave it out, it is the baseline")
    for edit in cell:
        run.model.check_site(edit.site)
        if edit.site.name not in WRITABLE:
            raise ValueError(f"{edit.site} cannot be patched; patch one of {', '.join(WRITABLE)}")
        if not edit.positions or list(edit.positions) != sorted(set(edit.positions)):
            raise ValueError(f"positions {edit.positions} must be given once each and in order")
        if edit.positions[0] < 0:
            raise IndexError(f"positions are absolute; {edit.positions[0]} is none, write the place itself")
        shape = run.model.dims.shape(edit.site)
        if edit.head is not None:
            if edit.site.name != "z" or not 0 <= edit.head < run.model.dims.n_heads:
                raise ValueError(
                    f"head {edit.head} of {edit.site}: z has heads 0..{run.model.dims.n_heads - 1}"
                )
            shape = shape[1:]
        if tuple(edit.value.shape) != (len(edit.positions), *shape):
            raise ValueError(
                f"the value at {edit.site} is {list(edit.value.shape)};"
                f" {len(edit.positions)} positions need {[len(edit.positions), *shape]}"
            )
        if not edit.value.isfinite().all():
            raise ValueError(f"the value at {edit.site} is not finite; patch finite activations")
