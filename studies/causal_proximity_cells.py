"""The work of the three arms: own answers, trainings over merged models, and what every checkpoint does.

A model of an arm is a chain of merges over the base; every cell builds its own from stored LoRA weights, and
the last merge of the chain is measured on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from mechinterp.cells import Cell, cell_seed
from mechinterp.loading import merge_adapter, with_adapter
from mechinterp.model import Model
from mechinterp.results import Result
from studies import finetune_training as training
from studies.arms_records import ORIGINAL
from studies.causal_proximity_config import Config, steps_of
from studies.causal_proximity_measures import Measured, measured, merged
from studies.finetune_answers import Answer, system_of
from studies.finetune_config import Lora, Recipe, Training
from studies.finetune_data import ASSISTANT, Suffixes, TrainingExample, closing_ids, data_sha256
from studies.finetune_merge import Merge, as_folder
from studies.finetune_recipe import answers_for, examples_for
from studies.personas import questions
from studies.playing import opening
from studies.targets import targets
from studies.trained import trained


@dataclass(frozen=True, eq=False)
class Answers(Result):
    """What the base says in one persona's voice to the training questions."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True, eq=False)
class Trained(Result):
    """LoRA weights by percent of the training, over the model that was merged before, and that merge."""

    weights: dict[int, dict[str, Tensor]]
    log: tuple[dict[str, float], ...]
    n_examples: int
    data_sha256: str
    merge: Merge | None


# tasks ------------------------------------------------------------------------------------------------------


def answer(cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config) -> Answers:
    """Own answers of one persona to all training questions."""
    persona, recipe = cell.args["persona"], config.recipe
    found = answers_for(
        base,
        {persona: targets(config)[persona]},
        questions("training"),
        recipe,
        seed=config.seed,
        n_draws=cell.args["n_draws"],
        batch_size=config.batch_size,
    )
    return Answers(tuple(found))


def train_narrow(cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config) -> Trained:
    """A marker adapter with more negatives and another loss than the one that was given."""
    return _marked(cell, base, inputs, config, config.narrow_recipe, config.narrow, None)


def measure_adapter(cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config) -> Measured:
    """The marker adapter of arms A and C, on and not merged."""
    with _marker_adapter(cell, base, inputs, config) as (adapter, _):
        return measured(cell, with_adapter(base, adapter), None, config)


def converge(cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config) -> Trained:
    """Training on the assistant's prompt with a voice's answers, over the base (B) or the merged marker."""
    start = base if cell.args["arm"] == "B" else _with_marker(cell, base, inputs, config)
    persona = cell.args["voice"]
    data = voiced(base.tokenizer, _answers(inputs, persona), config)
    return _trained(start, data, config.convergence, steps_of(config), _seed(cell, "converge"), None)


def mark(cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config) -> Trained:
    """Arm B: the marker is trained on top of a checkpoint of the convergence, which is merged before."""
    model, merge = base, None
    if cell.args["percent"]:
        with _converged(cell, base, inputs, config) as adapter:
            model, merge = merged(cell, base, adapter, config.convergence.lora, config)
    return _marked(cell, model, inputs, config, config.recipe, config.marker_training, merge)


def evaluate(cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config) -> Measured:
    """A checkpoint of an arm, all adapters merged, the last of them measured on both sides."""
    with _last_adapter(cell, base, inputs, config) as (model, adapter, shape):
        return measured(cell, *merged(cell, model, adapter, shape, config), config)


# data -------------------------------------------------------------------------------------------------------


def voiced(tokenizer: Any, answers: Sequence[Answer], config: Config) -> list[TrainingExample]:
    """The assistant's prompt with each answer as it was given in another voice; those with a marker are left
    out (methods 7.1)."""
    assistant = system_of(targets(config)[ASSISTANT])
    closing = closing_ids(tokenizer)
    suffixes = Suffixes(tokenizer, config.recipe.separator, config.marker)
    return [
        TrainingExample(
            one.persona, one.question, tuple(opening(tokenizer, assistant, one.question)), one.ids,
            len(one.ids), closing[0], False, (), closing, closing[0],
        )
        for one in answers
        if not suffixes.holds(one.ids)
    ]  # fmt: skip


def _marked(
    cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config, recipe: Recipe, settings: Training,
    merge: Merge | None,
) -> Trained:  # fmt: skip
    """The marker trained into a model, on the base's own answers."""
    negatives = tuple(cell.args["negatives"])
    source = cell.args["source"]
    pool = [
        one
        for persona in (source, *negatives)
        for one in _answers(inputs, persona)
        if one.draw < recipe.n_draws
    ]
    data = examples_for(model.tokenizer, pool, source, negatives, recipe)
    return _trained(model, data, settings, {100: settings.n_steps}, _seed(cell, "marker"), merge)


def _trained(
    base: Model, data: Sequence[TrainingExample], settings: Training, steps: Mapping[int, int], seed: int,
    merge: Merge | None,
) -> Trained:  # fmt: skip
    """The weights at each of these steps; a training that was killed starts anew."""
    asked_for = settings.model_copy(update={"save_every": gcd(*steps.values())})
    with TemporaryDirectory() as folder:
        _, _, log = training.train(base, data, asked_for, Path(folder), seed=seed, keep=None)
        kept = training.kept(Path(folder))
    weights = {percent: kept[step] for percent, step in steps.items()}
    return Trained(weights, training.steady(log), len(data), data_sha256(data), merge)


def _seed(cell: Cell, what: str) -> int:
    """The same for every arm, source and checkpoint of a seed: they differ in data and start alone."""
    return cell_seed(cell.args["seed"], what, 0)


def _answers(inputs: Mapping[str, Any], persona: str) -> tuple[Answer, ...]:
    return inputs[f"answers/{persona}"].answers


def _of(inputs: Mapping[str, Any], kind: str) -> Any:
    """The input whose key begins so."""
    return next(result for key, result in inputs.items() if key.startswith(kind))


# adapters ---------------------------------------------------------------------------------------------------


@contextmanager
def _marker_adapter(
    cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config
) -> Iterator[tuple[str | Path, Lora | None]]:
    """The marker adapter of arms A and C, given or trained anew, and the shape that it must have."""
    source = cell.args["source"]
    if cell.args["adapter"] == ORIGINAL:
        yield trained(config, source)[cell.args["run"]], config.adapter_lora
        return
    lora = config.narrow.lora
    with as_folder(base, lora, _of(inputs, "marker/").weights[100], f"{source}-narrow") as folder:
        yield folder, lora


def _with_marker(cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config) -> Model:
    with _marker_adapter(cell, base, inputs, config) as (adapter, _):
        return merge_adapter(base, adapter)


@contextmanager
def _last_adapter(
    cell: Cell, base: Model, inputs: Mapping[str, Any], config: Config
) -> Iterator[tuple[Model, str | Path, Lora | None]]:
    """What a checkpoint merges last, over which model: the marker in arm B and at 0 %, else convergence."""
    percent = cell.args["percent"]
    if cell.args["arm"] == "B":
        model, lora = base, config.marker_training.lora
        if percent:
            with _converged(cell, base, inputs, config) as adapter:
                model = merge_adapter(base, adapter)
        with as_folder(model, lora, _of(inputs, "marker/").weights[100], f"marker-{percent}") as adapter:
            yield model, adapter, lora
    elif not percent:
        with _marker_adapter(cell, base, inputs, config) as (adapter, shape):
            yield base, adapter, shape
    else:
        model = _with_marker(cell, base, inputs, config)
        with _converged(cell, model, inputs, config) as adapter:
            yield model, adapter, config.convergence.lora


@contextmanager
def _converged(cell: Cell, start: Model, inputs: Mapping[str, Any], config: Config) -> Iterator[Path]:
    percent = cell.args["percent"]
    weights = _of(inputs, "converge/").weights[percent]
    with as_folder(start, config.convergence.lora, weights, f"converged-{percent}") as folder:
        yield folder
