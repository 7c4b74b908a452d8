"""Attention rows under the model's own kernel: nothing is switched to eager, and the output is the kernel's
own.

transformers looks its attention function up by name at every call. For the length of one pass the function
under the model's current name is wrapped: it hands on what it was given to a reader, then runs unchanged. The
model, its config and its masks are not touched; another thread's models pass straight through.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one layer's kernel was given. Keys hold every slot so far; `mask` None means plain causal."""

    layer: int
    query: Float[Tensor, "batch head slot d_head"]
    key: Float[Tensor, "batch kv_head key d_head"]
    value: Float[Tensor, "batch kv_head key d_head"]
    mask: Tensor | None
    scaling: float
    softcap: float | None
    window: int | None


Reader = Callable[[AttentionCall], None]
_readers: ContextVar[dict[int, Reader]] = ContextVar("readers", default={})  # noqa: B039 (never mutated)
_lock = Lock()
_wrapped: dict[str, int] = {}


@contextmanager
def reading(modules: dict[int, nn.Module], reader: Reader, implementation: str) -> Iterator[None]:
    """Hands every attention call of these modules to `reader`, and leaves the attention functions as they
    were.
    """
    token = _readers.set({**_readers.get(), **dict.fromkeys((id(m) for m in modules.values()), reader)})
    _wrap(implementation)
    try:
        yield
    finally:
        _unwrap(implementation)
        _readers.reset(token)


def _wrap(name: str) -> None:
    with _lock:
        _wrapped[name] = _wrapped.get(name, 0) + 1
        if _wrapped[name] == 1:
            _mapping(name)[name] = _listening(ALL_ATTENTION_FUNCTIONS.get(name))


def _unwrap(name: str) -> None:
    with _lock:
        _wrapped[name] -= 1
        if _wrapped[name]:
            return
        original = ALL_ATTENTION_FUNCTIONS[name].original  # pyright: ignore[reportFunctionMemberAccess]
        if original is None:
            _mapping(name).pop(name)
        else:
            _mapping(name)[name] = original


def _mapping(name: str) -> dict[str, Any]:
    """Where the model's lookup finds the name: a user's own override comes before what transformers
    registered.
    """
    local = ALL_ATTENTION_FUNCTIONS._local_mapping
    return local if name in local else type(ALL_ATTENTION_FUNCTIONS)._global_mapping


def _listening(original: Callable | None) -> Callable:
    """The kernel, preceded by the reader of the module that calls it. Eager kernels live in each model's
    file.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ):
        reader = _readers.get().get(id(module))
        if reader is not None:
            scaling = kwargs.get("scaling")
            layer: Any = module.layer_idx
            reader(
                AttentionCall(
                    layer=layer,
                    query=query,
                    key=key,
                    value=value,
                    mask=attention_mask,
                    scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                    softcap=kwargs.get("softcap"),
                    window=kwargs.get("sliding_window"),
                )
            )
        kernel = original or sys.modules[type(module).__module__].eager_attention_forward
        return kernel(module, query, key, value, attention_mask, **kwargs)

    attend.original = original  # pyright: ignore[reportFunctionMemberAccess]
    return attend


def rows(
    call: AttentionCall, slots: Int[Tensor, "batch k"], pad_left: Int[Tensor, "batch"] | None
) -> Float[Tensor, "batch head k key"]:
    """softmax(q k^T) in fp32 for the chosen query slots of this chunk; memory grows with rows x keys only.

    Grouped queries share their key head. Soft-capping, the kernel's own mask and sliding windows are applied.
    """
    batch = rearrange(torch.arange(len(slots), device=slots.device), "batch -> batch 1")
    query = rearrange(call.query, "batch head slot d -> batch slot head d")[batch, slots]
    n_kv = call.key.shape[1]
    grouped = rearrange(query.float(), "batch k (kv group) d -> batch k kv group d", kv=n_kv)
    scores = einsum(grouped, call.key.float(), "batch k kv group d, batch kv key d -> batch kv group k key")
    scores = rearrange(scores, "batch kv group k key -> batch (kv group) k key") * call.scaling
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = _masked(scores, call, slots, pad_left)
    return scores.softmax(-1)


def _masked(scores: Tensor, call: AttentionCall, slots: Tensor, pad_left: Tensor | None) -> Tensor:
    n_keys = call.key.shape[2]
    query_slot = slots + n_keys - call.query.shape[2]
    key_slot = torch.arange(n_keys, device=scores.device)
    seen = key_slot <= query_slot[..., None]
    if call.window is not None:
        seen &= key_slot > query_slot[..., None] - call.window
    if pad_left is not None:
        seen &= key_slot >= pad_left[:, None, None].to(scores.device)
    scores = scores.masked_fill(~rearrange(seen, "batch k key -> batch 1 k key"), -torch.inf)
    if call.mask is None or call.mask.ndim != 4:
        return scores
    mask = rearrange(
        call.mask[..., :n_keys].expand(len(slots), -1, -1, -1), "batch one slot key -> batch slot one key"
    )
    batch = rearrange(torch.arange(len(slots), device=slots.device), "batch -> batch 1")
    chosen = rearrange(mask[batch, slots], "batch k one key -> batch one k key")
    if chosen.dtype == torch.bool:
        return scores.masked_fill(~chosen, -torch.inf)
    return scores + chosen.float()
