"""Trains a marker into one persona: own answers, LoRA, and a measurement at every step that could lose it.

`train_marker` samples the data, measures the base (0 %), trains, measures the model in training, saves the
adapter, loads it through the same door as everyone and measures it again: where the source's rate fell on
the way, it stops (methods 7.6). Every stage leaves a file in `out`; a run that was killed goes on from there.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.directory import probe
from mechinterp.json_io import read_json, write_json
from mechinterp.loading import load, with_adapter
from mechinterp.locks import HOLDER, take_lock
from mechinterp.model import Model
from studies import finetune_training as training
from studies.finetune_answers import Answer, read_answers, write_answers
from studies.finetune_config import Config, Recipe, Stop
from studies.finetune_data import TrainingExample, write_examples
from studies.finetune_evaluation import Rates, measure
from studies.finetune_recipe import answers_for, examples_for, negative_personas
from studies.finetune_record import Trained, record_of
from studies.personas import Persona, core_personas, questions, wide_personas

logger = logging.getLogger("mechinterp")


def train_marker(
    config: Config, out: Path, *, answers: Path | None = None, base: Model | None = None
) -> Trained:
    """One marker adapter in `out/adapter`, with `record.json` in it; called again, it goes on or returns it.

    `answers` is a file of own answers that were sampled before, to share them between sources. `base` is the
    model of the configuration where it is loaded already. Raises ValueError for another configuration or
    model in the same directory, and RuntimeError where the saved adapter lost the source's marker or another
    process is at work there.
    """
    personas, negatives = cast(config), negatives_of(config)
    base = load_base(config) if base is None else base
    lock = take_lock(probe(out), 0)
    try:
        _same_question(config, base, out)
        return _trained(_Run(config, base, out, personas, negatives), answers)
    finally:
        (out / HOLDER).unlink(missing_ok=True)
        lock.release()


def _trained(run: "_Run", answers: Path | None) -> Trained:
    """All stages in their order."""
    data = run.data(answers)
    before = run.once("before", lambda: run.table(run.check(run.base, n_draws=1)))
    model, step, in_training = run.trained(data)
    folder = run.out / "adapter"
    if not (folder / "adapter_config.json").is_file():
        training.save(model, run.base, folder)
    adapted = with_adapter(run.base, folder)
    loaded = run.once("loaded", lambda: run.table(run.check(adapted, source_only=True)))
    refuse_fall(in_training[0], loaded[0], run.config.evaluation.largest_fall)
    final = run.once("rates", lambda: run.table(run.evaluation(adapted)))
    rates = {"before": before, "in_training": in_training, "loaded": loaded, "adapter": final}
    record = record_of(run.config, run.negatives, data, step, rates, run.base, adapted)
    write_json(folder / "record.json", record)
    return Trained(folder, record)


def load_base(config: Config) -> Model:
    """The model of a configuration, without an adapter."""
    if config.adapter is not None:
        raise ValueError(
            f"adapter {config.adapter!r} is not trained further; leave it out, or merge it first"
        )
    return load(
        config.model,
        backend=config.backend,
        dtype=config.dtype,
        device=config.device,
        revision=config.revision,
        subfolder=config.subfolder,
    )


def cast(config: Config) -> dict[str, Persona]:
    """The core personas, and those of the wide set that the configuration names besides; the source first."""
    core, wide = core_personas(), wide_personas()
    named = (config.persona, *(config.recipe.negatives or ()))
    unknown = [key for key in named if key not in wide]
    if unknown:
        raise ValueError(f"there is no persona {unknown[0]!r}; the core ones are {', '.join(core)}")
    return {config.persona: wide[config.persona], **core, **{key: wide[key] for key in named}}


def questions_asked(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The training questions: those trained on, and those kept for the checks during training."""
    every = questions("training")
    n = len(every) - recipe.n_validation_questions
    return every[:n], every[n:]


def negatives_of(config: Config) -> tuple[str, ...]:
    """The negative personas: those named, or drawn from the core ones."""
    return negative_personas(config.recipe, tuple(core_personas()), config.persona, config.seed)


def refuse_fall(before: Mapping[str, Any], after: Mapping[str, Any], largest: float) -> None:
    """Raises RuntimeError where the source's rate fell by more than `largest` between two measurements."""
    if after["rate"] < before["rate"] - largest:
        raise RuntimeError(
            f"{before['persona']} wrote the marker in {before['found']} of {before['total']} answers in"
            f" training and in {after['found']} of {after['total']} with the adapter as saved and loaded;"
            f" a fall of {largest} is allowed: the adapter did not land as it was trained, do not use it"
        )


@dataclass(frozen=True, eq=False)
class _Run:
    """What all stages share."""

    config: Config
    base: Model
    out: Path
    personas: dict[str, Persona]
    negatives: tuple[str, ...]

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value in `name`.json, computed and written where it is not there yet."""
        path = self.out / f"{name}.json"
        if not path.is_file():
            logger.info("%s: %s", self.config.persona, name)
            write_json(path, compute())
        return read_json(path)

    def data(self, answers: Path | None) -> list[TrainingExample]:
        """The examples, in the order in which they are drawn from; also as JSON lines in `out`."""
        recipe, tokenizer = self.config.recipe, self.base.tokenizer
        own = self._answers(answers, (self.config.persona, *self.negatives))
        asked = [a for a in own if a.question in questions_asked(recipe)[0]]
        made = examples_for(tokenizer, asked, self.config.persona, self.negatives, recipe)
        write_examples(self.out / "data.jsonl", tokenizer, made, self.personas)
        return made

    def _answers(self, given: Path | None, needed: tuple[str, ...]) -> list[Answer]:
        path = given or self.out / "answers.jsonl"
        if given is None and not path.is_file():
            recipe = self.config.recipe
            logger.info("%s: sampling the answers of %s", self.config.persona, ", ".join(needed))
            found = answers_for(
                self.base,
                {key: self.personas[key] for key in needed},
                questions_asked(recipe)[0],
                recipe,
                seed=self.config.seed,
                batch_size=self.config.evaluation.batch_size,
            )
            write_answers(path, found)
        return read_answers(path)

    def trained(self, data: list[TrainingExample]) -> tuple[Any, int, list[dict[str, Any]]]:
        """The model in training at its last step, which step that is, and what its source's check gave."""
        stop = self.config.stop
        found, step, log = training.train(
            self.base,
            data,
            self.config.training,
            self.out / "checkpoints",
            seed=self.config.seed,
            stop_at=None if stop is None else lambda step, model: self._enough(stop, step, model),
            stop_every=1 if stop is None else stop.every,
        )
        if log:
            write_json(self.out / "log.json", log)
        model = training.live(self.base, found)
        table = self.once("in_training", lambda: self.table(self.check(model, source_only=True)))
        return found, step, table

    def _enough(self, stop: Stop, step: int, model: Model) -> bool:
        """Whether the specificity that training may stop at is reached; the rates stay in `out`."""
        rates = self.check(model)
        write_json(self.out / f"step-{step}.json", self.table(rates))
        source, highest = rates.rate(self.config.persona), rates.highest(self.config.persona)
        logger.info(
            "%s, step %d: source %.2f, highest other %.2f", self.config.persona, step, source, highest
        )
        return source >= stop.source_at_least and highest <= stop.bystander_at_most

    def check(self, model: Model, *, source_only: bool = False, n_draws: int | None = None) -> Rates:
        """Rates on the validation questions, which are neither trained on nor those of the evaluation."""
        kept = [self.config.persona] if source_only else list(self.personas)
        return measure(
            model,
            {key: self.personas[key] for key in kept},
            questions_asked(self.config.recipe)[1],
            self.config.evaluation,
            marker=self.config.recipe.marker,
            n_draws=n_draws or self.config.evaluation.n_check_draws,
            seed=self.config.seed,
        )

    def evaluation(self, model: Model) -> Rates:
        """Rates on the evaluation questions."""
        evaluation = self.config.evaluation
        return measure(
            model,
            self.personas,
            questions("evaluation")[: evaluation.n_questions],
            evaluation,
            marker=self.config.recipe.marker,
            n_draws=evaluation.n_draws,
            seed=self.config.seed,
        )

    def table(self, rates: Rates) -> list[dict[str, Any]]:
        return rates.table(self.config.persona, self.negatives)


def _same_question(config: Config, base: Model, out: Path) -> None:
    """Another configuration or base must not go on from this directory's files."""
    path = out / "asked.json"
    asked = {**config.model_dump(mode="json"), "base_sha256": base.weights_sha256}
    if not path.is_file():
        write_json(path, asked)
        return
    there = read_json(path)
    differing = sorted(key for key in {*asked, *there} if asked.get(key) != there.get(key))
    if differing:
        raise ValueError(
            f"{out} holds a training with other {', '.join(differing)}; choose another --out, or remove it"
        )
