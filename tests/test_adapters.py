"""Adapter on is the merged model, adapter off the base bit for bit; one that did not land is refused."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from mechinterp.adapter_config import BASE_KEY, read_config
from mechinterp.adapter_weights import lora_layers, proven
from mechinterp.adapters import attach
from mechinterp.backends.anatomy import anatomy_of
from mechinterp.digests import tensors_sha256
from mechinterp.interventions import Add
from mechinterp.loading import load, merge_adapter, with_adapter, wrap
from mechinterp.sites import NAMES, Site
from mechinterp.study_models import weights_of
from tests.architectures import shared, tiny

FAMILIES = ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox"]
TOKENS = torch.tensor([[3, 7, 9, 100, 44], [5, 2, 8, 1, 60]])
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
FILE = "adapter_model.safetensors"


def trained(family, folder, *, size=0.05, **config):
    """Saves a LoRA with random A and B, as peft does, and returns peft's model with it on."""
    wanted = {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": TARGETS.get(family, ALL)}
    wanted |= {"fan_in_fan_out": family == "gpt2"} | config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(copy.deepcopy(shared(family)), LoraConfig(**wanted)).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data += size * torch.randn_like(parameter)
            if "lora_B" in name:
                parameter.data = size * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return model.requires_grad_(False)


def base_of(family):
    return wrap(shared(family), None, name=family)


def logits(model):
    return model(input_ids=TOKENS).logits


def edit_config(folder, **entries):
    file = folder / "adapter_config.json"
    config = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_weights(folder, change):
    save_file(change(load_file(folder / FILE)), folder / FILE)


# on and off ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_on_is_the_merged_model_at_every_site(family, tmp_path):
    merged = wrap(trained(family, tmp_path).merge_and_unload(), None, name="merged")
    on = with_adapter(base_of(family), tmp_path)
    wanted = [Site(name, layer) for layer in range(3) for name in NAMES if name in on.backend.sites]
    a, b = on.forward(TOKENS, capture=wanted), merged.forward(TOKENS, capture=wanted)
    assert_close(a.logits, b.logits, rtol=0, atol=1e-5)
    for site in wanted:
        assert_close(a[site], b[site], rtol=1e-4, atol=2e-5, msg=lambda text, site=site: f"{site}: {text}")
    off = base_of(family).forward(TOKENS).logits
    assert (a.logits - off).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_as_it_was_and_its_tensors_are_shared(family, tmp_path):
    trained(family, tmp_path)
    hf_model = tiny(family)
    first = next(hf_model.parameters()).requires_grad_(True)  # a flag of the user's own
    before, digest = logits(hf_model), tensors_sha256(hf_model.state_dict())
    modules = {name: id(module) for name, module in hf_model.named_modules()}
    flags = [p.requires_grad for p in hf_model.parameters()]
    config, random = hf_model.config.to_dict(), torch.random.get_rng_state()
    base = wrap(hf_model, None, name=family)
    on = with_adapter(base, tmp_path)
    on.forward(TOKENS, interventions=[Add(Site("resid_post", 1), torch.ones(64))])
    assert torch.equal(torch.random.get_rng_state(), random)
    assert {name: id(module) for name, module in hf_model.named_modules()} == modules
    assert [p.requires_grad for p in hf_model.parameters()] == flags and first.requires_grad
    assert hf_model.config.to_dict() == config and not hasattr(hf_model, "peft_config")
    assert tensors_sha256(hf_model.state_dict()) == digest
    assert torch.equal(logits(hf_model), before) and torch.equal(base.forward(TOKENS).logits, before)
    mine = {p.data_ptr() for p in hf_model.parameters()}
    theirs = {n: p for n, p in on.backend.model.named_parameters() if p.data_ptr() not in mine}
    assert theirs and all(".lora_" in name for name in theirs)
    assert mine <= {p.data_ptr() for p in on.backend.model.parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_acts_on_the_adapted_model_as_on_the_merged_one(family, tmp_path):
    merged = wrap(trained(family, tmp_path).merge_and_unload(), None, name="merged")
    on = with_adapter(base_of(family), tmp_path)
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    heads = torch.randn(4, 16, generator=torch.Generator().manual_seed(4))
    for edit in (
        Add(Site("attn_out", 1), vector),
        Add(Site("z", 1), heads),
        Add(Site("resid_pre", 2), vector),
    ):
        a, b = (model.forward(TOKENS, interventions=[edit]).logits for model in (on, merged))
        assert_close(a, b, rtol=0, atol=2e-5)
        assert (a - on.forward(TOKENS).logits).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("backend", ["nnsight", "transformer_bridge", "hooked_transformer"])
def test_every_backend_runs_the_adapted_model(family, backend, tmp_path):
    expected = logits(trained(family, tmp_path))
    shared(family).save_pretrained(tmp_path / "base")
    _save_tokenizer(tmp_path / "base")
    on = load(str(tmp_path / "base"), adapter=tmp_path, backend=backend, device="cpu", dtype="float32")
    assert_close(on.forward(TOKENS).logits, expected, rtol=0, atol=2e-5)
    copies = backend == "hooked_transformer" or (backend == "transformer_bridge" and family == "gpt2")
    assert any("merged" in note for note in on.notes) == copies


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_copy_shares_what_the_adapter_leaves_alone(family, tmp_path):
    trained(family, tmp_path, target_modules=["v_proj"] if family == "llama" else ["c_fc"])
    base = shared(family)
    attached = attach(base, tmp_path, base_names=(family,), base_sha256="", tokenizer=None)
    merged, _ = attached.model("hooked_transformer", anatomy_of(base.config))
    assert not lora_layers(merged) and not hasattr(merged, "peft_config")
    own = dict(base.named_parameters())
    changed = {n for n, p in merged.named_parameters() if p.data_ptr() != own[n].data_ptr()}
    assert len(changed) == 3 and all("v_proj.weight" in n or "c_fc.weight" in n for n in changed)


def test_a_merged_adapter_makes_a_base_that_takes_the_next_one(tmp_path):
    """Two adapters in a row: the second is trained over the first's merged weights."""
    base, names = base_of("llama"), ("one", "two")
    first = trained("llama", tmp_path / "one")
    once = merge_adapter(base, tmp_path / "one")
    assert_close(once.forward(TOKENS).logits, logits(first), rtol=1e-4, atol=1e-5)
    trained("llama", tmp_path / "two", size=0.03)
    twice = merge_adapter(once, tmp_path / "two")
    on = with_adapter(once, tmp_path / "two")
    assert_close(twice.forward(TOKENS).logits, on.forward(TOKENS).logits, rtol=1e-4, atol=1e-5)
    changed = [p for name, p in once.backend.model.named_parameters() if "q_proj.weight" in name]
    with torch.no_grad():
        update = sum(
            float((a - b).norm())
            for a, b in zip(
                (p for n, p in twice.backend.model.named_parameters() if "q_proj.weight" in n),
                changed,
                strict=True,
            )
        )
    assert update > 0 and twice.name == "llama+one+two"
    assert [one["name"] for one in twice.source["merged"]] == [str(tmp_path / name) for name in names]
    assert len({one.weights_sha256 for one in (base, once, twice)}) == 3
    assert twice.weights_sha256 == on.weights_sha256, "what they are made of is the same"
    assert_close(base.forward(TOKENS).logits, logits(shared("llama")), rtol=0, atol=0)


def test_a_half_precision_base_runs_the_adapter_in_fp32_as_peft_does(tmp_path):
    trained("llama", tmp_path)
    half = copy.deepcopy(shared("llama")).to(torch.bfloat16)
    theirs = PeftModel.from_pretrained(copy.deepcopy(half), str(tmp_path)).eval()
    on = with_adapter(wrap(half, None, name="llama"), tmp_path)
    with torch.no_grad():
        assert torch.equal(on.forward(TOKENS).logits, logits(theirs))
    stored = load_file(tmp_path / FILE)
    for name, layer in lora_layers(on.backend.model).items():
        for part in ("lora_A", "lora_B"):
            assert torch.equal(
                getattr(layer, part)["default"].weight, stored[f"base_model.model.{name}.{part}.weight"]
            )


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"v_proj": 3}},
        {"layers_to_transform": [1], "use_rslora": False},
        {"target_modules": r".*\.(q|v)_proj", "exclude_modules": r".*layers\.0\..*"},
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm", "up_proj"]},
    ],
    ids=["patterns", "layers", "regex", "all-linear", "lm_head", "modules_to_save"],
)
def test_what_peft_can_configure_is_the_same_here(config, tmp_path):
    expected = logits(trained("llama", tmp_path, **config))
    base = base_of("llama")
    before = base.forward(TOKENS).logits
    on = with_adapter(base, tmp_path)
    result = on.forward(TOKENS, capture=[Site("resid_post", 2)])
    assert_close(result.logits, expected, rtol=0, atol=1e-5)
    assert_close(on.unembed(result[Site("resid_post", 2)]), result.logits, rtol=0, atol=1e-5)
    assert torch.equal(base.forward(TOKENS).logits, before)
    attached = attach(shared("llama"), tmp_path, base_names=("llama",), base_sha256="", tokenizer=None)
    merged, _ = attached.model("hooked_transformer", on.backend.anatomy)
    assert_close(logits(merged), expected, rtol=0, atol=1e-5)


# what is recorded ---------------------------------------------------------------------


def test_fault_methods_016_a_lost_rslora_flag_shows_in_the_record(tmp_path):
    trained("llama", tmp_path / "whole", r=16)
    shutil.copytree(tmp_path / "whole", tmp_path / "lost")
    edit_config(tmp_path / "lost", use_rslora=...)
    whole, lost = (
        with_adapter(base_of("llama"), tmp_path / name).source["adapter"] for name in ("whole", "lost")
    )
    assert (whole["scaling"], whole["rslora"]) == ([8 / math.sqrt(16)], True)
    assert (lost["scaling"], lost["rslora"]) == ([8 / 16], False)
    assert whole["delta_norm"] / lost["delta_norm"] == pytest.approx(math.sqrt(16))
    assert whole["sha256"] == lost["sha256"]


def test_fault_methods_016_the_measured_scaling_must_be_the_configured_one(tmp_path):
    trained("llama", tmp_path)
    config = read_config(tmp_path)
    attached = attach(shared("llama"), tmp_path, base_names=("llama",), base_sha256="", tokenizer=None)
    name, layer = next(iter(lora_layers(attached.hf_model).items()))
    delta = layer.get_delta_weight("default")
    assert proven(name, layer, config) == pytest.approx(float(delta.norm()), rel=1e-5)
    plain = replace(config, entries={**config.entries, "use_rslora": False})
    with pytest.raises(ValueError, match="rsLoRA False"):
        proven(name, layer, plain)
    layer._disable_adapters = True
    with pytest.raises(ValueError, match="relative error 1"):
        proven(name, layer, config)


def test_the_record_says_what_was_applied_and_the_digest_covers_both(tmp_path):
    trained("llama", tmp_path / "one")
    trained("llama", tmp_path / "two", size=0.06)
    base = base_of("llama")
    one, again, two = (with_adapter(base, tmp_path / name) for name in ("one", "one", "two"))
    assert len({base.weights_sha256, one.weights_sha256, two.weights_sha256}) == 3
    assert one.weights_sha256 == again.weights_sha256 and one.name == "llama+one"
    record = json.loads(json.dumps(one.source["adapter"], allow_nan=False))
    assert (record["rank"], record["alpha"], record["n_modules"]) == ([4], [8], 21)
    assert record["targets"] == sorted(ALL) and one.notes == () and "adapter" not in base.source


def test_a_run_and_the_model_that_it_loads_name_the_same_weights(tmp_path):
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    shared("llama").save_pretrained(base)
    _save_tokenizer(tmp_path / "base")
    trained("llama", adapter)
    assert weights_of({"name": base}) == load(base, device="cpu").weights_sha256
    adapted = load(base, adapter=adapter, device="cpu")
    assert weights_of({"name": base, "adapter": adapter}) == adapted.weights_sha256


def test_fault_070_an_adapter_that_changes_nothing_is_noted(tmp_path, caplog):
    trained("llama", tmp_path)
    edit_weights(tmp_path, lambda ts: {n: t * ("lora_A" in n) for n, t in ts.items()})
    base = base_of("llama")
    on = with_adapter(base, tmp_path)
    assert torch.equal(on.forward(TOKENS).logits, base.forward(TOKENS).logits)
    assert "identical weights" in " ".join(on.notes) and "identical weights" in caplog.text
    assert on.source["adapter"]["delta_norm"] == 0


def test_fault_070_a_module_that_stays_as_it_is_is_named(tmp_path):
    trained("llama", tmp_path)
    edit_weights(
        tmp_path, lambda ts: {n: t * ("layers.1.mlp.up_proj.lora_B" not in n) for n, t in ts.items()}
    )
    (note,) = with_adapter(base_of("llama"), tmp_path).notes
    assert "1 of its 21" in note and "layers.1.mlp.up_proj" in note


# another base ---------------------------------------------------------------------


def test_fault_068_an_adapter_for_other_base_weights_is_refused(tmp_path):
    trained("llama", tmp_path)
    base = base_of("llama")
    edit_config(tmp_path, **{BASE_KEY: base.weights_sha256})
    with_adapter(base, tmp_path)
    other = wrap(tiny("llama", seed=1), None, name="llama")
    with pytest.raises(ValueError, match=base.weights_sha256[:12]):
        with_adapter(other, tmp_path)
    edit_config(tmp_path, **{BASE_KEY: ...})
    (tmp_path / "mechinterp.json").write_text(json.dumps({BASE_KEY: base.weights_sha256}))
    with pytest.raises(ValueError, match=base.weights_sha256[:12]):
        with_adapter(other, tmp_path)


def test_fault_068_another_base_name_is_noted(tmp_path):
    trained("llama", tmp_path)
    edit_config(tmp_path, base_model_name_or_path="/home/someone/models/LLAMA/")
    assert with_adapter(base_of("llama"), tmp_path).notes == ()
    edit_config(tmp_path, base_model_name_or_path="org/other-7b")
    (note,) = with_adapter(base_of("llama"), tmp_path).notes
    assert "org/other-7b" in note


def test_fault_068_an_adapter_of_another_architecture_or_size_is_refused(tmp_path):
    trained("llama", tmp_path)
    with pytest.raises(ValueError, match="does not fit GPT2LMHeadModel"):
        with_adapter(base_of("gpt2"), tmp_path)
    with pytest.raises(ValueError, match=r"\[64, 4\].*\[96, 4\]"):
        with_adapter(base_of("gemma2"), tmp_path)  # heads of 24, so q_proj is wider
    trained("gpt2", tmp_path / "gpt2", target_modules=["c_attn"])
    edit_config(tmp_path / "gpt2", target_modules=["c_attn", "up_proj"])
    with pytest.raises(ValueError, match="up_proj"):
        with_adapter(base_of("gpt2"), tmp_path / "gpt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ts: dict(list(ts.items())[1:]), "lacks 1 of the 42"),
        (lambda ts: {n.replace("layers.2", "layers.7"): t for n, t in ts.items()}, "layers.7"),
        (
            lambda ts: {n: t[:3] if "lora_A" in n else t[:, :3] for n, t in ts.items()},
            r"\[3, 64\].*\[4, 64\]",
        ),
        (lambda ts: {n: t / 0 for n, t in ts.items()}, "NaN, infinity"),
    ],
    ids=["missing", "left over", "another rank", "not finite"],
)
def test_fault_068_a_file_that_is_not_its_configs_is_refused(change, message, tmp_path):
    trained("llama", tmp_path)
    edit_weights(tmp_path, lambda ts: {n: t.contiguous() for n, t in change(ts).items()})
    with pytest.raises(ValueError, match=message):
        with_adapter(base_of("llama"), tmp_path)


def test_fault_045_embeddings_of_another_size_are_refused_with_both_sizes(tmp_path):
    trained("llama", tmp_path)
    whole, base, own = load_file(tmp_path / FILE), base_of("llama"), shared("llama").state_dict()
    key = "base_model.model.model.embed_tokens.weight"
    before = base.forward(TOKENS).logits
    for rows, message in (
        (own["model.embed_tokens.weight"], None),
        (torch.zeros(215, 64), r"\[215, 64\].*\[211, 64\]"),
    ):
        edit_weights(tmp_path, lambda _, rows=rows: {**whole, key: rows.clone()})
        if message is None:
            with_adapter(base, tmp_path)
            continue
        with pytest.raises(ValueError, match=message):
            with_adapter(base, tmp_path)
    edit_weights(tmp_path, lambda _: {**whole, key: torch.zeros(211, 64)})
    with pytest.raises(ValueError, match="own values for model.embed_tokens.weight"):
        with_adapter(base, tmp_path)
    assert torch.equal(base.forward(TOKENS).logits, before)


def test_fault_044_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    trained("llama", tmp_path)
    base = replace(base_of("llama"), tokenizer=_save_tokenizer(tmp_path))
    assert with_adapter(base, tmp_path).notes == ()
    _save_tokenizer(tmp_path, chat_template="{{ messages }}")
    (note,) = with_adapter(base, tmp_path).notes
    assert "chat template" in note
    _save_tokenizer(tmp_path, extra=["[Z"])
    with pytest.raises(ValueError, match=r"1 entries, such as '\[Z' \(id 211\)"):
        with_adapter(base, tmp_path)


def test_fault_069_a_base_with_an_active_adapter_is_refused(tmp_path):
    model = trained("llama", tmp_path / "one")
    on = with_adapter(base_of("llama"), tmp_path / "one")
    with pytest.raises(ValueError, match=r"llama\+one has active adapters"):
        with_adapter(on, tmp_path / "one")
    for injected in (on.backend.model, model.base_model.model):
        with pytest.raises(ValueError, match="active adapters"):
            with_adapter(wrap(injected, None, name="llama"), tmp_path / "one")
    shared("llama").save_pretrained(tmp_path / "mixed")
    _save_tokenizer(tmp_path / "mixed")
    load(str(tmp_path / "mixed"), device="cpu")
    shutil.copytree(tmp_path / "one", tmp_path / "mixed", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="active adapters"):
        load(str(tmp_path / "mixed"), device="cpu")


# what cannot be loaded ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"an_entry_of_next_year": 1}, "an_entry_of_next_year"),
        ({"r": ...}, "has no r"),
        ({"lora_alpha": None}, "has no lora_alpha"),
        ({"target_modules": []}, "has no target_modules"),
        ({"target_modules": ["embed_tokens"]}, "Embedding"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_plain_lora_does_not_cover_is_refused_by_name(entries, message, tmp_path):
    trained("llama", tmp_path)
    edit_config(tmp_path, **entries)
    with pytest.raises(ValueError, match=message):
        with_adapter(base_of("llama"), tmp_path)


def test_missing_and_pickled_files_are_refused_with_what_to_do(tmp_path):
    trained("llama", tmp_path)
    base = base_of("llama")
    (tmp_path / FILE).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        with_adapter(base, tmp_path)
    (tmp_path / "adapter_model.bin").rename(tmp_path / FILE)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        with_adapter(base, tmp_path)


def _save_tokenizer(folder: Path, *, extra=(), chat_template=None):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate([*(f"w{i}" for i in range(211)), *extra])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2", pad_token="w3")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return fast
