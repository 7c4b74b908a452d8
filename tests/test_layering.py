"""Imports run one way, libraries stay in their files, and no package loads what it does not need yet."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FINDERS = {
    f"mechinterp.{name}" for name in ("cli", "demo", "running", "study_files")
}  # they find studies when asked
PACKAGES = ["mechinterp", "probes", "patching", "studies"]
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = ["torch", "transformers", "plotly", "nnsight", "transformer_lens", "pandas", "scipy"]
MAY_IMPORT = {  # the arrows of the architecture: a package may import itself and what stands below it
    "mechinterp": {"mechinterp"},
    "probes": {"mechinterp", "probes"},
    "patching": {"mechinterp", "patching"},
    "studies": {"mechinterp", "probes", "patching", "studies"},
}
LOWER = {  # within mechinterp: what each of these files may import of ours
    "sites": set(),
    "directions": set(),
    "divergence": set(),
    "segmentation": set(),
    "drawing": {"cells"},
    "where": {"sites"},
    "interventions": {"sites", "where"},
    "edit_checks": {"sites", "where", "interventions"},
    "rows": {"sites", "where", "interventions"},
    "backends.protocol": {"sites", "where", "interventions", "backends.readout"},
    "backends.readout": {"backends.modes"},
    "backends.modes": set(),
    "backends.hooked_cache": set(),
    "activations": {"sites", "backends.protocol"},
    "backends.anatomy": {"backends.protocol"},
    "backends.turns": set(),
    "backends.twin": set(),
    "backends.attention_rows": set(),
    "results": {"json_io", "files", "codec", "digests", "directory", "figures", "notebook"},
    "notebook": {"results"},
}
NOT_IN_BACKENDS = {"model", "activations", "sampling", "stream", "gather", "loading", "hub", "adapters"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST, package: str) -> list[str]:
    """Every module that is imported anywhere in a tree, `from a import b` as both a and a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], base]
                ).rstrip(".")
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found


def top_level(tree: ast.Module) -> ast.Module:
    """What runs when a module is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(tree)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def used(path: Path) -> set[str]:
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    return set(imports(parsed(path), package))


def roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    own = name_of(path).partition(".")[0]
    ours = roots(used(path)) & set(PACKAGES)
    if name_of(path) in FINDERS:
        assert "studies" not in roots(set(imports(top_level(parsed(path)), "")))
        ours.discard("studies")
    assert ours <= MAY_IMPORT[own], f"{name_of(path)} imports {sorted(ours - MAY_IMPORT[own])}"


@pytest.mark.parametrize("module", LOWER)
def test_the_ground_floor_imports_only_what_stands_below_it(module):
    path = ROOT / "mechinterp" / f"{module.replace('.', '/')}.py"
    ours = {m.removeprefix("mechinterp.") for m in used(path) if m.startswith("mechinterp.")}
    known = {name_of(f).removeprefix("mechinterp.") for f in FILES}
    assert ours & known <= LOWER[module]


@pytest.mark.parametrize("path", [f for f in FILES if f.parent.name == "backends"], ids=name_of)
def test_a_backend_knows_nothing_of_what_stands_on_it(path):
    ours = {m.split(".")[1] for m in used(path) if m.startswith("mechinterp.")}
    assert not ours & NOT_IN_BACKENDS


@pytest.mark.parametrize("path", [f for f in FILES if f.parent.name == "stats"], ids=name_of)
def test_statistics_import_nothing_of_ours(path):
    assert not {m for m in used(path) if m.startswith("mechinterp.") and not m.startswith("mechinterp.stats")}


@pytest.mark.parametrize("library", ["nnsight", "transformer_lens"])
def test_one_file_imports_the_library(library):
    found = {name_of(path) for path in FILES if library in roots(used(path))}
    home = f"mechinterp.backends.{library}"
    helpers = {
        "transformer_lens": {"mechinterp.backends.hooked_config"},
        "nnsight": {"mechinterp.backends.nnsight_remote"},
    }[library]
    assert found <= {home} | helpers
    assert home in found


def test_plotly_is_imported_by_figures_and_figure_methods_only_and_lazily():
    for path in FILES:
        tree = parsed(path)
        assert "plotly" not in roots(set(imports(top_level(parsed(path)), ""))), (
            f"{name_of(path)} loads plotly"
        )
        if name_of(path) in (
            "mechinterp.figures",
            "mechinterp.theme",
            "mechinterp.curves",
            "mechinterp.export",
        ) or path.stem.endswith(("_figures", "_maps", "_rates")):
            continue  # a study's own figures, in functions all the same
        allowed = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "figure"]
        inside = sum(m.startswith("plotly") for n in allowed for m in imports(n, ""))
        typed = [
            n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
        ]
        inside += sum(m.startswith("plotly") for n in typed for m in imports(n, ""))
        assert sum(m.startswith("plotly") for m in imports(tree, "")) == inside, name_of(path)


ENTRANCES = [f for f in FILES if f.name in ("__init__.py", "cli.py") and f.parent.name in PACKAGES]


@pytest.mark.parametrize("path", ENTRANCES, ids=name_of)
def test_entrances_import_nothing_heavy_at_the_top(path):
    heavy = {*HEAVY, "numpy", "sklearn", "statsmodels", "peft", "gguf"}
    assert not roots(set(imports(top_level(parsed(path)), ""))) & heavy


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_no_library(package):
    code = f"import sys, {package}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not done.stdout.split()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_name_of_a_model_decides_anything(path):
    """Families are found by the config's model_type, in one table; no comparison asks for a name's part."""
    families = re.compile(r"qwen|llama|gemma|mistral|phi-?\d|gpt|olmo|granite|bloom|smollm|neox", re.I)
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Compare) or not any(
            isinstance(op, (ast.In, ast.NotIn)) for op in node.ops
        ):
            continue
        left = node.left
        if isinstance(left, ast.Constant) and isinstance(left.value, str) and families.search(left.value):
            asked = ast.unparse(node)
            assert not re.search(r"name|path|\bid\b", asked.replace(repr(left.value), "")), (
                f"{name_of(path)}: {asked}"
            )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_ids_are_never_decoded_and_encoded_again(path):
    """fault_043: 4 of 64 sampled prefixes changed on that way."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "encode",
            "tokenizer",
            "plain",
        ):
            inside = [n for arg in node.args for n in ast.walk(arg) if isinstance(n, ast.Call)]
            assert not any(ast.unparse(n.func).endswith(("decode", "batch_decode")) for n in inside), (
                ast.unparse(node)
            )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_bare_except_no_pickle_and_no_salted_hash(path):
    tree = parsed(path)
    own = {id(n) for f in ast.walk(tree) if getattr(f, "name", "") == "__hash__" for n in ast.walk(f)}
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "a bare except hides failures"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and id(node) not in own:
            assert node.func.id not in ("hash", "eval", "exec"), ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert options.get("weights_only") == "True", ast.unparse(node)
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert not re.match(
            r"(c?pickle|dill|joblib|marshal|shelve)\.(loads?|dumps?|open|Unpickler)", called
        ), called


@pytest.mark.parametrize("package", ["mechinterp", "probes", "patching", "studies"])
def test_no_public_name_is_a_module_of_its_package(package):
    """Importing `probes.x` as a module would put it in the place of the function `probes.x`."""
    modules = {path.stem for path in (ROOT / package).glob("*.py")} | {
        path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").is_file()
    }
    public = set(getattr(importlib.import_module(package), "__all__", ()))
    assert not public & modules
