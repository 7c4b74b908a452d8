"""Attention at a trained marker: does its row look at the system prompt, and did training make it look?

Each trained model writes answers; the rows that decide the marker, and control rows of the same answers, are
read in that model and in the base on the identical ids, so that trained minus base is paired by example
(methods.md 9 and 12.5 to 12.7).
"""

from collections.abc import Mapping
from typing import Any

from mechinterp.cells import Cell
from mechinterp.results import Result
from studies.trained import BASE, model_name, specs
from studies.zlt_attention_cells import check, draw, examples_of, generate, readout, taken
from studies.zlt_attention_config import Config, blocks, replicates
from studies.zlt_attention_export import publish
from studies.zlt_attention_page import page
from studies.zlt_attention_result import ROWS, Reading, ZltAttention

__all__ = [
    "Config",
    "cells",
    "check",
    "combine",
    "draw",
    "generate",
    "model_specs",
    "page",
    "publish",
    "readout",
    "taken",
]


def cells(config: Config) -> list[Cell]:
    """Per persona, training run and seed: answers, their control rows, their reading; then the base."""
    found, base = [], []
    if config.preflight:
        found.append(Cell("preflight", "check", model_name(config.personas[0], 0)))
    for persona in config.personas:
        for run, seed in replicates(config, persona):
            args = {"persona": persona, "run": run, "seed": seed}
            where, name = text_set(args), model_name(persona, run)
            texts = text_cells(config, args)
            keys = tuple(cell.key for cell in texts)
            drawn = [Cell(f"controls/{where}/{q}", "draw", name, keys, {**args, "query": q}) for q in ROWS]
            found += [*texts, *drawn]
            keys += tuple(cell.key for cell in drawn)
            found.append(Cell(f"trained/{where}", "readout", name, keys, args))
            base.append(Cell(f"base/{where}", "readout", BASE, keys, args))
    return found + base


def text_cells(config: Config, args: dict[str, Any]) -> list[Cell]:
    """Where one text set comes from: the records, or the trained model, a cell a block of questions."""
    if config.records is not None:
        return [Cell(f"taken/{text_set(args)}", "taken", None, (), args)]
    name = model_name(args["persona"], args["run"])
    return [
        Cell(f"generate/{text_set(args)}/{label}", "generate", name, (), {**args, "questions": block})
        for label, block in blocks(config)
    ]


def text_set(args: Mapping[str, Any]) -> str:
    """What a text set is called in keys."""
    return f"{args['persona']}/run{args['run']}/seed{args['seed']}"


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return specs(config)


def combine(config: Config, results: Mapping[str, Result]) -> ZltAttention:
    """Every text set with its two readers. Raises ValueError where none has been read by both."""
    readings, every = [], {cell.key: cell for cell in cells(config)}
    for key, cell in every.items():
        other = key.replace("base/", "trained/", 1)
        if cell.model != BASE or key not in results or other not in results:
            continue
        examples = examples_of({name: results[name] for name in cell.inputs})
        trained: Any = results[other]
        base: Any = results[key]
        persona, run, seed = (cell.args[name] for name in ("persona", "run", "seed"))
        readings.append(Reading(persona, run, seed, examples, trained, base))
    if not readings:
        raise ValueError("no text set has been read by its trained model and the base; run the study further")
    check: Any = results.get("preflight")
    return ZltAttention(
        model=config.model,
        marker=config.marker,
        row=config.row,
        region=config.region,
        replication=config.replication,
        readings=tuple(readings),
        preflight=check,
    )
