"""The page that every study gets: one report.html that opens offline, its figures in a folder beside it.

A study fills a `Page` with numbers and plain text; every piece of text is escaped and stripped of control
characters here, so what a model wrote is shown and never run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args

from mechinterp.export import FileFormat, save_figures, to_json
from mechinterp.files import write_bytes
from mechinterp.wording import clean, p_value, shown, three_digits

if TYPE_CHECKING:
    import jinja2
    import plotly.graph_objects as go

Level = Literal["low", "moderate", "high"]

CHIPS = ("model", "preset", "n")  # of the set-up: what the head of the page repeats
KINDS = 6  # colours that the template has for kinds of text
TOP = 40  # pixels over the axes once title and subtitle stand in the page: boundary labels and the buttons
WIDEST = 920  # pixels inside a figure's frame; below its own width a matrix scrolls in its frame


@dataclass(frozen=True)
class Headline:
    """One row of the headline table. `unit` is what `n` counts, in the singular: run, prompt, pair.

    An estimate, bound or p that is None or NaN is shown as not defined, with `note` as the reason. `interval`
    says which one it is ("95 % bootstrap over runs") and `test` which test; empty where there is none.
    """

    quantity: str
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    interval: str
    test: str
    p: float | None
    note: str = ""

    def __post_init__(self) -> None:
        if _finite(self.p) and not 0 <= self.p <= 1:
            raise ValueError(f"{self.quantity!r} has p = {self.p}; a p value lies between 0 and 1")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{self.quantity!r} has the interval [{self.low}, {self.high}]; swap its bounds")


@dataclass(frozen=True)
class Sample:
    """One text that a model wrote: its parts as (kind, text), and why it is the one to be shown."""

    title: str
    tags: Mapping[str, Any]
    segments: tuple[tuple[str, str], ...]
    reason: str


@dataclass(frozen=True)
class Table:
    """Rows of values under named columns; `note` says what the columns mean and what n is."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"every row of {self.title!r} needs {len(self.columns)} values, one a column")


@dataclass(frozen=True)
class TokenText:
    """One text by token: (shown text, kind, mark); a token with a mark is framed, the mark beside it."""

    title: str
    tokens: tuple[tuple[str, str, str], ...]
    reason: str

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind for _, kind, _ in self.tokens))


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a report says. A section whose field is empty is left out.

    `figures` maps file names to (figure, caption); `setup` is the table of hyper-parameters, of which model,
    preset and n are repeated in the head; `asked` may hold several paragraphs, a blank line between them.
    """

    title: str
    asked: str
    answer: str
    setup: Mapping[str, Any]
    headlines: Sequence[Headline]
    confidence: tuple[Level, str]
    compute: Mapping[str, Any]
    digests: Mapping[str, str]
    figures: Mapping[str, tuple[go.Figure, str]]
    samples: Sequence[Sample] = ()
    tables: Sequence[Table] = ()
    texts: Sequence[TokenText] = ()
    caveats: tuple[str, ...] = ()
    cannot_show: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        level, reason = self.confidence
        if level not in get_args(Level):
            raise ValueError(f"the confidence is low, moderate or high, not {level!r}")
        if not reason.strip():
            raise ValueError(
                f"the confidence {level!r} has no reason; say in a sentence why it is not another"
            )


def write_report(
    page: Page,
    folder: Path | str,
    *,
    strict_figures: bool = False,
    formats: Sequence[FileFormat] = (),
) -> Path:
    """Write `report.html` and `figures/` into `folder`, and return the path of the page.

    Figures are always HTML and JSON; `formats` adds "png" and "pdf", some six seconds for all of them. Where
    no browser is found these are left out with a warning, or with a RuntimeError under `strict_figures`.
    The page is written last and whole, and the same Page gives the same bytes.
    """
    folder = Path(folder)
    text = render(page)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {name: figure for name, (figure, _) in page.figures.items()}
    wanted: list[FileFormat] = ["html", "json", *(kind for kind in formats if kind not in ("html", "json"))]
    saved = save_figures(figures, folder / "figures", wanted) if figures else None
    if strict_figures and saved is not None and saved.notice:
        raise RuntimeError(saved.notice)
    path = folder / "report.html"
    write_bytes(path, text.encode())
    return path


def write_book(title: str, chapters: Mapping[str, Page], folder: Path | str) -> Path:
    """Write one `report.html` of several; their own are written already, in the folders of their keys."""
    path = Path(folder) / "report.html"
    write_bytes(path, _render(title, {f"{name}/": page for name, page in chapters.items()}).encode())
    return path


def render(page: Page) -> str:
    """The page as HTML; its figures need `figures/plotly.min.js` beside it."""
    return _render(page.title, {"": page})


def _render(title: str, pages: Mapping[str, Page]) -> str:
    chapters, number, kinds = [], 0, []
    for folder, page in pages.items():
        figures = [_figure(name, *held) for name, held in page.figures.items()]
        for figure in figures:
            number += 1
            figure["number"] = number
        kinds += [kind for sample in page.samples for kind, _ in sample.segments]
        kinds += [kind for text in page.texts for kind in text.kinds]
        chapters.append(
            {
                "page": page,
                "folder": folder,
                "at": folder.replace("/", "-"),
                "chips": {name: page.setup[name] for name in CHIPS if name in page.setup},
                "rows": [_row(headline) for headline in page.headlines],
                "figures": figures,
            }
        )
    drawn = [chapter["folder"] for chapter in chapters if chapter["figures"]]
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            chapters=chapters,
            library=f"{drawn[0]}figures/plotly.min.js" if drawn else "",
            kinds={kind: place % KINDS + 1 for place, kind in enumerate(dict.fromkeys(kinds))},
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else clean(shown(value))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=finalize, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["sha256"] = _sha256
    environment.filters["paragraphs"] = lambda text: [p for p in re.split(r"\n\s*\n", text) if p.strip()]
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    return environment


def _sha256(script: str) -> str:
    """The digest by which the page's policy lets its one script run, and no other."""
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _row(headline: Headline) -> dict[str, str]:
    """The cells of a headline as text; what is not defined says why, once."""
    few = f"n = {headline.n}" if headline.n < 3 else "the computation gave no finite number"
    reasons = [f"not defined: {headline.note or few}"]

    def undefined() -> str:
        return reasons.pop() if reasons else "not defined"

    estimate, low, high, p = headline.estimate, headline.low, headline.high, headline.p
    cells = {"estimate": undefined() if not _finite(estimate) else three_digits(estimate)}
    if low is not None and high is not None and low <= high and low < math.inf and high > -math.inf:
        cells["interval"] = f"[{three_digits(low)}, {three_digits(high)}]"
    else:
        cells["interval"] = undefined() if headline.interval else "no interval"
    if _finite(p):
        cells |= {"p": p_value(p), "test": headline.test or "the test is not named"}
    else:
        cells |= {"p": undefined() if headline.test else "no test", "test": headline.test}
    return cells | {
        "quantity": headline.quantity,
        "kind": headline.interval,
        "n": f"{headline.n} {headline.unit}{'' if headline.n == 1 else 's'}",
        "note": headline.note if reasons else "",
    }


def _figure(name: str, figure: go.Figure, caption: str) -> dict[str, Any]:
    """What the template needs of a figure: heading, caption and notes as text, data and layout for plotly.

    Title and subtitle move into the page, where they wrap; so does a fixed width, which narrow screens lack.
    """
    drawn = json.loads(to_json(figure))
    layout = drawn["layout"]
    defaults = layout.get("template", {}).get("layout", {})
    meta = layout.get("meta") if isinstance(layout.get("meta"), dict) else {}
    claims = meta.get("subtitle") or ""
    if not caption.strip() and not claims:
        raise ValueError(
            f"the figure {name!r} has no caption; say model, n, seeds and band (`caption` writes one)"
        )
    title = layout.pop("title", {})
    margin = defaults.get("margin", {}) | layout.get("margin", {})
    height = layout.get("height") or defaults.get("height") or 480
    matrix = any(trace.get("type") == "heatmap" for trace in drawn["data"])
    narrowest = min(layout.pop("width", None) or (600 if matrix else 0), WIDEST)
    layout |= {"margin": margin | {"t": TOP}, "height": height - max(0, margin.get("t", 100) - TOP)}
    return {
        "name": name,
        # plotly's labels are escaped once already; the template does it again
        "title": html.unescape(title.get("text") or name) if isinstance(title, dict) else str(title),
        "caption": caption,
        "claims": claims if claims != caption else "",
        "notes": meta.get("notes", []),
        "height": layout["height"],
        "min_width": narrowest,
        "drawing": {"data": drawn["data"], "layout": layout},
    }
