"""How far a run is: which cells are finished, which are worked on, which failed and what they raised."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechinterp.cells import Cell
from mechinterp.json_io import read_json, read_lines, write_json
from mechinterp.locks import HELD, is_held

if TYPE_CHECKING:
    from mechinterp.runs import Run

FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """How far a run is: cells in all, finished ones, the keys of the rest, seconds spent and still to go.

    `left` are all that are not finished, with those that are `running` or `failed`. `rate` is cells a minute
    by those that run now; it and `seconds_left` are None until a cell was timed.
    """

    total: int
    done: int
    left: tuple[str, ...]
    running: tuple[str, ...]
    failed: tuple[str, ...]
    seconds: float
    seconds_left: float | None
    rate: float | None

    def __str__(self) -> str:
        said = [f"{self.done} of {self.total} cells finished in {self.seconds:.0f} s"]
        if self.running:
            said.append(f"{len(self.running)} running")
        if self.failed:
            said.append(f"{len(self.failed)} failed")
        if self.rate is not None and self.running:
            said.append(f"{self.rate:.3g} a minute")
        if self.seconds_left is not None and self.left:
            said.append(f"about {self.seconds_left:.0f} s to go")
        return ", ".join(said)


@dataclass(frozen=True)
class Failure:
    """What a cell raised, where and by which process."""

    key: str
    error: str
    traceback: str
    worker: str


def status(run: Run, cells: Sequence[Cell]) -> Status:
    """How far the run is with these cells; other processes may be at work on it."""
    left = tuple(cell for cell in cells if not run.finished(cell))
    running = tuple(cell.key for cell in left if is_held(held_path(run.folder, cell)))
    failed = tuple(cell.key for cell in left if failure_path(run.folder, cell).exists())
    spent = [line["seconds"] for line in _timings(run.folder) if "seconds" in line]
    mean = sum(spent) / len(spent) if spent else None
    at_once = max(len(running), 1)
    return Status(
        total=len(cells),
        done=len(cells) - len(left),
        left=tuple(cell.key for cell in left),
        running=running,
        failed=failed,
        seconds=sum(spent, 0.0),
        seconds_left=None if mean is None else mean * len(left) / at_once,
        rate=60 * len(running) / mean if mean else None,
    )


def _timings(folder: Path) -> Iterator[dict[str, Any]]:
    """What every process that worked here noted of its cells."""
    for path in sorted(folder.glob("timings*.jsonl")):
        yield from read_lines(path)


def held_path(folder: Path, cell: Cell) -> Path:
    """The file that is held by whoever works on the cell."""
    return folder / HELD / f"{cell.folder}.lock"


def failure_path(folder: Path, cell: Cell) -> Path:
    return folder / FAILED / f"{cell.folder}.json"


def note_failure(folder: Path, cell: Cell, error: BaseException) -> None:
    """Keep what a cell raised beside the run, for whoever asks what went wrong."""
    path = failure_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "key": cell.key,
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "worker": f"process {os.getpid()} on {platform.node()}",
    }
    write_json(path, told)


def failures(folder: Path, cells: Sequence[Cell]) -> list[Failure]:
    """Of these cells, those that failed, in their order."""
    paths = (failure_path(folder, cell) for cell in cells)
    return [Failure(**read_json(path)) for path in paths if path.is_file()]


def lost(folder: Path, cells: Sequence[Cell]) -> set[str]:
    """The keys of cells that failed, and of those that read one of them, however far."""
    found: set[str] = set()
    for cell in cells:
        if found.intersection(cell.inputs) or failure_path(folder, cell).exists():
            found.add(cell.key)
    return found


def forget_failures(folder: Path, cells: Sequence[Cell]) -> None:
    """Let those of these cells that failed be tried again."""
    for cell in cells:
        failure_path(folder, cell).unlink(missing_ok=True)
