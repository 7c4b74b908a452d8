"""Means of clustered examples, layer by layer, with intervals that hold for 4 to 20 clusters.

Examples of one question resemble each other, so the questions are the units. The standard error is CR2 and
the quantile Student's t at Bell and McCaffrey's degrees of freedom: with equal clusters that is exactly the
t-test of the cluster means, with single examples the ordinary t-test. In simulations with normal clusters it
rejects a true null in 2 to 6 % of draws at 4, 8 and 20 clusters of sizes up to one to ten; the percentile
bootstrap of equal clusters rejects 21 % at four, 13 % when widened. Clusters whose effects are strongly
skewed (exponential) make ours reject up to 11 %.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import cluster_sums, complete_rows
from mechinterp.stats.intervals import CurveInterval, Interval


@dataclass(frozen=True, eq=False)
class ClusteredMean:
    """Mean over examples at each layer; n counts clusters, the units that were taken as independent.

    `p` is two-sided and of each layer by itself: `stats.multiplicity` pays for having looked at all.
    """

    estimate: Float[np.ndarray, "layer"]
    low: Float[np.ndarray, "layer"]
    high: Float[np.ndarray, "layer"]
    standard_error: Float[np.ndarray, "layer"]
    p: Float[np.ndarray, "layer"]
    degrees_of_freedom: float  # plus one: how many equal clusters these are worth
    n: int
    n_examples: int
    n_dropped: int  # examples with a missing value
    unit: str
    method: str
    level: float = 0.95
    note: str = ""

    @property
    def t(self) -> Float[np.ndarray, "layer"]:
        """Estimate in standard errors; 0 where both are nothing."""
        return studentised(self.estimate, self.standard_error)

    def at(self, layer: int) -> Interval:
        """One layer as an interval."""
        bounds = float(self.estimate[layer]), float(self.low[layer]), float(self.high[layer])
        return Interval(*bounds, self.n, self.unit, self.method, self.level, self.note)

    def curve(self) -> CurveInterval:
        """All layers as a curve with pointwise bounds."""
        n = np.full(len(self.estimate), self.n)
        return CurveInterval(
            self.estimate, self.low, self.high, n, self.unit, f"pointwise {self.method}", self.level
        )


def clustered_mean(
    values: Float[np.ndarray, "example layer"],
    clusters: Sequence[Hashable] | None = None,
    *,
    unit: str | None = None,
    level: float = 0.95,
) -> ClusteredMean:
    """Mean over examples of a contrast (paired differences are one) with cluster-robust bounds.

    Without labels each example is its own unit. Rows with a missing value are dropped and counted; fewer than
    three units leave the bounds NaN and `note` says why. Raises ValueError when labels and rows differ in
    number.
    """
    unit = unit or ("example" if clusters is None else "cluster")
    rows, labels, dropped = without_missing(values, clusters)
    sums, sizes, _ = cluster_sums(rows, labels)
    n, n_layers = len(sizes), values.shape[1]
    missing = np.full(n_layers, math.nan)
    estimate = sums.sum(0) / sizes.sum() if n else missing
    method = f"CR2 and Student t over {n} {unit}s ({len(rows)} examples)"
    counts = (n, len(rows), dropped, unit, method, level)
    if n < 3:
        note = f"n={n} {unit}s: three are needed for an interval"
        return ClusteredMean(estimate, missing, missing, missing, missing, math.nan, *counts, note)
    error, freedom = cr2(sums, sizes), bell_mccaffrey(sizes)
    half = t_quantile(freedom, level) * error
    p = _two_sided(studentised(estimate, error), freedom)
    note = f"{dropped} examples with missing values left out" if dropped else ""
    return ClusteredMean(estimate, estimate - half, estimate + half, error, p, freedom, *counts, note)


def without_missing(
    values: Float[np.ndarray, "example layer"], clusters: Sequence[Hashable] | None
) -> tuple[Float[np.ndarray, "kept layer"], list[Hashable] | None, int]:
    """The complete rows, their labels, and how many rows were left out."""
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(values)} examples need one cluster label each, not {len(clusters)}")
    kept = complete_rows(values)
    labels = None if clusters is None else [name for name, keep in zip(clusters, kept, strict=True) if keep]
    return values[kept], labels, int((~kept).sum())


def cr2(
    sums: Float[np.ndarray, "cluster layer"], sizes: Float[np.ndarray, "cluster"]
) -> Float[np.ndarray, "layer"]:
    """Standard error of the mean over examples: sqrt(sum_g (T_g - n_g mean)^2 / (1 - n_g / N)) / N."""
    total = sizes.sum()
    residual = sums - sizes[:, None] * sums.sum(0) / total
    return np.sqrt((residual**2 / (1 - sizes / total)[:, None]).sum(0)) / total


def bell_mccaffrey(sizes: Float[np.ndarray, "cluster"]) -> float:
    """Degrees of freedom of the CR2 variance of a mean; G - 1 for G equal clusters, fewer for unequal ones.

    With w = n_g / N and a = 1 / (1 - w), for uncorrelated examples of equal variance:
    1 / (sum w^2 + (sum a w^2)^2 - sum a^2 w^4).
    """
    share = sizes / sizes.sum()
    weighted = share**2 / (1 - share)
    return float(1 / ((share**2).sum() + weighted.sum() ** 2 - (weighted**2).sum()))


def t_quantile(freedom: float, level: float) -> float:
    """How many standard errors the two-sided interval of a level reaches."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


def studentised(
    estimate: Float[np.ndarray, "*axes"], error: Float[np.ndarray, "*axes"]
) -> Float[np.ndarray, "*axes"]:
    """Estimate over its error; 0 where there is nothing at all, infinite where nothing varies."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((estimate == 0) & (error == 0), 0.0, estimate / error)


def _two_sided(t: Float[np.ndarray, "layer"], freedom: float) -> Float[np.ndarray, "layer"]:
    from scipy.special import stdtr

    return 2 * stdtr(freedom, -np.abs(t))
