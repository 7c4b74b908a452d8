"""Figures of the locus study: lens curves, what writes the marker, maps of carried states, what is lost."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechinterp.figures import caption, per_layer
from mechinterp.stats.clustered import clustered_mean
from patching.grid import PatchGrid
from probes.lens_figures import caveat
from studies.marker_locus_result import UNIT, Locus, MarkerLocus

if TYPE_CHECKING:
    import plotly.graph_objects as go

BAND = "95 % over questions"
MEASURES = {
    "log_prob": ("log p of the marker's first piece", "nats"),
    "difference": ("marker minus its competitor", "logit difference"),
    "rank": ("rank of the marker's first piece", "rank (0 is the argmax), log10 of rank + 1"),
}


def lens_figure(result: MarkerLocus, locus: Locus, measure: str) -> "go.Figure":
    """Trained and base, answers with the marker at emit and without at their slot, after every layer."""
    title, unit = MEASURES[measure]
    parts, lens = [], locus.lens
    for kind, values, questions in (
        ("with the marker", lens.positives, lens.questions),
        ("without, at its slot", lens.negatives, lens.negative_questions),
    ):
        for reader, own in zip(("trained", "base"), values.get(measure, ()), strict=False):
            curve = own.double().numpy()
            curve = np.log10(curve + 1) if measure == "rank" else curve
            found = clustered_mean(curve, questions, unit=UNIT)
            table = found.curve().to_dataframe("layer", "value")
            parts.append(table.assign(line=f"{reader}, {kind}"))
    return per_layer(
        pd.concat(parts), "value", by="line", low="low", high="high", y_title=unit,
        title=f"{locus.persona}: {title}, by layer", subtitle=_said(result, locus, [caveat("logit lens")]),
    )  # fmt: skip


def writers_figure(result: MarkerLocus, locus: Locus) -> "go.Figure":
    """What attention and MLP of each layer add to marker minus competitor: the change by training."""
    change = locus.attribution.change.values
    parts = []
    for name, values in (("attention", change.attn_out), ("MLP", change.mlp_out)):
        found = clustered_mean(values.double().numpy(), locus.questions, unit=UNIT)
        parts.append(found.curve().to_dataframe("layer", "value").assign(part=name))
    return per_layer(
        pd.concat(parts), "value", by="part", low="low", high="high",
        title=f"{locus.persona}: what training adds at emit, by part",
        y_title="direct contribution, trained − base", subtitle=_said(result, locus),
    )  # fmt: skip


def swap_figure(result: MarkerLocus, locus: Locus) -> "go.Figure":
    """The two main effects and their interaction by layer."""
    figure = locus.swap.figure()
    figure.update_layout(title_text=f"{locus.persona}: attention changed by what it sees, or by how it looks")
    return figure


def lost_figure(result: MarkerLocus, locus: Locus, part: str, *, together: bool) -> "go.Figure":
    """What log p of the marker loses in the trained model without a part at emit, by donor."""
    parts = []
    for donor, label in (("zero", "zeros"), ("mean", "mean of control rows"), ("base", "the base's own")):
        grid = locus.ablations[f"{part} {donor}"]
        values = grid.effects().double().numpy()[:, :, 0]
        wanted = [tuple(range(len(one))) == one if together else len(one) == 1 for one in grid.layers]
        chosen = [i for i, this in enumerate(wanted) if this]
        found = clustered_mean(values[:, chosen], grid.clusters, unit=UNIT)
        table = found.curve().to_dataframe("layer", "value")
        parts.append(table.assign(layer=[grid.layers[i][-1] for i in chosen], donor=label))
    name = "attention output" if part == "attn_out" else "MLP output"
    which = "all layers up to this one" if together else "this layer alone"
    return per_layer(
        pd.concat(parts), "value", by="donor", low="low", high="high",
        title=f"{locus.persona}: without the {name} at emit, {which}",
        y_title="change of log p of the marker (nats)", subtitle=_said(result, locus),
    )  # fmt: skip


def knocked_figure(result: MarkerLocus, locus: Locus) -> "go.Figure":
    """Without emit's look at the system prompt, by the window's middle layer: trained, base, placebos."""
    parts = []
    for name, grid, nulls in (
        ("trained", locus.knocked_trained, locus.knocked_trained.nulls),
        ("base", locus.knocked_base, ()),
    ):
        parts.append(_windows(grid, None).assign(line=f"{name}: {grid.columns[0]}"))
        if nulls:
            parts.append(_windows(grid, nulls[0]).assign(line=f"{name}: placebo region"))
    width = min(len(part) for part in locus.knocked_trained.layers)
    return per_layer(
        pd.concat(parts), "value", by="line", low="low", high="high",
        title=f"{locus.persona}: emit may not look there, windows of {width} layers",
        y_title="change of log p of the marker (nats)",
        subtitle=_said(result, locus, ["x: a window's middle layer"]),
    )  # fmt: skip


def _windows(grid: PatchGrid, null: str | None) -> pd.DataFrame:
    """Windows of one width by their middle layer; the range of all layers is told in the text."""
    width = min(len(part) for part in grid.layers)
    chosen = [i for i, part in enumerate(grid.layers) if len(part) == width]
    values = grid.effects(null=null).double().numpy()[:, chosen, 0]
    found = clustered_mean(values, grid.clusters, unit=UNIT)
    table = found.curve().to_dataframe("layer", "value")
    return table.assign(layer=[grid.layers[i][width // 2] for i in chosen])


def _said(result: MarkerLocus, locus: Locus, more: list[str] | None = None) -> str:
    n = len(set(locus.questions))
    said = [f"{len(locus.questions)} answers", *(more or [])]
    return caption(result.model, n=n, unit=UNIT, seeds=(locus.seed,), band=BAND, more=said)


def all_figures(result: MarkerLocus) -> dict[str, tuple["go.Figure", str]]:
    """Every figure with its caption, by file name."""
    found: dict[str, tuple[go.Figure, str]] = {}
    for locus in result.loci:
        tag = f"{locus.persona}-{locus.run}-{locus.seed}"
        for measure in MEASURES:
            found[f"lens-{measure}-{tag}"] = (lens_figure(result, locus, measure), _LENS)
        found[f"writers-{tag}"] = (writers_figure(result, locus), _WRITERS)
        found[f"heads-{tag}"] = (locus.attribution.heads_figure(), _HEADS)
        found[f"into-base-{tag}"] = (locus.into_base.figure("recovered"), _CARRIED)
        found[f"into-trained-{tag}"] = (locus.into_trained.figure("recovered"), _BACK)
        found[f"emit-{tag}"] = (locus.into_base.profile("recovered"), _PROFILE)
        found[f"token-{tag}"] = (locus.token_into_base.profile("effect"), _TOKEN)
        found[f"swap-{tag}"] = (swap_figure(result, locus), _SWAP)
        for part in ("attn_out", "mlp_out"):
            found[f"without-{part}-{tag}"] = (lost_figure(result, locus, part, together=False), _LOST)
            found[f"without-{part}-up-to-{tag}"] = (
                lost_figure(result, locus, part, together=True),
                _TOGETHER,
            )
        found[f"knocked-{tag}"] = (knocked_figure(result, locus), _KNOCKED)
    return found


_LENS = "The state after each layer through the model's own final norm and unembedding, on identical ids."
_WRITERS = "Direct contributions with the final norm frozen; they sum to the change of the logit difference."
_HEADS = "The change of each head's direct contribution, mean over answers."
_CARRIED = (
    "1: the base with the trained model's states there writes the marker as the trained model does; 0: no"
    " change. Beside it the same map with random changes of the same size."
)
_BACK = "The other direction: 1 means that the base's states there take the marker away altogether."
_PROFILE = "The columns of the map as curves."
_TOKEN = "The state at the marker's first piece, scored on its second piece: what having written it brings."
_SWAP = "Each model's stream into each model's attention weights, layer by layer, on identical ids."
_LOST = "Single layers can stand in for each other: see the ranges below."
_TOGETHER = "All layers up to this one at once."
_KNOCKED = "What is left of the row's attention renormalises. Placebo: as many other positions."
