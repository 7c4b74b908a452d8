"""The figures of the divergence audit, drawn from the analyses that its findings come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probes.outputs import SELECTIONS
from studies.audit_divergence_analysis import Analysed, own_set, selection_name
from studies.predictors_figures import cosine_map, hero, predictor_scatter, redundancy_scatter, rho_bars

if TYPE_CHECKING:
    import plotly.graph_objects as go

WHISKERS = "Whiskers: the pooled rho without each source. Diamonds: mean rho within sources."


def all_figures(found: Analysed) -> dict[str, tuple[go.Figure, str]]:
    """Every figure that the records allow, with what it shows."""
    drawn: dict[str, tuple[go.Figure, str]] = {}
    for name, one in (("own", found.own), ("wide", found.wide)):
        if one is not None:
            drawn[f"predictors-{name}-centring"] = (
                hero(one), f"The same pairs, JS beside the {one.second}; colours are sources."
            )  # fmt: skip
    if any(found.by_layer.values()):
        groups = {
            centring: {str(n): each for n, each in held.items()}
            for centring, held in found.by_layer.items()
            if held
        }
        drawn["cosine-by-layer"] = (
            rho_bars(groups, title="Cosine as predictor of leakage, by layer and centring set",
                     x_title="layer", model=found.records.model, stored=_stored(found)),
            f"{WHISKERS} Hollow: the file's own figure, of a cosine that is not public.",
        )  # fmt: skip
    if found.main is not None:
        held = {s: found.main.spearman[selection_name(s)] for s in SELECTIONS
                if selection_name(s) in found.main.spearman}  # fmt: skip
        drawn["js-by-selection"] = (
            rho_bars({"JS": held}, title="JS as predictor of leakage, by whose responses count",
                     x_title="responses", model=found.records.model),
            WHISKERS,
        )  # fmt: skip
    return drawn | _matrices(found)


def _stored(found: Analysed) -> dict[str, dict[str, float]]:
    """rho of the layers whose own-centred cosine is in no file."""
    known = found.records.analysis and found.records.analysis.leakage_comparison
    if known is None:
        return {}
    layers = {int(name.removeprefix("layer_")): each for name, each in known.cosine_matched.items()}
    centring = own_set(found.records)
    held = found.by_layer[centring]
    return {centring: {str(n): each.spearman_rho for n, each in sorted(layers.items()) if n not in held}}


def _matrices(found: Analysed) -> dict[str, tuple[go.Figure, str]]:
    drawn: dict[str, tuple[go.Figure, str]] = {}
    if found.discrimination is not None:
        drawn["js-matrix"] = found.discrimination.figure(), "Mean over all responses, as published."
    if found.redundancy is not None:
        layer = found.redundancy.strongest
        drawn["cosine-matrix"] = cosine_map(found.redundancy, layer), "Centred on these personas."
        drawn["js-against-cosine"] = (
            redundancy_scatter(found.redundancy, layer), "A point is a pair of personas; pairs share members."
        )  # fmt: skip
    if found.asymmetry is not None:
        drawn["kl-asymmetry"] = (
            found.asymmetry.figure(),
            "Red: KL(row‖column) is the larger of the two.",
        )
    if found.per_question is not None:
        drawn["questions"] = (
            found.per_question.figure(),
            "Std by mean over the responses and pairs of each question.",
        )
    if found.wide is not None:
        drawn["leakage-against-wide-cosine"] = (
            predictor_scatter(found.wide, found.wide.second), "Lines are least squares within each source."
        )  # fmt: skip
    return drawn
