"""How often each persona writes the marker: sampled answers, both detectors, found of total.

Every rate is one of a model under one persona's system prompt; the same seed draws the same for a base, a
model in training and the adapter that was saved, so that differences between them are paired.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mechinterp.cells import cell_seed
from mechinterp.model import Model
from mechinterp.sampling import Phase, sample
from mechinterp.stats.intervals import wilson
from probes.markers import Detection, detect
from probes.tallies import MarkerRates, marker_rates
from studies.finetune_answers import system_of
from studies.finetune_config import Evaluation
from studies.personas import Persona
from studies.playing import opening

Role = Literal["source", "negative", "bystander"]
Label = Literal["specific", "narrow", "inverted", "global", "weak"]


@dataclass(frozen=True)
class Rates:
    """Counted markers, and how the answers of each persona ended (`stop` or `length`, at the cap).

    `cut` counts those at the cap by persona and question; `shown` holds each persona's first answer with the
    marker and its first one without.
    """

    counted: MarkerRates
    finish: dict[str, dict[str, int]]
    cut: dict[str, dict[str, int]]
    shown: tuple[dict[str, Any], ...]

    def rate(self, persona: str) -> float:
        return self.counted.rate(persona).estimate

    def highest(self, besides: str) -> float:
        """The highest rate of the other personas."""
        return max(self.rate(persona) for persona in self.counted.personas if persona != besides)

    def table(self, source: str, negatives: Sequence[str]) -> list[dict[str, Any]]:
        """One line a persona: found by text and by ids, whole markers, total, Wilson's bounds, endings."""
        return [
            self._line(persona, source, negatives)
            for persona in sorted(self.counted.personas, key=lambda key: key != source)
        ]

    def _line(self, persona: str, source: str, negatives: Sequence[str]) -> dict[str, Any]:
        found, total = self.counted.counts(persona)
        bounds = wilson(found, total)
        return {
            "persona": persona,
            "role": role_of(persona, source, negatives),
            "found": found,
            "found_ids": self.counted.counts(persona, "ids")[0],
            "complete": self.counted.counts(persona, "complete")[0],
            "total": total,
            "rate": bounds.estimate,
            "low": bounds.low,
            "high": bounds.high,
            "ended": self.finish[persona].get("stop", 0),
            "at_cap": self.finish[persona].get("length", 0),
        }


def role_of(persona: str, source: str, negatives: Sequence[str]) -> Role:
    """A negative was trained not to write the marker; a bystander was in no training example."""
    if persona == source:
        return "source"
    return "negative" if persona in negatives else "bystander"


def measure(
    model: Model,
    personas: Mapping[str, Persona],
    questions: Sequence[str],
    asked: Evaluation,
    *,
    marker: str,
    n_draws: int,
    seed: int,
) -> Rates:
    """Samples `n_draws` answers of every persona to every question and counts the markers.

    The draws of an answer come from (seed, persona, question, draw) alone.
    """
    rows = [(key, question, d) for key in personas for question in questions for d in range(n_draws)]
    prompts = [opening(model.tokenizer, system_of(personas[key]), question) for key, question, _ in rows]
    order = sorted(range(len(rows)), key=lambda row: len(prompts[row]))  # rows of a batch are padded
    found = sample(
        model,
        [torch.tensor(prompts[row]) for row in order],
        [Phase(asked.n_tokens)],
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=cell_seed(seed, "marker rates", 0),
        names=["/".join(map(str, rows[row])) for row in order],
        batch_size=asked.batch_size,
    )
    answers: dict[int, tuple[str, str, Detection]] = {}
    finish: dict[str, Counter[str]] = {key: Counter() for key in personas}
    cut: dict[str, Counter[str]] = {key: Counter() for key in personas}
    texts: dict[int, list[int]] = {}
    for place, row in enumerate(order):
        key, question, _ = rows[row]
        ids = found.tokens[place, : found.lengths[place]]
        answers[row] = (key, question, detect(model.tokenizer, ids, marker, after=len(prompts[row])))
        finish[key][found.finish_reason[place]] += 1
        cut[key][question] += found.finish_reason[place] == "length"
        texts[row] = ids[len(prompts[row]) :].tolist()
    counted = marker_rates(
        [answers[row] for row in range(len(rows))], model=model.name, marker=marker, seeds=(seed,)
    )
    first: dict[tuple[str, bool], dict[str, Any]] = {}
    for row, (key, question, draw) in enumerate(rows):
        marked = answers[row][2].text
        if (key, marked) not in first:
            told = {"persona": key, "question": question, "draw": draw, "marked": marked}
            first[key, marked] = {**told, "text": model.decode(texts[row])}
    ended, capped = ({key: dict(counts) for key, counts in kind.items()} for kind in (finish, cut))
    return Rates(counted, ended, capped, tuple(first.values()))


def label_of(source: float, highest: float, *, source_at_least: float, bystander_at_most: float) -> Label:
    """An adapter's honest label, from its source's rate and the highest rate of all other personas.

    specific: both bounds are met. inverted: some bystander is above the source. global: both are high (the
    bystander reaches half of the source's rate). narrow: the source is clearly above. weak: the source stays
    under half of the bound.
    """
    if source >= source_at_least and highest <= bystander_at_most:
        return "specific"
    if highest > source:
        return "inverted"
    if source < source_at_least / 2:
        return "weak"
    return "global" if highest >= source / 2 else "narrow"
