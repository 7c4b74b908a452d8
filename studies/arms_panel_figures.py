"""What the figures of the three-arm test share: panels by source, lines by arm, Wilson bars, the caption."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechinterp.figures import caption
from mechinterp.stats.intervals import Interval
from mechinterp.theme import colour, finish, label, numbers
from studies.arms_records import ARMS, ORIGINAL, Point, Trajectories

if TYPE_CHECKING:
    import plotly.graph_objects as go

SYMBOLS = {"A": "circle", "B": "square", "C": "triangle-up"}
WILSON, NO_BAND = "Wilson 95 % over answers", "none: rates without counts"
BESIDE = 1.2  # percent between the lines of two arms, which would hide each other at zero
Value = Callable[[Point], Interval]


def grid(found: Trajectories, rows: Mapping[str, Value]) -> go.Figure:
    """A column a source, a row a measure, a line an arm and adapter."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=max(len(rows), 1), cols=len(found.sources), shared_xaxes=True, shared_yaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.07,
        subplot_titles=[label(_named(found, source), 34) for source in found.sources],
    )  # fmt: skip
    told: set[str] = set()
    for column, source in enumerate(found.sources, 1):
        for arm, adapter in found.arms(source):
            line, name = found.line(arm, source, adapter=adapter), _arm(arm, adapter)
            for row, value in enumerate(rows.values(), 1):
                where = {"row": row, "col": column}
                dashed = is_dashed(found, source, arm, adapter)
                place = list(ARMS).index(arm)
                if any(math.isfinite(value(p).estimate) for p in line):
                    symbol = SYMBOLS[arm] + ("" if adapter == ORIGINAL else "-open")
                    legend, beside = name not in told, BESIDE * (place - 1)
                    draw_line(figure, line, value, where, name, place, legend, dashed, symbol, beside)
                    told.add(name)
    for row, title in enumerate(rows, 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    return figure


def draw_line(
    figure: Any, line: Sequence[Point], value: Value, where: dict[str, int], name: str, place: int,
    legend: bool, dashed: bool = False, symbol: str = "circle", beside: float = 0.0,
) -> None:  # fmt: skip
    """One measure over the checkpoints of a trajectory, drawn `beside` its place by so many percent."""
    found = [value(point) for point in line]
    figure.add_scatter(
        x=[point.percent + beside for point in line], y=numbers([each.estimate for each in found]),
        mode="lines+markers", name=label(name, 40), legendgroup=name, showlegend=legend,
        opacity=0.55 if dashed else 1, error_y=wilson_bars(found),
        line={"color": colour(place), "width": 2, "dash": "dash" if dashed else "solid"},
        marker={"size": 7, "symbol": symbol, "color": colour(place)},
        customdata=[point.percent for point in line],
        hovertemplate=f"{label(name, 40)}, %{{customdata}} %: %{{y:.3f}}<extra></extra>", **where,
    )  # fmt: skip


def wilson_bars(found: Sequence[Interval]) -> dict[str, Any]:
    """Wilson's bounds where there are counts."""
    if not any(math.isfinite(each.high) for each in found):
        return {"visible": False}
    return {
        "type": "data", "symmetric": False, "thickness": 1, "width": 2,
        "array": numbers([each.high - each.estimate for each in found]),
        "arrayminus": numbers([each.estimate - each.low for each in found]),
    }  # fmt: skip


def finish_panels(
    figure: Any, found: Trajectories, title: str, notes: Sequence[str], rows: int, *, band: str = "",
    x_title: str = "% of the training", n: int | None = None,
) -> None:  # fmt: skip
    """Title, caption and notes; the panels' own titles of their y axes stay."""
    more = [f"{len(found.sources)} source{'s' * (len(found.sources) > 1)}"]
    said = caption(found.model, n=n or len(found.points), unit="checkpoint", seeds=found.seeds,
                   band=band or band_of(found), more=more)  # fmt: skip
    titles = {axis.plotly_name: axis.title.text for axis in figure.select_yaxes()}
    finish(figure, title, said, notes, x_title="", y_title="")
    figure.for_each_yaxis(lambda axis: axis.update(title_text=titles[axis.plotly_name]))
    figure.update_xaxes(title_text=x_title, row=rows)
    figure.update_annotations(font_size=12, yshift=-3)
    top = figure.to_dict()["layout"]["margin"]["t"] + 26
    figure.update_layout(
        height=200 + 230 * rows, margin_t=top, legend={"orientation": "h", "y": -0.16 / rows - 0.08, "x": 0}
    )
    if x_title.startswith("%"):
        figure.update_xaxes(tickvals=sorted({point.percent for point in found.points}), range=[-6, 106])


def is_dashed(found: Trajectories, source: str, arm: str, adapter: str) -> bool:
    """Arms that start from the marker adapter, where that was not specific; arm B trains its own."""
    quality = found.adapter_quality(source, adapter)
    return arm != "B" and quality is not None and not quality.specific


def _named(found: Trajectories, source: str) -> str:
    quality = found.adapter_quality(source)
    return source if quality is None or quality.specific else f"{source} ({quality.pattern})"


def _arm(arm: str, adapter: str) -> str:
    return f"{arm}: {ARMS[arm]}" + ("" if adapter == ORIGINAL else f", {adapter} adapter")


def cosine_value(layer: int) -> Value:
    """Reads the cosine of one layer from a point."""
    return lambda point: bare(point.cosine(layer))


def bare(value: float) -> Interval:
    """A value without bounds."""
    return Interval(value, math.nan, math.nan, 0, "", "none")


def band_of(found: Trajectories) -> str:
    """What the bars are."""
    return WILSON if found.counted else NO_BAND


def zero_note(found: Trajectories) -> list[str]:
    """That 0 % is missing, where it is."""
    return (
        []
        if any(p.percent == 0 for p in found.points)
        else ["no checkpoint at 0 %: what came before is not seen"]
    )


def signed(value: float) -> str:
    """A correlation with its sign."""
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "not defined"
