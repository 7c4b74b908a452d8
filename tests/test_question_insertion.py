"""Question insertion: conversations stay on their ids, planted movement is found, likeness is right."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mechinterp import hub, running, study_files
from mechinterp.chat import insert_question, render
from mechinterp.directions import projection
from mechinterp.files import file_sha256
from mechinterp.loading import load
from mechinterp.model import Model
from mechinterp.sites import Site
from probes.vectors import Passport, Vectors
from studies import question_insertion
from studies.personas import questions, roles
from studies.playing import following, inserted, opening, play, with_ids
from studies.question_insertion import Config, cells, user_turns
from studies.question_insertion_cells import Inserted, Played
from studies.question_insertion_likeness import teacher_forced
from studies.question_insertion_result import shift_of
from studies.transcripts import Transcript, read_transcript, write_transcript
from tests.conftest import EMBEDDED
from tests.test_chat import GEMMA2
from tests.tokenizers import tokenizer as real_tokenizer

SYSTEM = "You are a bard."
TURNS = ("Hello there?", "What did you eat?", "And then?")
QUESTION = "Who are you?"
SMALL = [
    "n_turns=2", "answer_tokens=3", "probe_groups=['introspect']", "layers=[1]", "roles=['medieval_bard']",
    "n_tokens=4", "n_runs=3", "n_contrast=2", "strength=2.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random model beside the embedded model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    there, made = hub.resolve(EMBEDDED).path, tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    shape = AutoConfig.from_pretrained(there, **sizes, num_attention_heads=4, num_key_value_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape).save_pretrained(made)
    for path in there.iterdir():
        if "token" in path.name or path.name.endswith(".jinja"):
            shutil.copy(path, made)
    return made


@pytest.fixture(scope="module")
def model(folder) -> Model:
    return load(str(folder))


@pytest.fixture(scope="module")
def played(model) -> Transcript:
    return play(model, "bard", SYSTEM, TURNS, n_tokens=5, temperature=1.0, top_p=1.0, seed=3)


def config(**changed: Any) -> Config:
    return Config.model_validate(changed)


def spoken(system: str | None, *answers: str) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn, answer in zip(TURNS, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return messages


# conversations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [SYSTEM, None])
@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma2", "gemma3"])
def test_a_conversation_on_ids_is_the_template_s_own(name, system):
    tokenizer = deepcopy(real_tokenizer(name))
    tokenizer.chat_template = GEMMA2 if name == "gemma2" else tokenizer.chat_template
    role: Any = "prepend_user" if name == "gemma2" and system else "native"
    ids = opening(tokenizer, system, TURNS[0])
    for t, answer in enumerate(("A fine day.", "Bread"), 1):
        ids += tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids += following(tokenizer, system, TURNS[:t], TURNS[t])
    whole = [*spoken(system, "A fine day.", "Bread"), {"role": "user", "content": TURNS[2]}]
    assert ids == render(tokenizer, whole, system_role=role).tokens[0].tolist()


def test_fault_043_each_prompt_begins_with_all_ids_so_far(model, played):
    """A sampled answer need not be the ids that its text is encoded to, so it is never encoded again."""
    for after in range(1, 4):
        prompt = inserted(model, played, QUESTION, after=after).tolist()
        assert prompt[: len(played.running(after))] == list(played.running(after))
        assert QUESTION in model.decode(prompt[len(played.running(after)) :])
    for t in range(1, 3):
        assert played.ids[2 * t] == tuple(following(model.tokenizer, SYSTEM, TURNS[:t], TURNS[t]))
    assert [model.decode(ids) for ids in played.ids[1::2]] == list(played.answers)


def test_what_follows_an_insertion_point_is_dropped(model, played):
    shorter = play(model, "bard", SYSTEM, TURNS[:2], n_tokens=5, temperature=1.0, top_p=1.0, seed=3)
    assert shorter.ids == played.ids[:4]  # a turn's draws do not depend on later turns
    for after in range(3):
        found = [inserted(model, t, QUESTION, after=after).tolist() for t in (played, shorter)]
        assert found[0] == found[1]
    with pytest.raises(ValueError, match="has 2 turns; there is no point after turn 3"):
        inserted(model, shorter, QUESTION, after=3)


def test_a_transcript_of_texts_has_the_ids_of_the_whole_chat(model):
    texts = Transcript("bard", tuple(spoken(SYSTEM, "A fine day.", "Bread, and ale!")))
    made = with_ids(model, texts)
    for after in range(3):
        rendered = insert_question(model.tokenizer, texts.messages, QUESTION, after_turn=after)
        assert inserted(model, made, QUESTION, after=after).tolist() == rendered.tokens[0].tolist()
    assert with_ids(model, made) == made


def test_ids_of_another_tokenizer_are_refused(model, played):
    assert with_ids(model, played) == played
    moved = tuple(tuple((i + 1) % 1000 for i in part) for part in played.ids)
    longer = (*played.ids[:5], (*played.ids[5], 10**6))
    answers = tuple(moved[k] if k % 2 else part for k, part in enumerate(played.ids))
    for ids in (moved, longer, answers):
        given = Transcript(played.role, played.messages, ids)
        with pytest.raises(ValueError, match="another tokenizer or template"):
            with_ids(model, given)


SAID = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
LOOP = (
    "{% for m in messages %}EACH{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THOUGHT = SAID.replace("{{ m.content }}", "{% if m.role == 'assistant' %}Hm. {% endif %}{{ m.content }}")
MARKED = "{% if loop.index == messages | length and m.role == 'user' %}Now: {% endif %}"
REFUSED = {
    "rewrites": (LOOP.replace("EACH", SAID.replace("{{ m.content }}", MARKED + "{{ m.content }}")), "anew"),
    "adds": (LOOP.replace("EACH", THOUGHT), "text of its own before"),
    "joins": (LOOP.replace("EACH", SAID.replace("<|im_end|>", " End")), "without a control token"),
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_does_not_keep_turns_is_refused_before_any_answer(template, reason, model):
    tokenizer = deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=reason):
        play(
            replace(model, tokenizer=tokenizer),
            "bard",
            None,
            TURNS,
            n_tokens=1,
            temperature=None,
            top_p=1.0,
            seed=0,
        )


# likeness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_prompt", [1, 6])
def test_log_probabilities_are_those_of_one_whole_pass(model, n_prompt):
    prompt = torch.arange(100, 100 + n_prompt)
    answers = [
        torch.arange(500 + 10 * k, 500 + 10 * k + n) for k, n in enumerate((4, 1, 7, 2, 3, 5, 1, 6, 2))
    ]
    found = teacher_forced(model, prompt, answers)
    for row, answer in zip(found, answers, strict=True):
        logits = model.forward(torch.cat([prompt, answer])[None]).logits
        assert logits is not None
        log_p = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert_close(row[: len(answer)], log_p[range(len(answer)), answer], atol=1e-5, rtol=1e-5)
        assert row[len(answer) :].isnan().all()


def test_an_empty_answer_has_no_log_probability(model):
    with pytest.raises(ValueError, match="holds no ids"):
        teacher_forced(model, torch.tensor([1, 2]), [torch.tensor([3]), torch.tensor([], dtype=torch.long)])


# states ----------------------------------------------------------------------------------------------


def planted(step: float, noise: float = 0.01, role: str = "bard") -> Inserted:
    """States that move by `step` a turn along the first axis at layer 1 and along the second at layer 0."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, 1, 2, 16, generator=generator)
    turn = torch.arange(6.0)[None, :, None]
    states = (start + noise * torch.randn(4, 6, 2, 16, generator=generator)).clone()
    states[..., :2] += 20.0  # so that the raw mean's sign is not the movement's
    states[:, :, 1, 0] += step * turn[..., 0]
    states[:, :, 0, 1] += step * turn[..., 0]
    return Inserted("tiny", role, ("g",) * 4, ("a", "b", "c", "d"), (0, 1, 2, 3, 4, 5), states)


def shift(own: Inserted, control: Inserted) -> Any:
    values = torch.zeros(1, 2, 16)
    values[0, :, 0] = 3.0  # the role's vector is the first axis at both layers
    transcript = Transcript("bard", tuple(spoken(None, "x")))
    return shift_of(
        Vectors(("bard",), (0, 1), values, Passport()), Played("tiny", transcript, False), own, control
    )


@pytest.mark.parametrize("step", [2.0, -2.0])
def test_planted_movement_is_the_centred_top_direction_and_the_slope(step):
    own = planted(step)
    found = shift(own, planted(0.0, role="control"))
    top = own.tops()["centred"]
    assert (top.share > 0.99).all()
    # signed towards later turns, whichever way they lie
    assert_close(top.direction[1, 0], torch.tensor(step).sign(), atol=1e-2, rtol=0)
    assert_close(found.alignment["centred"], torch.tensor([0.0, step / 2]), atol=2e-2, rtol=0)
    assert_close(found.slope(1), torch.full((4,), step), atol=2e-2, rtol=0)
    assert_close(found.change(1), torch.full((4,), 5 * step), atol=8e-2, rtol=0)
    assert_close(found.beyond_control(1), torch.full((4,), 5 * step), atol=0.1, rtol=0)
    assert found.change(0).abs().max() < 0.1  # moves at this layer too, but not along the role's vector
    grown = found.projections["role"][:, :, 1].mean(0).diff() * step
    assert (grown > 0).all()


def test_a_movement_that_the_control_shares_is_taken_off():
    found = shift(planted(2.0), planted(2.0, role="control"))
    assert found.change(1).min() > 9 and found.beyond_control(1).abs().max() < 0.1


def test_cosines_and_spectra_are_of_the_means():
    own = planted(1.0)
    found = shift(own, own)
    means = own.states.mean(0)
    assert_close(found.cosines[1], torch.cosine_similarity(means[:, None, 1], means[None, :, 1], dim=-1))
    assert_close(found.spectra["raw"][1], torch.linalg.svdvals(means[1:, 1]))
    centred = torch.linalg.svdvals(means[1:, 1] - means[1:, 1].mean(0))
    assert_close(found.spectra["centred"][1], centred[:-1], atol=1e-5, rtol=1e-5)
    assert float(centred[-1]) < 1e-4


# the study -------------------------------------------------------------------------------------------


def test_cells_are_known_from_the_configuration():
    keys = [cell.key for cell in cells(config(roles=("medieval_bard",), layers=(3, 5), n_questions=2))]
    assert keys[:5] == [
        "vectors",
        "play/control",
        "insert/control",
        "play/medieval_bard",
        "insert/medieval_bard",
    ]
    assert keys[5:] == [f"steer/medieval_bard/layer{layer}/q{q}" for layer in (3, 5) for q in (0, 1)]


def test_presets_are_configurations():
    assert study_files.presets("question_insertion") == ["demo", "paper"]
    for preset in ("demo", "paper"):
        assert running.ask("question_insertion", preset=preset).cells()


def test_a_transcript_brings_its_own_turns(tmp_path):
    path = tmp_path / "t.json"
    write_transcript(path, Transcript("medieval_bard", tuple(spoken(SYSTEM, "x", "y", "z"))))
    found = config(roles=("medieval_bard",), transcript=path, n_turns=3)
    assert user_turns(found) == TURNS
    with pytest.raises(ValueError, match=r"set roles = \['medieval_bard'\]"):
        config(roles=("grumpy_mechanic",), transcript=path, n_turns=3)
    with pytest.raises(ValueError, match="holds 3 user turns; 4 were asked for"):
        config(roles=("medieval_bard",), transcript=path, n_turns=4)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("roles=['bard']", "there are no roles bard"),
        ("roles=['control']", "'control'"),
        ("n_turns=99", "holds 10 user turns"),
        ("n_turns=1", "greater than or equal to 2"),
        ("turn_group='talk'", "no group 'talk'; its groups are conversation"),
        ("probe_groups=['who']", "no question group 'who'"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_at_the_door(override, reason):
    with pytest.raises(ValueError, match=reason):
        running.ask("question_insertion", overrides=[override])


def digests(run: Path) -> dict[str, str]:
    files = [*run.glob("cells/**/*.*"), *run.glob("result/**/*.*")]
    return {str(path.relative_to(run)): file_sha256(path) for path in files}


@pytest.fixture(scope="module")
def asked(folder) -> running.Asked:
    return running.ask("question_insertion", overrides=[*SMALL, f"model='{folder}'"])


@pytest.fixture(scope="module")
def finished(asked, tmp_path_factory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("run") / "whole"
    return out, running.run(asked, out, progress=False)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(asked, finished, tmp_path):
    assert running.run(asked, tmp_path / "run", limit=3, progress=False) is None
    running.run(asked, tmp_path / "run", progress=False)
    assert digests(tmp_path / "run") == digests(finished[0])


def test_a_run_leaves_its_conversations_as_transcripts(finished, model):
    found = read_transcript(finished[0] / "result" / "transcripts" / "medieval_bard.json")
    assert with_ids(model, found) == found == finished[1].shifts[0].transcript
    assert found.user_turns == user_turns(config())[:2]
    control = read_transcript(finished[0] / "cells" / "play" / "control" / "transcript.json")
    assert control.user_turns == found.user_turns and control.role == "control"


def test_states_are_those_of_the_last_prompt_token(asked, finished, model):
    _, run = running.reopened(finished[0])
    found = {cell.key: run.result(cell) for cell in asked.cells() if "medieval_bard" in cell.key}
    states = found["insert/medieval_bard"]
    prompt = inserted(model, found["play/medieval_bard"].transcript, states.questions[1], after=2)
    sites = [Site("resid_post", layer) for layer in range(3)]
    seen = model.forward(prompt[None], capture=sites)
    assert_close(
        states.states[1, 2], torch.stack([seen[site][0, -1] for site in sites]), atol=1e-5, rtol=1e-4
    )


def test_steered_texts_are_measured_without_what_was_added(asked, finished, model):
    """The projection of a steered text is that of an unedited pass over the same ids."""
    _, run = running.reopened(finished[0])
    found = {cell.key: run.result(cell) for cell in asked.cells()}
    runs = found["steer/medieval_bard/layer1/q0"]
    vector = found["vectors"]["medieval_bard", 1]
    for row in runs.release.rows("role")[:2]:
        start, n = int(runs.release.prompt_lengths[row]), int(runs.release.real[row].sum())
        ids = runs.release.tokens[row, : start + n]
        at = Site("resid_post", 1)
        state = model.forward(ids[None], capture=[at])[at][0, start - 1 : -1]
        assert_close(runs.release.natural[row, :n, 0], projection(state, vector), atol=1e-4, rtol=1e-4)
        place = row - runs.release.rows("role")[0]
        assert_close(runs.projection("role")[place], projection(state, vector).mean(), atol=1e-4, rtol=1e-4)
        pushed = runs.release.projections[row, :n, 0] - runs.release.natural[row, :n, 0]
        assert_close(pushed, torch.full((n,), runs.norm), atol=1e-3, rtol=1e-4)


def test_the_log_ratio_is_the_role_s_prompt_over_the_default_one(asked, finished, model):
    _, run = running.reopened(finished[0])
    runs = run.result(asked.cells()[-1])
    people, question = roles(), questions("personal_reflection")[0]
    row = runs.release.rows("random")[1]
    answer = runs.release.generated[row][runs.release.real[row]]
    means = []
    for key in ("medieval_bard", "control"):
        prompt = model.chat(question, system=people[key].system_prompt).tokens[0]
        logits = model.forward(torch.cat([prompt, answer])[None]).logits
        log_p = logits[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), answer]
        means.append(log_p.mean())
    assert_close(runs.log_ratio("random")[1], means[0] - means[1], atol=1e-5, rtol=1e-4)
    assert_close(runs.fluency("random")[1], means[1], atol=1e-5, rtol=1e-4)


def test_arms_have_one_norm_and_the_same_seeds(asked, finished):
    result = finished[1]
    outcome = result.outcomes[0]
    assert outcome.norm_in_residuals == pytest.approx(2.0, rel=1e-4)
    assert {len(values) for values in outcome.log_ratio.values()} == {3}
    assert outcome.against("log_ratio", "random").estimate == 0
    assert len(result.to_dataframe()) == 3 * 3  # layers, insertion points


def test_the_report_says_what_one_conversation_cannot(finished):
    text = (finished[0] / "report.html").read_text()
    assert "One conversation a role" in text and "smallest p" in text
    figures = sorted(path.stem for path in (finished[0] / "figures").glob("*.json"))
    assert {
        "turns-medieval_bard-l1",
        "cosines-medieval_bard-l1",
        "spectrum-medieval_bard",
        "alignment",
    } <= set(figures)
    assert json.loads((finished[0] / "figures" / "alignment.json").read_text())["data"]


def test_a_given_transcript_is_inserted_into_as_it_is(folder, finished, model, tmp_path):
    path = finished[0] / "result" / "transcripts" / "medieval_bard.json"
    asked = running.ask("question_insertion", overrides=[*SMALL, f"model='{folder}'", f"transcript='{path}'"])
    cell = asked.cells()[3]
    found = question_insertion.converse(cell, model, {}, asked.config)
    assert found.given and found.transcript == finished[1].shifts[0].transcript
