"""Fixtures: tiny models for architectures, the embedded chat model for every claim about a model.

Threads are pinned to one a worker and the hub is off before anything is imported: spinning OpenMP threads of
two workers cost five times the suite's time, and no test may reach the network.
"""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TQDM_DISABLE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
EMBEDDED = "smollm2-135m-instruct-q4"
# files of half a minute and more go first, so that the workers of pytest-xdist end together
LONGEST = [
    f"test_{name}.py"
    for name in (
        "plan", "benchmarks", "examples", "certificate", "runs", "same_tokens", "zlt_attention", "workers",
        "ray", "sampling", "persistence_study", "causal_proximity", "marker_locus", "question_insertion",
        "kl_barrier",
    )
]  # fmt: skip


def pytest_collection_modifyitems(items):
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # libraries and collected tests stay to the end; every later collection is spared them


@pytest.fixture(scope="session")
def real():
    """The embedded chat model on the reference backend. It is read-only: see `unharmed`."""
    import mechinterp as mi

    return mi.load(EMBEDDED)


@pytest.fixture(scope="session")
def real_hf(real):
    """The Hugging Face object inside `real`."""
    return real.backend.model


@pytest.fixture(autouse=True)
def unharmed(request):
    """After each test that had the real model: no hook left on it, and its weights are what they were."""
    yield
    if "real" not in request.fixturenames:
        return
    model = request.getfixturevalue("real").backend.model
    hooked = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked, f"hooks were left on {hooked}"
    assert float(model.model.norm.weight.detach().sum()) == _norm_sum(model), "the weights were changed"


_sums: dict[int, float] = {}


def _norm_sum(model) -> float:
    return _sums.setdefault(id(model), float(model.model.norm.weight.detach().sum()))
