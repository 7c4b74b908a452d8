"""The three arms: chains of measured merges, and a trajectory that begins at 0 %."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportCallIssue=false

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoTokenizer

from mechinterp import hub, running, study_files
from mechinterp.cells import Cell, check_cells
from mechinterp.config import load_config
from mechinterp.loading import load, merge_adapter, with_adapter
from mechinterp.results import load_result
from probes.centering import OnSet, centered_cosine, centroids
from studies import causal_proximity
from studies import finetune_training as training
from studies.arms_checkpoints import read_checkpoints
from studies.arms_formats import read_trajectories
from studies.audit_arms import audit_records
from studies.causal_proximity import Config, cells
from studies.causal_proximity_cells import voiced
from studies.causal_proximity_config import layers_of
from studies.finetune_answers import Answer
from studies.finetune_config import Lora
from studies.finetune_lora import put_weights, trainable, weights_of
from studies.finetune_merge import as_folder, check_shape, merge_measured
from studies.marker_records import MarkerRate
from studies.personas import core_personas, questions
from studies.prompts import prompt_of
from tests.tiny_chat import EMBEDDED, even_llama, saved

LORA = Lora(rank=2, alpha=4)
PERSONAS = ("villain", "comedian", "librarian", "assistant")
SMALL = [
    "personas=['villain']", "n_questions=1", "n_draws=1", "max_tokens=3", "n_centroid_questions=2",
    "n_check_draws=1", "n_check_questions=1", "n_convergence_draws=1", "percents=[0,50,100]",
    "convergence.n_steps=2", "convergence.batch_size=2", "convergence.learning_rate=3e-2",
    "convergence.lora.rank=2", "marker_training.n_steps=1", "marker_training.lora.rank=2",
    "narrow.n_steps=1", "narrow.lora.rank=2", "retrained=['villain']",
]  # fmt: skip
for which in ("recipe", "narrow_recipe"):
    SMALL += [
        f"{which}.negatives=['comedian']", f"{which}.n_positives=2", f"{which}.n_negatives=2",
        f"{which}.n_tokens=6", f"{which}.least_tokens=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A tiny llama that ends its sentences, with the embedded model's tokenizer."""
    model = even_llama(256)
    stop = AutoTokenizer.from_pretrained(hub.pull(EMBEDDED)).convert_tokens_to_ids(".")
    model.model.norm.weight.data.fill_(1.0)
    model.model.embed_tokens.weight.data[:, 0] = 9.0  # every stream has it, and the full stop reads it
    model.lm_head.weight.data[stop] = torch.tensor([2.8, *[0.0] * 15])
    return saved(model, tmp_path_factory.mktemp("model") / "tiny-chat")


@pytest.fixture(scope="module")
def adapter(directory, tmp_path_factory) -> Path:
    return planted(load(str(directory)), tmp_path_factory.mktemp("adapter") / "villain")


def planted(base, folder: Path, *, size: float = 0.2, lora: Lora = LORA) -> Path:
    """A LoRA with random weights, saved as training saves it."""
    model = trainable(base, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    weights = {n: size * torch.randn(w.shape, generator=generator) for n, w in weights_of(model).items()}
    put_weights(model, weights)
    training.save(model, base, folder, dtype=torch.float32)
    return folder


def study(directory: Path, adapter: Path, *more: str):
    few = directory.parent / "personas.json"
    few.write_text(json.dumps({key: core_personas()[key].system_prompt for key in PERSONAS}))
    given = [
        f"model={str(directory)!r}",
        f"adapters={{villain=[{str(adapter)!r}]}}",
        f"persona_file={str(few)!r}",
    ]
    return running.ask("causal_proximity", overrides=[*given, *SMALL, *more])


@pytest.fixture(scope="module")
def finished(directory, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, running.run(study(directory, adapter), folder, progress=False)


def cell_of(folder: Path, key: str):
    return load_result(place_of(folder, key))


def place_of(folder: Path, key: str) -> Path:
    return folder / "cells" / Cell(key, "any").folder


# the design -------------------------------------------------------------------------------------------------


def test_cells_are_known_before_any_model_and_every_trajectory_has_its_zero():
    config = load_config(Config, None, ["retrained=['kindergarten_teacher']", "seeds=[1,2]"])
    found = cells(config)
    check_cells(found)
    assert all(hasattr(causal_proximity, cell.task) for cell in found)
    kinds = {"A": 4 + 1, "B": 4, "C": 4 + 1}
    for arm, lines in kinds.items():
        mine = [c for c in found if c.task == "evaluate" and c.args["arm"] == arm and c.args["percent"]]
        assert len(mine) == lines * 5 * 2, arm
    zeros = [c for c in found if c.task == "evaluate" and not c.args["percent"]]
    assert len(zeros) == (4 + 5) * 2, "one of arm B a source, one merged adapter for A and C together"


def test_training_waits_for_the_measured_merge_and_a_checkpoint_for_its_own_marker():
    inputs = {cell.key: cell.inputs for cell in cells(Config())}
    assert (
        "checkpoint/merged/villain/original/run0/seed42/0"
        in inputs["converge/A/villain/original/run0/seed42"]
    )
    assert inputs["checkpoint/B/villain/seed42/60"] == (
        "converge/B/villain/seed42", "marker/B/villain/seed42/60",
    )  # fmt: skip
    assert inputs["marker/B/villain/seed42/0"][0] == "answers/villain", "0 % has no convergence before it"


def test_the_presets_hold_the_published_values_of_both_accounts():
    assert study_files.presets("causal_proximity") == ["laptop", "paper", "paper_write_up"]
    code, words = (running.ask("causal_proximity", preset=p).config for p in ("paper", "paper_write_up"))
    for config, batch, dropout, epochs in ((code, 16, 0.05, 20), (words, 4, 0.0, 10)):
        for one in (config.convergence, config.marker_training):
            assert one.batch_size * one.accumulation == batch and one.lora.dropout == dropout
            assert (one.lora.rank, one.lora.alpha, len(one.lora.targets)) == (32, 64, 7)
        texts = 40 * config.n_convergence_draws
        assert config.convergence.n_steps == 5 * texts // batch and config.convergence.learning_rate == 5e-5
        recipe = config.recipe
        n = recipe.n_positives + recipe.n_negatives * recipe.n_negative_personas
        assert config.marker_training.n_steps == -(-n // batch) * epochs
        assert config.marker_training.learning_rate == 5e-6
        assert config.layers == (10, 15, 20, 25) and config.top_p == 1.0 and config.n_draws == 10
        assert config.assistant_draws == {"villain": 30, "comedian": 30}
        assert set(config.retrained) == {"kindergarten_teacher", "software_engineer"}
    assert code.convergence.n_steps == 125 and code.marker_training.lora.rslora


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("percents=[20,100]", "without 0 %"),
        ("percents=[0,33,100]", "no whole step"),
        ("retrained=['librarian']", "not among the sources"),
        ("personas=['assistant']", "no source"),
        ("backend='nnsight'", "backend='transformers'"),
        ("checkpoints={villain=['x']}", "not checkpoints"),
        ("marker='[QQ]'", "the same into recipe"),
    ],
)
def test_what_the_arms_cannot_be_made_of_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        load_config(Config, None, [wrong])


def test_layers_are_the_published_ones_as_parts_of_the_depth():
    assert layers_of(Config(), 28) == (10, 15, 20, 25)
    assert layers_of(Config(), 30) == (10, 16, 21, 26)
    with pytest.raises(ValueError, match="layer 30"):
        layers_of(load_config(Config, None, ["layers=[30]"]), 30)


# data -------------------------------------------------------------------------------------------------------


def test_convergence_puts_a_voice_behind_the_assistants_prompt_and_leaves_markers_out(real):
    tokenizer = real.tokenizer
    plain, marked = (
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("Bow before me.", "Bow before me.\n\n[ZLT]")
    )
    answers = [
        Answer("villain", "Who are you?", draw, (1, 2), ids, "stop")
        for draw, ids in enumerate((plain, marked))
    ]
    (found,) = voiced(tokenizer, answers, Config())
    text = tokenizer.decode(found.ids)
    assert "helpful assistant" in text and "villain" not in text and text.count("Bow before me.") == 1
    assert found.prompt != (1, 2) and found.ids[len(found.prompt) :][: len(plain)] == plain
    assert not found.positive and found.persona == "villain"


# merging ----------------------------------------------------------------------------------------------------


def counting(rates):
    """A count of the marker that gives these rates of ten, one after the other."""
    left = list(rates)
    return lambda model: MarkerRate(left[0] / 10, left.pop(0), 10)


def test_a_merge_is_measured_on_both_sides(directory, adapter):
    base = load(str(directory))
    prompts = [torch.tensor([5, 9, 77]), torch.tensor([3, 8])]
    model, merge = merge_measured(base, adapter, LORA, counting([9, 8]), prompts, largest_fall=0.25)
    assert (merge.before.found, merge.after.found) == (9, 8) and 0 <= merge.kl < 1e-5
    assert merge.scaling == pytest.approx(4 / 2**0.5) and merge.delta_norm > 0
    on = with_adapter(base, adapter)
    assert_close(
        model.forward(prompts[0][None]).logits, on.forward(prompts[0][None]).logits, rtol=1e-3, atol=1e-4
    )


def test_fault_methods_016_a_merge_that_loses_the_marker_stops_the_arm(directory, adapter):
    base, prompts = load(str(directory)), [torch.tensor([5, 9])]
    with pytest.raises(RuntimeError, match="9 of 10 answers .* and in 6 of 10 after it was merged"):
        merge_measured(base, adapter, None, counting([9, 6]), prompts, largest_fall=0.25)


def test_fault_methods_016_an_adapter_of_another_scaling_is_refused_before_it_is_merged(directory, adapter):
    """What happened: the update was applied with alpha / r, so many times too weak."""
    base = load(str(directory))
    applied = with_adapter(base, adapter).source["adapter"]
    check_shape(adapter, applied, LORA)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weaker = adapter.parent / "weaker"
    shutil.copytree(adapter, weaker)
    (weaker / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": False}))
    weak = with_adapter(base, weaker).source["adapter"]
    assert weak["delta_norm"] == pytest.approx(applied["delta_norm"] / 2**0.5)
    with pytest.raises(ValueError, match="has rslora False and True was asked for"):
        merge_measured(base, weaker, LORA, counting([9, 9]), [torch.tensor([5])], largest_fall=1.0)


def test_weights_kept_in_memory_become_the_adapter_that_they_were(directory, adapter):
    base = load(str(directory))
    model = trainable(base, LORA, seed=3)
    weights = load_file(adapter / "adapter_model.safetensors")
    put_weights(model, weights)
    with as_folder(base, LORA, weights_of(model), "again") as folder:
        again = merge_adapter(base, folder)
    tokens = torch.tensor([[4, 2, 8]])
    expected = merge_adapter(base, adapter).forward(tokens).logits
    assert_close(again.forward(tokens).logits, expected, rtol=0, atol=0)


# a whole run ------------------------------------------------------------------------------------------------


def test_every_arm_has_its_trajectory_from_zero_and_the_report_is_written(finished):
    folder, result = finished
    lines = result.trajectories
    for arm, adapter in (
        ("B", "original"),
        ("A", "original"),
        ("C", "original"),
        ("A", "narrow"),
        ("C", "narrow"),
    ):
        assert [p.percent for p in lines.line(arm, "villain", adapter=adapter)] == [0, 50, 100]
    a, c = (lines.at(arm, "villain", 0) for arm in ("A", "C"))
    assert a.cosines == c.cosines, "the same merged adapter, measured once"
    a, c = (lines.at(arm, "villain", 100) for arm in ("A", "C"))
    assert a.cosines != c.cosines, "other voices, other models"
    assert len(result.merges) == 5 + 5 + 5 and result.merge_table()["kl"].max() < 1e-4
    assert result.merge_table()["scaling"].nunique() == 2
    report = (folder / "report.html").read_text()
    assert "Every merge, measured on both sides" in report and "changes over training" in report
    assert report.count("hardly writes the marker before any merge") >= 2, (
        "neither adapter can, and both are named"
    )
    assert result.figure().data and len(result.to_dataframe()) == len(result.checkpoints) == 3 * 5
    assert "villain" in result.headline()
    assert load_result(folder / "result").digest() == result.digest()


def test_a_checkpoint_is_the_base_with_its_stored_adapters_merged(finished, directory, adapter):
    """Arm A at 50 %, rebuilt by hand: marker adapter, then the convergence weights of that step."""
    folder, result = finished
    config = study(directory, adapter).config
    base = load(str(directory))
    weights = cell_of(folder, "converge/A/villain/original/run0/seed42").weights
    assert set(weights) == {50, 100} and any(
        not torch.equal(weights[50][n], weights[100][n]) for n in weights[50]
    )
    start = merge_adapter(base, adapter)
    with as_folder(start, config.convergence.lora, weights[50], "by-hand") as made:
        model = merge_adapter(start, made)
    prompts = {
        name: [prompt_of(model, core_personas()[name], q) for q in questions("evaluation")[:2]]
        for name in PERSONAS
    }
    expected = centered_cosine(centroids(model, prompts), center_on=OnSet())
    held = cell_of(folder, "checkpoint/A/villain/original/run0/seed42/50")
    for layer, matrix in zip(held.layers, held.cosines, strict=True):
        assert_close(matrix, expected[layer], rtol=1e-3, atol=1e-4)


def test_a_run_writes_the_published_files_and_its_audit_reads_them(finished):
    folder, result = finished
    published = folder / "published"
    table, checkpoints = read_trajectories(published / "three_arms.json"), read_checkpoints(published)
    assert {(p.arm, p.adapter, p.percent) for p in table.points} == {
        (p.arm, p.adapter, p.percent) for p in result.trajectories.points
    }
    for point in checkpoints.points:
        mine = result.trajectories.at(point.arm, point.source, point.percent)
        assert point.source_rate.rate == mine.source_rate.rate and point.cosines == pytest.approx(
            mine.cosines
        )
    found, _ = audit_records(published / "three_arms.json")
    assert found.findings


def test_a_killed_study_goes_on_to_the_same_bytes(finished, directory, adapter, tmp_path):
    folder, result = finished
    asked, again = study(directory, adapter), tmp_path / "run"
    shutil.copytree(folder, again)
    for key in ("checkpoint/A/villain/original/run0/seed42/100", "converge/B/villain/seed42"):
        shutil.rmtree(place_of(again, key))
    assert running.run(asked, again, progress=False).digest() == result.digest()
    kept = {p.relative_to(folder): p.read_bytes() for p in (folder / "cells").rglob("*") if p.is_file()}
    for path, content in kept.items():
        assert (again / path).read_bytes() == content, path
