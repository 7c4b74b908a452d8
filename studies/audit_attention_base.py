"""Trained against base on the same ids: the published comparison of layers, and the paired test (9.7).

Rows of the two files are the same examples, so each example is its own control; questions are the units.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import complete_rows
from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.multiplicity import max_t, sign_balance
from studies.audit import Reading
from studies.audit_attention_controls import questions
from studies.audit_attention_gates import h1_window, mean_contrast
from studies.audit_attention_records import BASE, Records
from studies.gates_controls import base_rule_out
from studies.gates_replication import profile_moved, profile_shift

BEYOND = 0.005  # what the write-up counts as a difference of one layer
ERRORS = 2.0  # analytic standard errors


@dataclass(frozen=True, eq=False)
class Paired:
    """Example by example, trained minus base; `asked` is the question of each row, None where unknown."""

    differences: Float[np.ndarray, "example layer"]
    asked: list[str] | None

    @property
    def unit(self) -> str:
        return "example" if self.asked is None else "question"


def paired(records: Records, label: str) -> Paired | None:
    """The paired differences of a condition; None where a file is not there or rows do not match."""
    trained, base = records.deltas.get(label), records.deltas.get(BASE + label)
    if trained is None or base is None or trained.delta_c1.shape != base.delta_c1.shape:
        return None
    differences = trained.delta_c1 - base.delta_c1
    asked, kept = questions(records, label, len(differences)), complete_rows(differences)
    names = None if asked is None else [name for name, keep in zip(asked, kept, strict=True) if keep]
    return Paired(differences[kept], names)


def by_layer(records: Records, label: str) -> Reading | None:
    """Difference of the two mean contrasts, layer by layer."""
    means = mean_contrast(records, label), mean_contrast(records, BASE + label)
    if means[0] is None or means[1] is None:
        return None
    held = records.summary.trained_vs_base_diff_of_diffs if records.summary else None
    stored = held.diff_of_diffs.tolist() if held is not None and _is_of(records, label) else None
    return Reading((means[0] - means[1]).tolist(), stored)


def described(records: Records, label: str) -> Reading | None:
    """The published description: mean and extremes over layers, counts of layers, and their sign test."""
    reading = by_layer(records, label)
    if reading is None:
        return None
    values = np.array(reading.value)
    balance = sign_balance(values)
    return Reading(
        {
            "mean": float(values.mean()),
            "max": float(values.max()),
            "max layer": int(values.argmax()),
            "min": float(values.min()),
            "min layer": int(values.argmin()),
            "layers above zero": balance.positive,
            "base larger by 0.005": int((values < -BEYOND).sum()),
            "trained larger by 0.005": int((values > BEYOND).sum()),
            "sign test p": balance.p_if_layers_were_independent,
        },
        corrected="see the paired difference: examples are the same rows of both files",
        naive="'indistinguishable from zero' treats 28 layers of one model as 28 coin flips",
        note=balance.note,
    )


def paired_layers(records: Records, label: str) -> Reading | None:
    """Layers whose mean paired difference exceeds two analytic errors, and z at the extremes of the mean."""
    pair = paired(records, label)
    if pair is None:
        return None
    mean, z = pair.differences.mean(0), _z(pair.differences)
    low, high = int(mean.argmin()), int(mean.argmax())
    clustered = clustered_mean(pair.differences, pair.asked, unit=pair.unit)
    several = max_t(pair.differences, pair.asked, unit=pair.unit)
    excludes = (clustered.low > 0) | (clustered.high < 0)
    return Reading(
        {
            "beyond 2 SEM": int((np.abs(z) > ERRORS).sum()),
            "negative": np.flatnonzero(z < -ERRORS).tolist(),
            "positive": np.flatnonzero(z > ERRORS).tolist(),
            "z at the minimum": float(z[low]),
            "minimum layer": low,
            "z at the maximum": float(z[high]),
            "maximum layer": high,
        },
        corrected={
            f"95 % over {pair.unit}s excludes zero": int(excludes.sum()),
            "family-wise p < 0.05 (max-T)": int((several.p_max_t < 0.05).sum()),
            "t by layer": clustered.t.tolist(),
            "p max-T by layer": several.p_max_t.tolist(),
        },
        naive="unpaired, only the layer means are compared and their signs counted",
        note=f"{clustered.method}; {several.method}",
    )


def layer_mean(records: Records, label: str) -> Reading | None:
    """Each example's difference averaged over layers, and its t."""
    pair = paired(records, label)
    if pair is None:
        return None
    one = pair.differences.mean(1, keepdims=True)
    found = clustered_mean(one, pair.asked, unit=pair.unit)
    return Reading(
        {"mean": float(one.mean()), "t": float(_z(one)[0]), "n": len(one)},
        corrected={
            f"95 % over {found.n} {found.unit}s": [float(found.low[0]), float(found.high[0])],
            "t": float(found.t[0]),
            "p": float(found.p[0]),
            "degrees of freedom": found.degrees_of_freedom,
        },
        naive="a small mean over layers hides differences of both signs",
    )


def peaks(records: Records, label: str) -> Reading | None:
    """Where trained and base contrasts peak, and how much higher the base's peak is."""
    trained, base = mean_contrast(records, label), mean_contrast(records, BASE + label)
    if trained is None or base is None:
        return None
    value = {"trained layer": int(trained.argmax()), "base layer": int(base.argmax())}
    return Reading(
        value | {"base over trained": float(base.max() / trained.max() - 1)},
        note="the peak of a mean curve; its interval is under 'layer-profile shift'",
    )


def absolute_at_peak(records: Records, label: str) -> Reading | None:
    """Contrast and absolute share of both on system_B, in the layer where the base's contrast peaks."""
    trained, base = records.condition(label), records.condition(BASE + label)
    if trained is None or base is None:
        return None
    layer = int(base.gates.mean_per_layer.argmax())
    value: dict[str, Any] = {"layer": layer}
    for name, condition in (("trained", trained), ("base", base)):
        region = condition.region_means.get("system_B")
        if region is None:
            return None
        value |= {f"{name} contrast": float(region.delta_c1_mean[layer])}
        value |= {f"{name} absolute": float(region.marker_mean[layer])}
    return Reading(value, naive="the contrasts are quoted as the attention to the system prompt")


def gate_e(records: Records, label: str) -> Reading | None:
    """Gate E, named in the source and never run: trained above base in three layers of the H1 window."""
    trained, base = records.deltas.get(label), records.deltas.get(BASE + label)
    if trained is None or base is None or trained.delta_c1.shape != base.delta_c1.shape:
        return None
    asked = questions(records, label, len(trained.delta_c1))
    window = h1_window(records, label)
    gate = base_rule_out(trained.delta_c1, base.delta_c1, window, clusters=asked)
    value = {"verdict": gate.verdict, "layers": gate.layers}
    return Reading(value, naive="gates A to D alone are read as an effect of training", note=gate.reason)


def shift_of_profile(records: Records, label: str) -> Reading | None:
    """How far peak and centre of mass of the layers' profile moved from base to trained."""
    trained, base = records.deltas.get(label), records.deltas.get(BASE + label)
    if trained is None or base is None or trained.delta_c1.shape != base.delta_c1.shape:
        return None
    asked = questions(records, label, len(trained.delta_c1))
    found = profile_shift(trained.delta_c1, base.delta_c1, asked)
    moved = profile_moved(found)
    intervals = {"peak": found.peak_shift, "centre of mass": found.centre_shift}
    return Reading(
        {"peak moved": found.peak_shift.estimate, "centre moved": found.centre_shift.estimate},
        corrected={f"95 % of {name}": [each.low, each.high] for name, each in intervals.items()},
        naive="the argmax of a mean curve is compared without an interval",
        note=moved.reason,
    )


def _z(values: Float[np.ndarray, "example layer"]) -> Float[np.ndarray, "layer"]:
    """Mean over its analytic error (ddof 1), every example a unit."""
    return clustered_mean(values).t


def _is_of(records: Records, label: str) -> bool:
    """The summary holds one comparison and does not name it: it is of the persona whose means it has."""
    held = records.summary and records.summary.trained_vs_base_diff_of_diffs
    condition = records.condition(label)
    if held is None or condition is None:
        return False
    return np.array_equal(held.trained_delta_c1_mean, condition.gates.mean_per_layer)
