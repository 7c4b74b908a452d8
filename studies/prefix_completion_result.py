"""What prefix completion finds: counts and log-odds of every 2 x 2, and the effects drawn from them.

A set of four is one source model, other persona and question; sets of one question form a cluster, because
they share its prefixes. Condition A is the same in all sets of a source and question.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, wilson
from studies.attention_records import Examples
from studies.gates import Gate
from studies.prefix_completion_effects import Effect, effects
from studies.prefix_completion_rows import CONDITIONS, Condition, Continued, Found, Outcome, Reader, Slot

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Measure = Literal["rate", "log_odds"]
Arm = Literal["trained", "base", "trained - base"]


@dataclass(frozen=True)
class Count:
    """The continuations of one condition, other persona and question. `log_odds` is the mean of its slots."""

    source: str
    run: int
    reader: Reader
    condition: Condition
    other: str | None
    question: str
    total: int
    text: int
    ids: int
    complete: int
    outcomes: dict[Outcome, int]
    offsets: tuple[int, ...]
    at_once: int
    n_slots: int
    log_odds: float

    @property
    def model(self) -> str:
        return named(self.source, self.run)

    def value(self, measure: Measure) -> float:
        return self.text / self.total if measure == "rate" else self.log_odds


@dataclass(frozen=True)
class Written:
    """The answers that prefixes were cut from, of a source's model under one persona.

    `unfinished` ran into the cap without a marker and give no prefix.
    """

    source: str
    run: int
    persona: str
    answers: int
    positives: int
    unfinished: int


@dataclass(frozen=True)
class LastId:
    """How often prefixes of one kind end in an id. `kept` is False where the id is not the record's own."""

    prefix_of: Literal["source", "other"]
    cut: str
    last_id: int | None
    shown: str
    kept: bool
    n: int
    mean_length: float


@dataclass(frozen=True, eq=False)
class PrefixCompletion(Result):
    """All 2 x 2s of a run. The table has one line a source, reader, condition and other persona."""

    model: str
    marker: str
    seed: int
    from_text: bool
    ending: str
    source_answers: str
    models: tuple[str, ...]
    counts: tuple[Count, ...]
    written: tuple[Written, ...]
    last_ids: tuple[LastId, ...]
    gates: tuple[Gate, ...]
    samples: tuple[dict[str, Any], ...]

    @property
    def readers(self) -> tuple[Reader, ...]:
        return tuple(dict.fromkeys(count.reader for count in self.counts))

    @property
    def arms(self) -> tuple[Arm, ...]:
        return ("trained", *self.control_arms)

    @property
    def control_arms(self) -> tuple[Arm, ...]:
        """The base, and what training changed; neither without a base or without a complete set of four."""
        return ("base", "trained - base") if "base" in self.readers and self.applicable else ()

    @property
    def applicable(self) -> tuple[str, ...]:
        """The models with at least one complete set of four."""
        return tuple(model for model in self.models if len(self.sets("rate", "trained", model)[1]))

    def sets(
        self, measure: Measure, arm: Arm, model: str | None = None
    ) -> tuple[Float[np.ndarray, "pair condition"], list[str]]:
        """Condition means of every complete set of four, and the question of each; of one model or all."""
        if arm == "trained - base":
            ours, theirs = (self._fours(measure, reader, model) for reader in ("trained", "base"))
            fours = {place: ours[place] - theirs[place] for place in ours if place in theirs}
        else:
            fours = self._fours(measure, arm, model)
        return np.array(list(fours.values()), dtype=float).reshape(-1, 4), [q for _, _, q in fours]

    def _fours(
        self, measure: Measure, reader: Reader, model: str | None
    ) -> dict[tuple[str, str | None, str], Float[np.ndarray, "condition"]]:
        """By (model, other, question); A is of no other, so it stands in every set of its question."""
        mine = [c for c in self.counts if c.reader == reader and c.total and model in (None, c.model)]
        found = {(c.model, c.condition, c.other, c.question): c.value(measure) for c in mine}
        fours = {}
        for c in mine:
            places = [(c.model, k, None if k == "A" else c.other, c.question) for k in CONDITIONS]
            if c.condition == "B" and all(place in found for place in places):
                fours[c.model, c.other, c.question] = np.array([found[place] for place in places])
        return fours

    def effects(self, measure: Measure, arm: Arm, model: str | None = None) -> tuple[Effect, ...]:
        """Prompt, content and interaction, clustered by question."""
        return effects(*self.sets(measure, arm, model))

    def dropped(self) -> int:
        """Sets of four that lack a condition: no usable answer of the source or of the other."""
        mine = [c for c in self.counts if c.reader == "trained"]
        asked = {(c.model, c.other, c.question) for c in mine if c.other is not None}
        return len(asked) - len(self.sets("rate", "trained")[1])

    def rate(
        self,
        condition: Condition,
        reader: Reader = "trained",
        model: str | None = None,
        other: str | None = None,
    ) -> Interval:
        """found / total with Wilson's interval, as if continuations of one prefix were independent."""
        mine = self._of(condition, reader, model, other)
        return wilson(sum(c.text for c in mine), sum(c.total for c in mine), unit="continuation")

    def mean(self, condition: Condition, reader: Reader = "trained", model: str | None = None) -> float:
        """The rate as a mean over complete sets of four; NaN without any."""
        values, _ = self.sets("rate", reader, model)
        return float(values[:, CONDITIONS.index(condition)].mean()) if len(values) else math.nan

    def outcomes(
        self, condition: Condition, reader: Reader = "trained", model: str | None = None
    ) -> dict[str, int]:
        total: Counter[str] = Counter()
        for count in self._of(condition, reader, model):
            total.update(count.outcomes)
        return dict(total)

    def offsets(self, condition: Condition, model: str | None = None) -> list[int]:
        """How many ids stand before the marker, of every continuation that has one."""
        return [n for count in self._of(condition, "trained", model) for n in count.offsets]

    def _of(
        self, condition: Condition, reader: Reader, model: str | None, other: str | None = None
    ) -> list[Count]:
        return [
            c
            for c in self.counts
            if (c.condition, c.reader) == (condition, reader)
            and model in (None, c.model)
            and other in (None, c.other)
        ]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        groups: dict[tuple[Any, ...], list[Count]] = {}
        for c in self.counts:
            groups.setdefault((c.model, c.reader, c.condition, c.other), []).append(c)
        return pd.DataFrame(_line(key, counts, self.from_text) for key, counts in groups.items())

    def headline(self) -> str:
        """The answer in a few lines of plain text."""
        from studies.prefix_completion_page import answer

        return answer(self)

    def figure(self) -> go.Figure:
        """Rates by condition; `studies.prefix_completion_figures` draws the others."""
        from studies.prefix_completion_figures import by_model

        return by_model(self)


def _line(key: tuple[Any, ...], counts: Sequence[Count], from_text: bool) -> dict[str, Any]:
    total, found = sum(c.total for c in counts), sum(c.text for c in counts)
    bounds, slots = wilson(found, total, unit="continuation"), sum(c.n_slots for c in counts)
    odds = [c.log_odds for c in counts if c.n_slots]
    return {
        **dict(zip(("model", "reader", "condition", "other"), key, strict=True)),
        "found": found,
        "found_ids": sum(c.ids for c in counts),
        "complete": sum(c.complete for c in counts),
        "total": total,
        "rate": bounds.estimate,
        "low": bounds.low,
        "high": bounds.high,
        "n_questions": sum(c.total > 0 for c in counts),
        "n_prefixes": slots,
        "log_odds": float(np.mean(odds)) if odds else math.nan,
        "text_prefixes": from_text,
    }


def named(source: str, run: int) -> str:
    """A trained model as figures call it."""
    return source if run == 0 else f"{source}, run {run}"


def counted(continued: Continued, questions: Iterable[str]) -> list[Count]:
    """One count a condition and question, also where there was nothing to go on from."""
    conditions: tuple[Condition, ...] = ("A",) if continued.other is None else ("B", "C", "D")
    slots: dict[tuple[Condition, str], list[Slot]] = {}
    found: dict[tuple[Condition, str], list[Found]] = {}
    for slot in continued.slots:
        slots.setdefault((slot.condition, slot.prefix.question), []).append(slot)
    for place, one in zip(continued.slot_of_row.tolist(), continued.found, strict=True):
        slot = continued.slots[place]
        found.setdefault((slot.condition, slot.prefix.question), []).append(one)
    return [
        _count(
            continued,
            condition,
            question,
            slots.get((condition, question), []),
            found.get((condition, question), []),
        )
        for condition in conditions
        for question in questions
    ]


def _count(
    continued: Continued, condition: Condition, question: str, slots: Sequence[Slot], found: Sequence[Found]
) -> Count:
    return Count(
        source=continued.source,
        run=continued.run,
        reader=continued.reader,
        condition=condition,
        other=continued.other,
        question=question,
        total=len(found),
        text=sum(one.text for one in found),
        ids=sum(one.by_ids for one in found),
        complete=sum(one.complete for one in found),
        outcomes=dict(Counter(one.outcome for one in found)),
        offsets=tuple(one.offset for one in found if one.text and one.offset is not None),
        at_once=sum(one.text and one.at_once for one in found),
        n_slots=len(slots),
        log_odds=float(np.mean([slot.log_odds for slot in slots])) if slots else math.nan,
    )


def written(source: str, run: int, examples: Examples) -> Written:
    return Written(
        source=source,
        run=run,
        persona=examples.persona,
        answers=len(examples.positives) + len(examples.negatives),
        positives=len(examples.positives),
        unfinished=sum(e.finish_reason == "length" for e in examples.negatives),
    )
