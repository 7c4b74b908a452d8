"""Max-T over layers: the enumeration by hand, family-wise error and bands in simulation, planted layers."""

import itertools
import math

import numpy as np
import pytest
import torch

from mechinterp.stats.multiplicity import benjamini_hochberg, max_t, sign_balance, sign_flips
from mechinterp.stats.paired import sign_flip

N_LAYERS = 6


def draw(
    n_clusters: int, *, seed: int, size: int = 4, n_layers: int = N_LAYERS
) -> tuple[np.ndarray, list[int]]:
    """Contrasts without effect: examples alike within a cluster, neighbouring layers alike too."""
    generator = np.random.default_rng(seed)
    across = np.linalg.cholesky(0.8 ** np.abs(np.subtract.outer(np.arange(n_layers), np.arange(n_layers))))
    common = generator.normal(size=(n_clusters, n_layers)) @ across.T
    own = generator.normal(size=(n_clusters * size, n_layers)) @ across.T
    return np.repeat(common, size, axis=0) + own, np.repeat(np.arange(n_clusters), size).tolist()


def error(rate: float, trials: int) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / trials)


def enumerated(values: np.ndarray, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """All flips of whole clusters, with CR2 by its definition in each."""
    sizes = np.bincount(labels)
    largest, each = [], []
    for signs in itertools.product((1, -1), repeat=len(sizes)):
        flipped = values * np.array(signs)[labels][:, None]
        residual = flipped - flipped.mean(0)
        sums = np.stack([residual[np.array(labels) == g].sum(0) for g in range(len(sizes))])
        variance = (sums**2 / (1 - sizes / sizes.sum())[:, None]).sum(0)
        each.append(np.abs(flipped.sum(0)) / np.sqrt(variance))
        largest.append(each[-1].max())
    observed = each[0] * (1 - 1e-9)
    return (np.array(each) >= observed).mean(0), (np.array(largest)[:, None] >= observed).mean(0)


def test_p_is_the_enumeration_of_whole_clusters():
    values, _ = draw(6, seed=1, size=3)
    labels = [0, 0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5]
    found = max_t(values + 0.6, labels)
    p, p_max_t = enumerated(values + 0.6, labels)
    np.testing.assert_allclose(found.p, p)
    np.testing.assert_allclose(found.p_max_t, p_max_t)
    assert (found.p_max_t >= found.p).all()


def test_one_layer_of_single_examples_is_the_sign_flip_test():
    """Studentised or not, one mean under flips of single examples orders the flips alike."""
    values = np.random.default_rng(2).normal(0.5, 1, (9, 1))
    found = max_t(values)
    assert found.p[0] == found.p_max_t[0] == pytest.approx(sign_flip(torch.tensor(values[:, 0])).p)


@pytest.mark.parametrize(("n_clusters", "trials"), [(4, 300), (8, 300), (20, 200)])
def test_family_wise_error_and_the_band_hold_for_few_clusters(n_clusters, trials):
    """No layer has an effect, so any finding is false. Four clusters cannot reach 5 %, but 1/8 exactly."""
    smallest, inside = [], 0
    for trial in range(trials):
        found = max_t(*draw(n_clusters, seed=1000 * n_clusters + trial))
        inside += bool(((found.low <= 0) & (found.high >= 0)).all())
        smallest.append(found.p_max_t.min())
    assert abs(inside / trials - 0.95) < error(0.05, trials)
    flips = 10_000 if n_clusters == 20 else 2 ** (n_clusters - 1)
    for level in (0.05, 0.125):
        reachable = math.floor(level * flips) / flips
        rejected = (np.array(smallest) <= level).mean()
        assert abs(rejected - reachable) <= error(reachable, trials)


def test_the_band_moves_with_the_curve_and_is_no_narrower_for_an_effect():
    values, labels = draw(8, seed=3)
    here, there = max_t(values, labels), max_t(values + 5, labels)
    assert here.critical == pytest.approx(there.critical)
    np.testing.assert_allclose(there.low, here.low + 5)


@pytest.mark.parametrize("n_clusters", [4, 8, 20])
def test_one_layer_alone_is_rejected_at_its_rate(n_clusters):
    """Every column a study of its own: 4 clusters never reach 5 %, the others do so at their exact rate."""
    generator = np.random.default_rng(n_clusters)
    trials = 250 if n_clusters == 20 else 3000
    common = np.repeat(generator.normal(size=(n_clusters, trials)), 3, axis=0)
    values = common + generator.normal(size=common.shape)
    found = max_t(values, np.repeat(np.arange(n_clusters), 3).tolist())
    rate = {4: 0.0, 8: 6 / 128, 20: 0.05}[n_clusters]
    assert abs((found.p <= 0.05).mean() - rate) <= error(rate, trials)


def test_fault_108_twenty_eight_layers_of_nothing_have_a_best_layer_and_are_no_finding():
    generator = np.random.default_rng(7)
    studies = [max_t(generator.normal(size=(11, 28))) for _ in range(60)]
    best = np.mean([found.p.min() <= 0.05 for found in studies])
    assert best > 0.5 and np.mean([found.p_max_t.min() <= 0.05 for found in studies]) < 0.05 + error(0.05, 60)
    for found in studies:
        assert (found.p_bh >= found.p).all() and (found.p_max_t >= found.p).all()


def test_planted_layers_are_found_and_the_others_are_not():
    values, labels = draw(12, seed=8)
    values[:, 2:4] += 3.0
    found = max_t(values, labels, unit="question")
    assert ((found.p_max_t < 0.05) == [False, False, True, True, False, False]).all()
    assert ((found.low > 0) == (found.p_max_t < 0.05)).all()
    assert found.n == 12 and found.n_examples == 48 and "12 questions" in found.method


def test_layers_that_are_copies_cost_nothing_and_independent_ones_do():
    values = np.random.default_rng(9).normal(0.7, 1, (10, 1))
    alone, copies = max_t(values), max_t(np.repeat(values, 20, axis=1))
    np.testing.assert_allclose(copies.p_max_t, alone.p[0])
    assert copies.critical == pytest.approx(alone.critical, rel=1e-9)
    others = np.concatenate([values, np.random.default_rng(10).normal(size=(10, 19))], axis=1)
    assert max_t(others).p_max_t[0] > alone.p[0] and max_t(others).critical > 1.2 * alone.critical


def test_the_band_of_one_layer_is_the_t_interval():
    from mechinterp.stats.clustered import clustered_mean

    values, labels = draw(7, seed=11, n_layers=1)
    found, t = max_t(values, labels), clustered_mean(values, labels)
    assert (found.low[0], found.high[0]) == pytest.approx((t.low[0], t.high[0]), rel=0.05)
    assert found.band().n.tolist() == [7] and "simultaneous over 1 layers" in found.band().method


@pytest.mark.parametrize(
    ("n", "smallest"), [(3, 1 / 4), (4, 1 / 8), (6, 1 / 32), (14, 2 / 2**14), (15, 1e-4)]
)
def test_the_smallest_p_is_said_and_reached_by_an_overwhelming_effect(n, smallest):
    values = np.random.default_rng(n).normal(100, 1, (n, 2))
    found = max_t(values)
    assert found.smallest_p == pytest.approx(smallest)
    np.testing.assert_allclose(found.p_max_t, smallest)
    assert ("no p below" in found.note) == (n < 6)


def test_flips_hold_each_pattern_once_up_to_its_opposite():
    signs = sign_flips(5, 0)
    both = {tuple(row) for row in signs} | {tuple(-row) for row in signs}
    assert signs.shape == (16, 5) and len(both) == 32 and (signs[0] == 1).all()


def test_no_difference_at_all_is_no_evidence():
    found = max_t(np.zeros((8, 3)))
    assert (found.p == 1).all() and (found.p_max_t == 1).all()
    assert (found.low == 0).all() and (found.high == 0).all()
    beside = np.zeros((8, 2))
    beside[:, 1] = np.random.default_rng(12).normal(3, 1, 8)
    found = max_t(beside)
    assert found.p[0] == 1 and found.p_max_t[1] == 2 / 2**8


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_neither_scale_nor_sign_changes_a_p(scale):
    values, labels = draw(8, seed=13)
    here, there = max_t(values, labels), max_t(-values * scale, labels)
    np.testing.assert_allclose(here.p_max_t, there.p_max_t)
    np.testing.assert_allclose(here.low * scale, -there.high, rtol=1e-6)


def test_the_seed_is_the_result_and_missing_rows_are_counted():
    values, _ = draw(20, seed=14, size=1)
    first, again, other = max_t(values), max_t(values), max_t(values, seed=1)
    assert (first.p_max_t == again.p_max_t).all() and (first.p_max_t != other.p_max_t).any()
    assert np.abs(first.p_max_t - other.p_max_t).max() < 0.03 and "seed 1" in other.method
    holed = np.concatenate([values, np.full((2, N_LAYERS), np.nan)])
    found = max_t(holed)
    assert (found.p_max_t == first.p_max_t).all() and found.n_dropped == 2 and "2 examples" in found.note


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_106_fewer_than_three_units_have_no_p_but_a_reason(n):
    found = max_t(np.ones((n, 3)), unit="question")
    assert np.isnan(found.p_max_t).all() and found.note.startswith(f"n={n} questions")


def test_a_layer_without_a_p_does_not_count_among_those_adjusted():
    p = np.array([0.01, math.nan, 0.04, 0.03])
    np.testing.assert_allclose(benjamini_hochberg(p)[[0, 2, 3]], [0.03, 0.04, 0.04])
    assert math.isnan(benjamini_hochberg(p)[1]) and np.isnan(benjamini_hochberg(np.full(2, np.nan))).all()


def test_the_sign_balance_is_the_published_figure_and_says_that_it_is_no_test():
    """Ten of 28 layers positive: p 0.185, had layers been coins (methods 9.7)."""
    found = sign_balance(np.concatenate([np.ones(10), -np.ones(18), np.zeros(3)]))
    assert (found.positive, found.negative) == (10, 18)
    assert found.p_if_layers_were_independent == pytest.approx(0.185, abs=5e-4)
    assert "dependent" in found.note and math.isnan(sign_balance(np.zeros(4)).p_if_layers_were_independent)


def test_fault_107_alike_layers_reject_far_too_often_as_coins_and_not_as_units():
    """With layers alike a null study is mostly all up or all down: a coin count calls that evidence."""
    studies = [draw(8, seed=seed, n_layers=28)[0][::4] for seed in range(100)]
    coins = np.mean([sign_balance(v.mean(0)).p_if_layers_were_independent < 0.05 for v in studies])
    units = np.mean([max_t(v).p_max_t.min() < 0.05 for v in studies])
    assert coins > 0.4 and units < 0.05 + error(0.05, 100)
