"""Interleaved timing: every round runs all arms, in turning order, and ratios are taken within a round.

CPU seconds are the figure to trust on a shared machine; wall seconds are given beside them.
"""

import gc
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.subject import Subject


@dataclass(frozen=True)
class Arm:
    """Something that computes the same as ours. `share` is the part of the full work that `run` does (a
    sample of it).

    `view` takes from our output and from the arm's what the two have in common; None where they cannot be
    compared.
    """

    name: str
    run: Callable[[], Tensor]
    share: float = 1.0
    view: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = (lambda x: x, lambda x: x)


def interleave(ours: Arm, peers: list[Arm], rounds: int) -> dict[str, Any]:
    """Medians of peer / ours within a round, after one uncounted warm-up of each arm.

    `max_error` is the relative L2 distance of an arm's warm-up output to ours.
    """
    arms = [ours, *peers]
    outputs = {arm.name: arm.run() for arm in arms}
    seconds: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        order = arms if number % 2 == 0 else arms[::-1]
        for arm in order:
            gc.collect()
            _settle()
            cpu, wall = time.process_time(), time.perf_counter()
            arm.run()
            _settle()
            spent = (time.process_time() - cpu, time.perf_counter() - wall)
            seconds[arm.name].append((spent[0] / arm.share, spent[1] / arm.share))
    mine = seconds[ours.name]
    found: dict[str, Any] = {
        "ours": {"cpu_seconds": _median(mine, 0), "wall_seconds": _median(mine, 1), "rounds": rounds}
    }
    truth = outputs[ours.name]
    for arm in peers:
        theirs = seconds[arm.name]
        found[arm.name] = {
            "ratio": statistics.median(t[0] / m[0] for t, m in zip(theirs, mine, strict=True)),
            "wall_ratio": statistics.median(t[1] / m[1] for t, m in zip(theirs, mine, strict=True)),
            "cpu_seconds": _median(theirs, 0),
            "wall_seconds": _median(theirs, 1),
            "rounds": rounds,
            "sampled_share": arm.share,
            "max_error": None
            if arm.view is None
            else error(arm.view[1](outputs[arm.name]), arm.view[0](truth)),
        }
    return found


def _settle() -> None:
    """Waits for what a GPU still has to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _median(seconds: list[tuple[float, float]], which: int) -> float:
    return statistics.median(s[which] for s in seconds)


def error(found: Tensor, expected: Tensor) -> float | None:
    """Relative L2 distance; for ids, the share that differs."""
    if found.shape != expected.shape:
        return None
    found, expected = found.cpu(), expected.cpu()
    if not found.is_floating_point():
        return float((found != expected).float().mean())
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def machine(subject: Subject) -> dict[str, Any]:
    """What the figures were taken on, without naming the machine."""
    return {
        "processor": platform.machine(),
        "model": Path(subject.name).name,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if subject.device.startswith("cuda") else "cpu",
        "dtype": subject.dtype,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **{name: version(name) for name in ("torch", "transformers", "transformer-lens", "nnsight")},
    }


def show(report: dict[str, Any]) -> str:
    """The figures as aligned lines."""
    lines = [f"{report['workload']}: " + ", ".join(f"{k} {v}" for k, v in report["machine"].items())]
    lines.append(f"{'':<40} {'cpu ratio':>10} {'wall ratio':>10} {'cpu s':>9} {'error':>10}")
    for case, arms in report.items():
        if case in ("workload", "machine"):
            continue
        if "ours" not in arms:
            lines += _leaves(case, arms)
            continue
        entries = arms if "ratio" not in arms else {"ours": arms["ours"], "loop": arms}
        for name, entry in entries.items():
            ratio = (
                f"{entry['ratio']:>10.2f} {entry['wall_ratio']:>10.2f}" if "ratio" in entry else f"{'':>21}"
            )
            wrong = f"{entry['max_error']:.1e}" if entry.get("max_error") is not None else ""
            lines.append(
                f"{case + '.' + name:<40} {ratio} {entry['cpu_seconds']:>9.2f} {wrong:>10}{_more(entry)}"
            )
    return "\n".join(lines)


def _leaves(path: str, held: dict[str, Any]) -> list[str]:
    """The numbers of a workload without a peer, one a line."""
    lines = []
    for name, value in held.items():
        at = f"{path}.{name}"
        lines += _leaves(at, value) if isinstance(value, dict) else [f"{at:<40} {value:>10.4g}"]
    return lines


def _more(entry: dict[str, Any]) -> str:
    """What only some workloads measure: ours over a bare forward, and extra peak memory."""
    said = ""
    if "overhead" in entry:
        said += f"  overhead {entry['overhead']:.3f}"
    if entry.get("extra_megabytes") is not None:
        said += f"  {entry['extra_megabytes']:.0f} MB"
    if entry.get("memory_ratio") is not None:
        said += f" ({entry['memory_ratio']:.1f}x)"
    return said
