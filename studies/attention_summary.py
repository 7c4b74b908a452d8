"""`attention_summary.json` (methods 13): every condition's means, gates, trajectory and heads, as published.

Field names are the keys of the file. A value that may be absent (a rule-out or a trajectory that does not
apply, the difference to the base) is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from mechinterp.json_io import write_json
from studies.attention_formats_codec import Layers, Table, encode_record, read_record

REGIONS = ("system_A", "user_A", "asst_A", "asst_header_A", "system_B", "user_B", "asst_B", "specials")


@dataclass(frozen=True, eq=False)
class RegionMeans:
    """One region: mean share over examples at the marker row and at C1, their difference, and each SEM."""

    marker_mean: Layers
    marker_sem: Layers
    c1_mean: Layers
    c1_sem: Layers
    delta_c1_mean: Layers
    delta_c1_sem: Layers
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RuleOut:
    """A control's stored rule-out: `mean` is delta_C1 - delta_Ck, the wrong sign as it was coded (9.6)."""

    applicable: bool
    mean: Layers | None = None
    sem: Layers | None = None
    passed_per_layer: tuple[bool, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredGates:
    """Gates A to D, the windows of three layers or more, and the rule-outs, as stored."""

    n_examples: int
    gate_A_per_layer: tuple[bool, ...]
    gate_B_per_layer: tuple[bool, ...]
    gate_C_per_layer: tuple[bool, ...]
    gate_D_per_layer: tuple[bool, ...]
    direction_per_layer: Layers
    mean_per_layer: Layers
    sem_per_layer: Layers
    contig_windows_3plus: tuple[tuple[int, int], ...]
    ruleout_C2_H4: RuleOut
    ruleout_C3_H5: RuleOut
    ruleout_C4_eoa: RuleOut
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Gate F: positives minus negatives on the last rows, earliest first (9.6)."""

    applicable: bool
    h1_window: tuple[int, int] | None = None
    diff_per_layer_per_delta: Table | None = None
    band_diff_per_delta: Layers | None = None
    diff_at_marker: float | None = None
    diff_at_marker_minus5: float | None = None
    ratio_marker_minus5_over_marker: float | None = None
    reframe_required: bool | None = None
    diff_at_eoa: float | None = None
    diff_at_eoa_minus5: float | None = None
    n_pos: int | None = None
    n_neg: int | None = None
    reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Segmentations:
    """Gate A with the specials inside the regions (A) and without them (B)."""

    direction_seg_A_per_layer: Layers
    direction_seg_B_per_layer: Layers
    pass_seg_A_per_layer: tuple[bool, ...]
    pass_seg_B_per_layer: tuple[bool, ...]
    sink_layers_A_only: tuple[int, ...]
    sink_reframe_required: bool
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class HeldOutHeads:
    """The heads chosen for one layer on half A, and their mean on half B."""

    selected: tuple[int, ...]
    split_b_mean_at_selected: Layers
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class HeadSelection:
    """Heads chosen on one half of the examples and read on the other."""

    selected_heads_per_layer: tuple[tuple[int, ...], ...]
    split_b_eval: tuple[HeldOutHeads, ...]
    split_a_size: int
    split_b_size: int
    split_b_indices: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Condition:
    """One model on one persona's text."""

    persona: str
    n_examples: int
    region_means: Mapping[str, RegionMeans]
    gates: StoredGates
    gate_F_trajectory: Trajectory
    segmentation_a_vs_b_comparison: Segmentations
    head_selection_split_sample: HeadSelection
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError where a value per layer has another number of layers than the gates' mean."""
        n = len(self.gates.mean_per_layer)
        tables = {"gates": self.gates, "segmentation_a_vs_b_comparison": self.segmentation_a_vs_b_comparison}
        tables |= {f"region_means.{name}": region for name, region in self.region_means.items()}
        for where, table in tables.items():
            for name in (each.name for each in fields(table)):
                held = getattr(table, name)
                if (name.endswith("_per_layer") or isinstance(held, np.ndarray)) and len(held) != n:
                    raise ValueError(
                        f"{self.persona}: {where}.{name} has {len(held)} layers where mean_per_layer has {n}"
                    )


@dataclass(frozen=True, eq=False)
class DiffOfDiffs:
    """Mean contrast of the trained model minus that of the base on the same ids, per layer (9.7)."""

    trained_delta_c1_mean: Layers
    base_delta_c1_mean: Layers
    diff_of_diffs: Layers
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class AttentionSummary:
    """The whole file: conditions by label, the difference to the base where it was made, the metadata."""

    per_persona: Mapping[str, Condition]
    trained_vs_base_diff_of_diffs: DiffOfDiffs | None = None
    metadata: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_attention_summary(path: Path | str) -> AttentionSummary:
    """`attention_summary.json`; a ValueError names the file and the field."""
    return read_record(AttentionSummary, path)


def write_attention_summary(path: Path | str, summary: AttentionSummary) -> None:
    """One JSON file under the published keys; NaN becomes null."""
    write_json(Path(path), encode_record(summary))
