"""The look that all figures share: one plotly template, colours, escaped labels, subtitle and notes."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's colours, told apart with any colour vision; their yellow is too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
DASHES = ("solid", "dash")
INK, GREY, FAINT = "#222222", "#666666", "#E8E8E8"
SEQUENTIAL = ("#F7FBFF", "#C6DBEF", "#6BAED6", "#2171B5", "#08306B")
DIVERGING = ("#053061", "#4393C3", "#F7F7F7", "#D6604D", "#67001F")
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"


def caption(
    model: str, *, n: int, unit: str, seeds: Sequence[int], band: str, more: Sequence[str] = ()
) -> str:
    """The subtitle of a figure: which model, how many of what, which seeds, what the band is."""
    ordered = sorted(seeds)
    spelled = ", ".join(map(str, ordered))
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[0] + len(ordered))):
        spelled = f"{ordered[0]}–{ordered[-1]}"
    counted = f"n = {n} {unit}{'' if n == 1 else 's'}"
    seeded = f"seed{'' if len(ordered) == 1 else 's'} {spelled}" if ordered else "no seed"
    return " · ".join([model, counted, seeded, f"band: {band}", *more])


def label(text: object, width: int = 44) -> str:
    """Text that plotly shows as it is: no markup, formula, control character; `width` characters at most."""
    plain = "".join(character if character.isprintable() else " " for character in str(text))
    short = plain if len(plain) <= width else plain[: width - 1] + "…"
    return html.escape(short, quote=False).replace("$", "&#36;")


def numbers(values: Iterable[Any]) -> list[float | None]:
    """Plain numbers, None where there is none: what JSON can hold and plotly leaves out."""
    return [float(value) if math.isfinite(value) else None for value in values]


def ends(values: Iterable[Any]) -> list[float]:
    """First and last finite value, 0 and 1 where there is none."""
    finite = [value for value in numbers(values) if value is not None]
    return [min(finite), max(finite)] if finite else [0.0, 1.0]


def whole_step(span: float) -> int:
    """Distance between ticks that are whole numbers, 17 of them at most."""
    return next(
        step for power in range(12) for step in (10**power, 2 * 10**power, 5 * 10**power) if span <= 16 * step
    )


def colour(place: int) -> str:
    """The colour of the n-th line, repeating after the palette."""
    return PALETTE[place % len(PALETTE)]


def dash(place: int) -> str:
    """The dash of the n-th line: a second one where colours repeat."""
    return DASHES[place // len(PALETTE) % len(DASHES)]


def finish(
    figure: go.Figure, title: str, subtitle: str, notes: Sequence[str], *, x_title: str, y_title: str
) -> None:
    """Template, title, subtitle with the notes under it, axis titles, and the margin that they need.

    Notes stand above the axes, where no tick label can reach them. A figure without a subtitle is refused.
    """
    if not subtitle.strip():
        raise ValueError("a figure needs a subtitle that says model, n, seeds and band; `caption` writes one")
    above = [label(line, 140) for line in _wrapped(subtitle)]
    above += [f"<i>{label(line, 140)}</i>" for note in notes for line in _wrapped(f"Note: {note}")]
    figure.update_layout(
        template=template(),
        title={"text": label(title, 90), "subtitle": {"text": "<br>".join(above)}},
        margin={"t": 58 + 17 * len(above)},
        meta={"subtitle": subtitle, "notes": list(notes)},
    )
    figure.update_xaxes(title_text=label(x_title, 80))
    figure.update_yaxes(title_text=label(y_title, 60))


def _wrapped(text: str) -> list[str]:
    """Lines of a subtitle, broken between its parts where they are short enough to stay whole."""
    parts = [part.replace(" ", "\xa0") if len(part) < 60 else part for part in text.split(" · ")]
    return [line.rstrip(" ·") for line in textwrap.wrap(" · ".join(parts), 118)]


def say_empty(figure: go.Figure) -> None:
    """Words in the middle of axes that have nothing to show."""
    figure.add_annotation(
        text="no finite values", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False,
        font={"size": 16, "color": GREY},
    )  # fmt: skip


def template() -> str:
    """The name of our template, put into plotly's table at the first figure rather than at import."""
    import plotly.graph_objects as go
    import plotly.io as pio

    if "mechinterp" not in pio.templates:
        axis = {
            "showgrid": True, "gridcolor": FAINT, "zeroline": False, "showline": True, "linecolor": INK,
            "ticks": "outside", "ticklen": 4, "tickcolor": INK, "tickfont": {"size": 13},
            "title": {"font": {"size": 15}, "standoff": 10}, "automargin": True,
        }  # fmt: skip
        pio.templates["mechinterp"] = go.layout.Template(
            layout={
                "font": {"family": FONT, "size": 14, "color": INK},
                "colorway": list(PALETTE),
                "paper_bgcolor": "white",
                "plot_bgcolor": "white",
                "title": {
                    "x": 0, "xref": "paper", "xanchor": "left", "yref": "container", "y": 1, "yanchor": "top",
                    "pad": {"t": 14}, "font": {"size": 19}, "subtitle": {"font": {"size": 13, "color": GREY}},
                },
                "legend": {
                    "x": 1.01, "xanchor": "left", "y": 1, "font": {"size": 13}, "tracegroupgap": 3,
                    "title": {"font": {"size": 13, "color": GREY}},
                },
                "hoverlabel": {"align": "left", "font": {"size": 13}},
                "margin": {"l": 70, "r": 30, "t": 80, "b": 62},
                "height": 480,
                "xaxis": axis,
                "yaxis": axis,
            }
        )  # fmt: skip
    return "mechinterp"
