"""One token from logits: greedy, or from the top-p distribution exactly, without a sort.

Every row has its own generator, keyed by a digest of (seed, the row's name), so that what a row draws depends
neither on its place in a batch nor on its neighbours.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.cells import cell_seed

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
    p = ((logits.float() - logits.float().amax(-1, keepdim=True)) / temperature).softmax(-1)
    total = p.double().cumsum(-1)
    chosen = _inverse(total, uniform[:, 0])
    if top_p >= 1:
        return chosen
    waiting = ~_within(p, chosen, top_p)
    for attempt in range(1, DRAWS):
        if not waiting.any():
            return chosen
        chosen[waiting] = _inverse(total[waiting], uniform[waiting, attempt])
        waiting[waiting.clone()] = ~_within(p[waiting], chosen[waiting], top_p)
    if waiting.any():
        chosen[waiting] = _sorted_draw(p[waiting], uniform[waiting, DRAWS], top_p)
    return chosen


def _inverse(total: Float[Tensor, "row d_vocab"], u: Float[Tensor, "row"]) -> Int[Tensor, "row"]:
    target = (u * total[:, -1])[:, None]
    return torch.searchsorted(total, target, right=True).squeeze(1).clamp_max(total.shape[1] - 1)


def _within(p: Float[Tensor, "row d_vocab"], chosen: Int[Tensor, "row"], top_p: float) -> Bool[Tensor, "row"]:
    likelier = p > p.gather(1, chosen[:, None])
    return (p * likelier).sum(-1) < top_p


def _sorted_draw(
    p: Float[Tensor, "row d_vocab"], u: Float[Tensor, "row"], top_p: float
) -> Int[Tensor, "row"]:
    ordered, order = p.double().sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    least = ordered.masked_fill(before >= top_p, torch.inf).amin(-1, keepdim=True)
    kept = ordered.masked_fill(ordered < least, 0.0)  # equally likely ids stay or go together
    return order.gather(1, _inverse(kept.cumsum(-1), u)[:, None]).squeeze(1)
