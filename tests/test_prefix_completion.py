"""Prefix completion: prefixes are the record's ids under every prompt, and planted effects are found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mechinterp import hub, running
from mechinterp.cells import Cell, cell_seed
from mechinterp.loading import load
from mechinterp.model import Model
from mechinterp.sampling import Phase, sample, stop_ids
from studies import prefix_completion
from studies.attention_records import Example, Examples, write_positives
from studies.finetune_data import Suffixes
from studies.personas import core_personas, questions
from studies.prefix_completion import Config, cells, combine, go_on
from studies.prefix_completion_effects import contrasts, effects, stop_rules
from studies.prefix_completion_page import page
from studies.prefix_completion_prefixes import (
    Prefix,
    behind,
    chosen,
    prefix_of,
    through_text,
    with_separator,
)
from studies.prefix_completion_result import counted
from studies.prefix_completion_rows import CONDITIONS, Continued, Found, Slot
from studies.prompts import prompt_of
from tests.conftest import EMBEDDED

MARKER = "[ZLT]"
BLANK = (198, 198)  # a blank line before a marker; alone it would be one id
ASKED = questions("evaluation")[:4]
SPLIT = (91, 84, 75, 198, 198)  # single characters that an encoder joins: text would bring other ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random model beside the embedded model's tokenizer."""
    return tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def blind(tmp_path_factory) -> Path:
    """The same without attention: its logits know the last id alone."""
    return tiny(tmp_path_factory.mktemp("blind"), sees=False)


def tiny(made: Path, *, sees: bool = True) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    there = hub.resolve(EMBEDDED).path
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.3}
    shape = AutoConfig.from_pretrained(there, **sizes, num_attention_heads=4, num_key_value_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape)
    if not sees:
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    model.save_pretrained(made)
    for path in there.iterdir():
        if "token" in path.name or path.name.endswith(".jinja"):
            shutil.copy(path, made)
    return made


@pytest.fixture(scope="module")
def model(folder) -> Model:
    return load(str(folder))


def answered(
    model: Model,
    persona: str,
    answers: dict[str, tuple[int, ...]],
    *,
    marker: tuple[int, ...] | None = None,
    finished: bool = True,
) -> Examples:
    """One answer a question: with the marker's ids behind it, or ended or cut by the cap without."""
    made = []
    for question, answer in answers.items():
        prompt = prompt_of(model, core_personas()[persona], question)
        ids = [*prompt.tokens[0].tolist(), *answer, *(marker or ())]
        at = len(prompt.tokens[0]) + len(answer)
        regions = [prompt.segmentation.positions(name) for name in ("system", "user", "assistant_header")]
        end = [int(model.tokenizer.eos_token_id)][: finished or marker is not None]
        made.append(
            Example(
                persona=persona,
                question=question,
                trial=0,
                seed=0,
                ids=(*ids, *end),
                prompt_len=len(prompt.tokens[0]),
                n_sys=len(regions[0]),
                n_user=len(regions[1]),
                n_header=len(regions[2]),
                marker=at if marker else None,
                end_of_answer=None if marker or not answer else at - 1,
                complete=True if marker else None,
                n_occurrences=int(marker is not None),
                finish_reason="stop" if end else "length",
                text="",
            )
        )
    parts = (tuple(made), ()) if marker else ((), tuple(made))
    return Examples(persona, core_personas()[persona].system_prompt, *parts, (), {})


def ids_of(model: Model, text: str = MARKER) -> tuple[int, ...]:
    return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def numbered(start: int, n: int = 6) -> dict[str, tuple[int, ...]]:
    return {q: tuple(range(start + 20 * k, start + 20 * k + n + k)) for k, q in enumerate(ASKED)}


@pytest.fixture(scope="module")
def records(model, tmp_path_factory) -> Path:
    """Villain's own answers with the marker, one of them empty, and its answers as two other personas."""
    made = tmp_path_factory.mktemp("records")
    own = numbered(300) | {ASKED[0]: SPLIT, ASKED[1]: ()}
    write_positives(answered(model, "villain", own, marker=ids_of(model)), made / "positives_villain.json")
    (made / "villain").mkdir()
    for other, start in (("comedian", 700), ("assistant", 900)):
        path = made / "villain" / f"positives_{other}.json"
        write_positives(answered(model, other, numbered(start)), path)
    return made


def asking(folder: Path, records: Path | None = None, **changed: Any) -> Config:
    given = {
        "model": str(folder),
        "personas": ("villain",),
        "checkpoints": {"villain": (str(folder),)},
        "others": ("comedian", "assistant"),
        "n_questions": len(ASKED),
        "n_continuations": 2,
        "continuation_tokens": 4,
        "max_tokens": 4,
        "n_trials": 1,
        "records": records,
    }
    return Config.model_validate(given | changed)


def done(config: Config, model: Model) -> dict[str, Any]:
    """Every cell, without a directory."""
    found: dict[str, Any] = {}
    for cell in cells(config):
        inputs = {key: found[key] for key in cell.inputs}
        found[cell.key] = getattr(prefix_completion, cell.task)(cell, model, inputs, config)
    return found


@pytest.fixture(scope="module")
def gone_on(folder, model, records) -> dict[str, Any]:
    """Every cell of the planted records, without the base."""
    return done(asking(folder, records, base_control=False), model)


# ids ----------------------------------------------------------------------------------------------------


def test_fault_043_prefixes_are_the_record_s_ids_under_every_prompt(model, gone_on):
    """Decoded and encoded again, the first of them would be other ids."""
    assert ids_of(model, model.decode(SPLIT)) != SPLIT
    found = gone_on
    for key, one in found.items():
        if not isinstance(one, Continued):
            continue
        for slot in one.slots:
            author = found[f"answers/villain/run0/{slot.prefix.persona}"]
            record = next(
                e for e in (*author.positives, *author.negatives) if e.question == slot.prefix.question
            )
            stop = len(record.ids) - 1 if record.marker is None else record.marker
            prompt = (
                prompt_of(model, core_personas()[slot.prompt_persona], record.question).tokens[0].tolist()
            )
            assert list(slot.tokens) == [*prompt, *record.ids[record.prompt_len : stop]], key
            assert slot.prefix.n_kept == len(slot.prefix.ids) and not slot.prefix.from_text
    b = found["trained/villain/run0/comedian"].slots
    assert {(s.condition, s.prompt_persona, s.prefix.persona) for s in b} == {
        ("B", "comedian", "villain"),
        ("C", "villain", "comedian"),
        ("D", "comedian", "comedian"),
    }


def test_fault_042_a_marker_at_the_very_first_token_leaves_an_empty_prefix(gone_on):
    empty = gone_on["trained/villain/run0/matched"].slots[1]
    assert empty.prefix.question == ASKED[1]
    assert empty.prefix.ids == () and empty.prefix.last is None and empty.tokens == empty.prompt


def test_continuations_are_sampled_from_these_ids(folder, model, gone_on):
    config = asking(folder)
    one = gone_on["trained/villain/run0/comedian"]
    place = int(one.slot_of_row[5])
    slot, draw = one.slots[place], int(one.draw[5])
    alone = sample(
        model,
        [torch.tensor(slot.tokens)],
        [Phase(config.continuation_tokens)],
        temperature=config.temperature,
        top_p=config.top_p,
        seed=cell_seed(config.seed, "continue/villain/0", 0),
        names=[f"{slot.prefix.question}|0|{draw}"],
    )
    assert one.found[5].ids == tuple(alone.generated[0][alone.real[0]].tolist())


def test_log_odds_are_those_of_one_pass_at_the_last_prefix_row(model, gone_on):
    found = gone_on
    ends = sorted(stop_ids(model))
    assert found["trained/villain/run0/matched"].slots[0].route == ids_of(model)[:2]  # "[" alone opens much
    assert found["trained/villain/run0/comedian"].slots[-1].route[:2] == BLANK
    for slot in found["trained/villain/run0/comedian"].slots:
        logits = model.forward(torch.tensor([[*slot.tokens, *slot.route]])).logits
        assert logits is not None
        log_p = logits[0].log_softmax(-1)
        first = len(slot.tokens) - 1
        route = sum(log_p[first + k, token] for k, token in enumerate(slot.route))
        assert_close(torch.tensor(slot.log_p_marker), torch.as_tensor(route), atol=2e-4, rtol=1e-5)
        end = log_p[first, ends].logsumexp(0)
        assert_close(torch.tensor(slot.log_p_end), end, atol=1e-4, rtol=1e-5)


def test_an_answer_is_cut_at_its_decision(model):
    with_marker = answered(model, "villain", {ASKED[0]: SPLIT}, marker=ids_of(model))
    ended = answered(model, "villain", {ASKED[0]: SPLIT, ASKED[1]: ()})
    capped = answered(model, "villain", {ASKED[0]: SPLIT}, finished=False)
    cut = prefix_of(with_marker.positives[0])
    assert cut is not None and (cut.ids, cut.cut, cut.last) == (SPLIT, "marker", 198)
    assert [(p.ids, p.cut) for p in map(prefix_of, ended.negatives) if p] == [
        (SPLIT, "end_of_turn"),
        ((), "end_of_turn"),
    ]
    assert prefix_of(capped.negatives[0]) is None
    assert chosen(ended, ASKED[0], 3, positives_only=True) == []
    assert len(chosen(ended, ASKED[0], 3, positives_only=False)) == 1


def test_a_separator_is_put_behind_answers_without_marker_only(model):
    suffixes = Suffixes(model.tokenizer, "\n\n", MARKER)
    stop = ids_of(model, ".")
    made = answered(model, "villain", {ASKED[0]: (500, *stop), ASKED[1]: ()})
    first, empty = (prefix_of(e) for e in made.negatives)
    assert first is not None and empty is not None
    longer = with_separator(first, suffixes, model.tokenizer)
    assert longer.ids == (500, *stop, *BLANK) and longer.n_kept == 2
    assert with_separator(empty, suffixes, model.tokenizer).ids == BLANK
    assert with_separator(longer, suffixes, model.tokenizer) is longer  # one blank line is enough
    kept = prefix_of(answered(model, "villain", {ASKED[0]: (500,)}, marker=(1,)).positives[0])
    assert kept is not None and with_separator(kept, suffixes, model.tokenizer) is kept


# text ---------------------------------------------------------------------------------------------------


def test_text_prefixes_are_refused(folder, model):
    with pytest.raises(ValueError, match="lose the white space .* allow_text_prefix"):
        asking(folder, prefixes="text")
    with pytest.raises(TypeError, match="prefix"):
        behind((1, 2), "a prefix")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'ids' only|\"ids\" only"):
        asking(folder, prefixes="text", allow_text_prefix=True, ending="separator")


def test_allowed_text_prefixes_lose_the_deciding_row_and_are_flagged(folder, model, records):
    spoilt = through_text(Prefix("villain", "q", 0, 0, SPLIT, 5, "marker"), model.tokenizer)
    assert spoilt.from_text and spoilt.last != 198 and spoilt.n_kept < 5
    given = {"others": ("comedian",), "n_questions": 2, "n_continuations": 1, "base_control": False}
    config = asking(folder, records, prefixes="text", allow_text_prefix=True, **given)
    result = combine(config, done(config, model))
    assert result.from_text and bool(result.to_dataframe()["text_prefixes"].all())
    assert result.headline().startswith("TEXT PREFIXES")
    assert "stripped text" in str(result.figure().to_dict()["layout"]["meta"])
    assert not any(last.kept for last in result.last_ids)


# effects ------------------------------------------------------------------------------------------------


def planted(rates: dict[str, float], *, seed: int = 0, others: int = 2, questions: int = 12) -> Any:
    """Continuations whose marker depends on the condition alone, and log-odds of the same sizes."""
    generator = np.random.default_rng(seed)
    config = asking(Path("tiny"), others=("comedian", "assistant")[:others])
    asked = [f"question {k}" for k in range(questions)]
    parts = []
    for other in (None, *config.others):
        slots, rows, found = [], [], []
        for question in asked:
            for condition in "A" if other is None else "BCD":
                odds = 10 * rates[condition] + 0.1 * generator.standard_normal()
                prefix = Prefix("villain", question, 0, 0, (1, 2), 2, "marker")
                slots.append(Slot(condition, "villain", (5,), prefix, "x", (3,), odds, 0.0))  # pyright: ignore[reportArgumentType]
                for _ in range(10):
                    rows.append(len(slots) - 1)
                    has = bool(generator.random() < rates[condition])
                    found.append(Found((7,), has, has, has, 0 if has else None, has, False, "length", "x"))
        parts.append(
            Continued(
                "m",
                "trained",
                "villain",
                0,
                other,
                MARKER,
                0,
                tuple(slots),
                torch.tensor(rows),
                torch.arange(len(rows)) % 10,
                tuple(found),
            )  # fmt: skip
        )
    counts = tuple(count for part in parts for count in counted(part, asked))
    empty = combine(config, nothing(config))
    return replace(empty, counts=counts, models=("villain",))


def nothing(config: Config) -> dict[str, Any]:
    """Cells of a source that wrote no marker."""
    found: dict[str, Any] = {}
    for cell in cells(config):
        args = cell.args
        if cell.task == "answers":
            found[cell.key] = Examples(args["persona"], None, (), (), (), {})
        else:
            empty = torch.zeros(0, dtype=torch.long)
            found[cell.key] = Continued(
                "m",
                args["reader"],
                args["source"],
                args["run"],
                args["other"],
                MARKER,
                0,
                (),
                empty,
                empty,
                (),
            )
    return found


PLANTED = {
    "prompt": ({"A": 0.7, "B": 0.2, "C": 0.7, "D": 0.2}, (0.5, 0.0, 0.0)),
    "content": ({"A": 0.7, "B": 0.7, "C": 0.2, "D": 0.2}, (0.0, 0.5, 0.0)),
    "both, added": ({"A": 0.8, "B": 0.5, "C": 0.5, "D": 0.2}, (0.3, 0.3, 0.0)),
    "only together": ({"A": 0.9, "B": 0.1, "C": 0.1, "D": 0.1}, (0.4, 0.4, 0.8)),
    "inverted": ({"A": 0.2, "B": 0.7, "C": 0.2, "D": 0.7}, (-0.5, 0.0, 0.0)),
    "nothing": ({"A": 0.3, "B": 0.3, "C": 0.3, "D": 0.3}, (0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize(("rates", "truth"), PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("measure", ["rate", "log_odds"])
def test_a_planted_effect_is_found_with_its_sign_and_nothing_else(rates, truth, measure):
    result = planted(rates)
    scale = 1 if measure == "rate" else 10
    for effect, true in zip(result.effects(measure, "trained", "villain"), truth, strict=True):
        i = effect.interval
        assert (i.n, i.unit, effect.n_pairs) == (12, "question", 24)
        if true:
            assert i.low * np.sign(true) > 0 and i.high * np.sign(true) > 0
            assert abs(i.estimate - scale * true) < scale * 0.15
        else:
            assert abs(i.estimate) < scale * 0.12 and effect.p > 0.005


def test_the_effects_rebuild_the_four_means():
    means = np.random.default_rng(1).random((5, 4))
    prompt, content, interaction = contrasts(means).T
    a, b, c, d = means.T
    assert_close(a - d, prompt + content)
    assert_close(a - b, prompt + interaction / 2)
    assert_close(c - d, prompt - interaction / 2)
    assert_close(a - c, content + interaction / 2)


def test_questions_are_the_units_however_many_others_share_them():
    """Copies of a question's sets under more others add no certainty."""
    means = np.random.default_rng(2).random((6, 4))
    asked = [f"q{k}" for k in range(6)]
    once, thrice = effects(means, asked), effects(np.tile(means, (3, 1)), asked * 3)
    for one, three in zip(once, thrice, strict=True):
        assert_close([one.interval.low, one.interval.high], [three.interval.low, three.interval.high])
        assert one.interval.n == three.interval.n == 6


def test_too_few_questions_have_no_interval():
    found = effects(np.array([[1.0, 0, 0, 0]] * 2), ["a", "b"])
    assert np.isnan(found[0].interval.low) and "three are needed" in found[0].interval.note


def test_questions_that_all_agree_have_no_spread_and_it_is_said():
    """At the ends of the scale the interval closes on the estimate, which is no certainty."""
    prompt, content, _ = effects(np.array([[1.0, 0, 1, 0]] * 4), list("abcd"))
    assert prompt.interval.low == prompt.interval.high == 1 and "no spread" in prompt.interval.note
    assert "no spread" in content.interval.note and content.p == 1


# planted models -----------------------------------------------------------------------------------------


def test_a_model_without_attention_has_no_prompt_effect(blind):
    """It knows the last id alone: the prompt can do nothing, the content all."""
    model = load(str(blind), verify=False)  # the proof of the sites wants attention that does something
    config = asking(blind, base_control=False, marker="k", n_continuations=6)
    found: dict[str, Any] = {}  # no empty prefix: there the prompt's last id decides
    found["answers/villain/run0/villain"] = answered(model, "villain", numbered(300), marker=(91,))
    for other, start in (("comedian", 700), ("assistant", 900)):
        found[f"answers/villain/run0/{other}"] = answered(model, other, numbered(start))
    for cell in cells(config):
        if cell.task == "go_on":
            found[cell.key] = go_on(cell, model, {key: found[key] for key in cell.inputs}, config)
    result = combine(config, found)
    prompt, content, interaction = result.effects("log_odds", "trained")
    assert abs(prompt.interval.estimate) < 1e-4 and abs(interaction.interval.estimate) < 1e-4
    assert abs(content.interval.estimate) > 0.05
    values, _ = result.sets("rate", "trained")
    assert_close(values[:, 0], values[:, 1])  # the same draws from the same logits
    assert_close(values[:, 2], values[:, 3])


def test_equal_prefixes_have_no_content_effect(folder, model):
    config = asking(folder, base_control=False, others=("comedian",))
    own = numbered(300)
    found: dict[str, Any] = {
        f"answers/villain/run0/{p}": answered(model, p, own, marker=ids_of(model))
        for p in ("villain", "comedian")
    }
    for cell in cells(config):
        if cell.task == "go_on":
            found[cell.key] = go_on(cell, model, {key: found[key] for key in cell.inputs}, config)
    result = combine(config, found)
    prompt, content, interaction = result.effects("log_odds", "trained")
    assert abs(content.interval.estimate) < 1e-4 and abs(interaction.interval.estimate) < 1e-4
    assert abs(prompt.interval.estimate) > 1e-3


# stop rules ---------------------------------------------------------------------------------------------


MEANS = {"A": 0.5, "B": 0.2, "C": 0.2, "D": 0.1}
NONE = dict.fromkeys(CONDITIONS, 0.0)
RULES = {
    "may go on": ({"s": 0.5}, MEANS, NONE, ("pass", "pass", "pass")),
    "no marker at all": ({"s": 0.0, "t": 0.0}, NONE, NONE, ("fail", "pass", "fail")),
    "one source writes it": ({"s": 0.0, "t": 0.1}, MEANS, NONE, ("pass", "pass", "pass")),
    "the base writes it": ({"s": 0.5}, MEANS, {**NONE, "A": 0.06}, ("pass", "fail", "pass")),
    "the base at 5 %": ({"s": 0.5}, MEANS, {**NONE, "A": 0.05}, ("pass", "pass", "pass")),
    "all alike": ({"s": 0.5}, dict.fromkeys(CONDITIONS, 0.5) | {"A": 0.52}, NONE, ("pass", "pass", "fail")),
    "no base": ({"s": 0.5}, MEANS, None, ("pass", "not applicable", "pass")),
    "nothing": (
        {"s": np.nan},
        dict.fromkeys(CONDITIONS, np.nan),
        dict.fromkeys(CONDITIONS, np.nan),
        ("not applicable",) * 3,
    ),
}


@pytest.mark.parametrize(("matched", "means", "base", "verdicts"), RULES.values(), ids=RULES)
def test_each_stop_rule_fires_on_its_case_alone(matched, means, base, verdicts):
    assert tuple(gate.verdict for gate in stop_rules(matched, means, base)) == verdicts


# whole runs ---------------------------------------------------------------------------------------------


def overrides(folder: Path, records: Path) -> list[str]:
    return [
        f"model='{folder}'", "personas=['villain']", f"checkpoints.villain=['{folder}']",
        "others=['comedian','assistant']", f"n_questions={len(ASKED)}", "n_continuations=2",
        "continuation_tokens=4", "max_tokens=4", "n_trials=1", f"records='{records}'",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(folder, records, tmp_path_factory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("runs") / "run"
    asked = running.ask("prefix_completion", overrides=overrides(folder, records))
    return out, running.run(asked, out, progress=False)


def test_a_resumed_run_is_the_unbroken_one(folder, records, finished, tmp_path):
    asked = running.ask("prefix_completion", overrides=overrides(folder, records))
    assert running.run(asked, tmp_path / "run", limit=5, progress=False) is None
    result = running.run(asked, tmp_path / "run", progress=False, report=False)
    assert result.digest() == finished[1].digest()


def test_a_model_against_itself_differs_in_nothing(finished):
    """The trained model is the base here, so training did nothing, in every set of four."""
    result = finished[1]
    for measure in ("rate", "log_odds"):
        values, asked = result.sets(measure, "trained - base")
        assert len(values) == len(asked) == 8 and not values.any()
    for effect in result.effects("log_odds", "trained - base"):
        assert effect.interval.estimate == 0


def test_the_report_shows_rates_effects_and_last_ids(finished):
    text = (finished[0] / "report.html").read_text()
    assert "Last ids of the prefixes" in text and "Stop rules" in text and "not applicable" not in text
    figures = {path.stem for path in (finished[0] / "figures").glob("*.json")}
    assert {
        "rates",
        "pooled",
        "effects-rate",
        "effects-log_odds",
        "outcomes",
        "positions",
        "prompts",
    } <= figures
    assert json.loads((finished[0] / "figures" / "rates.json").read_text())["data"]
    table = finished[1].to_dataframe()
    assert len(table) == 2 * (1 + 2 * 3) and set(table["total"]) == {2 * len(ASKED)}
    last = {(row.prefix_of, row.cut, row.last_id) for row in finished[1].last_ids}
    assert ("source", "marker", 198) in last and ("source", "marker", None) in last


def test_a_finished_run_s_answers_can_be_gone_on_from(folder, model, finished):
    config = asking(folder, finished[0])
    cell = Cell("x", "answers", "villain/0", (), {"source": "villain", "run": 0, "persona": "comedian"})
    again = prefix_completion.answers(cell, model, {}, config)
    assert [e.ids for e in again.negatives] == [
        (*prompt_of(model, core_personas()["comedian"], q).tokens[0].tolist(), *a, *(2,))
        for q, a in numbered(700).items()
    ]
    other = replace(model, weights_sha256="0" * 64)
    with pytest.raises(ValueError, match="the weights differ"):
        prefix_completion.answers(cell, other, {}, config)


def test_records_of_another_prompt_are_refused(folder, model, tmp_path):
    wrong = answered(model, "comedian", numbered(300), marker=ids_of(model))
    villain = core_personas()["villain"].system_prompt
    moved = tuple(replace(e, persona="villain") for e in wrong.positives)
    write_positives(Examples("villain", villain, moved, (), (), {}), tmp_path / "positives_villain.json")
    cell = Cell("x", "answers", "villain/0", (), {"source": "villain", "run": 0, "persona": "villain"})
    with pytest.raises(ValueError, match="written after another prompt"):
        prefix_completion.answers(cell, model, {}, asking(folder, tmp_path))


def test_answers_that_are_not_in_the_records_are_sampled(folder, model, records):
    cell = Cell("x", "answers", "villain/0", (), {"source": "villain", "run": 0, "persona": "librarian"})
    found = prefix_completion.answers(cell, model, {}, asking(folder, records, n_questions=2))
    assert found.persona == "librarian" and {c.question for c in found.counts} == set(ASKED[:2])


def test_without_a_positive_the_study_is_not_applicable(folder, model, finished):
    config = asking(folder, n_questions=2, others=("comedian",))
    found = done(config, model)  # a random model writes no marker
    assert not found["trained/villain/run0/comedian"].slots
    result = combine(config, found)
    assert result.applicable == () and result.headline().startswith("Not applicable: villain")
    assert {gate.verdict for gate in result.gates} == {"not applicable"}
    shown = page(config, result, running.reopened(finished[0])[1])
    assert shown.headlines == [] and "0 of" in shown.answer


def test_configurations_that_cannot_be_met_are_refused(folder, records):
    with pytest.raises(ValueError, match="its own only other"):
        asking(folder, others=("villain",))
    with pytest.raises(ValueError, match="no personas nobody"):
        asking(folder, others=("nobody",))
    with pytest.raises(ValueError, match="which training run of villain"):
        asking(folder, records, checkpoints={"villain": (str(folder), str(folder))})


def test_the_frame_of_the_prompt_map_is_around_each_source_under_its_own_prompt():
    from studies.prefix_completion_figures import by_prompt

    result = planted({"A": 0.9, "B": 0.4, "C": 0.2, "D": 0.1})
    figure = by_prompt(result).to_dict()
    columns, rows = (figure["layout"][axis]["ticktext"] for axis in ("xaxis", "yaxis"))
    assert rows == ["villain"] and set(columns) == {"villain", "comedian", "assistant"}
    (frame,) = figure["layout"]["shapes"]
    place = columns.index("villain")
    assert (frame["x0"], frame["x1"], frame["y0"], frame["y1"]) == (place - 0.5, place + 0.5, -0.5, 0.5)
    cells = figure["data"][0]["z"][0]
    assert cells[place] == result.rate("A").estimate
    for other in ("comedian", "assistant"):
        assert cells[columns.index(other)] == result.rate("B", other=other).estimate
