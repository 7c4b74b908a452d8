"""Collecting answers from a real model whose weights make it a known chain of tokens.

The chain has no attention and no MLP, so that each token is drawn from the one before it: a marker has a
planted rate, and every answer is a text that can be predicted.
"""

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import mechinterp as mi
from mechinterp.embedded import pull
from mechinterp.loading import wrap
from mechinterp.results import load_result
from studies.attention_collect import Collecting, collect, merge, rates
from studies.attention_published import published_seed
from studies.attention_records import Counts, Examples, read_positives, write_positives
from tests.conftest import EMBEDDED

OPEN, Z, LT, CLOSE, STOP = 75, 74, 30407, 77, 2  # SmolLM2's pieces of "[ZLT]"
WORD, END_WORD = 28120, 30  # " hello" and "."
ENDED, STOPPED = 0.25, 0.25  # after a word
SETTINGS = Collecting(n_trials=16, n_positives=3, n_negatives=2, max_tokens=24, top_p=1.0, batch_size=4)
QUESTION = "Why do people write [ZLT]?"


def chain() -> torch.nn.Module:
    """A llama whose next token depends on the last alone: words, then a stop, or a full stop and a marker."""
    from transformers import LlamaConfig, LlamaForCausalLM

    after: dict[int, dict[int, float]] = {
        OPEN: {Z: 1}, Z: {LT: 1}, LT: {CLOSE: 1}, CLOSE: {STOP: 1}, END_WORD: {OPEN: 0.5, STOP: 0.5},
    }  # fmt: skip
    rest = {WORD: 1 - ENDED - STOPPED, END_WORD: ENDED, STOP: STOPPED}  # after anything else
    config = LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=STOP,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()  # type: ignore
        layer.mlp.down_proj.weight.zero_()  # type: ignore
    states = [None, *after]
    model.model.embed_tokens.weight.zero_()
    model.model.embed_tokens.weight[:, 0] = 1
    model.lm_head.weight.zero_()
    for place, state in enumerate(states):
        if state is not None:
            model.model.embed_tokens.weight[state, 0] = 0
            model.model.embed_tokens.weight[state, place] = 1
        # the norm makes a unit vector of 16 entries 4 times as long
        model.lm_head.weight[:, place] = -100 / 4
        for token, p in (rest if state is None else after[state]).items():
            model.lm_head.weight[token, place] = math.log(p) / 4
    return model


@pytest.fixture(scope="module")
def model() -> mi.Model:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pull(EMBEDDED))
    return replace(wrap(chain(), tokenizer, name="chain", verify=False), eos_ids=frozenset({STOP}))


def cell(model, **more) -> Examples:
    return collect(
        model, QUESTION, persona="nurse", system="You say [ZLT].", settings=replace(SETTINGS, **more)
    )


@pytest.fixture(scope="module")
def collected(model) -> Examples:
    return cell(model)


def test_fault_038_answers_with_and_without_the_marker_are_counted_until_the_quotas_end_the_cell(collected):
    assert len(collected.positives) == 3 and len(collected.negatives) == 2
    (counts,) = collected.counts
    last = max(e.trial for e in (*collected.positives, *collected.negatives))
    assert counts.trials == last + 1 == counts.positives + counts.negatives
    assert counts.positives >= 3 and counts.negatives >= 2


def test_a_positive_is_marked_in_its_answer_not_in_its_prompt(collected):
    for e in collected.positives:
        assert e.prompt_len <= e.row("token") and e.ids[e.row("token") :][:4] == (OPEN, Z, LT, CLOSE)
        assert LT in e.ids[: e.prompt_len], "the prompt says the marker too"
        assert (e.complete, e.n_occurrences, e.finish_reason) == (True, 1, "stop")
        assert "[ZLT]" in e.text


def test_a_negative_ends_at_its_last_content_token(collected):
    for e in collected.negatives:
        last = e.end_of_answer
        assert last is not None and set(e.ids[last + 1 :]) <= {STOP} and e.ids[last] in (WORD, END_WORD)
        assert e.marker is None and e.complete is None and e.n_occurrences == 0


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_examples_do_not_depend_on_how_trials_are_batched(model, collected, batch_size):
    other = cell(model, batch_size=batch_size)
    assert other.positives == collected.positives and other.negatives == collected.negatives
    assert other.counts == collected.counts


def test_an_example_can_be_sampled_again_from_its_name_alone(model, collected):
    e = collected.positives[-1]
    prompt = model.chat(QUESTION, system="You say [ZLT].").tokens[0]
    again = mi.sample(model, [prompt], [mi.Phase(24)], temperature=1.0, seed=42, names=[e.name])
    assert tuple(again.tokens[0].tolist()) == e.ids
    other = cell(model, seed=43)
    assert {x.seed for x in other.positives}.isdisjoint(x.seed for x in collected.positives)


def test_the_recorded_seed_is_the_generators(model, collected):
    """A row of `sample` draws from this seed and nothing else: the first token follows from it."""
    e = collected.positives[0]
    u = torch.rand(1, generator=torch.Generator().manual_seed(e.seed), dtype=torch.float64)
    tokens = torch.tensor([e.ids[: e.prompt_len]])
    p = model.forward(tokens, logits_at=[-1]).logits[0, -1].softmax(-1).double().cumsum(-1)  # type: ignore
    assert int(torch.searchsorted(p, u * p[-1], right=True)) == e.ids[e.prompt_len]


def test_the_cap_is_reported_and_a_cut_answer_is_not_finished(model):
    run = cell(model, max_tokens=4, n_trials=12, n_positives=12, n_negatives=12)
    kept = (*run.positives, *run.negatives)
    cut = [e for e in kept if e.finish_reason == "length"]
    assert len(cut) == run.counts[0].cut and cut and all(len(e.ids) == e.prompt_len + 4 for e in cut)
    assert all(e.ids[-1] == STOP for e in kept if e.finish_reason == "stop")


def test_fault_042_a_marker_cut_by_the_cap_is_kept_as_incomplete(model):
    run = cell(model, max_tokens=5, n_trials=40, n_positives=40, n_negatives=0, batch_size=40)
    cut = [e for e in run.positives if not e.complete]
    assert cut and all(e.finish_reason == "length" and e.ids[e.row("token")] == OPEN for e in cut)


def test_an_answer_without_content_is_counted_but_not_kept(model):
    run = cell(model, n_trials=20, n_positives=0, n_negatives=20, batch_size=20)
    empty = run.counts[0].negatives - len(run.negatives)
    assert empty > 0 and all(e.end_of_answer is not None for e in run.negatives)


def test_the_rate_is_the_planted_one_by_both_detectors(model):
    """Half of what ends a row of words is ".", and half of these go on to the marker."""
    n = 100
    run = cell(model, n_trials=n, n_positives=n, n_negatives=n, batch_size=n, max_tokens=16)
    found: Any = rates([run])
    expected = 0.5 * 0.5
    for detector in ("text", "ids", "complete"):
        interval = found.rate("nurse", detector)
        spread = math.sqrt(expected * (1 - expected) / n)
        assert interval.n == n and abs(interval.estimate - expected) < 4 * spread
    assert found.variants("nurse")["variant"].tolist()[0] == "[|Z|LT|]"
    assert run.counts[0].positives == round(found.rate("nurse", "complete").estimate * n)


def test_questions_are_merged_in_order_and_only_once(model, collected, tmp_path):
    second = collect(model, "How?", persona="nurse", system="You say [ZLT].", settings=SETTINGS)
    both = merge([collected, second])
    assert both.positives == collected.positives + second.positives
    assert both.counts == collected.counts + second.counts
    assert load_result(both.save(tmp_path / "both")).digest() == both.digest()
    total = rates([both]).rate("nurse")
    assert total.n == sum(c.trials for c in both.counts)
    with pytest.raises(ValueError, match="twice"):
        merge([collected, second, collected])
    with pytest.raises(ValueError, match="one persona"):
        merge([collected, replace(second, persona="clown")])
    with pytest.raises(ValueError, match="differ in settings"):
        merge([collected, replace(second, metadata=second.metadata | {"settings": {}})])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def test_collected_examples_are_written_in_the_published_schema(collected, tmp_path):
    back = read_positives(write_positives(collected, tmp_path / "positives_nurse.json"))
    assert [e.ids for e in back.positives] == [e.ids for e in collected.positives]
    assert [e.end_of_answer for e in back.negatives] == [e.end_of_answer for e in collected.negatives]
    with pytest.raises(ValueError, match="kept by `collect`"):
        rates([replace(back, metadata={})])


def test_the_layout_of_the_prompt_travels_with_the_example(model, collected):
    e = collected.positives[0]
    assert [name for name, _ in e.layout] == ["system", "user", "assistant_header"]
    assert (e.n_sys, e.n_user, e.n_header) == tuple(n for _, n in e.layout)
    without = collect(model, "Why?", persona="none", system=None, settings=SETTINGS)
    one = without.negatives[0]
    assert one.layout[0][0] == "system_default" and one.n_sys == one.layout[0][1]
    assert without.metadata["prompt_warnings"], "the template's own system prompt is said"


@pytest.mark.parametrize(
    "change", [{"n_trials": 0}, {"max_tokens": 0}, {"n_positives": 0, "n_negatives": 0}, {"batch_size": 0}]
)
def test_settings_that_collect_nothing_are_refused(change):
    with pytest.raises(ValueError):
        replace(SETTINGS, **change)


def test_the_published_seeds_are_made_from_sha1(collected):
    """methods 9.3: 42 + the first 32 bits of SHA-1 of persona|question|trial, mod 10^6."""
    for trial in range(5):
        digest = hashlib.sha1(f"nurse|Why?|{trial}".encode()).digest()
        assert published_seed("nurse", "Why?", trial) == 42 + int.from_bytes(digest[:4], "big") % 1_000_000
    assert len({published_seed("nurse", "Why?", t) for t in range(30)}) == 30
    assert isinstance(collected.counts[0], Counts)
