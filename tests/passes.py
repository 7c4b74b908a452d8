"""What the tests of backends share: passes over two fixed rows, and the gate of relative differences."""

import importlib.util
from functools import cache
from typing import Any

import pytest
import torch

from mechinterp.backends.anatomy import anatomy_of
from mechinterp.backends.protocol import Backend, Outcome, Pass, Recorder
from mechinterp.backends.transformers import TransformersBackend
from mechinterp.interventions import Rows
from mechinterp.loading import make_backend
from mechinterp.sites import Site
from tests.architectures import FAMILIES, shared, tiny

GATE = 5e-6
HAS_HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
BACKENDS = ["nnsight", "transformer_bridge", *(["hooked_transformer"] if HAS_HOOKED else [])]
# The whole truth of what the libraries do not do; a test below proves each row.
UNSUPPORTED = {("granite", "hooked_transformer"), ("olmo2", "hooked_transformer")}
UNREADABLE = {
    ("gpt_neox", "transformer_bridge"): {"q_rot", "k_rot"},
    ("phi3", "transformer_bridge"): {"q_rot", "k_rot"},
}
PAIRS = [(family, kind) for family in FAMILIES for kind in BACKENDS if (family, kind) not in UNSUPPORTED]
each_pair = pytest.mark.parametrize(("family", "kind"), PAIRS)
each_backend = pytest.mark.parametrize("kind", BACKENDS)
TOKENS = torch.randint(
    2, 211, (2, 14), generator=torch.Generator().manual_seed(0)
)  # longer than the window of 8


@cache
def reference(family: str) -> TransformersBackend:
    model = shared(family)
    return TransformersBackend(model, anatomy_of(model.config))


@cache
def made(family: str, kind: Any) -> Backend:
    model = shared(family)
    return make_backend(kind, model, anatomy_of(model.config))[0]


def a_pass(tokens: torch.Tensor, *, pad: torch.Tensor | None = None, before: int = 0, **asked: Any) -> Pass:
    position = torch.arange(before, before + tokens.shape[1]).expand_as(tokens)
    position = position if pad is None else position - pad[:, None]
    return Pass(tokens, Rows(position, position - (TOKENS.shape[1] - 1), position >= 0), pad, **asked)


@torch.no_grad()
def run(backend: Backend, request: Pass) -> tuple[Outcome, dict[Site, torch.Tensor]]:
    recorder = Recorder(request)
    outcome = backend.forward(request, recorder)
    recorder.check()
    return outcome, recorder.values


def logits(backend: Backend, request: Pass) -> torch.Tensor:
    found = run(backend, request)[0].logits
    assert found is not None
    return found


def tiny_model(family: str) -> Any:
    return tiny(family)


def at(name: Any, layer: int) -> Site:
    """A site by a name that is only known as text."""
    return Site(name, layer)


def every_site(backend: Backend) -> tuple[Site, ...]:
    """All that the backend reads; resid_mid is a sum that `Model` makes."""
    names = [name for name in backend.sites if name != "resid_mid"]
    return tuple(sorted(at(name, layer) for layer in range(backend.dims.n_layers) for name in names))  # type: ignore


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    return float((found - expected).detach().norm() / expected.detach().norm())


def assert_same(
    found: dict[Site, torch.Tensor], expected: dict[Site, torch.Tensor], sites: tuple[Site, ...]
) -> None:
    errors = {str(site): relative(found[site], expected[site]) for site in sites}
    assert all(error <= GATE for error in errors.values()), {k: e for k, e in errors.items() if not e <= GATE}
