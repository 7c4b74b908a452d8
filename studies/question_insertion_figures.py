"""The figures of question insertion: by turn, by depth, the means' geometry, and the steered arms."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.curves import lines
from mechinterp.figures import caption, heatmap, per_layer
from mechinterp.stats.intervals import mean_interval
from mechinterp.theme import finish
from studies.question_insertion_result import ARMS, QuestionInsertion, Shift

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = {
    "unsteered": "unsteered",
    "random": "random direction",
    "raw": "raw top direction",
    "centred": "centred top direction",
    "role": "role's own vector",
    "told": "told the role (not steered)",
}
SPECTRUM = 3  # singular values a curve: the rest lies near zero
DEPTHS = 6  # insertion points a figure by depth: more lines are not told apart


def by_turn(result: QuestionInsertion, shift: Shift, layer: int) -> "go.Figure":
    """Projection on the role's vector by turns played before the question, for the role and the control."""
    parts = []
    for who, shown in (("role", result.names[shift.role]), ("control", result.names["control"])):
        found = shift.projections[who][:, :, shift.at(layer)]
        parts.append(_intervals(found, range(shift.n_turns + 1), "turns").assign(played=shown))
    figure, notes = lines(pd.concat(parts), "turns", "value", "played", "low", "high")
    subtitle = _caption(result, [f"layer {layer}", "turns 0 is the question without a conversation"])
    title = f"{result.names[shift.role]}: projection on its vector by turns played"
    finish(
        figure,
        title,
        subtitle,
        notes,
        x_title="turns played before the question",
        y_title="x·v/|v| at resid_post",
    )
    figure.update_xaxes(dtick=1)
    return figure


def by_depth(result: QuestionInsertion, shift: Shift) -> "go.Figure":
    """Projection on the role's vector by layer, in norms of the state, a line an insertion point."""
    share = shift.projections["role"] / shift.norms["role"]
    chosen = sorted(
        {
            round(p * shift.n_turns / min(DEPTHS - 1, shift.n_turns))
            for p in range(min(DEPTHS, shift.n_turns + 1))
        }
    )
    parts = [_intervals(share[:, p], shift.vector_layers, "layer").assign(point=_point(p)) for p in chosen]
    return per_layer(
        pd.concat(parts),
        "value",
        by="point",
        low="low",
        high="high",
        title=f"{result.names[shift.role]}: projection on its vector by depth",
        y_title="x·v/(|v||x|) at resid_post",
        subtitle=_caption(result, []),
    )


def cosines(result: QuestionInsertion, shift: Shift, layer: int) -> "go.Figure":
    """Cosines between the mean states of all insertion points at a layer."""
    points = [_point(p) for p in range(shift.n_turns + 1)]
    return heatmap(
        pd.DataFrame(shift.cosines[layer].tolist(), index=points, columns=points),
        title=f"{result.names[shift.role]}: how alike the states of the insertion points are",
        x_title="question put in",
        y_title="question put in",
        colour_title="cosine of mean states",
        subtitle=_caption(result, [f"layer {layer}", "not centred"], band="none, means over questions"),
    )


def similarity_by_depth(result: QuestionInsertion, shift: Shift) -> "go.Figure":
    """Cosine of each insertion point's mean with that without a conversation, by layer."""
    table = [
        {"layer": layer, "cosine": float(matrix[p, 0]), "point": _point(p)}
        for p in range(1, shift.n_turns + 1)
        for layer, matrix in enumerate(shift.cosines)
    ]
    return per_layer(
        pd.DataFrame(table),
        "cosine",
        by="point",
        title=f"{result.names[shift.role]}: similarity to the question alone, by depth",
        y_title="cosine with the mean state of 0 turns",
        subtitle=_caption(result, [], band="none, means over questions"),
    )


def spectrum(result: QuestionInsertion, shift: Shift) -> "go.Figure":
    """Shares of the squared singular values of the means after turns 1 to k, raw and centred, by layer."""
    table = []
    for how, values in shift.spectra.items():
        shares = values.square() / values.square().sum(-1, keepdim=True)
        for rank in range(min(SPECTRUM, shares.shape[1])):
            table += [
                {"layer": layer, "share": float(row[rank]), "value": f"{how}, σ{rank + 1}"}
                for layer, row in enumerate(shares)
            ]
    even = 1 / (shift.n_turns - 1)
    return per_layer(
        pd.DataFrame(table),
        "share",
        by="value",
        title=f"{result.names[shift.role]}: singular spectrum of the insertion points",
        y_title="share of the squared spectrum",
        subtitle=_caption(
            result, [f"{shift.n_turns} points", f"an even centred spectrum has {even:.2f} each"], band="none"
        ),
    )


def alignment(result: QuestionInsertion) -> "go.Figure":
    """Cosine of each role's top directions with its vector, by layer."""
    table = [
        {"layer": layer, "cosine": float(values[k]), "direction": f"{result.names[shift.role]}, {how}"}
        for shift in result.shifts
        for how, values in shift.alignment.items()
        for k, layer in enumerate(shift.vector_layers)
    ]
    return per_layer(
        pd.DataFrame(table),
        "cosine",
        by="direction",
        title="Is the top direction the role's vector?",
        y_title="cosine of top direction and role's vector",
        subtitle=_caption(result, ["centred: signed towards later turns"], band="none"),
    )


def arms(result: QuestionInsertion, role: str, measure: str, question: int) -> "go.Figure":
    """Role-likeness of the texts of every arm, at the steered layers."""
    outcomes = [o for o in result.outcomes if o.role == role and o.question == question]
    table = []
    for arm in ARMS:
        for outcome in outcomes:
            found = outcome.interval(measure, arm)
            table.append(
                {
                    "layer": outcome.layer,
                    "value": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "arm": SHOWN[arm],
                }
            )
    y = {
        "projection": "x·v/|v| before the edit",
        "log_ratio": "log p ratio, role over default, nats a token",
    }
    name = {
        "projection": "projection of its texts on its vector",
        "log_ratio": "texts under its prompt against the default one",
    }
    seeds = sorted(set(outcomes[0].seeds))
    norms = f"{outcomes[0].norm_in_residuals:.2g} residual norms"
    return per_layer(
        pd.DataFrame(table),
        "value",
        by="arm",
        low="low",
        high="high",
        y_title=y[measure],
        title=f"{result.names[role]}: {name[measure]}",
        subtitle=caption(
            result.model, n=len(seeds), unit="run", seeds=seeds, band="95 % bootstrap over runs", more=[norms]
        ),
    )


def all_figures(result: QuestionInsertion) -> "dict[str, tuple[go.Figure, str]]":
    """Every figure of the report, with what it shows."""
    found: dict[str, tuple[go.Figure, str]] = {}
    for shift in result.shifts:
        for layer in result.layers:
            found[_file(f"turns-{shift.role}-l{layer}")] = (
                by_turn(result, shift, layer),
                _turned(shift, layer),
            )
            said = "States of one chat share a large part: cosines are near 1, and what differs is small."
            found[_file(f"cosines-{shift.role}-l{layer}")] = (cosines(result, shift, layer), said)
        found[_file(f"depth-{shift.role}")] = (
            by_depth(result, shift),
            "Bands of the lines show the spread over questions.",
        )
        found[_file(f"similarity-{shift.role}")] = (
            similarity_by_depth(result, shift),
            "1 is the state of the question alone.",
        )
        said = "Raw, σ1 is near 1 for states with a common mean; centred, it is what one direction explains."
        found[_file(f"spectrum-{shift.role}")] = (spectrum(result, shift), said)
    found["alignment"] = (
        alignment(result),
        "0 is a direction that has nothing to do with the role's vector.",
    )
    for role in result.roles:
        for question in sorted({o.question for o in result.outcomes}):
            for measure in ("projection", "log_ratio"):
                found[_file(f"arms-{role}-{measure}-q{question}")] = (
                    arms(result, role, measure, question),
                    _ARMS[measure],
                )
    return found


_ARMS = {
    "projection": "Read before the edit of each pass, so that what is added is not counted; the told arm has"
    " the role in its prompt.",
    "log_ratio": "Of the same ids under both prompts: above 0 the text is likelier from a model that is told"
    " the role.",
}


def _turned(shift: Shift, layer: int) -> str:
    own, beside = (float(shift.change(layer, who).mean()) for who in ("role", "control"))
    return f"From no turns to {shift.n_turns}: {own:+.3g} in the role, {beside:+.3g} in the control."


def _point(p: int) -> str:
    return f"after {p} turn{'' if p == 1 else 's'}" if p else "no turns"


def _intervals(values: Float[Tensor, "question place"], places: Iterable[int], name: str) -> pd.DataFrame:
    """Mean and bootstrap bounds over questions at every place."""
    table = []
    for k, place in enumerate(places):
        found = mean_interval(torch.as_tensor(values[:, k]), method="bootstrap", unit="question")
        table.append({name: place, "value": found.estimate, "low": found.low, "high": found.high})
    return pd.DataFrame(table)


def _caption(
    result: QuestionInsertion, more: list[str], *, band: str = "95 % bootstrap over questions"
) -> str:
    return caption(
        result.model, n=len(result.questions), unit="question", seeds=[result.seed], band=band, more=more
    )


def _file(name: str) -> str:
    """A name that a figure's file can have."""
    return re.sub("[^a-z0-9_-]", "_", name.lower())[:100]
