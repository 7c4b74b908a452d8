"""Our own analyses in the published schemas (methods 13), so that audits and others' readers take them.

The p of these files are the published kind, which takes pairs as independent; ours stand in our own results.
"""

import math
from collections.abc import Mapping

import numpy as np

from mechinterp.stats.association import Association, pearson, spearman
from studies.divergence_formats import (
    AnalysisResults,
    AsymmetricPair,
    AsymmetryFound,
    Correlated,
    CosineLeakage,
    CosineTarget,
    DirectedPair,
    Layered,
    LeakageComparison,
    PairSpread,
    QuestionSpread,
    QuestionSpreads,
    RankedCorrelation,
)
from studies.predictors import Comparison
from studies.predictors_asymmetry import Asymmetry
from studies.predictors_matrices import REDUNDANT, Discrimination, PerQuestion, Redundancy

FEWEST = 3  # pairs of a category that have a rho at all


def analysis_results(
    *,
    discrimination: Discrimination,
    per_question: PerQuestion,
    redundancy: Redundancy | None = None,
    comparison: Comparison | None = None,
    cosines: Mapping[int, str] | None = None,
    asymmetry: Asymmetry | None = None,
) -> AnalysisResults:
    """`analysis_results.json`; `comparison.first` is JS, `cosines` names the predictor of each layer."""
    return AnalysisResults(
        discrimination=_spread(discrimination),
        redundancy=None if redundancy is None else _redundancy(redundancy),
        leakage_comparison=None if comparison is None else _comparison(comparison, cosines or {}),
        kl_asymmetry=None if asymmetry is None else _asymmetry(asymmetry),
        per_question=_questions(per_question),
    )


def cosine_leakage(
    cosines: Mapping[tuple[str, str], float],
    rates: Mapping[tuple[str, str], float],
    categories: Mapping[str, str],
) -> CosineLeakage:
    """One layer of `cosine_leakage_correlation.json`, from (source, target) and the category of each target.

    Raises ValueError where a pair with a cosine has no rate.
    """
    lacking = next((pair for pair in cosines if pair not in rates), None)
    if lacking is not None:
        raise ValueError(f"{lacking[0]} -> {lacking[1]} has a cosine and no leakage; leave the pair out")
    pairs = [pair for pair in cosines if pair[0] != pair[1]]
    sources = {s: [pair for pair in pairs if pair[0] == s] for s in dict.fromkeys(s for s, _ in pairs)}
    kinds = dict.fromkeys(categories.get(t, "") for _, t in pairs)

    def ranked(chosen: list[tuple[str, str]]) -> RankedCorrelation:
        x, y = (np.array([held[pair] for pair in chosen]) for held in (cosines, rates))
        if len(chosen) < FEWEST:
            return RankedCorrelation(math.nan, math.nan, len(chosen))
        rho, r = spearman(x, y, unit="pair"), pearson(x, y, unit="pair")
        return RankedCorrelation(rho.estimate, rho.asymptotic_p, len(chosen), r.estimate, r.asymptotic_p)

    return CosineLeakage(
        {name: ranked(chosen) for name, chosen in sources.items()},
        ranked(pairs),
        {kind: ranked([p for p in pairs if categories.get(p[1], "") == kind]) for kind in kinds if kind},
        {
            name: tuple(
                CosineTarget(t, float(cosines[s, t]), float(rates[s, t]), categories.get(t, ""))
                for s, t in chosen
            )
            for name, chosen in sources.items()
        },
    )


def _spread(found: Discrimination) -> PairSpread:
    std, ratio = (bool(c.passed) for c in found.criteria[:2])
    n = len(found.names) * (len(found.names) - 1) // 2
    extra = {"pass": std and ratio}
    return PairSpread(n, found.mean, found.std, found.low, found.high, found.ratio, std, ratio, extra)


def _correlated(rho: Association, linear: Association, **extra: float | bool) -> Correlated:
    return Correlated(rho.estimate, rho.asymptotic_p, linear.estimate, linear.asymptotic_p, extra)


def _redundancy(found: Redundancy) -> Layered:
    layers = {}
    for layer, rho in found.spearman.items():
        size = abs(rho.estimate)
        layers[f"layer_{layer}"] = _correlated(
            rho.naive, found.pearson[layer], abs_rho=size, redundant=size > REDUNDANT
        )
    return Layered(layers, {"pass": not any(each.extra["redundant"] for each in layers.values())})


def _comparison(found: Comparison, cosines: Mapping[int, str]) -> LeakageComparison:
    pairs, js = found.pairs, found.first
    rho, linear = found.spearman[js].pooled, found.pearson[js]
    rows = zip(pairs.sources, pairs.targets, pairs.leakage, pairs.predictors[js], strict=True)
    return LeakageComparison(
        len(pairs.leakage), rho.estimate, rho.asymptotic_p, linear.estimate, linear.asymptotic_p,
        tuple(DirectedPair(*row) for row in rows),
        {f"layer_{n}": _correlated(found.spearman[name].pooled, found.pearson[name])
         for n, name in cosines.items()},
    )  # fmt: skip


def _asymmetry(found: Asymmetry) -> AsymmetryFound:
    rows = tuple(AsymmetricPair(*row) for row in found.to_dataframe().itertuples(index=False, name=None))
    if found.association is None:
        return AsymmetryFound(len(rows), math.nan, math.nan, rows)
    naive = found.association.naive
    return AsymmetryFound(len(rows), naive.estimate, naive.asymptotic_p, rows)


def _questions(found: PerQuestion) -> QuestionSpreads:
    columns = (found.questions, found.mean, found.std, found.low, found.high, found.n_values)
    rows = zip(*columns, [c.passed is False for c in found.criteria], strict=True)
    return QuestionSpreads(tuple(QuestionSpread(*row) for row in rows), found.n_uninformative)
