"""Ray as the engine: actors and nodes die, the bytes stay. One cluster, a head and two nodes, for all."""

# pyright: reportMissingImports=false

import ipaddress
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # decided when ray is imported
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from mechinterp import ray_engine, running  # noqa: E402
from mechinterp.cli import main  # noqa: E402
from mechinterp.difference import compare  # noqa: E402
from mechinterp.ray_engine import Hand, run_ray  # noqa: E402
from mechinterp.workers import CellsFailed  # noqa: E402
from tests.test_workers import TOY, alone, asked, made  # noqa: E402

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(120), pytest.mark.enable_socket]
SMALL = 80 * 2**20  # bytes of a node's object store: nothing of ours lies in it


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made_of = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": SMALL, "include_dashboard": False},
    )
    nodes = [made_of.add_node(num_cpus=1, object_store_memory=SMALL) for _ in range(2)]
    ray.init(address=made_of.address, log_to_driver=False, logging_level="ERROR")
    yield made_of, nodes
    ray.shutdown()
    made_of.shutdown()


def open_ports() -> set[str]:
    """Addresses other than loopback at which a process of Ray listens."""
    import psutil

    mine = psutil.Process()
    held = [mine, *mine.children(recursive=True)]
    found = [one for process in held for one in process.net_connections("inet")]
    listening = {one.laddr.ip.removeprefix("::ffff:") for one in found if one.status == "LISTEN"}
    return {ip for ip in listening if not ipaddress.ip_address(ip).is_loopback}


def test_a_node_is_lost_in_mid_run_and_nothing_else(cluster, tmp_path):
    made_of, nodes = cluster
    overrides = ("seconds=0.5", "n=8")

    def lose() -> None:
        while len(made(tmp_path / "run")) < 2:
            time.sleep(0.05)
        made_of.remove_node(nodes.pop(), allow_graceful=False)

    losing = threading.Thread(target=lose)
    losing.start()
    run_ray(asked(*overrides), tmp_path / "run", progress=False)
    losing.join()
    assert len(nodes) == 1
    assert compare(alone(tmp_path / "serial", *overrides), tmp_path / "run").identical
    assert set(made(tmp_path / "run").values()) == {1}
    assert open_ports() == set()


def test_an_actor_that_is_killed_is_started_again_by_ray(cluster, tmp_path):
    overrides = ("deadly=[1]", f"mended={str(tmp_path / 'mended')!r}")
    run_ray(asked(*overrides), tmp_path / "run", progress=False)
    assert compare(alone(tmp_path / "serial", *overrides), tmp_path / "run").identical


def test_a_cell_that_fails_leaves_the_others_finished_and_is_told(cluster, tmp_path):
    with pytest.raises(CellsFailed, match="no mean of nothing") as caught:
        run_ray(asked("bad=[2]"), tmp_path / "run", progress=False)
    assert [one.key for one in caught.value.failures] == ["draw/2"]
    assert running.status(tmp_path / "run").done == 9
    assert ray.is_initialized(), "a cluster that was there before stays"


def test_fault_089_an_actor_with_other_versions_or_without_the_directory_is_refused(tmp_path):
    with running.opened(asked(), tmp_path) as run:
        manifest = run.manifest
    other = replace(manifest, versions=manifest.versions | {"torch": "2.13.99"})
    with pytest.raises(RuntimeError, match=r"another torch \(2\.13\.99 asked, 2\.\d+\.\d"):
        Hand(str(tmp_path), other, None)
    with pytest.raises(RuntimeError, match="does not see .*/gone; choose an --out that all nodes share"):
        Hand(str(tmp_path / "gone"), manifest, None)
    assert not (tmp_path / "gone").exists()
    Hand(str(tmp_path), manifest, None).run.close()


def test_an_actor_that_is_refused_ends_the_run_with_its_reason(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ray_engine,
        "opened",
        lambda *given, **more: _other_versions(running.opened(*given, **more)),
    )
    with pytest.raises(RuntimeError, match=r"^node .* has another nnsight \(0\.0\.1 asked"):
        run_ray(asked(), tmp_path, progress=False)
    assert made(tmp_path) == {}


def _other_versions(run):
    return replace(run, manifest=replace(run.manifest, versions=run.manifest.versions | {"nnsight": "0.0.1"}))


def test_an_address_that_nobody_answers_is_an_error_within_seconds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    words = ["run", TOY, "--out", str(tmp_path), "--engine", "ray", "--quiet", "--address"]
    assert main([*words, "127.0.0.1:9"]) == 1
    assert "nobody answers at 127.0.0.1:9" in capsys.readouterr().err
    assert time.monotonic() - started < 10
    assert main([*words, "nowhere"]) == 1
    assert "HOST:PORT" in capsys.readouterr().err


def test_a_cluster_without_room_is_told(cluster, tmp_path):
    with pytest.raises(RuntimeError, match="no room for an actor with 2 GPUs"):
        run_ray(asked(), tmp_path, gpus_per_worker=2, progress=False)


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'mechinterp\[scale\]'"):
        run_ray(asked(), Path(tmp_path))
