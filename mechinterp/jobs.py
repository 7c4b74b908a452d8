"""Local workers and shares of batch arrays, which work in one run directory without any engine.

A worker is this file as a program. It takes what it does from the directory, and ends when whoever started it
does: nobody computes for a command that is gone.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mechinterp import beside, engine
from mechinterp.cells import Cell, needed
from mechinterp.progress import failures, forget_failures
from mechinterp.running import Asked, joined, opened, reopened
from mechinterp.runs import Run
from mechinterp.workers import CellsFailed, Worker, spread

LOOK = 0.3  # seconds between two looks at how far the workers are


@dataclass(frozen=True)
class Share:
    """One of `of` equal shares of the cells, counted from 0."""

    place: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.place < self.of:
            raise ValueError(
                f"there is no share {self.place}/{self.of}; shares of N are 0/N to N-1/N, such as 0/4"
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """ "0/4" as a share; ValueError says how to write one."""
        place, _, of = text.partition("/")
        if not (place.isdigit() and of.isdigit()):
            raise ValueError(
                f"{text!r} is no share; write I/N with I from 0, such as 0/4 for the first of four"
            )
        return cls(int(place), int(of))

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Neighbours in the list, which read one another most, and whatever they read."""
        n = len(cells)
        return needed(cells, cells[self.place * n // self.of : (self.place + 1) * n // self.of])


def run_share(
    asked: Asked,
    folder: Path,
    share: Share,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> bool:
    """Work on one share beside others that may run now, before or later; whether all cells are finished.

    Raises `CellsFailed` where cells of the share failed.
    """
    cells = asked.cells(limit)
    mine = share.cells(cells)
    with joined(asked, folder) as run, engine.interruptible(run):
        if retry_failed:
            forget_failures(run.folder, mine)
        bar = engine.progress_bar(len(mine), 0, progress)
        with closing(bar):
            for _ in Worker(run, resolve_model=asked.loader(), task=asked.task).work(mine):
                bar.update()
        check(run, mine)
        return all(run.finished(cell) for cell in cells)


def run_jobs(
    asked: Asked,
    folder: Path,
    n: int,
    *,
    limit: int | None = None,
    new: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
) -> None:
    """Every cell by `n` processes of this machine, each with a model of its own.

    Raises `CellsFailed` where cells failed, RuntimeError where every worker ended before the cells did.
    """
    if n < 1:
        raise ValueError(f"{n} workers do nothing; give --jobs 1 or more")
    cells = asked.cells(limit)
    with opened(asked, folder, new=new) as alone:
        if retry_failed:
            forget_failures(alone.folder, cells)
        if all(alone.finished(cell) for cell in cells):
            return
    _say_threads(n, alone.manifest.threads)
    rest = [] if limit is None else [str(limit)]
    workers = [
        beside.started(
            "mechinterp.jobs", str(alone.folder), f"{place}/{n}", *rest, threads=alone.manifest.threads
        )
        for place in range(n)
    ]
    try:
        with engine.interruptible(alone):
            watch(alone, cells, workers, progress)
    finally:
        for worker in workers:
            beside.stopped(worker)
    check(alone, cells)
    if not all(alone.finished(cell) for cell in cells):
        raise RuntimeError(
            f"the workers ended before the cells were finished (exit codes"
            f" {', '.join(str(worker.returncode) for worker in workers)}); what they said is above, and the"
            " same command goes on"
        )


def check(run: Run, cells: Sequence[Cell]) -> None:
    """Raises `CellsFailed` where cells failed."""
    found = failures(run.folder, cells)
    if found:
        raise CellsFailed(run, found, sum(not run.finished(cell) for cell in cells))


def watch(
    run: Run, cells: Sequence[Cell], workers: Sequence[subprocess.Popen[bytes]], progress: bool
) -> None:
    """One bar over all cells until the workers end; says which of them was killed."""
    left = [cell for cell in cells if not run.finished(cell)]
    alive = list(workers)
    with closing(engine.progress_bar(len(cells), len(cells) - len(left), progress)) as bar:
        while alive:
            time.sleep(LOOK)
            ended = [worker for worker in alive if worker.poll() is not None]
            still = [cell for cell in left if not run.present(cell)]
            bar.update(len(left) - len(still))
            left = still
            for worker in ended:
                alive.remove(worker)
                if worker.returncode < 0:
                    _log(f"a worker was killed by signal {-worker.returncode}; {len(alive)} others go on")


def _say_threads(n: int, threads: int) -> None:
    cores = os.cpu_count() or 1
    if n * threads > cores:
        _log(
            f"{n} workers of {threads} threads on {cores} cores get in each other's way; in a new directory,"
            f" OMP_NUM_THREADS={max(1, cores // n)} may be faster"
        )


def _log(line: str) -> None:
    logging.getLogger("mechinterp").info(line)


def main(folder: str, share: str, limit: str | None = None) -> int:
    """A worker of `run_jobs`: begins at its share and goes on with all that is left."""
    import torch

    beside.follow_the_starter()
    asked, there = reopened(Path(folder))
    torch.set_num_threads(there.manifest.threads)
    place = Share.parse(share)
    cells = spread(asked.cells(None if limit is None else int(limit)), place.place, place.of)
    try:
        with joined(asked, Path(folder)) as run:
            for _ in Worker(run, resolve_model=asked.loader(), task=asked.task).work(cells):
                pass
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mechinterp: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
