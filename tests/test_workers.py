"""Any number of workers, in any order, killed at any moment: the bytes are those of one process alone."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechinterp import jobs, manifest, progress, running
from mechinterp.cells import Cell, needed
from mechinterp.cli import main
from mechinterp.difference import compare
from mechinterp.jobs import Share, run_jobs, run_share
from mechinterp.json_io import read_json, read_lines, write_json
from mechinterp.runs import Run
from mechinterp.workers import CellsFailed, Worker, spread
from tests.toy_study import Draw

TOY = str(Path(__file__).with_name("toy_study.py"))
ROOT = Path(__file__).parents[1]


def asked(*overrides: str) -> running.Asked:
    return running.ask(TOY, overrides=overrides)


def alone(folder: Path, *overrides: str) -> Path:
    running.run(asked(*overrides), folder, progress=False, report=False)
    return folder


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    return alone(tmp_path_factory.mktemp("serial") / "run")


def made(folder: Path) -> Counter[str]:
    """How often each cell was computed, by whoever did it."""
    lines = [line for path in folder.glob("timings*.jsonl") for line in read_lines(path)]
    return Counter(line["cell"] for line in lines if "seconds" in line)


def in_the_study(folder: Path) -> Worker:
    """A worker of this process; its run is closed by whoever asked."""
    found, _ = running.reopened(folder)
    return Worker(running.joined(found, folder), resolve_model=found.loader(), task=found.task)


def program(*words: str, **more) -> subprocess.Popen:
    """The command line in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "mechinterp", *words], cwd=ROOT, text=True, **more)


# the same bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_any_number_of_processes_gives_the_bytes_of_one(n, serial, tmp_path):
    run_jobs(asked(), tmp_path / "run", n, progress=False)
    assert compare(serial, tmp_path / "run").identical
    assert set(made(tmp_path / "run").values()) == {1} and len(made(tmp_path / "run")) == 12
    alone(tmp_path / "run")  # concluded: nothing is computed any more
    assert set(made(tmp_path / "run").values()) == {1}
    assert (tmp_path / "run" / "result" / "result.json").read_bytes() == (
        serial / "result" / "result.json"
    ).read_bytes()
    assert (tmp_path / "run" / "digests.json").read_bytes() == (serial / "digests.json").read_bytes()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shares_in_any_order_make_the_whole(order, serial, tmp_path):
    ended = [run_share(asked(), tmp_path / "run", Share(place, 3), progress=False) for place in order]
    assert ended == [False, False, True]
    assert compare(serial, tmp_path / "run").identical
    assert set(made(tmp_path / "run").values()) == {1}


def test_a_share_is_neighbours_and_what_they_read():
    cells = asked().cells()
    assert [cell.key for cell in Share(0, 4).cells(cells)] == ["draw/0", "draw/1", "draw/2"]
    last = [cell.key for cell in Share(3, 4).cells(cells)]
    assert last == ["draw/0", "draw/3", "draw/4", "draw/5", "sum/3", "sum/4", "sum/5"]
    every = {cell.key for place in range(5) for cell in Share(place, 5).cells(cells)}
    assert every == {cell.key for cell in cells}
    assert len(needed(cells, cells)) == len(cells)


@pytest.mark.parametrize("text", ["4/4", "1", "a/2", "-1/2", "1/0"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="0/4"):
        Share.parse(text)


def test_a_worker_begins_at_its_own_place_with_cells_of_a_model_together():
    listed = [Cell(f"{i}", "t", model="ab"[i % 2]) for i in range(6)]
    assert [cell.key for cell in spread(listed, 0, 2)] == ["0", "2", "4", "1", "3", "5"]
    assert [cell.key for cell in spread(listed, 1, 2)] == ["1", "3", "5", "0", "2", "4"]


def test_a_worker_loads_a_model_once_for_cells_that_share_it(tmp_path):
    loaded = []
    listed = [Cell(f"draw/{i}", "draw", model="ab"[i % 2], args={"i": i, "seed": i}) for i in range(6)]
    running.opened(asked(), tmp_path).close()
    with running.joined(asked(), tmp_path) as run:
        worker = Worker(run, resolve_model=lambda name: loaded.append(name) or name, task=asked().task)
        assert len(list(worker.work(spread(listed, 0, 1)))) == 6
    assert loaded == ["a", "b"]


# what is lost -----------------------------------------------------------------------------------------------


def test_a_killed_worker_loses_its_cell_to_another(tmp_path, caplog):
    mended = tmp_path / "mended"
    overrides = ("deadly=[4]", f"mended={str(mended)!r}")
    caplog.set_level("INFO", logger="mechinterp")
    run_jobs(asked(*overrides), tmp_path / "run", 2, progress=False)
    assert "killed by signal 9" in caplog.text and mended.is_file()
    assert compare(alone(tmp_path / "serial", *overrides), tmp_path / "run").identical
    assert set(made(tmp_path / "run").values()) == {1}


def test_when_every_worker_is_gone_it_says_so_and_the_same_command_goes_on(tmp_path):
    overrides = ("deadly=[0]", f"mended={str(tmp_path / 'mended')!r}")
    with pytest.raises(RuntimeError, match="exit codes -9.*same command goes on"):
        run_jobs(asked(*overrides), tmp_path / "run", 1, progress=False)
    run_jobs(asked(*overrides), tmp_path / "run", 1, progress=False)
    assert running.status(tmp_path / "run").left == ()


def test_fault_081_the_starter_is_killed_and_started_again(serial, tmp_path):
    words = ["run", TOY, "--jobs", "2", "--out", str(tmp_path / "run"), "--no-report", "--set", "seconds=0.4"]
    process = program(*words, stderr=subprocess.PIPE)
    while len(made(tmp_path / "run")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while running.status(tmp_path / "run").running and time.monotonic() < until:
        time.sleep(0.1)
    there = running.status(tmp_path / "run")
    assert there.running == () and 2 <= there.done < 12, "workers went on without their starter"
    assert program(*words, stderr=subprocess.DEVNULL).wait() == 0
    assert compare(alone(tmp_path / "serial", "seconds=0.4"), tmp_path / "run").identical
    assert set(made(tmp_path / "run").values()) == {1}


def test_fault_082_an_interrupted_starter_stops_its_workers_and_says_how_to_go_on(tmp_path):
    words = ["run", TOY, "--jobs", "2", "--out", str(tmp_path), "--no-report", "--set", "seconds=0.4"]
    process = program(*words, stderr=subprocess.PIPE)
    while not made(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "same command goes on" in said and "Traceback" not in said
    assert running.status(tmp_path).running == ()


def test_fault_080_a_full_disk_ends_the_workers_and_nothing_else(tmp_path):
    words = f"run {TOY} --jobs 2 --out {tmp_path / 'run'} --no-report --set large=[3]"
    command = f"ulimit -f 200; exec {sys.executable} -m mechinterp {words}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1 and "disk full" in done.stderr and "Traceback" not in done.stderr
    there = running.status(tmp_path / "run")
    assert there.failed == () and "draw/3" in there.left
    run_jobs(asked("large=[3]"), tmp_path / "run", 2, progress=False)
    assert compare(alone(tmp_path / "serial", "large=[3]"), tmp_path / "run").identical


def test_a_cell_that_always_fails_is_told_with_its_traceback_and_the_others_finish(tmp_path, capsys):
    mended = tmp_path / "mended"
    overrides = ("bad=[2]", f"mended={str(mended)!r}")
    words = [
        "run",
        TOY,
        *(part for one in overrides for part in ("--set", one)),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*words, "--jobs", "2", "--quiet", "--no-report"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: no mean of nothing" in said and "in draw\n" in said and "draw/2" in said
    assert "2 others are not made" in said and "--retry-failed" in said
    there = running.status(tmp_path / "run")
    assert there.failed == ("draw/2",) and there.left == ("draw/2", "sum/1", "sum/2") and there.done == 9
    mended.write_text("now")
    with pytest.raises(CellsFailed) as again:  # a failure is remembered until it is asked to be tried again
        run_jobs(asked(*overrides), tmp_path / "run", 1, progress=False)
    assert [one.key for one in again.value.failures] == ["draw/2"]
    assert main([*words, "--jobs", "2", "--quiet", "--no-report", "--retry-failed"]) == 0
    assert running.status(tmp_path / "run").failed == ()
    assert compare(alone(tmp_path / "serial", *overrides), tmp_path / "run").identical


def test_what_reads_a_failed_cell_is_lost_however_far(tmp_path):
    cells = [Cell("a", "t"), Cell("b", "t", inputs=("a",)), Cell("c", "t", inputs=("b",)), Cell("d", "t")]
    assert progress.lost(tmp_path, cells) == set()
    progress.note_failure(tmp_path, cells[0], ValueError("no"))
    assert progress.lost(tmp_path, cells) == {"a", "b", "c"}
    assert progress.failures(tmp_path, cells)[0].error == "ValueError: no"
    progress.forget_failures(tmp_path, cells)
    assert progress.lost(tmp_path, cells) == set()


def test_a_share_reports_the_failures_among_its_own_cells(tmp_path):
    with pytest.raises(CellsFailed, match="draw/0"):
        run_share(asked("bad=[0]"), tmp_path / "run", Share(0, 2), progress=False)
    with pytest.raises(CellsFailed, match="1 of the cells failed and 2 others"):
        run_share(asked("bad=[0]"), tmp_path / "run", Share(1, 2), progress=False)
    assert running.status(tmp_path / "run").done == 9


def test_fault_085_a_damaged_input_is_made_again_by_the_worker_that_reads_it(serial, tmp_path):
    run_share(asked(), tmp_path, Share(0, 2), progress=False)
    path = tmp_path / "cells" / "draw" / "1" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run_share(asked(), tmp_path, Share(1, 2), progress=False)
    assert any("draw/1 is made again" in str(one.message) for one in seen)
    assert compare(serial, tmp_path).identical


def test_an_input_that_changed_takes_its_readers_along(serial, tmp_path):
    """A run whose first draw was made otherwise: no worker may read it before it is made again."""
    alone(tmp_path)
    first = asked().cells()[0]
    with running.opened(asked(), tmp_path) as run, pytest.warns(UserWarning, match="other args"):
        other = replace(first, args={"i": 0, "seed": 1})
        run.step(other, lambda: asked().task(other, None, {}))
    with pytest.warns(UserWarning, match="made again"):
        run_share(asked(), tmp_path, Share(0, 1), progress=False)
    assert compare(serial, tmp_path).identical


def test_a_cell_waits_until_all_that_it_was_made_from_is_as_asked(tmp_path):
    """Three in a row, met from their end: the last is not taken as finished while the first is made anew."""

    def act(cell: Cell, model: None, inputs: dict) -> Draw:
        return Draw(torch.tensor([cell.args["n"]]) + sum(held.values for held in inputs.values()))

    first = Cell("a", "t", args={"n": 1})
    rest = [Cell("b", "t", inputs=("a",), args={"n": 0}), Cell("c", "t", inputs=("b",), args={"n": 0})]
    running.opened(asked(), tmp_path).close()
    for a in (first, replace(first, args={"n": 2})):
        with warnings.catch_warnings(), running.joined(asked(), tmp_path) as run:
            warnings.simplefilter("ignore")
            list(Worker(run, resolve_model=str, task=act).work([*reversed(rest), a]))
            assert [float(run.result(cell).values) for cell in (a, *rest)] == [a.args["n"]] * 3


# who works --------------------------------------------------------------------------------------------------


def test_a_cell_that_another_holds_is_left_to_it_and_shows_as_running(tmp_path):
    running.opened(asked(), tmp_path).close()
    cells = asked().cells()
    first, second = in_the_study(tmp_path), in_the_study(tmp_path)
    with first.run, second.run, first.run.claim(cells[0]) as mine:
        assert mine
        done = second.work([cells[0], cells[1]])
        assert next(done).key == "draw/1"
        there = running.status(tmp_path)
        assert there.running == ("draw/0",) and there.done == 1 and there.rate is not None
        with second.run.claim(cells[0]) as stolen:
            assert not stolen
        assert "1 running" in str(there)
        assert list(first.work([])) == []


def test_fault_083_one_process_alone_and_workers_exclude_each_other(tmp_path):
    with (
        running.opened(asked(), tmp_path),
        pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"),
    ):
        running.joined(asked(), tmp_path)
    with running.joined(asked(), tmp_path):
        running.joined(asked(), tmp_path).close()
        with pytest.raises(RuntimeError, match="in use by workers that share it"):
            running.opened(asked(), tmp_path)
    running.opened(asked(), tmp_path).close()


def test_the_last_to_leave_clears_up_after_the_killed(tmp_path):
    with running.joined(asked(), tmp_path):
        left = tmp_path / ".partial" / "0123"
        left.mkdir(parents=True)
        running.joined(asked(), tmp_path).close()
        assert left.exists(), "swept while another worker may be writing there"
    assert not (tmp_path / ".partial").exists() and not (tmp_path / ".held").exists()


def test_fault_089_a_worker_with_other_versions_or_another_question_is_refused(tmp_path, monkeypatch):
    alone(tmp_path)
    real = manifest.metadata
    monkeypatch.setattr(
        manifest, "metadata", lambda: real() | {"libraries": real()["libraries"] | {"transformers": "99.1"}}
    )
    with pytest.raises(ValueError, match=r"version of transformers \(\d+ there, 99 asked\)"):
        run_share(asked(), tmp_path, Share(0, 2), progress=False)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"config\.n \(6 there, 7 asked\)"):
        run_share(asked("n=7"), tmp_path, Share(0, 2), progress=False)


def test_a_study_file_that_changed_is_another_question(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(Path(TOY).read_text())
    running.run(running.ask(str(mine)), tmp_path / "run", progress=False, report=False)
    mine.write_text(Path(TOY).read_text() + "\n# another thought\n")
    with pytest.raises(ValueError, match="input study"):
        running.opened(running.ask(str(mine)), tmp_path / "run")


# the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, says",
    [
        (["--shard", "0/2", "--jobs", "2"], "leave out --jobs"),
        (["--shard", "0/2", "--new"], "leave out"),
        (["--address", "auto"], "add --engine ray"),
        (["--retry-failed"], "are tried anyway"),
        (["--jobs", "0"], "--jobs 1 or more"),
        (["--shard", "2/2"], "0/2 to 1/2|0/N"),
    ],
)
def test_options_that_exclude_each_other_are_refused(more, says, tmp_path, capsys):
    import re

    assert main(["run", TOY, "--out", str(tmp_path / "run"), *more]) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_two_shares_by_the_command_line_conclude_the_run(serial, tmp_path, capsys):
    words = ["run", TOY, "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--shard", "0/2"]) == 0
    assert "with the other shares" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "run")]) == 0 and "6 of 12" in capsys.readouterr().out
    assert main([*words, "--shard", "1/2"]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["diff", str(serial), str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.endswith("identical: 12 cells, byte for byte\n")


def test_diff_names_the_cells_and_fields_that_differ(serial, tmp_path, capsys):
    alone(tmp_path / "run", "seed=43")
    (tmp_path / "run" / "cells" / "sum" / "5" / "cell.json").unlink()
    assert main(["diff", str(serial), str(tmp_path / "run")]) == 1
    said = capsys.readouterr().out
    assert "config.seed (42 in the first, 43 in the second)" in said
    assert "1 cells only in the first: sum/5" in said and "11 cells differ, 0 are the same" in said
    assert "draw/0: args.seed, result/values (by at most " in said
    assert main(["diff", str(serial), str(tmp_path / "nothing")]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_a_study_that_is_no_file_or_none_is_refused_with_what_to_do(tmp_path, capsys):
    assert main(["run", str(tmp_path / "gone.py")]) == 1 and "no study at" in capsys.readouterr().err
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert main(["run", str(tmp_path / "empty.py")]) == 1
    assert "is no study: it has no Config, cells" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_run_that_brings_its_own_code_is_not_imported(command, tmp_path, capsys):
    alone(tmp_path / "run")
    (tmp_path / "run" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    document = read_json(tmp_path / "run" / "manifest.json")
    write_json(tmp_path / "run" / "manifest.json", document | {"study": str(tmp_path / "run" / "evil.py")})
    assert main([command, str(tmp_path / "run")]) == 1
    assert "may be a stranger's code" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_a_preset_beside_a_study_file_is_found(tmp_path):
    (tmp_path / "mine.py").write_text(Path(TOY).read_text())
    (tmp_path / "mine.small.toml").write_text("n = 3\n")
    assert running.ask(str(tmp_path / "mine.py"), preset="small").config.n == 3
    with pytest.raises(ValueError, match="its presets are small"):
        running.ask(str(tmp_path / "mine.py"), preset="paper")


def test_workers_that_crowd_the_machine_are_told_of(monkeypatch, caplog):
    caplog.set_level("INFO", logger="mechinterp")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    jobs._say_threads(4, 1)
    assert not caplog.text
    jobs._say_threads(4, 3)
    assert "4 workers of 3 threads on 4 cores" in caplog.text and "OMP_NUM_THREADS=1" in caplog.text


def test_a_run_read_only_is_worked_on_by_nobody(serial):
    assert Run.read(serial).status(asked().cells()).running == ()
