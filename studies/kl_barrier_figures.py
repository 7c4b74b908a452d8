"""The figures of the barrier study: aggregates, hinges and repetition, by arm and round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechinterp.theme import INK, caption, colour, dash, finish, numbers
from studies.finetune_barrier import AGGREGATES
from studies.kl_barrier_result import KlBarrier, over_questions

if TYPE_CHECKING:
    import plotly.graph_objects as go

BAND = "95 % Student t over questions"


def by_round(result: KlBarrier) -> go.Figure:
    """The four aggregates of KL(arm || base) on each arm's own samples, a panel each, over rounds."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2, cols=2, shared_xaxes=True, subplot_titles=AGGREGATES, vertical_spacing=0.12
    )
    table = result.to_dataframe()
    for panel, how in enumerate(AGGREGATES):
        row, column = panel // 2 + 1, panel % 2 + 1
        for place, arm in enumerate(result.arms):
            part = table[table["arm"] == arm]
            error = {
                "type": "data", "symmetric": False, "array": numbers(part[f"{how} high"] - part[how]),
                "arrayminus": numbers(part[how] - part[f"{how} low"]), "thickness": 1.2,
            }  # fmt: skip
            beside = 0.05 * (place - (len(result.arms) - 1) / 2)
            figure.add_scatter(
                x=[r + beside for r in part["round"]], y=numbers(part[how]), error_y=error, row=row,
                col=column, mode="lines+markers", name=arm, legendgroup=arm, showlegend=panel == 0,
                line={"color": colour(place), "width": 2, "dash": dash(place)},
                hovertemplate=f"{arm}, {how}: %{{y:.4g}} nats<extra></extra>",
            )  # fmt: skip
        if how in result.thresholds:
            figure.add_hline(
                y=result.thresholds[how], row=row, col=column,  # type: ignore
                line={"color": INK, "width": 1.2, "dash": "dot"},
            )  # fmt: skip
    notes = ["dotted: the threshold of the arm whose barrier is on this aggregate; scales differ by panel"]
    finish(figure, "How far each arm's samples lie from the base", _caption(result, BAND), notes,
           x_title="", y_title="")  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="KL (nats)", col=1)
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="round", row=2)
    top = figure.to_dict()["layout"]["margin"]["t"]
    figure.update_layout(height=640, margin_t=top + 24, legend_title_text="barrier")
    return figure


def firing(result: KlBarrier) -> go.Figure:
    """In how many of the completions in training batches the hinge of their arm was above zero."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, arm in enumerate(result.arms):
        if arm not in result.thresholds:
            continue
        stages = [stage for stage in result.stages if stage.arm == arm]
        figure.add_bar(
            x=[f"round {stage.round}" for stage in stages],
            y=numbers([stage.fired / stage.seen if stage.seen else float("nan") for stage in stages]),
            text=[f"{stage.fired} of {stage.seen}" for stage in stages], textposition="outside",
            name=f"{arm}, tau = {result.thresholds[arm]:g}", marker_color=colour(place),
            hovertemplate="%{x}: %{text}<extra></extra>",
        )  # fmt: skip
    notes = [
        "a completion counts once each time that it is trained on; no band, for these are not independent"
    ]
    finish(figure, "How often the hinge fires in training", _caption(result, "none"), notes,
           x_title="", y_title="share of completions")  # fmt: skip
    figure.update_yaxes(range=[0, 1.1])
    figure.update_layout(showlegend=True)
    return figure


def repetition(result: KlBarrier) -> go.Figure:
    """The share of repeated n-grams in samples, from the base on."""
    import plotly.graph_objects as go

    figure = go.Figure()
    question = result.stages[0].question
    for place, arm in enumerate(result.arms):
        stages = [stage for stage in result.stages if stage.arm == arm]
        each = [result.base_repetition, *(stage.repetition for stage in stages)]
        found = [over_questions(values, question) for values in each]
        error = {
            "type": "data", "symmetric": False, "array": numbers([i.high - i.estimate for i in found]),
            "arrayminus": numbers([i.estimate - i.low for i in found]), "thickness": 1.2,
        }  # fmt: skip
        beside = 0.05 * (place - (len(result.arms) - 1) / 2)
        figure.add_scatter(
            x=[number + beside for number in (0, *(stage.round for stage in stages))],
            y=numbers([i.estimate for i in found]), error_y=error, mode="lines+markers", name=arm,
            line={"color": colour(place), "width": 2, "dash": dash(place)},
            hovertemplate=f"{arm}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    finish(figure, "Repetition in samples", _caption(result, BAND), ["round 0 is the base in all arms"],
           x_title="round", y_title="repeated n-grams")  # fmt: skip
    figure.update_xaxes(dtick=1)
    figure.update_layout(legend_title_text="barrier", showlegend=True)
    return figure


def _caption(result: KlBarrier, band: str) -> str:
    n = len(result.stages[0].question.unique())
    each = f"{len(result.stages[0].question)} samples a round"
    return caption(result.model, n=n, unit="question", seeds=[result.seed], band=band, more=[each])
