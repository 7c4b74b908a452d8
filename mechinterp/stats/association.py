"""Rank and linear correlation with its unit, exact where few things are compared (methods 6).

At n = 5 scipy's p of rho = -0.9 is 0.037, the exact one 0.083: up to eight units every ordering is counted.
What has no correlation, because one side is constant, gives NaN and says which side.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

EXACT_UP_TO = 8  # units: 8! = 40,320 orderings are enumerated
ROUNDING = 1e-12  # of a correlation: what two ways of summing may differ by
CONSTANT = 1e-13  # of the largest value: a spread below it is rounding


@dataclass(frozen=True)
class Association:
    """A correlation with its two-sided p; n counts the units that were taken as independent."""

    estimate: float
    p: float
    n: int
    unit: str
    method: str
    p_method: str
    asymptotic_p: float  # what scipy says by default


def spearman(x: Float[np.ndarray, "x"], y: Float[np.ndarray, "y"], *, unit: str) -> Association:
    """Spearman's rho, average ranks for ties; ValueError for unequal lengths, missing values or n < 3."""
    return _correlation(x, y, "Spearman", unit)


def pearson(x: Float[np.ndarray, "x"], y: Float[np.ndarray, "y"], *, unit: str) -> Association:
    """Pearson's r; ValueError for unequal lengths, missing values or n < 3."""
    return _correlation(x, y, "Pearson", unit)


def partial_spearman(
    x: Float[np.ndarray, "x"], y: Float[np.ndarray, "y"], given: Float[np.ndarray, "given"], *, unit: str
) -> Association:
    """rho of x and y given a third: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)), t with n - 3.

    It is Pearson's r of the residuals of ranks on ranks; `asymptotic_p` is that call's, which takes n - 2.
    ValueError for unequal lengths, missing values or n < 4.
    """
    x, y, z = finite_columns(fewest=4, x=x, y=y, given=given)
    n, method = len(x), "partial Spearman"
    for name, values in (("x", x), ("y", y), ("given", z)):
        if is_constant(values):
            return undefined(n, unit, f"{method}: {name} is constant")
    r_xy, r_xz, r_yz = (
        rank_score(x) @ rank_score(y),
        rank_score(x) @ rank_score(z),
        rank_score(y) @ rank_score(z),
    )
    left = (1 - r_xz**2) * (1 - r_yz**2)
    if left <= ROUNDING:
        return undefined(
            n, unit, f"{method}: given ranks as x or y do, so nothing of them is left (constant)"
        )
    r = float(np.clip((r_xy - r_xz * r_yz) / math.sqrt(left), -1, 1))
    return Association(r, t_p(r, n - 3), n, unit, method, "Student t, df n - 3", t_p(r, n - 2))


def undefined(n: int, unit: str, method: str) -> Association:
    """An association that does not exist; `method` says why."""
    return Association(math.nan, math.nan, n, unit, method, "none", math.nan)


def finite_columns(*, fewest: int = 3, **columns: Float[np.ndarray, "_"]) -> list[Float[np.ndarray, "n"]]:
    """The named columns as float64; ValueError names the one that is too short or has missing values."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    (first, reference), *others = arrays.items()
    for name, values in others:
        if values.shape != reference.shape:
            raise ValueError(
                f"{first} has shape {reference.shape} and {name} {values.shape}; they need one value each"
            )
    for name, values in arrays.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise ValueError(
                f"{bad} of {values.size} values of {name} are NaN or infinite; leave out those rows of every "
                "column and report how many"
            )
    if reference.ndim != 1 or len(reference) < fewest:
        raise ValueError(
            f"{first} has shape {reference.shape}; this needs one axis of at least {fewest} values"
        )
    return list(arrays.values())


def is_constant(values: Float[np.ndarray, "n"]) -> bool:
    """Whether nothing varies but rounding."""
    return bool(np.ptp(values) <= CONSTANT * np.abs(values).max())


def unit_score(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Centred and of length one, so that the product of two is their correlation."""
    centred = values - values.mean()
    centred = centred / np.abs(centred).max()  # squares of tiny values would be zero
    return centred / np.sqrt(centred @ centred)


def rank_score(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Average ranks, centred and of length one."""
    from scipy.stats import rankdata

    return unit_score(rankdata(values))


def orderings(n: int) -> Int[np.ndarray, "ordering n"]:
    """Every ordering of n things, the given one first."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.intp).reshape(math.factorial(n), n)


def reached(drawn: Float[np.ndarray, "ordering"], observed: float) -> int:
    """How many orderings are at least as far from zero as what was observed."""
    return int((np.abs(drawn) >= abs(observed) - ROUNDING).sum())


def t_p(r: float, freedom: int) -> float:
    """Two-sided p of a correlation: t = r sqrt(df / (1 - r^2))."""
    from scipy.special import stdtr

    if freedom < 1 or not math.isfinite(r):
        return math.nan
    if abs(r) >= 1:
        return 0.0
    return float(2 * stdtr(freedom, -abs(r) * math.sqrt(freedom / (1 - r * r))))


def _correlation(
    x: Float[np.ndarray, "x"], y: Float[np.ndarray, "y"], method: Literal["Spearman", "Pearson"], unit: str
) -> Association:
    from scipy import stats

    x, y = finite_columns(x=x, y=y)
    n = len(x)
    fixed = [name for name, values in (("x", x), ("y", y)) if is_constant(values)]
    if fixed:
        return undefined(n, unit, f"{method}: {' and '.join(fixed)} constant")
    estimate, asymptotic = map(float, (stats.spearmanr if method == "Spearman" else stats.pearsonr)(x, y))
    if n > EXACT_UP_TO:
        return Association(estimate, asymptotic, n, unit, method, "Student t, df n - 2", asymptotic)
    score = rank_score if method == "Spearman" else unit_score
    u, v = score(x), score(y)
    count, total = reached(v[orderings(n)] @ u, float(u @ v)), math.factorial(n)
    return Association(estimate, count / total, n, unit, method, f"exact over {total} orderings", asymptotic)
