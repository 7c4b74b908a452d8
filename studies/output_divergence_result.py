"""What the divergence study finds: matrices, and how well they and the cosines predict leakage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mechinterp.results import Result
from mechinterp.stats.association import spearman
from mechinterp.stats.sources import SourceAssociation, by_source
from probes.centering import Centroids, OnSet, centered_cosine
from probes.outputs import SELECTIONS, OutputDivergence
from studies.leakage_result import Leakage
from studies.predictors import Comparison, Pairs, compare, directed_pairs
from studies.predictors_asymmetry import Asymmetry, asymmetry
from studies.predictors_matrices import (
    Discrimination,
    PerQuestion,
    Redundancy,
    discrimination,
    per_question,
    redundancy,
)
from studies.specificity import Specificity, specificity

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Matrix = np.ndarray
JS, KL_THERE, KL_BACK = "JS", "KL(source || target)", "KL(target || source)"
COSINE = "cosine"


@dataclass(frozen=True, eq=False)
class OutputStudy(Result):
    """Divergence and centred cosine as predictors of leakage, over the same directed pairs.

    `layer` is the layer whose cosine stands against JS; it was set before, not chosen by its result.
    `answers` are all texts, {persona: {question: (text, ...)}}; `texts` those that the page shows.
    `cosines` holds [layer persona persona] under each centring set, `by_layer` each layer's association with
    leakage.
    """

    model: str
    marker: str
    layer: int
    layers: tuple[int, ...]
    divergence: OutputDivergence
    leakage: Leakage
    cosines: dict[str, np.ndarray]
    discrimination: Discrimination
    redundancy: dict[str, Redundancy]
    comparisons: dict[str, Comparison]
    by_layer: dict[str, dict[str, SourceAssociation]]
    by_selection: dict[str, SourceAssociation]
    by_seed: dict[str, dict[str, float]]
    asymmetry: Asymmetry
    per_question: PerQuestion
    specificity: Specificity
    texts: tuple[dict[str, Any], ...]
    answers: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def sets(self) -> tuple[str, ...]:
        """The centring sets."""
        return tuple(self.cosines)

    def to_dataframe(self) -> pd.DataFrame:
        """Every figure of every comparison: centring set, predictor, figure, estimate, p, n, unit, note."""
        import pandas as pd

        return pd.concat(
            [found.to_dataframe().assign(centring=name) for name, found in self.comparisons.items()],
            ignore_index=True,
        )

    def headline(self) -> str:
        from studies.output_divergence_page import answer

        return answer(self)

    def figure(self) -> go.Figure:
        """JS and cosine against leakage, side by side."""
        return self.comparisons[self.sets[0]].figure()


def conclude(
    model: str,
    divergence: OutputDivergence,
    leakage: Leakage,
    centred: Centroids,
    *,
    n_nearest: int,
    seed: int,
    texts: tuple[dict[str, Any], ...],
    answers: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
) -> OutputStudy:
    """All analyses of methods 5.5 and 6 from one run's matrices and records."""
    names, js = divergence.personas, divergence.matrix().numpy()
    cosines = _cosines(centred, names)
    at = len(centred.layers) // 2
    layer = centred.layers[at]
    rates = {(s, t): leakage.rate(s, t).estimate for s, t in leakage.pairs()}
    said: dict[str, Any] = {"model": model, "seeds": leakage.seeds}
    kl = divergence.matrix("kl").numpy()
    own = {JS: js, KL_THERE: kl, KL_BACK: kl.T}
    comparisons = {
        name: compare(
            directed_pairs(rates, {**own, COSINE: matrices[at]}, names, **said),
            first=JS,
            second=COSINE,
            seed=seed,
        )
        for name, matrices in cosines.items()
    }
    per_response = divergence.js.double().numpy()
    return OutputStudy(
        model=model,
        marker=leakage.marker,
        layer=layer,
        layers=centred.layers,
        divergence=divergence,
        leakage=leakage,
        cosines=cosines,
        discrimination=discrimination(
            js, names, per_response=per_response, questions=divergence.questions, model=model, seed=seed
        ),
        redundancy={
            name: redundancy(
                js,
                dict(zip(centred.layers, matrices, strict=True)),
                names,
                centring=name,
                model=model,
                seed=seed,
            )
            for name, matrices in cosines.items()
        },
        comparisons=comparisons,
        by_layer={
            name: {
                str(one): _associated(rates, matrix, names, seed)
                for one, matrix in zip(centred.layers, matrices, strict=True)
            }
            for name, matrices in cosines.items()
        },
        by_selection={
            chosen: _associated(rates, divergence.matrix(responses=chosen).numpy(), names, seed)
            for chosen in SELECTIONS
        },
        by_seed=_by_seed(leakage, next(iter(comparisons.values())).pairs),
        asymmetry=asymmetry(kl, names, rates, leakage.sources, model=model, seed=seed),
        per_question=per_question(per_response, divergence.questions, model=model),
        specificity=specificity(
            leakage,
            {JS: js, **{f"{COSINE}, centred on {name}": matrices[at] for name, matrices in cosines.items()}},
            names,
            n_nearest=n_nearest,
        ),
        texts=texts,
        answers=answers or {},
    )


def _cosines(centred: Centroids, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """[layer persona persona] of the study's personas, about their own mean and the wide set's."""
    rows = [centred.names.index(name) for name in names]
    sets = {f"the {len(names)}": OnSet(names)}
    if len(centred.names) > len(names):
        sets[f"the {len(centred.names)}"] = OnSet()
    return {
        name: centered_cosine(centred, center_on=on).values[:, rows][:, :, rows].double().numpy()
        for name, on in sets.items()
    }


def _associated(
    rates: Mapping[tuple[str, str], float], matrix: Matrix, names: tuple[str, ...], seed: int
) -> SourceAssociation:
    """One matrix against leakage; pairs without a value (whose persona wrote nothing) are left out of n."""
    place = {name: i for i, name in enumerate(names)}
    valued = {(s, t): rate for (s, t), rate in rates.items() if math.isfinite(matrix[place[s], place[t]])}
    pairs = directed_pairs(valued, {"x": matrix}, names)
    return by_source(pairs.values("x"), np.array(pairs.leakage), pairs.sources, pairs.targets, seed=seed)


def _by_seed(leakage: Leakage, pairs: Pairs) -> dict[str, dict[str, float]]:
    """Each predictor's pooled rho with the rates of one seed alone: what holds has one sign in all."""
    found: dict[str, dict[str, float]] = {name: {} for name in pairs.predictors}
    for seed in leakage.seeds:
        rates = np.array(
            [
                leakage.rate(s, t, seed=seed).estimate
                for s, t in zip(pairs.sources, pairs.targets, strict=True)
            ]
        )
        for name in pairs.predictors:
            found[name][str(seed)] = spearman(pairs.values(name), rates, unit="pair").estimate
    return found
