"""How often the marker was written: found of total with Wilson's interval, and what the cap cut."""

from typing import TYPE_CHECKING

import pandas as pd

from mechinterp.figures import caption
from mechinterp.stats.intervals import wilson
from mechinterp.theme import colour, finish, numbers
from studies.zlt_attention_maps import named
from studies.zlt_attention_result import ZltAttention

if TYPE_CHECKING:
    import plotly.graph_objects as go


def rates(result: ZltAttention) -> "go.Figure":
    """How many trials of each text set wrote the marker, and how many ran into the cap."""
    import plotly.graph_objects as go

    table = rate_table(result)
    figure = go.Figure()
    for place, (what, symbol) in enumerate((("marker", "circle"), ("cut at the cap", "diamond-open"))):
        part = table[table["what"] == what]
        figure.add_scatter(
            x=numbers(part["rate"]), y=list(part["text set"]), mode="markers+text", name=what,
            text=[f"{f}/{n}" for f, n in zip(part["found"], part["total"], strict=True)],
            textposition="top center" if place == 0 else "bottom center", textfont_size=12,
            marker={"size": 10, "symbol": symbol, "color": colour(place), "line": {"width": 2}},
            error_x={"type": "data", "symmetric": False, "array": numbers(part["high"] - part["rate"]),
                     "arrayminus": numbers(part["rate"] - part["low"]), "color": colour(place)},
            hovertemplate="%{y}: %{text} = %{x:.3f}<extra></extra>",
        )  # fmt: skip
    notes = ["Wilson's interval takes trials for independent; trials of one question are not quite"]
    unknown = [
        name for name in table["text set"] if name not in set(table[table["what"] != "marker"]["text set"])
    ]
    if unknown:
        notes.append(f"how many were cut is not known of {', '.join(unknown)}")
    total = sum(c.trials for reading in result.readings for c in reading.examples.counts)
    seeds = sorted({reading.seed for reading in result.readings})
    subtitle = caption(
        result.model, n=total, unit="trial", seeds=seeds, band="95 % Wilson", more=[f"marker {result.marker}"]
    )
    title = "Trials that wrote the marker, by their trained model"
    finish(figure, title, subtitle, notes, x_title="share of trials", y_title="text set")
    n = len(result.readings)
    figure.update_xaxes(range=[-0.02, 1.04])
    figure.update_yaxes(range=[n - 0.4, -0.6])
    figure.update_layout(height=220 + 64 * n + 17 * len(notes))
    return figure


def rate_table(result: ZltAttention) -> pd.DataFrame:
    """Found of total with Wilson's interval: markers, and where it is known what the cap cut."""
    lines = []
    for reading in result.readings:
        counted = reading.examples.counts
        total, cut = sum(c.trials for c in counted), [c.cut for c in counted]
        held = {"marker": sum(c.positives for c in counted)}
        if None not in cut:
            held["cut at the cap"] = sum(c or 0 for c in cut)
        for what, found in held.items():
            rate = wilson(found, total, unit="trial")
            line = {"text set": named(result, reading), "what": what, "found": found, "total": total}
            lines.append({**line, "rate": rate.estimate, "low": rate.low, "high": rate.high})
    return pd.DataFrame(lines)
