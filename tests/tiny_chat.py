"""Tiny chat models with the embedded model's tokenizer, saved as a user's local directory."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mechinterp import hub

EMBEDDED = "smollm2-135m-instruct-q4"


def saved(model: LlamaForCausalLM, folder: Path) -> Path:
    """The model with the embedded model's tokenizer."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(hub.pull(EMBEDDED) / name, folder / name)
    return folder


def spread_llama(**sizes: int | bool) -> LlamaForCausalLM:
    """Embeddings and head larger than the blocks, gains about 1: a stream that layers change little."""
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes))  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        size = 1.0 if "embed_tokens" in name else 0.6 if "lm_head" in name else 0.3
        parameter.data = size * torch.randn(parameter.shape, generator=generator) + float("norm" in name)
    return model


def even_llama(n_ctx: int) -> LlamaForCausalLM:
    """Two layers of 16, all weights of one size."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=49152, max_position_embeddings=n_ctx))
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model
