"""The README is true: its Python runs, its commands exist, and its table names things that are there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_python_of_the_first_screen_runs_and_writes_its_figure(tmp_path, monkeypatch, real):
    """With fewer and shorter runs than it asks for, and the session's model for the loaded one."""
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    assert code.count("\n") <= 14
    quick = code.replace("n_steer=24, n_free=40", "n_steer=3, n_free=4")
    quick = quick.replace("seeds=range(8)", "seeds=range(3)")
    assert quick != code
    quick = quick.replace('mi.load("smollm2-135m-instruct-q4")', "real")
    exec(compile(quick, "README.md", "exec"), {"real": real})
    page = (tmp_path / "persistence.html").read_text()
    assert "steered" in page and "free (fresh cache)" in page


def test_its_make_targets_exist():
    wanted = set(re.findall(r"\bmake (\w+)", README))
    assert {"demo", "test", "env"} <= wanted
    if shutil.which("make") is None:
        pytest.skip("make is not installed; the README gives the plain lines for that case")
    for target in wanted:
        asked = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert asked.returncode == 0, asked.stderr


def test_the_files_and_names_of_its_table_are_there():
    for path in re.findall(r"\| `((?:mechinterp|patching|probes|studies)/[\w/]+\.py)` \|", README):
        assert (ROOT / path).is_file(), path
    import mechinterp
    import patching
    import probes

    for package in (mechinterp, patching, probes):
        alias = {"mechinterp": "mi"}.get(package.__name__, package.__name__)
        for name in re.findall(rf"\b{alias}\.(\w+)", README):
            assert hasattr(package, name), f"{alias}.{name}"


def test_its_figure_is_in_the_repository():
    image = re.search(r"!\[.*?\]\((.*?)\)", README)
    assert image is not None and (ROOT / image[1]).is_file()


def test_commands_of_the_console_script_are_real():
    from mechinterp.cli import parser

    text = parser().format_help()
    for command in set(re.findall(r"`?mechinterp (\w+)", README)) - {"studies"}:
        assert command in text or command in ("is", "on"), command
