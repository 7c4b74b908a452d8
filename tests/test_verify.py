"""Right rows pass; every field that places a site, moved to its most plausible wrong place, is refused."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from mechinterp.backends.anatomy import FAMILIES as ROWS
from mechinterp.backends.anatomy import LLAMA, Anatomy, anatomy_of
from mechinterp.backends.verify import verify
from mechinterp.loading import wrap
from mechinterp.sites import Site
from tests.architectures import FAMILIES, config, shared, tiny

NORMS = {
    "llama": "post_attention_layernorm", "mistral": "post_attention_layernorm",
    "qwen2": "post_attention_layernorm",
    "qwen3": "input_layernorm", "phi3": "post_attention_layernorm", "granite": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm", "gemma3_text": "pre_feedforward_layernorm", "gpt2": "ln_2",
    "gpt_neox": "post_attention_layernorm", "bloom": "post_attention_layernorm",
}  # fmt: skip
INPUTS = {  # modules that read d_model, for attn_proj to be moved to
    "gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value", "bloom": "self_attention.query_key_value",
    "phi3": "self_attn.qkv_proj",
}  # fmt: skip
FIRST_NORM = {
    "gpt2": "transformer.h.0.ln_1", "bloom": "transformer.h.0.input_layernorm",
    "gpt_neox": "gpt_neox.layers.0.input_layernorm", "olmo2": "model.layers.0.post_attention_layernorm",
}  # fmt: skip


def moves(family: str) -> dict[str, Anatomy]:
    """The wrong rows of a family by what was moved; a move to the same activation is not among them."""
    row = ROWS[family]
    found = {
        "attn_out and mlp_out swapped": replace(row, attn_out=row.mlp_out, mlp_out=row.attn_out),
        "attn_proj": replace(row, attn_proj=INPUTS.get(family, "self_attn.q_proj")),
        "attn_proj in the MLP": replace(row, attn_proj=_mlp_input(family)),
        "attention": replace(row, attention=row.mlp_out),
        "final_norm": replace(row, final_norm=FIRST_NORM.get(family, "model.layers.0.input_layernorm")),
        "parallel": replace(row, parallel="use_cache" if row.parallel is None else None),
    }
    if family in NORMS:
        found["attn_out at a norm"] = replace(row, attn_out=NORMS[family])
        found["mlp_out at a norm"] = replace(row, mlp_out=NORMS[family])
    if row.attn_out == "post_attention_layernorm":
        found["attn_out before its norm"] = replace(row, attn_out="self_attn")
        found["mlp_out before its norm"] = replace(row, mlp_out="mlp")
    if family == "bloom":
        found["attn_out with the stream inside"] = replace(row, attn_out="self_attention")
        found["mlp_out with the stream inside"] = replace(row, mlp_out="mlp")
        found["tapped"] = replace(row, tapped=True)
    if row.fused:
        other = {"heads_in_thirds": "thirds_of_heads", "thirds_of_heads": "heads_in_thirds"}[row.fused]
        found["fused"] = replace(row, fused=other)
    else:
        q, k, v = row.qkv
        for name, qkv in {"q and k": (k, q, v), "k and v": (q, v, k), "q and v": (v, k, q)}.items():
            found[f"{name} swapped"] = replace(row, qkv=qkv)
    if row.rotary:
        found["rotary"] = replace(row, rotary=False)
    for entry in ("residual_scale", "logit_scale", "softcap"):
        name = getattr(row, entry)
        if name is not None and getattr(config(family), name) is not None:
            found[entry] = replace(row, **{entry: None})
    return found


def _mlp_input(family: str) -> str:
    inside = {"gpt2": "c_fc", "gpt_neox": "dense_h_to_4h", "bloom": "dense_h_to_4h", "phi3": "gate_up_proj"}
    return f"mlp.{inside.get(family, 'up_proj')}"


@pytest.mark.parametrize("family", FAMILIES)
def test_right_rows_pass_far_below_the_limit(family):
    errors = verify(wrap(shared(family), None, verify=False).backend)
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("family,moved", [(f, m) for f in FAMILIES for m in moves(f)])
def test_a_wrong_row_is_refused_with_the_site_and_the_error(family, moved):
    with pytest.raises(ValueError, match=r"layer \d.*(relative error \d|shape|did not run)"):
        wrap(shared(family), None, anatomy=moves(family)[moved])


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "llama", "bloom"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_pass_with_the_right_row_and_fail_with_wrong_ones(family, dtype):
    model = tiny(family).to(dtype)
    wrap(model, None)
    for moved in ("attn_out at a norm", "attn_out and mlp_out swapped", "parallel", "attn_proj"):
        with pytest.raises(ValueError, match="layer"):
            wrap(model, None, anatomy=moves(family)[moved])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_direction_of_a_narrow_stream_hides_no_wrong_row(dtype):
    """Real streams hold thousands in a few directions, whose rounding is more than a block adds."""
    model: Any = tiny("llama")
    model.model.embed_tokens.weight[:, 0] += 3000
    model.to(dtype)
    wrap(model, None)
    for moved in ("attn_out at a norm", "attn_out and mlp_out swapped", "attn_proj"):
        with pytest.raises(ValueError, match="layer"):
            wrap(model, None, anatomy=moves("llama")[moved])


@pytest.mark.real
def test_the_real_model_is_verified_in_its_own_narrow_dtype(real):
    half = copy.deepcopy(real.backend.model).to(torch.bfloat16)
    assert max(verify(wrap(half, real.tokenizer).backend).values()) < 0.01


def test_a_path_that_is_not_there_is_refused_with_the_path():
    with pytest.raises(ValueError, match="self_attn.out_proj"):
        wrap(shared("llama"), None, anatomy=replace(LLAMA, attn_proj="self_attn.out_proj"))


def unknown_family():
    """OLMo has no row of ours; it is laid out like Llama."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    chosen = AutoConfig.for_model("olmo", **sizes, vocab_size=97, pad_token_id=None)
    return AutoModelForCausalLM.from_config(chosen).eval()


def test_fault_064_an_unknown_architecture_is_refused_with_its_nearest_row():
    with pytest.raises(ValueError, match=r"'olmo'.*olmo2.*anatomy="):
        wrap(unknown_family(), None)


def test_fault_064_a_row_of_the_users_is_verified_like_ours():
    model = unknown_family()
    assert Site("z", 1).name in wrap(model, None, anatomy=LLAMA).backend.sites
    with pytest.raises(ValueError, match="attn_out.*relative error"):
        wrap(model, None, anatomy=replace(LLAMA, attn_out="input_layernorm"))


@pytest.mark.parametrize("model_type", ["mixtral", "mamba", "qwen2_moe", "gpt_oss"])
def test_fault_063_other_kinds_of_model_are_refused_by_name(model_type):
    from transformers import AutoConfig

    with pytest.raises(ValueError, match=model_type):
        anatomy_of(AutoConfig.for_model(model_type))


def test_fault_063_encoder_decoders_are_refused():
    from transformers import T5Config

    with pytest.raises(ValueError, match="encoder-decoder"):
        anatomy_of(T5Config())


def test_fault_074_a_model_of_nan_weights_is_refused_at_load():
    model = tiny("llama")
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises((ValueError, FloatingPointError), match="mlp_out|not finite"):
        wrap(model, None)
