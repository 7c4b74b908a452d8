"""One token from logits: greedy, or from the top-p distribution exactly, without a sort.

Every row has its own generator, keyed by a digest of (seed, the row's name), so that what a row draws depends
neither on its place in a batch nor on its neighbours.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.cells import cell_seed

BLOCK = 512  # ids whose mass is summed before it is looked into
DRAWS = 16  # tries a token; past them (chance 0.05^16 at p = 0.95) the row is sorted


def uniforms(seed: int, names: list[str], n_tokens: int) -> Float[Tensor, "row token draw"]:
    """What each row will draw with, all of it: in [0, 1), float64."""
    rows = []
    for name in names:
        generator = torch.Generator().manual_seed(cell_seed(seed, name, 0))
        rows.append(torch.rand(n_tokens, DRAWS + 1, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def draw(
    logits: Float[Tensor, "row d_vocab"],
    uniform: Float[Tensor, "row draw"],
    temperature: float | None,
    top_p: float,
) -> Int[Tensor, "row"]:
    """One id a row. Temperature None takes the argmax; the logits hold -inf where an id is suppressed.

    A candidate drawn from the whole softmax is kept iff the ids strictly likelier than it hold less than
    top_p of the mass: this is the top-p distribution, and no vocabulary is sorted.
    """
    if temperature is None:
        return logits.argmax(-1)
    uniform = uniform.to(logits.device)
    p = (logits.float() - logits.amax(-1, keepdim=True)).div_(temperature).exp_()  # times its sum
    mass = _mass(p)
    chosen = _inverse(p, mass, uniform[:, 0])
    if top_p >= 1:
        return chosen
    waiting = ~_within(p, mass, chosen, top_p)
    for attempt in range(1, DRAWS):
        if not waiting.any():
            return chosen
        rest, rest_mass = p[waiting], mass[waiting]
        chosen[waiting] = _inverse(rest, rest_mass, uniform[waiting, attempt])
        waiting[waiting.clone()] = ~_within(rest, rest_mass, chosen[waiting], top_p)
    if waiting.any():
        chosen[waiting] = _sorted_draw(p[waiting], uniform[waiting, DRAWS], top_p)
    return chosen


def _mass(p: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row block"]:
    """The cumulative mass at the end of each block of the vocabulary, in float64."""
    whole = p.shape[1] // BLOCK * BLOCK
    sums = p[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1, dtype=torch.float64)
    if whole < p.shape[1]:
        sums = torch.cat([sums, p[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], -1)
    return sums.cumsum(-1)


def _inverse(
    p: Float[Tensor, "row d_vocab"], mass: Float[Tensor, "row block"], u: Float[Tensor, "row"]
) -> Int[Tensor, "row"]:
    """The id at which the cumulative mass passes u: its block first, so that one block alone is summed up."""
    target = (u * mass[:, -1])[:, None]
    block = _first_past(mass, target)
    before = torch.where(block > 0, mass.gather(1, (block - 1).clamp_min(0)), 0.0)
    places = block * BLOCK + torch.arange(BLOCK, device=p.device)
    held = p.gather(1, places.clamp_max(p.shape[1] - 1)).double().masked_fill(places >= p.shape[1], 0.0)
    inner = held.cumsum(-1)
    return places.gather(1, _first_past(inner, target - before)).squeeze(1)


def _first_past(total: Float[Tensor, "row n"], target: Float[Tensor, "row 1"]) -> Int[Tensor, "row 1"]:
    """The first place whose total is above the target; the last with mass where rounding leaves none."""
    last = (total < total[:, -1:]).sum(-1, keepdim=True)
    return torch.searchsorted(total, target, right=True).minimum(last)


def _within(
    p: Float[Tensor, "row d_vocab"],
    mass: Float[Tensor, "row block"],
    chosen: Int[Tensor, "row"],
    top_p: float,
) -> Bool[Tensor, "row"]:
    # as numbers: a product with truth values takes three times as long
    likelier = torch.gt(p, p.gather(1, chosen[:, None]), out=torch.empty_like(p))
    return likelier.mul_(p).sum(-1) < top_p * mass[:, -1]


def _sorted_draw(
    p: Float[Tensor, "row d_vocab"], u: Float[Tensor, "row"], top_p: float
) -> Int[Tensor, "row"]:
    ordered, order = (p.double() / p.sum(-1, keepdim=True, dtype=torch.float64)).sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    least = ordered.masked_fill(before >= top_p, torch.inf).amin(-1, keepdim=True)
    kept = ordered.masked_fill(ordered < least, 0.0)  # equally likely ids stay or go together
    return order.gather(1, _inverse(kept, _mass(kept), u)[:, None]).squeeze(1)
