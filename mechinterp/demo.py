"""The demo: some studies at demo size, and one report of them all.

Small batches leave a core idle between their matrix products. So where there are two threads and more, some
of the studies run beside the others, in a process of their own, and each process has half of the threads.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechinterp.jobs import end_with_the_starter
from mechinterp.running import Asked, ask, run
from mechinterp.runs import Run


def demo(folder: Path) -> list[Any]:
    """Every study of the demo in a folder of its own, and one report of them all. Their results, in order."""
    import torch

    import studies

    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(threads // 2)
        try:
            with _beside(folder, studies.BESIDE, threads // 2):
                _run_all(folder, [study for study in studies.DEMO if study not in studies.BESIDE], True)
            return _concluded(folder)  # and what the other process left undone
        finally:
            torch.set_num_threads(threads)
    return _concluded(folder)


@contextmanager
def _beside(folder: Path, names: Sequence[str], threads: int) -> Iterator[None]:
    """These studies run meanwhile; at the end they are waited for, and after an error they are stopped."""
    log = logging.getLogger("mechinterp")
    log.info("beside run: %s", ", ".join(names))
    process = subprocess.Popen(
        [sys.executable, "-m", "mechinterp.demo", str(folder), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    try:
        yield
        if process.poll() is None:
            log.info("waiting for what runs beside")
        process.wait()
    finally:
        process.kill()
        process.wait()


def _run_all(folder: Path, names: Sequence[str], progress: bool) -> None:
    for study in names:
        run(_asked(folder, study), folder / study, progress=progress, report=False)


def _concluded(folder: Path) -> list[Any]:
    import studies
    from mechinterp.report import write_book

    results, chapters = [], {}
    for study in studies.DEMO:
        asked = _asked(folder, study)
        results.append(run(asked, folder / study))
        chapters[study] = asked.module.page(asked.config, results[-1], Run.read(folder / study))
    write_book("mechinterp demo", chapters, folder)
    return results


def _asked(folder: Path, study: str) -> Asked:
    import studies

    return ask(study, preset="demo", overrides=[one.format(demo=folder) for one in studies.DEMO[study]])


def main(folder: str, *names: str) -> int:
    """The process beside; what it cannot do is left to the one that started it, which says why."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter stops it
    end_with_the_starter()
    try:
        _run_all(Path(folder), names, progress=False)
    except (ValueError, OSError, RuntimeError):
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
