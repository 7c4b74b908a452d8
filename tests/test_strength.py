"""Strengths: exact units, roots found where there are any, and steered text that reaches the KL asked for."""

import math
from typing import Any

import pytest
import torch

from mechinterp.chat import Prompt
from mechinterp.divergence import aggregate
from mechinterp.loading import wrap
from mechinterp.results import load_result
from mechinterp.segmentation import Segmentation
from mechinterp.sites import Site
from probes.persist import Trial, release
from probes.strength import Calibration, EqualKL, Raw, ResidualNorms, Unit, calibrate, coefficient, solve
from tests.architectures import shared

SITE = Site("resid_post", 1)


@pytest.fixture(scope="module")
def model():
    return wrap(shared("llama"), None, name="tiny", verify=False)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, n: int = 7) -> Prompt:
    ids = torch.randint(2, 211, (n,), generator=torch.Generator().manual_seed(seed))
    marks = Segmentation(("text",), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool))
    return Prompt(ids[None], marks, "", (), None)


# units ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, 0.2, -3.0, 0.0])
@pytest.mark.parametrize(
    ("unit", "length"),
    [(Raw, lambda v: float(v.norm())), (Unit, lambda v: 1.0), (ResidualNorms, lambda v: 37.5)],
)
def test_the_added_vector_has_the_length_that_the_unit_says(unit, length, value):
    vector = 5 * random(0, 64)
    c = coefficient(unit(value), vector, residual_norm=37.5)
    assert float((c * vector).norm()) == pytest.approx(abs(value) * length(vector), rel=1e-6)
    assert math.copysign(1, c) == math.copysign(1, value)


def test_unit_and_residual_norms_do_not_see_how_long_the_vector_is():
    vector = random(1, 64)
    for strength in (Unit(2.0), ResidualNorms(0.3)):
        near, far = (coefficient(strength, k * vector, 12.0) * k * vector for k in (0.01, 100.0))
        torch.testing.assert_close(near, far)


@pytest.mark.parametrize("vector", [torch.zeros(8), torch.full((8,), torch.nan), torch.full((8,), torch.inf)])
@pytest.mark.parametrize("strength", [Raw(1.0), Unit(1.0), ResidualNorms(1.0)])
def test_fault_010_a_vector_without_direction_has_no_strength(vector, strength):
    with pytest.raises(ValueError, match="norm zero or is not finite"):
        coefficient(strength, vector, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fault_013_a_strength_is_a_finite_number(value):
    with pytest.raises(ValueError, match="finite"):
        coefficient(Raw(value), torch.ones(8), 1.0)


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf, -1.0])
def test_a_stream_without_length_is_no_unit(norm):
    with pytest.raises(ValueError, match="mean norm of the stream"):
        coefficient(ResidualNorms(1.0), torch.ones(8), norm)
    assert coefficient(Raw(2.0), torch.ones(8), norm) == 2.0


# the solver -------------------------------------------------------------------------------------------------

MONOTONE = {
    "linear": lambda c: c,
    "cubic": lambda c: c**3,
    "quadratic up to a ceiling": lambda c: min(9.0, 0.02 * c * c),
    "saturating": lambda c: 8 * (1 - math.exp(-c / 3)),
    "exponential": lambda c: math.expm1(c),
    "eighth power": lambda c: c**8,
    "nothing below one": lambda c: max(0.0, c - 1) ** 2,
    "overflow above three": lambda c: c if c < 3 else math.inf,
    "not a number above three": lambda c: c if c < 3 else math.nan,
}


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("target", [0.3, 1.0, 2.9])
@pytest.mark.parametrize("start", [0.02, 0.7, 3.0, 40.0])
def test_roots_of_rising_functions_are_found(name, target, start):
    calls = []

    def counted(c: float) -> float:
        calls.append(c)
        return MONOTONE[name](c)

    tried, found, converged = solve(counted, target, start, 0.1, 16)
    assert converged
    assert min(abs(math.log(f / target)) for f in found if 0 < f < math.inf) <= math.log(1.1)
    assert tried == calls and tried[0] == pytest.approx(start)
    assert not any(math.isnan(f) for f in found)


def test_it_stops_as_soon_as_it_is_there():
    assert solve(lambda c: c, 2.0, 2.0, 0.1, 12) == ([2.0], [2.0], True)
    tried, found, _ = solve(lambda c: c**2, 1.0, 0.3, 0.01, 30)
    assert all(abs(math.log(f)) > math.log(1.01) for f in found[:-1])
    assert abs(math.log(found[-1])) <= math.log(1.01)


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 1e-4])
def test_a_finer_tolerance_is_reached_too(tolerance):
    """Halving a bound's weight, as the rule does, must not pass for having come near."""
    for power in (0.3, 1, 2, 5):
        _, found, converged = solve(lambda c, k=power: c**k, 1.0, 0.13, tolerance, 40)
        assert converged and abs(math.log(found[-1])) <= math.log1p(tolerance)


@pytest.mark.parametrize(
    "function",
    [lambda c: 0.01 if c < 1.7 else 6.0 + c, lambda c: 5.0, lambda c: 0.0, lambda c: math.inf,
     lambda c: 0.5 * math.tanh(c)],
    ids=["a jump over the target", "a plateau above", "nothing", "overflow everywhere", "a ceiling below"],
)  # fmt: skip
def test_where_there_is_no_root_it_says_so_and_keeps_to_its_tries(function):
    tried, found, converged = solve(function, 1.0, 0.5, 0.1, 12)
    assert not converged and len(tried) == len(found) == 12


def test_a_jump_is_cornered_from_both_sides():
    tried, _, _ = solve(lambda c: 0.01 if c < 1.7 else 6.0 + c, 1.0, 0.5, 0.1, 20)
    low, high = max(c for c in tried if c < 1.7), min(c for c in tried if c >= 1.7)
    assert high / low < 1.2


def test_a_noisy_function_is_solved_or_said_not_to_be():
    """Rollouts jump as the coefficient moves; `converged` is true exactly where some try came near."""
    for seed in range(30):
        noise = iter(random(seed, 12).tolist())
        _, found, converged = solve(lambda c, n=noise: c**2 * math.exp(0.3 * next(n)), 1.0, 0.2, 0.1, 12)
        assert converged == any(abs(math.log(f)) <= math.log(1.1) for f in found)


# equal KL on a model ----------------------------------------------------------------------------------------


def calibrated(model, **more) -> Calibration:
    given: dict[str, Any] = {
        "site": SITE,
        "target": EqualKL(0.1, "mean"),
        "start": 2.0,
        "n_tokens": 6,
        "seeds": (1, 2),
    }
    given = given | {"temperature": 1.0} | more
    return calibrate(model, [prompt(1), prompt(2, 5)], random(3, 64), **given)


def test_steered_text_reaches_the_asked_kl(model):
    found = calibrated(model)
    assert found.converged and 0.1 / 1.1 <= found.reached <= 0.1 * 1.1
    vector = found.coefficient * random(3, 64)
    trials = [Trial(str(i), p, vector, s) for i, p in enumerate([prompt(1), prompt(2, 5)]) for s in (1, 2)]
    run = release(
        model, trials, {"v": vector}, site=SITE, n_steer=6, n_free=0, temperature=1.0, kl=True
    )  # fmt: skip
    assert run.kl is not None
    assert float(aggregate(run.kl.flatten(), "mean")) == found.reached
    assert (found.n_rows, found.n_tokens, found.asked, found.how) == (4, 6, 0.1, "mean")


@pytest.mark.parametrize("how", ["mean", "rmse", "p95", "max"])
def test_each_aggregate_can_be_asked_for(model, how):
    found = calibrated(model, target=EqualKL(0.1, how))
    assert found.reached == min(found.found, key=lambda f: abs(math.log(f / 0.1)))
    assert found.converged == (abs(math.log(found.reached / 0.1)) <= math.log(1.1))


def test_it_is_the_same_every_time_and_survives_a_file(model, tmp_path):
    found = calibrated(model)
    again = calibrated(model)
    assert (found.tried, found.found) == (again.tried, again.found)
    found.save(tmp_path)
    back = load_result(tmp_path)
    assert (back.coefficient, back.tried, back.found) == (found.coefficient, found.tried, found.found)
    assert back.to_dataframe()["kl"].tolist() == list(found.found)
    assert "0.1 nats" in back.figure().layout.title.text


def test_batches_change_nothing_that_is_found(model):
    whole, parts = calibrated(model), calibrated(model, batch_size=3)
    assert parts.found == pytest.approx(whole.found, rel=1e-4)


def test_fault_011_a_strength_that_overflows_is_too_strong_not_an_end(model):
    found = calibrated(model, start=1e25, max_tries=3)
    assert not found.converged and found.found[0] == math.inf
    assert found.coefficient in found.tried


def test_an_overflow_is_kept_in_the_history_through_a_file(model, tmp_path):
    found = calibrated(model, start=1e25, max_tries=3)
    found.save(tmp_path)
    assert load_result(tmp_path).found == found.found


@pytest.mark.parametrize(
    "wrong",
    [{"target": EqualKL(0.0)}, {"target": EqualKL(-1.0)}, {"target": EqualKL(math.nan)},
     {"target": EqualKL(math.inf)}, {"start": 0.0}, {"start": math.inf}, {"n_tokens": 0}, {"seeds": ()},
     {"max_tries": 0}],
)  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(model, wrong):
    with pytest.raises(ValueError, match="needs"):
        calibrated(model, **wrong)
