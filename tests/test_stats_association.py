"""Correlations: exact p by enumeration, scipy where it is large enough, and what has no correlation."""

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from mechinterp.stats.association import partial_spearman, pearson, spearman, t_p

BOTH = {"spearman": (spearman, stats.spearmanr), "pearson": (pearson, stats.pearsonr)}


def draw(n: int, seed: int = 0, columns: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(columns, n)))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("n", [3, 5, 8, 9, 50])
def test_the_estimate_and_the_asymptotic_p_are_scipys(name, n):
    ours, theirs = BOTH[name]
    x, y = draw(n, seed=n)
    found, expected = ours(x, y, unit="pair"), theirs(x, y)
    assert found.estimate == pytest.approx(expected.statistic)
    assert found.asymptotic_p == pytest.approx(expected.pvalue)
    assert (found.n, found.unit) == (n, "pair")
    assert (found.p == found.asymptotic_p) == (n > 8) and ("exact" in found.p_method) == (n <= 8)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("values", [draw(4, 1), draw(5, 2), ([1, 1, 2, 3, 3.0], [0, 2, 2, 1, 5.0])])
def test_exact_p_counts_every_ordering(name, values):
    ours, theirs = BOTH[name]
    x, y = map(np.array, values)
    found = ours(x, y, unit="source")
    every = [theirs(x, np.array(order)).statistic for order in itertools.permutations(y)]
    assert found.p == pytest.approx(np.mean(np.abs(every) >= abs(found.estimate) - 1e-12))


def test_exact_p_at_eight_is_scipys_permutation_test():
    x, y = ((values - values.mean()) / values.std() for values in draw(8, 3))
    asked = stats.permutation_test(
        (x,),
        lambda x, axis: np.abs(np.moveaxis(x, axis, -1) @ y),
        permutation_type="pairings",
        vectorized=True,
        alternative="greater",
        n_resamples=math.factorial(8),
    )
    assert pearson(x, y, unit="source").p == pytest.approx(asked.pvalue)


def test_fault_106_five_checkpoints_are_too_few_for_the_t_approximation():
    found = spearman(np.arange(5.0), np.array([5.0, 4, 2, 3, 1]), unit="checkpoint")
    assert found.estimate == pytest.approx(-0.9)
    assert (round(found.asymptotic_p, 3), round(found.p, 3)) == (0.037, 0.083)
    perfect = spearman(np.arange(4.0), np.arange(4.0), unit="source")
    assert perfect.p == pytest.approx(2 / 24) and perfect.asymptotic_p == 0


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("level", [0.0, 0.1 + 0.2, 1e8])
def test_fault_106_a_constant_side_has_no_correlation_and_says_so(name, n, level):
    varied, constant = draw(n)[0], np.full(n, level)
    constant[0] *= 1 + 1e-15  # rounding is no variation
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left, right = (
            BOTH[name][0](constant, varied, unit="pair"),
            BOTH[name][0](varied, constant, unit="pair"),
        )
    for found, side in ((left, "x"), (right, "y")):
        assert math.isnan(found.estimate) and math.isnan(found.p) and math.isnan(found.asymptotic_p)
        assert f"{side} constant" in found.method and found.n == n


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([1.0, math.nan, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], "1 of 4 values of x"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, math.inf, math.nan, 4.0], "2 of 4 values of y"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], "one value each"),
        ([1.0, 2.0], [2.0, 1.0], "at least 3"),
        ([], [], "at least 3"),
    ],
)
def test_fault_106_what_cannot_be_correlated_is_refused(x, y, says):
    for correlate in (spearman, pearson):
        with pytest.raises(ValueError, match=says):
            correlate(np.array(x), np.array(y), unit="pair")


def test_r_does_not_depend_on_the_unit_of_measure():
    x, y = draw(6)
    here, there = pearson(x, y, unit="pair"), pearson(x * 1e-100 + 1e-98, y * 1e100, unit="pair")
    assert there.p == here.p and there.estimate == pytest.approx(here.estimate)


@pytest.mark.parametrize("n", [5, 12, 50])
def test_partial_rho_is_pearson_of_rank_residuals_with_one_degree_less(n):
    x, y, z = draw(n, seed=n, columns=3)
    x, y = x + z, y - z
    ranks = [stats.rankdata(values) for values in (x, y, z)]
    design = np.column_stack([np.ones(n), ranks[2]])
    left = [rank - design @ np.linalg.lstsq(design, rank)[0] for rank in ranks[:2]]
    found, expected = partial_spearman(x, y, z, unit="pair"), stats.pearsonr(*left)
    assert found.estimate == pytest.approx(expected.statistic)
    assert found.asymptotic_p == pytest.approx(expected.pvalue)
    t = found.estimate * math.sqrt((n - 3) / (1 - found.estimate**2))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), n - 3)) and found.p > found.asymptotic_p


@pytest.mark.parametrize(("r", "freedom", "p"), [(-0.6053, 47, 4.07e-6), (0.1808, 47, 0.2139)])
def test_the_published_partials_have_their_p(r, freedom, p):
    assert t_p(r, freedom) == pytest.approx(p, rel=5e-3)


def test_a_common_cause_is_taken_out():
    x, y, z = draw(400, columns=3)
    x, y = x + 2 * z, y + 2 * z
    assert spearman(x, y, unit="pair").estimate > 0.7
    assert abs(partial_spearman(x, y, z, unit="pair").estimate) < 3 / math.sqrt(400)


def test_fault_106_partials_that_do_not_exist():
    x, y, _ = draw(6, columns=3)
    for given in (np.ones(6), np.exp(x)):
        found = partial_spearman(x, y, given, unit="pair")
        assert math.isnan(found.estimate) and math.isnan(found.p) and "constant" in found.method
    with pytest.raises(ValueError, match="at least 4"):
        partial_spearman(x[:3], y[:3], x[:3], unit="pair")
