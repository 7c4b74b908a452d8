"""Divergences between next-token distributions in nats, and their aggregation over positions.

Everything is computed in fp32, a block of positions at a time, so that a bf16 `position x vocabulary` tensor
is never copied whole. Under autograd the blocks are kept for the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregate = Literal["mean", "rmse", "p95", "max"]

# Elements of one fp32 block: 16 MiB, some 25 positions of a vocabulary of 150 000.
BLOCK = 2**22
# Elements of one fp32 block of several distributions: what stays in a cache while every pair reads it.
PAIRS_BLOCK = 2**19
SUMMED = 512  # numbers that are summed in fp32 before their sums are in fp64
LEAST = torch.finfo(torch.float32).tiny
# Inside the root, so that its slope at k = 0 is finite (methods 11).
EPSILON = 1e-8


def kl(
    p_logits: Float[Tensor, "*shape d_vocab"], q_logits: Float[Tensor, "*shape d_vocab"]
) -> Float[Tensor, "*shape"]:
    """KL(p || q) at each position, from logits; infinite where q excludes what p allows."""

    def of_block(p: Tensor, q: Tensor) -> Tensor:
        return kl_from_log(p.log_softmax(-1), q.log_softmax(-1))

    return _blocked(of_block, p_logits, q_logits)


def js(
    p_logits: Float[Tensor, "*shape d_vocab"], q_logits: Float[Tensor, "*shape d_vocab"]
) -> Float[Tensor, "*shape"]:
    """Jensen-Shannon divergence at each position, from logits: symmetric, within [0, ln 2] (methods 5.3)."""

    def of_block(p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        log_m = _log_mean(log_p, log_q)
        return 0.5 * (kl_from_log(log_p, log_m) + kl_from_log(log_q, log_m))

    return _blocked(of_block, p_logits, q_logits)


@dataclass(frozen=True, eq=False)
class Pairwise:
    """Divergences among k distributions at each position; kl[:, i, j] is KL(i || j)."""

    js: Float[Tensor, "position k k"]
    kl: Float[Tensor, "position k k"]


@torch.no_grad()
def pairwise(logits: Float[Tensor, "k position d_vocab"]) -> Pairwise:
    """Every pair of k distributions at each position: JS and both directions of KL, in nats (methods 5.3).

    Exact to fp32 rounding of the log-probabilities, sums in fp64; extra memory does not grow with positions.
    KL is infinite where one excludes what the other allows.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits must be [k, position, d_vocab], not of shape {tuple(logits.shape)}")
    k, n, d_vocab = logits.shape
    step = max(1, (PAIRS_BLOCK if logits.device.type == "cpu" else BLOCK) // max(1, k * d_vocab))
    blocks = [_pairs(block.float().log_softmax(-1)) for block in logits.split(step, dim=1)] if n else []
    empty = logits.new_zeros(0, k, k, dtype=torch.float)
    return Pairwise(*(torch.cat([empty, *(block[i] for block in blocks)]) for i in range(2)))


def _pairs(log_p: Float[Tensor, "k position d_vocab"]) -> tuple[Tensor, Tensor]:
    """JS by [position k k], each pair once, and KL through cross-entropies in fp64."""
    p = log_p.exp()
    half = p / 2
    negentropy = _sum(log_p.clamp_min(math.log(LEAST)).mul_(p))  # where p is 0, 0
    js = log_p.new_zeros(*log_p.shape[1::-1], len(log_p))  # [position k k]
    mixed, scratch = torch.empty_like(p[1:]), torch.empty_like(p[1:])
    for a in range(len(p) - 1):
        m, log_m = mixed[: len(p) - a - 1], scratch[: len(p) - a - 1]
        torch.add(half[a + 1 :], half[a], out=m)
        torch.log(torch.clamp_min(m, LEAST, out=log_m), out=log_m)
        value = (negentropy[a] + negentropy[a + 1 :]) / 2 - _sum(log_m.mul_(m))
        value = rearrange(value.clamp_min(0), "other position -> position other").float()
        js[:, a, a + 1 :] = js[:, a + 1 :, a] = value
    if bool(torch.isneginf(log_p.amin())):
        kl = torch.stack([torch.stack([kl_from_log(a, b) for b in log_p], -1) for a in log_p], 1)
    else:
        cross = einsum(p.double(), log_p.double(), "a position v, b position v -> position a b")
        total = rearrange(_sum(p), "a position -> position a")  # 1 but for what rounding left in log_p
        kl = rearrange(negentropy, "a position -> position a 1") - cross
        kl = kl / total[..., None] - total.log()[..., None] + total.log()[:, None]
    return js, _zero_diagonal(kl.clamp_min(0).float())


def _sum(x: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
    """Short sums in fp32 and their sum in fp64: as exact as fp64 throughout, at a twentieth of its cost."""
    whole = x.shape[-1] // SUMMED * SUMMED
    short = x[..., :whole].unflatten(-1, (-1, SUMMED)).sum(-1)
    return short.sum(-1, dtype=torch.float64) + x[..., whole:].sum(-1)


def _zero_diagonal(x: Float[Tensor, "position k k"]) -> Float[Tensor, "position k k"]:
    return x.masked_fill(torch.eye(x.shape[-1], dtype=torch.bool, device=x.device), 0)


def kl_from_log(
    log_p: Float[Tensor, "*shape d_vocab"], log_q: Float[Tensor, "*shape d_vocab"]
) -> Float[Tensor, "*shape"]:
    """sum_v p_v (log p_v - log q_v) from normalised log-probabilities; a token with p = 0 adds nothing."""
    log_p, log_q = log_p.float(), log_q.float()
    absent = torch.isneginf(log_p)
    # Masked before the subtraction: -inf minus -inf would poison the gradient even where `where` discards it.
    ratio = log_p.masked_fill(absent, 0) - log_q.masked_fill(absent, 0)
    return (log_p.exp() * ratio).sum(-1).clamp_min(0)  # KL >= 0; below it lies rounding


def aggregate(
    k: Float[Tensor, "*batch position"],
    how: Aggregate,
    *,
    mask: Bool[Tensor, "*batch position"] | None = None,
) -> Float[Tensor, "*batch"]:
    """One number for the divergences at the positions of a text (methods 11); NaN where the mask keeps none.

    mean, rmse = sqrt(mean(k^2) + 1e-8), p95 = 95th percentile with linear interpolation, max. A collapse at a
    few positions moves them in this order, the mean least. All have finite gradients, also at k = 0.
    """
    k = k.float()
    keep = torch.ones_like(k, dtype=torch.bool) if mask is None else mask.to(k.device)
    count = keep.sum(-1)
    if k.shape[-1] == 0:
        return torch.full_like(count, math.nan, dtype=torch.float)
    kept = k.masked_fill(~keep, 0)
    match how:
        case "mean":
            return kept.sum(-1) / count
        case "rmse":
            return (kept.square().sum(-1) / count + EPSILON).sqrt()
        case "p95":
            return _percentile(k.masked_fill(~keep, math.inf), count, 95)
        case "max":
            largest = k.masked_fill(~keep, -math.inf).amax(-1)
            return largest.masked_fill(count == 0, math.nan)
    raise ValueError(f"how must be one of mean, rmse, p95, max, not {how!r}")


def hinge_barrier(value: Float[Tensor, "*batch"], tau: float, weight: float) -> Float[Tensor, "*batch"]:
    """weight * max(0, value - tau): nothing below the threshold. tau is not comparable across aggregates."""
    return weight * (value.float() - tau).clamp_min(0)


def _log_mean(log_p: Float[Tensor, "*shape"], log_q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    absent = torch.isneginf(log_p) & torch.isneginf(log_q)
    mean = torch.logaddexp(log_p.masked_fill(absent, 0), log_q.masked_fill(absent, 0)) - math.log(2)
    return mean.masked_fill(absent, -math.inf)


def _percentile(
    k: Float[Tensor, "*batch position"], count: Int[Tensor, "*batch"], percent: int
) -> Float[Tensor, "*batch"]:
    """Linear interpolation between order statistics of the first `count` sorted values of each row."""
    ordered = k.sort(-1).values
    place = percent * (count - 1).clamp_min(
        0
    )  # in hundredths of a position: integers, so exact at any length
    below, above = place // 100, (place + 99) // 100
    low = ordered.gather(-1, rearrange(below, "... -> ... 1"))
    high = ordered.gather(-1, rearrange(above, "... -> ... 1"))
    weight = rearrange((place % 100) / 100, "... -> ... 1")
    between = torch.where(low == high, low, torch.lerp(low, high, weight))  # inf to inf is inf, not NaN
    return rearrange(between, "... 1 -> ...").masked_fill(count == 0, math.nan)


def _blocked(
    divergence: Callable[[Tensor, Tensor], Tensor],
    p_logits: Float[Tensor, "*shape d_vocab"],
    q_logits: Float[Tensor, "*shape d_vocab"],
) -> Float[Tensor, "*shape"]:
    if p_logits.shape != q_logits.shape:
        raise ValueError(
            f"both distributions must cover the same positions and vocabulary, not {tuple(p_logits.shape)}"
            f" and {tuple(q_logits.shape)}; cut the logits to the shared tokens first"
        )
    *shape, d_vocab = p_logits.shape
    p, q = (rearrange(x, "... d_vocab -> (...) d_vocab") for x in (p_logits, q_logits))
    step = max(1, BLOCK // max(1, d_vocab))
    blocks = [
        divergence(a.float(), b.float().to(a.device))
        for a, b in zip(p.split(step), q.split(step), strict=True)
    ]
    return torch.cat(blocks).reshape(shape)
