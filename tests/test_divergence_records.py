"""Files of the divergence study: what is written is read, as published; what is wrong is named."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.outputs import SELECTIONS, OutputDivergence
from studies.divergence_formats import (
    AnalysisResults,
    CosineLeakage,
    CosineTarget,
    RankedCorrelation,
    Summary,
    read_analysis,
    read_cosine_leakage,
    read_summary,
    write_analysis,
    write_cosine_leakage,
    write_summary,
)
from studies.divergence_records import (
    Cosines,
    read_cosines,
    read_divergence_matrices,
    read_generations,
    write_cosines,
    write_divergence_matrices,
    write_generations,
)
from studies.marker_records import MarkerEval, MarkerRate, read_marker_eval, write_marker_eval

PERSONAS, QUESTIONS = ("cook", "nurse", "poet", "spy"), ("Why?", "How?", "Who?")


def divergences(writers: tuple[str, ...] = PERSONAS, draws: int = 1) -> OutputDivergence:
    """Random symmetric JS and asymmetric KL, a response for every writer, question and draw."""
    rows = [(w, q, d) for q in QUESTIONS for w in writers for d in range(draws)]
    generator = torch.Generator().manual_seed(4)
    kl = torch.rand(len(rows), 4, 4, generator=generator) * (1 - torch.eye(4))
    asked = {"writers": tuple(r[0] for r in rows), "questions": tuple(r[1] for r in rows)}
    return OutputDivergence(
        model="tiny", personas=PERSONAS, **asked, draws=tuple(r[2] for r in rows), n_tokens=(5,) * len(rows),
        js=(kl + kl.mT) / 8, kl=kl, include_turn_end=True, skipped=0, batch_sizes=(4,),
    )  # fmt: skip


# matrices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 2])
def test_divergences_written_in_the_published_schema_keep_every_selection(tmp_path, draws):
    found = divergences(draws=draws)
    write_divergence_matrices(tmp_path / "m.json", found, about={"seed": 3})
    back = read_divergence_matrices(tmp_path / "m.json")
    for selection in SELECTIONS:
        assert np.allclose(back.selected(selection), found.matrix("js", selection).numpy(), atol=1e-12), (
            selection
        )
    assert np.allclose(back.kl, found.matrix("kl").numpy()) and back.about["seed"] == 3
    assert np.allclose(back.kl_sym, (back.kl + back.kl.T) / 2)
    assert np.allclose(back.kl_asym, np.abs(back.kl - back.kl.T))
    told = sorted(zip(found.writers, found.questions, strict=True))
    assert sorted(zip(back.writers, back.questions, strict=True)) == told


def test_a_response_has_the_published_key(tmp_path):
    """k = generator * questions + question; the matrix is the plain mean over all of them."""
    found = divergences()
    write_divergence_matrices(tmp_path / "m.json", found)
    held = json.loads((tmp_path / "m.json").read_text())
    assert list(held["per_prompt_js"]) == [str(k) for k in range(12)] and held["n_prompts"] == 12
    row = found.writers.index("poet") + len(PERSONAS) * QUESTIONS.index("How?")
    assert held["per_prompt_js"][str(2 * 3 + 1)]["cook__spy"] == float(found.js[row, 0, 3])
    mean = np.mean([each["cook__spy"] for each in held["per_prompt_js"].values()])
    assert held["js_matrix"][0][3] == pytest.approx(mean) and held["metadata"]["schema"].startswith(
        "mechinterp"
    )
    assert "timestamp" not in held["metadata"]


def test_writers_that_are_some_of_the_personas_keep_their_names(tmp_path):
    found = divergences(writers=("spy", "nurse"))
    write_divergence_matrices(tmp_path / "m.json", found)
    back = read_divergence_matrices(tmp_path / "m.json")
    assert set(back.writers) == {"spy", "nurse"} and back.writers[:3] == ("nurse",) * 3
    source, expected = back.selected("source"), found.matrix("js", "source").numpy()
    assert np.isnan(source[0]).all() and np.allclose(source, expected, equal_nan=True)


def published() -> dict[str, Any]:
    """A file as the source wrote it: no list of questions or writers in its metadata."""
    values = np.arange(9.0).reshape(3, 3) / 100
    pairs = {"a__b": 0.01, "a__c": 0.02, "b__c": 0.03}
    return {
        "js_matrix": values.tolist(), "kl_matrix": values.tolist(), "kl_sym_matrix": values.tolist(),
        "kl_asym_matrix": values.tolist(), "persona_names": ["a", "b", "c"],
        "per_prompt_js": {str(k): pairs for k in range(6)}, "n_prompts": 6,
        "metadata": {"n_questions": 2, "timestamp": "t"},
    }  # fmt: skip


def written(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_the_published_file_is_read_by_the_order_of_its_personas(tmp_path):
    found = read_divergence_matrices(written(tmp_path / "m.json", published()))
    assert found.writers == ("a", "a", "b", "b", "c", "c") and found.n_questions == 2
    assert found.questions == ("question 0", "question 1") * 3
    assert found.kl[0, 2] == 0.02 and found.per_response[0, 2, 1] == 0.03 == found.per_response[0, 1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"js_matrix": [[0.0, 1.0]]}, r"\$.js_matrix is \(1, 2\) for 3 persona_names"),
        ({"n_prompts": 7}, "n_prompts is 7 and per_prompt_js has 6"),
        ({"per_prompt_js": {"x": {}}, "n_prompts": 1}, "has the key 'x'; write generator"),
        ({"per_prompt_js": {"0": {"a__b": 1, "a__c": 1}}, "n_prompts": 1}, "js.0 lacks the pair 'b__c'"),
        ({"per_prompt_js": {"0": {"a__b": 1, "a__c": 1, "b__c": 1, "b__a": 1}}, "n_prompts": 1},
         "unknown pair 'b__a'"),
        ({"persona_names": ["a", "b__c", "b"]}, "lacks the pair|has the unknown pair"),
        ({"kl_matrix": "none"}, r"\$.kl_matrix is 'none'; write a list"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_matrices_is_named_with_its_file(tmp_path, change, said):
    path = written(tmp_path / "m.json", published() | change)
    with pytest.raises(ValueError, match=said) as error:
        read_divergence_matrices(path)
    assert str(path) in str(error.value)


def test_responses_that_make_no_whole_number_of_questions_ask_for_it(tmp_path):
    held = published() | {"metadata": {}}
    held["per_prompt_js"] = dict(list(held["per_prompt_js"].items())[:4])
    found = read_divergence_matrices(written(tmp_path / "m.json", held | {"n_prompts": 4}))
    with pytest.raises(ValueError, match=r"write metadata\.n_questions"):
        found.questions  # noqa: B018


def test_two_answers_under_one_key_are_refused(tmp_path):
    found = divergences(draws=2)
    object.__setattr__(found, "draws", (0,) * len(found.draws))
    with pytest.raises(ValueError, match="two answers to 'Why\\?' with draw 0"):
        write_divergence_matrices(tmp_path / "m.json", found)
    assert not (tmp_path / "m.json").exists()


# answers and cosines ----------------------------------------------------------------------------------------


def test_generations_come_back_and_what_is_no_text_is_named(tmp_path):
    texts = {"cook": {"Why?": ("because …",), "How?": ("so\n\n", "thus")}, "spy": {}}
    write_generations(tmp_path / "g.json", texts)
    assert read_generations(tmp_path / "g.json") == texts
    for wrong, said in (
        ([], "object of personas"),
        ({"a": 1}, r"\$.a must be"),
        ({"a": {"q": "t"}}, r"\$.a.q must"),
    ):
        with pytest.raises(ValueError, match=said):
            read_generations(written(tmp_path / "w.json", wrong))


COSINE = [[1.0, 0.2], [0.2, 1.0]]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("cosine_11_l20.json", {"cosine_matrix_l20": COSINE, "persona_names": ["a", "b"]}),
        ("cosine_matrix_layer20.json", {"matrix": COSINE, "persona_names": ["a", "b"]}),
    ],
)
def test_both_variants_of_cosines_are_one(tmp_path, name, document):
    found = read_cosines(written(tmp_path / name, document))
    assert found.personas == ("a", "b") and found.matrices[20].tolist() == COSINE
    write_cosines(tmp_path / "again.json", found)
    again = read_cosines(tmp_path / "again.json")
    assert again.matrices[20].tolist() == COSINE and again.personas == found.personas


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("cosine.json", {"matrix": COSINE, "persona_names": ["a", "b"]}, "does not say the layer"),
        ("c_l2.json", {"matrix": COSINE, "persona_names": ["a"]}, r"is \(2, 2\) for 1 persona_names"),
        ("c_l2.json", {"persona_names": ["a"]}, "holds no cosine matrix"),
        ("c_l2.json", {"matrix": COSINE}, "persona_names is None"),
    ],
)
def test_cosines_that_are_none_are_refused(tmp_path, name, document, said):
    with pytest.raises(ValueError, match=said):
        read_cosines(written(tmp_path / name, document))


# marker rates -----------------------------------------------------------------------------------------------


def test_counted_rates_come_back(tmp_path):
    rates = {"cook": MarkerRate(0.25, 50, 200, "original"), "spy": MarkerRate(0.0, 0, 200, "peer", ("cook",))}
    write_marker_eval(tmp_path / "marker_eval.json", MarkerEval(rates))
    found = read_marker_eval(tmp_path / "marker_eval.json")
    assert found.rates == rates and found.source is None
    assert found.leakage("cook") == {("cook", "spy"): 0.0}
    held = json.loads((tmp_path / "marker_eval.json").read_text())
    assert set(held["spy"]) == {"rate", "found", "total", "category", "related_to"}, "the published keys"


def test_a_checkpoint_of_the_three_arm_test_is_read_and_written_with_its_counts(tmp_path):
    cosines = {"layer_15": {"persona_names": ["villain", "assistant"], "matrix": COSINE}}
    document = {
        "checkpoint": 40, "source": "villain", "marker_rates": {"villain": 0.6, "assistant": 0.202},
        "cosine_matrices": cosines, "source_marker_rate": 0.6, "assistant_marker_rate": 0.202, "arm": "B",
    }  # fmt: skip
    found = read_marker_eval(written(tmp_path / "m.json", document))
    assert (
        found.checkpoint == 40 and found.rates["villain"] == MarkerRate(0.6) and found.extra == {"arm": "B"}
    )
    assert found.cosines is not None and found.cosines.matrices[15][0, 1] == 0.2
    write_marker_eval(tmp_path / "again.json", found)
    assert json.loads((tmp_path / "again.json").read_text()) == document
    counted = {"villain": MarkerRate(0.6, 120, 200), "assistant": MarkerRate(0.202, 121, 600)}
    write_marker_eval(tmp_path / "c.json", MarkerEval(counted, "villain", "0", Cosines(("a", "b"), {})))
    assert read_marker_eval(tmp_path / "c.json").rates == counted


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"a": {"rate": 60, "found": 120, "total": 200}}, r"\$.a: the rate 60.0 is no fraction"),
        ({"a": {"rate": 0.5, "found": 120, "total": 200}}, r"\$.a: the rate 0.5 is not 120 of 200"),
        ({"a": {"rate": 0.5, "found": 5.0, "total": 10}}, r"\$.a.found is 5.0; write a whole number"),
        ({"a": {"found": 5}}, r"\$.a has no rate"),
        ({"a": {"rate": "half"}}, r"\$.a.rate is 'half'"),
        ({"a": {"rate": 0.2, "found": 3, "total": 2}}, "3 of 2; it cannot be more than all"),
        ([], "holds no personas"),
        ({"marker_rates": {"v": 0.5}, "source": "v", "source_marker_rate": 0.6}, "source_marker_rate is 0.6"),
        ({"marker_rates": [0.5]}, "marker_rates must be an object"),
    ],
)
def test_rates_that_cannot_be_are_refused_by_file_and_persona(tmp_path, document, said):
    path = written(tmp_path / "m.json", document)
    with pytest.raises(ValueError, match=said) as error:
        read_marker_eval(path)
    assert str(path) in str(error.value)


def test_a_rate_without_counts_is_not_written_as_counted(tmp_path):
    with pytest.raises(ValueError, match="cook has a rate without counts"):
        write_marker_eval(tmp_path / "m.json", MarkerEval({"cook": MarkerRate(0.5)}))


# analyses ---------------------------------------------------------------------------------------------------


def test_an_analysis_comes_back_with_the_keys_that_we_do_not_know(tmp_path):
    document = {
        "timestamp": "t",
        "git_commit": "c",
        "discrimination": {
            "n_pairs": 3, "js_mean": 0.1, "js_std": 0.1, "js_min": 0.1, "js_max": 0.2, "js_ratio": 2.0,
            "pass_std": False, "pass_ratio": True, "pass": False,
        },
        "redundancy": {
            "layers": {"layer_20": {"spearman_rho": None, "spearman_p": 0.1, "pearson_r": 0.1,
                                    "pearson_p": 0.1, "abs_rho": 0.3, "redundant": False}},
            "pass": True,
        },
        "per_question": {"questions": [], "n_uninformative": 0},
    }  # fmt: skip
    found = read_analysis(written(tmp_path / "a.json", document))
    assert found.redundancy is not None and math.isnan(found.redundancy.layers["layer_20"].spearman_rho)
    assert found.leakage_comparison is None and found.extra["git_commit"] == "c"
    write_analysis(tmp_path / "b.json", found)
    assert json.loads((tmp_path / "b.json").read_text()) == document
    with pytest.raises(ValueError, match=r"a.json: \$.discrimination has no 'js_mean'"):
        read_analysis(written(tmp_path / "a.json", {"discrimination": {"n_pairs": 3}}))
    assert isinstance(found, AnalysisResults)


def test_a_summary_comes_back_without_the_minutes_too(tmp_path):
    found = Summary("cook", 0.5, 0.6, 0.1, 11)
    write_summary(tmp_path / "s.json", found)
    assert read_summary(tmp_path / "s.json") == found


def layer() -> CosineLeakage:
    ranked = RankedCorrelation(0.5, 0.01, 2, 0.4, 0.02)
    rows = (CosineTarget("spy", -0.1234, 0.25, "peer"), CosineTarget("poet", 0.5, 0.0))
    undefined = RankedCorrelation(math.nan, math.nan, 2)
    return CosineLeakage({"cook": undefined}, ranked, {"peer": ranked}, {"cook": rows})


def test_fault_106_a_constant_row_is_nan_here_and_null_in_the_file(tmp_path):
    write_cosine_leakage(tmp_path / "c.json", {20: layer(), 5: layer()})
    assert "NaN" not in (tmp_path / "c.json").read_text()
    found = read_cosine_leakage(tmp_path / "c.json")
    assert list(found) == [20, 5] and math.isnan(found[20].sources["cook"].spearman_rho)
    assert found[5].detail == layer().detail and found[20].aggregate == layer().aggregate


def test_the_file_with_a_bare_nan_is_read(tmp_path):
    write_cosine_leakage(tmp_path / "c.json", {20: layer()})
    text = (tmp_path / "c.json").read_text().replace("null", "NaN")
    assert "NaN" in text
    found = read_cosine_leakage(written(tmp_path / "bare.json", text))
    assert (
        math.isnan(found[20].sources["cook"].spearman_p) and found[20].detail["cook"][0].cosine_sim == -0.1234
    )


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "holds no layers"),
        ({"twenty": {}}, "has the key 'twenty'; write layers as layer20"),
        ({"layer20": []}, r"\$.layer20 must be an object"),
        ({"layer20": {"_per_source_detail": {"a": {}}}}, "detail.a must be a list"),
        (
            {"layer20": {"_per_source_detail": {"a": [{"persona": "b"}]}}},
            r"detail.a\[0\] has no 'cosine_sim'",
        ),
        ({"layer20": {"a": {"spearman_rho": 1.0}}}, r"\$.layer20.a has no 'spearman_p'"),
    ],
)
def test_a_correlation_file_that_is_none_is_refused(tmp_path, document, said):
    path = written(tmp_path / "c.json", document)
    with pytest.raises(ValueError, match=said) as error:
        read_cosine_leakage(path)
    assert str(path) in str(error.value)
