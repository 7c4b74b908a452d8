"""A run directory survives anything: whatever is cut short, lost or damaged, what comes of it is the same."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mechinterp import running
from mechinterp.difference import compare
from mechinterp.jobs import Share, run_share
from tests.test_workers import TOY

N = 4
CELLS = 2 * N


def asked() -> running.Asked:
    return running.ask(TOY, overrides=[f"n={N}"])


class Killed(BaseException):
    """The process is gone: nothing of ours may catch it."""


class RunDirectory(RuleBasedStateMachine):
    """One directory, worked on, interrupted and damaged in any order; a second, done at one go, beside it."""

    root: Path
    serial: Path

    @initialize()
    def begin(self):
        self.folder = self.root / f"run{len(list(self.root.iterdir()))}"
        self.known: dict[str, str] = {}

    @rule(limit=st.integers(1, CELLS))
    def go_on_with_some(self, limit):
        running.run(asked(), self.folder, limit=limit, progress=False, report=False)

    @rule(place=st.integers(0, 2))
    def go_on_with_a_share(self, place):
        run_share(asked(), self.folder, Share(place, 3), progress=False)

    @rule(at=st.integers(0, CELLS - 1), before=st.booleans())
    def be_killed(self, at, before):
        """While the at-th cell that is still to do is made, or when it has just been written."""
        one, n = asked(), 0

        class Study:
            def __getattr__(self, name):
                function = getattr(one.module, name)
                if name not in ("draw", "add"):
                    return function

                def task(*given):
                    nonlocal n
                    n += 1
                    if n > at and before:
                        raise Killed
                    made = function(*given)
                    if n > at:
                        raise Killed
                    return made

                return task

        killed = running.Asked(one.study, Study(), one.config)
        with contextlib.suppress(Killed):
            running.run(killed, self.folder, progress=False, report=False)

    @rule(
        which=st.integers(0, 50),
        how=st.sampled_from(["lose", "cut", "flip", "empty"]),
        file=st.integers(0, 5),
    )
    def be_damaged(self, which, how, file):
        cells = sorted(path.parent for path in self.folder.glob("cells/**/result.json"))
        if not cells:
            return
        cell = cells[which % len(cells)]
        if how == "lose":
            shutil.rmtree(cell)
            return
        files = sorted(path for path in cell.iterdir() if path.is_file())
        path = files[file % len(files)]
        content = bytearray(path.read_bytes())
        if how == "cut":
            content = content[: len(content) // 2]
        elif how == "empty":
            content = bytearray()
        elif content:
            content[len(content) // 2] ^= 1
        path.write_bytes(content)

    @rule(name=st.sampled_from([".half-written", "cells/.draw-tmp"]))
    def be_littered(self, name):
        if self.folder.is_dir():
            path = self.folder / name
            path.mkdir(parents=True, exist_ok=True)
            (path / "part").write_bytes(b"half")

    @invariant()
    def its_manifest_is_whole(self):
        manifest = getattr(self, "folder", self.root) / "manifest.json"
        if manifest.is_file():
            assert json.loads(manifest.read_text())["study"]

    def teardown(self):
        if not hasattr(self, "folder"):
            return
        result = running.run(asked(), self.folder, progress=False, report=False)
        assert result is not None and float(result.value[0]) == float(self.expected)
        assert compare(self.serial, self.folder).identical
        shutil.rmtree(self.folder)


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore:cell .* is made again")
def test_whatever_befalls_a_run_it_ends_with_the_bytes_of_one_that_nothing_befell(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    whole = running.run(asked(), tmp_path / "serial", progress=False, report=False)

    class Here(RunDirectory):
        pass

    Here.root, Here.serial, Here.expected = root, tmp_path / "serial", whole.value[0]
    machine = Here.TestCase
    machine.settings = settings(
        max_examples=15,
        stateful_step_count=6,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failure is short enough as it is
    )
    machine().runTest()
