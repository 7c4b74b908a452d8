"""The serial engine: cells in their order, each model loaded when its first unfinished cell needs it."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mechinterp.cells import Cell, check_cells
from mechinterp.json_io import write_json
from mechinterp.results import Result
from mechinterp.runs import Run


def execute(
    run: Run,
    cells: Sequence[Cell],
    *,
    resolve_model: Callable[[str], Any],
    task: Callable[[Cell, Any, dict[str, Result]], Result],
    progress: bool = True,
) -> dict[str, Result]:
    """Every cell's result by key: finished cells are read, the others computed in order.

    `task(cell, model, inputs)` gets the model that `resolve_model` gave for the cell's model name (None
    without one) and the results of the cell's inputs. A model is let go after the last unfinished cell that
    needs it. Raises what a task raises; the cells finished by then stay.
    """
    check_cells(cells)
    unfinished = [cell for cell in cells if not run.finished(cell)]
    last_need = {cell.model: cell.key for cell in unfinished}
    models: dict[str, Any] = {}
    results: dict[str, Result] = {}

    def compute(cell: Cell) -> Result:
        if cell.model is not None and cell.model not in models:
            models[cell.model] = resolve_model(cell.model)
        model = None if cell.model is None else models[cell.model]
        return task(cell, model, {key: results[key] for key in cell.inputs})

    waiting = {cell.key for cell in unfinished}
    with progress_bar(len(cells), len(cells) - len(unfinished), progress) as bar:
        for cell in cells:
            bar.set_postfix_str(cell.key, refresh=cell.key in waiting)
            with _mine(run, cell, cell.key in waiting):
                results[cell.key] = run.step(cell, lambda cell=cell: compute(cell))
            bar.update(cell.key in waiting)
            if cell.model in models and last_need.get(cell.model) == cell.key:
                del models[cell.model]
                gc.collect()  # a model with hooks is full of cycles: reference counts alone keep its memory
    if run.lock is not None:
        write_json(run.folder / "digests.json", {cell.key: run.digest(cell.key) for cell in cells})
    return results


def _mine(run: Run, cell: Cell, waiting: bool) -> contextlib.AbstractContextManager[object]:
    """Holds a cell that is to be made, so that others see that it is worked on."""
    return run.claim(cell) if waiting and run.lock is not None else contextlib.nullcontext()


def progress_bar(total: int, done: int, progress: bool) -> Any:
    """A bar on standard error; whoever makes it closes it."""
    from tqdm import tqdm

    # Silent where nobody watches. Cells read from disk stay out of the time estimate.
    watched = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return tqdm(total=total, initial=done, unit="cell", disable=not watched, file=sys.stderr)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def interruptible(run: Run) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a line on how to go on, and exit code 130 or 143.

    The unfinished cell is dropped. A second signal acts as it would without us.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        restore()
        raise Interrupted(number)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    except Interrupted as interrupt:
        print(
            f"\nstopped by {interrupt}: {run.safe()} finished cells are safe in {run.folder}; the same"
            " command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(128 + interrupt.number) from None
    finally:
        restore()
