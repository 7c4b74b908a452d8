"""Tiny random-weight models, one for each architecture family, built from configs without a download."""

from functools import cache
from typing import Any

import torch
from torch import nn

FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text",
    "gpt2", "gpt_neox", "phi3", "olmo2", "granite", "bloom",
]  # fmt: skip
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 160,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": 24},
    "gemma2": {"head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 24},
    "gemma3_text": {"head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 24},
    "granite": {
        "residual_multiplier": 0.3,
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
    },  # fmt: skip
}


def config(family: str) -> Any:
    from transformers import AutoConfig

    sizes = {
        k: v
        for k, v in SIZES.items()
        if not (family in ("gpt_neox", "gpt2", "bloom") and k == "num_key_value_heads")
    }
    if family == "gpt2":
        sizes = {
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 160,
            "vocab_size": 211,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
    if family == "bloom":
        sizes = {
            "hidden_size": 64,
            "n_layer": 3,
            "n_head": 4,
            "vocab_size": 211,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
    return AutoConfig.for_model(family, **sizes, **SPECIAL.get(family, {}))


def tiny(family: str, seed: int = 0) -> nn.Module:
    """A model whose every parameter is random, norms and biases too, so that no part of a block is an
    identity.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family)).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def hooks_of(model: nn.Module) -> list[int]:
    """The keys of every hook on a model: transformers leaves its own on one that was asked for attentions."""
    return [key for m in model.modules() for key in (*m._forward_hooks, *m._forward_pre_hooks)]


@cache
def shared(family: str) -> nn.Module:
    """One model for all tests of a process; tests must leave it as it is (a fixture checks)."""
    return tiny(family)
