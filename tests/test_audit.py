"""The audit of published attention records: what was planted comes out, whatever part of them is there."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechinterp.cli import main
from mechinterp.report import render
from studies.attention_formats import SampleRow, SampleTable, write_sample_table
from studies.audit import Audit, Claim, audit, difference, meets
from studies.audit_attention import MEASURES, audit_records, examine
from studies.audit_attention_claims import CLAIMS
from studies.audit_attention_controls import questions, redrawn
from studies.audit_attention_records import read_records
from tests.published import C1, LAYERS, SHIFT, Planted, write_published

OWN = {"model": "tiny"}  # metadata of a study that is not the published one


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    write_published(folder, metadata=OWN)
    return folder


@pytest.fixture(scope="module")
def found(records) -> Audit:
    return examined(records)


def examined(folder: Path) -> Audit:
    """The findings without the page, whose figures take longer than all of them."""
    return examine(read_records(folder))


def value(found: Audit, name: str, condition: str = "librarian") -> Any:
    finding = found.find(name, condition)
    assert finding is not None, f"{name} of {condition} is not among the findings"
    return finding.reading.value


def corrected(found: Audit, name: str, condition: str = "librarian") -> Any:
    finding = found.find(name, condition)
    assert finding is not None
    return finding.reading.corrected


# what the files store is met --------------------------------------------------------------------------------


def test_every_stored_value_is_met_by_the_recomputation(found):
    """The generator computes its summary in plain loops; the audit has its own way to the same numbers."""
    held = [f for f in found.findings if f.reading.stored is not None]
    assert len({f.name for f in held}) >= 14
    assert all(f.agrees and (f.difference or 0) < 1e-12 for f in held), [f.name for f in held if not f.agrees]


FIELDS = {
    "mean contrast by layer": "gates/mean_per_layer",
    "SEM by layer": "gates/sem_per_layer",
    "C2 rule-out as coded": "gates/ruleout_C2_H4/mean",
    "gate F": "gate_F_trajectory/band_diff_per_delta",
}


def test_a_stored_value_that_is_off_is_told_by_how_much(records, tmp_path):
    shutil.copytree(records, tmp_path / "in")
    path = tmp_path / "in" / "attention_summary.json"
    held = json.loads(path.read_text())
    for field in FIELDS.values():
        *way, last = field.split("/")
        place = held["per_persona"]["librarian"]
        for step in way:
            place = place[step]
        place[last][3] += 0.25
    path.write_text(json.dumps(held))
    found = examined(tmp_path / "in")
    for name in FIELDS:
        finding = found.find(name, "librarian")
        assert finding is not None and finding.agrees is False, name
        assert finding.difference == pytest.approx(0.25), name


# what was planted is found ----------------------------------------------------------------------------------


def test_gates_windows_and_peak_are_those_that_were_planted(found):
    assert value(found, "layers passing A/B/C/D") == {"A": 9, "B": 10, "C": 8, "D": 8}
    assert value(found, "windows") == [[3, 9]] and value(found, "H1 window") == [3, 9]
    peak = value(found, "peak")
    assert peak["layer"] == int(np.argmax(C1)) and peak["delta"] == pytest.approx(max(C1), abs=0.003)
    assert corrected(found, "layers passing A/B/C/D") == {"B with its sign, 95 % over questions": 9}


def test_the_right_sign_of_a_rule_out_fails_where_the_control_exceeds_the_marker(found):
    c2 = value(found, "C2 rule-out, right sign")
    assert (c2["all layers"], c2["in H1 windows"], c2["window layers"]) == (7, 5, 7)
    assert not c2["rules out"] and c2["fraction"] == 5 / 7
    assert value(found, "H1 layers where the marker is not above C2") == [8, 9]
    assert value(found, "C3 rule-out, right sign")["all layers"] == 8


def test_the_stored_sign_passes_where_the_control_exceeds_c1(found):
    """Layer 9 of C2 lies below C1 by 0.05: the marker is below C2 there, and the stored flag says pass."""
    assert value(found, "C2 rule-out as coded")["passes"] == 9
    assert value(found, "C2 rule-out as coded")["mean"][9] > 0.04


def test_training_moved_two_layers_and_the_paired_test_finds_both(found):
    paired = value(found, "paired difference")
    assert (paired["positive"], paired["negative"]) == ([4], [5])
    assert paired["z at the maximum"] > 20 and paired["z at the minimum"] < -20
    assert corrected(found, "paired difference")["family-wise p < 0.05 (max-T)"] == 2
    described = value(found, "diff-of-diffs")
    assert (described["trained larger by 0.005"], described["base larger by 0.005"]) == (1, 1)
    assert described["sign test p"] > 0.05, "counting layers sees nothing"
    mean = value(found, "paired difference, mean over layers")["mean"]
    assert mean == pytest.approx(np.mean(SHIFT), abs=3e-4)
    assert value(found, "gate E") == {"verdict": "fail", "layers": 1}
    assert (
        value(found, "peaks")["base layer"] == 5 and value(found, "layer-profile shift")["peak moved"] == -1
    )


def test_specials_trajectory_and_rail_come_from_the_summary(found):
    assert value(found, "specials")["gap max"] == pytest.approx(0.2)
    assert value(found, "naive inflation of the peak") == pytest.approx((C1[4] + 0.2) / C1[4], rel=0.05)
    f = value(found, "gate F")
    assert f["ratio"] == pytest.approx(0.0005 / 0.008) and f["at the deciding row"] == pytest.approx(0.5)
    assert value(found, "gate F", "base_librarian") == {"applicable": False}
    assert value(found, "mid-run safety rail")["passed"]
    assert corrected(found, "mid-run safety rail") == {"passed by a rise": True, "layers that rise": 9}
    assert value(found, "sink reframe")["reframe required"] is False
    assert value(found, "preflight", "all")["difference"] == pytest.approx(0.005)


def test_generations_are_counted_as_planted(found):
    before = value(found, "before the marker, all personas", "all")
    assert (before["positives"], before["382"], before["271"]) == (42, 40, 2)
    cut = value(found, "incomplete markers, all personas", "all")
    assert (cut["without the usual pieces"], cut["cut short"]) == (3, 3)
    assert value(found, "negatives cut off at the cap") == {"truncated": 5, "negatives": 12}
    assert value(found, "positives ending elsewhere")["elsewhere"] == 2
    assert value(found, "positive rate of trials")["trials"] == 6 * 30
    assert value(found, "row that was read") == {
        "examples": 24,
        "with one first piece": 24,
        "first piece": 85113,
    }
    assert value(found, "C4 in the per-example files") is False


def test_the_published_controls_are_what_they_are(found):
    """C2 keeps the deciding row unless a bare blank line stands there; C3 picks commas and hyphens."""
    held = value(found, "C2 holds the deciding row, all personas", "all")
    assert held == {"with the deciding row": 40, "examples": 42}
    picks = value(found, "C3 picks")
    assert picks["ids 11 and 12"] > 0.9 and picks["mean id quantile"] < 0.1
    assert value(found, "C1 examples left out") == {"skipped": 0, "examples": 24}


def test_an_answer_too_short_for_c1_is_left_out_and_its_question_with_it(records, tmp_path):
    """Deltas have no row for it; the rows that follow keep their own questions."""
    held = json.loads((records / "positives_librarian.json").read_text())
    short = held["positives"][0]
    start, token = short["prompt_len"], short["t_marker"]
    short["full_ids"] = short["full_ids"][: start + 6] + short["full_ids"][token - 1 :]
    short["t_marker"] = start + 7
    (tmp_path / "positives_librarian.json").write_text(json.dumps(held))
    deltas = json.loads((records / "per_example_deltas_librarian.json").read_text())
    for name in ("delta_c1", "delta_c2", "delta_c3"):
        deltas[name] = deltas[name][1:]
    (tmp_path / "per_example_deltas_librarian.json").write_text(json.dumps(deltas))
    assert value(examined(tmp_path), "C1 examples left out") == {"skipped": 1, "examples": 24}
    asked = questions(read_records(tmp_path), "librarian", 23)
    assert asked == [e["question"] for e in held["positives"][1:]]
    assert questions(read_records(tmp_path), "librarian", 20) is None


def test_a_question_with_both_quotas_full_stopped_there(tmp_path):
    """Ten positives and five negatives of each question: it ran to the last kept trial, not to 30."""
    write_published(tmp_path, {"bard": Planted(n=60, n_negatives=30)}, base=(), metadata=OWN)
    rate = value(examined(tmp_path), "positive rate of trials", "bard")
    assert rate["trials"] == 6 * 25


def test_a_sample_table_is_redrawn(records, tmp_path):
    shutil.copytree(records, tmp_path / "in")
    drawn = redrawn(read_records(records), "librarian") or ()
    rows = [SampleRow(d.index, d.example.question, d.example.row("token"), d.c1, d.c2, d.c3) for d in drawn]
    rows[2] = replace(rows[2], c3=(1, 2, 3))
    path = tmp_path / "in" / "sample_table.md"
    write_sample_table(path, SampleTable("Sample table", "librarian", tuple(rows[:5])))
    assert value(examined(tmp_path / "in"), "sample table", "all") == {"rows": 5, "redrawn alike": 4}


# any part of the records will do ----------------------------------------------------------------------------

FILES = (
    "attention_summary.json", "preflight.json", "sample_table.md", "midrun_gate_librarian.json",
    "per_example_deltas_librarian.json", "per_example_deltas_base_librarian.json", "positives_librarian.json",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FILES if name != "sample_table.md"])
def test_each_file_by_itself_is_audited_and_the_others_are_not_present(name, records, tmp_path):
    shutil.copy(records / name, tmp_path / name)
    found, page = audit_records(tmp_path)
    assert found.findings and name not in found.missing
    if name != "attention_summary.json":
        assert "attention_summary.json" in found.missing
    assert "not present" in render(page)


def test_without_deltas_the_gates_come_from_the_summary_and_say_so(records, found, tmp_path):
    shutil.copy(records / "attention_summary.json", tmp_path)
    alone = examined(tmp_path)
    gates = alone.find("layers passing A/B/C/D", "librarian")
    assert gates is not None and "not here" in gates.reading.note
    assert gates.reading.value == value(found, "layers passing A/B/C/D")
    assert alone.find("C2 rule-out, right sign", "librarian") is None
    needed = {name: needs for name, condition, needs in alone.not_computed if condition == "librarian"}
    assert "per_example_deltas_librarian.json" in needs_of(needed, "C2 rule-out, right sign")


def needs_of(needed: dict[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    assert name in needed
    return needed[name]


def test_without_the_summary_c_and_d_are_unknown_and_not_zero(records, tmp_path):
    shutil.copy(records / "per_example_deltas_librarian.json", tmp_path)
    found = examined(tmp_path)
    assert value(found, "layers passing A/B/C/D") == {"A": 9, "B": 10, "C": None, "D": None}
    assert found.find("windows", "librarian") is None


def test_an_empty_directory_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no attention records; give a directory with"):
        audit_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        audit_records(tmp_path / "none")


def test_records_of_two_models_are_refused(records, tmp_path):
    shutil.copytree(records, tmp_path / "in")
    deltas = {name: [[0.1, 0.2]] * 3 for name in ("delta_c1", "delta_c2", "delta_c3")}
    (tmp_path / "in" / "per_example_deltas_x.json").write_text(json.dumps({"persona": "x", **deltas}))
    with pytest.raises(ValueError, match="different numbers of layers .*per_example_deltas_x.json has 2"):
        audit_records(tmp_path / "in")


@pytest.mark.parametrize(("n", "layers"), [(1, 10), (2, 3), (24, 1)])
def test_fault_106_few_examples_or_layers_are_no_error(n, layers, tmp_path):
    rows = np.random.default_rng(0).normal(0.01, 0.01, (n, layers)).tolist()
    for label in ("bard", "base_bard"):
        held = dict.fromkeys(("delta_c1", "delta_c2", "delta_c3"), rows)
        (tmp_path / f"per_example_deltas_{label}.json").write_text(json.dumps({"persona": "bard", **held}))
    audit("zlt_attention", tmp_path, tmp_path / "out")
    assert "NaN" not in (tmp_path / "out" / "audit.json").read_text()


def test_rows_with_a_missing_value_are_left_out(records, tmp_path):
    shutil.copytree(records, tmp_path / "in")
    path = tmp_path / "in" / "per_example_deltas_software_engineer.json"
    held = json.loads(path.read_text())
    held["delta_c1"][0][0] = None
    path.write_text(json.dumps(held))
    found = examined(tmp_path / "in")
    mean = value(found, "mean contrast by layer", "software_engineer")
    assert mean == pytest.approx(np.mean(held["delta_c1"][1:], axis=0).tolist())


# printed figures --------------------------------------------------------------------------------------------


def test_another_study_is_not_held_against_the_published_figures(found):
    assert not any(f.claims for f in found.findings)
    assert found.facts["compared with the published figures"] is False


def test_records_of_the_published_study_are(tmp_path):
    write_published(tmp_path)
    found = examined(tmp_path)
    examples = found.find("examples", "librarian")
    assert examples is not None and examples.agrees is False, "24 synthetic examples are not the 112"
    pooled = found.find("specials, all conditions", "all")
    assert pooled is not None and {met for _, met in pooled.claims} == {None}, "villain is not here"


def test_every_printed_figure_is_of_a_measure_that_is_asked():
    scopes = {measure.name: measure.scope for measure in MEASURES}
    assert len(scopes) == len(MEASURES), "two measures have one name"
    for claim in CLAIMS:
        assert claim.measure in scopes, claim
        assert (scopes[claim.measure] == "all") == (claim.condition == "all"), claim
    assert len(CLAIMS) > 90


@pytest.mark.parametrize(
    ("claim", "value", "met"),
    [
        (Claim("", "", 0.049, 3), 0.0492, True),
        (Claim("", "", 0.049, 3), 0.0485, True),
        (Claim("", "", 0.049, 3), 0.0484, False),
        (Claim("", "", -0.0029, 4), -0.00289, True),
        (Claim("", "", 24), 24, True),
        (Claim("", "", 24), 23, False),
        (Claim("", "", [[8, 10], [12, 27]]), [[8, 10], [12, 27]], True),
        (Claim("", "", [[8, 10], [12, 27]]), [[8, 27]], False),
        (Claim("", "", []), [25, 26], False),
        (Claim("", "", {"ratio": 0.078}, 3), {"ratio": 0.0781, "more": 2}, True),
        (Claim("", "", [2.0, 3.0], 0, "within"), 4.6, False),
        (Claim("", "", [2.0, 3.0], 0, "within"), 2.8, True),
        (Claim("", "", {"max": [0.24, 0.26]}, 2, "within"), {"max": 0.215}, False),
        (Claim("", "", 0.77, 2, "at least"), 0.83, True),
        (Claim("", "", 0.77, 2, "at least"), 0.70, False),
        (Claim("", "", 18, None, "one of"), {"a": 18, "b": 17}, True),
        (Claim("", "", 18, None, "one of"), {"a": 16, "b": 17}, False),
        (Claim("", "", True), False, False),
    ],
)
def test_a_figure_is_met_when_it_rounds_to_what_was_printed(claim, value, met):
    assert meets(claim, value) is met


def test_a_difference_is_the_largest_over_all_numbers():
    assert difference({"a": [1.0, 2.0], "b": True}, {"a": [1.0, 2.5], "b": True}) == 0.5
    assert difference([1.0], [1.0, 2.0]) == math.inf and difference("a", "b") == math.inf
    assert difference({"a": None}, {"a": None}) is None and difference(math.nan, math.nan) == 0.0


# what is written --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(records, tmp_path_factory) -> Path:
    """What the command writes, in a folder that was not there."""
    out = tmp_path_factory.mktemp("audit") / "deep" / "out"
    assert main(["audit", "zlt_attention", str(records), "--out", str(out)]) == 0
    return out


def test_the_command_writes_page_table_json_and_figures(written):
    assert {"audit.json", "audit.csv", "report.html", "figures"} == {path.name for path in written.iterdir()}
    figures = {path.stem for path in (written / "figures").glob("*.html")}
    assert {"contrast-librarian", "paired-difference-librarian", "conditions-by-layer"} <= figures
    assert len(figures) == 2 + 1 + 1 + 3


def test_the_same_records_give_the_same_bytes(records, written, tmp_path):
    shutil.copytree(records, tmp_path / "elsewhere")
    audit("zlt_attention", tmp_path / "elsewhere", tmp_path / "out")
    for name in ("audit.json", "audit.csv", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (written / name).read_bytes()


def test_the_json_holds_full_precision_and_no_time_or_place(records, written):
    text = (written / "audit.json").read_text()
    assert str(records) not in text and "timestamp" not in text and "NaN" not in text
    held = json.loads(text)
    assert held["metadata"]["schema"] == "mechinterp.audit"
    assert set(held["metadata"]["input_digests"]) == {path.name for path in records.iterdir()}
    series = next(f for f in held["findings"] if f["name"] == "mean contrast by layer")["recomputed"]
    stored = json.loads((records / "attention_summary.json").read_text())
    assert series == stored["per_persona"]["librarian"]["gates"]["mean_per_layer"]


def test_fault_102_a_label_that_is_a_formula_is_disarmed_in_the_file(records, tmp_path):
    shutil.copy(records / "per_example_deltas_librarian.json", tmp_path / "per_example_deltas_=1+1.json")
    audit("zlt_attention", tmp_path, tmp_path / "out")
    lines = (tmp_path / "out" / "audit.csv").read_text().splitlines()
    assert lines[1].startswith("'=1+1,")


def test_fault_100_a_question_with_markup_is_shown_and_not_run(records, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(records / "positives_librarian.json", tmp_path / "in")
    head = "| ex_idx | question | t_marker | c1_positions | c2_positions | c3_positions |\n"
    row = "| 0 | </script><script>alert(1)</script> | 9 | [1] | [2] | [3] |\n"
    (tmp_path / "in" / "sample_table.md").write_text(f"Persona: librarian\n\n{head}{row}")
    text = render(audit_records(tmp_path / "in")[1])
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_the_command_refuses_what_it_does_not_know(records, tmp_path, capsys):
    assert main(["audit", "attention", str(records), "--out", str(tmp_path / "o")]) == 1
    assert "no audit of 'attention'; the audits are zlt_attention" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_fault_093_an_out_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    argv = ["audit", "zlt_attention", str(tmp_path / "none"), "--out", str(tmp_path / "file" / "out")]
    assert main(argv) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_layers_are_as_many_as_planted(found):
    assert found.facts["layers"] == LAYERS
