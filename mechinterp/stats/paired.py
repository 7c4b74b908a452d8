"""Paired differences: is their mean zero? Exact by sign flips, one flip a unit, where the units are few."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

EXACT_UP_TO = 14  # units: 2^14 flips are enumerated, more are drawn
RESAMPLES = 9_999


@dataclass(frozen=True)
class SignFlip:
    """The mean paired difference and its two-sided p; with n units no p is below 2 / 2^n."""

    estimate: float
    p: float
    n: int
    unit: str
    method: str


def sign_flip(differences: Float[Tensor, "n"], *, unit: str = "run", seed: int = 0) -> SignFlip:
    """Tests the mean of paired differences by flipping the sign of whole units; NaN with no finite
    difference.
    """
    from scipy.stats import permutation_test

    d = differences.detach().double().cpu().numpy()
    d = d[np.isfinite(d)]
    n = len(d)
    if n < 2:
        return SignFlip(float(d.mean()) if n else math.nan, math.nan, n, unit, f"sign flips need 2 {unit}s")
    exact = n <= EXACT_UP_TO
    found = permutation_test(
        (d, np.zeros_like(d)),
        lambda x, y, axis=-1: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_UP_TO if exact else RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    method = (
        f"exact sign flips over {n} {unit}s"
        if exact
        else f"{RESAMPLES} sign flips over {n} {unit}s, seed {seed}"
    )
    return SignFlip(float(d.mean()), float(found.pvalue), n, unit, method)
