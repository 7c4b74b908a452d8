"""Every figure of the divergence study (methods 14, JS)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from studies.leakage_figures import quality, rate_map
from studies.output_divergence_result import COSINE, JS, OutputStudy
from studies.predictors_figures import (
    cosine_map,
    divergence_map,
    predictor_scatter,
    redundancy_scatter,
    rho_bars,
    variation_bars,
)
from studies.predictors_matrices import Redundancy

if TYPE_CHECKING:
    import plotly.graph_objects as go


def nearest_layer(found: Redundancy) -> int | None:
    """The layer whose cosine has the largest |rho| with JS; None where no layer has one."""
    rhos = {layer: abs(rho.estimate) for layer, rho in found.spearman.items()}
    defined = [layer for layer, rho in rhos.items() if math.isfinite(rho)]
    return max(defined, key=lambda layer: rhos[layer], default=None)


def all_figures(result: OutputStudy) -> dict[str, tuple[go.Figure, str]]:
    """By file name, each with what it shows."""
    first, seeds = result.sets[0], result.leakage.seeds
    found = {
        "js_matrix": (
            divergence_map(result.discrimination),
            "How far the outputs of two personas lie apart, on average over everyone's answers.",
        ),
        "predictors": (
            result.comparisons[first].figure(),
            f"JS and the cosine of layer {result.layer}, centred on {first}, against leakage: one point a"
            " directed pair; lines are fits within a source.",
        ),
        "js_leakage": (predictor_scatter(result.comparisons[first], JS), "JS against leakage, by source."),
    }
    for name in result.sets:
        key = name.replace(" ", "_")
        found[f"cosine_{key}"] = (
            cosine_map(result.redundancy[name], result.layer),
            f"Cosines of layer {result.layer} about the mean of {name} personas.",
        )
        found[f"cosine_leakage_{key}"] = (
            predictor_scatter(result.comparisons[name], COSINE),
            f"Cosine of layer {result.layer}, centred on {name}, against leakage.",
        )
        found[f"js_cosine_{key}"] = (
            redundancy_scatter(result.redundancy[name], result.layer),
            f"JS against the cosine centred on {name}: do they say the same?",
        )
        best = nearest_layer(result.redundancy[name])
        if best not in (None, result.layer):
            found[f"js_cosine_best_{key}"] = (
                redundancy_scatter(result.redundancy[name], best),
                f"The same at layer {best}, whose cosine ranks pairs most as JS does: chosen for that.",
            )
    found["rho_by_layer"] = (
        rho_bars(
            {f"centred on {name}": held for name, held in result.by_layer.items()},
            title="Cosine as a predictor of leakage, by layer and centring set",
            x_title="layer",
            model=result.model,
            seeds=seeds,
        ),
        "The reference set is part of the definition of a cosine: the same pairs under each.",
    )
    found["rho_by_selection"] = (
        rho_bars(
            {JS: result.by_selection},
            title="JS as a predictor of leakage, by whose responses count",
            x_title="responses",
            model=result.model,
            seeds=seeds,
        ),
        "All answers, those of both members of a pair, of the source, of the target.",
    )
    found["kl_asymmetry"] = (result.asymmetry.figure(), "Which way KL is larger, for every pair.")
    found["questions"] = (variation_bars(result.per_question), "How much the pairs differ on each question.")
    found["specificity"] = (
        result.specificity.figure(),
        "Does an adapter that keeps to its source leak less to the assistant?",
    )
    found["rates"] = (rate_map(result.leakage), "The leakage that is to be predicted, by direction.")
    found["quality"] = (quality(result.leakage), "What each adapter is.")
    return found
