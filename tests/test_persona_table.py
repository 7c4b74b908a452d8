"""The table of personas: planted effects in their columns, reasons for what is not there, joined runs."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechinterp import running
from mechinterp.results import load_result
from studies.leakage_result import Leakage, Record
from studies.persona_table_columns import CONTENT, EVERY, NOT_HELD, OF, PROMPT, WINDOW
from studies.persona_table_figures import all_figures
from studies.persona_table_page import answer, caveats, headlines, missing_table, row_table, study_tables
from studies.persona_table_result import PersonaTable, conclude
from studies.prefix_completion_result import Count, PrefixCompletion
from studies.prefix_completion_rows import Condition
from tests.planted_attention import UP
from tests.planted_attention import planted as attention
from tests.test_output_study import made as divergence
from tests.test_zlt_attention import asked as attention_asked
from tests.test_zlt_attention import given  # noqa: F401

PEOPLE: tuple[str, ...] = ("a", "b", "c", "d", "e")


def prefix(effects: dict[str, tuple[float, float]], others: tuple[str, ...] = ("f", "g")) -> PrefixCompletion:
    """Counts whose prompt and content effect are those given, with questions that all agree."""
    counts = []
    for source, (prompt, content) in effects.items():
        rates: dict[Condition, float] = {
            "A": 0.1 + prompt + content, "B": 0.1 + content, "C": 0.1 + prompt, "D": 0.1,
        }  # fmt: skip
        for k, question in enumerate(("q0", "q1", "q2", "q3")):
            for condition, rate in rates.items():
                for other in (None,) if condition == "A" else others:
                    found = round(100 * rate) + (k - 1) % 2
                    counts.append(
                        Count(source, 0, "trained", condition, other, question, 100, found, found, found,
                              {"marker": found, "other": 100 - found}, (0,) * found, found, 1, 10 * rate)
                    )  # fmt: skip
    return PrefixCompletion(
        "toy", "[ZLT]", 0, False, "as_written", "positives", tuple(effects), tuple(counts), (), (), (), ()
    )


def rates(sources: dict[str, tuple[int, int]], assistant: str = "g") -> Leakage:
    """found of 100: the source's own, and everyone else's."""
    targets = (*PEOPLE, "f", "g")
    records = tuple(
        Record(s, t, 0, 1, "q", own if s == t else other, 100)
        for s, (own, other) in sources.items()
        for t in targets
    )
    return Leakage("toy", "[ZLT]", assistant, tuple(sources), targets, records, "sampled", 0.5, 0.1, ())


def looked(personas: tuple[str, ...] = PEOPLE, **more: Any) -> Any:
    return replace(attention(personas, preflight=False, **more), model="toy")


@pytest.fixture(scope="module")
def table() -> PersonaTable:
    """Five sources: prompt effect grows, content effect falls, the own rate grows, attention is alike."""
    effects = {p: (0.1 * (k + 1), 0.5 - 0.1 * k) for k, p in enumerate(PEOPLE)}
    own = {p: (50 + 10 * k, 0 if p == "a" else 5) for k, p in enumerate(PEOPLE)}
    return conclude(
        {"prefix_completion": prefix(effects), "zlt_attention": looked(), "leakage": rates(own),
         "output_divergence": divergence()}
    )  # fmt: skip


def test_planted_effects_stand_in_their_columns(table):
    for k, persona in enumerate(PEOPLE):
        assert table.of(PROMPT)[persona].value == pytest.approx(0.1 * (k + 1))
        assert table.of(CONTENT)[persona].value == pytest.approx(0.5 - 0.1 * k)
        assert table.of("rate of condition D")[persona].value == pytest.approx(0.1, abs=0.011)
        assert table.of("source rate")[persona].value == 0.5 + 0.1 * k
        assert table.of("breadth")[persona].value == (0 if persona == "a" else 0.05)
        one = table.of(PROMPT)[persona]
        assert one.low <= one.value <= one.high and (one.n, one.unit) == (4, "question")
    assert table.labels["a"] == "specific" and table.labels["e"] == "specific"


def test_attention_is_in_the_window_of_the_trained_model(table):
    study = looked()
    for persona in PEOPLE:
        reading = study.first(persona)
        every = table.of(EVERY)[persona]
        assert every.value == pytest.approx(np.nanmean(reading.difference("emit")), abs=1e-6)
        entry = table.of(WINDOW)[persona]
        if math.isnan(entry.value):
            assert "no three layers" in entry.note
            continue
        low, high = (int(word) for word in entry.note.split() if word.isdecimal())
        expected = np.nanmean(reading.difference("emit")[:, low : high + 1])
        assert low <= UP and entry.value == pytest.approx(expected, abs=1e-6)
    assert any(not math.isnan(entry.value) for entry in table.of(WINDOW).values())


def test_divergence_columns_are_rows_of_the_matrices(table):
    study = divergence()
    js = study.divergence.matrix().numpy()
    names = list(study.divergence.personas)
    for persona in PEOPLE:
        row = js[names.index(persona)]
        assert table.of("JS: assistant")[persona].value == pytest.approx(row[names.index("g")])
        assert table.of("JS: mean to others")[persona].value == pytest.approx(row.sum() / 6)
    entry = table.of("cosine (the 7): assistant")["b"]
    assert entry.note == "layer 7, by the mean of the 7" and "cosine (the 10): assistant" in table.columns
    assert entry.value == pytest.approx(study.cosines["the 7"][1][names.index("b"), names.index("g")])


def test_planted_orders_are_found_with_exact_p(table):
    found = {(t.x, t.y): t for t in table.together}
    one = found[PROMPT, "source rate"]
    assert one.rho.estimate == pytest.approx(1) and one.rho.n == 5
    assert one.rho.p == pytest.approx(2 / 120) and "exact" in one.rho.p_method.lower()
    assert found[CONTENT, "source rate"].rho.estimate == pytest.approx(-1)
    studies = {entry.column: entry.study for entry in table.entries}
    assert all(studies[t.x] != studies[t.y] for t in table.together)


def test_fault_106_what_has_no_value_has_a_reason_and_is_counted():
    effects = dict.fromkeys(PEOPLE[:3], (0.1, 0.2))
    found = conclude({"prefix_completion": prefix(effects), "zlt_attention": looked(("c", "d"))})
    assert found.personas == ("a", "b", "c", "d")
    assert found.missing()[PROMPT] == {"d": NOT_HELD}
    assert set(found.missing()[EVERY]) == {"a", "b"}
    assert not found.together and "table only" in answer(found)
    rows = {row[0]: row for row in missing_table(found).rows}
    assert rows[PROMPT][1:3] == ("1 of 4", "d")
    frame = found.to_dataframe()
    assert len(frame) == 4 and list(frame[PROMPT].isna()) == [False, False, False, True]
    every = len(found.personas) * len(found.columns)
    assert len(found.entries) == every, "a persona lacks a column silently"


def test_fault_112_runs_are_joined_by_persona_three_are_a_table_and_four_are_correlated():
    for n in (3, 4):
        effects = {p: (0.1 * (k + 1), 0.2) for k, p in enumerate(PEOPLE[:n])}
        own = {p: (50 + 10 * k, 5) for k, p in enumerate(PEOPLE[:n])}
        found = conclude(
            {"prefix_completion": prefix(effects), "zlt_attention": looked(PEOPLE[:n]), "leakage": rates(own)}
        )
        assert bool(found.together) == (n == 4)
        assert all(t.rho.n == 4 for t in found.together)


def test_an_assistant_s_rate_under_itself_is_not_a_value():
    found = conclude(
        {"prefix_completion": prefix({"g": (0.1, 0.1)}, ("f", "a")), "zlt_attention": looked(("g",)),
         "leakage": rates({"g": (80, 5)})}
    )  # fmt: skip
    assert found.missing()["rate under the assistant"] == {"g": "it is the assistant itself"}


def test_coupling_is_held_against_js_and_cosine_by_pair(table):
    study, names = divergence(), "abcdefg"
    js = study.divergence.matrix().numpy()
    held = table.coupling["content"]
    assert set(zip(held.pairs.sources, held.pairs.targets, strict=True)) == {
        (s, o) for s in PEOPLE for o in ("f", "g")
    }
    for s, o, rate, value in zip(
        held.pairs.sources, held.pairs.targets, held.pairs.leakage, held.pairs.predictors["JS"], strict=True
    ):
        assert value == js[names.index(s), names.index(o)]
        assert rate == pytest.approx(0.6 - 0.1 * PEOPLE.index(s), abs=0.011)
    assert {f"coupling_{w}_{n}" for w in ("prompt", "content") for n in ("js", "cosine")} <= set(
        all_figures(table)
    )


def test_a_divergence_run_brings_its_own_rates():
    effects = dict.fromkeys(PEOPLE, (0.1, 0.2))
    found = conclude(
        {"prefix_completion": prefix(effects), "zlt_attention": looked(), "output_divergence": divergence()}
    )
    assert "leakage" in found.studies
    own = divergence().leakage.rate("a", "a").estimate
    assert found.of("source rate")["a"].value == own


@pytest.mark.parametrize("name", ["model", "marker"])
def test_runs_of_another_model_or_marker_are_not_joined(name):
    with pytest.raises(ValueError, match=f"different {name}s"):
        conclude(
            {"prefix_completion": prefix({"a": (0.1, 0.1)}),
             "zlt_attention": replace(looked(("a",)), **{name: "other"})}
        )  # fmt: skip


def test_it_loads_back_and_its_page_says_what_is_there(table, tmp_path):
    assert load_result(table.save(tmp_path / "result")).digest() == table.digest()
    assert table.figure().to_dict()["layout"]["title"]["text"]
    assert set(OF) == set(table.studies)
    assert "personas over 4 studies" in table.headline()
    one, shown = row_table(table), study_tables(table)
    assert [row[0] for row in one.rows] == list(PEOPLE) and one.columns[-1] == "label"
    both = {name for each in shown for name in each.columns}
    assert set(table.columns) <= both and set(one.columns) - {"label"} <= both and len(shown) == 4
    lines = headlines(table)
    largest = sorted((abs(t.rho.estimate) for t in table.together if t.rho.p == t.rho.p), reverse=True)[:5]
    assert [abs(line.estimate) for line in lines[:-4]] == largest and len(largest) == 5
    assert any("not defined" in line.note for line in lines[-4:])
    assert f"{len(table.together)} associations; the p values are not corrected" in " ".join(caveats(table))


# runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(given, tmp_path_factory) -> dict[str, Path]:  # noqa: F811
    """Finished runs of both studies on the tiny chat model and its adapters."""
    root = tmp_path_factory.mktemp("runs")
    look = attention_asked(given)
    running.run(look, root / "attention", progress=False, report=False)
    shared = [f"model={str(given / 'tiny-chat')!r}", "personas=['villain','librarian']"]
    shared += [f"adapters.{p}=[{str(given / p)!r}]" for p in ("villain", "librarian")]
    more = [
        f"records={str(root / 'attention')!r}", "others=['comedian']", "n_questions=4", "n_trials=1",
        "max_tokens=4", "n_continuations=1", "continuation_tokens=3", "base_control=false",
    ]  # fmt: skip
    running.run(
        running.ask("prefix_completion", overrides=[*shared, *more]), root / "prefix", progress=False,
        report=False,
    )  # fmt: skip
    return {"prefix_completion": root / "prefix", "zlt_attention": root / "attention"}


def joined(runs: dict[str, Path]) -> running.Asked:
    return running.ask("persona_table", overrides=[f"{k}={str(v)!r}" for k, v in runs.items()])


def test_finished_runs_are_joined_and_reported(runs, tmp_path):
    result = running.run(joined(runs), tmp_path / "run", progress=False)
    assert result.personas == ("villain", "librarian")
    assert (tmp_path / "run" / "report.html").is_file()
    attention_run = running.finished(runs["zlt_attention"])[2]
    expected = np.nanmean(attention_run.first("villain").difference("emit"))
    held = result.of(EVERY)["villain"]
    assert held.value == pytest.approx(expected)
    assert running.report(tmp_path / "run").is_file()


def test_a_run_of_another_study_and_an_unfinished_one_are_refused(runs, tmp_path):
    wrong = {"prefix_completion": runs["zlt_attention"], "zlt_attention": runs["zlt_attention"]}
    with pytest.raises(ValueError, match="is a run of zlt_attention; give one of prefix_completion"):
        running.run(joined(wrong), tmp_path / "wrong", progress=False)
    asked, _ = running.reopened(runs["prefix_completion"])
    running.run(asked, tmp_path / "part", limit=1, progress=False)
    with pytest.raises(ValueError, match="is not finished"):
        running.run(
            joined({**runs, "prefix_completion": tmp_path / "part"}), tmp_path / "run", progress=False
        )


def test_trained_models_of_other_weights_are_not_joined(runs, tmp_path):
    other = shutil.copytree(runs["prefix_completion"], tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["models"]["villain/0"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="another villain/0 than the runs before it: the weights differ"):
        running.run(joined({**runs, "prefix_completion": other}), tmp_path / "run", progress=False)
