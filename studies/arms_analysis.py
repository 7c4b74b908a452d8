"""What the trajectories of the three-arm test say, each figure with its unit (methods 7.4, 7.6, 12.8).

Within a source the checkpoints of one training run follow each other; between sources there are few sources.
All checkpoints of all sources in one correlation is kept, labelled as the wrong way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mechinterp.results import Result
from mechinterp.stats.agreement import Icc, icc
from mechinterp.stats.association import Association, spearman, undefined
from mechinterp.stats.multiplicity import benjamini_hochberg
from studies.arms_effects import (
    Beside,
    Effect,
    Retention,
    bystanders_beside,
    effects,
    retentions,
)
from studies.arms_records import ORIGINAL, Point, Trajectories

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FEWEST = 3  # values that have a rank correlation at all
WRONG = "the wrong way: checkpoints of one source are not independent"
FROM_ZERO, FROM_FIRST = "0 %", "first checkpoint"
OUTCOME = "assistant leakage"


@dataclass(frozen=True)
class Within:
    """Cosine and assistant leakage over the checkpoints of one source's training; unit: its checkpoints.

    `run` and `seed` are None where all are taken together. The exact p takes checkpoints as exchangeable,
    which a trajectory's are not: a trend of any two things over training correlates.
    """

    source: str
    layer: int
    start: str
    association: Association
    n_missing: int  # checkpoints without this cosine
    run: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Trend:
    """How many sources have a negative rho, as a sign test over sources, which are the units."""

    layer: int
    start: str
    n_negative: int
    n_sources: int
    p: float
    mean: float


@dataclass(frozen=True)
class Predictor:
    """One predictor of assistant leakage at the last checkpoint over sources; `note` says what ties them."""

    name: str
    association: Association
    note: str = ""


@dataclass(frozen=True, eq=False)
class ArmsAnalysis(Result):
    """Every analysis of one arm's trajectories, and the retention of all arms."""

    arm: str
    adapter: str
    percent: int  # the last checkpoint that every source has
    within: tuple[Within, ...]
    trends: tuple[Trend, ...]
    between: dict[int, Association]  # by layer
    pooled: dict[int, Association]
    icc: dict[str, Icc]  # of the outcome and of every cosine
    predictors: tuple[Predictor, ...]
    effects: tuple[Effect, ...]
    beside: tuple[Beside, ...]
    retention: tuple[Retention, ...]
    trajectories: Trajectories

    def rho(self, source: str, layer: int, start: str = FROM_FIRST) -> Within | None:
        """The within-source correlation over all runs and seeds together."""
        wanted = (source, layer, start, None)
        return next((w for w in self.within if (w.source, w.layer, w.start, w.seed) == wanted), None)

    def to_dataframe(self) -> pd.DataFrame:
        """One line a figure: estimate, p, n with its unit, q among all within-source tests, what it is."""
        import pandas as pd

        adjusted = benjamini_hochberg(np.array([w.association.p for w in self.within]))
        rows = [
            _row(f"within {w.source}", w.layer, w.association, w.start, q, _which(w))
            for w, q in zip(self.within, adjusted, strict=True)
        ]
        rows += [
            ("negative rho", t.layer, t.start, t.n_negative, t.p, math.nan, t.n_sources, "source",
             f"sign test over sources; mean rho {t.mean:.2f}")
            for t in self.trends
        ]  # fmt: skip
        for name, held in (("between sources", self.between), ("pooled", self.pooled)):
            rows += [_row(name, layer, found, "") for layer, found in held.items()]
        rows += [
            (f"ICC {name}", None, "", found.value, math.nan, math.nan, found.n_groups * found.n_members,
             "checkpoint", f"effective n {found.effective_n:.1f}{'; ' * bool(found.note)}{found.note}")
            for name, found in self.icc.items()
        ]  # fmt: skip
        rows += [
            _row(f"predictor {p.name}", None, p.association, "", math.nan, p.note) for p in self.predictors
        ]
        columns = ["figure", "layer", "from", "estimate", "p", "q", "n", "unit", "note"]
        return pd.DataFrame(rows, columns=columns)

    def figure(self) -> go.Figure:
        """Source retention above, assistant leakage below, a column a source."""
        return self.trajectories.figure()


def analyse(found: Trajectories, *, arm: str = "B", adapter: str = ORIGINAL) -> ArmsAnalysis:
    """Every analysis of one arm. Raises ValueError where the arm has no checkpoint."""
    lines = {s: line for s in found.sources if (line := found.line(arm, s, adapter=adapter))}
    if not lines:
        raise ValueError(f"arm {arm} has no checkpoint with the {adapter} adapter; its arms are of others")
    shared = set.intersection(*({p.percent for p in line} for line in lines.values()))
    percent = max(shared, default=100)
    last = {s: p for s, line in lines.items() for p in line if p.percent == percent}
    every = within_sources(found, arm, adapter=adapter)
    return ArmsAnalysis(
        arm=arm,
        adapter=adapter,
        percent=percent,
        within=every,
        trends=trends(every),
        between={n: _between(list(last.values()), n) for n in found.layers},
        pooled={n: _pooled(list(lines.values()), n) for n in found.layers},
        icc=likeness(list(lines.values()), found.layers),
        predictors=predictors(found, list(last.values())),
        effects=effects(found, arm, adapter=adapter),
        beside=bystanders_beside(list(last.values())),
        retention=retentions(found),
        trajectories=found,
    )


def within_sources(found: Trajectories, arm: str, *, adapter: str = ORIGINAL) -> tuple[Within, ...]:
    """By source, layer and start; where there are several runs or seeds, each of them as well."""
    rows = []
    for source in found.sources:
        runs = found.runs(arm, source, adapter)
        for only in (None, *runs) if len(runs) > 1 else (None,) * bool(runs):
            line = found.line(arm, source, adapter=adapter, only=only)
            starts = {FROM_FIRST: [p for p in line if p.percent > 0]}
            if len(starts[FROM_FIRST]) < len(line):
                starts[FROM_ZERO] = list(line)
            rows += [
                _within(source, layer, start, points, only)
                for start, points in starts.items()
                for layer in found.layers
            ]
    return tuple(rows)


def trends(within: Sequence[Within]) -> tuple[Trend, ...]:
    """Negative rhos among the sources that have one, by layer and start."""
    from scipy.stats import binomtest

    rows = []
    mine = [w for w in within if w.seed is None and w.run is None and math.isfinite(w.association.estimate)]
    for start in dict.fromkeys(w.start for w in mine):
        for layer in dict.fromkeys(w.layer for w in mine):
            rhos = [w.association.estimate for w in mine if (w.start, w.layer) == (start, layer)]
            signed = [rho for rho in rhos if rho]
            if rhos:
                negative = sum(rho < 0 for rho in rhos)
                p = float(binomtest(negative, len(signed)).pvalue) if signed else math.nan
                rows.append(Trend(layer, start, negative, len(rhos), p, float(np.mean(rhos))))
    return tuple(rows)


def likeness(lines: Sequence[Sequence[Point]], layers: Sequence[int]) -> dict[str, Icc]:
    """ICC of the outcome and of every cosine, over the checkpoints after 0 % that every source has.

    A variable that some source lacks at one of them, or fewer than two sources or checkpoints, has none.
    """
    shared = sorted(set.intersection(*({p.percent for p in line if p.percent} for line in lines)))
    if len(lines) < 2 or len(shared) < 2:
        return {}
    table = [[next(p for p in line if p.percent == percent) for percent in shared] for line in lines]
    values = {OUTCOME: np.array([[p.assistant_rate.rate for p in row] for row in table])}
    values |= {f"cosine L{n}": np.array([[p.cosine(n) for p in row] for row in table]) for n in layers}
    return {name: icc(held, variable=name) for name, held in values.items() if np.isfinite(held).all()}


def predictors(found: Trajectories, last: Sequence[Point]) -> tuple[Predictor, ...]:
    """Cosines and breadths against assistant leakage at the last checkpoint, over sources."""
    rows = [Predictor(f"cosine L{n}", _between(last, n)) for n in found.layers]
    known = [(p, q) for p in last if (q := found.adapter_quality(p.source, p.adapter)) is not None]
    if known:
        highest = [q.max_bystander for _, q in known]
        leakage = [p.assistant_rate.rate for p, _ in known]
        note = "of the adapter before any merge, so measured on another model than the outcome"
        rows.append(Predictor("original highest bystander", _correlated(highest, leakage, "source"), note))
    broad = [p for p in last if p.bystander_rates]
    if broad:
        means, leakage = ([p.bystander_mean for p in broad], [p.assistant_rate.rate for p in broad])
        note = "of the same checkpoint: predictor and outcome share the model, so they are not independent"
        rows.append(Predictor("bystander mean", _correlated(means, leakage, "source"), note))
    return tuple(rows)


def _within(
    source: str, layer: int, start: str, points: Sequence[Point], only: tuple[int, int | None] | None
) -> Within:
    held = [p for p in points if math.isfinite(p.cosine(layer))]
    found = _correlated(
        [p.cosine(layer) for p in held], [p.assistant_rate.rate for p in held], f"checkpoint of {source}"
    )
    run, seed = only if only is not None else (None, None)
    return Within(source, layer, start, found, len(points) - len(held), run, seed)


def _between(last: Sequence[Point], layer: int) -> Association:
    held = [p for p in last if math.isfinite(p.cosine(layer))]
    return _correlated([p.cosine(layer) for p in held], [p.assistant_rate.rate for p in held], "source")


def _pooled(lines: Sequence[Sequence[Point]], layer: int) -> Association:
    held = [p for line in lines for p in line if p.percent > 0 and math.isfinite(p.cosine(layer))]
    rates = [p.assistant_rate.rate for p in held]
    found = _correlated([p.cosine(layer) for p in held], rates, "checkpoint of any source")
    return replace(found, p_method=f"{WRONG}; {found.p_method}")


def _correlated(x: Sequence[float], y: Sequence[float], unit: str) -> Association:
    if len(x) < FEWEST:
        return undefined(len(x), unit, f"Spearman: {len(x)} values, {FEWEST} are needed")
    return spearman(np.array(x), np.array(y), unit=unit)


def _which(found: Within) -> str:
    if found.run is None and found.seed is None:
        return ""
    return f"run {found.run}" + (f", seed {found.seed}" if found.seed is not None else "")


def _row(
    figure: str, layer: int | None, found: Association, start: str, q: float = math.nan, note: str = ""
) -> tuple[str, int | None, str, float, float, float, int, str, str]:
    said = "; ".join(part for part in (note, found.method, found.p_method) if part)
    return figure, layer, start, found.estimate, found.p, q, found.n, found.unit, said
