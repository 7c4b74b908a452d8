"""What an estimate carries: n, unit, method, level, why there is none; and what happens at boundaries."""

import json
import math

import numpy as np
import pytest
import torch

from mechinterp.stats import halflife
from mechinterp.stats.association import partial_spearman, pearson, spearman
from mechinterp.stats.bootstrap import bootstrap_curve, published_sem
from mechinterp.stats.clustered import clustered_mean, studentised
from mechinterp.stats.dyadic import node_bootstrap
from mechinterp.stats.intervals import curve_interval
from mechinterp.stats.multiplicity import max_t, sign_balance
from mechinterp.stats.paired import sign_flip
from tests import golden

GENERATOR = np.random.default_rng(0)
X, Y, Z = GENERATOR.normal(size=(3, 9))
CURVES = GENERATOR.normal(size=(6, 4)) + 1


def test_a_correlation_says_of_what_and_by_which_test():
    named = {"Spearman": spearman(X, Y, unit="pair"), "Pearson": pearson(X, Y, unit="pair")}
    for name, found in named.items():
        assert (found.n, found.unit, found.method) == (9, "pair", name)
    partial = partial_spearman(X, Y, Z, unit="persona")
    assert (partial.n, partial.unit, partial.method) == (9, "persona", "partial Spearman")
    assert partial.p_method == "Student t, df n - 3"


@pytest.mark.parametrize("which", ["x", "y", "given"])
def test_a_constant_column_is_named_and_n_and_unit_are_kept(which):
    columns = {"x": X, "y": Y, "given": Z} | {which: np.ones(9)}
    found = partial_spearman(columns["x"], columns["y"], columns["given"], unit="persona")
    assert math.isnan(found.estimate) and f"{which} is constant" in found.method
    assert (found.n, found.unit, found.p_method) == (9, "persona", "none")
    nothing_left = partial_spearman(X, Y, X, unit="persona")
    assert math.isnan(nothing_left.p) and (nothing_left.n, nothing_left.unit) == (9, "persona")


def test_curves_of_clusters_carry_unit_method_and_level_wherever_they_are_read():
    found = clustered_mean(CURVES, [0, 0, 1, 1, 2, 2], level=0.9)
    assert (found.unit, found.n, found.level, found.note) == ("cluster", 3, 0.9, "")
    one, curve = found.at(1), found.curve()
    assert (one.estimate, one.low, one.high) == (found.estimate[1], found.low[1], found.high[1])
    assert (one.n, one.unit, one.method, one.level, one.note) == (3, "cluster", found.method, 0.9, "")
    assert (curve.unit, curve.level) == ("cluster", 0.9) and found.method in curve.method
    assert clustered_mean(CURVES).unit == "example"
    missing = CURVES.copy()
    missing[0, 0] = np.nan
    assert clustered_mean(missing).note == "1 examples with missing values left out"
    assert clustered_mean(missing).at(0).note == "1 examples with missing values left out"


def test_three_units_have_an_interval_and_two_have_an_estimate_without():
    three, two = clustered_mean(CURVES[:3]), clustered_mean(CURVES[:2])
    assert np.isfinite(three.low).all() and np.isfinite(three.p).all()
    np.testing.assert_allclose(two.estimate, CURVES[:2].mean(0))
    for name in ("low", "high", "standard_error", "p"):
        assert np.isnan(getattr(two, name)).all()
    assert math.isnan(two.degrees_of_freedom) and "three are needed" in two.note
    assert np.isnan(clustered_mean(CURVES[:0]).estimate).all()
    drawn = bootstrap_curve(CURVES[:3], unit="text", level=0.9)
    assert np.isfinite(drawn.low).all() and (drawn.unit, drawn.level) == ("text", 0.9)
    few = bootstrap_curve(CURVES[:2])
    assert np.isnan(few.low).all() and few.unit == "example" and np.isfinite(few.estimate).all()
    assert np.isfinite(published_sem(CURVES[:2])).all() and np.isnan(published_sem(CURVES[:1])).all()


def test_an_estimate_over_its_error_is_0_of_nothing_and_infinite_where_nothing_varies():
    estimate, error = np.array([0.0, 1.0, -1.0, 0.0, 3.0]), np.array([0.0, 0.0, 0.0, 2.0, 2.0])
    with np.errstate(all="raise"):
        found = studentised(estimate, error)
    np.testing.assert_array_equal(found, [0, np.inf, -np.inf, 0, 1.5])


def test_the_band_of_a_max_t_test_is_its_curve():
    found = max_t(CURVES, unit="question", level=0.9)
    band = found.band()
    for name in ("estimate", "low", "high"):
        np.testing.assert_array_equal(getattr(band, name), getattr(found, name))
    assert (band.unit, band.level) == ("question", 0.9) and (band.n == 6).all()
    balance = sign_balance(np.array([1.0, 2.0, -1.0, -2.0]))
    assert (balance.positive, balance.negative, balance.p_if_layers_were_independent) == (2, 2, 1.0)
    assert math.isnan(sign_balance(np.zeros(3)).p_if_layers_were_independent)


def test_flips_are_enumerated_up_to_14_units_and_drawn_above():
    values = torch.linspace(-1, 2, 16, dtype=torch.float64)
    exact, drawn = sign_flip(values[:14], unit="question"), sign_flip(values, unit="question", seed=3)
    assert exact.method == "exact sign flips over 14 questions" and exact.unit == drawn.unit == "question"
    assert drawn.method.endswith("sign flips over 16 questions, seed 3")
    assert drawn.p * (int(drawn.method.split()[0]) + 1) == pytest.approx(
        round(drawn.p * (int(drawn.method.split()[0]) + 1)), abs=1e-6
    ), "each of the flips drawn, and the observed one"
    assert sign_flip(values, seed=0).p == sign_flip(values).p
    single, none = sign_flip(torch.tensor([2.0]), unit="text"), sign_flip(torch.tensor([math.nan]))
    assert (single.estimate, single.unit, single.n) == (2.0, "text", 1) and math.isnan(single.p)
    assert math.isnan(none.estimate) and none.n == 0


@pytest.mark.parametrize("n", [5, 12, 13])
def test_the_p_of_an_excess_counts_flips_of_whole_runs(n):
    """Runs that all decay alike: only the observed signs give so much, of 2^n or of those drawn."""
    y = np.tile(2.0 ** -np.arange(6.0), (n, 1))
    decay = 2.0 ** (-np.arange(6)[:, None] / np.array([1.0, 4.0]))
    p = halflife._sign_flip_p(y, np.ones_like(y), decay, 7)
    if n <= 12:
        assert p == pytest.approx(1 / 2**n)
    else:
        drawn = np.random.default_rng(7).integers(0, 2, size=(4096, n))
        assert p == pytest.approx((1 + (drawn == 1).all(1).sum()) / 4097)
        assert p == halflife._sign_flip_p(y, np.ones_like(y), decay, 7)


@pytest.mark.parametrize("name", golden.CASES)
def test_a_record_is_what_it_was_in_every_field(name):
    """Values to 7 digits; words as they are: what a figure or a table prints comes from these."""
    known = json.loads(golden.FILE.read_text(encoding="utf-8"))
    assert golden.CASES.keys() == known.keys()
    same(golden.plain(golden.CASES[name]()), known[name])


def same(found, known):
    if isinstance(known, dict):
        assert found.keys() == known.keys()
        for key in known:
            same(found[key], known[key])
    elif isinstance(known, list):
        assert len(found) == len(known)
        for one, other in zip(found, known, strict=True):
            same(one, other)
    elif isinstance(known, float):
        assert found == pytest.approx(known, rel=1e-7, abs=1e-9)
    else:
        assert found == known


def test_what_a_resampled_statistic_gives_is_numbers():
    found = node_bootstrap(lambda i, j: float(len(i)), 5, resamples=20)
    assert found.dtype == np.float64 and ((found >= 0) & (found <= 10)).all() and found.min() < 10


def test_a_curve_is_a_table_of_one_line_a_position():
    curve = curve_interval(torch.tensor(CURVES))
    table = curve.to_dataframe("token", "projection")
    assert list(table) == ["token", "projection", "low", "high"] and list(table.token) == [0, 1, 2, 3]
    for column, values in (("projection", curve.estimate), ("low", curve.low), ("high", curve.high)):
        assert list(table[column]) == pytest.approx(list(values), nan_ok=False)
