"""The lens over many texts: right-padded batches of like length, all layers in one pass, chosen rows only.

Exact: with a causal mask nothing behind a row can reach it, so tokens behind the last asked row are left out
and padding changes nothing. The states of the asked rows are all that outlives the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.model import Model
from mechinterp.rows import packed
from mechinterp.sites import as_index, sites
from probes.lens_read import Asked, LensValues, Own, Targets, ask, each, joined, read
from probes.translators import Translators

SLOTS = 1536  # tokens a pass, as in `gather`: larger batches gain nothing on a CPU
GATED = 256  # rows of a pass whose own logits are kept for the gate; at least one of every text


@dataclass(frozen=True, eq=False)
class _Text:
    """One text, checked: its ids up to the last asked row, and the rows."""

    ids: Int[Tensor, "position"]
    rows: tuple[int, ...]


@torch.no_grad()
def lens_values(
    model: Model,
    texts: Sequence[Sequence[int] | Int[Tensor, "_position"]],
    rows: Sequence[Sequence[int]],
    *,
    targets: Targets,
    pairs: Sequence[tuple[str, str]] = (),
    top_k: int = 0,
    translators: Translators | None = None,
) -> LensValues:
    """The lens after every layer at the rows of many texts: [text row layer target], in fp32 on the CPU.

    rows: absolute positions of each text, the same number of each; -1 is the last. The rest is as in
    `logit_lens`, which also says what is raised.
    """
    asked = ask(model, targets, pairs, top_k)
    return through((model,), checked(model, texts, rows), asked, translators)[0]


def checked(
    model: Model, texts: Sequence[Sequence[int] | Int[Tensor, "_position"]], rows: Sequence[Sequence[int]]
) -> list[_Text]:
    """The texts with their rows; raises ValueError, TypeError or IndexError that names the text."""
    if not len(texts) or len(texts) != len(rows):
        raise ValueError(
            f"{len(texts)} texts need as many lists of rows, and at least one; got {len(rows)} lists"
        )
    counts = sorted({len(row) for row in rows})
    if len(counts) > 1 or not counts[0]:
        raise ValueError(
            f"every text needs the same number of rows, at least one, and they have {counts}; read those with"
            " other numbers in a call of their own"
        )
    return [_text(model, number, *given) for number, given in enumerate(zip(texts, rows, strict=True))]


def _text(model: Model, number: int, tokens: object, rows: Sequence[int]) -> _Text:
    ids = torch.as_tensor(tokens)
    if ids.ndim != 1 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"text {number} must be ids of shape [position], not {ids.dtype} {list(ids.shape)}")
    n, d_vocab, n_ctx = len(ids), model.dims.d_vocab, model.dims.n_ctx
    if int(ids.min()) < 0 or int(ids.max()) >= d_vocab:
        raise ValueError(f"text {number} holds an id outside 0..{d_vocab - 1}")
    positions = tuple(n - 1 if row == -1 else row for row in (as_index(row, "a row") for row in rows))
    bad = [row for row in positions if not 0 <= row < n]
    if bad:
        raise IndexError(f"text {number} has positions 0..{n - 1}; there is no row {bad[0]}")
    end = max(positions) + 1
    if n_ctx is not None and end > n_ctx:
        raise ValueError(
            f"row {end - 1} of text {number} is past the {n_ctx} positions of {model.name}'s context"
        )
    return _Text(ids[:end].long().cpu(), positions)


@torch.no_grad()
def through(
    heads: tuple[Model, ...], texts: list[_Text], asked: Asked, translators: Translators | None
) -> list[LensValues]:
    """The states of the first model, read through its own head and through those of the others, in order.

    The first model's entries after its last layer are held to its own logits.
    """
    if translators is not None:
        translators.check_for(heads[0])
    found: list[list[LensValues]] = [[] for _ in heads]
    order: list[int] = []
    for batch in packed([len(text.ids) for text in texts], SLOTS):
        order += batch
        states, own = _pass(heads[0], [texts[i] for i in batch])
        if translators is not None:
            states = translators.apply(states)
        # the last layer first, so that what the gate compares comes first
        flat = rearrange(states.flip(0), "layer text row d_model -> (layer text row) d_model")
        shape = {"layer": states.shape[0], "text": states.shape[1]}
        for place, head in enumerate(heads):
            values = read(head, flat, asked, own if place == 0 else None)
            found[place].append(each(values, lambda x, s=shape: _laid(x, s), values.gate_error))
    back = torch.tensor(order).argsort()
    whole = [joined(parts) for parts in found]
    return [each(values, lambda x: x[back], values.gate_error) for values in whole]


def _laid(values: Tensor, shape: dict[str, int]) -> Tensor:
    return rearrange(values, "(layer text row) ... -> text row layer ...", **shape).flip(2)


def _pass(model: Model, texts: list[_Text]) -> tuple[Float[Tensor, "layer text row d_model"], Own]:
    """One pass over a batch: resid_post of every layer at the asked rows, and the model's own logits."""
    lengths = [len(text.ids) for text in texts]
    tokens = torch.zeros(len(texts), max(lengths), dtype=torch.long)
    for place, text in enumerate(texts):
        tokens[place, : lengths[place]] = text.ids
    rows = torch.tensor([text.rows for text in texts])
    n_texts, n_rows = rows.shape
    some = torch.linspace(0, n_rows - 1, max(1, min(n_rows, GATED // n_texts))).round().long()
    capture = sites("resid_post", range(model.dims.n_layers))
    seen = model.forward(tokens, capture=capture, positions=rows, logits_at=rows[:, some], lengths=lengths)
    device = model.backend.device
    states = torch.stack([seen[site].to(device) for site in capture])
    assert seen.logits is not None  # logits_at names at least one row a text
    at = (torch.arange(n_texts)[:, None] * n_rows + some).flatten()
    return states, Own(rearrange(seen.logits, "text row d_vocab -> (text row) d_vocab"), at)
