"""Divergences between next-token distributions in nats, and their aggregation over positions.

Everything is computed in fp32, a block of positions at a time, so that a bf16 `position x vocabulary` tensor
is never copied whole. Under autograd the blocks are kept for the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregate = Literal["mean", "rmse", "p95", "max"]

# Elements of one fp32 block: 16 MiB, some 25 positions of a vocabulary of 150 000.
BLOCK = 2**22
# Elements of one fp32 block of several distributions: what stays in a cache while every pair reads it.
PAIRS_BLOCK = 3 * 2**18
SUMMED = 512  # numbers that are summed in fp32 before their sums are in fp64
LN2 = math.log(2)
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

    Exact to fp32 rounding of the probabilities, sums in fp64; extra memory does not grow with positions.
    KL is infinite where one excludes what the other allows.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits must be [k, position, d_vocab], not of shape {tuple(logits.shape)}")
    k, n, d_vocab = logits.shape
    if logits.numel() == 0:
        return Pairwise(*(logits.new_zeros(n, k, k, dtype=torch.float) for _ in range(2)))
    held = PAIRS_BLOCK if logits.device.type == "cpu" else BLOCK
    step = min(n, max(1, held // (k * d_vocab)))
    room = _room(k, step, d_vocab, held, logits.device)
    blocks = [_pairs(block.float(), room) for block in logits.split(step, dim=1)]
    return Pairwise(*(torch.cat([block[i] for block in blocks]) for i in range(2)))


@dataclass(frozen=True, eq=False)
class _Room:
    """Buffers that all blocks share, for to ask for new memory takes as long as to add it up.

    Their last axis is whole short sums; what is behind the vocabulary adds nothing.
    """

    x: Float[Tensor, "k position v"]
    exps: Float[Tensor, "k position v"]
    ring: Float[Tensor, "ring position columns"]
    parts: Float[Tensor, "2 k position columns"]
    columns: int

    def of(self, n: int) -> "_Room":
        """The same for the first positions."""
        room = (self.x[:, :n], self.exps[:, :n], self.ring[:, :n], self.parts[:, :, :n])
        return _Room(*room, self.columns)


def _room(k: int, step: int, d_vocab: int, held: int, device: torch.device) -> _Room:
    sums = -(-d_vocab // SUMMED)
    parts = -(-sums * SUMMED * k * step // held)
    columns = -(-sums // parts) * SUMMED  # of about one size: a small last part takes as many calls
    x, exps = torch.zeros(2, k, step, sums * SUMMED, device=device)
    ring = torch.empty(k + k // 2, step, columns, device=device)
    return _Room(x, exps, ring, torch.empty(2, k, step, columns, device=device), columns)


def _pairs(logits: Float[Tensor, "k position d_vocab"], room: _Room) -> tuple[Tensor, Tensor]:
    """JS and KL by [position k k].

    With p = scale * 2^x, sum_v p ln p is scale * (ln 2 sum_v 2^x x + ln(scale) sum_v 2^x): no log-probability
    is rounded, and what rounding leaves of 1 - sum_v p is the same in every term.
    """
    k, n, d_vocab = logits.shape
    room = room.of(n)
    x = torch.sub(logits, logits.amax(-1, keepdim=True), out=room.x[..., :d_vocab]).mul_(1 / LN2)
    torch.exp2(x, out=room.exps[..., :d_vocab])  # half as dear as exp
    total = _sum(room.exps)  # [k position]
    half = (0.5 / total).float()
    entries, mixtures = torch.zeros_like(total), total.new_zeros(k // 2, k, n)
    cross = total.new_zeros(n, k, k)
    split = (whole.split(room.columns, -1) for whole in (room.x, room.exps))
    for x_part, e_part in zip(*split, strict=True):
        ring, first, second = (each[..., : x_part.shape[-1]] for each in (room.ring, *room.parts))
        entries += _sum(torch.mul(x_part, e_part, out=first))
        # never 0, whose log is -inf: the least number adds less than a sum holds
        torch.mul(e_part, half[..., None], out=ring[:k]).clamp_min_(LEAST)
        ring[k:] = ring[: k // 2]
        cross += _products(ring[:k], torch.sub(x_part, x_part[:1], out=first))
        _add_mixtures(mixtures, ring, first, second)
    if excluded := not bool(cross.isfinite().all()):
        entries = _sum(x.masked_fill(x.isneginf(), 0) * room.exps[..., :d_vocab])
    scale = 2 * half.double()
    js = _by_pair(mixtures, scale * (LN2 * entries + scale.log() * total))
    if excluded:
        log_p = x * LN2 - total.log().float()[..., None]
        return js, torch.stack([torch.stack([kl_from_log(a, b) for b in log_p], -1) for a in log_p], 1)
    return js, _by_direction(2 * LN2 * cross, (scale * total).T, total.log().T)


def _add_mixtures(
    sums: Float[Tensor, "shift k position"],
    ring: Float[Tensor, "ring position v"],
    first: Float[Tensor, "k position v"],
    second: Float[Tensor, "k position v"],
) -> None:
    """Adds sum_v m ln m of each pair (i, i + 1 + shift), counted around the ring, to its place.

    `ring` holds half-probabilities of all, and once more of the first half: the partners are a slice of it.
    """
    k = sums.shape[1]
    short = first.new_zeros(*sums.shape, first.shape[-1] // SUMMED)
    for shift in range(1, k // 2 + 1):
        rows = _around(k, shift)
        m, log_m = first[:rows], second[:rows]
        torch.log(torch.add(ring[:rows], ring[shift : shift + rows], out=m), out=log_m)
        torch.sum(log_m.mul_(m).unflatten(-1, (-1, SUMMED)), -1, out=short[shift - 1, :rows])
    sums += short.sum(-1, dtype=torch.float64)


def _around(k: int, shift: int) -> int:
    """How many pairs (i, i + shift) there are around a ring of k: half as many where both ways meet."""
    return k // 2 if 2 * shift == k else k


def _by_pair(
    mixtures: Float[Tensor, "shift k position"], negentropy: Float[Tensor, "k position"]
) -> Float[Tensor, "position k k"]:
    """JS of both orders: (sum p ln p + sum q ln q) / 2 - sum m ln m."""
    k, n = negentropy.shape
    js = negentropy.new_zeros(n, k, k)
    for shift in range(1, k // 2 + 1):
        first = torch.arange(_around(k, shift), device=js.device)
        second = (first + shift) % k
        value = (negentropy[first] + negentropy[second]) / 2 - mixtures[shift - 1, : len(first)]
        js[:, first, second] = js[:, second, first] = value.T
    return js.clamp_min(0).float()


def _by_direction(
    cross: Float[Tensor, "position k k"],
    mass: Float[Tensor, "position k"],
    log_total: Float[Tensor, "position k"],
) -> Float[Tensor, "position k k"]:
    """KL(a || b) = sum p_a (x_a - x_b) - ln total_a + ln total_b, from cross[a, b] = sum p_a x_b."""
    own = cross.diagonal(dim1=1, dim2=2)
    kl = (own[..., None] - cross) / mass[..., None] - log_total[..., None] + log_total[:, None]
    return kl.clamp_min(0).float()


def _products(
    p: Float[Tensor, "a position v"], x: Float[Tensor, "b position v"]
) -> Float[Tensor, "position a b"]:
    """sum_v p x: short sums in fp32 as batched matrix products, and their sum in fp64."""
    left = rearrange(p, "a position (part v) -> position part a v", v=SUMMED)
    right = rearrange(x, "b position (part v) -> position part v b", v=SUMMED)
    return (left @ right).sum(1, dtype=torch.float64)


def _sum(x: Float[Tensor, "*row v"]) -> Float[Tensor, "*row"]:
    """Short sums in fp32 and their sum in fp64: as exact as fp64 throughout, at a twentieth of its cost."""
    whole = x.shape[-1] // SUMMED * SUMMED
    short = x[..., :whole].unflatten(-1, (-1, SUMMED)).sum(-1).sum(-1, dtype=torch.float64)
    return short if whole == x.shape[-1] else short + x[..., whole:].sum(-1)


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
