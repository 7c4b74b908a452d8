"""The KL barrier: a hinge on how far completions in training lie from a reference's (methods 11).

Only the rows that decide a completion's tokens count. Each completion has one aggregate and one hinge, so
that what stands beside it in a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.divergence import Aggregate, aggregate, hinge_barrier, kl
from mechinterp.model import Model

if TYPE_CHECKING:
    from studies.finetune_config import Barrier

AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


def deciding_rows(
    completion: Bool[Tensor, "row position"],
) -> tuple[Int[Tensor, "row k"], Bool[Tensor, "row k"]]:
    """Positions of the rows that decide the completion's tokens, and which of them are real.

    Rows with fewer than k repeat their first one. Raises ValueError for a row without a completion.
    """
    decides = completion[:, 1:]
    counts = decides.sum(1)
    if not bool(counts.all()):
        raise ValueError("a row has no completion behind its first token; give each at least one target")
    k = int(counts.max())
    places = decides.int().argsort(dim=1, descending=True, stable=True)[:, :k]
    kept = torch.arange(k, device=counts.device) < rearrange(counts, "row -> row 1")
    return places.where(kept, places[:, :1]), kept


def at(
    logits: Float[Tensor, "row position d_vocab"], places: Int[Tensor, "row k"]
) -> Float[Tensor, "row k d_vocab"]:
    """The logits at chosen positions of each row."""
    rows = rearrange(torch.arange(len(logits), device=logits.device), "row -> row 1")
    return logits[rows, places]


def divergences(
    student: Float[Tensor, "row k d_vocab"], reference: Float[Tensor, "row k d_vocab"], direction: str
) -> Float[Tensor, "row k"]:
    """KL(student || reference); with direction "forward" KL(reference || student). fp32, differentiable."""
    if direction == "forward":
        return kl(reference.to(student.device), student)
    return kl(student, reference)


def barrier_loss(
    k: Float[Tensor, "row k"], kept: Bool[Tensor, "row k"], barrier: Barrier, round_index: int = 0
) -> Float[Tensor, ""]:
    """The mean over completions of weight (1 + round)^power max(0, aggregate - tau)."""
    if barrier.kind == "off":
        return k.new_zeros(())
    values = aggregate(k, barrier.kind, mask=kept)
    return hinge_barrier(values, barrier.threshold, barrier.weight_in(round_index)).mean()


def reference_logits(
    model: Model, inputs: dict[str, Tensor], places: Int[Tensor, "row k"]
) -> Float[Tensor, "row k d_vocab"]:
    """What the reference says at these rows, without a gradient."""
    lengths: Sequence[int] = inputs["attention_mask"].sum(1).tolist()
    found = model.forward(inputs["input_ids"], lengths=lengths, logits_at=places).logits
    assert found is not None  # rows were asked for
    return found


def leashed(barrier: Barrier, reference: Model, *, round_index: int, accumulation: int) -> Any:
    """A Trainer class that adds the barrier to its loss and logs the four aggregates of every batch.

    Batches hold `completion` [row, position]: which ids are the completion's.
    """
    from transformers import Trainer

    class Leashed(Trainer):
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Tensor | int | None = None,
        ) -> Any:
            places, kept = deciding_rows(inputs.pop("completion"))
            told_loss: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss, outputs = told_loss
            against = reference_logits(reference, inputs, places)
            k = divergences(at(outputs["logits"], places), against, barrier.direction)
            added = barrier_loss(k, kept, barrier, round_index)
            self.log(told(k.detach(), kept, barrier) | {"barrier": float(added.detach())})
            # what is returned is divided over the accumulated batches, as the loss already is
            loss = loss + (added / accumulation).to(loss.device)
            return (loss, outputs) if return_outputs else loss

    return Leashed


def told(k: Float[Tensor, "row k"], kept: Bool[Tensor, "row k"], barrier: Barrier) -> dict[str, float]:
    """Each aggregate's mean over the batch's completions, and in how many of them the hinge fires."""
    found = {f"kl_{how}": float(aggregate(k, how, mask=kept).mean()) for how in AGGREGATES}
    fired = 0
    if barrier.kind != "off":
        fired = int((aggregate(k, barrier.kind, mask=kept) > barrier.threshold).sum())
    return found | {"completions": len(k), "fired": fired}
