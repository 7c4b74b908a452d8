"""The figures of leakage: the map of rates, source rate beside bystanders, breadth against leakage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mechinterp.figures import caption, heatmap
from mechinterp.theme import colour, finish, label, numbers
from studies.leakage_result import Leakage

if TYPE_CHECKING:
    import plotly.graph_objects as go


def said(result: Leakage, band: str, more: tuple[str, ...] = ()) -> str:
    """The subtitle that every figure of a leakage result carries."""
    n = sum(record.total for record in result.records)
    return caption(result.model, n=n, unit="answer", seeds=result.seeds, band=band, more=list(more))


def rate_map(result: Leakage) -> go.Figure:
    """Marker rate, source down and target across; the source's own rate is on the diagonal."""
    frame = pd.DataFrame(
        [[result.rate(s, t).estimate for t in result.targets] for s in result.sources],
        index=list(result.sources),
        columns=list(result.targets),
    )
    return heatmap(
        frame,
        subtitle=said(result, "none", (f"{result.counted} counts",)),
        title=f"Rate of {result.marker} by source and target",
        x_title="target: whose prompt",
        y_title="source: whose marker",
        colour_title="rate",
    )


def quality(result: Leakage) -> go.Figure:
    """Each adapter's own rate beside the assistant's, the highest bystander's and the bystanders' mean."""
    import plotly.graph_objects as go

    figure, table = go.Figure(), result.standings()
    shown = {
        "source_rate": "source", "assistant_rate": "assistant", "max_bystander": "highest bystander",
        "breadth": "mean bystander",
    }  # fmt: skip
    for place, (column, name) in enumerate(shown.items()):
        figure.add_bar(
            x=[f"{label(s, 24)}<br>{kind}" for s, kind in zip(table["source"], table["label"], strict=True)],
            y=numbers(table[column]),
            name=name,
            marker_color=colour(place),
        )
    finish(
        figure,
        "Adapters: the source's own rate and everyone else's",
        said(result, "none"),
        ["an adapter that is not specific says little about proximity"],
        x_title="source and label",
        y_title=f"rate of {result.marker}",
    )
    figure.update_yaxes(range=[0, 1])
    return figure


def targets_with_intervals(result: Leakage, source: str) -> go.Figure:
    """One source's rate under every target, with Wilson's interval."""
    import plotly.graph_objects as go

    found = [result.rate(source, t) for t in result.targets]
    estimates = [one.estimate for one in found]
    figure = go.Figure()
    figure.add_bar(
        x=[label(t, 24) for t in result.targets],
        y=numbers(estimates),
        marker_color=[colour(1) if t == source else colour(0) for t in result.targets],
        error_y={
            "array": numbers([one.high - one.estimate for one in found]),
            "arrayminus": numbers([one.estimate - one.low for one in found]),
        },
    )
    finish(
        figure,
        f"Marker of {source} under every prompt",
        said(result, "Wilson 95 % over answers"),
        ["answers to one question are not independent; intervals over answers are too narrow"],
        x_title="target: whose prompt",
        y_title=f"rate of {result.marker}",
    )
    figure.update_yaxes(range=[0, 1])
    return figure


def all_figures(result: Leakage) -> dict[str, tuple[go.Figure, str]]:
    """By file name, each with what it shows."""
    found = {
        "rates": (rate_map(result), "How often each source's marker comes out under each target's prompt."),
        "quality": (quality(result), "What each adapter is: specific, narrow, inverted, global or weak."),
    }
    for source in result.sources:
        found[f"targets_{source}"] = (
            targets_with_intervals(result, source),
            f"The marker of {source} under every prompt; its own in the other colour.",
        )
    return found
