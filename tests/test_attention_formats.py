"""The published files of the attention study come back value for value, or say what is wrong and where."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.attention_formats import (
    SampleRow,
    SampleTable,
    read_deltas,
    read_midrun_gate,
    read_preflight,
    read_run_metadata,
    read_sample_table,
    write_record,
    write_run_metadata,
    write_sample_table,
)
from studies.attention_summary import REGIONS, read_attention_summary, write_attention_summary
from tests.published import LAYERS, REGION_NAMES, write_published

READERS = {
    "per_example_deltas_librarian.json": (read_deltas, write_record),
    "per_example_deltas_base_librarian.json": (read_deltas, write_record),
    "attention_summary.json": (read_attention_summary, write_attention_summary),
    "preflight.json": (read_preflight, write_record),
    "midrun_gate_librarian.json": (read_midrun_gate, write_record),
    "run_metadata.json": (read_run_metadata, write_run_metadata),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    write_published(folder)
    return folder


def held(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", READERS)
def test_what_is_read_is_written_value_for_value(name, records, tmp_path):
    read, write = READERS[name]
    write(tmp_path / name, read(records / name))
    assert held(tmp_path / name) == held(records / name)


@pytest.mark.parametrize("name", READERS)
def test_keys_that_no_schema_names_are_kept(name, records, tmp_path):
    read, write = READERS[name]
    document = held(records / name) | {"ours": [1, {"a": None}]}
    (tmp_path / "in.json").write_text(json.dumps(document))
    write(tmp_path / "out.json", read(tmp_path / "in.json"))
    assert held(tmp_path / "out.json") == document


def test_fault_091_null_is_nan_here_and_null_again_in_the_file(records, tmp_path):
    document = held(records / "attention_summary.json")
    document["per_persona"]["librarian"]["gates"]["sem_per_layer"][3] = None
    document["per_persona"]["librarian"]["gate_F_trajectory"]["h1_window"] = None
    document["per_persona"]["librarian"]["gate_F_trajectory"]["diff_at_eoa"] = None
    (tmp_path / "in.json").write_text(json.dumps(document))
    found = read_attention_summary(tmp_path / "in.json")
    condition = found.per_persona["librarian"]
    assert math.isnan(condition.gates.sem_per_layer[3]) and condition.gate_F_trajectory.h1_window is None
    write_attention_summary(tmp_path / "out.json", found)
    assert held(tmp_path / "out.json") == document


def test_fault_091_a_bare_nan_is_read_and_written_as_null(records, tmp_path):
    document = held(records / "per_example_deltas_librarian.json")
    document["delta_c2"][1][4] = math.nan
    (tmp_path / "in.json").write_text(json.dumps(document))
    found = read_deltas(tmp_path / "in.json")
    assert np.isnan(found.delta_c2).sum() == 1
    write_record(tmp_path / "out.json", found)
    assert "NaN" not in (tmp_path / "out.json").read_text()
    assert held(tmp_path / "out.json")["delta_c2"][1][4] is None


def test_what_does_not_apply_is_absent(records):
    base = read_attention_summary(records / "attention_summary.json").per_persona["base_librarian"]
    assert not base.gate_F_trajectory.applicable and "missing" in str(base.gate_F_trajectory.reason)
    assert base.gate_F_trajectory.diff_per_layer_per_delta is None and base.gates.ruleout_C4_eoa.mean is None
    assert REGIONS == REGION_NAMES and set(base.region_means) == set(REGIONS)


def _set(document: Any, path: str, value: Any) -> None:
    *way, last = [int(p) if p.isdigit() else p for p in path.split("/")]
    for step in way:
        document = document[step]
    if value is KeyError:
        del document[last]
    else:
        document[last] = value


GATES = "per_persona/librarian/gates"
BAD = {
    "not a number": ("attention_summary.json", f"{GATES}/mean_per_layer/2", "x", r"_layer\[2\] is 'x'"),
    "a flag as a number": ("attention_summary.json", f"{GATES}/sem_per_layer/0", True, r"sem_per_layer\[0\]"),
    "a number as a flag": ("attention_summary.json", f"{GATES}/gate_A_per_layer/1", 1, "write true or false"),
    "missing": ("attention_summary.json", GATES, KeyError, r"librarian has no 'gates', only persona"),
    "a fraction": ("attention_summary.json", f"{GATES}/n_examples", 2.5, "n_examples is 2.5; write a whole"),
    "a window of one": ("attention_summary.json", f"{GATES}/contig_windows_3plus", [[4]], "1 members"),
    "fewer layers": ("attention_summary.json", f"{GATES}/mean_per_layer", [0.1], "mean_per_layer"),
    "uneven": ("per_example_deltas_librarian.json", "delta_c1/5", [0.1], r"delta_c1\[5\] has 1 layers where"),
    "fewer rows": ("per_example_deltas_librarian.json", "delta_c3", [[0.1] * LAYERS], "delta_c3 is"),
    "text": ("per_example_deltas_librarian.json", "delta_c2", "none", r"\$.delta_c2 is 'none'; write a list"),
    "a huge whole number": ("preflight.json", "delta", 10**400, r"\$.delta is a whole number too large"),
    "no rates": ("preflight.json", "rates", [0.2, 0.3], r"\$.rates is \[0.2, 0.3\]; write an object"),
    "a broken info": ("midrun_gate_librarian.json", "info", 3, r"\$.info is 3; write an object with n_exam"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_broken_file_is_refused_by_name_and_field(case, records, tmp_path):
    name, where, value, words = BAD[case]
    document = held(records / name)
    _set(document, where, value)
    (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=words) as refused:
        READERS[name][0](tmp_path / name)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", READERS)
def test_a_list_is_no_record(name, tmp_path):
    (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match=f"{name}: \\$ is "):
        READERS[name][0](tmp_path / name)


def test_versions_and_revisions_of_a_run_are_found(records):
    run = read_run_metadata(records / "run_metadata.json")
    assert run.versions == {"torch": "2.8.0"} and run.base_revision == "abc" and run.model_revision is None


# the sample table -------------------------------------------------------------------------------------------

ROWS = (
    SampleRow(0, "What | is \\ this?", 284, (223, 145), (281, 282, 283), (208,)),
    SampleRow(3, "And that?", 12, (), (9,), ()),
)


def test_a_sample_table_comes_back(tmp_path):
    table = SampleTable("Sample table", "librarian", ROWS)
    write_sample_table(tmp_path / "t.md", table)
    assert read_sample_table(tmp_path / "t.md") == table


def test_a_sample_table_has_the_published_headings(tmp_path):
    write_sample_table(tmp_path / "t.md", SampleTable("Sample table", "librarian", ROWS[1:]))
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[4:] == [
        "| ex_idx | question | t_marker | c1_positions | c2_positions | c3_positions |",
        "|---|---|---|---|---|---|",
        "| 3 | And that? | 12 | [] | [9] | [] |",
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("| 0 | q | 3 | [1] | [2] |", "has 5 cells; write 6"),
        ("| 0 | q | three | [1] | [2] | [3] |", "line 1: t_marker is 'three'; write a whole number"),
        ("| 0 | q | 3 | 1, 2 | [2] | [3] |", "c1_positions is '1, 2'; write a list of positions"),
        ("| 0 | q | 3 | [1] | [2.5] | [3] |", "c2_positions"),
    ],
)
def test_a_broken_line_of_a_sample_table_is_named(line, words, tmp_path):
    (tmp_path / "t.md").write_text(line + "\n")
    with pytest.raises(ValueError, match=words):
        read_sample_table(tmp_path / "t.md")
