"""Prefix completion: does the system prompt bring the marker out, or the answer's content? (methods.md 8)

A source model's answers under its own persona s and under another o are cut where the marker is decided, and
put as ids behind both prompts: A is prompt s and prefix s, B prompt o and prefix s, C prompt s and prefix o,
D prompt o and prefix o. Continuations are sampled, the log-odds at the slot are exact, and the base model
goes on from the same ids.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mechinterp.cells import Cell
from mechinterp.results import Result
from studies.prefix_completion_cells import answers, go_on
from studies.prefix_completion_config import Config, others_of
from studies.prefix_completion_effects import stop_rules
from studies.prefix_completion_page import page
from studies.prefix_completion_result import LastId, PrefixCompletion, counted, named, written
from studies.prefix_completion_rows import CONDITIONS, Continued
from studies.trained import BASE, asked, model_name, specs, trained

__all__ = ["Config", "answers", "cells", "combine", "go_on", "model_specs", "page"]


def cells(config: Config) -> list[Cell]:
    """Each trained model's answers under every persona and their continuations; then the base on the same."""
    found, base = [], []
    for source in config.personas:
        for run in range(len(trained(config, source))):
            name, others = model_name(source, run), others_of(config, source)
            where = f"{source}/run{run}"
            for persona in (source, *others):
                args = {"source": source, "run": run, "persona": persona}
                found.append(Cell(f"answers/{where}/{persona}", "answers", name, (), args))
            for other in (None, *others):
                needs = tuple(f"answers/{where}/{persona}" for persona in (source, other) if persona)
                args = {"source": source, "run": run, "other": other}
                place = f"{where}/{other or 'matched'}"
                found.append(Cell(f"trained/{place}", "go_on", name, needs, {**args, "reader": "trained"}))
                if config.base_control:
                    base.append(Cell(f"base/{place}", "go_on", BASE, needs, {**args, "reader": "base"}))
    return found + base


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    found = specs(config)
    return found if config.base_control else {name: spec for name, spec in found.items() if name != BASE}


def combine(config: Config, results: Mapping[str, Result]) -> PrefixCompletion:
    """Every 2 x 2 counted, with the stop rules of the source study."""
    found: Mapping[str, Any] = results
    every, questions = cells(config), asked(config)
    gone_on = [found[cell.key] for cell in every if cell.task == "go_on"]
    trained_on = [one for one in gone_on if one.reader == "trained"]
    result = PrefixCompletion(
        model=config.model,
        marker=config.marker,
        seed=config.seed,
        from_text=config.prefixes == "text",
        ending=config.ending,
        source_answers=config.source_answers,
        models=tuple(dict.fromkeys(named(one.source, one.run) for one in trained_on)),
        counts=tuple(count for one in gone_on for count in counted(one, questions)),
        written=tuple(
            written(cell.args["source"], cell.args["run"], found[cell.key])
            for cell in every
            if cell.task == "answers"
        ),
        last_ids=last_ids(trained_on),
        gates=(),
        samples=tuple(sample for one in trained_on for sample in _samples(one)),
    )
    return _with_gates(result)


def _with_gates(result: PrefixCompletion) -> PrefixCompletion:
    matched = {model: result.rate("A", model=model).estimate for model in result.models}
    means = {c: result.mean(c) for c in CONDITIONS}
    base = {c: result.mean(c, "base") for c in CONDITIONS} if "base" in result.readers else None
    return replace(result, gates=stop_rules(matched, means, base))


def last_ids(gone_on: list[Continued]) -> tuple[LastId, ...]:
    """The ids that prefixes end in, most frequent first: the sources' in condition A, the others' in D."""
    counts: Counter[tuple[Any, ...]] = Counter()
    lengths: Counter[tuple[Any, ...]] = Counter()
    for one in gone_on:
        for slot in one.slots:
            if slot.condition not in ("A", "D"):
                continue
            prefix = slot.prefix
            kind = "source" if slot.condition == "A" else "other"
            kept = prefix.n_kept == len(prefix.ids) and not prefix.from_text
            key = (kind, prefix.cut, prefix.last, slot.last_shown, kept)
            counts[key] += 1
            lengths[key] += len(prefix.ids)
    return tuple(LastId(*key, n=n, mean_length=lengths[key] / n) for key, n in counts.most_common())


def _samples(one: Continued) -> list[dict[str, Any]]:
    """The first continuation of each condition: not chosen."""
    found, seen = [], set()
    for place, continuation in zip(one.slot_of_row.tolist(), one.found, strict=True):
        slot = one.slots[place]
        if slot.condition in seen:
            continue
        seen.add(slot.condition)
        found.append(
            {
                "model": named(one.source, one.run),
                "condition": slot.condition,
                "prompt": slot.prompt_persona,
                "prefix": slot.prefix.persona,
                "question": slot.prefix.question,
                "log_odds": slot.log_odds,
                "last": slot.last_shown,
                "text": continuation.shown,
                "outcome": continuation.outcome,
            }
        )
    return found
