"""Specificity as a predictor: held-out bystanders share nothing with the outcome; exact p over sources."""

import math

import numpy as np
import pytest

from studies.leakage_result import Leakage, Record
from studies.specificity import held_out, specificity

PEOPLE = ("s1", "s2", "s3", "s4", "s5", "x", "y", "near", "assistant")


def leakage(n_sources: int = 5, *, assistant_follows: bool = True) -> Leakage:
    """The k-th source leaks 10 k of 100 to bystanders, 12 k to the assistant, 99 to who is near it."""
    records = []
    for k, source in enumerate(PEOPLE[:n_sources], start=1):
        for target in PEOPLE:
            found = 100 if target == source else 10 * k
            if target == "assistant":
                found = 12 * k if assistant_follows else 50
            if target == "near":
                found = 99
            records.append(Record(source, target, 0, 1, None, found, 100))
    return Leakage(
        "toy", "[ZLT]", "assistant", PEOPLE[:n_sources], PEOPLE, tuple(records), "sampled", 0.5, 0.1, ()
    )


def matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    cosine = rng.normal(0, 0.1, (9, 9))
    cosine = (cosine + cosine.T) / 2
    cosine[7, 8] = cosine[8, 7] = 0.9
    js = np.abs(rng.normal(0.02, 0.01, (9, 9)))
    return {"JS": (js + js.T) / 2, "cosine, centred on the 9": cosine}


def test_the_assistant_and_who_is_nearest_to_it_are_held_out():
    assert held_out(matrices()["cosine, centred on the 9"], PEOPLE, "assistant", 1) == ("assistant", "near")
    found = specificity(leakage(), matrices(), PEOPLE, n_nearest=1)
    assert found.held_out == ("assistant", "near")
    first = found.rows[0].predictors
    assert first["max_bystander"] == pytest.approx(0.1), "the 0.99 of who is near is not seen"
    assert first["specificity"] == pytest.approx(0.9) and found.rows[0].n_bystanders == 6


def test_a_planted_order_of_sources_has_rho_minus_one_and_the_exact_p():
    found = specificity(leakage(), matrices(), PEOPLE, n_nearest=1)
    one = found.spearman["specificity"]
    assert one.estimate == pytest.approx(-1) and one.n == 5 and one.unit == "source"
    assert one.p == pytest.approx(2 / math.factorial(5))
    assert found.spearman["breadth"].estimate == pytest.approx(1)
    assert found.without["specificity"] == (pytest.approx(-1), pytest.approx(-1))
    assert set(found.partial) >= {"specificity given JS", "breadth given cosine, centred on the 9"}


def test_fault_106_a_constant_outcome_has_no_rho():
    found = specificity(leakage(assistant_follows=False), matrices(), PEOPLE, n_nearest=1)
    assert math.isnan(found.spearman["specificity"].estimate)
    assert all(math.isnan(bound) for bound in found.without["specificity"])


def test_fault_106_too_few_sources_say_so():
    found = specificity(leakage(2), matrices(), PEOPLE, n_nearest=1)
    assert found.spearman == {} and "2 sources" in found.note and len(found.rows) == 2
    assert found.figure().to_dict()["layout"]["title"]["text"]
