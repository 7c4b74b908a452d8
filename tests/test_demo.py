"""The demo in two processes is the demo in one; what the second leaves undone, the first does."""

import subprocess
import sys

import pytest
import torch

import studies
from mechinterp import demo as demos
from mechinterp.running import ask
from mechinterp.runs import Run

STUDY = "kl_aggregation"  # the one that needs no model


@pytest.fixture
def two_threads(monkeypatch):
    """One study, which runs beside; a second thread that the demo can give it."""
    monkeypatch.setattr(studies, "DEMO", {STUDY: ()})
    monkeypatch.setattr(studies, "BESIDE", (STUDY,))
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def left(monkeypatch, tmp_path):
    """How many cells each run of this process found undone."""
    found, run = [], demos.run
    cells = ask(STUDY, preset="demo").cells()

    def seen(asked, folder, **more):
        there = (folder / "manifest.json").exists()
        found.append(sum(not Run.read(folder).finished(cell) for cell in cells) if there else len(cells))
        return run(asked, folder, **more)

    monkeypatch.setattr(demos, "run", seen)
    return found


def test_what_runs_beside_is_found_finished_and_is_one_report(two_threads, left, tmp_path):
    (result,) = demos.demo(tmp_path / "beside")
    assert left == [0] and result.headline() and (tmp_path / "beside" / "report.html").is_file()
    manifest = Run.read(tmp_path / "beside" / STUDY).manifest
    assert manifest.threads == 1 and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    demos.demo(tmp_path / "alone")
    assert left[1] > 0
    for name in ("digests.json", "result/result.json"):
        made = [(tmp_path / how / STUDY / name).read_bytes() for how in ("beside", "alone")]
        assert made[0] == made[1]


def test_what_the_other_process_leaves_undone_is_done_here(two_threads, left, tmp_path, monkeypatch):
    start, fail = subprocess.Popen, [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(subprocess, "Popen", lambda _, **more: start(fail, **more))
    (result,) = demos.demo(tmp_path)
    assert left[0] > 0 and result.headline()


def test_after_an_error_nothing_runs_beside(two_threads, tmp_path, monkeypatch):
    started = []

    class Started(subprocess.Popen):
        def __init__(self, _, **more):
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **more)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(studies, "DEMO", {STUDY: (), "persistence": ()})
    monkeypatch.setattr(demos, "_concluded", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demos.demo(tmp_path)
    assert started[0].poll() is not None and torch.get_num_threads() == 2
