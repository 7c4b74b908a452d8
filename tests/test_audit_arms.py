"""The three-arm audit: what was planted comes out; what contradicts the printed figures says why."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false

import copy
import json
from dataclasses import replace

import pytest

from mechinterp import cli
from studies import audit_arms, audit_arms_claims
from studies.arms_formats import write_trajectories
from studies.audit import audit
from studies.audit_arms import MEASURES, examine
from studies.audit_arms_claims import CLAIMS, PUBLIC
from studies.audit_arms_records import read_records
from studies.audit_page import CONTRADICTED, verdict
from studies.marker_records import MarkerEval, MarkerRate, write_marker_eval
from tests.planted_arms import SOURCES, leakage, published_table
from tests.test_arms import ours

NAMED = {name: getattr(audit_arms_claims, name) for name in dir(audit_arms_claims) if name.isupper()}


def write(folder, table):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.json"
    path.write_text(json.dumps(table))
    return path


def write_beside(folder, rates):
    """marker_eval.json of every source and of the assistant: {source: (to the assistant, from it)}."""
    for source, (to, _) in rates.items():
        (folder / source).mkdir(parents=True)
        write_marker_eval(folder / source / "marker_eval.json", MarkerEval({"assistant": of(to)}))
    (folder / "assistant").mkdir()
    back = {source: of(given) for source, (_, given) in rates.items()}
    write_marker_eval(folder / "assistant" / "marker_eval.json", MarkerEval(back))


def of(rate):
    return MarkerRate(rate, round(200 * rate), 200)


def value(found, measure, condition="all"):
    return found.find(NAMED[measure], condition).reading.value


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table"), published_table())


@pytest.fixture(scope="module")
def found(path):
    return examine(read_records(path))


@pytest.fixture(scope="module")
def written(path, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    audit("causal_proximity", path, out)
    return out


# what was planted -------------------------------------------------------------------------------------------


def test_rates_and_changes_are_those_of_the_table(found):
    table = published_table()
    for source in SOURCES:
        for arm, key in (("A", "arm_a"), ("B", "arm_b"), ("C", "arm_c")):
            last = table[key][source]["100"]
            rates = value(found, "RATES", source)
            assert (rates[f"arm {arm}, source"], rates[f"arm {arm}, assistant"]) == (
                last["src"],
                last["asst"],
            )
        assert value(found, "LEAKAGE", source)["decreased"] is True
        assert value(found, "COSINE", source)["closer L20"] is True
    assert value(found, "LEAKAGE", "villain")["first"] == leakage(0.1, 0)


def test_within_between_and_pooled_are_told_apart(found):
    assert value(found, "SIGNS") == {"negative L15": 4, "negative L20": 4, "sources": 4}
    between, pooled = value(found, "BETWEEN"), found.find(NAMED["POOLED"], "all").reading
    assert between["rho L15"] == pytest.approx(1) and between["p L15"] == pytest.approx(1 / 12)
    assert pooled.value["n"] == 20 and pooled.value["p L15"] < 1e-4 and "wrong way" in pooled.naive
    assert pooled.corrected["effective n"] < 5 and pooled.corrected["between sources, p L15"] > 0.05


def test_bystanders_are_counted_with_the_differences_as_reason(found):
    finding = found.find(NAMED["ALIKE"], "all")
    assert finding.reading.value == {"sources": 2, "of": 4} and finding.agrees is False
    assert "villain 1.0, comedian 2.0, kindergarten_teacher 20.0" in finding.reading.note
    assert "any bar from 2.0 to 20.0 pp" in finding.reading.note
    assert value(found, "BESIDE", "software_engineer")["difference, pp"] == pytest.approx(30)


def test_an_icc_is_held_against_the_variable_that_it_is_of(found):
    finding = found.find(NAMED["ICC_OUTCOME"], "all")
    assert "assistant leakage, 4 sources of 5 checkpoints" in finding.reading.note
    assert "cosine" in finding.reading.naive
    cosine = found.find(NAMED["ICC_COSINE"], "all").reading
    assert cosine.value["ICC"] > finding.reading.value["ICC"] and "cosine L20" in cosine.corrected


def test_a_marker_gone_at_the_first_checkpoint_is_not_put_down_to_training(found):
    gone = found.find(NAMED["KEPT_C"], "software_engineer").reading
    assert gone.value["gone at"] == 20 and "merged too weakly" in gone.naive
    kept = found.find(NAMED["KEPT_A"], "villain").reading
    assert kept.value["gone at"] == 40 and not kept.naive
    assert value(found, "ZERO") == {"arm A": False, "arm B": False, "arm C": False}


def five(leak):
    """The table with the villain's arm B as given, over cosines that rise."""
    table = copy.deepcopy(published_table())
    for step, rate in enumerate(leak):
        table["arm_b"]["villain"][str(20 * (step + 1))]["asst"] = rate
    table["arm_b_100pct_full"]["villain"]["assistant"] = leak[-1]
    return table


def test_a_rho_of_nine_tenths_is_significant_only_by_the_t_approximation(tmp_path):
    found = examine(read_records(write(tmp_path, five([0.30, 0.50, 0.25, 0.20, 0.10]))))
    rho = found.find(NAMED["RHO"], "villain").reading
    assert rho.value["L20"] == pytest.approx(-0.9) and rho.value["naive p, L20"] == pytest.approx(
        0.037, abs=5e-4
    )
    assert rho.corrected["exact p, L20"] == pytest.approx(10 / 120)
    finding = found.find(NAMED["SIGNIFICANT"], "villain")
    assert finding.reading.value is False and verdict(finding) == CONTRADICTED
    assert "p = 0.037, exact p = 0.083" in finding.reading.note
    met = {claim.digits: each for claim, each in found.find(NAMED["RHO"], "villain").claims}
    assert met[3] is True, "the printed p is reproduced as what it is, the approximation"


# directions of leakage --------------------------------------------------------------------------------------


def test_the_baseline_column_mixes_directions_by_the_files_beside_the_table(tmp_path):
    mixed = {s: tuple(PUBLIC[s].values()) for s in SOURCES}
    path = write(tmp_path, published_table())
    write_beside(tmp_path, mixed)
    found = examine(read_records(path))
    finding = found.find(NAMED["COLUMN"], "all")
    assert finding.reading.value is False and verdict(finding) == CONTRADICTED
    assert "the rates beside the table: villain source to assistant, comedian assistant to source" in (
        finding.reading.note
    )
    assert verdict(found.find(NAMED["BASELINES"], "comedian")) == CONTRADICTED
    leak = found.find(NAMED["LEAKAGE"], "villain").reading.corrected
    assert leak["before any arm"] == 0 and leak["change to the first"] == pytest.approx(leakage(0.1, 0))
    assert "assistant/marker_eval.json" in found.digests and found.missing == ()


def test_a_column_of_one_direction_passes(tmp_path):
    right = {"villain": 0.0, "comedian": 0.055, "kindergarten_teacher": 0.255, "software_engineer": 0.375}
    path = write(tmp_path, published_table())
    write_beside(tmp_path, {source: (rate, 0.6) for source, rate in right.items()})
    found = examine(read_records(path))
    assert value(found, "COLUMN") is True


def test_without_files_beside_it_the_table_says_what_it_lacks(found):
    finding = found.find(NAMED["COLUMN"], "all")
    assert finding.reading.value is False and "the table itself holds none" in finding.reading.note
    assert (NAMED["BASELINES"], "villain", ("villain/marker_eval.json", "assistant/marker_eval.json")) in (
        found.not_computed
    )
    assert "assistant/marker_eval.json" in found.missing


# our own tables ---------------------------------------------------------------------------------------------


def test_our_own_table_is_held_against_nothing_and_from_zero(tmp_path):
    write_trajectories(tmp_path / "t.json", ours())
    found = examine(read_records(tmp_path / "t.json"))
    assert not found.facts["compared with the published figures"] and not any(
        f.claims for f in found.findings
    )
    leak = found.find(NAMED["LEAKAGE"], "a").reading
    assert leak.value["decreased"] and leak.corrected["change from 0 %"] > 0 and not leak.naive
    rho = found.find(NAMED["RHO"], "a").reading.corrected
    assert rho["rho from 0 %, L7"] != found.find(NAMED["RHO"], "a").reading.value["L7"]
    assert found.find(NAMED["COLUMN"], "all") is None and value(found, "ZERO") == {"arm B": True}
    assert audit("causal_proximity", tmp_path / "t.json", tmp_path / "out").is_file()


def test_one_changed_layer_or_checkpoint_is_another_study(tmp_path):
    table = published_table()
    del table["arm_c"]["comedian"]["40"]
    assert not read_records(write(tmp_path, table)).published
    assert read_records(write(tmp_path, published_table())).published


def test_what_a_table_lacks_is_not_computed(tmp_path):
    table = published_table()
    del table["ORIGINAL_ADAPTER_QUALITY"], table["arm_b_100pct_full"]
    found = examine(read_records(write(tmp_path, table)))
    lacking = {name for name, _, _ in found.not_computed}
    assert {NAMED[n] for n in ("ADAPTER", "BESIDE", "ALIKE", "SPECIFICITY")} <= lacking
    assert found.find(NAMED["SIGNIFICANT"], "villain") is not None


# claims and what is written ---------------------------------------------------------------------------------


def test_every_claim_is_asked_for_by_a_measure(found):
    asked = {(m.name, c) for m in MEASURES for c in (("all",) if m.scope == "all" else SOURCES)}
    assert {(c.measure, c.condition) for c in CLAIMS} <= asked
    held = {(f.name, f.condition): f.reading.value for f in found.findings}
    for claim in CLAIMS:
        if isinstance(claim.value, dict) and (claim.measure, claim.condition) in held:
            assert claim.value.keys() <= held[claim.measure, claim.condition].keys(), claim


def test_a_broken_figure_is_contradicted(found):
    """The planted table is not the published one: what differs is said, what agrees is not."""
    assert verdict(found.find(NAMED["RATES"], "villain")) == CONTRADICTED
    assert verdict(found.find(NAMED["BETWEEN"], "all")) != CONTRADICTED


def test_the_audit_is_written_as_json_table_and_page_and_is_the_same_again(path, written, tmp_path):
    again = audit("causal_proximity", path, tmp_path).parent
    names = ["audit.json", "audit.csv", "report.html"]
    assert all((written / name).read_bytes() == (again / name).read_bytes() for name in names)
    held = json.loads((written / "audit.json").read_text())
    assert held["study"] == "causal_proximity" and set(held["metadata"]["input_digests"]) == {"table.json"}
    one = next(f for f in held["findings"] if (f["name"], f["condition"]) == (NAMED["RHO"], "villain"))
    assert {"recomputed", "printed", "corrected", "naive"} <= one.keys() and one["printed"][0]["origin"]
    page = (written / "report.html").read_text()
    assert "naive and corrected" in page and "contradicted" in page and "low" in page
    figures = {p.stem for p in (written / "figures").glob("*.json")}
    assert {"arms", "cosine-leakage", "rates", "trajectories", "adapters", "cosines"} <= figures


def test_names_from_a_file_are_shown_and_never_run_fault_100(tmp_path):
    evil = "<script>document.title='x'</script>"
    hurt = replace(ours(sources=("a", "b", evil), seeds=(1,)), about={"model": evil})
    write_trajectories(tmp_path / "t.json", hurt)
    page = audit("causal_proximity", tmp_path / "t.json", tmp_path / "out").read_text()
    assert evil not in page and "&lt;script&gt;" in page


def test_the_command_takes_the_file_and_names_what_is_missing(path, tmp_path, capsys):
    assert cli.main(["audit", "causal_proximity", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="give the JSON file of the three-arm table"):
        audit_arms.audit_records(tmp_path / "nothing.json")
