"""Bootstraps: the published draw, draw for draw; resamples that layers share; whole clusters at once."""

import math

import numpy as np
import pytest
import torch

from mechinterp.stats.bootstrap import bootstrap_curve, cluster_sums, published_sem, resampled_means
from mechinterp.stats.intervals import cluster_interval

VALUES = np.random.default_rng(0).normal(size=(40, 5)) * [1.0, 2.0, 3.0, 0.0, 1.0] + [0, 1, 2, 3, 4]


def by_definition(rows: np.ndarray, n_boot: int = 1000) -> np.ndarray:
    """Methods 6, literally: the rows drawn, their mean, the spread of the means."""
    generator = np.random.Generator(np.random.PCG64(42))
    n = len(rows)
    return np.std([rows[generator.integers(0, n, size=n)].mean(0) for _ in range(n_boot)], axis=0, ddof=1)


def test_the_published_sem_is_its_definition():
    assert published_sem(VALUES) == pytest.approx(by_definition(VALUES), abs=1e-14)
    heads = np.random.default_rng(1).normal(size=(12, 3, 4))
    assert published_sem(heads) == pytest.approx(by_definition(heads), abs=1e-14)


def test_the_published_sem_drops_rows_with_a_missing_value_before_it_draws():
    holed = np.insert(VALUES, [3, 20], math.nan, axis=0)
    holed[8, 1:] = math.nan  # one missing layer is a missing row
    assert published_sem(holed) == pytest.approx(published_sem(np.delete(VALUES, 7, axis=0)), abs=0)


def test_the_published_sem_is_near_the_formula():
    rows = np.random.default_rng(2).normal(size=(112, 28))
    ratio = published_sem(rows) / (rows.std(0, ddof=1) / np.sqrt(112))
    assert abs(ratio.mean() - 1) < 0.03 and (abs(ratio - 1) < 0.10).all()


@pytest.mark.parametrize("n", [0, 1])
def test_fault_106_no_spread_without_two_examples(n):
    assert np.isnan(published_sem(VALUES[:n])).all() and published_sem(VALUES[:n]).shape == (5,)


def test_all_layers_are_resampled_together():
    twice = np.concatenate([VALUES, 2 * VALUES + 1], axis=1)
    means = resampled_means(twice, resamples=200)
    assert means.shape == (200, 10)
    np.testing.assert_allclose(means[:, 5:], 2 * means[:, :5] + 1)


def test_the_clusters_of_a_resample_come_whole():
    """Two questions, all of one value each: a resampled mean is one of three values."""
    values = np.repeat([[0.0], [1.0]], [3, 3], axis=0)
    means = resampled_means(values, ["a"] * 3 + ["b"] * 3, resamples=500)
    assert set(means[:, 0].tolist()) == {0.0, 0.5, 1.0}
    assert 0.4 < (means == 0.5).mean() < 0.6


def test_one_layer_is_the_interval_that_stands_already():
    labels = [f"question {i % 6}" for i in range(40)]
    curve = bootstrap_curve(VALUES, labels, unit="question", seed=3)
    alone = cluster_interval(torch.tensor(VALUES[:, 1]), labels, seed=3, unit="question")
    assert (curve.low[1], curve.high[1]) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert curve.n.tolist() == [6] * 5 and "6 questions (40 examples)" in curve.method
    assert curve.low[3] == curve.high[3] == pytest.approx(3.0)


def test_the_order_of_examples_and_the_names_of_clusters_do_not_matter():
    order = np.random.default_rng(4).permutation(40)
    labels = np.array([f"question {i % 6}" for i in range(40)])
    sums, sizes, names = cluster_sums(VALUES[order], labels[order].tolist())
    again, again_sizes, again_names = cluster_sums(VALUES, labels.tolist())
    place = [names.index(name) for name in again_names]
    np.testing.assert_allclose(sums[place], again)
    assert sizes[place].tolist() == again_sizes.tolist()


def test_examples_with_missing_values_are_left_out_with_their_labels():
    holed = VALUES.copy()
    holed[5] = math.nan
    labels = [f"question {i % 6}" for i in range(40)]
    kept = [i for i in range(40) if i != 5]
    found = bootstrap_curve(holed, labels)
    expected = bootstrap_curve(VALUES[kept], [labels[i] for i in kept])
    np.testing.assert_array_equal(found.low, expected.low)
    assert "39 examples" in found.method


def test_fault_106_fewer_than_three_units_have_no_bounds():
    found = bootstrap_curve(VALUES, ["a"] * 20 + ["b"] * 20)
    assert np.isnan(found.low).all() and found.n.tolist() == [2] * 5
    np.testing.assert_allclose(found.estimate, VALUES.mean(0))
    assert np.isnan(bootstrap_curve(VALUES[:0]).estimate).all()


def test_sums_of_what_is_missing_or_unnamed_are_refused():
    with pytest.raises(ValueError, match="40 examples need one cluster label each, not 2"):
        resampled_means(VALUES, ["a", "b"])
    with pytest.raises(ValueError, match="1 of 2 examples hold NaN"):
        resampled_means(np.array([[1.0], [math.nan]]))
