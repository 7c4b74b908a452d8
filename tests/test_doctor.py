"""`mechinterp doctor` says what works and what to do; `mechinterp new study` writes a study that runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mechinterp import certificate, doctor, embedded
from mechinterp.cli import main
from mechinterp.doctor import TESTED, Finding, examine
from mechinterp.new_study import write_study

ROOT = Path(__file__).parents[1]


def found(monkeypatch, capsys, *, code: int = 0) -> dict[str, list[str]]:
    """The lines of the command by what they are about, without the parity check."""
    monkeypatch.setattr(doctor, "_backends", lambda: iter(()))
    assert main(["doctor"]) == code
    lines = capsys.readouterr().out.splitlines()
    kept: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("   "):
            list(kept.values())[-1].append(line.strip())
        else:
            state, _, rest = line.partition(" ")
            kept[rest.strip().partition(":")[0]] = [state, rest.strip()]
    return kept


def test_the_tested_versions_are_those_of_the_constraints():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert {name: pinned[name] for name in TESTED} == TESTED


def test_every_backend_is_put_through_the_parity_check():
    mine = {one.what: one for one in doctor._backends()}
    assert {"transformers", "nnsight", "hooked_transformer", "transformer_bridge", "parity"} == set(mine)
    assert all(one.state == "ok" for one in mine.values()), [str(one) for one in mine.values()]
    checks = int(re.search(r"(\d+) checks", mine["nnsight"].said)[1])  # pyright: ignore
    assert checks > 40


def test_a_backend_that_fails_is_named_with_what_to_do(monkeypatch):
    real = certificate._compared

    def broken(name, truth):
        return ((), "cannot be imported here") if name == "nnsight" else real(name, truth)

    monkeypatch.setattr(certificate, "_compared", broken)
    mine = {one.what: one for one in doctor._backends()}
    assert mine["nnsight"].state == "broken" and "cannot be imported" in mine["nnsight"].said
    assert mine["nnsight"].remedy and mine["hooked_transformer"].state == "ok"


def test_what_is_found_here_is_said(monkeypatch, capsys):
    kept = found(monkeypatch, capsys)
    assert kept["python"][0] == "ok" and kept["torch"][0] == "ok" and "as tested" in kept["torch"][1]
    assert {*TESTED, "device", "memory", "cache", "Chrome", "Hugging Face hub"} <= set(kept)
    assert kept["Hugging Face hub"][0] == "note" and "HF_HUB_OFFLINE" in kept["Hugging Face hub"][2]


@pytest.mark.parametrize(
    "there, state, says",
    [
        ("5.23.1", "note", "tested with"),
        ("4.57.0", "BROKEN", "is outside"),
        (None, "BROKEN", "not installed"),
    ],
)
def test_a_version_is_judged_by_the_range_and_by_what_was_tested(there, state, says, monkeypatch, capsys):
    real = doctor.version

    def version(name):
        if name != "transformers":
            return real(name)
        if there is None:
            raise doctor.PackageNotFoundError(name)
        return there

    monkeypatch.setattr(doctor, "version", version)
    kept = found(monkeypatch, capsys, code=int(state == "BROKEN"))
    assert kept["transformers"][0] == state and says in kept["transformers"][1] and kept["transformers"][2]


def test_an_absent_model_and_a_cache_that_cannot_be_written_have_a_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MECHINTERP_CACHE", str(tmp_path / "none"))
    kept = found(monkeypatch, capsys)
    assert kept[embedded.EMBEDDED[0].name][2].startswith("mechinterp models pull")
    monkeypatch.setattr(doctor.os, "access", lambda *given: False)
    assert found(monkeypatch, capsys, code=1)["cache"][2].startswith("set MECHINTERP_CACHE")


def test_no_chrome_is_a_note(monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    kept = found(monkeypatch, capsys)
    assert kept["Chrome"][0] == "note" and "HTML and JSON need none" in kept["Chrome"][2]


def test_a_finding_reads_as_a_line_with_its_remedy_below():
    assert str(Finding("a", "ok", "b")) == "ok     a: b"
    assert str(Finding("a", "broken", "b", "do c")).splitlines() == ["BROKEN a: b", "         do c"]
    assert next(examine()).what == "python"


# a study of one's own ---------------------------------------------------------------------------------------


def test_a_new_study_is_short_passes_its_test_and_lint(tmp_path, capsys):
    assert main(["new", "study", "nearness_of_mine", "--folder", str(tmp_path)]) == 0
    study, test, command = capsys.readouterr().out.splitlines()
    assert command == f"mechinterp run {study}"
    assert len(Path(study).read_text().splitlines()) <= 60
    lint = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
    checked = subprocess.run(lint, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0 and "2 passed" in ran.stdout, ran.stdout


def test_inside_a_package_the_test_goes_to_its_tests(tmp_path):
    (tmp_path / "tests").mkdir()
    study, test = write_study("mine", tmp_path / "studies")
    assert study == tmp_path / "studies" / "mine.py" and test == tmp_path / "tests" / "test_mine.py"
    assert 'STUDY = str(Path(__file__).parents[1] / "studies" / "mine.py")' in test.read_text()
    with pytest.raises(FileExistsError, match="there already"):
        write_study("mine", tmp_path / "studies")


@pytest.mark.parametrize("name", ["My Study", "class", "9lives", "Mine", "a/b"])
def test_a_name_that_cannot_be_imported_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="lower-case letters"):
        write_study(name, tmp_path)
