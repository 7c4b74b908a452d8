"""An added predictor and the likeness of group members: statsmodels, closed forms, and what has no figure."""

import math

import numpy as np
import pytest
from scipy import stats

from mechinterp.stats.agreement import icc
from mechinterp.stats.regression import added_predictor


def planted(n: int, first: float, added: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, noise = np.random.default_rng(seed).normal(size=(3, n))
    b = b + 0.5 * a
    return first * a + added * b + noise, a, b


@pytest.mark.parametrize("n", [4, 10, 50])
def test_f_is_the_square_of_the_added_coefficients_t(n):
    y, a, b = planted(n, 1.0, 0.5)
    found = added_predictor(y, a, b, unit="pair")
    residual = {}
    for name, columns in (("none", []), ("first", [a]), ("both", [a, b])):
        design = np.column_stack([np.ones(n), *columns])
        residual[name] = float(((y - design @ np.linalg.lstsq(design, y)[0]) ** 2).sum())
    error = residual["both"] / (n - 3) * np.linalg.inv(design.T @ design)[2, 2]
    t = np.linalg.lstsq(design, y)[0][2] / math.sqrt(error)
    assert found.f == pytest.approx(t**2) and found.p == pytest.approx(2 * stats.t.sf(abs(t), n - 3))
    assert found.r2_first == pytest.approx(1 - residual["first"] / residual["none"])
    assert found.r2_both == pytest.approx(1 - residual["both"] / residual["none"])
    assert found.f == pytest.approx(found.delta_r2 / ((1 - found.r2_both) / (n - 3)))
    assert (found.df, found.n, found.unit) == ((1, n - 3), n, "pair")


def test_both_orders_end_at_the_same_fit_and_scale_is_nothing():
    y, a, b = planted(50, 1.0, 1.0)
    one, other = added_predictor(y, a, b, unit="pair"), added_predictor(y * 1e6, b * 1e-9 + 7, a, unit="pair")
    assert one.r2_both == pytest.approx(other.r2_both)
    assert one.p < 1e-3 and other.p < 1e-3


def test_a_predictor_that_adds_nothing_is_found_at_its_rate():
    p = [added_predictor(*planted(30, 1.0, 0.0, seed=k), unit="pair").p for k in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_fault_106_regressions_that_do_not_exist_say_why():
    y, a, b = planted(10, 1.0, 1.0)
    for values, why in (
        ((np.full(10, 0.3), a, b), "outcome constant"),
        ((y, np.zeros(10), b), "first constant"),
        ((y, a, np.ones(10)), "added constant"),
        ((y, a, 3 - 2 * a), "added is first"),
        ((a + b, a, b), "fit every row"),
    ):
        found = added_predictor(*values, unit="pair")
        assert math.isnan(found.f) and math.isnan(found.p) and why in found.note
    with pytest.raises(ValueError, match="at least 4"):
        added_predictor(y[:3], a[:3], b[:3], unit="pair")
    with pytest.raises(ValueError, match="1 of 10 values of added"):
        added_predictor(y, a, np.append(b[:9], math.nan), unit="pair")


def groups(k: int, m: int, likeness: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    common, own = generator.normal(size=(k, 1)), generator.normal(size=(k, m))
    return math.sqrt(likeness) * common + math.sqrt(1 - likeness) * own


@pytest.mark.parametrize("likeness", [0.3, 0.9])
def test_icc_is_the_mixed_models_share_of_variance(likeness):
    from statsmodels.regression.mixed_linear_model import MixedLM

    values = groups(12, 5, likeness)
    fit = MixedLM(values.ravel(), np.ones(values.size), np.repeat(np.arange(12), 5)).fit(reml=True)
    between = float(np.asarray(fit.cov_re).item())
    assert icc(values, variable="cosine").value == pytest.approx(between / (between + fit.scale), abs=1e-4)


def test_icc_is_the_anova_of_groups_and_finds_what_was_planted():
    values = groups(6, 4, 0.5)
    f = stats.f_oneway(*values).statistic
    assert icc(values, variable="cosine").value == pytest.approx((f - 1) / (f + 3))
    assert icc(groups(4000, 5, 0.6), variable="cosine").value == pytest.approx(0.6, abs=0.03)


def test_fault_107_effective_n_lies_between_groups_and_values():
    same = icc(np.repeat(np.arange(4.0)[:, None], 5, 1), variable="cosine")
    assert (same.value, same.effective_n, same.variable) == (1.0, 4.0, "cosine")
    assert 4 < icc(groups(4, 5, 0.9), variable="leakage").effective_n < 20
    opposed = icc(np.tile([-1.0, 1.0], (4, 1)), variable="leakage")
    assert opposed.value == -1 and opposed.effective_n == 8 and "negative" in opposed.note


def test_the_published_effective_n():
    """ICC 0.949 and 0.929 of 4 sources x 5 checkpoints both make 4.2: found here by planting each exactly."""
    for value in (0.949, 0.929):
        members = np.linspace(-1, 1, 5)
        within = members.var(ddof=1)
        between = within * (1 + 4 * value) / (1 - value)  # MSB that gives this ICC
        means = np.array([-1.5, -0.5, 0.5, 1.5])
        means *= math.sqrt(between / 5 / means.var(ddof=1))
        found = icc(means[:, None] + members, variable="planted")
        assert found.value == pytest.approx(value) and round(found.effective_n, 1) == 4.2


def test_icc_of_nothing():
    constant = icc(np.full((3, 2), 0.1), variable="leakage")
    assert math.isnan(constant.value) and math.isnan(constant.effective_n) and "constant" in constant.note
    for values in (np.ones((1, 5)), np.ones((5, 1))):
        with pytest.raises(ValueError, match="two of each"):
            icc(values, variable="leakage")
    with pytest.raises(ValueError, match="1 of 4 values of leakage"):
        icc(np.array([[1.0, 2.0], [math.nan, 4.0]]), variable="leakage")
