"""What a pass will keep, in bytes, before it runs: a request that cannot fit is refused, not killed half-way.

The estimate knows shapes only, so a plan can make it without a model. It counts what stays until the pass
returns; what a library holds while it computes comes on top, hence the fraction.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mechinterp.activations import with_parts
from mechinterp.backends.protocol import Dims, Pass
from mechinterp.sites import Site

SMALL = 2**26  # 64 MiB: below it, nobody asks the system what is free
FRACTION = 0.8
VARIABLE = "MECHINTERP_MEMORY_FRACTION"


@dataclass(frozen=True)
class Bytes:
    """What one pass keeps: its captured activations and its logits."""

    captures: int
    logits: int

    @property
    def total(self) -> int:
        return self.captures + self.logits


def estimate(
    dims: Dims,
    capture: Sequence[Site],
    *,
    n_batch: int,
    n_positions: int,
    n_keys: int,
    n_logits: int,
    dtype: torch.dtype,
) -> Bytes:
    """The bytes that a pass keeps at its end: `n_positions` and `n_logits` are rows of one sequence.

    `n_keys` are the slots that a row of `pattern` covers; patterns are kept in fp32. What `resid_mid` is made
    of is counted too, since it is held until the sum is taken.
    """
    captures = 0
    for site in (*with_parts(tuple(capture)), *(s for s in capture if s.name == "resid_mid")):
        if site.name == "pattern":
            captures += dims.n_heads * n_keys * torch.float32.itemsize
        else:
            captures += math.prod(dims.shape(site)) * dtype.itemsize
    return Bytes(captures * n_batch * n_positions, n_batch * n_logits * dims.d_vocab * dtype.itemsize)


def refuse_what_cannot_fit(request: Pass, capture: Sequence[Site], backend: Any) -> None:
    """Raises MemoryError for a pass that would keep more than its share of what is free where it runs."""
    n_batch, n = request.tokens.shape
    logits = n if request.logit_slots is None else request.logit_slots.shape[1]
    asked = estimate(
        backend.dims,
        capture,
        n_batch=n_batch,
        n_positions=n if request.slots is None else request.slots.shape[1],
        n_keys=request.n_cached + n,
        n_logits=logits if request.wants_logits else 0,
        dtype=getattr(backend, "dtype", torch.float32),
    )
    if asked.total <= SMALL:
        return
    share, devices = fraction(), devices_of(backend)
    free = free_bytes(devices)
    if free is None or asked.total <= share * free:
        return
    places = ", ".join(sorted(map(str, devices)))
    raise MemoryError(
        f"this pass would keep {_gb(asked.captures)} of activations and {_gb(asked.logits)} of logits, where"
        f" {_gb(free)} is free on {places} and {share:g} of that may be used: {_remedies(asked)}; {VARIABLE}="
        " sets another fraction"
    )


def _remedies(asked: Bytes) -> str:
    """What to write instead, for the larger part first."""
    captures = (
        "pass positions= or fewer sites or rows, or let mechinterp.gather.gather reduce many prompts as they"
        " run"
    )
    logits = "pass logits_at= with the positions that are read, or logits_at=() for none"
    told = [(asked.captures, captures), (asked.logits, logits)]
    return "; ".join(text for size, text in sorted(told, reverse=True) if size > asked.total / 10)


def _gb(n: int) -> str:
    return f"{n / 1e9:.3g} GB"


def fraction() -> float:
    """The share of the free memory that one pass may keep: the environment's, or 0.8."""
    given = os.environ.get(VARIABLE, "").strip()
    try:
        share = float(given) if given else FRACTION
    except ValueError:
        share = math.nan
    if not share > 0:
        raise ValueError(
            f"{VARIABLE} is a positive number such as 0.8, or inf to never refuse; not {given!r}"
        )
    return share


def devices_of(backend: Any) -> set[torch.device]:
    """Where a backend keeps captures: every device that holds a part of its model."""
    parameters = getattr(getattr(backend, "model", None), "parameters", list)()
    return {p.device for p in parameters if p.device.type != "meta"} or {torch.device(backend.device)}


def free_bytes(devices: set[torch.device]) -> int | None:
    """What is free on these devices together; None where one of them does not say."""
    found = [_free_cuda(device) if device.type == "cuda" else _free_other(device) for device in devices]
    known = [n for n in found if n is not None]
    return sum(known) if len(known) == len(found) else None


def _free_cuda(device: torch.device) -> int:
    """Free memory, with what torch's allocator holds and would give again."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _free_other(device: torch.device) -> int | None:
    return free_host() if device.type == "cpu" else None


def free_host(root: Path = Path("/")) -> int | None:
    """Host memory that can be had without swapping, within the limits of the process's control groups."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        return None
    return min([available, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> list[int]:
    """What each control group around this process still allows; a scheduler kills at that line."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        )
        group = base / path.strip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
            left += _left(folder, *names)
    return left


def _left(folder: Path, limit: str, usage: str) -> list[int]:
    """Limit minus use, where page cache that can be dropped is no use; nothing where there is no limit."""
    try:
        allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # outside its container a process may not see the group that it is in
        return []
    cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return [] if allowed == "max" else [max(0, int(allowed) - used + cached)]
