"""A run of ours as the published files: what they hold is what was read, and the audit agrees with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mechinterp.json_io import read_json
from studies.attention_formats import (
    read_deltas,
    read_midrun_gate,
    read_preflight,
    read_run_metadata,
    read_sample_table,
)
from studies.attention_records import read_positives
from studies.attention_summary import read_attention_summary
from studies.audit import audit
from studies.audit_attention_controls import redrawn
from studies.audit_attention_records import read_records
from studies.gates import contiguous_windows
from studies.gates_controls import safety_rail
from studies.zlt_attention_export import export
from tests.planted_attention import MARKER, QUESTIONS, STRATA, planted


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A result whose first example had too few rows for C1 in one persona, and its files."""
    result = planted(("villain",))
    read = result.readings[0]
    values = {name: read.of(name).values.clone() for name in ("trained", "base")}
    for each in values.values():
        each[0, STRATA.index("emit:random_earlier")] = torch.nan
    sides = {name: replace(read.of(name), values=values[name]) for name in values}
    result = replace(result, readings=(replace(read, **sides),))
    return result, export(result, tmp_path_factory.mktemp("published"))


def test_contrasts_come_back_without_the_examples_that_c1_left_out(written):
    result, folder = written
    for reading in result.readings:
        for reader, name in (("trained", reading.persona), ("base", f"base_{reading.persona}")):
            found = read_deltas(folder / f"per_example_deltas_{name}.json")
            own = reading.delta(reader, "emit")
            kept = np.isfinite(own).all(1)
            np.testing.assert_array_equal(found.delta_c1, own[kept])
            np.testing.assert_array_equal(
                found.delta_c2, reading.delta(reader, "emit", "late_position")[kept]
            )
            np.testing.assert_array_equal(found.delta_c3, reading.delta(reader, "emit", "rare_token")[kept])
            assert found.metadata is not None
            assert found.metadata["row"] == "emit"
    assert len(read_deltas(folder / "per_example_deltas_villain.json").delta_c1) == 23


def test_texts_samples_and_preflight_come_back(written):
    result, folder = written
    ours = result.readings[0].examples
    theirs = read_positives(folder / "positives_villain.json")
    assert [e.ids for e in theirs.positives] == [e.ids for e in ours.positives]
    table = read_sample_table(folder / "sample_table.md")
    assert table.persona == "villain"
    assert (table.rows[0].index, table.rows[0].token, table.rows[0].c1) == (1, MARKER, (37, 36, 35))
    found = read_preflight(folder / "preflight.json")
    assert (found.delta, found.passed) == (result.preflight.delta, result.preflight.passed)


def test_the_rail_and_the_run_come_back(written):
    result, folder = written
    rail, found = read_midrun_gate(folder / "midrun_gate_villain.json"), written_deltas(folder)
    first = found[:50]
    assert rail.n_examples == rail.info.n_examples == len(first)
    ours = safety_rail(first)
    assert rail.passed == ours.passed and (rail.info.snr_per_layer >= 0).all()
    assert ours.value == pytest.approx(max(least for _, least in rail.info.passing_windows))
    about = read_run_metadata(folder / "run_metadata.json").values
    assert about["base_model_id"] == result.model and about["libraries"]["torch"]


def test_an_audit_does_not_redraw_what_our_run_drew_itself(written):
    _, folder = written
    records = read_records(folder)
    assert records.own_draws and redrawn(records, "villain") is None


def written_deltas(folder):
    return read_deltas(folder / "per_example_deltas_villain.json").delta_c1


def test_the_summary_is_of_the_run_and_consistent(written):
    result, folder = written
    summary = read_attention_summary(folder / "attention_summary.json")
    assert set(summary.per_persona) == {f"{b}{p}" for p in result.personas for b in ("", "base_")}
    held = summary.per_persona["villain"]
    assert held.gates.contig_windows_3plus == contiguous_windows(held.gates.gate_D_per_layer)
    for side in ("A", "B"):
        names = [f"{part}_{side}" for part in ("system", "user", "asst")]
        names.append("asst_header_A" if side == "A" else "specials")
        np.testing.assert_allclose(sum(held.region_means[n].marker_mean for n in names), 1, atol=0.06)
    difference = summary.trained_vs_base_diff_of_diffs
    assert difference is not None
    np.testing.assert_allclose(
        difference.diff_of_diffs, np.nanmean(result.readings[0].difference("emit"), 0), atol=1e-12
    )


def test_the_audit_recomputes_what_the_export_stored(written, tmp_path):
    _, folder = written
    assert audit("zlt_attention", folder, tmp_path).is_file()
    found = read_json(tmp_path / "audit.json")["findings"]
    compared = [each for each in found if each["stored"] is not None]
    assert len(compared) > 20
    assert [(each["name"], each["condition"]) for each in compared if not each["agrees"]] == []


def test_another_region_is_refused(tmp_path):
    with pytest.raises(ValueError, match="region='system'"):
        export(replace(planted(("villain",)), region="user"), tmp_path)


def test_few_examples_and_no_negatives_are_written_too(tmp_path):
    small = planted(("villain",), QUESTIONS[:2], negatives=False, preflight=False)
    folder = export(small, tmp_path)
    held = read_attention_summary(folder / "attention_summary.json").per_persona["villain"]
    assert not held.gate_F_trajectory.applicable
    assert held.head_selection_split_sample.selected_heads_per_layer == ((),) * 6
    assert not (folder / "preflight.json").exists()
    assert read_records(folder).labels == ("villain", "base_villain")
