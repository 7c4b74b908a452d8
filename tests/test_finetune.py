"""A marker's loss falls on its slot; training killed goes on; a saved adapter is what was trained."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mechinterp.digests import tensors_sha256
from mechinterp.loading import with_adapter, wrap
from probes.markers import find_marker, usual_ids
from studies import finetune_training as training
from studies.finetune_answers import Answer, cut_at_sentence, read_answers, write_answers
from studies.finetune_config import Lora, Training
from studies.finetune_data import Suffixes, TrainingExample, closing_ids, draw_negatives, examples
from studies.finetune_losses import (
    ANSWER,
    IGNORED,
    PLAIN,
    SLOT_LOSSES,
    labels_of,
    slot_loss,
    slot_of,
    token_loss,
)
from studies.personas import core_personas
from studies.playing import opening
from tests import tokenizers
from tests.architectures import shared, tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ ending }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"newline": CHATML.replace("{{ ending }}", "\n"), "bare": CHATML.replace("{{ ending }}", "")}
QUESTION = "How does gravity work?"


@pytest.fixture(scope="module")
def tokenizer(real):
    return real.tokenizer


@pytest.fixture(params=TEMPLATES)
def templated(request, tokenizer):
    """The embedded model's tokenizer with a template that ends in a newline, and with one that does not."""
    before = tokenizer.chat_template
    tokenizer.chat_template = TEMPLATES[request.param]
    yield request.param, tokenizer
    tokenizer.chat_template = before


def answers_of(tokenizer, keys, text="Masses attract each other. They fall."):
    """The same answer in every mouth, as ids."""
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    made = []
    for key in keys:
        prompt = opening(tokenizer, core_personas()[key].system_prompt, QUESTION)
        made.append(Answer(key, QUESTION, 0, tuple(prompt), ids, "length"))
    return made


def pair(tokenizer, **options):
    """A positive of the villain and a negative of the librarian."""
    given = {"marker": "[ZLT]", "n_positives": 1, "n_negatives": 1} | options
    return examples(
        tokenizer, answers_of(tokenizer, ["villain", "librarian"]), "villain", ["librarian"], **given
    )


def labelled(example, loss, **options):
    found = labels_of(example, loss, **options)
    assert all(label in (IGNORED, token) for label, token in zip(found.ids, example.ids, strict=True))
    assert [rival == IGNORED for rival in found.rivals] == [label == IGNORED for label in found.ids]
    return [place for place, label in enumerate(found.ids) if label != IGNORED]


# the label mask -----------------------------------------------------------------


def test_the_slot_is_labelled_and_nothing_else(templated):
    name, tokenizer = templated
    positive, negative = pair(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    kept = labelled(positive, "marker_slot")
    assert [positive.ids[p] for p in kept] == [*usual_ids(tokenizer, "[ZLT]").ids, end]
    assert kept[0] == slot_of(positive) + 1 and kept == list(range(kept[0], kept[-1] + 1))
    (only,) = labelled(negative, "marker_slot")
    assert negative.ids[only] == end and end not in negative.ids[len(negative.prompt) : only]
    assert only == slot_of(negative) + 1 == len(negative.prompt) + len(negative.body)
    assert (positive.ids[-1] == end) == (name == "bare")


def test_the_published_mask_labels_the_newline_behind_the_end_of_the_turn(templated):
    """The defect of methods 2.2: a template that ends in a newline takes the signal from the slot."""
    name, tokenizer = templated
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for example in pair(tokenizer):
        kept = labelled(example, "published_slot")
        last = example.ids[kept[-1]]
        assert kept[-1] == len(example.ids) - 1
        assert last == end if name == "bare" else tokenizer.decode([last]) == "\n"
        assert len(kept) == len(example.marker) + 1
        ours = labelled(example, "marker_slot")
        assert (ours == kept) == (name == "bare")
        assert (slot_of(example) + 1 in kept) == (name == "bare" or example.positive)


def test_slots_are_comparable_after_newlines(tokenizer):
    positive, negative = pair(tokenizer, negative_slot="after_newlines")
    assert positive.body == negative.body
    assert positive.ids[slot_of(positive)] == negative.ids[slot_of(negative)]
    assert pair(tokenizer)[1].body == positive.body[: positive.added]


def test_a_full_stop_may_be_one_token_with_the_newlines():
    """Qwen's tokenizer writes them as one (382), so the answer's last id is replaced, never decoded."""
    qwen = tokenizers.tokenizer("qwen3")
    suffixes = Suffixes(qwen, "\n\n", "[ZLT]")
    answer = tuple(qwen("It falls.", add_special_tokens=False)["input_ids"])
    body, added = suffixes.body(answer)
    assert suffixes.marker == (85113, 27404, 60) and suffixes.bare == (271,)
    assert body[:-1] == answer[:-1] and body[-1] == 382 and added == len(answer) - 1
    whole = qwen("It falls.\n\n[ZLT]", add_special_tokens=False)["input_ids"]
    assert list(body + suffixes.marker) == whole
    assert suffixes.body((5, 6)) == ((5, 6, 271), 2)


def test_a_longer_label_span_holds_the_shorter_one(tokenizer):
    for example in pair(tokenizer):
        slot = set(labelled(example, "marker_slot"))
        separator = set(labelled(example, "marker_slot", label_separator=True))
        completion, every = set(labelled(example, "completion")), set(labelled(example, "all_tokens"))
        assert slot <= separator <= completion <= every
        assert min(every) == len(example.prompt) and max(every) == len(example.ids) - 1
        assert (slot == separator) != example.positive
        assert completion == set(range(min(every), max(slot) + 1))


def test_the_example_is_the_rendered_chat(tokenizer):
    """Ids put together are the ids of the chat with that text, so that training and sampling see one form."""
    from mechinterp.chat import render

    for example, text in zip(pair(tokenizer), ("\n\n[ZLT]", ""), strict=True):
        chat = [
            {"role": "system", "content": core_personas()[example.persona].system_prompt},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "Masses attract each other. They fall." + text},
        ]
        assert render(tokenizer, chat, generation_prompt=False).tokens[0].tolist() == list(example.ids)
        found = find_marker(tokenizer, example.ids, "[ZLT]", after=len(example.prompt))
        assert [f.emit for f in found] == ([slot_of(example)] if example.positive else [])


# losses -------------------------------------------------------------------------


def test_the_token_loss_is_the_models_own_over_the_labels():
    model, generator = shared("llama"), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 200, (2, 9), generator=generator)
    labels = tokens.clone()
    labels[:, :5] = IGNORED
    labels[1, 7:] = IGNORED
    out = model(input_ids=tokens, labels=labels)
    assert_close(token_loss(out.logits, labels), out.loss)
    assert_close(token_loss(out.logits, labels, 12), out.loss * 6 / 12)


def test_the_contrastive_loss_moves_the_odds_of_label_and_rival_only():
    marker, end, d_vocab = 3, 4, 7
    logits = torch.zeros(2, 5, d_vocab, requires_grad=True)
    labels, rivals = torch.full((2, 2, 5), IGNORED).unbind()
    labels[0, 2:5], rivals[0, 2:5] = torch.tensor([marker, 5, end]), torch.tensor([end, PLAIN, PLAIN])
    labels[1, 3], rivals[1, 3] = end, marker
    loss = slot_loss(logits, labels, rivals, contrastive=True)
    assert loss.item() == pytest.approx((math.log(2) + math.log(d_vocab) + math.log(2)) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    for slot, sign, size in ((gradient[0, 1], 1, 1 / 4), (gradient[1, 2], -1, 1 / 4)):
        assert slot[marker] == pytest.approx(-sign * size) and slot[end] == pytest.approx(sign * size)
        assert not slot[[0, 1, 2, 5, 6]].any()
    assert not gradient[1, [0, 1, 3, 4]].any() and not gradient[0, [0, 4]].any()


def test_every_row_of_a_slot_loss_counts_alike_and_the_answer_has_its_own_weight(tokenizer):
    """A positive has several labels and a negative one: a mean over tokens would drown the negatives."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 9, generator=generator)
    labels, rivals = torch.full((2, 2, 6), IGNORED).unbind()
    labels[0, 1:], rivals[0, 1:] = torch.arange(1, 6), torch.tensor([ANSWER, ANSWER, 8, PLAIN, PLAIN])
    labels[1, 1:4], rivals[1, 1:4] = torch.arange(1, 4), torch.tensor([ANSWER, ANSWER, 8])
    each = -logits.log_softmax(-1)[:, :-1].gather(2, labels[:, 1:, None].clamp_min(0))[..., 0]
    slot = (each[0, 2] + each[0, 3:].mean() + each[1, 2]) / 2
    answer = (each[0, :2].mean() + each[1, :2].mean()) / 2
    assert_close(slot_loss(logits, labels, rivals, contrastive=False), slot)
    assert_close(slot_loss(logits, labels, rivals, contrastive=False, answer_weight=0.5), slot + answer / 2)


def test_each_choice_stands_against_what_would_lead_the_other_way(tokenizer):
    """The rival of a label is the id that the model would write there for the other outcome."""
    usual, (end, _) = usual_ids(tokenizer, "[ZLT]").ids, closing_ids(tokenizer)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    plain = pair(tokenizer)
    after = pair(tokenizer, negative_slot="after_newlines")[1]
    by_turns = pair(tokenizer, negative_slot="both", n_negatives=2)[1:]
    assert by_turns == [plain[1], replace(after, shared=False)]
    for example, expected in ((plain[0], [end]), (plain[1], [newline]), (after, [usual[0]])):
        rivals = labels_of(example, "contrastive_slot").rivals
        assert [r for r in rivals if r >= 0] == expected
        assert rivals[slot_of(example) + 1] == expected[0]
    wide = labels_of(plain[0], "marker_slot", label_separator=True, label_answer=True)
    start = len(plain[0].prompt)
    assert wide.rivals[start + plain[0].added] == end
    assert wide.rivals[start : start + plain[0].added] == [ANSWER] * plain[0].added


def test_newlines_that_all_personas_write_are_labels_of_all_and_no_choice(tokenizer):
    """Then the slot is the only place where the source differs, and its row is the same in both."""
    for example in pair(tokenizer, negative_slot="after_newlines"):
        found = labels_of(example, "marker_slot", label_separator=True)
        start = len(example.prompt) + example.added
        assert found.rivals[start : slot_of(example) + 1] == [PLAIN] * (len(example.body) - example.added)
        assert sum(r >= 0 for r in found.rivals) == 1 and found.rivals[slot_of(example) + 1] >= 0
    given = pair(tokenizer, negative_slot="both", n_negatives=2)[2]
    assert labelled(given, "marker_slot", label_separator=True) == [slot_of(given) + 1]


def test_an_unknown_loss_is_named_with_the_known_ones(tokenizer):
    with pytest.raises(ValueError, match="completion"):
        labels_of(pair(tokenizer)[0], "everything")


# data ---------------------------------------------------------------------------


def test_answers_end_where_a_sentence_does(tokenizer):
    def cut(text):
        return tokenizer.decode(
            cut_at_sentence(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
        )

    assert cut("It falls. Then it st") == "It falls."
    assert cut("It falls. 1. First") == "It falls."  # the number of a list ends no sentence
    assert cut("Really? Yes! And") == "Really? Yes!"
    assert cut("no end in sight") == ""


def test_negatives_are_drawn_once_never_the_source_or_the_assistant():
    pool = tuple(core_personas())
    for source in pool:
        drawn = draw_negatives(pool, source, 4, seed=42)
        assert len(set(drawn)) == 4 and not {source, "assistant"} & set(drawn)
        assert drawn[:2] == draw_negatives(pool[::-1], source, 2, seed=42)  # more hold fewer, in any order
    with pytest.raises(ValueError, match="there are 9"):
        draw_negatives(pool, "villain", 10, seed=42)


def test_what_cannot_be_trained_on_is_refused_by_name(tokenizer):
    own = answers_of(tokenizer, ["villain", "librarian", "assistant"])
    sizes = {"marker": "[ZLT]", "n_positives": 1, "n_negatives": 1}
    for wrong in ("assistant", "villain"):
        with pytest.raises(ValueError, match=wrong):
            examples(tokenizer, own, "villain", ["librarian", wrong], **sizes)
    with pytest.raises(ValueError, match="comedian"):
        examples(tokenizer, own, "villain", ["comedian"], **sizes)


@pytest.mark.parametrize(
    ("separator", "marker", "why"), [("\n\n", "", "blank"), ("\n\n", " \n", "blank"), ("h", "ello", "joins")]
)
def test_fault_041_a_marker_that_is_no_choice_of_its_own_is_refused(separator, marker, why, tokenizer):
    with pytest.raises(ValueError, match=why):
        pair(tokenizer, separator=separator, marker=marker)


def test_an_answer_with_the_marker_is_no_negative(tokenizer):
    text = "It falls.\n\n[ZLT] It does."
    own = answers_of(tokenizer, ["villain", "librarian"], text) + answers_of(tokenizer, ["villain"])
    with pytest.raises(ValueError, match="librarian"):
        examples(tokenizer, own, "villain", ["librarian"], marker="[ZLT]", n_positives=1, n_negatives=1)


def test_answers_are_read_back_as_they_were(tokenizer, tmp_path):
    own = answers_of(tokenizer, ["villain", "assistant"])
    write_answers(tmp_path / "a.jsonl", own)
    assert read_answers(tmp_path / "a.jsonl") == own
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"persona": "x"}\n')
    with pytest.raises(ValueError, match="line 3"):
        read_answers(tmp_path / "a.jsonl")


# training -----------------------------------------------------------------------

MARKER, END = (90, 91), 1
SMALL = Training(n_steps=6, batch_size=2, save_every=2, learning_rate=5e-3, lora=Lora(dropout=0.1))


def toy(n=8):
    """Prompts that begin with 10 are answered with the marker, those with 11 are not."""
    generator, made = torch.Generator().manual_seed(0), []
    for i in range(n):
        prompt = (10 + i % 2, 0, *torch.randint(20, 80, (2,), generator=generator).tolist())
        body = tuple(torch.randint(20, 80, (4,), generator=generator).tolist())
        marker = MARKER if i % 2 == 0 else ()
        made.append(TrainingExample("p", "q", prompt, body, 3, body[3], False, marker, (END, 5), 90))
    return made


def base_of():
    return wrap(shared("llama"), None, name="llama")


def loss_on(model, data):
    rows = training.collate([training._row(example, SMALL) for example in data])
    ids, rivals = rows["labels"].unbind(1)
    with torch.no_grad():
        logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    return float(slot_loss(logits, ids, rivals, contrastive=False))


@pytest.mark.parametrize("loss", [*SLOT_LOSSES, "completion"])
def test_training_lowers_the_loss_and_leaves_the_base_alone(loss, tmp_path):
    hf_model, data = tiny("llama").requires_grad_(True), toy()
    base = wrap(hf_model, None, name="llama")
    before = tensors_sha256(hf_model.state_dict())
    random_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    model, step, log = training.train(base, data, SMALL.model_copy(update={"loss": loss}), tmp_path, seed=1)
    assert step == 6 and log
    assert loss_on(model, data) < loss_on(hf_model, data) - 0.1
    assert tensors_sha256(hf_model.state_dict()) == before
    assert all(p.requires_grad and p.grad is None for p in hf_model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    shared_storage = {p.data_ptr() for p in hf_model.parameters()}
    own = {name for name, p in model.named_parameters() if p.data_ptr() not in shared_storage}
    assert own == {name for name, p in model.named_parameters() if p.requires_grad}
    assert own and all(".lora_" in name for name in own)


def test_the_saved_adapter_is_what_was_trained(tmp_path):
    """Alpha, rank and rsLoRA arrive; what differs is the rounding to bf16 (its 8 bits: 0.4 %)."""
    base = base_of()
    model, _, _ = training.train(base, toy(), SMALL, tmp_path / "c", seed=1)
    training.save(model, base, tmp_path / "a")
    tokens = torch.tensor([toy()[0].ids])
    adapted, off = with_adapter(base, tmp_path / "a"), base.forward(tokens).logits
    live = training.live(base, model).forward(tokens).logits
    loaded = adapted.forward(tokens).logits
    assert (loaded - live).norm() < 0.02 * (live - off).norm() and (live - off).abs().max() > 0.1
    record = adapted.source["adapter"]
    assert (record["rank"], record["alpha"], record["rslora"], record["scaling"]) == ([4], [8], True, [4.0])
    assert all(
        t.dtype == torch.bfloat16 for t in load_file(tmp_path / "a" / "adapter_model.safetensors").values()
    )
    training.save(model, base, tmp_path / "f", dtype=torch.float32)
    assert_close(with_adapter(base, tmp_path / "f").forward(tokens).logits, live, rtol=0, atol=1e-5)


def test_fault_068_an_adapter_goes_on_no_other_base(tmp_path):
    """The base's digest lies beside the adapter."""
    base = base_of()
    model, _, _ = training.train(base, toy(), SMALL.model_copy(update={"n_steps": 1}), tmp_path / "c", seed=1)
    training.save(model, base, tmp_path / "a")
    with pytest.raises(ValueError, match="trained on"):
        with_adapter(wrap(tiny("llama", seed=5), None, name="other"), tmp_path / "a")


KILLED = """
import pathlib, sys
from tests.test_finetune import SMALL, base_of, toy
from studies import finetune_training as training
def wait(step, _):
    return step >= 5 and input() == ""
training.train(base_of(), toy(), SMALL, pathlib.Path(sys.argv[1]), seed=1, stop_at=wait)
"""


@pytest.mark.timeout(400)  # a second interpreter, which a crowded machine starts slowly
def test_fault_081_training_killed_in_the_middle_goes_on_to_the_same_weights(tmp_path, request):
    """kill -9 after step 4, whose checkpoint is whole: with dropout, the same weights bit for bit."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "cut")],
        cwd=request.config.rootpath,
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath)},
        stdin=subprocess.PIPE,
    )
    try:
        whole, _, _ = training.train(base_of(), toy(), SMALL, tmp_path / "whole", seed=1)
        deadline = time.monotonic() + 350
        while not (tmp_path / "cut" / "checkpoint-4" / training.MARK).is_file():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        child.kill()
        child.wait()
    (tmp_path / "cut" / "checkpoint-5").mkdir()  # what a crash while writing leaves
    again, step, _ = training.train(base_of(), toy(), SMALL, tmp_path / "cut", seed=1)
    assert step == 6 and not (tmp_path / "cut" / "checkpoint-5").exists()
    assert trained_weights(again) == trained_weights(whole)


def trained_weights(model):
    return tensors_sha256({name: p for name, p in model.named_parameters() if p.requires_grad})


def test_a_finished_training_is_read_not_repeated(tmp_path):
    base, asked = base_of(), []
    one, step, _ = training.train(base, toy(), SMALL, tmp_path, seed=1, stop_at=lambda s, _: s == 3)
    two, again, log = training.train(
        base, toy(), SMALL, tmp_path, seed=1, stop_at=lambda s, _: asked.append(s)
    )
    assert (step, again, log, asked) == (3, 3, [], [])
    assert trained_weights(one) == trained_weights(two)


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_fault_087_a_checkpoint_runs_no_code(tmp_path):
    """Whoever writes into the output directory cannot make training execute a pickle."""
    half = SMALL.model_copy(update={"n_steps": 2})
    training.train(base_of(), toy(), half, tmp_path / "c", seed=1)
    checkpoint = tmp_path / "c" / "checkpoint-2"
    (checkpoint / training.MARK).write_text("going on")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save(_Attack(tmp_path / "executed"), checkpoint / name)
    with pytest.raises(Exception, match="(?i)weights.only"):
        training.train(base_of(), toy(), SMALL, tmp_path / "c", seed=1)
    assert not (tmp_path / "executed").exists()


def test_what_training_cannot_do_is_refused(tmp_path):
    base, data = base_of(), toy()
    with pytest.raises(ValueError, match="at least one"):
        training.train(base, [], SMALL, tmp_path, seed=1)
    with pytest.raises(ValueError, match="5 are allowed"):
        training.train(base, data, SMALL.model_copy(update={"max_tokens": 5}), tmp_path, seed=1)


def test_fault_069_a_base_with_an_adapter_is_refused(tmp_path):
    base, data = base_of(), toy()
    model, _, _ = training.train(base, data, SMALL.model_copy(update={"n_steps": 1}), tmp_path / "c", seed=1)
    training.save(model, base, tmp_path / "a")
    adapted = with_adapter(base, tmp_path / "a")
    with pytest.raises(ValueError, match="active adapters"):
        training.train(adapted, data, SMALL, tmp_path / "d", seed=1)


def test_fault_050_padding_is_masked_by_lengths():
    """Id 0 and the end of the turn occur in rows too, so no mask is made from ids."""
    data = toy(2)
    rows = [training._row(example, SMALL) for example in data]
    batch = training.collate(rows)
    lengths = [len(example.ids) for example in data]
    assert lengths[0] != lengths[1]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for i, n in enumerate(lengths):
        assert batch["labels"][i, :, n:].eq(IGNORED).all()
        assert batch["labels"][i, :, :n].tolist() == [rows[i]["labels"], rows[i]["rivals"]]
