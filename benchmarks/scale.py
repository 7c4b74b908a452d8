"""W7: what a cell costs beside its work: in directories of 100 to 10,000 cells, and on each engine.

No model runs. `open`, `resume`, `status` and `report` of a finished run are timed at every size; that they
grow linearly is read from `resume10000.resume1000.ratio`, which is 10 where they do. The engines make the
same cells of 20 milliseconds with one worker; their start is told apart from what each cell costs.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.subject import Subject
from mechinterp import jobs, ray_engine, running
from mechinterp.runs import Run

STUDY = str(Path(__file__).with_name("scale_study.py"))
SIZES = (100, 1000, 10_000)
MILLISECONDS = 20
ENGINE_CELLS = 500


def measure(subject: Subject, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds at each size, their ratios from one size to the next, and milliseconds a cell by engine."""
    sizes = SIZES[:2] if quick else SIZES
    with TemporaryDirectory() as scratch:
        taken = {n: _directory(Path(scratch) / str(n), n, rounds) for n in sizes}
        found: dict[str, Any] = {f"n{n}": seconds for n, seconds in taken.items()}
        for small, large in zip(sizes, sizes[1:], strict=False):
            for what in ("resume", "status", "report"):
                ratio = taken[large][what] / taken[small][what]
                found.setdefault(f"{what}{large}", {})[f"{what}{small}"] = {"ratio": ratio}
        return {**found, **_engines(Path(scratch), ENGINE_CELLS // 10 if quick else ENGINE_CELLS)}


def _directory(folder: Path, n: int, rounds: int) -> dict[str, float]:
    asked = _asked(n)
    work = {
        "run": lambda: running.run(asked, folder, progress=False),
        "open": lambda: Run.read(folder),
        "resume": lambda: running.run(asked, folder, progress=False, report=False),
        "status": lambda: running.status(folder),
        "report": lambda: running.report(folder),
    }
    taken = {name: _seconds(act, 1 if name == "run" else rounds) for name, act in work.items()}
    return {**taken, "run_ms_per_cell": 1000 * taken["run"] / n}


def _engines(scratch: Path, n: int) -> dict[str, Any]:
    """Each engine with one worker, on few cells and on many: the slope is a cell's, the rest is the start."""
    few = max(10, n // 10)
    engines: dict[str, Callable[[running.Asked, Path], Any]] = {
        "serial": lambda asked, folder: running.run(asked, folder, progress=False, report=False),
        "jobs": lambda asked, folder: jobs.run_jobs(asked, folder, 1, progress=False),
        "ray": lambda asked, folder: ray_engine.run_ray(asked, folder, n_actors=1, progress=False),
    }
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    slopes, starts = {}, {}
    for name, run in engines.items():
        short, long = (
            _seconds(partial(run, _asked(size, MILLISECONDS), scratch / f"{name}{size}"), 1)
            for size in (few, n)
        )
        slopes[name] = (long - short) / (n - few)
        starts[name] = max(0.0, short - few * slopes[name])
    return {
        name: {
            "ms_per_cell": 1000 * slopes[name],
            "start_seconds": starts[name],
            "serial": {"overhead": slopes[name] / slopes["serial"]},
        }
        for name in engines
    }


def _asked(n: int, milliseconds: float = 0.0) -> running.Asked:
    return running.ask(STUDY, overrides=[f"n={n}", f"milliseconds={milliseconds}"])


def _seconds(act: Callable[[], Any], rounds: int) -> float:
    """The median wall time of some rounds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]
