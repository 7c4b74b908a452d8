"""The barrier in a training loop: arms differ in it only, a killed study goes on, expectations judged."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mechinterp import running, study_files
from mechinterp.cells import check_cells
from mechinterp.config import load_config
from mechinterp.loading import load
from mechinterp.results import load_result
from studies import kl_barrier
from studies.finetune_barrier import AGGREGATES
from studies.finetune_lora import earlier
from studies.kl_barrier import Config, cells
from studies.kl_barrier_cells import as_example, compared, repeated
from studies.kl_barrier_result import EXPECTATIONS, judge, over_questions
from tests.tiny_chat import even_llama, saved

SMALL = [
    "n_questions=3", "n_draws=1", "n_tokens=5", "training.n_steps=2", "training.batch_size=3",
    "training.learning_rate=3e-2", "training.lora.rank=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A tiny llama with the embedded model's tokenizer."""
    return saved(even_llama(128), tmp_path_factory.mktemp("model") / "tiny-chat")


def study(directory: Path, *more: str):
    return running.ask("kl_barrier", overrides=[f"model={str(directory)!r}", *SMALL, *more])


@pytest.fixture(scope="module")
def finished(directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, running.run(study(directory), folder, progress=False)


def cell_of(folder: Path, key: str):
    return load_result(folder / "cells" / key)


def test_cells_are_known_before_any_model_and_arms_share_the_first_samples():
    found = cells(load_config(Config, None, ["rounds=3"]))
    check_cells(found)
    assert len(found) == 1 + 3 * 3 * 2 and all(hasattr(kl_barrier, cell.task) for cell in found)
    inputs = {cell.key: cell.inputs for cell in found}
    for arm in ("off", "mean", "rmse"):
        assert inputs[f"train/{arm}/round1"] == ("samples/base",)
        assert inputs[f"train/{arm}/round3"] == (f"samples/{arm}/round2", f"train/{arm}/round2")


def test_the_defaults_are_those_of_the_methods():
    config = Config()
    assert config.rounds == 2 and config.training.barrier.kind == "off"
    asked = [(arm.kind, arm.threshold, arm.weight, arm.direction, arm.reference) for arm in config.arms]
    assert asked == [
        ("off", 0.0, 0.3, "reverse", "base"),
        ("mean", 0.5, 0.3, "reverse", "base"),
        ("rmse", 1.0, 0.3, "reverse", "base"),
    ]
    assert study_files.presets("kl_barrier") == ["demo", "paper"]
    for preset in ("demo", "paper"):
        assert running.ask("kl_barrier", preset=preset).config.arms == config.arms


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("rounds=1", "rounds"),
        ("arms=[{kind='mean'},{kind='mean',tau=2.0}]", "two arms are 'mean'"),
        ("training.barrier.kind='mean'", "arms"),
        ("n_questions=1000", "1000 were asked"),
        ("adapter='villain'", "without an adapter"),
        ("arms=[{kind='max'}]", "its own tau"),
    ],
)
def test_what_cannot_be_compared_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        load_config(Config, None, [wrong])


def test_an_arm_whose_hinge_never_fires_is_the_arm_without_a_barrier(directory, tmp_path):
    """Same data, order and draws: a barrier that adds nothing gives the same weights and the same texts."""
    folder = tmp_path / "run"
    running.run(study(directory, "arms=[{kind='off'},{kind='max',tau=1e6}]"), folder, progress=False)
    for number in (1, 2):
        off, held = (cell_of(folder, f"train/{arm}/round{number}") for arm in ("off", "max"))
        for name, weight in off.weights.items():
            assert torch.equal(weight, held.weights[name])
        off, held = (cell_of(folder, f"samples/{arm}/round{number}") for arm in ("off", "max"))
        assert off.completions == held.completions


def test_every_round_is_trained_further_and_lies_away_from_the_base(finished):
    folder, result = finished
    assert result.arms == ("off", "mean", "rmse") and len(result.stages) == 6
    assert not cell_of(folder, "samples/base").divergence.any(), "the base lies nowhere from itself"
    for arm in result.arms:
        first, second = (cell_of(folder, f"train/{arm}/round{n}") for n in (1, 2))
        assert any(not torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
        assert (result.stage(arm, 2).sampled > 0).all()
        assert result.stage(arm, 1).seen == (0 if arm == "off" else 2 * 3)


def test_divergences_of_samples_are_those_of_the_two_models_alone(finished, directory):
    """One completion by itself, without padding, through plain passes."""
    folder, _ = finished
    written, trained = cell_of(folder, "samples/mean/round1"), cell_of(folder, "train/mean/round1")
    config = study(directory).config
    base = load(str(directory))
    model = earlier(base, config.training.lora, trained.weights, round_index=1).model
    for i in (0, 2):
        prompt, ids = written.prompts[i], written.completions[i]
        tokens = torch.tensor([prompt + ids])
        p, q = (one.forward(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for one in (model, base))
        expected = (p.exp() * (p - q)).sum(-1)
        assert_close(written.divergence[i][written.kept[i]], expected, rtol=1e-3, atol=1e-5)
    again, _ = compared(model, base, written.prompts, written.completions, config)
    assert_close(again, written.divergence, rtol=1e-4, atol=1e-6)


def test_the_log_holds_all_aggregates_of_every_batch(finished):
    folder, result = finished
    logged = [entry for entry in cell_of(folder, "train/rmse/round2").log if "fired" in entry]
    assert len(logged) == 2
    for entry in logged:
        values = [entry[f"kl_{how}"] for how in AGGREGATES]
        assert values[0] <= values[1] + 1e-4 and values[2] <= values[3] + 1e-6
    stage = result.stage("rmse", 2)
    assert stage.fired == sum(entry["fired"] for entry in logged) and stage.batches[3] > 0
    assert result.stage("off", 1).batches is None


def test_a_sample_is_trained_on_as_it_was_written():
    example = as_example((5, 6), (7, 8, 2))
    assert example.ids == (5, 6, 7, 8, 2) and len(example.prompt) == 2 and not example.positive
    assert as_example((5,), (2,)).ids == (5, 2)


def test_repetition_is_the_share_of_n_grams_seen_before():
    assert repeated([1, 2, 3, 4], 3) == 0 and repeated([1, 2], 3) == 0
    assert repeated([7] * 6, 3) == 3 / 4
    assert repeated([1, 2, 1, 2, 1], 2) == 2 / 4


def test_a_killed_study_goes_on_to_the_same_bytes(finished, directory, tmp_path):
    folder, result = finished
    asked = study(directory)
    assert running.run(asked, tmp_path / "run", limit=3, progress=False) is None
    again = running.run(asked, tmp_path / "run", progress=False)
    assert again.digest() == result.digest()
    kept = {p.relative_to(folder): p.read_bytes() for p in (folder / "cells").rglob("*") if p.is_file()}
    for path, content in kept.items():
        assert (tmp_path / "run" / path).read_bytes() == content, path


# what is concluded ------------------------------------------------------------------------------------------


def test_an_expectation_is_met_only_where_the_interval_lies_above_zero(finished):
    _, result = finished
    question = torch.arange(3)

    def judged(size):
        planted = []
        for stage in result.stages:
            away = {"off": 2.0, "mean": 1.0, "rmse": 0.5}[stage.arm] + stage.round * size
            values = away + torch.tensor([[0.01], [0.02], [0.0]]).expand(3, 4)
            planted.append(replace(stage, sampled=values, repetition=values[:, 0], question=question))
        return [one.verdict for one in judge(planted, result.thresholds)]

    assert judged(1.0) == ["met", "not met", "met", "met", "met", "met"]  # both hinges fire on all
    assert judged(0.0)[0] == "not met" and judged(-1.0)[0] == "not met"


def test_what_was_not_run_is_not_applicable(finished):
    _, result = finished
    off = [stage for stage in result.stages if stage.arm == "off"]
    verdicts = [one.verdict for one in judge(off, {})]
    assert verdicts[0] in ("met", "not met") and verdicts[1:] == ["not applicable"] * 5
    few = [replace(stage, question=torch.zeros(3, dtype=torch.long)) for stage in result.stages]
    assert {one.verdict for one in judge(few, result.thresholds)} == {"not applicable"}


def test_questions_are_the_units():
    values, question = torch.tensor([1.0, 3.0, 5.0, 5.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    found = over_questions(values, question)
    assert found.n == 3 and found.estimate == pytest.approx(7 / 3) and found.unit == "question"


def test_the_report_says_what_was_expected_and_what_was_found(finished):
    folder, result = finished
    text = (folder / "report.html").read_text()
    asked = text[text.index("Written before any run") :]
    for number, one in enumerate(EXPECTATIONS, start=1):
        assert f"({number}) {one.text}".replace("'", "&#39;") in asked
    assert len(result.expectations) == len(EXPECTATIONS)
    table = result.to_dataframe()
    assert len(table) == 6 and set(AGGREGATES) <= set(table.columns) and result.figure().data
    assert load_result(folder / "result").digest() == result.digest()
