"""Heads chosen on one half of the examples and reported on the other, so that the choice costs nothing."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechinterp.stats.bootstrap import complete_rows
from mechinterp.stats.clustered import ClusteredMean, clustered_mean

HEADS_PER_LAYER = 3


@dataclass(frozen=True, eq=False)
class HeadSelection:
    """The heads of each layer with the largest |mean| / SEM on one half, and what the other half says.

    `signed` is the held-out contrast of the chosen heads, each turned by the sign it was chosen with.
    """

    heads: Int[np.ndarray, "layer chosen"]
    chosen_on: tuple[int, ...]  # places of the examples
    reported_on: tuple[int, ...]
    chosen_mean: Float[np.ndarray, "layer chosen"]
    held_out_mean: Float[np.ndarray, "layer chosen"]
    held_out_sem: Float[np.ndarray, "layer chosen"]
    same_sign: Bool[np.ndarray, "layer chosen"]
    signed: ClusteredMean  # a layer each, and last the mean over layers


def select_heads(
    contrast: Float[np.ndarray, "example layer head"],
    clusters: Sequence[Hashable] | None = None,
    *,
    per_layer: int = HEADS_PER_LAYER,
    seed: int = 42,
) -> HeadSelection:
    """Split-half selection as published (methods 9.6), with the error and the sign's agreement beside it.

    Examples are permuted by `default_rng(seed)` and the first half chooses. With cluster labels whole
    clusters are permuted instead, so that no question is in both halves. Raises ValueError for fewer than
    six examples or missing values: their places would not be those of the split.
    """
    if len(contrast) < 6 or not complete_rows(contrast).all():
        gaps = int((~complete_rows(contrast)).sum())
        raise ValueError(
            f"split halves need 6 or more complete examples, not {len(contrast)} with {gaps} NaN"
        )
    first, second = split_halves(len(contrast), clusters, seed=seed)
    mean, error = _mean_and_sem(contrast[first])
    with np.errstate(invalid="ignore", divide="ignore"):
        strength = np.nan_to_num(np.abs(mean) / error, nan=0.0)
    heads = np.argsort(-strength, axis=1, kind="stable")[:, :per_layer]
    chosen = np.take_along_axis(mean, heads, 1)
    held_out = np.take_along_axis(contrast[second], heads[None], 2)
    held_mean, held_sem = _mean_and_sem(held_out)
    turned = (held_out * np.sign(chosen)).mean(2)
    labels = None if clusters is None else [clusters[place] for place in second]
    signed = clustered_mean(np.concatenate([turned, turned.mean(1, keepdims=True)], axis=1), labels)
    return HeadSelection(
        heads, tuple(first), tuple(second), chosen, held_mean, held_sem, chosen * held_mean > 0, signed
    )


def split_halves(
    n_examples: int, clusters: Sequence[Hashable] | None = None, *, seed: int = 42
) -> tuple[list[int], list[int]]:
    """Places of two halves, in permuted order; of whole clusters where labels are given."""
    generator = np.random.default_rng(seed)
    if clusters is None:
        order = generator.permutation(n_examples).tolist()
        return order[: n_examples // 2], order[n_examples // 2 :]
    if len(clusters) != n_examples:
        raise ValueError(f"{n_examples} examples need one cluster label each, not {len(clusters)}")
    names = list(dict.fromkeys(clusters))
    order = generator.permutation(len(names)).tolist()
    choosing = {names[place] for place in order[: len(names) // 2]}
    first = [place for place, name in enumerate(clusters) if name in choosing]
    return first, [place for place, name in enumerate(clusters) if name not in choosing]


def _mean_and_sem(
    rows: Float[np.ndarray, "example layer head"],
) -> tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
    """Mean and analytic standard error (ddof 1)."""
    return rows.mean(0), rows.std(0, ddof=1) / np.sqrt(len(rows))
