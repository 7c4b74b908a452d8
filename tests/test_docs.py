"""The documentation is true where no build is needed to see it: its commands, names, blocks and page tree.

The cells themselves are run by `make docs`, which ends with `docs/check.py` over the built pages.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

import mechinterp as mi

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {"faults.md"}
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "notebooks"} & set(path.relative_to(DOCS).parts) and path.name not in GENERATED
)
FENCE = re.compile(r"^(`{3,}|:{3,})(\S*)[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
RUN_OR_CHECKED = {"{code-cell}", "sh", "toml", "text", "json"}
DIRECTIVES = {"{toctree}", "{eval-rst}", "{literalinclude}", "{image}"}
SHELL = {"mechinterp", "make", "python3", "python", "export", "#"}


def tool(name: str) -> ModuleType:
    """A module of the build, which lies beside the pages."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, kind: str) -> list[str]:
    """The bodies of a page's fenced blocks of one kind, without the options of a cell."""
    found = [body for _, name, body in FENCE.findall(path.read_text()) if name == kind]
    return [re.sub(r"\A(?::\w[^\n]*\n)+", "", body) for body in found]


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def inline_code(path: Path) -> list[str]:
    """What stands between single backticks, roles left out."""
    return re.findall(r"(?<![`}])`([^`\n]+)`(?!`)", prose(path))


def commands(path: Path) -> list[list[str]]:
    """The lines of a page's shell blocks, in words, comments and paths of programs left out."""
    lines = [line for body in blocks(path, "sh") for line in body.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [[Path(line[0]).name, *line[1:]] for line in words if line]


# blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_block_of_a_page_is_run_in_the_build_or_checked_here(path):
    kinds = {name for _, name, _ in FENCE.findall(path.read_text())}
    assert kinds <= RUN_OR_CHECKED | DIRECTIVES, f"{path.name} has blocks that nobody runs"
    assert "{code-cell}" not in kinds or path.read_text().startswith("---\nfile_format: mystnb\n"), (
        f"{path.name} has cells and no kernel to run them"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_cells_are_python_that_fits_a_page(path):
    for body in blocks(path, "{code-cell}"):
        ast.parse(body)
        assert max(map(len, body.splitlines())) <= 110, body


@pytest.mark.parametrize("name", ["ideas/units", "howto/architecture", "coming-from"])
def test_pages_that_need_no_chat_model_load_none(name):
    page = DOCS / f"{name}.md"
    assert not any("mi.load(" in body for body in blocks(page, "{code-cell}"))


def test_each_entry_of_troubleshooting_shows_what_is_really_raised_and_says_what_to_do():
    text = (DOCS / "troubleshooting.md").read_text()
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(entries) >= 15
    for entry in entries:
        title = entry.partition("\n")[0]
        cells = [body for _, kind, body in FENCE.findall(entry) if kind == "{code-cell}"]
        assert cells and ("said(" in cells[0] or "print(" in cells[0]), f"{title}: nothing is provoked"
        said = FENCE.sub("", entry.partition("\n")[2].split("\n## ")[0])
        assert len(said.split()) > 7, f"{title}: what to do?"


# commands and names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_every_command_of_a_shell_block_is_accepted_by_the_real_parser(path):
    from mechinterp import cli_run, study_files
    from mechinterp.cli import parser

    for line in commands(path):
        assert line[0] in SHELL or "=" in line[0], f"{path.name}: {line[0]} is no program that is known here"
        if line[0] != "mechinterp":
            continue
        try:
            given = parser().parse_args(line[1:])
        except SystemExit:
            pytest.fail(f"{path.name}: {shlex.join(line)}")
        if given.command == "run":
            cli_run.check(given)
            assert given.study.endswith(".py") or given.study in study_files.known(), line
            shipped = given.study in study_files.known() and given.preset is not None
            assert not shipped or given.preset in study_files.presets(given.study), line


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.stem)
def test_every_make_target_that_is_named_is_in_the_makefile(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {line[1] for line in commands(path) if line[0] == "make" and len(line) > 1}
    asked |= set(re.findall(r"`make ([\w-]+)", prose(path)))
    assert asked <= targets


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_name_in_inline_code_is_there(path):
    names = {
        name.replace("mi.", "mechinterp.", 1) if name.startswith("mi.") else name
        for code in inline_code(path)
        for name in re.findall(
            r"(?<![\w./])((?:mi|mechinterp|probes|patching|studies|transformer_lens|nnsight)(?:\.\w+)+)", code
        )
        if not name.endswith((".py", ".md", ".toml"))
    }
    missing = [name for name in sorted(names) if not reachable(name)]
    assert not missing, f"{path.name} names {missing}"


def reachable(name: str) -> bool:
    """Whether a dotted name leads somewhere: modules first, then attributes."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            found = getattr(found, part, None) or getattr(found, "__dataclass_fields__", {}).get(part)
        if found is not None:
            return True
    return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_file_in_inline_code_is_there(path):
    folders = "mechinterp|probes|patching|studies|examples|tests|docs|benchmarks"
    for code in inline_code(path):
        for file in re.findall(rf"(?<![\w./])((?:{folders})/[\w./-]*)", code):
            assert (ROOT / file).exists(), f"{path.name} names {file}"


def test_what_the_left_hand_columns_say_exists_in_the_libraries():
    """Methods that people write there; dotted names with their package are checked with all others."""
    text = (DOCS / "coming-from.md").read_text()
    lens = pytest.importorskip("transformer_lens")
    if not hasattr(lens, "HookedTransformer"):
        pytest.skip("transformer-lens 4 has no HookedTransformer")
    for name in ("run_with_cache", "run_with_hooks", "to_tokens", "to_string", "generate", "add_hook"):
        assert f"{name}" in text and hasattr(lens.HookedTransformer, name), name
    for name in ("stack_activation", "accumulated_resid", "logit_attrs"):
        assert f"cache.{name}" in text and hasattr(lens.ActivationCache, name), name
    nnsight = importlib.import_module("nnsight")
    for name in ("trace", "generate", "edit"):
        assert f"model.{name}(" in text and hasattr(nnsight.LanguageModel, name), name
    assert "remote=True)" not in text or "remote" in inspect.signature(mi.load).parameters


# the whole --------------------------------------------------------------------------------------------------


def test_every_page_is_in_a_toctree():
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for body in blocks(page, "{toctree}"):
            for entry in body.split():
                target = page.parent / f"{entry}.md"
                if "*" not in entry and target.name not in GENERATED:
                    assert target.is_file(), f"{page.name} lists {entry}"
                    waiting += [target] if target not in reached else []
    assert reached == set(PAGES)


def test_the_reference_lists_every_public_name():
    listed = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    for package in ("mechinterp", "probes", "patching"):
        public = set(importlib.import_module(package).__all__) - {"__version__"}
        missing = [name for name in sorted(public) if not re.search(rf":: {package}\.{name}$", listed, re.M)]
        assert not missing, f"the reference of {package} leaves out {missing}"
    for path in (ROOT / "mechinterp" / "stats").glob("[a-z]*.py"):
        if path.stem not in ("source_permutations",):  # used by `sources` alone
            assert f"mechinterp.stats.{path.stem}" in listed, path.stem


def test_the_page_of_faults_has_every_number_and_sentence_of_the_tests():
    faults = tool("faults")
    assert faults.numbers("test_fault_001_to_003_027_requests") == [1, 2, 3, 27]
    assert faults.numbers("test_fault_001_fault_002_a") == faults.numbers("fault_001_and_002") == [1, 2]
    assert faults.numbers("test_fault_050_tokens_that_equal") == [50]
    assert faults.sentence("test_a_null_is_null_again_fault_091") == "A null is null again"
    page = faults.page(ROOT / "tests")
    held = {number for path in (ROOT / "tests").glob("test_*.py") for number in numbered(path, faults)}
    assert held and all(f"\n| {number:03d} | " in page for number in held)
    assert "| 018 | " in page and "A position on padding is refused by its row" in page


def numbered(path: Path, faults: ModuleType) -> set[int]:
    tests = re.findall(r"def (test_\w+)\(", path.read_text())
    return {number for name in tests for number in faults.numbers(name)}


def test_every_notebook_is_read_for_its_page_and_begins_with_a_title():
    percent = tool("percent")
    paths = sorted((ROOT / "examples").glob("*.py"))
    assert paths
    for path in paths:
        notebook = percent.read(path.read_text())
        assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# "), path
        assert notebook.metadata["kernelspec"]["name"] == "python3"


# the check of built pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "asks for https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "asks for //fonts.example/a.css"),
        ('<img src="http://example.org/a.png">', "asks for http://example.org/a.png"),
        ("<style>@import url('https://example.org/a.css');</style>", "asks for https://example.org/a.css"),
        ('<p style="background: url(https://example.org/b.png)">', "asks for https://example.org/b.png"),
        ('<a href="gone.html#there">', "points at gone.html#there, which is not there"),
        ('<img src="gone.png">', "points at gone.png, which is not there"),
        ('<div class="plotly-graph-div"></div>', "has a figure and not plotly's script"),
        (f"<pre>{Path.home()}/secret</pre>", f"names {Path.home()}"),
    ],
)
def test_a_page_that_asks_for_something_from_outside_or_names_a_place_is_found(html, said, tmp_path):
    check = tool("check")
    page = tmp_path / "page.html"
    page.write_text(html)
    assert said in check.faults_of(page, ROOT)


def test_links_for_people_and_files_of_the_build_are_no_faults(tmp_path, capsys):
    check = tool("check")
    (tmp_path / "plotly.min.js").write_text("")
    (tmp_path / "page.html").write_text(
        '<a href="https://example.org">there</a><script src="plotly.min.js?v=1"></script>'
        '<div class="plotly-graph-div"></div><img src="data:image/png;base64,AA"><a href="#here">here</a>'
    )
    assert check.main(tmp_path) == 0 and "1 pages" in capsys.readouterr().out
    (tmp_path / "style.css").write_text("@import 'https://example.org/a.css';")
    assert check.main(tmp_path) == 1
