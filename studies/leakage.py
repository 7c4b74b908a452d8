"""Marker leakage: how often does one persona's trained marker come out under another's prompt? (methods 3)

leak(source -> target) is the marker's rate in answers sampled under the target's system prompt by the model
whose marker was trained on the source. It is directed; the diagonal is the source's own rate.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechinterp.cells import Cell
from mechinterp.model import Model
from mechinterp.results import Result
from studies.finetune_evaluation import measure
from studies.leakage_config import Config
from studies.leakage_page import page
from studies.leakage_publish import publish
from studies.leakage_result import Leakage, Leaked, Record, merged
from studies.targets import evaluation, targets
from studies.trained import BASE, asked, model_name, specs, trained

__all__ = ["Config", "cells", "combine", "model_specs", "page", "publish", "recorded", "sampled"]


def cells(config: Config) -> list[Cell]:
    """Each trained model under every target, some targets a cell."""
    found, names = [], list(targets(config))
    for source in config.personas:
        for run in range(len(trained(config, source))):
            args = {"source": source, "run": run}
            if config.counts == "recorded":
                found.append(Cell(f"rates/{source}/run{run}", "recorded", None, (), args))
                continue
            for seed in config.seeds:
                for start in range(0, len(names), config.targets_per_cell):
                    some = names[start : start + config.targets_per_cell]
                    where = f"rates/{source}/run{run}/seed{seed}/{start}"
                    more = {**args, "seed": seed, "targets": some}
                    found.append(Cell(where, "sampled", model_name(source, run), (), more))
    return found


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    if config.counts == "recorded":
        return {}
    return {name: spec for name, spec in specs(config).items() if name != BASE}


def sampled(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Leaked:
    """Answers under some targets' prompts to every question, counted."""
    everyone = targets(config)
    source, run, seed = (cell.args[name] for name in ("source", "run", "seed"))
    found = measure(
        model,
        {name: everyone[name] for name in cell.args["targets"]},
        asked(config),
        evaluation(config),
        marker=config.marker,
        n_draws=config.n_draws,
        seed=seed,
    )
    records = tuple(
        Record(
            source, t.persona, run, seed, t.question, t.text, t.total, found.cut[t.persona].get(t.question, 0)
        )
        for t in found.counted.tallies
    )
    samples = tuple({"source": source, "run": run, "seed": seed, **sample} for sample in found.shown)
    return Leaked(records, samples)


def recorded(cell: Cell, model: None, inputs: Mapping[str, Result], config: Config) -> Leaked:
    """The counts in the record that lies beside an adapter, taken of it after it was saved."""
    source, run = cell.args["source"], cell.args["run"]
    path = Path(trained(config, source)[run]) / "record.json"
    if not path.is_file():
        raise ValueError(
            f'there is no {path.name} beside the adapter of {source}; set counts = "sampled" to sample'
        )
    record = json.loads(path.read_text())
    lines = {line["persona"]: line for line in record["rates"]["adapter"]}
    missing = [name for name in targets(config) if name not in lines]
    if missing:
        raise ValueError(
            f"the record of {source} has no rates of {', '.join(missing[:3])}; sample them with counts ="
            ' "sampled"'
        )
    if record["marker"] != config.marker:
        raise ValueError(f"the record of {source} counts {record['marker']!r}, not {config.marker!r}")
    return Leaked(tuple(_recorded(source, run, record["seed"], lines[name]) for name in targets(config)), ())


def _recorded(source: str, run: int, seed: int, line: Mapping[str, Any]) -> Record:
    return Record(source, line["persona"], run, seed, None, line["found"], line["total"], line["at_cap"])


def combine(config: Config, results: Mapping[str, Any]) -> Leakage:
    """All records, source by source."""
    return concluded(config, [results[cell.key] for cell in cells(config)])


def concluded(config: Config, parts: Sequence[Leaked]) -> Leakage:
    records, samples = merged(parts)
    return Leakage(
        model=config.model,
        marker=config.marker,
        assistant=config.assistant,
        sources=config.personas,
        targets=tuple(targets(config)),
        records=records,
        counted=config.counts,
        label_at_least=config.label_at_least,
        label_at_most=config.label_at_most,
        samples=samples,
    )
