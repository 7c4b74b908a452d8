"""What the summary says of a condition beyond gates A to D: specials, trajectory, segmentations, heads.

These come from means by region and layer; no public file holds them by example, so no error goes with them.
"""

from typing import Any

import numpy as np

from studies import gates
from studies.audit import Reading
from studies.audit_attention_controls import questions
from studies.audit_attention_gates import h1_window
from studies.audit_attention_records import BASE, Records
from studies.gates_controls import safety_rail as rail
from studies.gates_controls import signal_to_noise
from studies.gates_heads import split_halves
from studies.gates_replication import replicates_in
from studies.gates_trajectory import trajectory_from_the_end

PREFLIGHT_N = 200  # completions under each implementation; the file does not hold it
# rows of a trajectory whose last is the last content token, "]" (9.6): t*, t* - 1, t* - 5
AT_MARKER, AT_EMIT, FIVE_BEFORE = -3, -4, -8


def specials(records: Records, label: str) -> Reading | None:
    """What the specials take: the gap between the segmentations and the contrast and share of specials."""
    means = _means(records, label)
    if means is None:
        return None
    gap = means["system_A"].delta_c1_mean - means["system_B"].delta_c1_mean
    taken = means["specials"].delta_c1_mean
    return Reading(
        {
            "gap max": float(gap.max()),
            "gap max layer": int(gap.argmax()),
            "gap mean": float(gap.mean()),
            "contrast mean": float(taken.mean()),
            "contrast max": float(taken.max()),
            "absolute": float(means["specials"].marker_mean.mean()),
            "system_A absolute": float(means["system_A"].marker_mean.mean()),
        },
        note="means over layers, each a mean over examples",
    )


def inflation(records: Records, label: str) -> Reading | None:
    """The peak with the specials in the region over the peak without them (9.8)."""
    means = _means(records, label)
    if means is None:
        return None
    a, b = means["system_A"].delta_c1_mean, means["system_B"].delta_c1_mean
    return Reading(
        float(a.max() / b.max()),
        corrected={"at the content peak": float(a[b.argmax()] / b.max()), "layer": int(b.argmax())},
        naive="the two peaks lie in different layers; the ratio is of their heights",
        note=f"peaks in layers {int(a.argmax())} (with specials) and {int(b.argmax())} (content only)",
    )


def ranges(records: Records, _: str) -> Reading | None:
    """Smallest and largest of each condition's specials, over all conditions that are here."""
    found = [specials(records, label) for label in records.labels]
    values = [reading.value for reading in found if reading is not None]
    if not values:
        return None
    spans = {k: [min(v[k] for v in values), max(v[k] for v in values)] for k in values[0]}
    ratios = [inflation(records, label) for label in records.labels]
    spread = [reading.value for reading in ratios if reading is not None]
    spans["inflation"] = [min(spread), max(spread)]
    return Reading(spans, note=f"over {', '.join(records.labels)}")


def trajectory(records: Records, label: str) -> Reading | None:
    """Gate F from the stored differences by row and layer, over the H1 window recomputed here (9.6)."""
    condition = records.condition(label)
    if condition is None:
        return None
    held = condition.gate_F_trajectory
    diff, window = held.diff_per_layer_per_delta, h1_window(records, label)
    gate = trajectory_from_the_end(diff if held.applicable else None, window)
    if diff is None or gate.verdict == "not applicable":
        said = {"applicable": gate.verdict != "not applicable"}
        return Reading(said, {"applicable": held.applicable}, note=held.reason or gate.reason)
    band = diff[:, gates.within(window, diff.shape[1])].mean(1)
    stored = {"ratio": held.ratio_marker_minus5_over_marker, "reframe required": held.reframe_required}
    kept = None if held.band_diff_per_delta is None else held.band_diff_per_delta.tolist()
    return Reading(
        {
            "ratio": gate.value,
            "reframe required": gate.verdict == "fail",
            "at the deciding row": float(band[AT_EMIT] / band[AT_MARKER]),
            "band": band.tolist(),
        },
        stored | {"band": kept},
        corrected="align on t* itself, take finished negatives only, and run the base on them too",
        naive="rows are aligned on the last content token, and the negatives on where they were cut",
        note=f"{held.n_pos} positives, {held.n_neg} negatives",
    )


def reframe(records: Records, label: str) -> Reading | None:
    """Whether gate A needs the specials anywhere."""
    condition = records.condition(label)
    if condition is None:
        return None
    held = condition.segmentation_a_vs_b_comparison
    sides = {"A": held.direction_seg_A_per_layer, "B": held.direction_seg_B_per_layer}
    passed = {name: direction >= gates.DIRECTION for name, direction in sides.items()}
    gate = gates.sink_reframe(passed["A"].tolist(), passed["B"].tolist())
    value = {"passes with specials": int(passed["A"].sum()), "passes without": int(passed["B"].sum())}
    stored = {
        "passes with specials": sum(held.pass_seg_A_per_layer),
        "passes without": sum(held.pass_seg_B_per_layer),
        "reframe required": held.sink_reframe_required,
    }
    return Reading(value | {"reframe required": not gate.passed}, stored, note=gate.reason)


def head_selection(records: Records, label: str) -> Reading | None:
    """Whether the held-out half is the one that the seed gives, and how its heads came out (9.6)."""
    condition = records.condition(label)
    if condition is None:
        return None
    held = condition.head_selection_split_sample
    first, second = split_halves(condition.n_examples)
    means = np.concatenate([each.split_b_mean_at_selected for each in held.split_b_eval])
    stored = {"half A": held.split_a_size, "half B": held.split_b_size}
    return Reading(
        {"half A": len(first), "half B": len(second), "indices of half B": second},
        stored | {"indices of half B": list(held.split_b_indices)},
        corrected="error of the held-out mean and sign agreement between halves need records by head",
        note=f"{int((means > 0).sum())} of {len(means)} selected heads are positive in half B",
    )


def safety_rail(records: Records, persona: str) -> Reading | None:
    """The mid-run gate on the first examples: |mean| over its analytic error, either sign (9.6)."""
    held, deltas = records.midrun.get(persona), records.deltas.get(persona)
    if held is None:
        return None
    stored: dict[str, Any] = {"passed": held.passed, "signal to noise": held.info.snr_per_layer.tolist()}
    if deltas is None:
        return Reading(stored, None, note="stored values only: the deltas are not here")
    first = deltas.delta_c1[: held.info.n_examples]
    coded, ours = rail(first), rail(first, definition="ours")
    return Reading(
        {"passed": coded.passed, "signal to noise": np.abs(signal_to_noise(first)).tolist()},
        stored,
        corrected={"passed by a rise": ours.passed, "layers that rise": ours.layers},
        naive="two-sided: layers with a negative contrast pass it too",
        note=coded.reason,
    )


def replication(records: Records, persona: str) -> Reading | None:
    """The persona named beforehand beside the others, over its own H1 window."""
    trained = {k: d.delta_c1 for k, d in records.deltas.items() if not k.startswith(BASE)}
    if persona not in trained or len(trained) < 2:
        return None
    asked = {name: questions(records, name, len(delta)) for name, delta in trained.items()}
    known = {name: labels for name, labels in asked.items() if labels is not None}
    gate = replicates_in(persona, trained, h1_window(records, persona), clusters=known)
    return Reading({"verdict": gate.verdict, "mean over the window": gate.value}, note=gate.reason)


def fourth_control(records: Records, label: str) -> Reading | None:
    """Whether C4 is in the per-example file, as the write-up says, and was used (9.5)."""
    deltas, condition = records.deltas.get(label), records.condition(label)
    if deltas is None:
        return None
    used = condition.gates.ruleout_C4_eoa.applicable if condition else None
    return Reading(
        "delta_c4" in deltas.extra,
        corrected="C4 from finished negatives, matched by question",
        naive="C4 is listed among the four controls",
        note="" if used is None else f"the summary's C4 rule-out {'applies' if used else 'does not apply'}",
    )


def reframes(records: Records, _: str) -> Reading | None:
    """Over all conditions: layers that pass gate A with and without the specials, and needed reframes."""
    found = [reading.value for label in records.labels if (reading := reframe(records, label)) is not None]
    if not found:
        return None
    spans = {k: [min(v[k] for v in found), max(v[k] for v in found)] for k in found[0] if k[:4] == "pass"}
    return Reading(
        spans | {"reframes": sum(v["reframe required"] for v in found)},
        note=f"over {', '.join(records.labels)}",
    )


def preflight(records: Records, _: str) -> Reading | None:
    """Marker rates under both attention implementations, and the standard error left out (9.2)."""
    held = records.preflight
    if held is None:
        return None
    rates = dict(held.rates)
    value: dict[str, Any] = rates | {"difference": max(rates.values()) - min(rates.values())}
    if records.published:
        value["standard error"] = sum(p * (1 - p) / PREFLIGHT_N for p in rates.values()) ** 0.5
    value["passed"] = bool(value["difference"] <= held.tolerance_pp)
    return Reading(
        value,
        {"difference": held.delta, "passed": held.passed},
        corrected="compare logits and rows on fixed ids, and give the error of the difference",
        naive="the tolerance is hardly more than one standard error of the difference",
        note=f"{PREFLIGHT_N} completions under each, as the write-up says" if records.published else "",
    )


def _means(records: Records, label: str) -> Any:
    condition = records.condition(label)
    wanted = {"system_A", "system_B", "specials"}
    if condition is None or not wanted <= set(condition.region_means):
        return None
    return condition.region_means
