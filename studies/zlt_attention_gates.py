"""The gates of the attention study on its own readings: published definitions beside ours, with reasons."""

from dataclasses import replace

import numpy as np

from mechinterp.stats.bootstrap import complete_rows
from studies.attention_readout import Readout
from studies.gates import (
    Gate,
    contiguous_windows,
    direction,
    h1_window,
    magnitude,
    not_applicable,
    sink_reframe,
    sink_robust,
    specificity,
)
from studies.gates_controls import base_rule_out, rule_out, rule_out_as_coded, safety_rail
from studies.gates_heads import heads_hold, select_heads
from studies.gates_replication import profile_moved, profile_shift, replicated_over, replicates_in
from studies.gates_trajectory import trajectory_at_marker, trajectory_difference, trajectory_from_the_end
from studies.zlt_attention_result import Query, Reader, Reading, ZltAttention, controls_of

SHORT = {
    "random_earlier": "C1",
    "late_position": "C2",
    "rare_token": "C3",
    "end_of_answer": "C4",
    "sentence_end": "C5",
}
RAIL = 50  # examples after which the published run asked whether to go on


def gates(reading: Reading, reader: Reader, row: Query) -> tuple[Gate, ...]:
    """Every gate of one condition. Windows are the published ones: three layers in a row pass A, B and C."""
    read, questions = reading.of(reader), reading.questions
    delta = reading.delta(reader, row)
    found = list(_four(reading, reader, row))
    window = h1_of(found)
    found.append(_windows(found))
    found.append(_sink(reading, reader, row))
    other = reading.delta("base", row) if reader == "trained" else None
    if reader == "trained":
        found.append(base_rule_out(delta, other, window, clusters=questions))
    found += _trajectory(read, row, window, questions)
    for control in controls_of(read, row):
        found += _ruled_out(reading, reader, row, control, window)
    found += [safety_rail(delta[:RAIL], definition=which) for which in ("published", "ours")]
    found += _heads(read, row, questions)
    if reader == "trained" and np.isfinite(reading.difference(row)).all(1).any():
        found.append(profile_moved(profile_shift(delta, reading.delta("base", row), questions)))
    return tuple(found)


def h1_of(found: list[Gate] | tuple[Gate, ...]) -> tuple[int, int] | None:
    """The H1 window of the published gates among these."""
    d = next(gate for gate in found if gate.name == "D sink-robust" and gate.definition == "published")
    return None if d.per_layer is None else h1_window(d.per_layer)


def marker_window(reading: Reading, row: Query) -> tuple[int, int] | None:
    """The H1 window of the trained model on its own text, by the published gates."""
    return h1_of(_four(reading, "trained", row))


def across(result: ZltAttention) -> tuple[Gate, ...]:
    """What only several text sets can answer: the low-rate persona, and each persona over its seeds."""
    row, found = result.row, []
    firsts = {persona: result.first(persona) for persona in result.personas}
    named = result.replication
    if named in firsts and len(firsts) > 1:
        windows = [h1_of(_four(reading, "trained", row)) for p, reading in firsts.items() if p != named]
        found.append(
            replicates_in(
                named,
                {persona: reading.delta("trained", row) for persona, reading in firsts.items()},
                next((window for window in windows if window is not None), None),
                clusters={persona: reading.questions for persona, reading in firsts.items()},
            )
        )
    for persona in firsts:
        readings = [reading for reading in result.readings if reading.persona == persona]
        for axis, label in (("run", "training seed"), ("seed", "generation seed")):
            estimates = {}
            for reading in readings:
                estimates.setdefault(getattr(reading, axis), []).append(_mean_difference(reading, row))
            if len(estimates) > 1:
                means = {key: float(np.mean(values)) for key, values in estimates.items()}
                found.append(_named(replicated_over(means, axis=label), persona))
        if len(readings) == 1:
            found.append(_named(_halves(readings[0], row), persona))
    return tuple(found)


def _halves(reading: Reading, row: Query) -> Gate:
    """Questions in two halves, where nothing was run twice: no replication, and called what it is."""
    difference = reading.difference(row)
    questions = list(dict.fromkeys(reading.questions))
    first = np.array([questions.index(q) < len(questions) / 2 for q in reading.questions])
    estimates = {
        name: float(np.nanmean(difference[chosen])) if chosen.any() else float("nan")
        for name, chosen in (("first half of the questions", first), ("second half", ~first))
    }
    return replicated_over(estimates, axis="split half")


def _mean_difference(reading: Reading, row: Query) -> float:
    return float(np.nanmean(reading.difference(row)))


def _named(gate: Gate, persona: str) -> Gate:
    return replace(gate, name=f"{gate.name}: {persona}")


def _four(reading: Reading, reader: Reader, row: Query) -> list[Gate]:
    """A, B, C and D by both definitions."""
    delta = reading.delta(reader, row)
    others = {name: reading.delta(reader, row, region=name) for name in ("user B", "answer B")}
    found = []
    for which in ("published", "ours"):
        a = direction(delta, definition=which)
        b = magnitude(delta, definition=which, clusters=reading.questions)
        c = specificity(delta, others, definition=which, clusters=reading.questions)
        found += [a, b, c, sink_robust(a, b, c)]
    return found


def _windows(found: list[Gate]) -> Gate:
    d = next(gate for gate in found if gate.name == "D sink-robust" and gate.definition == "published")
    if d.per_layer is None:
        return not_applicable("contiguous windows", "published", d.reason)
    spans = contiguous_windows(d.per_layer)
    shown = ", ".join(f"[{low}, {high}]" for low, high in spans) or "none"
    reason = f"windows of three layers or more that pass A, B and C: {shown}"
    return Gate(
        "contiguous windows",
        "published",
        "pass" if spans else "fail",
        reason,
        float(len(spans)),
        1.0,
        d.per_layer,
    )


def _sink(reading: Reading, reader: Reader, row: Query) -> Gate:
    read = reading.of(reader)
    votes = [
        direction(reading.delta(reader, row, region=f"{read.region} {side}")).per_layer for side in ("A", "B")
    ]
    if votes[0] is None or votes[1] is None:
        return not_applicable("sink reframe", "published", "no complete example")
    return sink_reframe(votes[0], votes[1])


def _trajectory(
    read: Readout, row: Query, window: tuple[int, int] | None, questions: tuple[str, ...]
) -> list[Gate]:
    end, theirs = read.end.double().numpy(), read.negatives_end.double().numpy()
    published = trajectory_difference(np.nan_to_num(end), np.nan_to_num(theirs)) if len(theirs) else None
    finished = np.array(read.negatives_finished, dtype=bool)
    labels = [q for q, done in zip(read.negative_questions, finished, strict=True) if done]
    negatives = read.negatives_around.double().numpy()[finished] if finished.any() else None
    ours = trajectory_at_marker(
        read.around.double().numpy(), negatives, read.steps, window, row=row, clusters=(questions, labels)
    )
    return [trajectory_from_the_end(published, window), ours]


def _ruled_out(
    reading: Reading, reader: Reader, row: Query, control: str, window: tuple[int, int] | None
) -> list[Gate]:
    """A control by its published flag (of C1 against it) and by ours: one SEM, and the interval."""
    if control == "random_earlier":
        return []
    name, values = SHORT[control], reading.delta(reader, row, control)
    found = [
        rule_out(values, window, control=name, bar="sem"),
        rule_out(values, window, control=name, clusters=reading.questions),
    ]
    if control in ("late_position", "rare_token"):
        found.insert(0, rule_out_as_coded(reading.delta(reader, row), values, window, control=name))
    return found


def _heads(read: Readout, row: Query, questions: tuple[str, ...]) -> list[Gate]:
    contrast = read.head_delta(row, "random_earlier").double().numpy()
    whole = complete_rows(contrast)
    labels = [q for q, keep in zip(questions, whole, strict=True) if keep]
    if whole.sum() < 6 or len(set(labels)) < 2:
        return [
            not_applicable("head selection", "ours", f"{int(whole.sum())} complete examples; six are needed")
        ]
    return [heads_hold(select_heads(contrast[whole], labels))]
