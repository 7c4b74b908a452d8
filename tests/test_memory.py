"""What a pass keeps is known before it runs, to the byte; what cannot fit is refused with what to write."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mechinterp as mi
from mechinterp import memory
from mechinterp.memory import SMALL, VARIABLE, estimate, free_host
from mechinterp.model import Model
from mechinterp.sites import NAMES, Site
from tests.architectures import shared, tiny

IDS = torch.randint(2, 200, (3, 11), generator=torch.Generator().manual_seed(3))
GIB = 2**30


@pytest.fixture(scope="module")
def llama() -> Model:
    return mi.wrap(shared("llama"), None, name="tiny", verify=False)


def kept(seen: mi.Activations) -> int:
    held = [*seen.values.values(), *([] if seen.logits is None else [seen.logits])]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def enlarged(model: Model, d_model: int) -> Model:
    """A model that says it is large, over a backend that must not be reached."""

    def never(*_):
        raise AssertionError("the model ran")

    dims = replace(model.dims, d_model=d_model)
    parts = {"dims": dims, "sites": model.backend.sites, "device": model.backend.device, "forward": never}
    return replace(model, backend=type("Blocked", (), {**parts, "dtype": torch.float32, "name": "none"})())


# the estimate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
@pytest.mark.parametrize("positions,logits_at", [(None, None), ([2, -1], [4, 5, 6]), ([3], ())])
def test_the_estimate_is_what_is_kept_to_the_byte(family, dtype, positions, logits_at):
    model = mi.wrap(tiny(family).to(dtype), None, verify=False)
    capture = [Site(n, layer) for layer in (0, 2) for n in NAMES if n in model.backend.sites]
    seen = model.forward(IDS, capture=capture, positions=positions, logits_at=logits_at)
    n_positions, n_logits = (11 if at is None else len(at) for at in (positions, logits_at))
    sizes = {"n_batch": 3, "n_positions": n_positions, "n_keys": 11, "n_logits": n_logits, "dtype": dtype}
    assert estimate(model.dims, capture, **sizes).total == kept(seen)


def test_what_resid_mid_is_made_of_is_held_beside_it(llama):
    sizes = {"n_batch": 3, "n_positions": 11, "n_keys": 11, "n_logits": 0, "dtype": torch.float32}
    one = estimate(llama.dims, [Site("resid_post", 1)], **sizes).captures
    assert one == 3 * 11 * 64 * 4
    assert estimate(llama.dims, [Site("resid_mid", 1)], **sizes).captures == 3 * one


# the refusal ------------------------------------------------------------------------------------------------


def test_fault_076_captures_beyond_the_memory_are_refused_before_compute_with_what_to_write(llama):
    model = enlarged(llama, 10**12)
    with pytest.raises(MemoryError) as error:
        model.forward(IDS, capture=[Site("resid_post", 1)], logits_at=[-1])
    said, free = str(error.value), free_host()
    assert f"{IDS.numel() * 4e12 / 1e9:.3g} GB of activations" in said and "cpu" in said
    for words in ("positions=", "fewer sites", "mechinterp.gather.gather", VARIABLE):
        assert words in said
    assert "logits_at=" not in said, "logits are not what is too large"
    assert free is not None and 0 < free < 1e16


def test_fault_076_logits_beyond_the_share_are_refused_and_a_larger_share_lets_them_through(
    llama, monkeypatch
):
    long = torch.ones(900, 150, dtype=torch.long)  # 114 MB of logits
    assert long.numel() * 211 * 4 > SMALL
    monkeypatch.setenv(VARIABLE, "1e-9")
    with pytest.raises(MemoryError, match="pass logits_at= with the positions") as error:
        llama.forward(long)
    assert "0.114 GB of logits" in str(error.value) and "fewer sites" not in str(error.value)
    assert llama.forward(long[:2], logits_at=[-1]).logits.shape == (2, 1, 211)
    for share in ("inf", "0.9", ""):
        monkeypatch.setenv(VARIABLE, share)
        with pytest.raises(AssertionError, match="the model ran"):
            enlarged(llama, 64).forward(long)


@pytest.mark.parametrize("share", ["most", "0", "-1", "nan"])
def test_a_share_that_is_none_is_refused_with_one(llama, monkeypatch, share):
    monkeypatch.setenv(VARIABLE, share)
    with pytest.raises(ValueError, match=f"{VARIABLE} is a positive number such as 0.8"):
        enlarged(llama, 10**12).forward(IDS, capture=[Site("resid_post", 1)])


def test_small_passes_and_sampling_never_ask_the_system(llama, monkeypatch):
    def asked(*_):
        raise AssertionError("the system was asked")

    monkeypatch.setattr(memory, "free_bytes", asked)
    llama.forward(IDS, capture=[Site(name, 1) for name in NAMES])
    mi.sample(llama, IDS, [mi.Phase(3)], stop=frozenset())
    with pytest.raises(AssertionError, match="the system was asked"):
        enlarged(llama, 10**9).forward(IDS, capture=[Site("resid_post", 1)])


# what is free -----------------------------------------------------------------------------------------------


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: {32 * 2**20} kB\nMemAvailable:   {16 * 2**20} kB\n"}


def group(folder: str, limit: str | int, used: int, cache: int = 0, version: int = 2) -> dict[str, str]:
    limit_file, used_file, name = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    base = f"sys/fs/cgroup/{folder}"
    stat = f"anon 5\n{name} {cache}\n"
    return {
        f"{base}/{limit_file}": f"{limit}\n",
        f"{base}/{used_file}": f"{used}\n",
        f"{base}/memory.stat": stat,
    }


def test_the_tightest_limit_around_the_process_counts(tmp_path):
    two = {"proc/self/cgroup": "0::/job/step\n", **MEMINFO}
    one = {"proc/self/cgroup": "4:cpu,cpuacct:/\n3:memory:/job/step\n0::/\n", **MEMINFO}
    cases: list[tuple[dict[str, str], int | None]] = [
        ({}, None),
        (MEMINFO, 16 * GIB),
        ({**two, **group("job/step", "max", GIB)}, 16 * GIB),
        ({**two, **group("job/step", 4 * GIB, 3 * GIB, cache=2 * GIB)}, 3 * GIB),
        ({**two, **group("job/step", "max", GIB), **group("job", 2 * GIB, GIB)}, GIB),
        ({**two, **group("job/step", GIB, 2 * GIB)}, 0),
        ({**one, **group("memory/job/step", 2**63 - 4096, GIB, version=1)}, 16 * GIB),
        ({**one, **group("memory/job", 8 * GIB, 3 * GIB, cache=GIB, version=1)}, 6 * GIB),
    ]
    for number, (files, expected) in enumerate(cases):
        assert free_host(system(tmp_path / str(number), files)) == expected, number


def test_what_is_free_here_is_less_than_what_there_is():
    total = Path("/proc/meminfo")
    if not total.exists():
        pytest.skip("only Linux says what is available")
    free = free_host()
    assert free is not None and 0 < free <= int(total.read_text().split()[1]) * 1024


def test_devices_are_those_that_hold_the_model_and_unknown_ones_refuse_nothing(llama):
    assert memory.devices_of(llama.backend) == {torch.device("cpu")}
    assert memory.free_bytes({torch.device("cpu"), torch.device("mps")}) is None
    assert math.isfinite(memory.fraction())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_torch_holds_and_would_give_again_is_free():
    device = torch.device("cuda", 0)
    torch.zeros(2**28, device=device).sum().item()
    free = memory.free_bytes({device})
    torch.cuda.empty_cache()
    assert free is not None and abs(free - torch.cuda.mem_get_info(device)[0]) < 2**28
