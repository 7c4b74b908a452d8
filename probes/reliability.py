"""How far the direction found in a few prompts can be trusted: its halves, and shuffled labels."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.cells import cell_seed
from mechinterp.directions import ROUNDING, NormNull, cosine, mean_difference, permutation_norm_null


def derived_generator(seed: int, what: str) -> torch.Generator:
    """A generator of its own for each purpose, so that adding one leaves the others' draws as they are."""
    return torch.Generator().manual_seed(cell_seed(seed, what, 0))


def split_half(
    sets: Sequence[Float[Tensor, "_n layer d_model"]],
    contrast: Callable[[Float[Tensor, "set layer d_model"]], Float[Tensor, "row layer d_model"]],
    generator: torch.Generator,
    *,
    n_splits: int = 100,
) -> Float[Tensor, "split row layer"]:
    """Cosine between `contrast` of the sets' means over two random halves of each.

    Sets of one size are split alike, so prompts paired by their order stay together. No rows where a set has
    fewer than two prompts: it has no halves.
    """
    if min(len(rows) for rows in sets) < 2:
        n_splits = 0
    cosines = []
    for _ in range(n_splits):
        orders = {n: torch.randperm(n, generator=generator) for n in sorted({len(rows) for rows in sets})}
        halves = [orders[len(rows)].tensor_split([len(rows) // 2]) for rows in sets]
        means = [
            torch.stack([rows[h[side]].mean(0) for rows, h in zip(sets, halves, strict=True)])
            for side in (0, 1)
        ]
        cosines.append(cosine(contrast(means[0]), contrast(means[1])))
    if not cosines:
        return torch.empty(0, *contrast(torch.stack([rows.mean(0) for rows in sets])).shape[:-1])
    return torch.stack(cosines)


def norm_null(
    a: Float[Tensor, "n layer d_model"], b: Float[Tensor, "m layer d_model"], generator: torch.Generator
) -> NormNull:
    """The norm of the mean difference and its permutation null; with one prompt a side none, and p is NaN."""
    if len(a) == len(b) == 1:
        norm = mean_difference(a, b).norm(dim=-1)
        return NormNull(norm, norm.new_empty(0, *norm.shape), torch.full_like(norm, torch.nan))
    return permutation_norm_null(a, b, generator)


def percentile(null: NormNull) -> Float[Tensor, "layer"]:
    """The share of the null's norms below the one observed, in percent; NaN without a null."""
    return 100 * (null.null < null.observed * (1 - ROUNDING)).float().mean(0)


def small(counts: Sequence[int]) -> tuple[str, ...]:
    """What sets of these sizes cannot show, in sentences."""
    if min(counts) > 1:
        return ()
    if max(counts) == 1:
        return ("n = 1 a side: no split halves and no permutation null, so the error is unknown",)
    return ("n = 1 on one side: no split halves",)
