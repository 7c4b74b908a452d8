"""Objects of other libraries that `wrap` is given: which are taken as they are, opened, or refused."""

import re
from typing import Any

from torch import nn

from mechinterp.backends.protocol import Backend, BackendName


def unwrapped(model: nn.Module) -> nn.Module:
    """The causal model inside, or a refusal: hooks on these wrappers would be skipped without a word."""
    kind = type(model).__name__
    if kind in ("DataParallel", "DistributedDataParallel", "OptimizedModule"):
        raise ValueError(f"the model is wrapped in {kind}, which can skip hooks; pass the module inside it")
    if re.match("FSDP|FullyShardedDataParallel", kind):
        raise ValueError(f"the model is sharded by {kind}; load it whole, or with device='balanced'")
    compiled = [
        name for name, m in model.named_modules() if getattr(m, "_compiled_call_impl", None) is not None
    ]
    if compiled:
        raise ValueError(
            f"{compiled[0] or 'the model'} is compiled in place, which can skip hooks; load it uncompiled"
        )
    absent = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    if absent and any(getattr(module, "_hf_hook", None) is not None for module in model.modules()):
        raise ValueError(
            f"{len(absent)} weights are offloaded to CPU or disk, {absent[0]} among them, and come only while"
            " their layer runs; give the model devices that hold it whole, or load it in a smaller dtype"
        )
    if absent:
        raise ValueError("the model has tensors on the meta device, so it holds no weights; load them first")
    if getattr(model, "peft_config", None) and kind.startswith("Peft"):
        raise ValueError(
            "the model already carries an adapter; pass the base model, and the adapter's directory to load()"
        )
    return model


def ready_made(model: Any, backend: BackendName) -> Backend | None:
    """A backend around a wrapper of nnsight or transformer-lens that the user built."""
    home = type(model).__module__.partition(".")[0]
    if home == "transformer_lens":
        from mechinterp.backends import transformer_lens as lens

        return lens.ready_made(model)
    if home == "nnsight":
        from mechinterp.backends import nnsight

        return nnsight.ready_made(model)
    if backend != "transformers" and not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is no torch module; pass a Hugging Face causal model")
    return None
