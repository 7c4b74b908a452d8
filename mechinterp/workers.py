"""Several workers on one run directory: each makes cells that nobody holds, until none is left for it.

A worker keeps the model of its last cell. A cell that fails is noted and the others go on; what reads it is
left out. Which worker makes a cell decides nothing: cells are functions of the configuration and their seed.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mechinterp.cells import Cell
from mechinterp.directory import DISK_FULL
from mechinterp.progress import Failure, failure_path, note_failure
from mechinterp.results import Result
from mechinterp.runs import Run

SHOWN = 3  # failed cells with their tracebacks in a message
PAUSE = 0.2  # seconds between two looks at cells that others hold


class CellsFailed(RuntimeError):
    """Cells of a run failed and the others are finished; the message has their tracebacks."""

    def __init__(self, run: Run, found: Sequence[Failure], left: int):
        shown = "\n\n".join(
            f"cell {one.key} ({one.worker}):\n{one.traceback.rstrip()}" for one in found[:SHOWN]
        )
        more = f"\n\nand {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        super().__init__(
            f"{shown}{more}\n\n{len(found)} of the cells failed and {left - len(found)} others are not made"
            f" (they read one of these); {run.safe()} finished cells are safe in {run.folder}; mend the cause"
            " and give the same command with --retry-failed"
        )
        self.failures = tuple(found)


class Worker:
    """One process at work on a run that it joined: its loaded model and the inputs of its last cell."""

    def __init__(
        self,
        run: Run,
        *,
        resolve_model: Callable[[str], Any],
        task: Callable[[Cell, Any, dict[str, Result]], Result],
    ):
        self.run, self.resolve_model, self.task = run, resolve_model, task
        self.model: tuple[str | None, Any] = (None, None)
        self.inputs: dict[str, Result] = {}
        self.cells: dict[str, Cell] = {}
        self.done: set[str] = set()

    def work(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """Each cell once it is done with: finished here or by another, failed, or left out because it reads
        one that failed. `cells` hold all inputs of their own. Raises OSError for a full disk.
        """
        self.cells = {cell.key: cell for cell in cells}
        waiting, passed, lost = deque(cells), 0, set()
        while waiting:
            cell = waiting.popleft()
            if failure_path(self.run.folder, cell).exists() or lost.intersection(cell.inputs):
                lost.add(cell.key)
                yield cell
            elif all(self._done(self.cells[key]) for key in cell.inputs) and self._make(cell):
                passed = 0
                if failure_path(self.run.folder, cell).exists():
                    lost.add(cell.key)
                yield cell
            else:
                waiting.append(cell)
                passed += 1
                if passed >= len(waiting):
                    passed = 0
                    time.sleep(PAUSE)

    def _done(self, cell: Cell) -> bool:
        """Whether a cell and all that it was made from are as asked now."""
        if cell.key not in self.done:
            inputs = all(self._done(self.cells[key]) for key in cell.inputs)
            if not (inputs and self.run.finished(cell)):
                return False
            self.done.add(cell.key)
        return True

    def _make(self, cell: Cell) -> bool:
        """Whether the cell is done with: made, made by another, or failed. False where another holds it."""
        with self.run.claim(cell) as mine:
            if not mine:
                return False
            if not self._done(cell):
                try:
                    self.run.step(cell, lambda: self._compute(cell))
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in DISK_FULL:
                        raise
                    note_failure(self.run.folder, cell, error)
        return True

    def _compute(self, cell: Cell) -> Result:
        kept = {key: held for key, held in self.inputs.items() if key in cell.inputs}
        self.inputs = {key: kept.get(key) or self._read(self.cells[key]) for key in cell.inputs}
        inputs, name = self.inputs, cell.model
        if name is not None and name != self.model[0]:
            self.model = (None, None)
            gc.collect()  # a model with hooks is full of cycles: reference counts alone keep its memory
            self.model = (name, self.resolve_model(name))
        return self.task(cell, None if name is None else self.model[1], inputs)

    def _read(self, cell: Cell) -> Result:
        """An input; one that is damaged is made again, by one worker."""
        while True:
            try:
                return self.run.result(cell)
            except (ValueError, KeyError, FileNotFoundError):
                with self.run.claim(cell) as mine:
                    if mine:
                        return self.run.step(cell, lambda: self._compute(cell))
            time.sleep(PAUSE)


def spread(cells: Sequence[Cell], place: int, of: int) -> list[Cell]:
    """All cells in the order for one of several workers: a model's together, begun at its own share."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    sorted_cells = sorted(cells, key=lambda cell: models.index(cell.model))
    start = place * len(cells) // of
    return [*sorted_cells[start:], *sorted_cells[:start]]
