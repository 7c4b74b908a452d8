"""Steered and steered-then-free runs of 64 tokens are the same ids on every backend, for every architecture.

Where ids first differ the two candidates are within 1e-4 of a tie, and the certificate says so.
"""

import pytest

import mechinterp as mi
from mechinterp.certificate import certify
from tests.architectures import FAMILIES, tiny
from tests.passes import BACKENDS


@pytest.mark.timeout(240)
@pytest.mark.parametrize("family", FAMILIES)
def test_64_tokens_greedy_and_sampled_are_the_same_on_all_backends(family: str):
    model = mi.wrap(tiny(family), None, name=f"tiny {family}")
    found = certify(model, backends=BACKENDS, n_tokens=64)  # type: ignore
    assert found.passed, str(found)
    ids = [check for check in found.checks if check.kind == "ids"]
    compared = [name for name in found.backends if name != "transformers"]
    assert {check.backend for check in ids} == set(compared)
    assert set(compared) | set(dict(found.left_out)) == set(BACKENDS), "none is left out in silence"
