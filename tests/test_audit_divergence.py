"""The audit of divergence records: what was planted comes out, contradictions have their reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mechinterp.cli import main
from mechinterp.report import render
from studies.audit import Audit, Claim, Finding, Reading, audit
from studies.audit_divergence import MEASURES, audit_records, examine
from studies.audit_divergence_analysis import JS, Analysed, analyse
from studies.audit_divergence_claims import CENTRED, CLAIMS, LIKE, ON_WIDE, PRIOR
from studies.audit_divergence_page import PARTS
from studies.audit_divergence_records import read_records
from studies.audit_page import CONTRADICTED, DIFFERS, KNOWN, OTHER, REPRODUCES, STORED, verdict
from studies.divergence_export import analysis_results, cosine_leakage
from studies.divergence_formats import write_analysis, write_cosine_leakage
from tests.published_divergence import PAIRS, QUESTIONS, SOURCES, write_divergence

FIRST, SECOND = "js_divergence", "single_token_100_persona"
FILES = (
    f"{FIRST}/divergence_matrices.json", f"{FIRST}/analysis_results.json", f"{FIRST}/generations.json",
    f"{FIRST}/cosine_own_l20.json", f"{SECOND}/cosine_leakage_correlation.json",
    f"{SECOND}/cook/marker_eval.json", f"{SECOND}/cook/summary.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    write_divergence(folder)
    return folder


@pytest.fixture(scope="module")
def analysed(records) -> Analysed:
    return analyse(read_records(records))


@pytest.fixture(scope="module")
def found(analysed) -> Audit:
    return examine(analysed)


def finding(found: Audit, name: str, condition: str = "all") -> Finding:
    held = found.find(name, condition)
    assert held is not None, f"{name} of {condition} is not among the findings"
    return held


def value(found: Audit, name: str, condition: str = "all") -> Any:
    return finding(found, name, condition).reading.value


def examined(folder: Path) -> Audit:
    return examine(analyse(read_records(folder)))


def edited(records: Path, folder: Path, name: str, change: Any) -> Path:
    """A copy of the records in which `change` was applied to one file."""
    shutil.copytree(records, folder)
    path = folder / name
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    return folder


# what the files store is met --------------------------------------------------------------------------------


def test_every_stored_value_is_met_by_the_recomputation(found):
    """The generator computes with scipy on plain lists; the audit has its own way to the same numbers."""
    held = [f for f in found.findings if f.reading.stored is not None and f.reading.value is not None]
    assert len({f.name for f in held}) >= 9
    assert all(f.agrees for f in held), [(f.name, f.condition, f.difference) for f in held if not f.agrees]
    assert not found.missing and not found.not_computed


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("JS against leakage", ("leakage_comparison", "js_leakage_spearman_rho")),
        ("range of JS", ("discrimination", "js_max")),
        ("KL asymmetry", ("kl_asymmetry", "spearman_rho")),
        ("uninformative questions", ("per_question", "n_uninformative")),
    ],
)
def test_a_stored_value_that_is_off_is_told_by_how_much(records, tmp_path, name, way):
    def change(held: Any) -> None:
        held[way[0]][way[1]] += 1

    found = examined(edited(records, tmp_path / "in", FILES[1], change))
    assert finding(found, name).difference == pytest.approx(1) and finding(found, name).agrees is False
    assert verdict(finding(found, name)) == DIFFERS


def test_rates_that_were_typed_wrongly_are_found(records, tmp_path):
    def change(held: Any) -> None:
        held["leakage_comparison"]["directed_pairs"][3]["leakage_rate"] += 0.25

    found = examined(edited(records, tmp_path / "in", FILES[1], change))
    assert value(found, "rates and JS as analysed")["rates off by"] == pytest.approx(0.25)


# what was planted is found ----------------------------------------------------------------------------------


def test_the_cosine_of_the_wide_set_carries_what_the_own_centring_lost(found, analysed):
    beats = value(found, "JS beats cosine")
    assert not beats["under both centrings"] and not beats["at every layer, wide centring"]
    assert "20 where it is centred on the 10" in finding(found, "JS beats cosine").reading.note
    wide = analysed.wide
    assert wide is not None and wide.advantage()["pooled"] < 0
    js, cosine = wide.beyond
    assert abs(js.partial.estimate) < abs(cosine.partial.estimate)


def test_the_matrix_is_recognised_by_the_responses_that_it_is_the_mean_of(found, records, tmp_path):
    assert value(found, "averaging of JS")["matrix is the mean over"] == "all"
    pair = read_records(records).matrices.selected("pair").tolist()  # type: ignore[union-attr]
    other = edited(records, tmp_path / "in", FILES[0], lambda held: held.update(js_matrix=pair))
    assert value(examined(other), "averaging of JS")["matrix is the mean over"] == "pair"


def test_a_layer_whose_cosine_is_in_no_file_is_stored_only(found):
    for name in (CENTRED, LIKE):
        held = finding(found, name, "layer 10")
        assert held.reading.value is None and verdict(held) == STORED and "stored only" in held.reading.note
        assert held.reading.stored["rho"] == 0.125 and held.difference is None
        assert finding(found, name, "layer 20").reading.value is not None


def test_layers_are_not_mixed_up(found):
    rho = [value(found, PRIOR, f"layer {n}")["rho"] for n in (10, 20)]
    assert rho[0] == pytest.approx(-rho[1]) and rho[1] > 0.5
    assert value(found, ON_WIDE, "layer 20")["pairs"] == len(PAIRS)


def test_fault_107_pooled_p_stands_beside_those_of_sources(found):
    held = finding(found, "JS against leakage").reading
    assert held.corrected["p of whole sources"] >= 1 / 24 > held.value["p"]
    assert "20 pairs of 4 sources as independent" in held.naive


def test_fault_106_a_source_that_leaks_nowhere_is_named_and_counted(found):
    assert value(found, "sources without a rho") == {"sources": ["poet"], "of": 4}
    assert finding(found, "JS against leakage").reading.corrected["sources without a rho"] == 1


def test_rates_specificity_and_answers(found):
    poet = value(found, "marker rates", "poet")
    assert poet["source rate"] == 0.9 and poet["max bystander"] == 0 and poet["personas"] == 10
    low, high = finding(found, "marker rates", "poet").reading.corrected["source rate, 95 % Wilson"]
    assert 0.8 < low < 0.9 < high < 1
    assert value(found, "answers")["as many as responses"] and value(found, "answers")["texts"] == 30


def test_questions_are_in_the_words_of_the_answers(analysed):
    assert analysed.per_question is not None and analysed.per_question.questions == QUESTIONS


# what we write ----------------------------------------------------------------------------------------------


def test_an_analysis_of_our_own_is_audited_as_the_published_one(records, analysed, tmp_path):
    """Written in the published schema in place of the stored files, it is met by the recomputation."""
    shutil.copytree(records, tmp_path / "in")
    name = analysed.own.second
    written = analysis_results(
        discrimination=analysed.discrimination, per_question=analysed.per_question,
        redundancy=analysed.redundancy, comparison=analysed.own, cosines={20: name},
        asymmetry=analysed.asymmetry,
    )  # fmt: skip
    write_analysis(tmp_path / "in" / FILES[1], written)
    held, rates = analysed.records, analysed.records.wide_rates()
    layers = {n: cosine_leakage(held.wide_cosines(n), rates, {}) for n in (10, 20)}
    write_cosine_leakage(tmp_path / "in" / FILES[4], layers)
    found = examined(tmp_path / "in")
    compared = [f for f in found.findings if f.reading.stored is not None]
    assert len({f.name for f in compared}) >= 9 and all(f.agrees for f in compared)
    stored = json.loads((records / FILES[1]).read_text())["leakage_comparison"]["directed_pairs"]
    assert json.loads((tmp_path / "in" / FILES[1]).read_text())["leakage_comparison"]["directed_pairs"] == [
        {**pair, "js_value": pytest.approx(pair["js_value"])} for pair in stored
    ]
    with pytest.raises(ValueError, match="a -> b has a cosine and no leakage"):
        cosine_leakage({("a", "b"): 0.5}, {}, {})


# verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "claims", "said"),
    [
        (Reading({"a": 0.5}), [("write-up", True)], REPRODUCES),
        (Reading({"a": 0.5}), [("write-up", False), ("reference", True)], CONTRADICTED),
        (Reading({"a": 0.5}), [("reference", True)], KNOWN),
        (Reading({"a": 0.5}), [("write-up", True), ("reference", False)], OTHER),
        (Reading(None, {"a": 0.5}), [("write-up", True)], STORED),
        (Reading(None, {"a": 0.5}), [("write-up", False)], CONTRADICTED),
    ],
)
def test_what_the_write_up_says_weighs_most(reading, claims, said):
    made = tuple((Claim("m", "all", {"a": 0.5}, 1, origin=origin), met) for origin, met in claims)
    assert verdict(Finding("m", "1", "all", reading, made)) == said


def test_records_of_the_published_study_are_held_against_the_printed_figures(found, tmp_path):
    assert not any(f.claims for f in found.findings), "another study is not"
    write_divergence(tmp_path, commit="c730053")
    held = examined(tmp_path)
    assert verdict(finding(held, "JS against leakage")) == CONTRADICTED
    assert verdict(finding(held, "averaging of JS")) == CONTRADICTED
    assert "the code averages over the responses of all" in finding(held, "averaging of JS").reading.note
    assert [met for _, met in finding(held, "JS beats cosine").claims] == [False, True]
    shutil.rmtree(tmp_path / SECOND)
    alone = finding(examined(tmp_path), "JS beats cosine")
    assert {met for _, met in alone.claims} == {None}, "the wide centring is not here"


def test_every_printed_figure_is_of_a_measure_that_is_asked_and_shown():
    scopes = {measure.name: measure.scope for measure in MEASURES}
    assert len(scopes) == len(MEASURES), "two measures have one name"
    for claim in CLAIMS:
        assert (scopes[claim.measure] == "all") == (claim.condition == "all"), claim
    shown = [name for names in PARTS.values() for name in names]
    assert sorted(shown) == sorted(scopes), "a measure without a place on the page, or a place without one"
    assert len(CLAIMS) > 50


# any part of the records will do ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_each_file_by_itself_is_audited_and_the_others_are_not_present(name, records, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True)
    shutil.copy(records / name, tmp_path / name)
    found, page = audit_records(tmp_path)
    assert found.missing and name.partition("/")[2] not in found.missing
    assert "not present" in render(page)


def test_the_folder_of_the_matrices_may_be_given_itself(records, found):
    alone = examined(records / "js_divergence")
    for name in ("range of JS", "JS against leakage", "averaging of JS"):
        assert value(alone, name) == value(found, name)
    assert "cosine_leakage_correlation.json" in alone.missing and alone.find(PRIOR, "layer 20") is None


def test_the_wide_files_alone_tell_the_core_set_by_its_category(records, found):
    alone = examined(records / SECOND)
    for name in (ON_WIDE, PRIOR):
        assert value(alone, name, "layer 20") == value(found, name, "layer 20")


def test_without_matrices_js_comes_from_the_analysis(records, found, tmp_path):
    shutil.copytree(records, tmp_path / "in")
    (tmp_path / "in" / FILES[0]).unlink()
    held = examined(tmp_path / "in")
    assert value(held, "JS against leakage")["rho"] == pytest.approx(
        value(found, "JS against leakage")["rho"]
    )
    assert verdict(finding(held, "KL asymmetry")) == STORED


def test_what_is_no_directory_of_records_is_refused(records, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no divergence records; give a directory with"):
        read_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        read_records(tmp_path / "none")
    other = edited(records, tmp_path / "a", FILES[3], lambda held: held["persona_names"].reverse())
    with pytest.raises(ValueError, match="keep records of one study together"):
        read_records(other)
    other = edited(records, tmp_path / "b", FILES[6], lambda held: held.update(source="spy"))
    with pytest.raises(
        ValueError, match="summary.json is of 'spy'; keep each source in a folder of its name"
    ):
        read_records(other)


# what is written --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(records, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "out"
    assert main(["audit", "output_divergence", str(records), "--out", str(out)]) == 0
    return out


def test_the_command_writes_page_table_json_and_the_figures_of_the_study(written):
    assert {"audit.json", "audit.csv", "report.html", "figures"} == {path.name for path in written.iterdir()}
    figures = {path.stem for path in (written / "figures").glob("*.html")}
    assert figures >= {
        "predictors-own-centring", "predictors-wide-centring", "cosine-by-layer", "js-by-selection",
        "js-matrix", "js-against-cosine", "kl-asymmetry", "cosine-matrix", "questions",
    }  # fmt: skip


def test_the_same_records_give_the_same_bytes_wherever_they_lie(records, written, tmp_path):
    shutil.copytree(records, tmp_path / "elsewhere")
    audit("output_divergence", tmp_path / "elsewhere", tmp_path / "out")
    for name in ("audit.json", "audit.csv", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (written / name).read_bytes()
    text = (written / "audit.json").read_text()
    assert str(records) not in text and "NaN" not in text
    held = json.loads(text)
    assert len(held["metadata"]["input_digests"]) == 5 + 2 * len(SOURCES)
    stored = next(f for f in held["findings"] if (f["name"], f["condition"]) == (LIKE, "layer 10"))
    assert stored["recomputed"] is None and stored["stored"]["rho"] == 0.125


def test_the_page_shows_every_table_open_and_the_answers_of_the_extreme_pairs(written):
    text = (written / "report.html").read_text()
    for title in PARTS:
        assert f"{title}: published and recomputed" in text or f"{title}: naive and corrected" in text
    assert "of the nearest pair" in text and "answers Question 0?" in text
    assert "stored only" in text and JS in text


def test_fault_100_an_answer_with_markup_is_shown_and_not_run(records, tmp_path):
    def change(held: Any) -> None:
        for answers in held.values():
            answers[QUESTIONS[0]] = ["</script><script>alert(1)</script>"]

    text = render(audit_records(edited(records, tmp_path / "in", FILES[2], change))[1])
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
