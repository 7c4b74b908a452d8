"""How close two candidates for the next token are: what rounding may decide, and what it may not."""

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp import drawing


def draw_gap(
    logits: Float[Tensor, "1 d_vocab"],
    uniform: Float[Tensor, "1 draw"],
    *,
    taken: int,
    other: int,
    temperature: float,
    top_p: float,
) -> float:
    """How far a draw that gave `taken` must move to give `other`: in the uniform number, or in top-p.

    Either a uniform number moves into `other`'s share of the cumulative softmax, or one of the two is an id
    that top-p just keeps or just leaves out; then top-p moves (in steps of a factor two).
    """
    steps = [top_p * 2.0**power for power in range(-24, 0)]
    kept = (
        step
        for step in steps
        for moved in (top_p - step, min(1.0, top_p + step))
        if int(drawing.draw(logits, uniform, temperature, moved)) == other
    )
    tries = uniform[0, : drawing.DRAWS].to(logits.device)
    return min(_distance(logits[0] / temperature, tries, taken, other, top_p), next(kept, 1.0))


def _distance(
    logits: Float[Tensor, "d_vocab"], tries: Float[Tensor, "draw"], taken: int, other: int, top_p: float
) -> float:
    """How far the tries, up to the one that gave `taken`, are from `other`'s share, and it from top-p."""
    p = logits.float().softmax(-1).double()
    total = p.cumsum(-1)

    def away(token: int) -> Tensor:
        below, above = total[token] - p[token] - tries, tries - total[token]
        return torch.maximum(below, above).clamp_min(0)

    used = int((away(taken) <= 1e-6).int().argmax()) + 1  # rounding of the softmax may move its ends
    likelier = float((p * (p > p[other])).sum())
    return max(float(away(other)[:used].min()), likelier - top_p)
