"""Figures of steering towards a source: leakage, source rate and damage by dose; cosines over layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mechinterp.figures import caption, per_layer
from mechinterp.theme import colour, finish, numbers
from studies.steering_proximity_cells import SOURCE
from studies.steering_proximity_result import Steered, SteeringProximity

if TYPE_CHECKING:
    import plotly.graph_objects as go


def _said(result: SteeringProximity, one: Steered, band: str) -> str:
    n = one.rate(SOURCE, 0.0, "assistant").n
    more = [f"source {one.source}, layer {one.line.layer}"]
    return caption(result.model, n=n, unit="answer", seeds=result.seeds, band=band, more=more)


def response(result: SteeringProximity, one: Steered) -> go.Figure:
    """Leakage to the assistant against the re-extracted cosine's dose, each direction a line."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, direction in enumerate(one.directions):
        found = [one.rate(direction, dose, "assistant") for dose in one.line.doses]
        figure.add_scatter(
            x=list(one.line.strengths),
            y=numbers([rate.estimate for rate in found]),
            name=direction,
            mode="lines+markers",
            line={"color": colour(place)},
            error_y={
                "array": numbers([rate.high - rate.estimate for rate in found]),
                "arrayminus": numbers([rate.estimate - rate.low for rate in found]),
                "thickness": 1,
            },
        )
    finish(
        figure,
        f"Marker of {one.source} under the assistant's prompt, by what is added",
        _said(result, one, "Wilson 95 % over answers"),
        ["answers to one question are not independent"],
        x_title="strength along the direction",
        y_title=f"rate of {result.marker}",
    )
    figure.update_yaxes(range=[0, 1])
    return figure


def roles(result: SteeringProximity, one: Steered) -> go.Figure:
    """Rates of assistant, source and bystanders along the line to the source."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, role in enumerate(("source", "assistant", "bystander")):
        found = [one.rate(SOURCE, dose, role).estimate for dose in one.line.doses]
        figure.add_scatter(
            x=list(one.line.strengths), y=numbers(found), name=role, mode="lines+markers",
            line={"color": colour(place)},
        )  # fmt: skip
    finish(
        figure,
        f"Who writes the marker of {one.source} when steered towards it",
        _said(result, one, "none"),
        [],
        x_title="strength along the line to the source",
        y_title=f"rate of {result.marker}",
    )
    figure.update_yaxes(range=[0, 1])
    return figure


def damage(result: SteeringProximity, one: Steered) -> go.Figure:
    """KL of the steered model against the unsteered one on the same ids, by direction."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, direction in enumerate(one.directions):
        found = [one.at(direction, dose).damage["p95"] for dose in one.line.doses]
        figure.add_scatter(
            x=list(one.line.strengths), y=numbers(found), name=direction, mode="lines+markers",
            line={"color": colour(place)},
        )  # fmt: skip
    finish(
        figure,
        "Damage: 95th percentile over tokens of KL(steered || unsteered)",
        _said(result, one, "none, means over answers"),
        [],
        x_title="strength along the direction",
        y_title="KL, nats",
    )
    return figure


def cosines(result: SteeringProximity, one: Steered) -> go.Figure:
    """The centred cosine of source and assistant at every layer, re-extracted under each dose."""
    frame = pd.DataFrame(
        {"layer": layer, "cosine": float(value), "dose": f"{dose:g}"}
        for dose in one.line.doses
        for layer, value in enumerate(one.at(SOURCE, dose).cosine)
    )
    return per_layer(
        frame,
        "cosine",
        by="dose",
        subtitle=_said(result, one, "none"),
        title=f"Cosine of assistant and {one.source} under steering towards it",
        y_title="centred cosine",
    )


def all_figures(result: SteeringProximity) -> dict[str, tuple[go.Figure, str]]:
    """By file name, each with what it shows."""
    found = {}
    for one in result.sources:
        end = f"{one.source}_{one.run}"
        found[f"response_{end}"] = (response(result, one), "Leakage by dose beside vectors of equal norm.")
        found[f"roles_{end}"] = (roles(result, one), "The source's own rate must not fall.")
        found[f"damage_{end}"] = (damage(result, one), "How far steering moves every token.")
        found[f"cosines_{end}"] = (cosines(result, one), "Later layers answer to what is added.")
    return found
