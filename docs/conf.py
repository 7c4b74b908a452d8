"""How the documentation is built: every cell of every page is run, offline, on the embedded chat model."""

import hashlib
import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BUILT = DOCS / "_build"
sys.path.insert(0, str(DOCS))

import faults  # noqa: E402
import plotly  # noqa: E402

# kernels inherit this: one thread for numbers that repeat, no hub, no bars, our renderer of figures
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "WANDB_MODE": "disabled",
    "IPYTHONDIR": str(BUILT / "ipython"),
}


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


startup = BUILT / "ipython" / "profile_default" / "startup"
_copied(DOCS / "kernel.py", startup / "00-kernel.py")
_copied(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", BUILT / "static" / "plotly.min.js")
_fresh(DOCS / "notebooks")
for notebook in sorted((ROOT / "examples").glob("*.py")):
    _copied(notebook, DOCS / "notebooks" / notebook.name)
(DOCS / "faults.md").write_text(faults.page(ROOT / "tests"), encoding="utf-8")

project = "mechinterp"
author = "the authors of mechinterp"
version = release = metadata.version("mechinterp")
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "*.py"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings: list[str] = []

# pages are run ----------------------------------------------------------------------------------------------


def _sources_digest() -> str:
    """Of all that a page's output may depend on: what was run against other sources is run again."""
    found = hashlib.sha256()
    folders = ("mechinterp", "probes", "patching", "studies")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(path for path in files if "__pycache__" not in path.parts):
        found.update(path.read_bytes())
    for path in (ROOT / "constraints.txt", DOCS / "kernel.py"):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


cache = BUILT / "cache" / _sources_digest()
for older in (BUILT / "cache").glob("[!.]*"):
    if older != cache:
        shutil.rmtree(older)
nb_execution_mode = "cache"
nb_execution_cache_path = str(cache)
nb_execution_in_temp = True
nb_execution_show_tb = True  # a cell that raises is a warning, and -W makes that the end, after all pages ran
nb_execution_timeout = 300
nb_merge_streams = True
nb_custom_formats = {".py": "percent.read"}

# how they look ----------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "mechinterp"
html_static_path = ["_static", str(BUILT / "static")]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "default"


def _with_figures(app, pagename, templatename, context, doctree):
    """Plotly's script, 5 MB, where a figure is; before it, for the theme puts all others last."""
    if "plotly-graph-div" in context.get("body", ""):
        script = context["pathto"]("_static/plotly.min.js", resource=True)
        context["body"] = f'<script src="{script}"></script>\n{context["body"]}'


# reference from docstrings ----------------------------------------------------------------------------------

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 90
default_role = "code"


METHODS = re.compile(r"(?: of)?[ (]+methods(?:\.md)? [\d.]*\d\)?")  # sections of a page that does not ship


def _as_rest(app, what, name, obj, options, lines):
    """Our docstrings are plain text with `code`: what reST would read as markup is escaped."""
    for number, line in enumerate(lines):
        line = METHODS.sub("", line)
        parts = re.split(r"(`[^`]+`)", line)
        plain = [re.sub(r"([\\*|]|(?<=\w)_(?=\W|$)|`)", r"\\\1", part) for part in parts[::2]]
        code = [f"`{part}`" for part in parts[1::2]]
        lines[number] = "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


def _readable(app, what, name, obj, options, signature, returned):
    """Defaults that a dataclass makes anew are no Python, and would keep types from being links."""
    return signature and signature.replace("<factory>", "..."), returned


def setup(app):
    app.connect("html-page-context", _with_figures)
    app.connect("autodoc-process-docstring", _as_rest)
    app.connect("autodoc-process-signature", _readable)
