"""Predictors of leakage over directed pairs, held against each other (methods 5.5, 6).

Pairs of one source are not independent, so every association stands pooled (naive), within sources, between
them and without each; what one predictor adds to another is given with and without each source as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from mechinterp.stats.association import Association, partial_spearman, pearson
from mechinterp.stats.regression import AddedPredictor, added_predictor
from mechinterp.stats.sources import NAIVE, SourceAssociation, by_source

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LEAST = 4  # pairs that partials and F are defined for


@dataclass(frozen=True)
class Pairs:
    """Directed pairs: how much each source leaks into each target, and what is to predict it."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    leakage: tuple[float, ...]
    predictors: Mapping[str, tuple[float, ...]]
    model: str = "model not named"
    seeds: tuple[int, ...] = ()  # of what was sampled

    def __post_init__(self) -> None:
        n = len(self.leakage)
        columns = {"sources": self.sources, "targets": self.targets, **self.predictors}
        for name, values in columns.items():
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} values for {n} leakage rates; give one a pair")
        own = [s for s, t in zip(self.sources, self.targets, strict=True) if s == t]
        if own:
            raise ValueError(
                f"{own[0]} is paired with itself; that is its source rate, leave it out of pairs"
            )

    def values(self, predictor: str) -> Float[np.ndarray, "pair"]:
        """One predictor, a value a pair; raises ValueError with the names there are."""
        if predictor not in self.predictors:
            raise ValueError(f"there is no predictor {predictor!r}; there are {', '.join(self.predictors)}")
        return np.array(self.predictors[predictor], dtype=np.float64)

    def without(self, source: str) -> Pairs:
        """The pairs of all other sources."""
        kept = [place for place, name in enumerate(self.sources) if name != source]

        def of(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[place] for place in kept)

        predictors = {name: of(values) for name, values in self.predictors.items()}
        return Pairs(of(self.sources), of(self.targets), of(self.leakage), predictors, self.model, self.seeds)


def directed_pairs(
    leakage: Mapping[tuple[str, str], float],
    matrices: Mapping[str, Float[np.ndarray, "persona persona"]],
    names: Sequence[str],
    *,
    model: str = "model not named",
    seeds: Sequence[int] = (),
) -> Pairs:
    """Pairs (source, target) with `matrix[source, target]` of every matrix, in the order of `leakage`.

    A source's own rate is left out. Raises ValueError for a persona that is not in `names`.
    """
    place = {name: i for i, name in enumerate(names)}
    unknown = next((name for pair in leakage for name in pair if name not in place), None)
    if unknown is not None:
        raise ValueError(
            f"{unknown!r} leaks or is leaked into, but the matrices have only {', '.join(names)}"
        )
    kept = [(source, target) for source, target in leakage if source != target]
    predictors = {
        name: tuple(float(matrix[place[s], place[t]]) for s, t in kept) for name, matrix in matrices.items()
    }
    sources, targets = tuple(s for s, _ in kept), tuple(t for _, t in kept)
    rates = tuple(float(leakage[pair]) for pair in kept)
    return Pairs(sources, targets, rates, predictors, model, tuple(seeds))


@dataclass(frozen=True)
class Beyond:
    """What one predictor says beyond another: over all pairs (naive), and over those without each source."""

    predictor: str
    given: str
    partial: Association
    added: AddedPredictor
    partial_without: Mapping[str, float]
    delta_r2_without: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Every predictor's association with leakage, and what `first` and `second` say beyond each other."""

    pairs: Pairs
    first: str
    second: str
    seed: int
    spearman: Mapping[str, SourceAssociation]
    pearson: Mapping[str, Association]
    beyond: tuple[Beyond, ...] = field(default=())  # first given second, second given first

    def advantage(self) -> dict[str, float]:
        """|rho| of `first` minus |rho| of `second` at every level of the nesting."""
        a, b = self.spearman[self.first], self.spearman[self.second]
        levels = {
            "pooled": (a.pooled.estimate, b.pooled.estimate),
            "mean within": (a.mean_within, b.mean_within),
            "centred": (a.centred.estimate, b.centred.estimate),
            "between": (a.between.estimate, b.between.estimate),
            **{f"without {name}": (a.leave_one_out[name], b.leave_one_out[name]) for name in a.leave_one_out},
        }
        return {level: abs(one) - abs(other) for level, (one, other) in levels.items()}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a figure: predictor, estimate, p, n with its unit, and what it is."""
        import pandas as pd

        parts = [found.to_dataframe().assign(predictor=name) for name, found in self.spearman.items()]
        rows = [
            {"predictor": name, "figure": "Pearson, pooled", "estimate": each.estimate, "p": each.p,
             "n": each.n, "unit": each.unit, "note": f"{NAIVE}; {each.p_method}"}
            for name, each in self.pearson.items()
        ]  # fmt: skip
        for one in self.beyond:
            said = {"predictor": one.predictor, "unit": "pair"}
            without = _range(one.partial_without)
            rows.append(
                {**said, "figure": f"partial given {one.given}", "estimate": one.partial.estimate,
                 "p": one.partial.p, "n": one.partial.n, "note": f"{NAIVE}; without each source {without}"}
            )  # fmt: skip
            without = _range(one.delta_r2_without)
            words = f"F{one.added.df} = {one.added.f:.4g}; {NAIVE}; without each source {without}"
            rows.append(
                {**said, "figure": f"delta R² added to {one.given}", "estimate": one.added.delta_r2,
                 "p": one.added.p, "n": one.added.n, "note": one.added.note or words}
            )  # fmt: skip
        table = pd.concat([*parts, pd.DataFrame(rows)], ignore_index=True)
        return table.reindex(columns=["predictor", "figure", "estimate", "p", "n", "unit", "note"])

    def figure(self) -> go.Figure:
        """Both predictors against leakage, side by side."""
        from studies.predictors_figures import hero

        return hero(self)


def compare(pairs: Pairs, *, first: str, second: str, seed: int = 0) -> Comparison:
    """Every predictor of `pairs` against leakage, and `first` against `second` both ways.

    Raises ValueError for an unknown predictor, fewer than three pairs, a pair given twice, missing values.
    """
    for name in (first, second):
        pairs.values(name)  # both must be there before anything is computed
    leakage = np.array(pairs.leakage, dtype=np.float64)
    found = {
        name: by_source(pairs.values(name), leakage, pairs.sources, pairs.targets, seed=seed)
        for name in pairs.predictors
    }
    linear = {name: pearson(pairs.values(name), leakage, unit="pair") for name in pairs.predictors}
    ways = ((first, second), (second, first)) if len(leakage) >= LEAST and first != second else ()
    beyond = tuple(_beyond(pairs, predictor, given) for predictor, given in ways)
    return Comparison(pairs, first, second, seed, found, linear, beyond)


def _beyond(pairs: Pairs, predictor: str, given: str) -> Beyond:
    partials, deltas = {}, {}
    for source in dict.fromkeys(pairs.sources):
        rest = pairs.without(source)
        if len(rest.leakage) >= LEAST:
            partials[source] = _partial(rest, predictor, given).estimate
            deltas[source] = _added(rest, predictor, given).delta_r2
    return Beyond(
        predictor, given, _partial(pairs, predictor, given), _added(pairs, predictor, given), partials, deltas
    )


def _partial(pairs: Pairs, predictor: str, given: str) -> Association:
    leakage = np.array(pairs.leakage)
    return partial_spearman(pairs.values(predictor), leakage, pairs.values(given), unit="pair")


def _added(pairs: Pairs, predictor: str, given: str) -> AddedPredictor:
    leakage = np.array(pairs.leakage)
    return added_predictor(leakage, pairs.values(given), pairs.values(predictor), unit="pair")


def _range(values: Mapping[str, float]) -> str:
    finite = [value for value in values.values() if math.isfinite(value)]
    return f"{min(finite):.3f} to {max(finite):.3f}" if finite else "not defined"
