"""Many layers, one claim: sign flips of whole units, the maximum over layers, and bands that hold at once.

Layers of one model are not independent. The max-T test keeps their dependence, because a flip turns all
layers of a unit together; Benjamini-Hochberg stands beside it. Flips assume that a unit's contrast is as
likely above as below zero under the null, and with few units they cannot reach 5 % at all: `smallest_p`.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import cluster_sums
from mechinterp.stats.clustered import bell_mccaffrey, cr2, studentised, without_missing
from mechinterp.stats.intervals import CurveInterval
from mechinterp.stats.paired import EXACT_UP_TO, RESAMPLES

ROTATIONS = 4_999
ROUNDING = 1e-12  # a variance below this share of its terms is what the subtraction left over


@dataclass(frozen=True, eq=False)
class MaxT:
    """The mean contrast at each layer, its p by sign flips alone and among all layers, and a band for all."""

    estimate: Float[np.ndarray, "layer"]
    standard_error: Float[np.ndarray, "layer"]
    p: Float[np.ndarray, "layer"]  # of this layer, had it been the only one
    p_max_t: Float[np.ndarray, "layer"]  # family-wise: among all layers
    p_bh: Float[np.ndarray, "layer"]  # false discovery rate, from p
    low: Float[np.ndarray, "layer"]  # simultaneous: the whole curve lies within in `level` of the studies
    high: Float[np.ndarray, "layer"]
    critical: float  # standard errors from the estimate to the band
    smallest_p: float  # no p can be below this with so many flips
    n: int
    n_examples: int
    n_dropped: int
    unit: str
    method: str
    level: float = 0.95
    note: str = ""

    @property
    def t(self) -> Float[np.ndarray, "layer"]:
        """Estimate in standard errors."""
        return studentised(self.estimate, self.standard_error)

    def band(self) -> CurveInterval:
        """The simultaneous band as a curve, to be drawn."""
        n = np.full(len(self.estimate), self.n)
        method = f"simultaneous over {len(n)} layers: {self.critical:.2f} standard errors, max-T of rotations"
        return CurveInterval(self.estimate, self.low, self.high, n, self.unit, method, self.level)


@dataclass(frozen=True)
class SignBalance:
    """How many layers are positive. A description: layers are dependent, so `p` is no evidence."""

    positive: int
    negative: int
    p_if_layers_were_independent: float
    note: str


def max_t(
    values: Float[np.ndarray, "example layer"],
    clusters: Sequence[Hashable] | None = None,
    *,
    unit: str | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> MaxT:
    """Two-sided sign-flip tests of the mean over examples at every layer, studentised by CR2 in each flip.

    Units are whole clusters, or examples without labels; up to 14 are enumerated. Incomplete rows are dropped
    and counted. Fewer than three units leave p and band NaN with a note.
    """
    unit = unit or ("example" if clusters is None else "cluster")
    rows, labels, dropped = without_missing(values, clusters)
    sums, sizes, _ = cluster_sums(rows, labels)
    n, missing = len(sizes), np.full(values.shape[1], math.nan)
    method, smallest = _described(n, unit, seed)
    counts = (n, len(rows), dropped, unit, method, level)
    if n < 3:
        estimate = sums.sum(0) / sizes.sum() if n else missing
        note = f"n={n} {unit}s: three are needed for a test over layers"
        nothing = (missing, missing, missing, missing, missing, missing, math.nan, math.nan)
        return MaxT(estimate, *nothing, *counts, note)
    estimate, error = sums.sum(0) / sizes.sum(), cr2(sums, sizes)
    p, p_max_t = _flipped_p(sums, sizes, sign_flips(n, seed))
    critical = simultaneous_quantile(sums, sizes, level=level, seed=seed)
    low, high = estimate - critical * error, estimate + critical * error
    notes = [f"{dropped} examples with missing values left out"] * bool(dropped)
    notes += [f"no p below {smallest:.3g} with {n} {unit}s"] * (smallest > 1 - level)
    adjusted = benjamini_hochberg(p)
    return MaxT(
        estimate, error, p, p_max_t, adjusted, low, high, critical, smallest, *counts, "; ".join(notes)
    )


def sign_flips(n: int, seed: int) -> Float[np.ndarray, "flip n"]:
    """Signs of whole units, the observed ones first; all of them up to 14 units, else drawn.

    |t| is the same for a flip and its opposite, so half of all patterns stand for all.
    """
    if n <= EXACT_UP_TO:
        return 1.0 - 2.0 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)
    drawn = np.random.default_rng(seed).integers(0, 2, size=(RESAMPLES, n)) * 2.0 - 1.0
    return np.concatenate([np.ones((1, n)), drawn])


def simultaneous_quantile(
    sums: Float[np.ndarray, "cluster layer"],
    sizes: Float[np.ndarray, "cluster"],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> float:
    """How many standard errors a band over all layers needs: the max-T null of rotated residuals.

    The residual sums are turned to random directions in the space of units, which for normal units keeps
    their distribution and every correlation of layers; unlike flips it has no steps, so it serves four units
    too. The quantile found at G - 1 degrees of freedom is carried over to those of unequal clusters.
    """
    from scipy.special import stdtr, stdtrit

    n, total = len(sizes), sizes.sum()
    residual = (sums - sizes[:, None] * sums.sum(0) / total) / np.sqrt(1 - sizes / total)[:, None]
    squares = (residual**2).sum(0)
    varying = squares > ROUNDING * np.maximum((sums**2).sum(0), 1e-300)
    if not varying.any():
        return float(stdtrit(bell_mccaffrey(sizes), 0.5 + level / 2))
    drawn = np.random.default_rng(seed).normal(size=(ROTATIONS, n))
    drawn /= np.sqrt((drawn**2).sum(1, keepdims=True))
    share = ((drawn @ residual[:, varying]) ** 2 / squares[varying]).max(1)  # t^2 grows with it
    share = float(np.quantile(share, level))
    at_equal_sizes = math.sqrt((n - 1) * share / max(1 - share, 1e-300))
    return float(-stdtrit(bell_mccaffrey(sizes), stdtr(n - 1, -at_equal_sizes)))


def benjamini_hochberg(p: Float[np.ndarray, "layer"]) -> Float[np.ndarray, "layer"]:
    """False-discovery-adjusted p; a layer without a p keeps none and does not count."""
    from scipy.stats import false_discovery_control

    adjusted = np.full(len(p), math.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = false_discovery_control(p[known], method="bh")
    return adjusted


def sign_balance(means: Float[np.ndarray, "layer"]) -> SignBalance:
    """Positive layers against a fair coin, as the source counted them: a labelled description, not a test."""
    from scipy.stats import binomtest

    positive, negative = int((means > 0).sum()), int((means < 0).sum())
    p = float(binomtest(positive, positive + negative).pvalue) if positive + negative else math.nan
    note = "layers of one model are dependent, so this counts layers and tests nothing; max_t tests"
    return SignBalance(positive, negative, p, note)


def _flipped_p(
    sums: Float[np.ndarray, "cluster layer"],
    sizes: Float[np.ndarray, "cluster"],
    signs: Float[np.ndarray, "flip cluster"],
) -> tuple[Float[np.ndarray, "layer"], Float[np.ndarray, "layer"]]:
    """Share of flips whose |t|, and whose largest |t| over layers, reaches the observed |t|."""
    total = sizes.sum()
    weight = 1 / (1 - sizes / total)
    flipped = signs @ sums / total
    squares = (weight[:, None] * sums**2).sum(0)
    cross = signs @ ((weight * sizes)[:, None] * sums)
    variance = squares - 2 * flipped * cross + flipped**2 * (weight * sizes**2).sum()
    floor = np.maximum(ROUNDING * squares, 1e-300)
    t = np.abs(flipped * total) / np.sqrt(np.maximum(variance, floor))
    reached = t[0] * (1 - 1e-9)
    p = (t >= reached).mean(0)
    largest = np.sort(t.max(1))
    return p, (len(largest) - np.searchsorted(largest, reached)) / len(largest)


def _described(n: int, unit: str, seed: int) -> tuple[str, float]:
    """The method in words, and the smallest p it can give."""
    if n <= EXACT_UP_TO:
        return f"exact sign flips over {n} {unit}s, max-T over layers", 2.0 / 2.0**n if n else math.nan
    text = f"{RESAMPLES} sign flips over {n} {unit}s, max-T over layers, seed {seed}"
    return text, 1 / (RESAMPLES + 1)
