"""Pair matrices: Mantel by hand, the node bootstrap by hand and by coverage, and what pairs alone claim."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mechinterp.stats import dyadic
from mechinterp.stats.dyadic import dyadic_spearman, node_bootstrap


def names(k: int) -> list[str]:
    return [f"p{n}" for n in range(k)]


def distances(places: np.ndarray) -> np.ndarray:
    return np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))


def two_maps(k: int, noise: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Distances of k nodes, and of the same nodes moved: dyads that share nodes are dependent."""
    places = generator.normal(size=(k, 2))
    return distances(places), distances(places + noise * generator.normal(size=(k, 2)))


def rho(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray) -> float:
    return float(stats.spearmanr(a[i, j], b[i, j]).statistic)


def test_the_estimate_is_rho_over_unordered_pairs_with_the_naive_p_beside():
    a, b = two_maps(11, 0.8, np.random.default_rng(0))
    found = dyadic_spearman(a, b, names=names(11), resamples=50)
    expected = stats.spearmanr(a[np.triu_indices(11, 1)], b[np.triu_indices(11, 1)])
    assert found.estimate == pytest.approx(expected.statistic)
    assert found.naive.p == pytest.approx(expected.pvalue) and "naive" in found.naive.p_method
    assert (found.n_nodes, found.n_pairs, found.naive.unit) == (11, 55, "pair")


@pytest.mark.parametrize("k", [4, 5])
def test_mantel_p_counts_every_relabelling(k):
    a, b = two_maps(k, 1.0, np.random.default_rng(1))
    i, j = np.triu_indices(k, 1)
    every = [rho(a, b[np.ix_(order, order)], i, j) for order in map(list, itertools.permutations(range(k)))]
    found = dyadic_spearman(a, b, names=names(k), resamples=50)
    assert found.p == pytest.approx(np.mean(np.abs(every) >= abs(found.estimate) - 1e-12))
    assert f"all {math.factorial(k)}" in found.p_method


def test_mantel_p_of_many_nodes_is_drawn_with_its_seed():
    a, b = two_maps(12, 3.0, np.random.default_rng(3))
    first, again, other = (dyadic_spearman(a, b, names=names(12), resamples=20, seed=s) for s in (1, 1, 2))
    assert first == again and "seed 1" in first.p_method
    assert abs(first.p - other.p) < 6 * math.sqrt(0.25 / 10_000)


def test_bounds_are_percentiles_over_the_resamples_of_nodes():
    """Tied values too: the quick ranks must be scipy's."""
    a, b = (np.round(matrix, 1) for matrix in two_maps(8, 0.8, np.random.default_rng(4)))
    by_hand = node_bootstrap(lambda i, j: rho(a, b, i, j), 8, seed=5, resamples=200)
    found = dyadic_spearman(a, b, names=names(8), seed=5, resamples=200, level=0.9)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_hand, [0.05, 0.95])))
    assert found.low < found.estimate < found.high


def test_a_node_drawn_twice_makes_no_pair_with_itself_and_counts_twice_with_others():
    seen = []
    node_bootstrap(lambda i, j: seen.append((i, j)) or 0.0, 5, resamples=100)
    assert all((i != j).all() for i, j in seen)
    generator = np.random.default_rng(0)
    for i, j in seen:
        times = np.bincount(generator.integers(0, 5, 5), minlength=5)
        counted = np.zeros((5, 5))
        np.add.at(counted, (i, j), 1)
        counted += counted.T
        assert (counted == np.outer(times, times) - np.diag(times**2)).all()


def test_the_bounds_hold_the_truth():
    generator = np.random.default_rng(6)
    many = two_maps(600, 0.8, generator)
    truth = rho(*many, *np.triu_indices(600, 1))
    within = []
    for seed in range(100):
        found = dyadic_spearman(*two_maps(7, 0.8, generator), names=names(7), seed=seed, resamples=200)
        within.append(found.low <= truth <= found.high)
    assert np.mean(within) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 100)


def test_fault_107_pairs_that_share_nodes_reject_what_is_not_there():
    """Each value is the sum of its two nodes' effects, drawn apart for the two matrices."""
    generator = np.random.default_rng(7)
    p = []
    for _ in range(150):
        a, b = (effects[:, None] + effects[None] for effects in generator.normal(size=(2, 7)))
        found = dyadic_spearman(a, b, names=names(7), resamples=5)
        p.append((found.naive.p, found.p))
    naive, mantel = (np.array(p) <= 0.05).mean(0)
    assert naive > 0.2
    assert 0.01 < mantel <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_fault_106_a_constant_matrix_and_few_nodes_say_so():
    a, b = two_maps(6, 0.5, np.random.default_rng(8))
    found = dyadic_spearman(a, np.ones((6, 6)), names=names(6))
    assert math.isnan(found.estimate) and math.isnan(found.p) and math.isnan(found.low)
    assert "y constant" in found.note
    few = dyadic_spearman(a[:4, :4], b[:4, :4], names=names(4))
    assert math.isnan(few.low) and math.isfinite(few.p) and "5 are needed" in few.note


def test_the_diagonal_is_nothing_and_arguments_stay():
    a, b = two_maps(6, 0.5, np.random.default_rng(9))
    expected = dyadic_spearman(a, b, names=names(6), resamples=30)
    np.fill_diagonal(a, math.nan)
    before = a.copy()
    assert dyadic_spearman(a, b, names=names(6), resamples=30) == expected
    assert np.array_equal(a, before, equal_nan=True)


def test_matrices_that_are_no_pair_matrices_are_refused():
    a, b = two_maps(5, 0.5, np.random.default_rng(10))
    skewed, holed = a.copy(), a.copy()
    skewed[0, 1] += 1
    holed[0, 1] = holed[1, 0] = math.nan
    for first, called, says in (
        (skewed, names(5), "not symmetric"),
        (holed, names(5), "2 values of a"),
        (a, names(4), "for 4 names"),
        (a, [*names(4), "p0"], "must differ"),
    ):
        with pytest.raises(ValueError, match=says):
            dyadic_spearman(first, b, names=called)


def test_what_is_symmetric_but_for_rounding_is_taken_and_what_is_not_is_refused_by_name():
    a, b = two_maps(5, 0.5, np.random.default_rng(11))
    a = 100 * a / np.abs(a).max()  # rounding goes with the largest
    a[0, 1], a[1, 0] = 0.001, 0.00105
    assert math.isfinite(dyadic_spearman(a, b, names=names(5), resamples=10).estimate)
    slightly = b.copy()
    slightly[0, 1] = b[1, 0] + 5e-6 * np.abs(b).max()
    with pytest.raises(ValueError, match="^b is not symmetric"):
        dyadic_spearman(a, slightly, names=names(5))


def test_a_resample_of_nodes_has_a_rho_from_three_pairs_that_differ():
    """Against scipy, pair by pair; a node that is drawn again makes fewer pairs."""
    a, b = two_maps(3, 0.5, np.random.default_rng(12))
    drawn = np.array([(0, 1, 2), (2, 0, 1), (0, 1, 1), (2, 2, 2)])
    found = dyadic._resampled_rho(dyadic._dense(a), dyadic._dense(b), drawn)
    first, second = np.triu_indices(3, 1)
    for rho, nodes in zip(found, drawn, strict=True):
        i, j = (nodes[side][nodes[first] != nodes[second]] for side in (first, second))
        if len(set(a[i, j])) > 1 and len(i) >= 3:
            assert rho == pytest.approx(stats.spearmanr(a[i, j], b[i, j])[0])
        else:
            assert math.isnan(rho)
