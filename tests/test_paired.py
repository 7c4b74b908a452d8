"""Sign flips: the enumeration by hand, the floor of p, the rate under the null, and what is not finite."""

import itertools
import math

import numpy as np
import pytest
import torch

from mechinterp.stats.paired import EXACT_UP_TO, sign_flip


def enumerated(values: list[float]) -> float:
    """The two-sided p over all sign patterns, by the definition: twice the share at least as far out."""
    n, mean = len(values), sum(values) / len(values)
    flips = [sum(s * v for s, v in zip(signs, values, strict=True)) / n
             for signs in itertools.product((1, -1), repeat=n)]  # fmt: skip
    return sum(abs(flip) >= abs(mean) - 1e-12 for flip in flips) / len(flips)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [0.3, -0.1, 0.8, 0.25, -0.6],
        [-2.0, -1.0, -3.0, 0.5, -0.25],
        [1.0, 1.0, 1.0, -1.0, 1.0],
        [0.7, -0.2, 0.1, 0.9, -0.4, 0.3, 1.1, -0.8],
    ],
)
def test_equals_the_enumeration(values):
    found = sign_flip(torch.tensor(values, dtype=torch.float64))
    assert found.p == pytest.approx(enumerated(values), abs=1e-12)
    assert found.estimate == pytest.approx(sum(values) / len(values))
    assert found.n == len(values) and found.method == f"exact sign flips over {len(values)} runs"


def test_ties_are_counted_as_enumeration_counts_them():
    """No pattern of 1, 1, 1 has a mean nearer to zero than 1/3; 0.1 + 0.2 - 0.3 is zero but for rounding."""
    assert sign_flip(torch.tensor([1.0, 1.0, -1.0])).p == 1.0
    assert sign_flip(torch.tensor([0.1, 0.2, -0.3])).p == 1.0


@pytest.mark.parametrize("n", [2, 5, 8, EXACT_UP_TO])
def test_no_p_is_below_two_in_two_to_the_n(n):
    assert sign_flip(torch.arange(1.0, n + 1)).p == pytest.approx(2 / 2**n, rel=1e-9)


def test_a_sign_turned_round_keeps_p_and_turns_the_estimate():
    values = torch.randn(9, generator=torch.Generator().manual_seed(1))
    here, there = sign_flip(values), sign_flip(-values)
    assert (here.p, here.estimate) == (there.p, -there.estimate)


def test_more_units_are_drawn_with_the_seed_named():
    values = torch.randn(EXACT_UP_TO + 3, generator=torch.Generator().manual_seed(2)) + 0.4
    first, again, other = sign_flip(values), sign_flip(values), sign_flip(values, seed=7)
    assert first == again
    assert "seed 7" in other.method and abs(first.p - other.p) < 0.02
    assert first.p >= 1 / 10_000


def test_the_null_is_rejected_at_its_rate():
    """Symmetric differences about zero: 5 % of 400 tests, within three standard errors of that count."""
    generator = torch.Generator().manual_seed(3)
    rejected = sum(sign_flip(torch.randn(8, generator=generator)).p <= 0.05 for _ in range(400))
    exact_level = math.floor(0.05 * 2**8 / 2) * 2 / 2**8  # the largest p below 0.05 that 8 units can give
    error = math.sqrt(exact_level * (1 - exact_level) / 400)
    assert abs(rejected / 400 - exact_level) < 3 * error


def test_what_is_not_finite_is_no_unit():
    values = torch.tensor([1.0, torch.nan, 2.0, torch.inf, 3.0])
    found = sign_flip(values, unit="pair")
    assert found.n == 3 and found.estimate == 2.0 and found.p == 0.25
    assert found.method == "exact sign flips over 3 pairs"


@pytest.mark.parametrize(("values", "n"), [([], 0), ([math.nan] * 4, 0), ([1.5], 1)])
def test_too_few_units_have_no_p_and_say_so(values, n):
    found = sign_flip(torch.tensor(values))
    assert math.isnan(found.p) and found.n == n and "need 2 runs" in found.method
    assert found.estimate == 1.5 if n else math.isnan(found.estimate)


def test_no_difference_at_all_is_no_evidence():
    found = sign_flip(torch.zeros(6))
    assert (found.estimate, found.p) == (0.0, 1.0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_p_does_not_depend_on_the_unit_of_measure(scale):
    values = torch.tensor(np.random.default_rng(4).normal(0.5, 1, 7))
    assert sign_flip(values * scale).p == pytest.approx(sign_flip(values).p, abs=1e-12)
