"""What each study says of one persona: its columns, and why one of them has no value.

A persona stands for its first training run and, in the attention study, its first generation seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.intervals import Interval
from studies.leakage_result import Leakage
from studies.output_divergence_result import OutputStudy
from studies.prefix_completion_result import Arm, Measure, PrefixCompletion, named
from studies.prefix_completion_rows import CONDITIONS
from studies.zlt_attention_gates import gates, marker_window
from studies.zlt_attention_result import UNIT, Reading, ZltAttention

PREFIX, ATTENTION, LEAKAGE, DIVERGENCE = "prefix_completion", "zlt_attention", "leakage", "output_divergence"
PROMPT, CONTENT, WINDOW = "prompt effect", "content effect", "window attention, trained − base"
EVERY = "attention, all layers, trained − base"
NOT_HELD = "the run does not hold this persona"


@dataclass(frozen=True)
class Entry:
    """One study's figure of one persona; NaN where there is none, and then `note` says why.

    `main` columns are those that are correlated over personas.
    """

    study: str
    column: str
    persona: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    unit: str = ""
    note: str = ""
    main: bool = False


def of_prefix(result: PrefixCompletion, persona: str) -> list[Entry]:
    """Rates of the four conditions, then prompt and content effect in rates and in log-odds (methods 8)."""
    model = named(persona, 0)
    why = NOT_HELD if model not in result.models else "" if model in result.applicable else "no set of four"
    found = []
    for condition in CONDITIONS:
        value = math.nan if why else result.mean(condition, model=model)
        found.append(Entry(PREFIX, f"rate of condition {condition}", persona, value, note=why))
    arms: list[tuple[Measure, Arm, str]] = [("rate", "trained", ""), ("log_odds", "trained", ", log-odds")]
    if "base" in result.readers:
        arms.append(("log_odds", "trained - base", ", log-odds, trained − base"))
    for measure, arm, said in arms:
        effects = {} if why else {e.name: e.interval for e in result.effects(measure, arm, model)}
        for name, column in (("prompt", PROMPT), ("content", CONTENT)):
            held = effects.get(name)
            main = measure == "rate"
            found.append(_entry(PREFIX, f"{column}{said}", persona, held, why, main=main))
    return found


def of_attention(result: ZltAttention, persona: str) -> list[Entry]:
    """Row minus C1 on the region, in the window of the trained model's own gates and over all layers."""
    columns = (WINDOW, "window attention, trained", EVERY)
    if persona not in result.personas:
        gates_of = [f"gates passed, {which}" for which in ("published", "ours")]
        return [_entry(ATTENTION, c, persona, None, NOT_HELD, main="base" in c) for c in columns] + [
            _entry(ATTENTION, c, persona, None, NOT_HELD) for c in gates_of
        ]
    reading, row = result.first(persona), result.row
    window = marker_window(reading, row)
    difference, trained = reading.difference(row), reading.delta("trained", row)
    layers = slice(0, 0) if window is None else slice(window[0], window[1] + 1)
    why = "" if window else "no three layers in a row pass gates A to C as published"
    said = "" if window is None else f"layers {window[0]} to {window[1]}"
    values = (difference[:, layers], trained[:, layers], difference)
    found = []
    for column, chosen in zip(columns, values, strict=True):
        held = _over(chosen, reading) if chosen.shape[1] else None
        note = why if held is None else said if column != EVERY else ""
        found.append(_entry(ATTENTION, column, persona, held, note, main="base" in column))
    return found + _gates(reading, result, persona)


def _over(values: Float[np.ndarray, "example layer"], reading: Reading) -> Interval | None:
    """The mean over layers, clustered by question; None where no example is complete."""
    found = clustered_mean(values.mean(1, keepdims=True), reading.questions, unit=UNIT)
    return found.at(0) if found.n else None


def _gates(reading: Reading, result: ZltAttention, persona: str) -> list[Entry]:
    """The share of the trained reading's gates that pass, of those that apply."""
    asked, found = gates(reading, "trained", result.row), []
    for which in ("published", "ours"):
        held = [gate for gate in asked if gate.definition == which and gate.verdict != "not applicable"]
        passed = sum(gate.passed for gate in held)
        value = passed / len(held) if held else math.nan
        note = f"{passed} of {len(held)}" if held else "no gate applies"
        column = f"gates passed, {which}"
        found.append(Entry(ATTENTION, column, persona, value, n=len(held), unit="gate", note=note))
    return found


def of_leakage(result: Leakage, persona: str) -> list[Entry]:
    """The source's own rate, and everyone else's (methods 3)."""
    columns = ("source rate", "rate under the assistant", "breadth", "highest bystander", "specificity")
    why = "" if persona in result.sources else NOT_HELD
    if why:
        return [_entry(LEAKAGE, c, persona, None, why, main=c in MAIN_RATES) for c in columns]
    first = replace(result, records=tuple(r for r in result.records if r.source != persona or r.run == 0))
    one = first.standing(persona)
    itself = "it is the assistant itself"
    return [
        _entry(LEAKAGE, columns[0], persona, one.source_rate, main=True),
        _entry(
            LEAKAGE, columns[1], persona, one.assistant_rate, itself if one.assistant_rate is None else ""
        ),
        Entry(LEAKAGE, columns[2], persona, one.breadth, note=one.label, main=True),
        Entry(LEAKAGE, columns[3], persona, one.max_bystander, note=one.max_bystander_name, main=True),
        Entry(LEAKAGE, columns[4], persona, one.specificity),
    ]


MAIN_RATES = ("source rate", "breadth", "highest bystander")


def of_divergence(result: OutputStudy, persona: str) -> list[Entry]:
    """How far the base model's outputs and states of a persona lie from the others' and the assistant's."""
    names = list(result.divergence.personas)
    assistant = result.leakage.assistant
    matrices = {"JS": result.divergence.matrix().numpy()}
    for centring, by_layer in result.cosines.items():
        matrices[f"cosine ({centring})"] = by_layer[result.layers.index(result.layer)]
    found = []
    for label, matrix in matrices.items():
        mean = toward = math.nan
        why = "" if persona in names else NOT_HELD
        told = f"layer {result.layer}, by the mean of {label[7:].strip('()')}" if label != "JS" else "nats"
        if not why:
            place = names.index(persona)
            mean = float(np.delete(matrix[place], place).mean())
            toward = math.nan if persona == assistant else float(matrix[place, names.index(assistant)])
        whole = Entry(DIVERGENCE, f"{label}: mean to others", persona, mean, note=why or told)
        found.append(replace(whole, main=label == "JS"))
        itself = why or ("it is the assistant itself" if persona == assistant else told)
        found.append(Entry(DIVERGENCE, f"{label}: assistant", persona, toward, note=itself, main=True))
    return found


def _entry(
    study: str, column: str, persona: str, held: Interval | None, note: str = "", *, main: bool = False
) -> Entry:
    if held is None:
        return Entry(study, column, persona, math.nan, note=note, main=main)
    told = note or held.note
    return Entry(study, column, persona, held.estimate, held.low, held.high, held.n, held.unit, told, main)


OF: dict[str, Callable[..., list[Entry]]] = {
    PREFIX: of_prefix,
    ATTENTION: of_attention,
    LEAKAGE: of_leakage,
    DIVERGENCE: of_divergence,
}


def sources_of(study: str, result: object) -> Sequence[str]:
    """The personas that a study trained."""
    if isinstance(result, PrefixCompletion):
        return tuple(dict.fromkeys(count.source for count in result.counts))
    if isinstance(result, ZltAttention):
        return result.personas
    if isinstance(result, Leakage):
        return result.sources
    if isinstance(result, OutputStudy):
        return result.leakage.sources
    raise TypeError(f"{study} has no personas that were trained")
