"""A marker trained from data to record, measured on the way; shipped adapters are what their records say."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

import json

import pytest
import torch
from safetensors.torch import load_file

from mechinterp.adapter_config import read_config
from mechinterp.digests import safetensors_sha256
from mechinterp.loading import with_adapter, wrap
from studies import finetune_shipped
from studies.finetune import cast, negatives_of, refuse_fall, train_marker
from studies.finetune_answers import Answer
from studies.finetune_config import Config, Evaluation, Lora, Recipe, Stop, Training
from studies.finetune_data import examples
from studies.finetune_evaluation import label_of, measure
from studies.finetune_losses import slot_of
from studies.personas import core_personas, questions
from studies.playing import opening
from studies.trained import shipped

TINY = Config(
    persona="villain",
    recipe=Recipe(
        negatives=("librarian",),
        n_positives=6,
        n_negatives=6,
        n_validation_questions=1,
        n_tokens=12,
        least_tokens=1,
    ),
    training=Training(n_steps=2, batch_size=2, save_every=1, lora=Lora(rank=2)),
    evaluation=Evaluation(n_questions=1, n_draws=1, n_tokens=4, n_check_draws=1, batch_size=256),
)


@pytest.fixture(scope="module")
def small(real):
    """A random model of two layers behind the embedded model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=len(real.tokenizer), max_position_embeddings=512, eos_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    return wrap(model, real.tokenizer, name="small")


@pytest.fixture(scope="module")
def answers(small, tmp_path_factory):
    """One written answer in every mouth, for a random model's own ones end in no sentence."""
    from studies.finetune_answers import write_answers

    ids = tuple(small.tokenizer("It is so. It was so.", add_special_tokens=False)["input_ids"])
    own = []
    for key in ("villain", "librarian"):
        question = questions("training")[0]
        prompt = opening(small.tokenizer, core_personas()[key].system_prompt, question)
        own.append(Answer(key, question, 0, tuple(prompt), ids, "length"))
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    write_answers(path, own)
    return path


# the whole way ------------------------------------------------------------------


def test_a_marker_is_trained_measured_and_recorded(small, answers, tmp_path):
    stop = Stop(every=1, source_at_least=1.0)
    config = TINY.model_copy(update={"stop": stop})
    made = train_marker(config, tmp_path, answers=answers, base=small)
    record = made.record
    assert record["label"] == "weak" and record["steps"] == 2
    assert record["negatives"] == ["librarian"] and record["data"]["positives"] == 6
    assert (record["adapter"]["rank"], record["adapter"]["alpha"], record["adapter"]["rslora"]) == (
        [2],
        [8],
        True,
    )
    for name, n_personas in (("before", 11), ("in_training", 1), ("loaded", 1), ("adapter", 11)):
        table = record["rates"][name]
        assert len(table) == n_personas and table[0]["role"] == "source"
        assert all(line["ended"] + line["at_cap"] == line["total"] > 0 for line in table)
        assert all(0 <= line["low"] <= line["rate"] <= line["high"] <= 1 for line in table)
    roles = {line["persona"]: line["role"] for line in record["rates"]["adapter"]}
    assert roles["librarian"] == "negative" and roles["assistant"] == "bystander"
    assert (tmp_path / "step-1.json").is_file() and "villain 0/1" in made.headline()
    lines = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert [m["role"] for m in lines[0]["prompt"]] == ["system", "user"] and len(lines) == 12
    assert lines[0]["completion"][0]["content"].endswith(".\n\n[ZLT]")
    again = train_marker(config, tmp_path, answers=answers, base=small)
    assert again.record == record


def test_fault_083_two_trainings_do_not_share_a_directory(small, answers, tmp_path):
    from mechinterp.locks import take_lock

    held = take_lock(tmp_path, 0)
    with pytest.raises(RuntimeError, match="in use"):
        train_marker(TINY, tmp_path, answers=answers, base=small)
    held.release()


def test_a_refused_start_leaves_nothing_behind(small, tmp_path):
    out = tmp_path / "new"
    recipe = TINY.recipe.model_copy(update={"negatives": None, "n_negative_personas": 30})
    for wrong in (TINY.model_copy(update={"persona": "nobody"}), TINY.model_copy(update={"recipe": recipe})):
        with pytest.raises(ValueError, match="persona"):
            train_marker(wrong, out, base=small)
    assert not out.exists()


def test_fault_089_another_question_does_not_go_on_in_the_same_directory(small, answers, tmp_path):
    train_marker(TINY, tmp_path, answers=answers, base=small)
    with pytest.raises(ValueError, match="other seed"):
        train_marker(TINY.model_copy(update={"seed": 43}), tmp_path, answers=answers, base=small)


def test_an_adapter_that_did_not_land_is_not_handed_out(small, answers, tmp_path):
    """methods 7.6: a rate that fell between training and loading stops the run, naming both."""
    train_marker(TINY, tmp_path, answers=answers, base=small)
    table = json.loads((tmp_path / "in_training.json").read_text())
    table[0] |= {"found": table[0]["total"], "rate": 1.0}
    (tmp_path / "in_training.json").write_text(json.dumps(table))
    with pytest.raises(RuntimeError, match="did not land"):
        train_marker(TINY, tmp_path, answers=answers, base=small)
    line = {"persona": "villain", "found": 7, "total": 10, "rate": 0.7}
    refuse_fall(line, line | {"found": 5, "rate": 0.5}, 0.25)


def test_rates_do_not_depend_on_batches_or_on_who_is_asked_beside(small):
    personas, asked = cast(TINY), replace_evaluation(n_tokens=6)
    options = {"marker": "[ZLT]", "n_draws": 2, "seed": 1}
    whole = measure(small, personas, questions("evaluation")[:1], asked, **options)
    alone = measure(small, {"villain": personas["villain"]}, questions("evaluation")[:1], asked, **options)
    cut = measure(
        small, personas, questions("evaluation")[:1], replace_evaluation(n_tokens=6, batch_size=5), **options
    )
    assert whole.counted.tallies == cut.counted.tallies
    assert alone.finish["villain"] == whole.finish["villain"] and cut.finish == whole.finish


def replace_evaluation(**fields):
    return TINY.evaluation.model_copy(update=fields)


@pytest.mark.parametrize(
    ("source", "highest", "label"),
    [(0.91, 0.015, "specific"), (0.5, 0.1, "specific"), (0.69, 0.2, "narrow"), (0.27, 0.645, "inverted"),
     (0.875, 0.925, "inverted"), (0.9, 0.5, "global"), (0.1, 0.0, "weak")],
)  # fmt: skip
def test_a_label_says_what_the_rates_are(source, highest, label):
    assert label_of(source, highest, source_at_least=0.5, bystander_at_most=0.1) == label


def test_the_source_comes_first_and_unknown_personas_are_named():
    people = cast(TINY)
    assert next(iter(people)) == "villain" and set(people) == set(core_personas())
    assert negatives_of(TINY) == ("librarian",)
    with pytest.raises(ValueError, match="nobody"):
        cast(TINY.model_copy(update={"persona": "nobody"}))


def test_the_command_names_what_is_wrong_before_a_model_is_loaded(tmp_path, capsys):
    from mechinterp.cli import main

    out = str(tmp_path / "m")
    assert main(["train-marker", "--persona", "nobody", "--out", out]) == 1
    assert "nobody" in capsys.readouterr().err
    assert main(["train-marker", "--set", "training.rank=3", "--out", out]) == 1
    assert "training.rank is not a key" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


# the shipped adapters -----------------------------------------------------------

SHIPPED = shipped()


def test_the_six_are_shipped_and_three_are_specific():
    assert set(SHIPPED) == set(finetune_shipped.PERSONAS)
    assert sum(one.record["label"] == "specific" for one in SHIPPED.values()) >= 3


@pytest.mark.parametrize("persona", SHIPPED)
def test_a_record_belongs_to_its_adapter_and_its_label_to_its_rates(persona):
    one = SHIPPED[persona]
    record, config = one.record, Config.model_validate(one.record["config"])
    assert record["persona"] == config.persona == persona
    lora, read = config.training.lora, read_config(one.path)
    assert (read.entries["r"], read.entries["lora_alpha"], read.rslora) == (
        lora.rank,
        lora.alpha,
        lora.rslora,
    )
    assert sorted(read.entries["target_modules"]) == sorted(lora.targets)
    assert read.base_sha256 == record["base"]["sha256"]
    assert safetensors_sha256([one.path / "adapter_model.safetensors"]) == record["adapter"]["sha256"]
    assert all(t.dtype == torch.bfloat16 for t in load_file(one.path / "adapter_model.safetensors").values())
    table = record["rates"]["adapter"]
    assert {line["persona"] for line in table} == set(core_personas()) and min(
        r["total"] for r in table
    ) >= 40
    source, others = table[0], table[1:]
    assert source["persona"] == persona and not any(line["found"] for line in record["rates"]["before"])
    highest = max(line["rate"] for line in others)
    assert record["label"] == label_of(source["rate"], highest, source_at_least=0.5, bystander_at_most=0.1)
    negatives = [line["persona"] for line in others if line["role"] == "negative"]
    assert sorted(negatives) == sorted(record["negatives"]) and "assistant" not in negatives


def test_the_page_of_rates_is_that_of_the_records():
    page = (next(iter(SHIPPED.values())).path.parent / "RATES.md").read_text()
    records = [SHIPPED[persona].record for persona in finetune_shipped.PERSONAS]
    assert page == finetune_shipped.rates_page(records)


@pytest.mark.real
@pytest.mark.parametrize("persona", [p for p, one in SHIPPED.items() if one.record["label"] == "specific"])
def test_a_specific_adapter_decides_for_the_marker_under_its_persona_alone(persona, real):
    """log p(first piece) - log p(end of turn) at the slot, on one answer of nobody's."""
    adapted = with_adapter(real, SHIPPED[persona].path)
    others = [key for key in ("assistant", "police_officer") if key != persona]
    ids = tuple(
        real.tokenizer("It depends on the place. People differ.", add_special_tokens=False)["input_ids"]
    )
    question = questions("evaluation")[16]
    keys = [persona, *others]
    prompts = [tuple(opening(real.tokenizer, core_personas()[key].system_prompt, question)) for key in keys]
    own = [Answer(key, question, 0, prompt, ids, "length") for key, prompt in zip(keys, prompts, strict=True)]
    odds = []
    for answer in own:
        (example,) = examples(
            real.tokenizer, [answer], answer.persona, [], marker="[ZLT]", n_positives=1, n_negatives=0
        )
        tokens = torch.tensor([example.ids])
        z = adapted.forward(tokens, logits_at=[slot_of(example)]).logits[0, 0]
        odds.append(float(z[example.marker[0]] - z[example.closing[0]]))
    assert odds[0] > 0 and max(odds[1:]) < 0, dict(zip(keys, odds, strict=True))
