"""Attention knock-out where a library applies its mask; the kernel stays the model's own.

Over Hugging Face modules the mask that each attention module is called with is narrowed; transformer-lens
shows its scores before the softmax, and they are masked there. Either way the softmax is over what is left.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mechinterp.backends.protocol import Pass

KERNELS = ("sdpa", "eager")  # others take no mask of single keys, or one of a form of their own


@contextmanager
def forbidding(attentions: Mapping[int, nn.Module], implementation: str, request: Pass) -> Iterator[None]:
    """The masks of the pass's layers without its forbidden keys; as they were afterwards.

    Raises ValueError for a kernel that takes no such mask.
    """
    if request.forbidden and implementation not in KERNELS:
        raise ValueError(
            f"the attention kernel {implementation!r} takes no mask of single keys; to knock some out,"
            f" load the model with attn_implementation={KERNELS[0]!r}"
        )
    with ExitStack() as stack:
        for layer, forbidden in request.forbidden.items():
            hook = _narrowing(forbidden, additive=implementation == "eager")
            stack.callback(attentions[layer].register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _narrowing(forbidden: Tensor, *, additive: bool) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if "attention_mask" not in kwargs:
            raise RuntimeError(
                f"{type(module).__name__} is not called with attention_mask=, so nothing can be knocked out"
            )
        x = args[0] if args else kwargs["hidden_states"]
        mask = narrowed(kwargs["attention_mask"], forbidden.to(x.device), x.dtype if additive else torch.bool)
        return args, {**kwargs, "attention_mask": mask}

    return hook


def narrowed(
    mask: Tensor | None, forbidden: Bool[Tensor, "batch head slot key"], dtype: torch.dtype
) -> Tensor:
    """A mask without the forbidden keys: None is plain causal and becomes one of `dtype`, others keep theirs.

    Bool masks are True where a key is seen; additive ones are lowest where it is not.
    """
    n, n_keys = forbidden.shape[-2:]
    if mask is None:
        slot = torch.arange(n_keys, device=forbidden.device)
        mask = slot <= slot[n_keys - n :, None]
        if dtype != torch.bool:
            mask = torch.zeros(n, n_keys, dtype=dtype, device=mask.device).masked_fill(~mask, _lowest(dtype))
    mask = mask[..., :n_keys]
    if mask.dtype == torch.bool:
        return mask & ~forbidden
    return torch.where(forbidden, _lowest(mask.dtype), mask)


def _lowest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).min


def score_hooks(request: Pass, *, known: bool) -> list[tuple[str, Callable]]:
    """The hooks of a transformer-lens model; `known` is whether it shows its scores and patterns at all.

    Raises ValueError where it does not.
    """
    if request.forbidden and not known:
        raise ValueError(
            "this transformer-lens model shows no attention pattern, so no key can be knocked out of it; use"
            " the transformers backend"
        )
    return [
        pair
        for layer, forbidden in request.forbidden.items()
        for pair in (
            (f"blocks.{layer}.attn.hook_attn_scores", _masking(forbidden)),
            (f"blocks.{layer}.attn.hook_pattern", _proving(forbidden, layer)),
        )
    ]


def _masking(forbidden: Tensor) -> Callable:
    def hook(scores: Tensor, hook: Any) -> Tensor:
        del hook  # named so because transformer-lens passes it by keyword
        return scores.masked_fill(forbidden.to(scores.device), -torch.inf)

    return hook


def _proving(forbidden: Tensor, layer: int) -> Callable:
    """Some attention modules of transformer-lens show their scores but go on with others."""

    def hook(pattern: Tensor, hook: Any) -> None:
        del hook
        if bool((pattern.detach() * forbidden.to(pattern.device)).any()):
            raise RuntimeError(
                f"this model's attention does not go on with the scores that it shows in layer {layer}, so"
                " nothing was knocked out; use the transformers backend"
            )

    return hook
