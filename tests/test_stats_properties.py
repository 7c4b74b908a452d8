"""What holds of the statistics for any data: bounds, symmetries, and what adding or turning data may do."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechinterp.stats.association import partial_spearman, spearman
from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.intervals import cluster_interval, mean_interval, wilson
from mechinterp.stats.multiplicity import benjamini_hochberg, max_t
from mechinterp.stats.paired import sign_flip

WHOLE = st.integers(-1000, 1000).map(float)
SEEDS = st.integers(0, 2**31)


def vectors(least=4, most=12):
    return st.integers(least, most).flatmap(lambda n: arrays(np.float64, n, elements=WHOLE))


def pairs(least=4, most=7):
    """Two columns of one length without a constant one."""
    return (
        st.integers(least, most)
        .flatmap(lambda n: arrays(np.float64, (2, n), elements=WHOLE))
        .filter(lambda xy: len(set(xy[0])) > 1 and len(set(xy[1])) > 1)
    )


def curves(n=6, layers=3):
    return arrays(np.float64, (n, layers), elements=st.floats(-5, 5, allow_subnormal=False)).filter(
        lambda values: values.std(0).min() > 1e-3
    )


@settings(max_examples=40, deadline=None)
@given(pairs())
def test_rho_is_symmetric_bounded_and_blind_to_growing_changes_of_scale(xy):
    x, y = xy
    here = spearman(x, y, unit="pair")
    assert -1 <= here.estimate <= 1 and 0 < here.p <= 1
    assert spearman(y, x, unit="pair").estimate == pytest.approx(here.estimate, abs=1e-12)
    grown = spearman(np.exp(x / 100), y**3, unit="pair")
    assert grown.estimate == pytest.approx(here.estimate, abs=1e-12)
    assert grown.p == pytest.approx(here.p)
    turned = spearman(-x, y, unit="pair")
    assert turned.estimate == pytest.approx(-here.estimate, abs=1e-12) and turned.p == pytest.approx(here.p)


@settings(max_examples=40, deadline=None)
@given(pairs(5, 9), SEEDS)
def test_the_order_of_the_pairs_says_nothing(xy, seed):
    order = np.random.default_rng(seed).permutation(xy.shape[1])
    third = np.random.default_rng(seed + 1).normal(size=xy.shape[1])
    for found in (
        lambda a, b, c: spearman(a, b, unit="pair"),
        lambda a, b, c: partial_spearman(a, b, c, unit="pair"),
    ):
        one, other = found(*xy, third), found(*xy[:, order], third[order])
        assert one.estimate == pytest.approx(other.estimate, abs=1e-9, nan_ok=True)
        assert one.p == pytest.approx(other.p, abs=1e-9, nan_ok=True)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_a_rate_lies_in_its_interval_within_0_and_1_and_mirrors(counts, level):
    found, total = counts
    here, there = wilson(found, total, level=level), wilson(total - found, total, level=level)
    assert 0 <= here.low <= here.estimate <= here.high <= 1
    assert (here.low, here.high) == pytest.approx((1 - there.high, 1 - there.low), abs=1e-9)
    wider = wilson(found, total, level=(1 + level) / 2)
    assert wider.low <= here.low and wider.high >= here.high


@settings(max_examples=30, deadline=None)
@given(vectors(3, 10), st.sampled_from(["bootstrap", "t"]), st.floats(-50, 50), st.floats(0.1, 10))
def test_an_interval_moves_and_grows_with_its_data(values, method, shift, scale):
    here = mean_interval(torch.tensor(values), method=method)
    there = mean_interval(torch.tensor(scale * values + shift), method=method)
    assert here.low <= here.estimate + 1e-9 and here.estimate <= here.high + 1e-9
    for name in ("estimate", "low", "high"):
        assert getattr(there, name) == pytest.approx(scale * getattr(here, name) + shift, rel=1e-6, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(vectors(3, 8), st.integers(2, 6))
def test_copies_of_an_observation_are_no_new_observations(values, copies):
    """Resampling whole clusters: n copies of each value in its cluster leave the interval as it was."""
    alone = cluster_interval(torch.tensor(values), range(len(values)))
    many = cluster_interval(
        torch.tensor(np.repeat(values, copies)), list(np.repeat(range(len(values)), copies))
    )
    assert many.n == alone.n == len(values)
    assert (many.estimate, many.low, many.high) == pytest.approx((alone.estimate, alone.low, alone.high))


@settings(max_examples=30, deadline=None)
@given(vectors(2, 12), SEEDS)
def test_signs_turned_give_the_same_p_which_counts_flips(values, seed):
    here, there = (sign_flip(torch.tensor(sign * values)) for sign in (1.0, -1.0))
    assert here.p == pytest.approx(there.p) and here.estimate == -there.estimate
    n_flips = 2 ** len(values)
    assert 2 / n_flips <= here.p <= 1
    assert here.p * n_flips == pytest.approx(round(here.p * n_flips), abs=1e-6)
    order = np.random.default_rng(seed).permutation(len(values))
    assert sign_flip(torch.tensor(values[order])).p == pytest.approx(here.p)


@settings(max_examples=20, deadline=None)
@given(curves(), SEEDS)
def test_among_more_layers_no_p_is_smaller_and_every_band_is_wider(values, seed):
    found = max_t(values)
    assert (found.p_max_t >= found.p - 1e-12).all() and (found.p_bh >= found.p - 1e-12).all()
    assert (found.p >= found.smallest_p - 1e-12).all() and (found.p_max_t <= 1).all()
    single = max_t(values[:, :1])
    assert single.p[0] == pytest.approx(found.p[0]) and single.p_max_t[0] == pytest.approx(single.p[0])
    assert found.p_max_t[0] >= single.p_max_t[0] - 1e-12
    order = np.random.default_rng(seed).permutation(values.shape[1])
    turned = max_t(-values[:, order])
    np.testing.assert_allclose(turned.p_max_t, found.p_max_t[order])
    np.testing.assert_allclose(turned.estimate, -found.estimate[order], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)))
def test_adjusted_p_keep_their_order_and_are_never_below(p):
    adjusted = benjamini_hochberg(p)
    assert (adjusted >= p - 1e-12).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()
    with_gap = benjamini_hochberg(np.append(p, np.nan))
    np.testing.assert_allclose(with_gap[:-1], adjusted)
    assert np.isnan(with_gap[-1])


@settings(max_examples=30, deadline=None)
@given(curves(8, 2), SEEDS)
def test_clusters_are_names_and_nothing_else(values, seed):
    labels = list(np.random.default_rng(seed).integers(0, 4, size=8))
    assume(len(set(labels)) >= 3)
    here = clustered_mean(values, labels)
    there = clustered_mean(values, [f"question {9 - label}" for label in labels])
    np.testing.assert_allclose(here.low, there.low)
    np.testing.assert_allclose(here.estimate, values.mean(0))
    assert (here.low <= here.estimate).all() and (here.estimate <= here.high).all()
