"""Clustered means: the t-test where they must be it, the matrix formulas, and the rate of false alarms."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from mechinterp.stats.clustered import bell_mccaffrey, clustered_mean, cr2
from mechinterp.stats.intervals import bootstrap_tails

TRIALS = 4000  # as layers: each column is a study of its own


def draw(sizes: list[int], *, likeness: float, seed: int = 0, trials: int = TRIALS, effect: float = 0.0):
    """Null contrasts [example, trial] whose examples share `likeness` of their variance within a cluster."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    common = generator.normal(size=(len(sizes), trials))[labels]
    own = generator.normal(size=(len(labels), trials))
    return effect + math.sqrt(likeness) * common + math.sqrt(1 - likeness) * own, labels.tolist()


def error(rate: float, trials: int = TRIALS) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("n_clusters", [4, 8, 20])
@pytest.mark.parametrize("likeness", [0.0, 0.5, 0.95])
def test_the_null_is_rejected_in_five_percent_of_studies(n_clusters, likeness):
    values, labels = draw([6] * n_clusters, likeness=likeness, seed=n_clusters)
    found = clustered_mean(values, labels)
    assert abs((found.p <= 0.05).mean() - 0.05) < error(0.05)
    outside = (found.low > 0) | (found.high < 0)
    assert (outside == (found.p < 0.05)).all()


@pytest.mark.parametrize("n_clusters", [4, 8, 20])
def test_clusters_of_unequal_size_stay_near_five_percent(n_clusters):
    """Sizes from one to five times. With G - 1 degrees of freedom it would be 5.5 to 7.5 %."""
    sizes = [2 + 2 * (i % 5) for i in range(n_clusters)]
    for likeness in (0.0, 0.5, 0.95):
        values, labels = draw(sizes, likeness=likeness, seed=n_clusters)
        assert 0.03 < (clustered_mean(values, labels).p <= 0.05).mean() < 0.065
    assert clustered_mean(values, labels).degrees_of_freedom < n_clusters - 1


@pytest.mark.parametrize("n_clusters", [4, 8])
def test_fault_107_what_ignores_or_resamples_few_clusters_rejects_too_often(n_clusters):
    """Why not the others: examples as units, and the percentile bootstrap of clusters."""
    values, labels = draw([6] * n_clusters, likeness=0.5, seed=1, trials=800)
    naive = (clustered_mean(values).p <= 0.05).mean()
    means = values.reshape(n_clusters, 6, -1).mean(1)
    drawn = np.random.default_rng(2).multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), 600)
    low, high = np.quantile(drawn @ means / n_clusters, [0.025, 0.975], axis=0)
    percentile = ((low > 0) | (high < 0)).mean()
    low, high = np.quantile(drawn @ means / n_clusters, bootstrap_tails(n_clusters, 0.95), axis=0)
    widened = ((low > 0) | (high < 0)).mean()
    assert naive > 0.20 and percentile > 0.08 and percentile > widened
    assert (clustered_mean(values, labels).p <= 0.05).mean() < 0.05 + error(0.05, 800)


@pytest.mark.parametrize("n_clusters", [4, 8, 20])
def test_the_interval_holds_the_effect_that_was_planted(n_clusters):
    values, labels = draw([5] * n_clusters, likeness=0.5, seed=3, effect=1.7)
    found = clustered_mean(values, labels)
    assert abs(((found.low <= 1.7) & (found.high >= 1.7)).mean() - 0.95) < error(0.05)
    assert (clustered_mean(values + 20, labels).p < 0.05).mean() > 0.95


def test_examples_of_their_own_are_the_t_test():
    values, _ = draw([1] * 15, likeness=0.0, trials=6)
    found = clustered_mean(values)
    scipy: Any = ttest_1samp(values, 0)
    np.testing.assert_allclose(found.p, scipy.pvalue)
    np.testing.assert_allclose(found.low, scipy.confidence_interval().low)
    assert found.degrees_of_freedom == pytest.approx(14) and found.unit == "example"


def test_equal_clusters_are_the_t_test_of_their_means():
    values, labels = draw([6] * 7, likeness=0.5, trials=5)
    found = clustered_mean(values, labels, unit="question")
    scipy: Any = ttest_1samp(values.reshape(7, 6, 5).mean(1), 0)
    np.testing.assert_allclose(found.p, scipy.pvalue)
    np.testing.assert_allclose(found.t, scipy.statistic)
    assert "7 questions (42 examples)" in found.method


def test_variance_and_degrees_of_freedom_are_the_matrix_definition():
    """CR2: residuals times (I - H_gg)^(-1/2); Bell and McCaffrey: tr(B)^2 / tr(B^2) of their form B."""
    sizes = np.array([1.0, 2, 3, 7, 4])
    total, labels = int(sizes.sum()), np.repeat(np.arange(5), sizes.astype(int))
    y = np.random.default_rng(5).normal(size=total)
    residual, variance, vectors = y - y.mean(), 0.0, []
    for cluster in range(5):
        rows = labels == cluster
        eigenvalues, basis = np.linalg.eigh(np.eye(rows.sum()) - np.full((rows.sum(),) * 2, 1 / total))
        half = basis @ np.diag(eigenvalues**-0.5) @ basis.T
        variance += (half @ residual[rows]).sum() ** 2 / total**2
        vectors.append(half.sum(0) @ (np.eye(total) - 1 / total)[rows])
    form = np.stack(vectors) @ np.stack(vectors).T
    sums = np.bincount(labels, y)[:, None]
    assert cr2(sums, sizes)[0] == pytest.approx(math.sqrt(variance))
    assert bell_mccaffrey(sizes) == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))


def test_a_pairing_removes_what_the_pair_shares():
    generator = np.random.default_rng(6)
    shared = 40 * generator.normal(size=(24, 3))
    trained, base = shared + 3 + generator.normal(size=(24, 3)), shared + generator.normal(size=(24, 3))
    labels = [i % 8 for i in range(24)]
    assert (clustered_mean(trained - base, labels).low > 0).all()
    assert (clustered_mean(trained, labels).low < 0).all()


def test_a_layer_without_any_contrast_is_zero_and_no_evidence():
    values, labels = draw([3] * 6, likeness=0.5, trials=2)
    values[:, 0] = 0.0
    found = clustered_mean(values, labels)
    assert (found.low[0], found.high[0], found.p[0], found.t[0]) == (0, 0, 1, 0)


def test_missing_rows_are_dropped_with_their_labels_and_counted():
    values, labels = draw([4] * 6, likeness=0.5, trials=3)
    holed = values.copy()
    holed[2, 1] = math.nan
    found = clustered_mean(holed, labels)
    expected = clustered_mean(np.delete(values, 2, axis=0), [x for i, x in enumerate(labels) if i != 2])
    np.testing.assert_array_equal(found.low, expected.low)
    assert (found.n, found.n_examples, found.n_dropped) == (6, 23, 1) and "1 examples" in found.note


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_106_fewer_than_three_clusters_have_no_bounds_but_a_reason(n):
    values, labels = draw([4] * n, likeness=0.5, trials=3)
    found = clustered_mean(values, labels, unit="question")
    assert np.isnan(found.low).all() and np.isnan(found.p).all()
    assert found.note == f"n={n} questions: three are needed for an interval"


def test_one_layer_and_the_whole_curve_say_the_same():
    values, labels = draw([4] * 6, likeness=0.5, trials=3)
    found = clustered_mean(values, labels, unit="question")
    at, curve = found.at(1), found.curve()
    assert (at.estimate, at.low, at.high, at.n) == (
        curve.estimate[1], curve.low[1], curve.high[1], curve.n[1]
    )  # fmt: skip
    assert at.unit == curve.unit == "question" and "CR2" in curve.method


def test_labels_and_rows_must_agree_in_number():
    with pytest.raises(ValueError, match="3 examples need one cluster label each, not 2"):
        clustered_mean(np.ones((3, 2)), ["a", "b"])
