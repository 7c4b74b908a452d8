"""What a second predictor adds to a first in least squares: delta R^2 and its partial F (methods 6)."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechinterp.stats.association import finite_columns, is_constant


@dataclass(frozen=True)
class AddedPredictor:
    """R^2 with one predictor and with both; F tests their difference. NaN figures say why in `note`."""

    r2_first: float
    r2_both: float
    delta_r2: float
    f: float
    p: float
    df: tuple[int, int]
    n: int
    unit: str
    note: str = ""


def added_predictor(
    outcome: Float[np.ndarray, "outcome"],
    first: Float[np.ndarray, "first"],
    added: Float[np.ndarray, "added"],
    *,
    unit: str,
) -> AddedPredictor:
    """Ordinary least squares on raw values with intercept: F = delta R^2 / ((1 - R^2_both) / (n - 3)).

    Rows are taken as independent; over directed pairs of few sources the p is the naive one. ValueError for
    unequal lengths, missing values or fewer than four rows.
    """
    from statsmodels.regression.linear_model import OLS

    y, a, b = finite_columns(fewest=4, outcome=outcome, first=first, added=added)
    n = len(y)
    y, a, b = (_standardised(column) for column in (y, a, b))
    constant = [name for name, column in (("outcome", y), ("first", a), ("added", b)) if column is None]
    if y is None or a is None or b is None:
        return _undefined(n, unit, f"{' and '.join(constant)} constant")
    if 1 - (a @ b / n) ** 2 < 1e-12:
        return _undefined(n, unit, "added is first in another scale (they correlate fully)")
    intercept = np.ones(n)
    reduced = OLS(y, np.column_stack([intercept, a])).fit()
    full = OLS(y, np.column_stack([intercept, a, b])).fit()
    r2_first, r2_both = float(reduced.rsquared), float(full.rsquared)
    if 1 - r2_both < 1e-12:
        note = "both together fit every row, so F has no error to stand on"
        return AddedPredictor(
            r2_first, r2_both, r2_both - r2_first, math.nan, math.nan, (1, n - 3), n, unit, note
        )
    f, p, _ = full.compare_f_test(reduced)
    return AddedPredictor(r2_first, r2_both, r2_both - r2_first, float(f), float(p), (1, n - 3), n, unit)


def _standardised(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"] | None:
    """R^2 and F do not depend on the scale, but least squares loses digits where scales differ much."""
    return None if is_constant(values) else (values - values.mean()) / values.std()


def _undefined(n: int, unit: str, note: str) -> AddedPredictor:
    missing = math.nan
    return AddedPredictor(missing, missing, missing, missing, missing, (1, n - 3), n, unit, note)
