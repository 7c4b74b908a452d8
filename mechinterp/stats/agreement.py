"""How alike the members of a group are, and how many independent values they are worth (methods 6)."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechinterp.stats.association import is_constant


@dataclass(frozen=True)
class Icc:
    """ICC(1,1) of a named variable; `effective_n` is n_groups at ICC 1 and all values at ICC 0 or below."""

    value: float
    effective_n: float
    n_groups: int
    n_members: int
    variable: str
    note: str = ""


def icc(values: Float[np.ndarray, "group member"], *, variable: str) -> Icc:
    """One-way random effects: (MSB - MSW) / (MSB + (m - 1) MSW), effective n = k m / (1 + (m - 1) ICC).

    The estimate can be negative and stays so; only for the effective n it is taken as 0, since k m values are
    not worth more than k m. Predictor and outcome have an ICC each, so the variable is named. Raises
    ValueError for missing values, or fewer than two groups or members.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2:
        raise ValueError(f"an ICC needs [group member] with two of each at least, not shape {x.shape}")
    bad = int((~np.isfinite(x)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {x.size} values of {variable} are NaN or infinite; leave those groups out"
        )
    k, m = x.shape
    if is_constant(x.ravel()):
        return Icc(math.nan, math.nan, k, m, variable, f"{variable} is constant")
    x = x - x.mean()
    between = m * float((x.mean(1) ** 2).sum()) / (k - 1)
    within = float(((x - x.mean(1, keepdims=True)) ** 2).sum()) / (k * (m - 1))
    value = (between - within) / (between + (m - 1) * within)
    note = "negative ICC taken as 0 for the effective n" if value < 0 else ""
    return Icc(value, k * m / (1 + (m - 1) * max(value, 0.0)), k, m, variable, note)
