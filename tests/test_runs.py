"""A run survives anything: killed at any moment, it ends with the bytes of a run that was left alone."""

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechinterp import manifest as manifests
from mechinterp.cells import Cell, cell_seed, check_cells, select
from mechinterp.cells import listed as listed_text
from mechinterp.config import StudyConfig
from mechinterp.engine import execute, interruptible
from mechinterp.json_io import read_json, read_lines, write_json
from mechinterp.results import Result
from mechinterp.runs import Run


class Config(StudyConfig):
    size: int = 4
    roles: tuple[str, ...] = ("villain", "Villain")


@dataclass(frozen=True, eq=False)
class Draw(Result):
    values: torch.Tensor
    seed: int


@dataclass(frozen=True, eq=False)
class Total(Result):
    value: torch.Tensor


def cells(config: Config) -> list[Cell]:
    """Two draws a role, on a model of the role's name, and a sum over each role's draws."""
    draws = [
        Cell(f"draw/{role}/{n}", "draw", model=role, args={"seed": cell_seed(config.seed, role, n)})
        for role in config.roles
        for n in range(2)
    ]
    sums = [Cell(f"sum/{role}", "add", inputs=(f"draw/{role}/0", f"draw/{role}/1")) for role in config.roles]
    return draws + sums


def task(cell: Cell, model: object, inputs: dict[str, Result]) -> Result:
    if cell.task == "add":
        return Total(torch.stack([held.values for held in inputs.values()]).sum(0))  # pyright: ignore
    generator = torch.Generator().manual_seed(cell.args["seed"])
    return Draw(torch.randn(64, generator=generator) * len(str(model)), cell.args["seed"])


MODELS = {"villain": "a" * 64, "Villain": "b" * 64}


def start(folder: Path, **changed) -> Run:
    asked = {"study": "toy", "config": Config(), "models": MODELS} | changed
    return Run.open(folder, **asked)


def finish(folder: Path, act: Callable = task) -> dict[str, Result]:
    with start(folder) as run:
        return execute(run, cells(Config()), resolve_model=str, task=act)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the timings, by path; folders too."""
    paths = sorted(path for path in folder.rglob("*") if path.name != "timings.jsonl")
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder" for path in paths
    }


def in_child(work: Callable[[], object]) -> int:
    """The exit code of `work` in a process of its own (-9: killed by signal 9)."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(folder)
    return tree(folder)


def dies_at(moment: int, folder: Path) -> Callable[[], object]:
    """A run that kills itself, as kill -9 would, before its `moment`-th change to the disk."""
    changes = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}

    def work():
        count = 0

        def counted(event: str, arguments: tuple) -> None:
            nonlocal count
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event == "fsync" or (
                (writes or event in changes) and str(arguments[0]).startswith(str(folder))
            ):
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync
        os.fsync = lambda handle: (counted("fsync", ()), fsync(handle))[1]
        sys.addaudithook(counted)
        finish(folder)

    return work


def test_fault_081_killed_at_any_write_it_ends_with_the_same_bytes(tmp_path, whole):
    moment, code = 1, -9
    while code == -9:
        folder = tmp_path / str(moment)
        code = in_child(dies_at(moment, folder))
        kept = set(tree(folder)) if folder.exists() else set()
        finish(folder)
        assert tree(folder) == whole, f"killed at write {moment}, with {sorted(kept)} on the disk"
        moment += 9  # no factor of the twenty such moments of a cell: every kind is met in some cell
    assert code == 0 and moment > 90


def test_fault_081_killed_in_mid_cell_it_loses_only_that_cell(tmp_path, whole):
    def dying(cell, model, inputs):
        if cell.key == "draw/Villain/0":
            os.kill(os.getpid(), signal.SIGKILL)
        return task(cell, model, inputs)

    assert in_child(lambda: finish(tmp_path / "run", dying)) == -9
    made = []

    def watched(cell, model, inputs):
        made.append(cell.key)
        return task(cell, model, inputs)

    finish(tmp_path / "run", watched)
    assert made == [cell.key for cell in cells(Config())][2:]
    assert tree(tmp_path / "run") == whole


def test_fault_081_the_same_command_again_after_kill_9(tmp_path, whole):
    """The whole thing as a user has it: a fresh interpreter, killed from outside, started again."""
    program = (
        "import importlib, sys, time; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1]); t = importlib.import_module(sys.argv[4])\n"
        "slow = lambda *args: (time.sleep(float(sys.argv[3])), t.task(*args))[1]\n"
        "t.finish(Path(sys.argv[2]), slow)"
    )
    folder = tmp_path / "run"
    root = Path(__file__).parents[__name__.count(".")]
    command = [sys.executable, "-c", program, str(root), str(folder)]
    process = subprocess.Popen([*command, "30", __name__])
    while not (folder / "manifest.json").exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert process.returncode == -9
    with start(folder) as run:
        assert run.status(cells(Config())).done == 0
    subprocess.run([*command, "0", __name__], check=True)
    assert tree(folder) == whole


def test_a_second_run_computes_nothing_and_loads_no_model(tmp_path, whole):
    first = finish(tmp_path / "run")

    def never(*args):
        raise AssertionError(f"computed {args}")

    with start(tmp_path / "run") as run:
        again = execute(run, cells(Config()), resolve_model=never, task=never)
    assert {key: held.digest() for key, held in first.items()} == {
        key: held.digest() for key, held in again.items()
    }
    assert tree(tmp_path / "run") == whole


def test_models_are_loaded_once_when_needed_and_let_go(tmp_path):
    import weakref

    class Weights:
        def __len__(self):
            return 3

    alive: dict[str, weakref.ref] = {}
    asked = []

    def resolve(name):
        asked.append(name)
        model = Weights()
        alive[name] = weakref.ref(model)
        return model

    def watched(cell, model, inputs):
        if cell.model == "Villain" or cell.task == "add":
            assert alive["villain"]() is None, "the first model is still held"
        if cell.task == "add":
            assert alive["Villain"]() is None and model is None
        return task(cell, model, inputs)

    with start(tmp_path / "run") as run:
        execute(run, cells(Config()), resolve_model=resolve, task=watched)
    assert asked == ["villain", "Villain"]


def other_major(monkeypatch):
    real = manifests.metadata
    monkeypatch.setattr(
        manifests, "metadata", lambda: real() | {"libraries": real()["libraries"] | {"transformers": "99.1"}}
    )


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"config": Config(seed=43)}, r"config\.seed \(42 there, 43 asked\)"),
        ({"config": Config(roles=("villain", "judge"))}, r"config\.roles\.1 \(Villain there, judge asked\)"),
        (
            {"models": MODELS | {"villain": "c" * 64}},
            r"weights of villain \(a{12}\.\.\. there, c{12}\.\.\. asked\)",
        ),
        ({"models": {"villain": "a" * 64}}, r"weights of Villain \(b{12}\.\.\. there, absent asked\)"),
        ({"inputs": {"roles.json": "d" * 64}}, r"input roles\.json \(absent there"),
        ({"study": "leakage"}, r"study \(toy there, leakage asked\)"),
    ],
)
def test_fault_089_another_question_in_the_same_directory_is_refused(changed, says, tmp_path):
    start(tmp_path / "run").close()
    before = tree(tmp_path / "run")
    with pytest.raises(ValueError, match=f"{says}.*--out.*--new") as caught:
        start(tmp_path / "run", **changed)
    assert tree(tmp_path / "run").keys() - before.keys() <= {".holder"}
    start(tmp_path / "run").close()  # the refusal let go of the lock
    assert caught.tb is not None  # what was raised still holds the frames, so no collector did it


def test_fault_089_other_library_majors_and_threads_are_refused(tmp_path, monkeypatch):
    start(tmp_path / "run").close()
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(ValueError, match=rf"threads \({threads} there.*OMP_NUM_THREADS={threads}"):
        start(tmp_path / "run")
    monkeypatch.undo()
    other_major(monkeypatch)
    with pytest.raises(ValueError, match=r"version of transformers \(\d+ there, 99 asked\)"):
        start(tmp_path / "run")


@pytest.mark.parametrize(
    "text, expected", [("2.13.1+cpu", "2"), ("0.8.1", "0.8"), (None, None), ("3.9.0", "3")]
)
def test_a_major_version_is_the_part_that_may_change_numbers(text, expected):
    assert manifests.major(text) == expected


def test_fault_089_new_keeps_the_old_run_under_another_name(tmp_path):
    for seed in (1, 2, 3):
        start(tmp_path / "run", config=Config(seed=seed), new=True).close()
    seeds = {path.name: Run.read(path).manifest.config["seed"] for path in tmp_path.iterdir()}
    assert seeds == {"run": 3, "run-1": 1, "run-2": 2}


def test_fault_090_a_newer_layout_is_refused(tmp_path):
    start(tmp_path / "run").close()
    path = tmp_path / "run" / "manifest.json"
    write_json(path, read_json(path) | {"schema_version": 2})
    with pytest.raises(ValueError, match="layout 2.*update"):
        start(tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="thesis.tex"):
        start(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run"):
        Run.read(tmp_path)


def test_the_manifest_says_what_was_used_and_never_when(tmp_path):
    with start(tmp_path / "run", inputs={"roles.json": "d" * 64}) as run:
        table = read_json(run.folder / "manifest.json")
    assert table["config"] == {"seed": 42, "size": 4, "roles": ["villain", "Villain"]}
    assert table["models"] == MODELS and table["inputs"] == {"roles.json": "d" * 64}
    assert table["versions"]["torch"] and table["threads"] == torch.get_num_threads()
    assert not {"time", "host", "user"} & set(table)


# Two processes


def test_fault_083_a_second_process_is_refused_at_once_with_the_holders_id(tmp_path):
    with start(tmp_path / "run"):

        def work():
            with pytest.raises(RuntimeError, match=f"process {os.getppid()};.*--out"):
                start(tmp_path / "run")
            assert Run.read(tmp_path / "run").status(cells(Config())).done == 0

        assert in_child(work) == 0
    assert in_child(lambda: start(tmp_path / "run").close()) == 0


def test_fault_083_waiting_takes_turns(tmp_path, whole):
    context = multiprocessing.get_context("fork")

    def work():
        with start(tmp_path / "run", wait=30.0) as run:
            execute(run, cells(Config()), resolve_model=str, task=task)

    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert tree(tmp_path / "run") == whole
    timed = [line["cell"] for line in read_lines(tmp_path / "run" / "timings.jsonl")]
    assert timed == [cell.key for cell in cells(Config())]  # each computed once, by whoever came first


def test_fault_081_the_lock_of_a_killed_process_is_free(tmp_path):
    def work():
        start(tmp_path / "run")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -9
    start(tmp_path / "run").close()


# Disk


def big(cell: Cell, model: object, inputs: dict[str, Result]) -> Result:
    return Draw(torch.zeros(200_000), 0) if cell.key == "draw/Villain/0" else task(cell, model, inputs)


def test_fault_080_a_full_disk_stops_with_the_count_and_resumes(tmp_path, whole):
    def work():
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match="disk full, 2 cells safe") as caught:
            finish(tmp_path / "run", big)
        assert caught.value.errno == errno.EFBIG and "same command" in caught.value.strerror

    assert in_child(work) == 0
    assert not list((tmp_path / "run").rglob("*.tmp")) and not (tmp_path / "run" / ".partial").exists()
    finish(tmp_path / "run")
    assert tree(tmp_path / "run") == whole


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(
            "mounting a small file system needs root; the test with a file size limit covers the rest"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_fault_080_a_file_system_without_room_does_the_same(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(OSError, match="disk full, 2 cells safe") as caught:
            finish(disk / "run", big)
        assert caught.value.errno == errno.ENOSPC
        finish(disk / "run")


def test_fault_093_a_place_that_cannot_be_written_is_refused_before_compute(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "dangling", Path("/proc/run")):
        with pytest.raises(OSError, match="choose another --out"):
            start(out)


def test_fault_093_a_read_only_directory_is_refused_before_compute():
    with tempfile.TemporaryDirectory() as name:
        closed = Path(name) / "closed"
        closed.mkdir()
        Path(name).chmod(0o755)
        closed.chmod(0o555)

        def work():
            if os.getuid() == 0:
                os.setuid(65534)  # root may write anywhere
            with pytest.raises(OSError, match="Permission denied.*--out"):
                start(closed)

        assert in_child(work) == 0


def test_fault_093_a_linked_or_missing_parent_is_where_it_says(tmp_path, whole):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    finish(tmp_path / "out" / "new" / "run")
    assert tree(tmp_path / "scratch" / "new" / "run") == whole


def test_fault_092_a_cell_cannot_be_written_through_a_link_out_of_the_run(tmp_path):
    with start(tmp_path / "run") as run:
        (run.folder / "cells").symlink_to(tmp_path)
        with pytest.raises(ValueError, match="outside"):
            run.step(Cell("a", "draw"), lambda: Draw(torch.zeros(1), 0))


@pytest.mark.parametrize("key", ["../../x", "a/../../b", "CON", "org/Name/3", "x" * 300, "/etc/x/y"])
def test_fault_092_a_hard_key_stays_inside(key, tmp_path):
    if key.startswith("/"):
        with pytest.raises(ValueError, match="no cell key"):
            Cell(key, "draw")
        return
    with start(tmp_path / "run") as run:
        run.step(Cell(key, "draw"), lambda: Draw(torch.zeros(1), 0))
        assert len(list((run.folder / "cells").rglob("result.json"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# Damage


@pytest.mark.parametrize("name", ["tensors.safetensors", "result.json", "cell.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "gone"])
def test_fault_085_and_086_a_damaged_cell_is_made_again_with_a_warning(name, damage, tmp_path, whole):
    finish(tmp_path / "run")
    path = tmp_path / "run" / "cells" / "draw" / "villain" / "1" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flipped": bytes(data), "truncated": bytes(data[:-9])}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    with pytest.warns(UserWarning, match="cell draw/villain/1 is made again"):
        finish(tmp_path / "run")
    assert tree(tmp_path / "run") == whole
    assert any("made_again" in line for line in read_lines(tmp_path / "run" / "timings.jsonl"))


def test_fault_086_another_whole_result_in_place_of_a_cell_is_found(tmp_path, whole):
    finish(tmp_path / "run")
    Draw(torch.zeros(64), 0).save(tmp_path / "run" / "cells" / "draw" / "villain" / "1")
    with pytest.warns(UserWarning, match="is not the file that the run wrote"):
        finish(tmp_path / "run")
    assert tree(tmp_path / "run") == whole


def test_a_write_that_fails_leaves_nothing_of_itself(tmp_path, monkeypatch):
    with start(tmp_path / "run") as run:
        monkeypatch.setattr("mechinterp.runs.write_json", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.step(Cell("a", "draw"), lambda: Draw(torch.zeros(1), 0))
        assert not list((run.folder / ".partial").iterdir())


def test_a_cell_made_from_other_arguments_or_inputs_is_made_again(tmp_path):
    with start(tmp_path / "run") as run:
        run.step(Cell("a", "draw", args={"n": 1}), lambda: Draw(torch.zeros(1), 0))
        reader = Cell("b", "add", inputs=("a",))
        run.step(reader, lambda: Total(torch.zeros(1)))
        assert run.finished(reader) and not run.finished(Cell("a", "draw", args={"n": 2}))
        with pytest.warns(UserWarning, match="made with other args"):
            run.step(Cell("a", "draw", args={"n": 2}), lambda: Draw(torch.ones(1), 0))
        assert not run.finished(reader)
        with pytest.warns(UserWarning, match="made with other inputs"):
            run.step(reader, lambda: Total(torch.ones(1)))


def test_fault_084_a_cut_line_of_timings_is_mended_before_the_next(tmp_path):
    finish(tmp_path / "run")
    path = tmp_path / "run" / "timings.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="cut short"), start(tmp_path / "run") as run:
        run.step(Cell("late", "draw"), lambda: Draw(torch.zeros(1), 0))
    assert [line["cell"] for line in read_lines(path)][-2:] == ["sum/villain", "late"]


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_082_a_signal_drops_the_cell_and_says_how_to_go_on(number, tmp_path, whole, capfd):
    def stopped(cell, model, inputs):
        if cell.key == "draw/Villain/0":
            os.kill(os.getpid(), number)
            time.sleep(30)
        return task(cell, model, inputs)

    def work():
        with start(tmp_path / "run") as run, interruptible(run):
            execute(run, cells(Config()), resolve_model=str, task=stopped)

    assert in_child(work) == 128 + number
    said = capfd.readouterr().err
    assert f"stopped by {number.name}: 2 finished cells are safe" in said and "Traceback" not in said
    finish(tmp_path / "run")
    assert tree(tmp_path / "run") == whole


def test_the_handlers_of_signals_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with start(tmp_path / "run") as run, pytest.raises(ZeroDivisionError), interruptible(run):
        raise ZeroDivisionError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_cell_that_fails_says_what_is_safe_and_leaves_nothing_of_itself(tmp_path, whole):
    def failing(cell, model, inputs):
        if cell.task == "add":
            raise ZeroDivisionError("no mean of nothing")
        return task(cell, model, inputs)

    with pytest.raises(ZeroDivisionError) as caught:
        finish(tmp_path / "run", failing)
    assert "4 finished cells are safe" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="Result"):
        finish(tmp_path / "run", lambda cell, model, inputs: 3)
    finish(tmp_path / "run")
    assert tree(tmp_path / "run") == whole


# Cells


def test_status_and_plan_follow_the_list(tmp_path):
    listed = cells(Config())
    with start(tmp_path / "run") as run:
        assert run.status(listed).seconds_left is None
        execute(run, select(listed, 3), resolve_model=str, task=task, progress=False)
        status = run.status(listed)
    assert (status.total, status.done) == (6, 3)
    assert status.left == ("draw/Villain/1", "sum/villain", "sum/Villain")
    assert str(status).startswith("3 of 6 cells")
    assert Run.read(tmp_path / "run").result(listed[0]).seed == listed[0].args["seed"]
    with pytest.raises(RuntimeError, match="read only"):
        Run.read(tmp_path / "run").step(listed[3], lambda: Draw(torch.zeros(1), 0))
    assert listed_text(listed).splitlines()[0] == "6 cells (4 draw, 2 add), 2 models"
    assert len(listed_text(listed).splitlines()) == 7


def test_a_limited_run_goes_on_to_the_whole(tmp_path, whole):
    with start(tmp_path / "run") as run:
        execute(run, select(cells(Config()), 1), resolve_model=str, task=task)
    finish(tmp_path / "run")
    assert tree(tmp_path / "run") == whole


def test_a_limit_keeps_what_its_cells_read():
    late = [Cell("b", "t"), Cell("c", "t", inputs=("b", "a")), Cell("a", "t")]
    assert [cell.key for cell in select(late, 2)] == ["b", "c", "a"]
    with pytest.raises(ValueError, match="limit of 0"):
        select(late, 0)


@pytest.mark.parametrize(
    "listed, says",
    [
        ([Cell("a", "t"), Cell("a", "u")], "two cells have the key a"),
        ([Cell("b", "t", inputs=("a",)), Cell("a", "t")], "b reads a, which no earlier"),
        ([Cell("a/b", "t"), Cell("a", "t")], "a/b lies inside cell a"),
    ],
)
def test_a_list_that_cannot_be_run_is_refused(listed, says):
    with pytest.raises(ValueError, match=says):
        check_cells(listed)


@pytest.mark.parametrize("args", [{"x": float("nan")}, {"x": torch.zeros(1)}, {"x": {1, 2}}])
def test_the_arguments_of_a_cell_are_plain_json(args):
    with pytest.raises(ValueError, match="args of cell a must be plain JSON"):
        Cell("a", "t", args=args)


def test_a_cell_sent_as_json_is_the_same_cell():
    cell = Cell("a/b", "t", "m", ("x",), {"rows": (1, 2), "name": "é"})
    sent = json.loads(json.dumps({**cell.__dict__}))
    back = Cell(**sent | {"inputs": tuple(sent["inputs"])})
    assert back == cell and hash(back) == hash(cell)


@given(
    one=st.tuples(st.integers(), st.text(), st.integers()),
    other=st.tuples(st.integers(), st.text(), st.integers()),
)
def test_seeds_of_cells_differ_and_fit_a_generator(one, other):
    assert 0 <= cell_seed(*one) < 2**63
    assert (cell_seed(*one) == cell_seed(*other)) == (one == other)
    torch.Generator().manual_seed(cell_seed(*one))


def test_names_and_indices_do_not_run_together():
    assert len({cell_seed(1, "1", 1), cell_seed(11, "", 1), cell_seed(1, "", 11), cell_seed(1, "11", 0)}) == 4


def test_a_seed_is_the_same_in_every_process():
    code = "from mechinterp.cells import cell_seed; print(cell_seed(42, 'villain', 3))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert int(done.stdout) == cell_seed(42, "villain", 3)


def test_reading_a_run_imports_no_torch(tmp_path):
    start(tmp_path / "run").close()
    code = (
        "import sys; from mechinterp.runs import Run; from mechinterp.cells import Cell\n"
        "status = Run.read(sys.argv[1]).status([Cell('a', 't')])\n"
        "print(status, *{'torch', 'pandas', 'plotly'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 of 1 cells finished in 0 s"


def test_a_refused_start_leaves_the_run_as_it_was(tmp_path):
    """Also not the note of who holds the lock, which is nobody."""
    folder = tmp_path / "run"
    start(folder).close()
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match="seed"):
        start(folder, config=Config(seed=43))
    assert sorted(path.name for path in folder.iterdir()) == before
