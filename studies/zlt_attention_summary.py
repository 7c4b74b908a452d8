"""One condition of `attention_summary.json` from a reading: means, published gates, trajectory, heads."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mechinterp.stats.bootstrap import complete_rows, published_sem
from studies import attention_summary as published
from studies.gates import (
    DIRECTION,
    contiguous_windows,
    h1_window,
    sink_reframe,
    specificity_of_means,
    votes_of,
    within,
)
from studies.gates_heads import select_heads, split_halves
from studies.gates_trajectory import AT_MARKER, EARLIER, trajectory_difference, trajectory_from_the_end
from studies.zlt_attention_result import Query, Reader, Reading, controls_of

NAMES = {
    "system_A": "system A", "user_A": "user A", "asst_A": "answer A", "asst_header_A": "assistant_header A",
    "system_B": "system B", "user_B": "user B", "asst_B": "answer B", "specials": "specials B",
}  # fmt: skip
RULED = ("late_position", "rare_token", "end_of_answer")
LEAST = 6  # examples: fewer give no halves to select heads on
Kept = Bool[np.ndarray, "example"]


def condition(reading: Reading, reader: Reader, row: Query, kept: Kept, persona: str) -> published.Condition:
    """One model on one text set, by the published definitions; `kept` are the examples with C1 rows."""
    means = {name: _region(reading, reader, row, kept, region) for name, region in NAMES.items()}
    gates = _gates(reading, reader, row, kept, means)
    return published.Condition(
        persona=persona,
        n_examples=int(kept.sum()),
        region_means=means,
        gates=gates,
        gate_F_trajectory=_trajectory(reading, reader, kept, h1_window(gates.gate_D_per_layer)),
        segmentation_a_vs_b_comparison=_segmentations(reading, reader, row, kept),
        head_selection_split_sample=_heads(reading, reader, row, kept),
    )


def _segmentations(reading: Reading, reader: Reader, row: Query, kept: Kept) -> published.Segmentations:
    """Gate A with the specials inside the regions (A) and without (B)."""
    with_specials, content = (
        (_delta(reading, reader, row, kept, f"system {side}") > 0).mean(0) for side in ("A", "B")
    )
    a, b = with_specials >= DIRECTION, content >= DIRECTION
    return published.Segmentations(
        direction_seg_A_per_layer=with_specials,
        direction_seg_B_per_layer=content,
        pass_seg_A_per_layer=votes_of(a),
        pass_seg_B_per_layer=votes_of(b),
        sink_layers_A_only=tuple(np.flatnonzero(a & ~b).tolist()),
        sink_reframe_required=not sink_reframe(a.tolist(), b.tolist()).passed,
    )


def _delta(
    reading: Reading, reader: Reader, row: Query, kept: Kept, region: str, control: str = "random_earlier"
) -> Float[np.ndarray, "kept layer"]:
    return reading.delta(reader, row, control, region)[kept]


def _region(reading: Reading, reader: Reader, row: Query, kept: Kept, region: str) -> published.RegionMeans:
    read = reading.of(reader)
    marker, c1 = (
        read.of(stratum, region).double().numpy()[kept] for stratum in (row, f"{row}:random_earlier")
    )
    delta = _delta(reading, reader, row, kept, region)
    return published.RegionMeans(
        marker_mean=marker.mean(0),
        marker_sem=published_sem(marker),
        c1_mean=c1.mean(0),
        c1_sem=published_sem(c1),
        delta_c1_mean=delta.mean(0),
        delta_c1_sem=published_sem(delta),
    )


def _gates(
    reading: Reading, reader: Reader, row: Query, kept: Kept, means: dict[str, published.RegionMeans]
) -> published.StoredGates:
    delta, system = _delta(reading, reader, row, kept, "system B"), means["system_B"]
    a = (delta > 0).mean(0) >= DIRECTION
    b = np.abs(system.delta_c1_mean) > system.delta_c1_sem
    others = {name: means[name].delta_c1_mean for name in ("user_B", "asst_B")}
    c = np.array(specificity_of_means(system.delta_c1_mean, others).per_layer)
    c2, c3, c4 = (_rule_out(reading, reader, row, kept, control) for control in RULED)
    return published.StoredGates(
        n_examples=len(delta),
        gate_A_per_layer=votes_of(a),
        gate_B_per_layer=votes_of(b),
        gate_C_per_layer=votes_of(c),
        gate_D_per_layer=votes_of(a & b & c),
        direction_per_layer=(delta > 0).mean(0),
        mean_per_layer=system.delta_c1_mean,
        sem_per_layer=system.delta_c1_sem,
        contig_windows_3plus=contiguous_windows(a & b & c),
        ruleout_C2_H4=c2,
        ruleout_C3_H5=c3,
        ruleout_C4_eoa=c4,
    )


def _rule_out(reading: Reading, reader: Reader, row: Query, kept: Kept, control: str) -> published.RuleOut:
    """delta_C1 - delta_Ck, the published sign, which says whether the control exceeds C1."""
    if control not in controls_of(reading.of(reader), row):
        return published.RuleOut(applicable=False)
    both = (_delta(reading, reader, row, kept, "system B", name) for name in ("random_earlier", control))
    difference: Any = np.subtract(*both)
    difference = difference[complete_rows(difference)]
    if len(difference) < 2:
        return published.RuleOut(applicable=False)
    mean, sem = difference.mean(0), published_sem(difference)
    return published.RuleOut(True, mean, sem, tuple((mean - sem > 0).tolist()))


def _trajectory(
    reading: Reading, reader: Reader, kept: Kept, window: tuple[int, int] | None
) -> published.Trajectory:
    """Gate F on the last rows of the content; rows before the answer count as 0, as published."""
    read = reading.of(reader)
    if not len(read.negatives_end):
        return published.Trajectory(applicable=False, reason="no negatives to compare with")
    ours, theirs = (np.nan_to_num(side.double().numpy()) for side in (read.end[kept], read.negatives_end))
    difference = trajectory_difference(ours, theirs)
    gate = trajectory_from_the_end(difference, window)
    band = difference[:, within(window, difference.shape[1])].mean(1)
    last = len(band) - 1
    return published.Trajectory(
        applicable=True,
        h1_window=window,
        diff_per_layer_per_delta=difference,
        band_diff_per_delta=band,
        diff_at_marker=float(band[last + AT_MARKER]),
        diff_at_marker_minus5=float(band[last + AT_MARKER - EARLIER]),
        ratio_marker_minus5_over_marker=gate.value,
        reframe_required=gate.verdict == "fail",
        diff_at_eoa=float(band[last]),
        diff_at_eoa_minus5=float(band[last - EARLIER]),
        n_pos=len(ours),
        n_neg=len(theirs),
    )


def _heads(reading: Reading, reader: Reader, row: Query, kept: Kept) -> published.HeadSelection:
    """Heads chosen on one half of the examples, by example as published; none where these are too few."""
    contrast = reading.of(reader).head_delta(row, "random_earlier").double().numpy()[kept]
    if len(contrast) < LEAST:
        first, second = split_halves(len(contrast))
        chosen: list[list[int]] = [[] for _ in range(contrast.shape[1])]
        means = [np.empty(0) for _ in chosen]
    else:
        found = select_heads(contrast)
        first, second = list(found.chosen_on), list(found.reported_on)
        chosen, means = found.heads.tolist(), list(found.held_out_mean)
    selected = tuple(tuple(heads) for heads in chosen)
    held = tuple(published.HeldOutHeads(heads, mean) for heads, mean in zip(selected, means, strict=True))
    return published.HeadSelection(selected, held, len(first), len(second), tuple(second))
