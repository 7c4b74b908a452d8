"""Ray as the engine: it places actors on a cluster and restarts what dies.

An actor joins the run directory, which all nodes must see, and works as any worker there does: it takes cells
that nobody holds. Nothing of a result travels. Where a node is lost, the others take its cells at once.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mechinterp import engine
from mechinterp.cells import Cell
from mechinterp.jobs import LOOK, check
from mechinterp.manifest import RunManifest, manifest_for
from mechinterp.progress import forget_failures, lost
from mechinterp.running import Asked, joined, opened, reopened
from mechinterp.runs import Run
from mechinterp.workers import Worker, spread

ANSWER = 3.0  # seconds for a cluster's first answer
RESTARTS = 5  # of one actor: a cell may be what kills it


def run_ray(
    asked: Asked,
    folder: Path,
    *,
    address: str | None = None,
    n_actors: int | None = None,
    gpus_per_worker: float = 0,
    limit: int | None = None,
    new: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
) -> None:
    """Every cell on a Ray cluster: the one at `address` ("auto", "HOST:PORT"), or one of this machine alone,
    which listens on its loopback address only. `n_actors` at most, as many as the cluster has room for.

    Raises ConnectionError within seconds where nobody answers, `CellsFailed` where cells failed, and
    RuntimeError for an actor with other versions or weights or without the directory.
    """
    ray = _ray(alone=address is None)
    cells = asked.cells(limit)
    with opened(asked, folder, new=new) as alone:
        if retry_failed:
            forget_failures(alone.folder, cells)
        left = [cell for cell in cells if not alone.finished(cell)]
        if not left:
            return
    manifest = alone.manifest
    wanted_cpus = None if n_actors is None else n_actors * manifest.threads
    with _cluster(ray, address, wanted_cpus), engine.interruptible(alone):
        n = min(n_actors or len(left), _room(ray, manifest.threads, gpus_per_worker), len(left))
        options = {"num_cpus": manifest.threads, "num_gpus": gpus_per_worker}
        actor = ray.remote(Hand).options(**options, max_restarts=RESTARTS, max_task_retries=-1)
        actors = [actor.remote(str(alone.folder), manifest, limit) for _ in range(n)]
        ends = [each.work.remote(place, n) for place, each in enumerate(actors)]
        try:
            with closing(engine.progress_bar(len(cells), len(cells) - len(left), progress)) as bar:
                _watch(ray, alone, left, ends, bar)
        finally:
            for each in actors:
                ray.kill(each)
    check(alone, cells)


def _watch(ray: Any, run: Run, cells: Sequence[Cell], ends: list[Any], bar: Any) -> None:
    """Until every actor ended or nothing is left; one that waits for room on a lost node keeps nobody."""
    left = list(cells)
    while left and ends:
        ended, ends = ray.wait(ends, num_returns=len(ends), timeout=LOOK)
        try:
            ray.get(ended)
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(_reason(error)) from None
        except ray.exceptions.RayTaskError as error:  # a full disk
            raise error.cause from None
        hopeless = lost(run.folder, cells)
        still = [one for one in left if one.key not in hopeless and not run.present(one)]
        bar.update(len(left) - len(still))
        left = still


def _reason(error: Exception) -> str:
    """What an actor raised when it began, without Ray's frames, or how it ended."""
    lines = [line for line in str(error).splitlines() if line.startswith(("ValueError: ", "RuntimeError: "))]
    return lines[-1].partition(": ")[2] if lines else f"an actor of Ray ended too often: {error}"


class Hand:
    """An actor: a worker on some node, with its model."""

    def __init__(self, folder: str, manifest: RunManifest, limit: int | None):
        import torch

        where = f"node {socket.gethostname()}"
        if not (Path(folder) / "manifest.json").is_file():
            raise RuntimeError(
                f"{where} does not see {folder}; choose an --out that all nodes share, by the same path"
            )
        torch.set_num_threads(manifest.threads)
        asked, _ = reopened(Path(folder))
        self.cells = asked.cells(limit)
        _same_versions(where, manifest, manifest_for(asked.study, asked.config, models={}, inputs={}))
        self.run = joined(asked, Path(folder))
        self.worker = Worker(self.run, resolve_model=asked.loader(), task=asked.task)

    def work(self, place: int, of: int) -> None:
        """Begin at a place among so many, and go on with all that is left."""
        for _ in self.worker.work(spread(self.cells, place, of)):
            pass


def _same_versions(where: str, asked: RunManifest, here: RunManifest) -> None:
    """Workers of one moment have the same versions to the last digit, or the bytes may differ."""
    other = {
        name: (version, here.versions.get(name))
        for name, version in asked.versions.items()
        if here.versions.get(name) != version
    }
    if other:
        told = ", ".join(f"{name} ({there} asked, {found} there)" for name, (there, found) in other.items())
        raise RuntimeError(f"{where} has another {told}; install the same versions on every node")


@contextmanager
def _cluster(ray: Any, address: str | None, cpus: int | None) -> Iterator[None]:
    """A connection, or a cluster of our own, of so many CPUs, that ends with this context."""
    if ray.is_initialized():  # whoever connected keeps it
        yield
        return
    if address is not None and address != "auto":
        _knock(address)
    own = {"include_dashboard": False, "num_cpus": cpus}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **({} if address else own))
    except (ConnectionError, RuntimeError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address or 'this machine'} ({error}); start one with"
            " `ray start --head`, or leave out --address"
        ) from None
    try:
        if address is None:
            _refuse_open_ports(ray)
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Whether somebody listens there; Ray itself waits for half a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError(f"{address!r} is no address of a cluster; write HOST:PORT, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except OSError as error:
        raise ConnectionError(
            f"nobody answers at {address} ({error.strerror or error}); start a cluster with"
            " `ray start --head`, or leave out --address for one of this machine"
        ) from None


def _room(ray: Any, threads: int, gpus: float) -> int:
    """How many actors the cluster has room for."""
    there = ray.cluster_resources()
    room = int(there.get("GPU", 0) // gpus) if gpus else int(there.get("CPU", 0) // threads)
    if room < 1:
        asked = f"{gpus:g} GPUs" if gpus else f"{threads} CPUs"
        raise RuntimeError(
            f"the cluster has no room for an actor with {asked}; ask for less with --gpus-per-worker or"
            " OMP_NUM_THREADS"
        )
    return room


def _ray(*, alone: bool) -> Any:
    """The library; `alone` keeps its servers on the loopback address, which it decides when imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if alone:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise ImportError(
            "--engine ray needs Ray; install it with: pip install 'mechinterp[scale]'"
        ) from None
    return ray


def _refuse_open_ports(ray: Any) -> None:
    """A cluster of our own that other machines could reach is ended."""
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        ray.shutdown()
        raise RuntimeError(
            f"Ray was imported before and would listen at {address}; set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"
            " before importing it, or start a cluster with `ray start --head` and give its --address"
        )
