"""The settings of a HookedTransformer, read off a Hugging Face config and nothing else.

transformer-lens's own loader guesses the architecture from the model's name or path, caps some contexts and
knows some families by their published sizes only. Weights stay as they are: nothing is folded or centred.
"""

import math
from typing import Any

import torch

from mechinterp.backends.protocol import Dims

# model_type -> (architecture, transformer-lens's converter of its weights)
CONVERTERS: dict[str, tuple[str, str]] = {
    "llama": ("LlamaForCausalLM", "convert_llama_weights"),
    "mistral": ("MistralForCausalLM", "convert_mistral_weights"),
    "qwen2": ("Qwen2ForCausalLM", "convert_qwen2_weights"),
    "qwen3": ("Qwen3ForCausalLM", "convert_qwen3_weights"),
    "gemma2": ("Gemma2ForCausalLM", "convert_gemma_weights"),
    "gemma3_text": ("Gemma3ForCausalLM", "convert_gemma_weights"),
    "gpt2": ("GPT2LMHeadModel", "convert_gpt2_weights"),
    "gpt_neox": ("GPTNeoXForCausalLM", "convert_neox_weights"),
    "phi3": ("Phi3ForCausalLM", "convert_phi3_weights"),
    "olmo2": ("Olmo2ForCausalLM", "convert_olmo2_weights"),
    "bloom": ("BloomForCausalLM", "convert_bloom_weights"),
}
_ALWAYS_GROUPED = (
    "mistral",
    "qwen2",
    "gemma2",
    "gemma3_text",
)  # their converters want the number of key heads


def hooked_config(config: Any, dims: Dims, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The entries of a HookedTransformerConfig for a Hugging Face config.

    Raises ValueError for a family or a kind of rotary scaling that HookedTransformer does not compute.
    """
    family = config.model_type
    if family not in CONVERTERS:
        raise ValueError(refusal(family))
    grouped = family in _ALWAYS_GROUPED or dims.n_kv_heads != dims.n_heads
    if family == "olmo2" and grouped:
        raise ValueError(f"{refusal('olmo2 with grouped key heads')}: its converter of weights knows none")
    common = {
        "original_architecture": CONVERTERS[family][0],
        "d_model": dims.d_model,
        "n_layers": dims.n_layers,
        "n_heads": dims.n_heads,
        "n_key_value_heads": dims.n_kv_heads if grouped else None,
        "d_head": dims.d_head,
        "d_vocab": dims.d_vocab,
        "n_ctx": dims.n_ctx or 2048,
        "init_weights": False,
        "default_prepend_bos": False,
        "device": str(device),
        "dtype": dtype,
    }
    of_family = {"gpt2": _gpt2, "gpt_neox": _gpt_neox, "bloom": _bloom}.get(family, _llama_like)
    return {**common, **of_family(config, dims)}


def refusal(family: str) -> str:
    return f"hooked_transformer does not support {family}; use transformers, nnsight or transformer_bridge"


def _llama_like(config: Any, dims: Dims) -> dict[str, Any]:
    entries = {
        "d_mlp": config.intermediate_size,
        "act_fn": getattr(config, "hidden_activation", None) or config.hidden_act,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "gated_mlp": True,
        "final_rms": True,
        "use_qk_norm": config.model_type in ("qwen3", "gemma3_text"),
        **_rotary(config, dims),
        **_windows(config, dims),
    }
    if config.model_type in ("gemma2", "gemma3_text"):
        entries |= {
            "use_normalization_before_and_after": True,
            "attn_scale": math.sqrt(config.query_pre_attn_scalar),
            "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
            "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        }
    return entries


def _rotary(config: Any, dims: Dims) -> dict[str, Any]:
    parameters = config.rope_parameters
    by_kind = parameters if "full_attention" in parameters else {"full_attention": parameters}
    full = by_kind["full_attention"]
    kind, partial = full.get("rope_type", "default"), full.get("partial_rotary_factor") or 1.0
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"{refusal(f'the rotary scaling {kind!r}')}")
    entries = {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": round(partial * dims.d_head),
        "rotary_base": full["rope_theta"],
        "rotary_base_local": by_kind.get("sliding_attention", {}).get("rope_theta"),
        "rotary_scaling_factor": full.get("factor", 1.0) if kind == "linear" else 1.0,
    }
    if kind == "llama3":
        entries |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": full["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": full["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": full["high_freq_factor"],
            "NTK_by_parts_factor": full["factor"],
        }
    return entries


def _windows(config: Any, dims: Dims) -> dict[str, Any]:
    """Which layers see a sliding window; the config lists them by name where they differ."""
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return {}
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * dims.n_layers
    local = ["local" if kind == "sliding_attention" else "global" for kind in kinds]
    return {"use_local_attn": True, "window_size": window, "attn_types": local}


def _gpt2(config: Any, dims: Dims) -> dict[str, Any]:
    return {
        "d_mlp": config.n_inner or 4 * dims.d_model,
        "act_fn": config.activation_function,
        "eps": config.layer_norm_epsilon,
        "normalization_type": "LN",
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }


def _gpt_neox(config: Any, dims: Dims) -> dict[str, Any]:
    return {
        "d_mlp": config.intermediate_size,
        "act_fn": config.hidden_act,
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": config.use_parallel_residual,
        **_rotary(config, dims),
    }


def _bloom(config: Any, dims: Dims) -> dict[str, Any]:
    return {
        "d_mlp": 4 * dims.d_model,
        "act_fn": "gelu_fast",
        "eps": config.layer_norm_epsilon,
        "normalization_type": "LN",
        "post_embedding_ln": True,
        "positional_embedding_type": "alibi",
    }
