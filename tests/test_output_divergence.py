"""Divergence between personas' outputs: what whole passes give, on every backend; selections; refusals."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mechinterp.loading import wrap
from mechinterp.results import load_result
from probes.outputs import OutputDivergence, _fitting, output_divergence
from probes.responses import Response, deciding_states, prefill, tokenised, turn_end
from tests.architectures import shared
from tests.passes import BACKENDS, UNSUPPORTED

PROMPTS = [[5, 9, 3, 77], [8, 2, 60, 61, 62, 63, 64, 65, 66, 67, 12], [4, 4, 9]]
ANSWER = [31, 32, 33, 90, 91, 17]
PAIRS = [
    (family, kind)
    for family in ("llama", "gemma2", "gpt2", "gpt_neox", "bloom")
    for kind in ("transformers", *BACKENDS)
    if (family, kind) not in UNSUPPORTED
]
SYSTEMS = {"plain": None, "pirate": "You are a pirate captain.", "clown": "You are a circus clown."}
QUESTION = "What is the sea made of?"


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_states_behind_every_prompt_are_those_of_whole_passes(family: str, kind: Any):
    """Prompts of unequal length, longer than a window of 8: padding and cached prefixes change nothing."""
    model = wrap(shared(family), None, backend=kind, verify=False)
    states, size = deciding_states(prefill(model, PROMPTS), ANSWER, 2)
    assert size == 2
    apart, _ = deciding_states(prefill(model, PROMPTS, 2), ANSWER, 2)
    assert_close(apart, states, atol=2e-5, rtol=2e-5)
    for prompt, found in zip(PROMPTS, states, strict=True):
        with torch.no_grad():
            whole: Any = shared(family)(torch.tensor([[*prompt, *ANSWER]])).logits[0]
        rows = whole[len(prompt) - 1 : len(prompt) - 1 + len(ANSWER)]
        assert_close(model.unembed(found), rows, atol=2e-5, rtol=2e-5)


def test_a_batch_without_room_is_halved_and_the_size_is_told(monkeypatch):
    model = wrap(shared("llama"), None, verify=False)
    whole, _ = deciding_states(prefill(model, PROMPTS), ANSWER, 3)
    run = type(model).run

    def narrow(self: Any, request: Any, *rest: Any) -> Any:
        if len(request.tokens) > 1:
            raise torch.OutOfMemoryError("injected")
        return run(self, request, *rest)

    before = prefill(model, PROMPTS)
    monkeypatch.setattr(type(model), "run", narrow)
    states, size = deciding_states(before, ANSWER, 3)
    assert size == 1
    assert_close(states, whole, atol=1e-5, rtol=1e-5)


def test_a_cpu_runs_the_prompts_that_make_its_rows_and_a_size_that_is_asked_for_is_kept(monkeypatch):
    model = wrap(shared("llama"), None, verify=False)
    monkeypatch.setattr("probes.outputs.ROWS", 20)
    assert [_fitting(model, None, 11, n) for n in (2, 7, 40)] == [10, 2, 1]
    assert _fitting(model, 9, 11, 40) == 9


def test_fault_027_an_empty_prompt_is_refused():
    model = wrap(shared("llama"), None, verify=False)
    with pytest.raises(ValueError, match="a prompt is empty"):
        prefill(model, [[3, 4], []])


def made() -> OutputDivergence:
    """Two responses of a, one of b, none of c; every value names its response and its pair."""
    place = torch.arange(9.0).reshape(3, 3)
    values = torch.stack([place + 100 * r for r in (1, 2, 3)])
    return OutputDivergence(
        "toy", ("a", "b", "c"), ("a", "b", "a"), ("q", "q", "r"), (0, 0, 0), (4, 4, 4), values, 2 * values,
        include_turn_end=True, skipped=0, batch_sizes=(3,),
    )  # fmt: skip


def test_selections_average_whose_responses_they_name():
    one = made()
    assert one.matrix()[0, 1] == 201  # all three
    assert one.matrix(responses="source")[0, 1] == 201 and one.matrix(responses="source")[1, 0] == 203
    assert one.matrix(responses="target")[0, 1] == 201 and one.matrix(responses="target")[1, 0] == 203
    assert one.matrix(responses="pair")[0, 1] == (201 + 201) / 2
    assert one.matrix("kl", "source")[1, 2] == 2 * 205
    for responses in ("source", "pair"):
        assert one.matrix(responses=responses)[2].isnan().all(), "c wrote nothing"
    assert one.matrix(responses="source")[0, 2] == 202 and one.matrix(responses="target")[0, 2].isnan()
    assert len(one.of_question("q")) == 2
    table = one.to_dataframe().set_index(["source", "target"])
    assert table.loc[("b", "a"), "js_source"] == 203 and len(table) == 6
    with pytest.raises(ValueError, match="one of all, pair, source, target"):
        one.matrix(responses="both")  # pyright: ignore[reportArgumentType]


def test_it_loads_back_bit_for_bit(tmp_path):
    assert load_result(made().save(tmp_path)).digest() == made().digest()


# the real chat model ----------------------------------------------------------------------------------------


def ids_of(real: Any, text: str) -> tuple[int, ...]:
    return tuple(real.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.real
@pytest.mark.parametrize("closing", [True, False])
def test_divergences_of_the_real_model_are_those_of_whole_logits(real, closing):
    response = Response("pirate", QUESTION, ids_of(real, "Salt and water, matey"))
    found = output_divergence(real, SYSTEMS, [response], include_turn_end=closing)
    ids = [*response.ids, *(ids_of(real, "<|im_end|>\n") if closing else ())]
    rows = []
    for system in SYSTEMS.values():
        prompt = real.chat(QUESTION, system=system).tokens[0].tolist()
        with torch.no_grad():
            logits = real.backend.model(torch.tensor([[*prompt, *ids]])).logits[0]
        rows.append(logits[len(prompt) - 1 : len(prompt) - 1 + len(ids)].double())
    assert found.n_tokens == (len(ids),)
    for i in range(3):
        for j in range(3):
            assert float(found.js[0, i, j]) == pytest.approx(exact_js(rows[i], rows[j]), abs=1e-6)
            assert float(found.kl[0, i, j]) == pytest.approx(exact_kl(rows[i], rows[j]), rel=1e-5, abs=1e-6)


def exact_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """A mean over positions, in fp64 throughout."""
    return float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean())


def exact_js(p: torch.Tensor, q: torch.Tensor) -> float:
    middle = ((p.softmax(-1) + q.softmax(-1)) / 2).log()
    return (exact_kl(p, middle) + exact_kl(q, middle)) / 2


@pytest.mark.real
def test_texts_become_the_ids_that_stand_behind_every_prompt(real):
    assert turn_end(real, None, QUESTION) == ids_of(real, "<|im_end|>\n")
    (found,) = tokenised(real, SYSTEMS, {"pirate": {QUESTION: ["Salt, I say."]}})
    assert found == Response("pirate", QUESTION, ids_of(real, "Salt, I say."))


@pytest.mark.real
def test_short_responses_are_left_out_and_counted(real):
    responses = [Response("clown", QUESTION, ()), Response("clown", QUESTION, ids_of(real, "Salt, water"))]
    found = output_divergence(real, SYSTEMS, responses, include_turn_end=False)
    assert found.skipped == 1 and len(found.js) == 1
    with pytest.raises(ValueError, match="shorter than 2 tokens"):
        output_divergence(real, SYSTEMS, responses[:1], include_turn_end=False)


def test_fewer_than_two_personas_are_refused():
    model = wrap(shared("llama"), None, verify=False)
    with pytest.raises(ValueError, match="two personas or more and a response, not 1 and 1"):
        output_divergence(model, {"a": None}, [Response("a", "q", (1, 2))])
