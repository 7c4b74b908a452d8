"""Half-life of a steered persona: an exponential fitted to the projection after steering ends (methods 10.2).

    projection(t) = floor + amplitude * 2^(-t / half_life),    t = 0 at the first free token

The fit is least squares on the mean over runs; for each half-life of a grid the amplitude is closed-form, so
that every resample of runs is refitted in one matrix product. A half-life that the data cannot fix is
reported as such.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechinterp.stats.intervals import bootstrap_tails, resampled_counts

RESAMPLES = 2_000
FASTEST = 0.25  # tokens: below it the excess is gone before a second token could show it
SLOWEST = 10.0  # windows: above it a curve is flat for any eye


@dataclass(frozen=True)
class HalfLife:
    """Half-life in tokens; where not identified, `reason` says why and only a finite bound, if any, holds."""

    estimate: float
    low: float
    high: float
    n: int
    unit: str
    method: str
    identified: bool
    reason: str
    amplitude: float  # excess over the floor at t = 0
    floor: float
    window: int  # free tokens that were fitted
    r_squared: float  # of the mean curve about its own mean
    p_excess: float  # sign flips of whole runs: is there an excess over the floor at all?
    level: float = 0.95


def half_life(
    curves: Float[Tensor, "run position"],
    *,
    floor: float,
    seed: int = 0,
    unit: str = "run",
    level: float = 0.95,
) -> HalfLife:
    """One half-life for all runs, its interval by bootstrap over runs; NaN marks tokens a run did not reach.

    The floor (unsteered projection) is taken as known: its own error is not in the interval. Raises
    ValueError for fewer than three positions, an infinite value, or a floor that is not finite.
    """
    y = curves.detach().double().cpu().numpy() - floor
    n, window = y.shape
    if window < 3 or not math.isfinite(floor) or np.isinf(y).any():
        raise ValueError(
            f"a half-life needs 3 or more finite positions and a floor, not {window} and floor {floor}"
        )
    seen = np.isfinite(y)
    y = np.where(seen, y, 0.0)
    seen = seen.astype(float)
    grid = np.geomspace(FASTEST, SLOWEST * window, 240)
    decay = 2.0 ** (-np.arange(window)[:, None] / grid)
    estimate = float(_fit(np.ones((1, n)), y, seen, decay, grid)[0])
    shape = 2.0 ** (-np.arange(window) / estimate)
    amplitude = float((y @ shape).sum() / max((seen @ shape**2).sum(), 1e-300))
    needed = max(3, math.ceil(-math.log2(1 - level)))  # fewer sign flips than this cannot reach 1 - level
    low, high, p_excess, reason = math.nan, math.nan, math.nan, f"n={n} {unit}s: {needed} are needed"
    if n >= needed:
        resampled = _fit(resampled_counts(n, RESAMPLES, seed), y, seen, decay, grid)
        low, high = (float(x) for x in np.quantile(resampled, bootstrap_tails(n, level)))
        p_excess = _sign_flip_p(y, seen, decay, seed)
        low, high, reason = _judge(estimate, low, high, window, p_excess, 1 - level)
    shown = math.nan if reason else estimate
    method = f"exponential fit, bootstrap over {n} {unit}s, {RESAMPLES} resamples, seed {seed}"
    r_squared = _r_squared(y, seen, amplitude * shape)
    return HalfLife(
        shown,
        low,
        high,
        n,
        unit,
        method,
        not reason,
        reason,
        amplitude,
        floor,
        window,
        r_squared,
        p_excess,
        level,
    )


def _fit(
    counts: Float[np.ndarray, "resample run"],
    y: Float[np.ndarray, "run position"],
    seen: Float[np.ndarray, "run position"],
    decay: Float[np.ndarray, "position grid"],
    grid: Float[np.ndarray, "grid"],
) -> Float[np.ndarray, "resample"]:
    """Half-life of each resample: the grid point of most variance explained, refined by a parabola."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = (counts @ seen) @ decay**2
        product = ((counts @ y) @ decay).clip(min=0)  # an excess below the floor is none to decay
        explained = np.where(norm > 0, product**2 / norm, 0.0)
    best = explained.argmax(1)
    row = np.arange(len(best))
    inner = best.clip(1, len(grid) - 2)
    left, middle, right = (explained[row, inner + step] for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where((inner == best) & (bend < 0), 0.5 * (left - right) / np.where(bend == 0, 1, bend), 0.0)
    step = math.log(grid[1] / grid[0])
    return grid[best] * np.exp(shift.clip(-0.5, 0.5) * step)


def _sign_flip_p(
    y: Float[np.ndarray, "run position"],
    seen: Float[np.ndarray, "run position"],
    decay: Float[np.ndarray, "position grid"],
    seed: int,
) -> float:
    """One-sided p of the best-fitting excess when whole runs may change sign; exact up to 12 runs.

    The maximum over half-lives is retaken in every flip, so that having searched for one is paid for.
    """
    n = len(y)
    if n <= 12:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, size=(4096, n)) * 2.0 - 1.0
        signs = np.concatenate([np.ones((1, n)), drawn])
    scale = np.sqrt(np.maximum(seen.sum(0) @ decay**2, 1e-300))
    best = ((signs @ y) @ decay / scale).max(1)
    return float((best >= best[0] * (1 - 1e-9) - 1e-300).mean())


def _judge(
    estimate: float, low: float, high: float, window: int, p_excess: float, alpha: float
) -> tuple[float, float, str]:
    """The bounds that hold, and why the half-life is not identified (empty where it is)."""
    if p_excess > alpha:
        return math.nan, math.nan, f"no excess over the floor to decay (sign-flip p = {p_excess:.2g})"
    if high <= 2 * FASTEST:
        return math.nan, high, "the excess is gone within one token, so the half-life has only an upper bound"
    if estimate > window:
        return low, math.nan, f"half-life beyond the window of {window} tokens, so it has only a lower bound"
    if high >= 0.99 * SLOWEST * window:
        return low, math.nan, f"some resamples show no decay in {window} tokens, so it has only a lower bound"
    return low, high, ""


def _r_squared(
    y: Float[np.ndarray, "run position"],
    seen: Float[np.ndarray, "run position"],
    fitted: Float[np.ndarray, "position"],
) -> float:
    weight = seen.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(weight > 0, y.sum(0) / weight, 0.0)
    total = float((weight * (mean - np.average(mean, weights=weight)) ** 2).sum()) if weight.sum() else 0.0
    return 1 - float((weight * (mean - fitted) ** 2).sum()) / total if total > 0 else math.nan
