"""Peak memory of one piece of work, in a fresh process: a later one would reuse the heap of an earlier and
read as nothing.

`python -m benchmarks.memory WORKLOAD CASE ARM MODEL DTYPE DEVICE THREADS` prints the megabytes by which the
resident set grew at its peak. The workload's module says what to run: `alone(case, arm, subject)` gives a
warm-up that touches the weights, and the work itself. Linux only, for no other system lets a process reset
its peak.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ctypes  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402

from benchmarks.subject import Subject  # noqa: E402

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_peak(workload: str, case: str, arm: str, subject: Subject) -> float | None:
    """Megabytes above what was resident before, measured in a process of its own; None where it cannot be."""
    if not RESET.exists():
        return None
    command = [sys.executable, "-m", "benchmarks.memory", workload, case, arm, *subject.arguments()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case}.{arm} failed in its own process: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1])


def extra_peaks(
    workload: str, case: str, arms: Mapping[str, Callable[[], object]], subject: Subject
) -> dict[str, float | None]:
    """Each arm's extra peak: in a process of its own, or on a GPU in this one, where torch counts it."""
    if subject.device == "cpu":
        return {name: extra_peak(workload, case, name, subject) for name in arms}
    return {name: grown_on_gpu(run) for name, run in arms.items()}


def over_ours(held: Mapping[str, float | None], arm: str) -> float | None:
    """An arm's extra peak over ours; None where one of them was not measured."""
    mine, theirs = held["ours"], held[arm]
    return None if not mine or theirs is None else theirs / mine


def grown(warm_up: Callable[[], object], run: Callable[[], object]) -> float:
    """Megabytes that `run` adds to the resident set of this process at its peak."""
    warm_up()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading freed would otherwise be used again, unseen
    RESET.write_text("5")
    before = _megabytes("VmRSS")
    run()
    return _megabytes("VmHWM") - before


def grown_on_gpu(run: Callable[[], object]) -> float:
    """Megabytes that `run` adds to what torch has allocated on the GPU, at its peak; torch counts that
    itself, so no process of its own is needed.
    """
    import torch

    run()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _megabytes(field: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def main(workload: str, case: str, arm: str, *arguments: str) -> None:
    module = importlib.import_module(f"benchmarks.{workload}")
    print(grown(*module.alone(case, arm, Subject.of(*arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
