"""The plain engine: every cell is a row of an ordinary forward pass with edits; any backend can run it."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.batches import shrinking
from mechinterp.interventions import Apply
from mechinterp.where import At
from patching.cells import Cell, Edit, Untouched

Read = Callable[[Tensor], Tensor]


def run(run: Untouched, cells: Sequence[Cell], read: Read, slots: int) -> tuple[Tensor, int]:
    """What `read` makes of every cell's logits at the run's rows, and the tokens times layers that ran."""
    length = run.tokens.shape[1]
    size = max(1, slots // length)
    done = shrinking(len(cells), size, lambda part: read(_logits(run, cells[part.start : part.stop])))
    return torch.cat([values for _, values in done]), len(cells) * length * run.model.dims.n_layers


def _logits(run: Untouched, cells: Sequence[Cell]) -> Float[Tensor, "cell row d_vocab"]:
    edits = [_edit(run, row, edit) for row, cell in enumerate(cells) for edit in cell]
    seen = run.model.forward(
        run.tokens.expand(len(cells), -1),
        interventions=[e for e in edits if e is not None],
        logits_at=run.rows,
    )
    assert seen.logits is not None  # rows were asked for
    return seen.logits


def _edit(run: Untouched, row: int, edit: Edit) -> Apply | None:
    """The edit as an intervention on one batch row; None where it lies behind all that is read."""
    here = [i for i, position in enumerate(edit.positions) if position < run.tokens.shape[1]]
    if not here:
        return None

    def put(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        value = edit.value[here].to(x)
        if edit.head is None:
            return value.flatten(1)
        d_head = value.shape[-1]
        x[:, edit.head * d_head : (edit.head + 1) * d_head] = value
        return x

    positions = tuple(edit.positions[i] for i in here)
    return Apply(site=edit.site, where=At(positions), batch_rows=(row,), function=put)
