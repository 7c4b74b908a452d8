"""Bootstrap over examples or over whole clusters of them, every layer under the same resamples.

Resampled means of few clusters are too narrow even when widened as Student's t is; for 4 to 20 clusters
`stats.clustered` is the interval to draw. The bootstrap is for what has no formula: peaks, centres of mass.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

from mechinterp.stats.intervals import RESAMPLES, CurveInterval, bootstrap_tails, resampled_counts


def complete_rows(values: Float[np.ndarray, "example *axes"]) -> np.ndarray:
    """Which examples have no missing number: a mask, so that labels can follow the rows that stay."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def published_sem(
    values: Float[np.ndarray, "example *axes"], *, n_boot: int = 1000, seed: int = 42
) -> Float[np.ndarray, "*axes"]:
    """The standard error as the published study drew it, draw for draw (methods 6).

    Examples are resampled with PCG64, one `integers(0, n, size=n)` call a resample, rows with a missing value
    dropped first; the spread (ddof 1) of the mean vectors is the error. Fewer than two examples give NaN.
    """
    rows = values[complete_rows(values)].astype(np.float64)
    n = len(rows)
    if n < 2:
        return np.full(values.shape[1:], math.nan)
    generator = np.random.Generator(np.random.PCG64(seed))
    counts = np.stack(
        [np.bincount(generator.integers(0, n, size=n), minlength=n).astype(float) for _ in range(n_boot)]
    )
    means = counts @ rows.reshape(n, -1) / n
    return means.std(axis=0, ddof=1).reshape(values.shape[1:])


def resampled_means(
    values: Float[np.ndarray, "example layer"],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "resample layer"]:
    """The mean curve of each resample of examples, or of whole clusters when their labels are given."""
    sums, sizes, _ = cluster_sums(values, clusters)
    drawn = resampled_counts(len(sizes), resamples, seed)
    return (drawn @ sums) / (drawn @ sizes)[:, None]


def bootstrap_curve(
    values: Float[np.ndarray, "example layer"],
    clusters: Sequence[Hashable] | None = None,
    *,
    unit: str = "example",
    seed: int = 0,
    level: float = 0.95,
) -> CurveInterval:
    """Mean of each layer with pointwise percentile bounds; fewer than three units leave the bounds NaN."""
    kept = complete_rows(values)
    rows = values[kept].astype(np.float64)
    labels = None if clusters is None else [name for name, keep in zip(clusters, kept, strict=True) if keep]
    n = len(rows) if labels is None else len(set(labels))
    method = f"bootstrap over {n} {unit}s ({len(rows)} examples), {RESAMPLES} resamples, seed {seed}"
    missing = np.full(values.shape[1], math.nan)
    estimate, low, high = rows.mean(0) if n else missing, missing, missing
    if n >= 3:
        low, high = np.quantile(resampled_means(rows, labels, seed=seed), bootstrap_tails(n, level), axis=0)
    return CurveInterval(estimate, low, high, np.full(len(missing), n), unit, method, level)


def cluster_sums(
    values: Float[np.ndarray, "example layer"], clusters: Sequence[Hashable] | None
) -> tuple[Float[np.ndarray, "cluster layer"], Float[np.ndarray, "cluster"], list[Hashable]]:
    """Sum and size of each cluster, in order of first appearance; without labels each example is its own.

    Raises ValueError for missing values, which no sum can hold, or another number of labels than examples.
    """
    bad = int((~complete_rows(values)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} examples hold NaN or infinity; leave them out and report how many"
        )
    labels = range(len(values)) if clusters is None else clusters
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} examples need one cluster label each, not {len(labels)}")
    place = {name: index for index, name in enumerate(dict.fromkeys(labels))}
    sums = np.zeros((len(place), values.shape[1]))
    index = np.array([place[name] for name in labels], dtype=int)
    np.add.at(sums, index, values.astype(np.float64))
    return sums, np.bincount(index, minlength=len(place)).astype(float), list(place)
