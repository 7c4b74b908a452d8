"""The figures of the aggregation study: both students by position, and the ratio of each aggregate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechinterp.theme import GREY, caption, colour, finish, label, numbers
from studies.kl_aggregation_result import AGGREGATES, CASES, KlAggregation

if TYPE_CHECKING:
    import plotly.graph_objects as go


def by_position(result: KlAggregation) -> go.Figure:
    """The divergence at every position of the first draw, a panel a case, with the four aggregates."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=[label(c) for c in CASES]
    )
    n = result.divergences.shape[-1]
    for place, case in enumerate(CASES):
        figure.add_scatter(
            x=list(range(n)), y=numbers(result.divergences[0, place].tolist()), row=place + 1, col=1,
            mode="lines+markers", line={"color": GREY, "width": 1.5}, marker={"size": 5}, name="divergence",
            showlegend=place == 0, hovertemplate=f"{case}, position %{{x}}: %{{y:.4g}} nats<extra></extra>",
        )  # fmt: skip
        for line, how in enumerate(AGGREGATES):
            value = result.value(place, how)
            figure.add_scatter(
                x=[0, n - 1], y=[value] * 2, row=place + 1, col=1, mode="lines", name=how, legendgroup=how,
                showlegend=place == 0, line={"color": colour(line), "width": 2, "dash": "dash"},
                hovertemplate=f"{how}: {value:.4g} nats<extra></extra>",
            )  # fmt: skip
    said = caption("synthetic distributions", n=n, unit="position", seeds=[result.seed], band="none")
    notes = ["the two panels have scales of their own"]
    finish(figure, "A trait at every position, a loop at a few", said, notes, x_title="", y_title="KL (nats)")
    figure.update_xaxes(title_text="position", row=2, col=1)
    figure.update_yaxes(rangemode="tozero")
    top = figure.to_dict()["layout"]["margin"]["t"]
    figure.update_layout(height=620, margin_t=top + 24)
    return figure


def by_ratio(result: KlAggregation) -> go.Figure:
    """How many times larger each aggregate is on the loop than on the trait."""
    import plotly.graph_objects as go

    ratios = [result.ratios(how) for how in AGGREGATES]
    first = [float(r[0]) for r in ratios]
    error = {
        "type": "data", "symmetric": False,
        "array": numbers([float(r.max() - r[0]) for r in ratios]),
        "arrayminus": numbers([float(r[0] - r.min()) for r in ratios]),
    }  # fmt: skip
    figure = go.Figure(
        go.Bar(
            x=list(AGGREGATES), y=first, error_y=error, marker_color=[colour(i) for i in range(4)],
            text=[f"{value:.1f}" for value in first], textposition="inside", insidetextanchor="start",
            hovertemplate="%{x}: %{y:.1f}<extra></extra>",
        )
    )  # fmt: skip
    n = len(ratios[0])
    band = "lowest and highest over draws"
    said = caption("synthetic distributions", n=n, unit="draw", seeds=range(result.seed, result.seed + n),
                   band=band)  # fmt: skip
    finish(figure, "Incoherent loop over coherent trait", said, [f"bars are the draw of seed {result.seed}"],
           x_title="aggregate over positions", y_title="ratio")  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return figure
