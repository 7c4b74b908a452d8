"""Peers that several workloads build alike."""

from typing import Any


def bridge(model: Any, hf: Any) -> Any:
    """transformer-lens's bridge over `hf`, a twin of the model's own object, where the model is."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        "peer",
        hf_model=hf,
        tokenizer=model.tokenizer,
        dtype=model.backend.dtype,
        device=str(model.backend.device),
    )
