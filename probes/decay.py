"""What stays after the release: normalised persistence, means over windows, half-life (methods.md 10.2)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.stats.halflife import HalfLife, half_life


def normalised(curves: Float[Tensor, "row token"], floor: float, ceiling: float) -> Float[Tensor, "row"]:
    """(mean projection - floor) / (ceiling - floor) of each row; NaN unless ceiling > floor."""
    if not ceiling > floor:
        return torch.full((len(curves),), torch.nan)
    return (curves.nanmean(1) - floor) / (ceiling - floor)


def windows(curves: Float[Tensor, "row token"], n_windows: int) -> Float[Tensor, "row window"]:
    """The mean of each row over equal windows of the free phase; NaN where a row had ended."""
    if n_windows < 1:
        raise ValueError(f"curves are cut into 1 or more windows, not {n_windows}")
    return torch.stack([part.nanmean(1) for part in curves.tensor_split(n_windows, dim=1)], 1)


def release_half_life(free_curves: Float[Tensor, "row token"], floor: float, *, seed: int = 0) -> HalfLife:
    """The half-life of the excess over the floor, in tokens from the first free one, bootstrapped over runs.

    Not identified, with the reason, where runs ended too early to have one.
    """
    n, window = free_curves.shape
    if window >= 3 and math.isfinite(floor):
        return half_life(free_curves, floor=floor, seed=seed)
    reason = f"{window} free tokens: 3 are needed" if window < 3 else "the floor has no free tokens"
    return HalfLife(
        math.nan, math.nan, math.nan, n, "run", "exponential fit", False, reason,
        amplitude=math.nan, floor=floor, window=window, r_squared=math.nan, p_excess=math.nan,
    )  # fmt: skip
