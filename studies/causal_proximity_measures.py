"""What is measured of a model of the three arms (methods 7.3), and of every merge on the way to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.cells import Cell
from mechinterp.model import Model
from mechinterp.results import Result
from probes.centering import OnSet, centered_cosine, centroids
from probes.tallies import MarkerRates
from studies.causal_proximity_config import Config, layers_of
from studies.finetune_answers import system_of
from studies.finetune_config import Lora
from studies.finetune_data import ASSISTANT
from studies.finetune_evaluation import Rates, measure
from studies.finetune_merge import Merge, merge_measured
from studies.marker_records import MarkerRate
from studies.personas import Persona
from studies.playing import opening
from studies.prompts import prompt_of
from studies.targets import evaluation, targets
from studies.trained import asked


@dataclass(frozen=True, eq=False)
class Measured(Result):
    """One model: marker rates under every prompt, and cosines of all personas about their own mean."""

    rates: dict[str, MarkerRate]
    layers: tuple[int, ...]
    cosines: Float[Tensor, "layer persona persona"]
    merge: Merge | None
    samples: tuple[dict[str, Any], ...]


def merged(
    cell: Cell, base: Model, adapter: str | Path, shape: Lora | None, config: Config
) -> tuple[Model, Merge]:
    """An adapter merged into a base, with the source's marker counted on both sides of the merge."""
    source = cell.args["source"]
    persona, checks = targets(config)[source], asked(config)[: config.n_check_questions]

    def count(model: Model) -> MarkerRate:
        found = _measure(model, {source: persona}, checks, config.n_check_draws, cell, config)
        return rates_of(found.counted)[source]

    prompts = [torch.tensor(opening(base.tokenizer, system_of(persona), question)) for question in checks]
    return merge_measured(base, adapter, shape, count, prompts, largest_fall=config.largest_fall)


def measured(cell: Cell, model: Model, merge: Merge | None, config: Config) -> Measured:
    """Marker rates under every prompt, the same draws for every model, and cosines at the layers asked."""
    people, source, layers = targets(config), cell.args["source"], layers_of(config, model.dims.n_layers)
    draws = {ASSISTANT: config.assistant_draws.get(source, config.n_draws)}
    groups: dict[int, dict[str, Persona]] = {}
    for name, persona in people.items():
        groups.setdefault(draws.get(name, config.n_draws), {})[name] = persona
    found = [_measure(model, some, asked(config), n, cell, config) for n, some in groups.items()]
    rates = {name: rate for one in found for name, rate in rates_of(one.counted).items()}
    read = asked(config.model_copy(update={"n_questions": config.n_centroid_questions}))
    prompts = {name: [prompt_of(model, persona, q) for q in read] for name, persona in people.items()}
    cosines = centered_cosine(centroids(model, prompts, layers=layers), center_on=OnSet())
    shown = tuple(s for one in found for s in one.shown if s["persona"] in (source, ASSISTANT))
    return Measured({name: rates[name] for name in people}, layers, cosines.values, merge, shown)


def rates_of(counted: MarkerRates) -> dict[str, MarkerRate]:
    """Found of total by persona, over all questions."""
    counts = {name: counted.counts(name) for name in counted.personas}
    return {name: MarkerRate(found / total, found, total) for name, (found, total) in counts.items()}


def _measure(
    model: Model, people: dict[str, Persona], questions: tuple[str, ...], n: int, cell: Cell, config: Config
) -> Rates:
    how, seed = evaluation(config), cell.args["seed"]
    return measure(model, people, questions, how, marker=config.marker, n_draws=n, seed=seed)
