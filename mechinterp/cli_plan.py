"""`mechinterp plan`: what a study will cost on a model that need not be here."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mechinterp.cli_run import add_question

if TYPE_CHECKING:
    from mechinterp.plan import Part, Plan

COLUMNS = ("task", "cells", "prompts", "tokens", "forwards", "PFLOP", "hours")


def add(commands: Any) -> argparse.ArgumentParser:
    """The command with its options."""
    plan = commands.add_parser(
        "plan", help="what a study will cost: passes, FLOPs, memory, hours; no weights needed"
    )
    add_question(plan)
    plan.add_argument(
        "--model",
        metavar="ID|CONFIG.json",
        help="another model than the study's: an id, a directory, or its config.json alone",
    )
    plan.add_argument("--device", default="h100", help="h200, h100 (default), a100, l40s or rtx4090")
    plan.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        metavar="U",
        help="the share of the device's figures that is reached (default: 0.4)",
    )
    plan.add_argument(
        "--all-cells", action="store_true", help="count every cell, not two of each task (slower, exact)"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    return plan


def planned(given: argparse.Namespace) -> Plan:
    """The plan that is asked for. Raises ValueError for a device or a share that there is not."""
    from mechinterp import plan, running
    from mechinterp.costs import DEVICES
    from mechinterp.embedded import EMBEDDED
    from mechinterp.shapes import shape_of

    if given.device not in DEVICES:
        raise ValueError(f"there is no device {given.device!r}; the devices are {', '.join(DEVICES)}")
    if not 0 < given.utilisation <= 1:
        raise ValueError(f"the utilisation is a share above 0 and up to 1, not {given.utilisation:g}")
    asked = running.ask(given.study, preset=given.preset, config=given.config, overrides=given.overrides)
    name = given.model or getattr(asked.config, "model", EMBEDDED[0].name)
    shape = shape_of(name, getattr(asked.config, "dtype", "auto"))
    return plan.plan(
        asked,
        shape.config,
        shape.tokenizer,
        name=shape.name,
        dtype=shape.dtype,
        device=DEVICES[given.device],
        utilisation=given.utilisation,
        all_cells=given.all_cells,
        notes=shape.notes,
        progress=True,
    )


def as_json(plan: Plan) -> str:
    """The plan as one object."""
    record = {
        "study": plan.study,
        "model": plan.costs.name,
        "n_parameters": plan.costs.n_parameters,
        "device": plan.device.name,
        "utilisation": plan.utilisation,
        "n_devices": plan.n_devices,
        "hours": plan.total("seconds") / 3600,
        "memory": {**dataclasses.asdict(plan.memory), "total": plan.memory.total},
        "tasks": [{**dataclasses.asdict(part), "exact": part.exact} for part in plan.parts],
        "notes": list(plan.notes),
    }
    return json.dumps(record)


def as_text(plan: Plan) -> str:
    """The plan as a table with what it rests on."""
    costs = plan.costs
    lines = [
        f"{plan.study} on {costs.name}: {costs.n_parameters / 1e9:.3g} B parameters,"
        f" {costs.dims.n_layers} layers, {costs.weights / 1e9:.3g} GB of weights",
        "",
        *_table([_cells(part) for part in plan.parts] + [_sums(plan)]),
        "",
        *_memory(plan),
        f"{plan.total('seconds') / 3600:.3g} hours on {_devices(plan)} at {plan.utilisation:.0%} of its"
        " figures, one model after the other; loading and statistics come on top",
        "",
        *(f"- {note}" for note in _notes(plan)),
    ]
    return "\n".join(lines)


def _cells(part: Part) -> tuple[str, ...]:
    if part.failed is not None and not part.n_counted:
        return (part.task, str(part.n_cells), *["not counted"] * (len(COLUMNS) - 2))
    numbers = (f"{part.prompts:,.0f}", f"{part.tokens:,.0f}", f"{part.forwards:,.0f}")
    return (part.task, str(part.n_cells), *numbers, f"{part.flops / 1e15:,.3g}", f"{part.seconds / 3600:.3g}")


def _sums(plan: Plan) -> tuple[str, ...]:
    whole = ("prompts", "tokens", "forwards")
    return (
        "all",
        f"{plan.total('n_cells'):,.0f}",
        *(f"{plan.total(name):,.0f}" for name in whole),
        f"{plan.total('flops') / 1e15:,.3g}",
        f"{plan.total('seconds') / 3600:.3g}",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    table = [COLUMNS, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table
    ]


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    parts = ("weights", "cache", "captures", "logits", "work")
    said = ", ".join(f"{name} {getattr(memory, name) / 1e9:.3g}" for name in parts)
    return [f"peak memory of one model {memory.total / 1e9:.3g} GB: {said}"]


def _devices(plan: Plan) -> str:
    device = plan.device
    if plan.n_devices == 1:
        return f"one {device.name} ({device.memory / 1e9:.0f} GB)"
    return f"{plan.n_devices} x {device.name} ({device.memory / 1e9:.0f} GB each), layer after layer,"


def _notes(plan: Plan) -> list[str]:
    notes = [
        "answers are taken to be as long as they may be; those that stop early cost less",
        "adapters are not counted: about 1 % of the matrix products at rank 32 on 7 B",
        *plan.notes,
    ]
    sampled = [part for part in plan.parts if not part.exact and part.failed is None]
    if sampled:
        said = ", ".join(f"{part.n_counted} of {part.n_cells} {part.task}" for part in sampled)
        notes.append(f"counted were {said}; the others are taken to be like them (--all-cells counts all)")
    notes += [f"{part.task} was not counted whole: {part.failed}" for part in plan.parts if part.failed]
    return notes
