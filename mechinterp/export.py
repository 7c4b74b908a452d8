"""Figures into files: HTML that opens offline, JSON, and PNG or PDF by one browser for all of them.

The HTML pages of a folder share one `plotly.min.js` beside them. Without a Chrome the pictures are left out,
with a notice that says how to get one, and everything else is written.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mechinterp.files import write_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

FileFormat = Literal["html", "json", "png", "pdf"]

WIDTH, HEIGHT = 960, 480  # of a picture, where the figure does not say
NO_CHROME = (
    "no PNG or PDF was written, because no Chrome or Chromium was found; HTML and JSON are complete."
    " Install one (`apt-get install chromium`, or `plotly_get_chrome`) and export again"
)
NO_RUN = "no PNG or PDF was written, because the browser did not run; HTML and JSON are complete"
NO_KALEIDO = (
    "no PNG or PDF was written, because the package kaleido is not installed; HTML and JSON are complete."
    " Install it (`pip install 'mechinterp[figures]'`) and export again"
)
# Pages may run what they hold and the script beside them, and ask for nothing else.
POLICY = (
    "default-src 'none'; script-src 'self' file: 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)


@dataclass(frozen=True)
class Saved:
    """The files that were written, and a notice where pictures had to be left out."""

    files: tuple[Path, ...]
    notice: str | None = None


def save_figures(
    figures: Mapping[str, go.Figure], folder: Path, formats: Sequence[FileFormat] = ("html", "json")
) -> Saved:
    """Write every figure in every format as `<name>.<format>`; pictures go through one browser, last.

    A notice about missing pictures is also given as a warning. Names become file names: small letters,
    digits, `-` and `_`; anything else raises ValueError before a file is written.
    """
    _check(figures, formats)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for name, figure in figures.items():
        if "html" in formats:
            files.append(_write(folder / f"{name}.html", page(figure)))
        if "json" in formats:
            files.append(_write(folder / f"{name}.json", to_json(figure)))
    if figures and "html" in formats:
        files.append(_write(folder / "plotly.min.js", plotly_script()))
    pictures = [kind for kind in ("png", "pdf") if kind in formats]
    if not figures or not pictures:
        return Saved(tuple(files))
    drawn, notice = _pictures(figures, folder, pictures)
    if notice:
        warnings.warn(notice, UserWarning, stacklevel=2)
    return Saved(tuple(files) + drawn, notice)


def page(figure: go.Figure) -> str:
    """A page of one figure that loads `plotly.min.js` from its own folder and nothing from anywhere else."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>Figure</title>\n'
        '<script src="plotly.min.js"></script></head>\n'
        f'<body style="margin:0;background:white">\n{fragment(figure, number=1)}\n</body>\n</html>\n'
    )


def fragment(figure: go.Figure, *, number: int) -> str:
    """The figure as a `<div id="figure-<number>">` for a page that has already loaded plotly's script.

    plotly escapes what is inside a figure but not the id of its div, so ids are numbers and never names.
    """
    import plotly.io as pio

    return pio.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{number}",
        config={
            "displaylogo": False,
            "responsive": True,
            "plotlyServerURL": "",
            # the first uploads the figure to a company's cloud; nothing here draws a selection
            "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
        },
    )


def to_json(figure: go.Figure) -> str:
    """The figure as JSON with sorted keys: the same figure always gives the same bytes, NaN is null."""
    return json.dumps(json.loads(str(figure.to_json())), sort_keys=True, allow_nan=False) + "\n"


def plotly_script() -> str:
    """The text of plotly.js, some 5 MB, from the installed package."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _check(figures: Mapping[str, go.Figure], formats: Sequence[str]) -> None:
    unknown = [kind for kind in formats if kind not in ("html", "json", "png", "pdf")]
    if unknown:
        raise ValueError(f"figures are written as html, json, png or pdf, not {unknown[0]!r}")
    for name in figures:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,99}", name):
            raise ValueError(
                f"{name!r} cannot name a figure's file; use small letters, digits, '-' and '_', at most 100"
            )


def _pictures(
    figures: Mapping[str, go.Figure], folder: Path, kinds: Sequence[str]
) -> tuple[tuple[Path, ...], str | None]:
    """All pictures in one call of plotly's exporter, moved into place when the last of them is drawn."""
    import plotly.io as pio

    try:
        from kaleido.errors import BrowserClosedError, BrowserFailedError
    except ImportError:
        return (), NO_KALEIDO
    jobs = [(figure, f"{name}.{kind}") for kind in kinds for name, figure in figures.items()]
    sizes = [figure.to_dict()["layout"] for figure, _ in jobs]
    with tempfile.TemporaryDirectory(prefix=".pictures-", dir=folder) as scratch:
        try:
            pio.write_images(
                [figure for figure, _ in jobs],
                [Path(scratch) / file for _, file in jobs],
                width=[size.get("width") or WIDTH for size in sizes],
                height=[size.get("height") or HEIGHT for size in sizes],
                scale=[2 if file.endswith(".png") else 1 for _, file in jobs],
            )
        except (BrowserClosedError, BrowserFailedError) as error:
            return (), f"{NO_RUN} ({error.args[0] if error.args else error})"
        except RuntimeError as error:  # plotly's translation of kaleido's ChromeNotFoundError
            if "Chrome" not in str(error):
                raise
            return (), NO_CHROME
        for _, file in jobs:
            (Path(scratch) / file).replace(folder / file)
    return tuple(folder / file for _, file in jobs), None


def _write(path: Path, text: str) -> Path:
    write_bytes(path, text.encode())
    return path
