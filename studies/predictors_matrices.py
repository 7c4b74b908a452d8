"""What matrices over pairs of personas say themselves: discrimination, redundancy, questions (methods 5.5).

A bound on a spread in nats has no meaning without the scale; the criteria of our own are ratios.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from mechinterp.stats.association import Association, pearson
from mechinterp.stats.bootstrap import resampled_means
from mechinterp.stats.dyadic import DyadicAssociation, dyadic_spearman
from studies.criteria import WENT_ON, Criterion, judged

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

RATIO, SPREAD, NOISE = (
    3.0,
    0.05,
    3.0,
)  # thresholds of discrimination: max/min, std (published), std over noise
REDUNDANT, VARIATION = 0.80, 0.2
RESAMPLES = 2000
Matrix = Float[np.ndarray, "persona persona"]
PerResponse = Float[np.ndarray, "response persona persona"]


@dataclass(frozen=True, eq=False)
class Discrimination(Result):
    """How far apart the pairs of personas lie, and how much of that would stay with other questions."""

    names: tuple[str, ...]
    js: Matrix
    low: float
    high: float
    ratio: float
    std: float  # over pairs, ddof 0
    mean: float
    nearest: tuple[str, str]
    farthest: tuple[str, str]
    noise: float  # rms over pairs of what other questions would move a pair against the others
    ratio_bounds: tuple[float, float]  # 95 % over resampled questions
    n_questions: int
    criteria: tuple[Criterion, ...]
    model: str
    seed: int

    @property
    def signal_to_noise(self) -> float:
        """Spread over pairs by what resampling the questions moves them: has no unit."""
        return _by(self.std, self.noise)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a pair, nearest first."""
        import pandas as pd

        rows = [
            (*_named(self.names, i, j), self.js[i, j])
            for i, j in itertools.combinations(range(len(self.names)), 2)
        ]
        return pd.DataFrame(rows, columns=["a", "b", "js"]).sort_values("js", ignore_index=True)

    def figure(self) -> go.Figure:
        """The matrix as a heat map."""
        from studies.predictors_figures import divergence_map

        return divergence_map(self)


def discrimination(
    js: Matrix,
    names: Sequence[str],
    *,
    per_response: PerResponse | None = None,
    questions: Sequence[str] = (),
    model: str = "model not named",
    seed: int = 0,
) -> Discrimination:
    """Range, ratio and spread over unordered pairs against the published bars and against scale-free ones.

    `per_response` with the question of each response gives the noise: the questions are resampled and each
    pair's deviation from the mean of all pairs is followed. Without it, or with one question, it is NaN.
    """
    names, js = tuple(names), np.asarray(js, dtype=np.float64)
    i, j = np.triu_indices(len(names), 1)
    values = js[i, j]
    if not np.isfinite(values).all() or len(values) < 1:
        raise ValueError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} pairs have no value; leave them out"
        )
    low, high = float(values.min()), float(values.max())
    ratio = high / low if low > 0 else math.nan
    noise, bounds = math.nan, (math.nan, math.nan)
    if per_response is not None and len(set(questions)) > 1:
        drawn = resampled_means(
            np.asarray(per_response, dtype=np.float64)[:, i, j], questions, resamples=RESAMPLES, seed=seed
        )
        moved = drawn - drawn.mean(1, keepdims=True)
        noise = float(np.sqrt(moved.var(0, ddof=1).mean()))
        below, above = np.quantile(drawn.max(1) / drawn.min(1), [0.025, 0.975])
        bounds = (float(below), float(above))
    std = float(values.std())
    snr = _by(std, noise)
    scale = f"not scale-free: JS is at most 0.693 and its mean here {values.mean():.3g}; {WENT_ON}"
    criteria = (
        judged("published: std over pairs (nats)", std, SPREAD, decision=scale),
        judged("published: largest over smallest", ratio, RATIO),
        judged("ours: lower bound of that ratio over questions", bounds[0], RATIO),
        judged("ours: std over pairs by noise over questions", snr, NOISE),
    )
    near, far = int(values.argmin()), int(values.argmax())
    return Discrimination(
        names, js, low, high, ratio, std, float(values.mean()),
        _named(names, int(i[near]), int(j[near])), _named(names, int(i[far]), int(j[far])),
        noise, bounds, len(set(questions)), criteria, model, seed,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Redundancy(Result):
    """JS against the cosine of every layer over unordered pairs; the persona is the unit of bounds and p."""

    names: tuple[str, ...]
    js: Matrix
    cosines: Mapping[int, Matrix]
    spearman: Mapping[int, DyadicAssociation]
    pearson: Mapping[int, Association]
    criteria: tuple[Criterion, ...]
    centring: str
    model: str
    seed: int

    @property
    def strongest(self) -> int:
        """The layer whose rho is farthest from zero: chosen on these data."""
        return max(
            self.spearman, key=lambda layer: (abs(np.nan_to_num(self.spearman[layer].estimate)), -layer)
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        rows = [
            {"layer": layer, "rho": s.estimate, "low": s.low, "high": s.high, "p": s.p, "naive p": s.naive.p,
             "pearson": self.pearson[layer].estimate, "naive pearson p": self.pearson[layer].p,
             "pairs": s.n_pairs, "personas": s.n_nodes, "redundant": abs(s.estimate) > REDUNDANT}
            for layer, s in self.spearman.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def figure(self) -> go.Figure:
        """JS against the cosine of the strongest layer."""
        from studies.predictors_figures import redundancy_scatter

        return redundancy_scatter(self, self.strongest)


def redundancy(
    js: Matrix,
    cosines: Mapping[int, Matrix],
    names: Sequence[str],
    *,
    centring: str,
    model: str = "model not named",
    seed: int = 0,
) -> Redundancy:
    """Whether the cosine of any layer already says what JS says: redundant if |rho| > 0.80.

    `centring` names the set that the cosines were centred on. Raises ValueError without a layer, or for
    matrices that are not symmetric and finite.
    """
    if not cosines:
        raise ValueError("redundancy needs the cosine matrix of one layer or more")
    js = np.asarray(js, dtype=np.float64)
    i, j = np.triu_indices(len(names), 1)
    held = {layer: np.asarray(matrix, dtype=np.float64) for layer, matrix in sorted(cosines.items())}
    found = {layer: dyadic_spearman(js, matrix, names=names, seed=seed) for layer, matrix in held.items()}
    linear = {layer: pearson(js[i, j], matrix[i, j], unit="pair") for layer, matrix in held.items()}
    criteria = tuple(
        judged(f"not redundant with the cosine of layer {layer}: |rho|", abs(each.estimate), REDUNDANT,
               sense="at most")
        for layer, each in found.items()
    )  # fmt: skip
    return Redundancy(tuple(names), js, held, found, linear, criteria, centring, model, seed)


@dataclass(frozen=True, eq=False)
class PerQuestion(Result):
    """How much JS varies over responses and pairs of each question; where it hardly does, nothing is told."""

    questions: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]  # ddof 0
    low: tuple[float, ...]
    high: tuple[float, ...]
    n_values: tuple[int, ...]
    criteria: tuple[Criterion, ...]
    model: str

    @property
    def variation(self) -> tuple[float, ...]:
        """Std by mean."""
        return tuple(c.value for c in self.criteria)

    @property
    def n_uninformative(self) -> int:
        """Questions whose coefficient of variation lies below 0.2."""
        return sum(c.passed is False for c in self.criteria)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a question."""
        import pandas as pd

        columns = {"question": self.questions, "mean": self.mean, "std": self.std, "low": self.low}
        columns |= {"high": self.high, "values": self.n_values, "variation": self.variation}
        return pd.DataFrame({name: list(values) for name, values in columns.items()})

    def figure(self) -> go.Figure:
        """Coefficient of variation by question."""
        from studies.predictors_figures import variation_bars

        return variation_bars(self)


def per_question(
    per_response: PerResponse, questions: Sequence[str], *, model: str = "model not named"
) -> PerQuestion:
    """The values of each question's responses and pairs pooled: uninformative if their variation is < 0.2.

    Raises ValueError unless every response has its question.
    """
    values = np.asarray(per_response, dtype=np.float64)
    if len(questions) != len(values):
        raise ValueError(f"{len(values)} responses need a question each, not {len(questions)}")
    i, j = np.triu_indices(values.shape[1], 1)
    asked = np.array(questions)
    pooled = {q: values[asked == q][:, i, j].ravel() for q in dict.fromkeys(questions)}
    criteria = tuple(
        judged(q, float(v.std() / v.mean()) if v.mean() > 0 else math.nan, VARIATION, sense="at least")
        for q, v in pooled.items()
    )
    mean, std, low, high = (
        tuple(float(of(v)) for v in pooled.values()) for of in (np.mean, np.std, np.min, np.max)
    )
    sizes = tuple(v.size for v in pooled.values())
    return PerQuestion(tuple(pooled), mean, std, low, high, sizes, criteria, model)


def _named(names: tuple[str, ...], i: int, j: int) -> tuple[str, str]:
    return names[i], names[j]


def _by(spread: float, noise: float) -> float:
    """Spread by noise: infinite where resampling moves nothing, NaN where nothing was resampled."""
    return math.inf if noise == 0 and spread > 0 else spread / noise if noise > 0 else math.nan
