"""A norm whose scale stays what the full stream gave it: linear then, so the parts of a sum keep their sum.

Which norm it is shows in what it does, not in its class: Gemma's gain of 1 + weight, a norm without
parameters and the folded norms of transformer-lens are all one formula.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

SIZE = 16.0  # of the probe's entries: their squares dwarf every epsilon and fit into half precision


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """x -> scale * gain * (x - mean(x)) + bias, or without the mean: LayerNorm or RMSNorm at fixed scales."""

    gain: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"]
    centred: bool
    scale: Float[Tensor, "row"]

    def apply(self, parts: Float[Tensor, "row part d_model"]) -> Float[Tensor, "row part d_model"]:
        """What becomes of parts of each row's stream; the bias is a part of its own."""
        return rearrange(self.scale, "row -> row 1 1") * self.gain * _centred(parts, self.centred)


def freeze(
    norm: Callable[[Tensor], Tensor], stream: Float[Tensor, "row d_model"], *, tolerance: float
) -> FrozenNorm:
    """The norm at the scale that it has on each row of `stream`.

    Raises ValueError where what it does to the stream is neither LayerNorm nor RMSNorm, by how much.
    """
    bias, gain, centred = _of_probes(norm, stream)
    full = norm(stream).double() - bias
    unscaled = gain * _centred(stream.double().to(full.device), centred)
    tiny = torch.finfo(torch.float64).tiny  # a row of zeros has no scale, and needs none
    scale = (full * unscaled).sum(-1) / unscaled.square().sum(-1).clamp_min(tiny)
    off = (full - scale[:, None] * unscaled).norm(dim=-1) / full.norm(dim=-1).clamp_min(tiny)
    if not bool((off <= tolerance).all()):  # NaN too
        raise ValueError(
            f"this norm is neither LayerNorm nor RMSNorm: with its scale frozen it is off by"
            f" {float(off.max()):.2g} of its output (the line is at {tolerance:.0e}), so no sum of parts"
            " passes through it"
        )
    return FrozenNorm(gain, bias, centred, scale)


def _of_probes(
    norm: Callable[[Tensor], Tensor], stream: Float[Tensor, "row d_model"]
) -> tuple[Float[Tensor, "d_model"], Float[Tensor, "d_model"], bool]:
    """Bias, gain and whether it centres, from what it makes of zero, of +-SIZE, and of that with a shift."""
    signs = 1.0 - 2.0 * (torch.arange(stream.shape[-1], device=stream.device) % 2)
    probe = SIZE * signs
    made = norm(torch.stack([torch.zeros_like(probe), probe, probe + 3 * SIZE]).to(stream.dtype)).double()
    bias, at, shifted = made
    centred = bool((shifted - at).norm() < 0.5 * (at - bias).norm())
    flat = _centred(probe.double().to(made.device), centred)
    return bias, (at - bias) * flat.square().mean().sqrt() / flat, centred


def _centred(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centred else x
