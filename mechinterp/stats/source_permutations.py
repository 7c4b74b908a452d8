"""What chance does to directed pairs: targets permuted inside each source, and whole sources permuted."""

import math
from collections.abc import Sequence
from functools import lru_cache, reduce

import numpy as np
from jaxtyping import Float, Int

from mechinterp.stats.association import EXACT_UP_TO, orderings, rank_score, reached

Rows = dict[str, Int[np.ndarray, "target"]]  # the pairs of each source
Ranks = tuple[np.ndarray | None, np.ndarray | None]  # pooled scores of predictor and outcome


def within_p(
    x: Float[np.ndarray, "pair"],
    y: Float[np.ndarray, "pair"],
    rows: list[Int[np.ndarray, "target"]],
    seed: int,
    permutations: int,
) -> tuple[float, str]:
    """Targets change places inside each source, apart from the others; the statistic is the mean rho."""
    if not rows:
        return math.nan, "no source has a rho"
    scores = [(rank_score(x[row]), rank_score(y[row])) for row in rows]
    observed = sum(float(u @ v) for u, v in scores) / len(rows)
    total = math.prod(math.factorial(len(row)) for row in rows)
    if total <= math.factorial(EXACT_UP_TO):
        every = [v[orderings(len(v))] @ u for u, v in scores]
        means = reduce(np.add.outer, every).ravel() / len(rows)
        method = f"targets permuted within source, all {total} ways"
        return reached(means, observed) / total, method
    means = np.zeros(permutations)
    orders = _drawn_orders(tuple(len(row) for row in rows), permutations, seed)
    for (u, v), order in zip(scores, orders, strict=True):
        means += np.take(v, order) @ u / len(rows)
    method = f"targets permuted within source, {permutations} draws, seed {seed}"
    return (1 + reached(means, observed)) / (1 + permutations), method


@lru_cache(maxsize=1)
def _drawn_orders(
    sizes: tuple[int, ...], permutations: int, seed: int
) -> tuple[Int[np.ndarray, "draw target"], ...]:
    """Orders of each source's targets, kept for the next predictor: to draw them takes longest.

    A hundred sources of a hundred targets take 100 MB, for which one set is kept.
    """
    generator = np.random.default_rng(seed)
    return tuple(
        generator.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1).astype(np.min_scalar_type(n))
        for n in sizes
    )


def block_p(
    ranks: Ranks, rows: Rows, targets: Sequence[str], seed: int, permutations: int
) -> tuple[float, str]:
    """Each source is given another's whole row of predictors; the statistic is the pooled rho.

    Pooled ranks do not change when rows change places, so rho is a sum over sources of products of rows.
    """
    k = len(rows)
    if ranks[0] is None or ranks[1] is None:
        return math.nan, "x or y constant"
    if k < 2 or len({len(row) for row in rows.values()}) > 1:
        return (
            math.nan,
            f"{k} sources with unequal numbers of targets cannot change places" if k > 1 else "one source",
        )
    products = _given(ranks[0], ranks[1], np.stack(list(rows.values())), targets)
    observed = float(np.trace(products))
    if k <= EXACT_UP_TO:
        drawn = products[np.arange(k), orderings(k)].sum(1)
        text = f"whole sources permuted, all {len(drawn)} ways: no p below {1 / len(drawn):.2g}"
        return reached(drawn, observed) / len(drawn), text
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(k), (permutations, 1)), axis=1)
    drawn = products[np.arange(k), orders].sum(1)
    text = f"whole sources permuted, {permutations} draws, seed {seed}"
    return (1 + reached(drawn, observed)) / (1 + permutations), text


def _given(
    x: Float[np.ndarray, "pair"],
    y: Float[np.ndarray, "pair"],
    table: Int[np.ndarray, "source target"],
    targets: Sequence[str],
) -> Float[np.ndarray, "receiver giver"]:
    """x of the giver's pairs times y of the receiver's, summed over the receiver's targets.

    Sources lack themselves as target: where B gives to A, its value at A stands in for its own. What only one
    of them has is paired in order.
    """
    number = {name: k for k, name in enumerate(dict.fromkeys(targets))}
    target = np.array([number[name] for name in targets])[table]
    place = np.full((len(table), len(number)), -1)
    np.put_along_axis(place, target, table, axis=1)
    products = np.empty((len(table), len(table)))
    for receiver, row in enumerate(table):
        wanted = np.zeros(len(number), dtype=bool)
        wanted[target[receiver]] = True
        given = place[:, target[receiver]]
        given[given < 0] = table[~wanted[target]]  # of each giver as many as are missing
        products[receiver] = x[given] @ y[row]
    return products
