"""The figures of the persistence study: curves with floor and ceiling, attractors, dose and response."""

import re
from typing import TYPE_CHECKING

import pandas as pd

from mechinterp.figures import Band, caption, dose_response, heatmap, per_token
from mechinterp.stats.intervals import curve_interval
from studies.persistence_result import Outcome, Persistence, over_runs

if TYPE_CHECKING:
    import plotly.graph_objects as go

COHERENT = 1.0  # nats at p95: methods.md 11 takes one nat as where a text stops being the model's own
ARMS = {"steered": "steered", "random": "random direction", "other": "another role's vector"}


def curves(result: Persistence, outcome: Outcome) -> "go.Figure":
    """Mean projection on the role's vector by token, for each steered arm, with floor and ceiling bands."""
    parts = [
        curve_interval(outcome.curves[arm]).to_dataframe("token", "projection").assign(arm=shown)
        for arm, shown in ARMS.items()
        if arm in outcome.curves
    ]
    bands = []
    for arm, shown in (("floor", "floor (unsteered)"), ("ceiling", "ceiling (told the role)")):
        found = over_runs(outcome.free_means(arm), "t")
        bands.append(Band(shown, found.estimate, found.low, found.high))
    c = outcome.condition
    return per_token(
        pd.concat(parts),
        "projection",
        by="arm",
        low="low",
        high="high",
        boundaries=[(0, "steered"), (result.n_steer, f"free, {c.cache} cache")],
        bands=bands,
        smooth=5,
        title=f"{result.names[c.role]}: projection on its vector by generated token",
        y_title=f"x·v/|v| at {result.site} of layer {c.layer}",
        subtitle=caption(
            result.model,
            n=len(outcome.seeds),
            unit="run",
            seeds=outcome.seeds,
            band="95 % t over runs",
            more=[f"strength {outcome.strength_in_norms:.2g} residual norms"],
        ),
    )


def attractors(result: Persistence, layer: int, strength: float, cache: str) -> "go.Figure":
    """Where free text drifts to: the role steered (rows) by the role projected on (columns)."""
    values = result.attractors(layer, strength, cache)
    shown = [result.names[role] for role in result.roles]
    return heatmap(
        pd.DataFrame(values.tolist(), index=shown, columns=shown),
        title="Which roles attract the free text",
        x_title="projected on",
        y_title="steered towards",
        colour_title="free mean, (x − floor) / (ceiling − floor)",
        center=0.0,
        subtitle=caption(
            result.model,
            n=len(result.seeds),
            unit="run",
            seeds=result.seeds,
            band="none, means over runs",
            more=[f"layer {layer}, strength {strength:g}, {cache} cache"],
        ),
    )


def doses(result: Persistence) -> "go.Figure":
    """Normalised persistence and p95 KL by strength; the frontier is where text stops being coherent."""
    lines = []
    for outcome in result.outcomes:
        c, kl = outcome.condition, outcome.coherence.get("steered", {}).get("p95")
        found = outcome.interval("steered")
        lines.append(
            {
                "strength": outcome.strength_in_norms,
                "effect": found.estimate,
                "effect_low": found.low,
                "effect_high": found.high,
                "kl": float("nan") if kl is None else float(kl.nanmean()),
                "role": f"{result.names[c.role]}, layer {c.layer}, {c.cache} cache",
            }
        )
    return dose_response(
        pd.DataFrame(lines),
        frontier=COHERENT,
        by="role",
        title="Persistence and coherence by strength",
        effect_title="normalised persistence",
        x_title="strength (residual norms)",
        subtitle=caption(
            result.model, n=len(result.seeds), unit="run", seeds=result.seeds, band="95 % bootstrap over runs"
        ),
    )


def all_figures(result: Persistence) -> "dict[str, tuple[go.Figure, str]]":
    """Every figure of the report, with what it shows."""
    found: dict[str, tuple[go.Figure, str]] = {}
    for outcome in result.outcomes:
        c = outcome.condition
        found[_file(f"curves-{c.role}-l{c.layer}-{c.strength:g}-{c.cache}-q{c.question}")] = (
            curves(result, outcome),
            _said(result, outcome),
        )
    settings = dict.fromkeys(
        (o.condition.layer, o.condition.strength, o.condition.cache) for o in result.outcomes
    )
    if len(result.roles) > 1:
        for layer, strength, cache in settings:
            figure = attractors(result, layer, strength, cache)
            found[_file(f"attractors-l{layer}-{strength:g}-{cache}")] = (
                figure,
                "1 is what being told the role does, 0 is unsteered.",
            )
    if len({o.condition.strength for o in result.outcomes}) > 1 and any(o.coherence for o in result.outcomes):
        found["doses"] = (doses(result), "Stronger steering persists only if the text stays the model's own.")
    for outcome in result.outcomes:
        c, calibration = outcome.condition, outcome.calibration
        if calibration is not None:
            found[_file(f"calibration-{c.role}-l{c.layer}-{c.strength:g}")] = (
                calibration.figure(),
                f"The {len(calibration.tried)} coefficients tried on the way to {calibration.asked:g} nats.",
            )
    if result.vectors is not None:
        found["vector-norms"] = (
            result.vectors.figure(),
            "How large each role's vector is beside the stream it is added to.",
        )
        found["vector-split-half"] = (
            result.vectors.figure("split_half"),
            "Cosine between vectors from two halves of the questions: 1 does not depend on the questions.",
        )
    return found


def _file(name: str) -> str:
    """A name that a figure's file can have."""
    return re.sub("[^a-z0-9_-]", "_", name.lower())[:100]


def _said(result: Persistence, outcome: Outcome) -> str:
    half = outcome.half_life
    life = (
        f"Half-life {half.estimate:.3g} tokens [{half.low:.3g}, {half.high:.3g}]."
        if half.identified
        else f"No half-life: {half.reason}."
    )
    found = outcome.interval("steered")
    if not found.n:
        return f"Normalised persistence is undefined: the ceiling is not above the floor. {life}"
    bounds = f"[{found.low:.2f}, {found.high:.2f}]"
    return f"Normalised persistence {found.estimate:.2f} {bounds} over {found.n} runs. {life}"
