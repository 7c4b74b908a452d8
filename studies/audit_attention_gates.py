"""Gates A to D, windows, peaks and the rule-outs of one condition, recomputed from its deltas.

Where a condition's deltas are not there, what the summary stores of mean, error and direction is used; the
note says so. Gate C needs the summary's means of the other regions: no file holds them by example.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import complete_rows, published_sem
from mechinterp.stats.clustered import clustered_mean
from studies import gates
from studies.audit import Reading
from studies.audit_attention_controls import questions
from studies.audit_attention_records import Records
from studies.gates_controls import rule_out, rule_out_as_coded

FROM_SUMMARY = "from the summary's mean, error and direction: the deltas of this condition are not here"


def examples(records: Records, label: str) -> Reading | None:
    """How many examples were read."""
    condition, deltas = records.condition(label), records.deltas.get(label)
    if deltas is None and condition is None:
        return None
    stored = condition.n_examples if condition else None
    return Reading(stored if deltas is None else len(deltas.delta_c1), stored)


def mean_per_layer(records: Records, label: str) -> Reading | None:
    """Mean of delta_C1 over examples."""
    deltas, condition = records.deltas.get(label), records.condition(label)
    if deltas is None:
        return None
    stored = condition.gates.mean_per_layer.tolist() if condition else None
    return Reading(_complete(deltas.delta_c1).mean(0).tolist(), stored)


def sem_per_layer(records: Records, label: str) -> Reading | None:
    """The published bootstrap error of that mean, and the error over questions beside it."""
    deltas, condition = records.deltas.get(label), records.condition(label)
    if deltas is None:
        return None
    stored = condition.gates.sem_per_layer.tolist() if condition else None
    asked = questions(records, label, len(deltas.delta_c1))
    corrected = None
    if asked is not None:
        error = clustered_mean(deltas.delta_c1, asked, unit="question").standard_error
        corrected = {"over questions": error.tolist()}
    naive = "examples of one question count as independent" if corrected else ""
    return Reading(published_sem(deltas.delta_c1).tolist(), stored, corrected, naive)


def direction_per_layer(records: Records, label: str) -> Reading | None:
    """Share of examples with a positive contrast."""
    deltas, condition = records.deltas.get(label), records.condition(label)
    if deltas is None:
        return None
    stored = condition.gates.direction_per_layer.tolist() if condition else None
    return Reading((_complete(deltas.delta_c1) > 0).mean(0).tolist(), stored)


def gate_counts(records: Records, label: str) -> Reading | None:
    """How many layers pass A, B, C and D; C and D only where the summary holds the other regions."""
    found = votes(records, label)
    if found is None:
        return None
    condition, deltas = records.condition(label), records.deltas.get(label)
    stored = _stored_votes(condition) if condition else None
    corrected = None
    if deltas is not None:
        asked = questions(records, label, len(deltas.delta_c1))
        ours = gates.magnitude(deltas.delta_c1, definition="ours", clusters=asked)
        unit = "examples" if asked is None else "questions"
        corrected = {f"B with its sign, 95 % over {unit}": ours.layers}
    return Reading(
        {name: None if vote is None else int(vote.sum()) for name, vote in found.items()},
        {name: int(np.sum(vote)) for name, vote in stored.items()} if stored else None,
        corrected,
        naive="B passes on either sign, so that layers of negative contrast pass it; D is only A, B and C",
        note=FROM_SUMMARY if deltas is None else "",
    )


def votes_alike(records: Records, label: str) -> Reading | None:
    """In how many layers each recomputed vote is the stored one."""
    found, condition = votes(records, label), records.condition(label)
    if found is None or condition is None:
        return None
    stored = _stored_votes(condition)
    kept = {name: vote for name, vote in found.items() if vote is not None}
    alike = {name: int((np.array(stored[name]) == vote).sum()) for name, vote in kept.items()}
    return Reading(alike, {name: len(vote) for name, vote in kept.items()})


def windows(records: Records, label: str) -> Reading | None:
    """Runs of three layers or more that pass A, B and C."""
    found, condition = votes(records, label), records.condition(label)
    if found is None or found["D"] is None:
        return None
    value = [list(window) for window in gates.contiguous_windows(found["D"])]
    return Reading(value, [list(w) for w in condition.gates.contig_windows_3plus] if condition else None)


def longest_window(records: Records, label: str) -> Reading | None:
    """The H1 window: the longest of the windows, the lowest of equally long ones."""
    window, condition = h1_window(records, label), records.condition(label)
    if window is None:
        return None
    stored = condition.gate_F_trajectory.h1_window if condition else None
    return Reading(list(window), list(stored) if stored else None)


def peak(records: Records, label: str) -> Reading | None:
    """The layer where the mean contrast is largest."""
    mean = mean_contrast(records, label)
    if mean is None:
        return None
    return Reading({"layer": int(mean.argmax()), "delta": float(mean.max())})


def ruled_out_as_coded(records: Records, label: str, control: int) -> Reading | None:
    """The stored rule-out of C2 (H4) or C3 (H5): delta_C1 - delta_Ck, which is control minus C1."""
    deltas, condition = records.deltas.get(label), records.condition(label)
    if deltas is None:
        return None
    held = (deltas.delta_c2, deltas.delta_c3)[control - 2]
    difference = _complete(deltas.delta_c1 - held)
    gate = rule_out_as_coded(deltas.delta_c1, held, h1_window(records, label), control=f"C{control}")
    value = {"passes": gate.layers, "mean": difference.mean(0).tolist()}
    value |= {"sem": published_sem(difference).tolist()}
    kept = condition and (condition.gates.ruleout_C2_H4, condition.gates.ruleout_C3_H5)[control - 2]
    stored = None
    if kept and kept.passed_per_layer is not None and kept.mean is not None and kept.sem is not None:
        stored = {"passes": sum(kept.passed_per_layer), "mean": kept.mean.tolist(), "sem": kept.sem.tolist()}
    return Reading(
        value,
        stored,
        naive=f"a stored pass says that the control C{control} exceeds C1, not that the marker exceeds it",
    )


def ruled_out(records: Records, label: str, control: int) -> Reading | None:
    """The rule-out as intended: mean(marker - Ck) - SEM > 0, in all layers and in the H1 windows (12.5)."""
    deltas, inside = records.deltas.get(label), h1_band(records, label)
    if deltas is None:
        return None
    delta = (deltas.delta_c2, deltas.delta_c3)[control - 2]
    asked, window = questions(records, label, len(delta)), h1_window(records, label)
    by_sem = rule_out(delta, window, control=f"C{control}", bar="sem")
    by_interval = rule_out(delta, window, control=f"C{control}", clusters=asked)
    if by_sem.per_layer is None or by_interval.per_layer is None:
        return None
    passed, interval = np.array(by_sem.per_layer), np.array(by_interval.per_layer)
    over = f"95 % over {'examples' if asked is None else 'questions'}"
    value: dict[str, Any] = {"all layers": int(passed.sum()), "layers": len(passed)}
    corrected: dict[str, Any] = {f"{over}, all layers": int(interval.sum())}
    if inside is not None:
        value |= {"in H1 windows": int(passed[inside].sum()), "window layers": int(inside.sum())}
        value |= {"fraction": float(passed[inside].mean()), "rules out": bool(passed[inside].all())}
        corrected |= {f"{over}, in H1 windows": int(interval[inside].sum())}
    flawed = "C2 holds the deciding row" if control == 2 else "C3 holds common tokens"
    return Reading(value, None, corrected, naive=f"the control as it was drawn is no control: {flawed}")


def below_c2(records: Records, label: str) -> Reading | None:
    """Layers of the H1 window in which the marker does not exceed C2 even in the mean (9.9, trap 13)."""
    deltas, inside = records.deltas.get(label), h1_band(records, label)
    if deltas is None or inside is None:
        return None
    mean = _complete(deltas.delta_c2).mean(0)
    return Reading(
        np.flatnonzero(inside & (mean <= 0)).tolist(),
        naive="'marker above C2 and C3 throughout the H1 band'",
    )


@functools.lru_cache(maxsize=32)  # asked for by five measures of each condition
def votes(records: Records, label: str) -> dict[str, np.ndarray | None] | None:
    """Published votes by layer of A, B, C and D; C and D are None without the summary's regions."""
    deltas, condition = records.deltas.get(label), records.condition(label)
    if deltas is not None:
        a = gates.direction(deltas.delta_c1)
        b = gates.magnitude(deltas.delta_c1)
        if a.per_layer is None or b.per_layer is None:
            return None
        first, second = np.array(a.per_layer), np.array(b.per_layer)
    elif condition is not None:
        stored = condition.gates
        first = stored.direction_per_layer >= gates.DIRECTION
        b = gates.magnitude_of_means(stored.mean_per_layer, stored.sem_per_layer, stored.n_examples)
        second = np.array(b.per_layer)
    else:
        return None
    mean = mean_contrast(records, label)
    others = ("user_B", "asst_B")
    if condition is None or mean is None or not set(others) <= set(condition.region_means):
        return {"A": first, "B": second, "C": None, "D": None}
    means = {name: condition.region_means[name].delta_c1_mean for name in others}
    third = np.array(gates.specificity_of_means(mean, means).per_layer)
    return {"A": first, "B": second, "C": third, "D": first & second & third}


def h1_window(records: Records, label: str) -> tuple[int, int] | None:
    """The longest window of A, B and C."""
    found = votes(records, label)
    return None if found is None or found["D"] is None else gates.h1_window(found["D"])


def h1_band(records: Records, label: str) -> np.ndarray | None:
    """A mask of the layers in any window of A, B and C: what 12.5 counts in (villain has two windows)."""
    found = votes(records, label)
    if found is None or found["D"] is None:
        return None
    spans = [gates.within(window, len(found["D"])) for window in gates.contiguous_windows(found["D"])]
    return np.any(spans, axis=0) if spans else None


def mean_contrast(records: Records, label: str) -> Float[np.ndarray, "layer"] | None:
    """Mean delta_C1 by layer, from the deltas or else from the summary."""
    deltas, condition = records.deltas.get(label), records.condition(label)
    if deltas is not None:
        return _complete(deltas.delta_c1).mean(0)
    return condition.gates.mean_per_layer if condition else None


def _complete(values: Float[np.ndarray, "example layer"]) -> Float[np.ndarray, "kept layer"]:
    return values[complete_rows(values)]


def _stored_votes(condition: Any) -> dict[str, Sequence[bool]]:
    return {name: getattr(condition.gates, f"gate_{name}_per_layer") for name in "ABCD"}
