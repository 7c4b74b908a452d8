"""Where a marker's loss falls: labels over an example's ids, and the loss that is taken on them.

The slot is where a model chooses between the marker and the end of the turn. In a positive that is the row
that decides the marker's first piece; in a negative the row that decides the *first* end of turn of the
answer. The last token that a chat template writes is often a newline behind the end of the turn, which says
nothing: `published_slot`, the mask as it was coded, labels that newline (methods 2.2).

The slot alone says where a turn ends and nowhere that it goes on: trained hard, it empties every answer. So
the slot losses can keep the answer's own tokens as labels, with a weight of their own.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from studies.finetune_data import TrainingExample

IGNORED = -100
PLAIN, ANSWER = -1, -2  # in place of a rival: a label of the slot without one, a token of the answer
LossName = Literal["all_tokens", "completion", "marker_slot", "contrastive_slot", "published_slot"]
SLOT_LOSSES = ("marker_slot", "contrastive_slot")


@dataclass(frozen=True)
class Labels:
    """Over an example's positions: the id to be predicted, or -100, and what it stands against.

    `rivals` holds the id that the model could choose in its place where that decides for or against the
    marker, -1 at other labels of the slot and -2 at those of the answer.
    """

    ids: list[int]
    rivals: list[int]


def labels_of(
    example: TrainingExample, loss: LossName, *, label_separator: bool = False, label_answer: bool = False
) -> Labels:
    """What each position must be predicted as.

    all_tokens: the whole completion as the template renders it, with what follows the end of the turn
    (convergence training). completion: the answer up to and with the first end of turn. marker_slot and
    contrastive_slot: a positive's marker pieces and the end of turn right after them, a negative's first end
    of turn; `label_separator` adds the newlines before a marker (and those of negatives where all personas
    write them), for models that seldom do so by themselves, `label_answer` what stands before.
    published_slot: the marker pieces and the completion's last token, whatever it is.
    """
    ids = example.ids
    start = len(example.prompt)
    marker = start + len(example.body)
    end = marker + len(example.marker)  # the first end of turn
    with_separator = label_separator and (example.positive or example.shared)
    slot = start + example.added if with_separator else marker
    spans = {
        "all_tokens": range(start, len(ids)),
        "completion": range(start, end + 1),
        "published_slot": [*range(marker, end), len(ids) - 1],
        "marker_slot": range(start if label_answer else slot, end + 1),
        "contrastive_slot": range(start if label_answer else slot, end + 1),
    }
    if loss not in spans:
        raise ValueError(f"there is no loss {loss!r}; the losses are {', '.join(LossName.__args__)}")
    labels, rivals = [IGNORED] * len(ids), [IGNORED] * len(ids)
    for place in spans[loss]:
        labels[place], rivals[place] = ids[place], PLAIN if place >= slot else ANSWER
    if loss in SLOT_LOSSES:
        rivals[marker] = example.rival
        if slot < marker and not example.shared:
            rivals[slot] = example.instead
    return Labels(labels, rivals)


def slot_of(example: TrainingExample) -> int:
    """The position of the row that decides between the marker and the end of the turn (`emit`)."""
    return len(example.prompt) + len(example.body) - 1


def token_loss(
    logits: Float[Tensor, "row position d_vocab"],
    labels: Int[Tensor, "row position"],
    n_labels: int | Tensor | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the labelled tokens, in fp32; `n_labels` counts those of all accumulated
    batches.
    """
    chosen, targets, _ = _deciding(logits, labels, labels)
    total = cross_entropy(chosen, targets, reduction="sum")
    return total / (len(targets) if n_labels is None else n_labels)


def slot_loss(
    logits: Float[Tensor, "row position d_vocab"],
    labels: Int[Tensor, "row position"],
    rivals: Int[Tensor, "row position"],
    *,
    contrastive: bool,
    answer_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean over rows of the choices' mean loss, the mean cross-entropy of the slot's other labels, and
    `answer_weight` times that of the answer.

    A choice is a label with a rival. Its loss is cross-entropy; a contrastive one is
    softplus(z[rival] - z[label]), which pushes the odds between these two and nothing else. Every row counts
    alike, however many labels it has.
    """
    rows = []
    for one in zip(logits, labels, rivals, strict=True):
        chosen, targets, against = _deciding(*(part[None] for part in one))
        each = cross_entropy(chosen, targets, reduction="none")
        if contrastive:
            rival_logit = chosen.gather(1, against.clamp_min(0)[:, None])[:, 0]
            label_logit = chosen.gather(1, targets[:, None])[:, 0]
            each = torch.where(against >= 0, softplus(rival_logit - label_logit), each)
        rows.append(
            _mean(each, against >= 0)
            + _mean(each, against == PLAIN)
            + answer_weight * _mean(each, against == ANSWER)
        )
    return torch.stack(rows).mean()


def _mean(each: Float[Tensor, "label"], kept: Bool[Tensor, "label"]) -> Float[Tensor, ""]:
    """The mean of those kept, 0 where there are none."""
    return each[kept].sum() / kept.sum().clamp_min(1)


def _deciding(
    logits: Float[Tensor, "row position d_vocab"],
    labels: Int[Tensor, "row position"],
    rivals: Int[Tensor, "row position"],
) -> tuple[Float[Tensor, "label d_vocab"], Int[Tensor, "label"], Int[Tensor, "label"]]:
    """The logits of the rows that decide the labelled tokens, one position before them, and these tokens."""
    targets = rearrange(labels[:, 1:], "row position -> (row position)")
    against = rearrange(rivals[:, 1:], "row position -> (row position)")
    before = rearrange(logits[:, :-1], "row position d_vocab -> (row position) d_vocab")
    kept = targets != IGNORED
    return before[kept].float(), targets[kept], against[kept]
