"""The sizes of some public models, so that a study on one can be planned where no hub answers."""

from __future__ import annotations

from typing import Any

QWEN = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
GEMMA = {
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_hidden_layers": 46,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "query_pre_attn_scalar": 144,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
}
LLAMA = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2.5-7B": ("qwen2", QWEN),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", QWEN),
    "google/gemma-2-27b": ("gemma2", GEMMA),
    "google/gemma-2-27b-it": ("gemma2", GEMMA),
    "meta-llama/Meta-Llama-3-70B": ("llama", LLAMA),
    "meta-llama/Meta-Llama-3-70B-Instruct": ("llama", LLAMA),
}


def known_config(name: str) -> Any | None:
    """The transformers configuration of a model whose sizes are here; None for another."""
    if name not in SIZES:
        return None
    from transformers import AutoConfig

    family, sizes = SIZES[name]
    return AutoConfig.for_model(family, **sizes)
