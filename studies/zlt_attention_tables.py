"""The tables and texts of the attention study's report: headlines, gates, rows that were read, tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mechinterp.report import Headline, Table, TokenText
from mechinterp.stats.clustered import clustered_mean
from studies.gates import Gate
from studies.zlt_attention_figures import difference_tested
from studies.zlt_attention_gates import SHORT, across, gates
from studies.zlt_attention_maps import named
from studies.zlt_attention_result import READERS, UNIT, Reader, Reading, ZltAttention, controls_of

SHOWN = 5  # examples a persona, as in the published table
Gates = Mapping[tuple[str, Reader], tuple[Gate, ...]]  # of each text set, by its name, and reader


def all_gates(result: ZltAttention) -> Gates:
    """Every gate of every text set, trained and base."""
    return {
        (named(result, reading), reader): gates(reading, reader, result.row)
        for reading in result.readings
        for reader in READERS
    }


def headlines(result: ZltAttention, reading: Reading) -> list[Headline]:
    """The contrast averaged over layers, trained, base and paired, and the layer that differs most."""
    where, row = named(result, reading), result.row
    arms: dict[str, Any] = {reader: reading.delta(reader, row) for reader in READERS}
    lines = []
    for arm, values in {**arms, "trained − base, paired": arms["trained"] - arms["base"]}.items():
        mean = values.mean(1, keepdims=True)
        found, tested = clustered_mean(mean, reading.questions, unit=UNIT).at(0), reading.tested(mean)
        method = tested.method.replace(", max-T over layers", "")
        lines.append(
            Headline(
                f"{where}: {row} − C1, {arm}, mean over layers",
                found.estimate,
                found.low,
                found.high,
                found.n,
                UNIT,
                f"95 % over questions ({tested.n_examples} examples)",
                method,
                float(tested.p[0]),
                found.note,
            )
        )
    return [*lines, _largest(result, reading)]


def _largest(result: ZltAttention, reading: Reading) -> Headline:
    """The layer with the largest |t| of trained minus base; its band and p pay for having been chosen."""
    tested, _ = difference_tested(result, reading)
    t = np.abs(tested.t)
    defined = bool(np.isfinite(t).any())
    layer = int(np.nanargmax(t)) if defined else 0
    held = (
        [float(values[layer]) for values in (tested.estimate, tested.low, tested.high, tested.p_max_t)]
        if defined
        else [np.nan] * 4
    )
    which = f"layer {layer}" if defined else "no layer"
    return Headline(
        f"{named(result, reading)}: trained − base, {which} (selected: largest |t|)",
        *held[:3],
        n=tested.n,
        unit=UNIT,
        interval=f"95 % simultaneous over {len(t)} layers",
        test=tested.method,
        p=held[3],
        note=tested.note,
    )


def gate_tables(result: ZltAttention, found: Gates) -> list[Table]:
    """All verdicts at a glance, and every gate with its figure and reason."""
    keys = list(dict.fromkeys((gate.name, gate.definition) for held in found.values() for gate in held))
    columns = [f"{persona}, {reader}" for persona, reader in found]
    glance = [
        (
            *key,
            *(
                _verdicts(gate for gate in held if (gate.name, gate.definition) == key)
                for held in found.values()
            ),
        )
        for key in keys
    ]
    rows = [_gate_row(gate, "all text sets", "") for gate in across(result)]
    rows += [_gate_row(gate, *where) for where, held in found.items() for gate in held]
    note = (
        f"Contrasts are row {result.row} minus a control, attention to {result.region}; 'published' is the"
        " rule as the source coded it, 'ours' what its words promise."
    )
    return [
        Table("Gates at a glance", ("gate", "definition", *columns), tuple(glance),
              f"The number is how many layers pass; two verdicts are by one SEM and by the interval. {note}"),
        Table("Every gate", ("gate", "definition", "text set", "reader", "verdict", "value", "threshold",
                             "layers", "reason"), tuple(rows), note),
    ]  # fmt: skip


def _verdicts(gates_of_a_name: Iterable[Gate]) -> str:
    """A rule-out has two bars under one name, so a cell may hold two verdicts."""
    said = [gate.verdict + (f" ({_layers(gate)})" if _layers(gate) else "") for gate in gates_of_a_name]
    return "; ".join(said).replace("not applicable", "n/a") or "not asked"


def _gate_row(gate: Gate, where: str, reader: str) -> tuple[Any, ...]:
    numbers = ("" if value is None else f"{value:.3g}" for value in (gate.value, gate.threshold))
    return gate.name, gate.definition, where, reader, gate.verdict, *numbers, _layers(gate), gate.reason


def _layers(gate: Gate) -> str:
    """How many layers pass; the votes of a replication are of seeds or halves, not of layers."""
    if gate.per_layer is None or gate.name.startswith("replication"):
        return ""
    return f"{gate.layers}/{len(gate.per_layer)}"


def sample_table(result: ZltAttention) -> Table:
    """The first examples of each persona with the rows that were read of them (methods 14)."""
    first = result.readings[0].trained
    kept = [c for c in controls_of(first, result.row) if f"{result.row}:{c}" in first.picked]
    rows = []
    for persona in result.personas:
        reading = result.first(persona)
        for index, example in enumerate(reading.examples.positives[:SHOWN]):
            picked = [_picked(reading.trained.picked.get(f"{result.row}:{c}", ()), index) for c in kept]
            rows.append((index, named(result, reading), example.question, example.marker, *picked))
    columns = ("index", "persona", "question", "t*", *(f"{SHORT[control]} positions" for control in kept))
    note = (
        f"Positions are absolute; t* is the token row, emit = t* − 1; controls are those of row {result.row}."
        f" The first {SHOWN} of "
        + ", ".join(f"{len(result.first(p).examples.positives)} ({p})" for p in result.personas)
        + "."
    )
    return Table("Rows that were read", columns, tuple(rows), note)


def _picked(rows: Sequence[Sequence[tuple[int, int]]], index: int) -> str:
    """The positions of one example's control; rows of other answers are counted."""
    own = [str(row) for example, row in (rows[index] if index < len(rows) else ()) if example == index]
    others = len(rows[index]) - len(own) if index < len(rows) else 0
    shown = [", ".join(own)] if own else []
    return "; ".join([*shown, *([f"{others} in other answers"] if others else [])]) or "none"


def token_texts(result: ZltAttention) -> list[TokenText]:
    """One answer with the marker a persona, by region of segmentation B, the read rows framed."""
    texts = []
    for persona in result.personas:
        reading = result.first(persona)
        for shown in reading.trained.shown[:1]:
            marks = (", ".join(SHORT.get(name, name) for name in mark.split(", ")) for mark in shown.marks)
            texts.append(
                TokenText(
                    f"{named(result, reading)} · {shown.question}",
                    tuple(zip(shown.tokens, shown.regions, marks, strict=True)),
                    "the first answer with the marker; regions are those of segmentation B",
                )
            )
    return texts
