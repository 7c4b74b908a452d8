"""The figures of the three-arm test: arms side by side, arm B by layer, adapters, cosines (methods 14)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechinterp.figures import caption, heatmap
from mechinterp.theme import INK, colour, finish, label, numbers
from studies.arms_analysis import FROM_FIRST, ArmsAnalysis
from studies.arms_panel_figures import (
    Value,
    band_of,
    bare,
    cosine_value,
    draw_line,
    finish_panels,
    grid,
    is_dashed,
    signed,
    wilson_bars,
    zero_note,
)
from studies.arms_records import ASSISTANT, ORIGINAL, Point, Trajectories, interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

RATE = "marker rate"
DASHED = "dashed: the adapter was not specific to its source before any merge"


ROWS: dict[str, Value] = {
    "source's own rate": lambda point: interval(point.source_rate),
    "assistant's rate": lambda point: interval(point.assistant_rate),
}


def hero(found: Trajectories) -> go.Figure:
    """Source retention above, assistant leakage below, a column a source, a line an arm."""
    return _arms(found, list(ROWS), "Source retention and assistant leakage by arm")


def retention_alone(found: Trajectories) -> go.Figure:
    """The upper row of `hero`."""
    return _arms(found, list(ROWS)[:1], "Source retention by arm")


def leakage_alone(found: Trajectories) -> go.Figure:
    """The lower row of `hero`."""
    return _arms(found, list(ROWS)[1:], "Assistant leakage by arm")


def cosine_evolution(found: Trajectories) -> go.Figure:
    """The cosine of source and assistant over checkpoints, a row a layer, a column a source."""
    rows: dict[str, Value] = {f"cosine, layer {layer}": cosine_value(layer) for layer in found.layers}
    figure = grid(found, rows)
    missing = sum(not math.isfinite(p.cosine(n)) for p in found.points for n in found.layers)
    notes = [f"{missing} cosines were not measured and leave a gap"] if missing else []
    title = "Cosine of source and assistant over training"
    finish_panels(figure, found, title, [*notes, *zero_note(found)], len(rows), band="none")
    figure.add_hline(y=0, line={"color": INK, "width": 0.8, "dash": "dot"})
    return figure


def trajectories(found: Trajectories, arm: str = "B") -> go.Figure:
    """One arm: the source's own, the assistant's and the mean bystander's rate over checkpoints."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=1, cols=len(found.sources), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[label(source, 26) for source in found.sources],
    )  # fmt: skip
    shown: dict[str, Value] = {
        "source": lambda point: interval(point.source_rate),
        "assistant": lambda point: interval(point.assistant_rate),
        "mean bystander": lambda point: bare(point.bystander_mean),
    }
    for column, source in enumerate(found.sources, 1):
        line = found.line(arm, source)
        for place, (name, value) in enumerate(shown.items()):
            held = [p for p in line if math.isfinite(value(p).estimate)]
            if held:
                where = {"row": 1, "col": column}
                draw_line(figure, held, value, where, name, place, legend=column == 1)
    n = sum(len(found.line(arm, source)) for source in found.sources)
    finish_panels(figure, found, f"Arm {arm}: source, assistant and bystanders", zero_note(found), 1, n=n)
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_yaxes(title_text=RATE, row=1, col=1)
    return figure


def cosine_scatter(found: ArmsAnalysis) -> go.Figure:
    """Cosine against assistant leakage, a panel a layer; the checkpoints of a source are joined in order."""
    from plotly.subplots import make_subplots

    held = found.trajectories
    figure = make_subplots(
        rows=1, cols=max(len(held.layers), 1), shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=[f"layer {layer}" for layer in held.layers],
    )  # fmt: skip
    for place, source in enumerate(held.sources):
        line = held.line(found.arm, source, adapter=found.adapter)
        for column, layer in enumerate(held.layers, 1):
            _path(figure, line, layer, place, {"row": 1, "col": column}, legend=column == 1)
    pooled = [f"layer {n} {signed(each.estimate)}" for n, each in found.pooled.items()]
    within = [
        f"layer {t.layer}: {t.n_negative} of {t.n_sources} negative"
        for t in found.trends
        if t.start == FROM_FIRST
    ]
    notes = [
        f"rho of all points together, the wrong way: {', '.join(pooled) or 'none'}",
        f"rho within sources: {', '.join(within) or 'none'}; markers grow with the checkpoint, open: 0 %",
    ]
    title = f"Arm {found.arm}: cosine and assistant leakage"
    n = sum(len(held.line(found.arm, source, adapter=found.adapter)) for source in held.sources)
    finish_panels(figure, held, title, notes, 1, x_title="cosine of source and assistant", n=n)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=f"assistant's {RATE}", row=1, col=1)
    return figure


def rate_map(found: ArmsAnalysis) -> go.Figure:
    """The last checkpoint of every source under every prompt."""
    import pandas as pd

    held, rows = found.trajectories, {}
    for source in held.sources:
        point = held.at(found.arm, source, found.percent, adapter=found.adapter)
        if point is not None and point.bystander_rates:
            rates = {name: rate.rate for name, rate in point.bystander_rates.items()}
            rows[source] = rates | {source: point.source_rate.rate, ASSISTANT: point.assistant_rate.rate}
    names = _columns(rows)
    frame = pd.DataFrame(
        [[rows[s].get(n, math.nan) for n in names] for s in rows], index=list(rows), columns=names
    )
    return heatmap(
        frame,
        subtitle=caption(held.model, n=len(rows), unit="source", seeds=held.seeds, band="none",
                         more=[f"arm {found.arm} at {found.percent} %"]),
        title=f"Arm {found.arm}: marker rate under every prompt",
        x_title="target: whose prompt", y_title="source: whose marker", colour_title="rate",
    )  # fmt: skip


def adapter_quality(found: Trajectories) -> go.Figure:
    """The marker adapters before any merge: the source's own rate beside the highest bystander's."""
    import plotly.graph_objects as go

    figure = go.Figure()
    kept = "" if all(q.adapter == ORIGINAL for q in found.quality) else "<br>{}"
    names = [
        f"{label(q.source, 24)}<br>{label(q.pattern, 20)}{kept.format(label(q.adapter, 20))}"
        for q in found.quality
    ]
    bars = (
        ("source", [q.source_rate for q in found.quality]),
        ("highest bystander", [q.max_bystander for q in found.quality]),
    )
    for place, (name, values) in enumerate(bars):
        figure.add_bar(
            x=names, y=numbers(values), name=name, marker_color=colour(place),
            text=[f"{value:.3g}" for value in values], textposition="outside", cliponaxis=False,
            hovertemplate="%{x}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    said = caption(found.model, n=len(found.quality), unit="adapter", seeds=found.seeds, band="none")
    finish(figure, "Marker adapters before any merge", said, [], x_title="source and label", y_title=RATE)
    figure.update_yaxes(range=[0, 1.08])
    return figure


def breadth_against_leakage(found: ArmsAnalysis) -> go.Figure:
    """Breadth before any merge and at the same checkpoint against the assistant's rate, a point a source."""
    import plotly.graph_objects as go

    held, figure = found.trajectories, go.Figure()
    last = [held.at(found.arm, s, found.percent, adapter=found.adapter) for s in held.sources]
    points = [p for p in last if p is not None]
    quality = [held.adapter_quality(p.source, found.adapter) for p in points]
    x = {
        "original highest bystander": [q.max_bystander if q else math.nan for q in quality],
        "bystander mean, same checkpoint": [p.bystander_mean for p in points],
    }
    for place, (name, values) in enumerate(x.items()):
        figure.add_scatter(
            x=numbers(values), y=numbers([p.assistant_rate.rate for p in points]), mode="markers+text",
            name=name, text=[label(p.source, 24) for p in points], textposition="top center",
            textfont={"size": 11}, error_y=wilson_bars([interval(p.assistant_rate) for p in points]),
            marker={"size": 11, "color": colour(place), "symbol": ("circle", "diamond")[place]},
            hovertemplate="%{text}: (%{x:.3f}, %{y:.3f})<extra></extra>",
        )  # fmt: skip
    rhos = [f"{p.name}: rho {signed(p.association.estimate)}, p {p.association.p:.2g}"
            for p in found.predictors]  # fmt: skip
    said = caption(held.model, n=len(points), unit="source", seeds=held.seeds, band=band_of(held))
    finish(figure, "Breadth and assistant leakage", said, ["; ".join(rhos)] if rhos else [],
           x_title=f"bystanders' {RATE}", y_title=f"assistant's {RATE} at {found.percent} %")  # fmt: skip
    figure.update_xaxes(range=[-0.05, 1.05])
    figure.update_yaxes(range=[0, 1])
    return figure


def all_figures(found: ArmsAnalysis) -> dict[str, tuple[go.Figure, str]]:
    """By file name, each with what it shows; those that the records have nothing for are left out."""
    held = found.trajectories
    figures = {
        "arms": (hero(held), "What each arm kept of the marker, and what the assistant got of it."),
        "retention": (retention_alone(held), "The source's own rate alone."),
        "leakage": (leakage_alone(held), "The assistant's rate alone."),
    }
    if held.layers:
        figures["cosine-leakage"] = (cosine_scatter(found), "Joined: the checkpoints of one source in order.")
        figures["cosines"] = (cosine_evolution(held), "Whether training moved source and assistant together.")
    figures["trajectories"] = (
        trajectories(held, found.arm),
        f"Arm {found.arm}; bystanders where their rates are on record.",
    )
    if found.beside:
        figures["rates"] = (rate_map(found), "Whether the marker goes to the assistant or to everyone.")
    if held.quality:
        figures["adapters"] = (adapter_quality(held), "What each adapter was before it was merged.")
        figures["breadth"] = (breadth_against_leakage(found), "Few sources: read the order, not the slope.")
    return figures


def _path(
    figure: Any, line: Sequence[Point], layer: int, place: int, where: dict[str, int], legend: bool
) -> None:
    held = [p for p in line if math.isfinite(p.cosine(layer))]
    if not held:
        return
    figure.add_scatter(
        x=numbers([p.cosine(layer) for p in held]), y=numbers([p.assistant_rate.rate for p in held]),
        mode="lines+markers", name=label(held[0].source, 30), legendgroup=held[0].source, showlegend=legend,
        line={"color": colour(place), "width": 1.2}, customdata=[p.percent for p in held],
        error_y=wilson_bars([interval(p.assistant_rate) for p in held]),
        marker={"size": [6 + p.percent / 20 for p in held], "color": colour(place),
                "symbol": ["circle" if p.percent else "circle-open" for p in held]},
        hovertemplate="%{customdata} %: (%{x:.3f}, %{y:.3f})", **where,
    )  # fmt: skip


def _columns(rows: dict[str, dict[str, float]]) -> list[str]:
    """Every persona: sources first, the assistant last."""
    others = dict.fromkeys(name for rates in rows.values() for name in rates)
    return [*rows, *(n for n in others if n not in rows and n != ASSISTANT), ASSISTANT]


def _arms(found: Trajectories, rows: Sequence[str], title: str) -> go.Figure:
    figure = grid(found, {name: ROWS[name] for name in rows})
    unspecific = (is_dashed(found, s, *each) for s in found.sources for each in found.arms(s))
    notes = [DASHED] if any(unspecific) else []
    finish_panels(figure, found, title, [*notes, *zero_note(found)], len(rows))
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure
