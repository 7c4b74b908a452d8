"""The command line as a new user meets it: what it lists, what it refuses, in which words, and a real run."""

import contextlib
import io
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mechinterp.cli import main
from tests.conftest import EMBEDDED
from tests.test_certificate import tiny_adapter

HEAVY = ["torch", "transformers", "plotly", "nnsight", "transformer_lens", "pandas", "scipy"]
COMMANDS = ("demo", "models", "studies", "run", "status", "diff", "report", "parity", "doctor", "new")
TINY = ["roles=['medieval_bard']", "n_runs=2", "n_steer=3", "n_free=4", "n_contrast=2"]


def asked(*more: str) -> list[str]:
    """A persistence run small enough for a test."""
    return ["run", "persistence", *(part for one in TINY for part in ("--set", one)), "--quiet", *more]


def said(capsys: pytest.CaptureFixture, *argv: str, code: int = 0) -> str:
    """What a command prints (to stderr where it fails); its exit code must be `code`."""
    found = main(argv)
    out, err = capsys.readouterr()
    assert found == code, f"exit code {found}: {out}{err}"
    return out if code == 0 else err


# what it can do ---------------------------------------------------------------------------------------------


def test_help_names_every_command_and_no_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    for command in COMMANDS:
        assert re.search(rf"^    {command} ", out, re.M), command
    assert main([]) == 2 and "usage: mechinterp" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_options(command: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0 and f"usage: mechinterp {command}" in capsys.readouterr().out


def test_every_example_of_the_help_is_a_command_that_parses():
    import shlex

    from mechinterp.cli import EXAMPLES, parser

    lines = [line.split("   ")[0] for line in EXAMPLES.splitlines()[1:]]
    for line in lines:
        given = parser().parse_args(shlex.split(line)[1:])
        assert callable(given.act), line
    assert len(lines) >= 6


def test_wrong_usage_is_code_2(capsys):
    for argv in (
        ["fly"],
        ["run"],
        ["models", "burn"],
        ["report", "here", "--formats", "svg"],
        ["run", "x", "--limit", "two"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2, argv
        assert "usage:" in capsys.readouterr().err


def test_the_version_is_the_package_s(capsys):
    import mechinterp

    assert said(capsys, "--version").strip() == mechinterp.__version__


def test_studies_are_listed_with_their_presets(capsys):
    out = said(capsys, "studies")
    assert re.search(r"persistence +\S.*\n +presets: demo, paper", out)


def test_models_are_listed_and_verified(capsys):
    assert re.search(rf"^{EMBEDDED}  (ready|absent|damaged)  /", said(capsys, "models", "list"), re.M)
    row = json.loads(said(capsys, "models", "list", "--json"))[0]
    assert row["name"] == EMBEDDED and row["bytes"] > 1e8 and row["licence"]


@pytest.mark.real
def test_the_embedded_model_is_what_was_converted(capsys):
    assert "every file is as converted" in said(capsys, "models", "verify", EMBEDDED)
    told = json.loads(said(capsys, "models", "verify", EMBEDDED, "--json"))
    assert told == {"name": EMBEDDED, "ok": True, "changed": [], "missing": [], "unexpected": []}


def test_a_dry_run_lists_the_cells_and_touches_nothing(capsys, tmp_path):
    out = said(capsys, *asked("--dry-run", "--out", str(tmp_path / "run")))
    assert out.startswith("3 cells (1 extract, 1 reference, 1 steer), 1 models")
    assert "steer/medieval_bard/layer15/0.2/fresh/q0" in out
    assert not list(tmp_path.iterdir())
    assert said(capsys, *asked("--dry-run", "--limit", "1")).startswith("1 cells (1 extract)")


# what it refuses, before anything is computed ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "persistance"], ["no study 'persistance'", "the studies are persistence"]),
        (["run", "persistence", "--preset", "huge"], ["no preset 'huge'", "demo, paper"]),
        (
            ["run", "persistence", "--preset", "demo", "--config", "a.toml"],
            ["--preset or --config, not both"],
        ),
        (["run", "persistence", "--config", "absent.toml"], ["no configuration file absent.toml"]),
        (["run", "persistence", "--set", "n_run=3"], ["n_run is not a key; known are n_runs"]),
        (["run", "persistence", "--set", "n_runs=many"], ["n_runs is 'many'"]),
        (["run", "persistence", "--set", "n_runs=0"], ["n_runs is 0", "greater than or equal to 1"]),
        (["run", "persistence", "--set", "n_runs"], ["n_runs", "KEY=VALUE"]),
        (["run", "persistence", "--set", "backend='jax'"], ["backend is 'jax'", "hooked_transformer"]),
        (["run", "persistence", "--set", "roles=['nobody']"], ["no roles nobody", "medieval_bard"]),
        (["run", "persistence", "--dry-run", "--limit", "0"], ["a limit of 0 cells"]),
        (["models", "pull"], ["models pull needs a name", "mechinterp models list"]),
        (["models", "verify", "gpt5"], ["no embedded model 'gpt5'", EMBEDDED]),
        (["parity", EMBEDDED, "--backends", "jax"], ["no backend 'jax'", "transformer_bridge"]),
        (["parity", EMBEDDED, "--tokens", "1"], ["ask for 2 or more"]),
    ],
    ids=lambda value: "-".join(value[:4]) if value[0] in ("run", "models", "parity") else None,
)
def test_bad_input_is_answered_with_what_to_write(argv: list[str], words: list[str], capsys):
    err = said(capsys, *argv, code=1)
    assert err.startswith("mechinterp: error: ") and "Traceback" not in err
    for word in words:
        assert word.lower() in err.lower(), f"{word!r} is not in {err!r}"


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_directory_that_holds_no_run_is_said_to(command: str, capsys, tmp_path):
    err = said(capsys, command, str(tmp_path), code=1)
    assert f"{tmp_path} holds no run" in err
    assert "holds no run" in said(capsys, command, str(tmp_path / "absent"), code=1)


def test_debug_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="no study"):
        main(["--debug", "run", "persistance"])


def test_fault_098_a_model_that_cannot_be_fetched_is_refused_at_once(capsys):
    err = said(capsys, "parity", "some-org/some-model", code=1)
    assert "some-org/some-model" in err and EMBEDDED in err  # a way out is named


def test_fault_101_no_control_character_of_a_name_reaches_the_terminal(capsys, tmp_path):
    err = said(capsys, "models", "verify", "\x1b[31mred\x07\x9b", code=1)
    assert not {"\x1b", "\x07", "\x9b"} & set(err) and "red" in err
    people = {
        "control": {"system_prompt": "You are helpful.", "readable_name": "control"},
        "a\x1b[2Jb": {"system_prompt": "You are loud.", "readable_name": "loud"},
    }
    (tmp_path / "people.json").write_text(json.dumps({"personas": people}))
    changed = [f"personas={tmp_path}/people.json", f"roles={json.dumps(['a' + chr(27) + '[2Jb'])}"]
    out = said(
        capsys, "run", "persistence", "--dry-run", *(part for one in changed for part in ("--set", one))
    )
    assert "\x1b" not in out and "steer/a[2Jb/" in out


# how light it is --------------------------------------------------------------------------------------------


def test_help_takes_less_than_a_second_and_loads_no_library():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "mechinterp", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    code = f"""
import contextlib, io, sys
from mechinterp.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
print(*sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("argv", [["studies"], ["models", "list"]])
def test_listing_loads_no_model_code(argv: list[str]):
    code = f"""
import sys
from mechinterp.cli import main
main({argv!r})
print(*sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


# a real run -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def printed(*argv: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(argv) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run that was limited to its first cell and then went on, with what each command printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    first = printed(*asked("--out", str(folder), "--limit", "1"))
    status = printed("status", str(folder), "--json")
    return folder, [first, status, printed(*asked("--out", str(folder)))]


@pytest.mark.real
@pytest.mark.xdist_group("cli run")  # one worker makes the run
def test_a_limited_run_says_how_far_it_is_and_goes_on(finished, capsys):
    folder, (first, status, last) = finished
    assert first.startswith("1 of 3 cells finished") and "the same command without --limit goes on" in first
    told = json.loads(status)
    assert (told["total"], told["done"]) == (3, 1) and "reference/layer15/q0" in told["left"]
    assert "persistence" in last and f"report: {folder / 'report.html'}" in last
    assert (folder / "report.html").stat().st_size > 10_000
    assert said(capsys, "status", str(folder)).startswith("3 of 3 cells finished")
    assert len((folder / "timings.jsonl").read_text().splitlines()) == 3  # no cell was made twice


@pytest.mark.real
@pytest.mark.xdist_group("cli run")  # one worker makes the run
def test_the_same_command_again_computes_nothing(finished, capsys):
    folder, _ = finished
    before = contents(folder)
    said(capsys, *asked("--out", str(folder)))
    after = contents(folder)
    cells = [name for name in before if name.startswith("cells/")]
    assert len(cells) >= 6 and "timings.jsonl" in before
    assert {name for name in before if before[name] != after.get(name)} == set()
    assert after.keys() == before.keys()


@pytest.mark.real
@pytest.mark.xdist_group("cli run")  # one worker makes the run
def test_a_report_written_again_is_the_same_page(finished, capsys):
    folder, _ = finished
    before = contents(folder)
    (folder / "report.html").unlink()
    assert "report.html" in said(capsys, "report", str(folder))
    assert contents(folder) == before


@pytest.mark.real
@pytest.mark.xdist_group("cli run")  # one worker makes the run
def test_a_folder_of_runs_has_one_report_of_those_that_are_finished(finished, capsys, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(finished[0], tmp_path / name)
    cut = shutil.copytree(finished[0], tmp_path / "unfinished")
    said(capsys, *asked("--out", str(cut), "--new", "--limit", "1", "--set", "seed=7"))
    for path in tmp_path.glob("unfinished-*"):
        shutil.rmtree(path)
    assert str(tmp_path / "report.html") in said(capsys, "report", str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "first/" in page and "second/" in page and "unfinished/" not in page
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name)
    assert "none of the 1 runs" in said(capsys, "report", str(tmp_path), code=1)


@pytest.mark.real
@pytest.mark.xdist_group("cli run")  # one worker makes the run
def test_another_question_is_refused_in_the_same_directory(finished, capsys):
    folder, _ = finished
    before = contents(folder)
    err = said(capsys, *asked("--out", str(folder), "--set", "seed=43"), code=1)
    assert "config.seed (42 there, 43 asked)" in err and "--new" in err
    err = said(capsys, *asked("--out", str(folder), "--set", "strengths=[0.1]"), code=1)
    assert "config.strengths.0 (0.2 there, 0.1 asked)" in err
    assert contents(folder) == before


@pytest.mark.real
@pytest.mark.xdist_group("cli run")  # one worker makes the run
def test_an_unfinished_run_has_no_report_and_new_sets_a_run_aside(finished, capsys, tmp_path):
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    said(capsys, *asked("--out", str(folder), "--new", "--limit", "1", "--set", "seed=7"))
    assert said(capsys, "status", str(folder)).startswith("1 of 3 cells finished")
    aside = [path for path in tmp_path.iterdir() if path.is_dir() and path != folder]
    assert len(aside) == 1 and said(capsys, "status", str(aside[0])).startswith("3 of 3")
    assert "not finished, 2 cells are left" in said(capsys, "report", str(folder), code=1)


@pytest.mark.real
def test_a_certificate_of_a_directory_is_printed_and_json_is_all_of_stdout(capsys, tmp_path):
    """A tiny model beside the tokenizer of the real one, as a user's own checkpoint would lie there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from mechinterp import hub

    there = hub.resolve(EMBEDDED).path
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.from_pretrained(there, **sizes, **heads)
    made = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path)
    for path in there.iterdir():
        if "token" in path.name or path.name.endswith(".jinja"):
            shutil.copy(path, tmp_path)
    asked = ["parity", str(tmp_path), "--backends", "nnsight", "--tokens", "4"]
    told = json.loads(said(capsys, *asked, "--json"))
    assert told["passed"] is True and told["prompt"] == "chat"
    assert {check["backend"] for check in told["checks"]} == {"transformers", "nnsight"}
    assert said(capsys, *asked).splitlines()[-1] == told["verdict"]
    adapter = tiny_adapter(made, ["q_proj", "up_proj"], tmp_path / "poet")
    adapted = json.loads(said(capsys, *asked, "--json", "--adapter", str(adapter)))
    assert adapted["passed"] is True and adapted["model"] == f"{told['model']}+poet"
    assert adapted["weights_sha256"] != told["weights_sha256"]
    absent = str(tmp_path / "absent")
    assert absent in said(capsys, *asked, "--adapter", absent, code=1)
