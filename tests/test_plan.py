"""What a study will cost, said before it runs, is what it costs when it runs."""

import json
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import mechinterp as mi
from mechinterp import cli, passes, plan, running, shapes
from mechinterp.costs import DEVICES, Costs
from mechinterp.known_configs import SIZES, known_config
from mechinterp.stand_in import dictated, stand_in
from tests.architectures import FAMILIES, config
from tests.conftest import EMBEDDED

H100 = DEVICES["h100"]
SHORT = ["n_steer=5", "n_free=6", "n_runs=2", "roles=['medieval_bard']", "kl=true"]


class Allocated(TorchDispatchMode):
    """The most bytes of tensors that were held at once, beside those that are known."""

    def __init__(self, known):
        super().__init__()
        self.held = dict.fromkeys((tensor.untyped_storage().data_ptr() for tensor in known), 0)
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return made

    def note(self, storage):
        key, n = storage.data_ptr(), storage.nbytes()
        if key in self.held or not n:
            return
        self.held[key] = n
        self.now += n
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, key)

    def gone(self, key):
        self.now -= self.held.pop(key, 0)


def planned(study, *overrides, preset="demo", model=EMBEDDED, dtype="float32", all_cells=True):
    asked = running.ask(study, preset=preset, overrides=overrides)
    shape = shapes.shape_of(model, dtype)
    return plan.plan(
        asked, shape.config, shape.tokenizer, name=shape.name, dtype=shape.dtype, device=H100,
        utilisation=0.4, all_cells=all_cells,
    )  # fmt: skip


@pytest.mark.real
@pytest.mark.timeout(300)
def test_passes_are_planned_exactly_and_matrix_products_and_memory_within_15_percent(real):
    asked = running.ask("persistence", preset="demo", overrides=SHORT)
    results, measured = {}, {}
    for cell in asked.cells():
        weights = [*real.backend.model.parameters(), *real.backend.model.buffers()]
        allocated = Allocated(weights)
        with passes.counted(real) as counting, FlopCounterMode(display=False) as flops, allocated:
            results[cell.key] = asked.task(cell, real, {key: results[key] for key in cell.inputs})
        n = measured.setdefault(cell.task, Counter())
        made = counting.passes
        n.update(prompts=made.prompts, tokens=made.tokens, forwards=made.forwards)
        n["flops"] += flops.get_total_flops()
        n["peak"] = max(n["peak"], allocated.peak + sum(w.numel() * 4 for w in weights))
    found = planned("persistence", *SHORT)
    assert {part.task for part in found.parts} == set(measured)
    for part in found.parts:
        real_one = measured[part.task]
        assert part.exact
        assert (part.prompts, part.tokens, part.forwards) == tuple(
            real_one[name] for name in ("prompts", "tokens", "forwards")
        )
        assert part.flops == pytest.approx(real_one["flops"], rel=0.15)
        assert part.memory.total == pytest.approx(real_one["peak"], rel=0.15)
    assert found.total("flops") > 1e9


@pytest.mark.parametrize(
    "study, preset",
    [
        ("zlt_attention", "demo"), ("marker_locus", "demo"), ("output_divergence", "demo"),
        ("question_insertion", "demo"), ("prefix_completion", "demo"), ("leakage", "demo"),
        ("steering_proximity", "demo"), ("kl_barrier", "demo"), ("kl_aggregation", "demo"),
    ],
)  # fmt: skip
@pytest.mark.timeout(300)
def test_every_study_is_planned(study, preset):
    found = planned(study, preset=preset, all_cells=False)
    assert [part.failed for part in found.parts] == [None] * len(found.parts)
    assert all(0 < part.n_counted <= part.n_cells for part in found.parts)
    has_models = study != "kl_aggregation"
    assert (found.total("flops") > 0) is has_models and (found.total("forwards") > 0) is has_models


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_arms_that_train_and_merge_are_planned():
    found = planned(
        "causal_proximity", "percents=[0, 100]", "n_questions=1", "n_centroid_questions=2",
        preset="laptop", all_cells=False,
    )  # fmt: skip
    assert [part.failed for part in found.parts] == [None] * len(found.parts)


def test_training_costs_in_proportion_to_its_steps_though_few_are_counted():
    few = ["n_questions=2", "n_draws=2", "n_tokens=8", "rounds=2"]
    once, twice = (
        next(
            p
            for p in planned("kl_barrier", *few, f"training.n_steps={n}", all_cells=False).parts
            if p.task == "train"
        )
        for n in (10, 20)
    )
    assert twice.forwards == pytest.approx(2 * once.forwards)
    assert twice.flops == pytest.approx(2 * once.flops) and once.flops > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_has_a_stand_in_and_its_matrix_products_are_counted(family, real):
    own = config(family)
    own.vocab_size = max(real.tokenizer.get_vocab().values()) + 1
    model = stand_in(own, real.tokenizer, family)
    tokens = torch.arange(40)[None]
    with passes.counted(model) as counting, FlopCounterMode(display=False) as flops:
        model.forward(tokens, logits_at=[-1])
    costs = Costs.of(model.backend.model.config, family, torch.float32)
    assert costs.flops(counting.passes) == pytest.approx(flops.get_total_flops(), rel=0.15)
    assert (counting.passes.forwards, counting.passes.tokens, counting.passes.prompts) == (1, 40, 1)


@pytest.mark.parametrize(
    "name, billions",
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7.6),
        ("google/gemma-2-27b-it", 27.2),
        ("meta-llama/Meta-Llama-3-70B", 70.6),
    ],
)
def test_the_sizes_of_public_models_are_known_without_a_hub(name, billions):
    costs = Costs.of(known_config(name), name, torch.bfloat16)
    assert costs.n_parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert costs.weights == 2 * costs.n_parameters
    assert known_config("nobody/nothing") is None and name in SIZES


def test_a_70b_model_needs_more_than_one_device_and_longer_than_7b():
    short = ["n_steer=2", "n_free=2", "n_runs=1", "layers=[15]"]
    small, large = (
        planned("persistence", *short, model=name, dtype="bfloat16", all_cells=False)
        for name in ("Qwen/Qwen2.5-7B", "meta-llama/Meta-Llama-3-70B")
    )
    assert (small.n_devices, large.n_devices) == (1, 2)
    assert large.total("flops") / small.total("flops") == pytest.approx(70.6 / 7.6, rel=0.15)
    assert large.total("seconds") > 8 * small.total("seconds")


def test_what_is_dictated_ends_with_the_marker_and_a_stop_in_every_other_row(real):
    model = stand_in(shapes.shape_of(EMBEDDED).config, real.tokenizer, "narrow")
    prompt = real.chat("What is the sea?").tokens[0]
    with passes.counted(model) as counting, dictated(counting, "[ZLT]"):
        said = mi.sample(model, [prompt, prompt], [mi.Phase(20)], temperature=1.0)
    texts = [real.decode(row) for row in said.generated]
    assert ["[ZLT]" in text for text in texts] == [True, False]
    assert said.finish_reason == ("stop", "stop") and said.generated.shape == (2, 20)
    assert counting.passes.forwards == 21, "the prompt once, and a pass for each token"
    assert not passes._open and torch.nn.modules.module._global_forward_hooks == {}


def test_the_command_prints_a_table_or_json_and_says_what_it_rests_on(capsys):
    short = ["plan", "persistence", "--preset", "demo", "--model", "Qwen/Qwen2.5-7B"]
    for one in ("n_steer=2", "n_free=2", "n_runs=1"):
        short += ["--set", one]
    assert cli.main(short) == 0
    said = capsys.readouterr().out
    assert "7.62 B parameters, 28 layers" in said and "peak memory of one model" in said
    assert "texts are cut by that of smollm2" in said and "hours on one h100" in said
    assert cli.main([*short, "--json", "--device", "a100", "--utilisation", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["device"] == "a100" and record["memory"]["total"] > record["memory"]["weights"] > 1.5e10
    assert [task["task"] for task in record["tasks"]] == ["extract", "reference", "steer"]


@pytest.mark.parametrize(
    "more, says",
    [
        (["--device", "abacus"], "there is no device 'abacus'; the devices are h200, h100"),
        (["--utilisation", "40"], "a share above 0 and up to 1, not 40"),
        (["--model", "nobody/nothing"], "not in the cache, and the hub is switched off; give"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_write(capsys, more, says):
    assert cli.main(["plan", "persistence", "--preset", "demo", *more]) == 1
    assert says in capsys.readouterr().err


def test_a_configuration_alone_is_enough(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}))
    shape = shapes.shape_of(str(file))
    assert shape.config.hidden_size == 64 and "its tokenizer" not in shape.notes
    assert any("cut by that of" in note for note in shape.notes)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is no model's configuration .*give its config.json"):
        shapes.shape_of(str(file))


def test_a_task_that_the_stand_in_stumbles_over_is_named_and_the_others_are_counted(monkeypatch):
    import studies.persistence

    def broken(*_):
        raise ValueError("no such thing")

    monkeypatch.setattr(studies.persistence, "reference", broken)
    found = planned("persistence", *SHORT, all_cells=False)
    failed = {part.task: part.failed for part in found.parts}
    assert failed["reference"] == "ValueError: no such thing" and failed["extract"] is None


def test_a_study_without_a_model_costs_nothing_and_says_so(capsys):
    assert cli.main(["plan", "kl_aggregation", "--preset", "demo", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["hours"] == 0 and [task["forwards"] for task in record["tasks"]] == [0]
