"""The demo: some studies at demo size, and one report of them all.

Small batches leave a core idle between their matrix products. So where there are two threads and more, some
of the studies run beside the others, in a process of their own, and each process has half of the threads.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechinterp import beside
from mechinterp.running import Asked, ask, run
from mechinterp.runs import Run

if TYPE_CHECKING:
    from mechinterp.report import Page


def demo(folder: Path) -> list[Any]:
    """Every study of the demo in a folder of its own, and one report of them all. Their results, in order."""
    import torch

    import studies
    from mechinterp.report import write_book

    threads = torch.get_num_threads()
    others = [study for study in studies.DEMO if study in studies.BESIDE] if threads > 1 else []
    torch.set_num_threads(max(1, threads // 2))
    try:
        with _beside(folder, others, torch.get_num_threads()) if others else nullcontext():
            done = {study: _concluded(folder, study) for study in studies.DEMO if study not in others}
        done |= {study: _concluded(folder, study) for study in others}  # with what was left undone
    finally:
        torch.set_num_threads(threads)
    write_book("mechinterp demo", {study: done[study][1] for study in studies.DEMO}, folder)
    return [done[study][0] for study in studies.DEMO]


@contextmanager
def _beside(folder: Path, names: Sequence[str], threads: int) -> Iterator[None]:
    """These studies run meanwhile; at the end they are waited for, and after an error they are stopped."""
    log = logging.getLogger("mechinterp")
    log.info("beside run: %s", ", ".join(names))
    process = beside.started("mechinterp.demo", str(folder), *names, threads=threads)
    try:
        yield
        if process.poll() is None:
            log.info("waiting for what runs beside")
        process.wait()
    finally:
        beside.stopped(process)


def _concluded(folder: Path, study: str) -> tuple[Any, Page]:
    """A study's result and its page, finished or not before."""
    asked = _asked(folder, study)
    result = run(asked, folder / study)
    return result, asked.module.page(asked.config, result, Run.read(folder / study))


def _asked(folder: Path, study: str) -> Asked:
    import studies

    return ask(study, preset="demo", overrides=[one.format(demo=folder) for one in studies.DEMO[study]])


def main(folder: str, *names: str) -> int:
    """The process beside; what it cannot do is left to the one that started it, which says why."""
    beside.follow_the_starter()
    try:
        for study in names:
            run(_asked(Path(folder), study), Path(folder) / study, progress=False, report=False)
    except (ValueError, OSError, RuntimeError):
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
