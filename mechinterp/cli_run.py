"""`mechinterp run`: a study here, in local processes, as one share of a batch array, or on a Ray cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechinterp.running import Asked

LEAVING = 60.0  # seconds for the other workers to end once all cells are finished


def add(commands: Any) -> argparse.ArgumentParser:
    """The command with its options."""
    run = commands.add_parser("run", help="run a study, or go on with it")
    add_question(run)
    run.add_argument("--out", type=Path, help="run directory (default: runs/STUDY-PRESET)")
    run.add_argument("--limit", type=int, help="only the first N cells and what they need")
    run.add_argument("--dry-run", action="store_true", help="list the cells and stop")
    run.add_argument(
        "--new", action="store_true", help="set a run in the same directory aside and start over"
    )
    run.add_argument("--no-report", action="store_true", help="leave the report out")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    many = run.add_argument_group("many workers, with the results of one")
    many.add_argument("--jobs", type=int, metavar="N", help="N processes; with --engine, N actors")
    many.add_argument("--shard", metavar="I/N", help="only this share of the cells, 0/N to N-1/N")
    many.add_argument("--engine", choices=["ray"], help="where cells run (needs mechinterp[scale])")
    many.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster that runs already, or auto")
    many.add_argument("--gpus-per-worker", type=float, metavar="G", help="GPUs of each Ray actor")
    many.add_argument("--retry-failed", action="store_true", help="try cells that failed before once more")
    return run


def add_question(command: argparse.ArgumentParser) -> None:
    """Which study, in which configuration."""
    command.add_argument(
        "study", help="a name that `mechinterp studies` lists, or the path of your own .py file"
    )
    command.add_argument("--preset", help="a named configuration; see `mechinterp studies`")
    command.add_argument("--config", type=Path, help="a TOML or JSON file")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="change one value"
    )


def act(given: argparse.Namespace, asked: Asked) -> tuple[Path, Any]:
    """Runs it; the directory and the result, None while cells are left."""
    from mechinterp import running

    out = given.out or Path("runs") / "-".join(filter(None, [Path(given.study).stem, given.preset]))
    many = given.jobs is not None or given.shard is not None or given.engine is not None
    if many and not _by_workers(given, asked, out):
        return out, None
    return out, running.run(
        asked,
        out,
        limit=given.limit,
        new=given.new and not many,
        progress=not given.quiet and not many,
        report=not given.no_report,
        wait=LEAVING if many else 0.0,
    )


def _by_workers(given: argparse.Namespace, asked: Asked, out: Path) -> bool:
    """Whether all cells are finished, so that the run can be concluded here."""
    from mechinterp import jobs

    common: dict[str, Any] = {
        "limit": given.limit,
        "retry_failed": given.retry_failed,
        "progress": not given.quiet,
    }
    if given.shard is not None:
        return jobs.run_share(asked, out, jobs.Share.parse(given.shard), **common)
    if given.engine is None:
        jobs.run_jobs(asked, out, given.jobs, new=given.new, **common)
    else:
        from mechinterp import ray_engine

        ray_engine.run_ray(
            asked,
            out,
            address=given.address,
            n_actors=given.jobs,
            gpus_per_worker=given.gpus_per_worker or 0,
            new=given.new,
            **common,
        )
    return True


def check(given: argparse.Namespace) -> None:
    """Raises ValueError for options that exclude each other."""
    if given.shard is not None and (given.jobs is not None or given.engine is not None or given.new):
        raise ValueError(
            "--shard is one process of a batch array, which works in the directory of the others: leave out"
            " --jobs, --engine and --new"
        )
    if given.engine is None and (given.address is not None or given.gpus_per_worker is not None):
        raise ValueError("--address and --gpus-per-worker are for a cluster; add --engine ray")
    if given.retry_failed and given.jobs is None and given.shard is None and given.engine is None:
        raise ValueError(
            "without --jobs, --shard or --engine failed cells are tried anyway; leave out --retry-failed"
        )
