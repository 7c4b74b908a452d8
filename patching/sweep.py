"""The exact engine: cells in, what the metrics read in each cell out, equal to one full forward a cell.

A cell is a set of edits to an untouched run. It changes only the layers from its first edit on, at the
positions from its first edited one on, so only those are computed, over the run's own keys, values and
residuals (`patching.incremental`); where a backend cannot, whole passes run instead (`patching.whole`), and
the result says which it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.backends.verify import TOLERANCE
from patching import incremental, whole
from patching.cells import Cell, Edit, Untouched, check, runs_blocks, stage_of
from patching.metrics import Metric

ROWS = 1536  # slots that run together: a quarter of it loses a fifth of the rate, four times it gains nothing


@dataclass(frozen=True, eq=False)
class Swept:
    """`values` of each cell, `baseline` of the untouched run; `engine` says how the cells were computed.

    `token_layers` counts the tokens that passed through a layer, over all cells.
    """

    values: Float[Tensor, "cell metric"]
    baseline: Float[Tensor, "metric"]
    engine: str
    token_layers: int


@torch.no_grad()
def sweep_cells(run: Untouched, cells: Sequence[Cell], metrics: Sequence[Metric]) -> Swept:
    """What every metric reads in every cell.

    Raises ValueError or IndexError for an edit that the model cannot take, before any compute.
    """
    for cell in cells:
        check(run, cell)
    baseline = read(metrics, run.rows, run.logits[None])[0]
    values = baseline.repeat(len(cells), 1)
    acting = [i for i, cell in enumerate(cells) if _acts(run, cell)]
    engine, token_layers = "none: no cell could act on what is read", 0
    if acting:
        chosen = [cells[i] for i in acting]
        found, engine, token_layers = _run(run, chosen, metrics)
        values[acting] = found
    return Swept(values, baseline, engine, token_layers)


def read(
    metrics: Sequence[Metric], rows: tuple[int, ...], logits: Float[Tensor, "cell row d_vocab"]
) -> Float[Tensor, "cell metric"]:
    """Each metric at its own row, on the CPU."""
    at = {row: index for index, row in enumerate(rows)}
    return torch.stack([metric.read(logits[:, at[metric.at]].float()).cpu() for metric in metrics], -1)


def _run(
    run: Untouched, cells: list[Cell], metrics: Sequence[Metric]
) -> tuple[Float[Tensor, "cell metric"], str, int]:
    """The fast engine where the backend has its parts and passes its own control, else whole passes."""
    backend = run.model.backend
    why = f"{backend.name} runs no block of this architecture by itself"
    if runs_blocks(run.model):
        swept = incremental.run(run, cells, lambda logits: read(metrics, run.rows, logits), ROWS)
        allowed = TOLERANCE[backend.dtype]
        if swept.deviation <= allowed:
            return swept.values, "incremental", swept.token_layers
        why = f"a cell without edits came out {swept.deviation:.1e} off, with {allowed:.0e} allowed"
    values, token_layers = whole.run(run, cells, lambda logits: read(metrics, run.rows, logits), ROWS)
    return values, f"whole passes: {why}", token_layers


def _acts(run: Untouched, cell: Cell) -> bool:
    """Whether a cell can change what is read: an edit by the run's own values, or behind it, cannot."""
    return any(edit.positions[0] <= run.rows[-1] and not _is_own(run, edit) for edit in cell)


def _is_own(run: Untouched, edit: Edit) -> bool:
    if edit.site.name not in ("resid_pre", "resid_post") or not len(run.residual):
        return False
    here = [i for i, p in enumerate(edit.positions) if p <= run.rows[-1]]
    own = run.residual[stage_of(edit.site), [edit.positions[i] for i in here]]
    return torch.equal(edit.value[here].to(own), own)
