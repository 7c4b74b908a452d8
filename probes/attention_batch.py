"""Region fractions of many examples: right-padded batches of like length, reduced where the rows are made.

Exact: with a causal mask, right padding touches nothing before it, and nothing after the last asked row can
reach it, so tokens behind it are left out. Nothing of the size of a row of keys outlives its layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.backends.protocol import Pass
from mechinterp.model import Model
from mechinterp.rows import layout, packed
from mechinterp.segmentation import Segmentation
from mechinterp.sites import as_index, sites

SLOTS = 1536  # tokens a pass, as in `gather`: larger batches gain nothing on a CPU
PARTITION = 5e-3  # bf16 weights of an eager kernel are off by up to 2.6e-3; more is no rounding


@dataclass(frozen=True, eq=False)
class Fractions:
    """One example: for each segmentation its fractions, and how far their sum is from 1 at worst.

    `sink` is the attention to position 0, the first real token, whichever region that is in.
    """

    values: tuple[Float[Tensor, "row layer head region"], ...]
    sink: Float[Tensor, "row layer head"]
    deviations: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Example:
    """What is asked of one text, checked: its ids up to the last asked row, and their regions."""

    ids: Int[Tensor, "position"]
    rows: tuple[int, ...]
    columns: Float[Tensor, "position region"]  # the regions of every segmentation, then position 0
    sizes: tuple[int, ...]


@torch.no_grad()
def fractions_of(
    model: Model,
    examples: Sequence[Sequence[int] | Int[Tensor, "position"]],
    segmentations: Sequence[Sequence[Segmentation]],
    rows: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] | None = None,
) -> list[Fractions]:
    """What each row of each example attends to, by region, in fp32 on the CPU; several segmentations at once.

    segmentations, rows: for each example, its segmentations (of all its tokens) and absolute positions; -1 is
    the last. layers: all by default, ascending; none above the last of them runs. Raises ValueError,
    TypeError or IndexError before any compute, FloatingPointError where fractions miss 1 by more than 5e-3.
    """
    if not len(examples) == len(segmentations) == len(rows):
        raise ValueError(
            f"{len(examples)} examples need as many lists of segmentations ({len(segmentations)}) and of rows"
            f" ({len(rows)})"
        )
    asked_layers = range(model.dims.n_layers) if layers is None else layers
    wanted = tuple(sorted(sites("pattern", list(asked_layers))))
    for site in wanted:
        model.check_site(site)
    asked = [
        _example(model, number, *given)
        for number, given in enumerate(zip(examples, segmentations, rows, strict=True))
    ]
    found: list[Fractions | None] = [None] * len(asked)
    for batch in _batches([len(example.ids) for example in asked]):
        members = [asked[i] for i in batch]
        for i, values in zip(batch, _pass(model, members, wanted), strict=True):
            found[i] = _split(asked[i], values, i)
    return [one for one in found if one is not None]


def _example(
    model: Model, number: int, tokens: object, segmentations: Sequence[Segmentation], rows: Sequence[int]
) -> _Example:
    ids = torch.as_tensor(tokens)
    if ids.ndim != 1 or not ids.numel() or ids.is_floating_point():
        raise ValueError(
            f"example {number} must be ids of shape [position], not {ids.dtype} {list(ids.shape)}"
        )
    n, d_vocab, n_ctx = len(ids), model.dims.d_vocab, model.dims.n_ctx
    if int(ids.min()) < 0 or int(ids.max()) >= d_vocab:
        raise ValueError(f"example {number} holds an id outside 0..{d_vocab - 1}")
    if not rows:
        raise ValueError(f"example {number} has no rows to read; name at least one position")
    positions = [as_index(row, "a row") for row in rows]
    positions = [n - 1 if row == -1 else row for row in positions]
    bad = [row for row in positions if not 0 <= row < n]
    if bad:
        raise IndexError(f"example {number} has positions 0..{n - 1}; there is no row {bad[0]}")
    end = max(positions) + 1
    if n_ctx is not None and end > n_ctx:
        raise ValueError(
            f"row {end - 1} of example {number} is past the {n_ctx} positions of {model.name}'s context"
        )
    if not segmentations:
        raise ValueError(f"example {number} has no segmentation; pass prompt.segmentation or one made of it")
    for segmentation in segmentations:
        if len(segmentation) != n:
            raise ValueError(
                f"the segmentation of example {number} covers {len(segmentation)} positions and its tokens"
                f" are {n}; extend it with .extended(n_tokens, 'answer')"
            )
    first = torch.zeros(n, 1)
    first[0] = 1
    columns = torch.cat([*(segmentation.one_hot().cpu() for segmentation in segmentations), first], 1)
    sizes = tuple(len(segmentation.names) for segmentation in segmentations)
    return _Example(ids[:end].long().cpu(), tuple(positions), columns[:end], sizes)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Examples by number, those of like length together, in batches of at most SLOTS padded tokens."""
    return packed(lengths, SLOTS)


def _pass(
    model: Model, members: list[_Example], wanted: tuple
) -> list[Float[Tensor, "row layer head column"]]:
    """One pass over a batch: the asked rows of each member, with the columns of its own."""
    device = model.backend.device
    width = max(len(example.ids) for example in members)
    tokens = torch.zeros(len(members), width, dtype=torch.long)
    columns = torch.zeros(len(members), width, max(example.columns.shape[1] for example in members))
    slots = torch.zeros(len(members), max(len(example.rows) for example in members), dtype=torch.long)
    for k, example in enumerate(members):
        tokens[k, : len(example.ids)] = example.ids
        columns[k, : len(example.ids), : example.columns.shape[1]] = example.columns
        slots[k] = example.rows[-1]  # where others ask for more rows, the last one again
        slots[k, : len(example.rows)] = torch.tensor(example.rows)
    tokens = tokens.to(device)
    laid, ends = layout(tokens, [len(example.ids) for example in members], 0, None, None)
    request = Pass(
        tokens=tokens,
        rows=laid,
        pad_left=None,
        capture=wanted,
        slots=slots.to(device),
        logit_slots=torch.zeros(len(members), 0, dtype=torch.long, device=device),
        stop_after=max(site.layer for site in wanted),
        regions=columns.to(device),
    )
    seen = model.run(request, ends, wanted)
    stacked = torch.stack([seen.values[site].cpu() for site in wanted])
    by_member = rearrange(stacked, "layer batch head row column -> batch row layer head column")
    return [
        values[: len(example.rows), ..., : example.columns.shape[1]]
        for values, example in zip(by_member, members, strict=True)
    ]


def _split(example: _Example, values: Float[Tensor, "row layer head column"], number: int) -> Fractions:
    """The columns of each segmentation, each checked to be a partition of every row."""
    *parts, sink = values.split([*example.sizes, 1], dim=-1)
    deviations = tuple(float((part.sum(-1) - 1).abs().max()) for part in parts)
    if not max(deviations) <= PARTITION:  # NaN too
        raise FloatingPointError(
            f"the fractions of example {number} add up to 1 within {max(deviations):.2g} only, and"
            f" {PARTITION:g} is allowed; load the model in a wider dtype"
        )
    return Fractions(tuple(part.clone() for part in parts), sink[..., 0].clone(), deviations)
