"""What each part of a stream adds to a logit difference, checked to add up to it (methods 12.2).

With the final norm frozen at its full value, the difference before soft-capping is linear in the stream, and
the stream is the sum of what the embedding, the attention and the MLP of every layer have written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.backends.readout import soft_capped
from mechinterp.backends.turns import turn
from mechinterp.backends.verify import TOLERANCE
from mechinterp.model import Model
from mechinterp.rows import packed
from mechinterp.sites import Site, sites
from probes.frozen_norm import FrozenNorm, freeze

SLOTS = 1536  # tokens a pass, as in `gather`: larger batches gain nothing on a CPU
ROWS = 16  # rows taken apart at a time: each head of each row has a vector of its own
ALLOWED = 1e-3  # of the difference; rounding of the stream comes on top, which in fp32 is far below


@dataclass(frozen=True, eq=False)
class Text:
    """One text, checked: its ids up to the last asked row, and the rows."""

    ids: Int[Tensor, "position"]
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Contributions:
    """Of each row, in fp32 on the CPU: what each part adds to logit[target] - logit[competitor].

    `difference` is before soft-capping and `model_difference` what the model's own logits say. `sum_error` is
    how far the parts miss the difference, and `head_error` how far the heads of a layer miss its attn_out at
    worst, relative to it.
    """

    embedding: Float[Tensor, "row"]
    attn_out: Float[Tensor, "row layer"]
    mlp_out: Float[Tensor, "row layer"]
    heads: Float[Tensor, "row layer head"]
    attn_bias: Float[Tensor, "row layer"]
    norm_bias: Float[Tensor, "row"]
    unembedding_bias: Float[Tensor, "row"]
    difference: Float[Tensor, "row"]
    model_difference: Float[Tensor, "row"]
    sum_error: Float[Tensor, "row"]
    head_error: Float[Tensor, "row layer"]


@dataclass(frozen=True, eq=False)
class _Streams:
    """What a pass wrote at some rows, and the logits that it gave to target and competitor there."""

    embedding: Float[Tensor, "row d_model"]
    attn_out: Float[Tensor, "row layer d_model"]
    mlp_out: Float[Tensor, "row layer d_model"]
    z: Float[Tensor, "row layer head d_head"]
    final: Float[Tensor, "row d_model"]
    logits: Float[Tensor, "row 2"]
    largest: Float[Tensor, "row"]  # the largest of all the row's logits in size
    names: tuple[str, ...]

    def some(self, rows: slice) -> "_Streams":
        return _Streams(*(getattr(self, field.name)[rows] for field in fields(self)))


@torch.no_grad()
def contributions(
    model: Model, texts: Sequence[Text], targets: Sequence[int], competitors: Sequence[int]
) -> Contributions:
    """The contributions at every row of every text, in their order; each row has its own two tokens.

    Raises ValueError where parts and difference are further apart than ALLOWED and rounding explain.
    """
    k = len(texts[0].rows)
    places = torch.arange(len(targets)).reshape(len(texts), k)
    found: list[Contributions] = []
    order: list[int] = []
    for batch in packed([len(text.ids) for text in texts], SLOTS):
        rows = places[batch].flatten().tolist()
        pairs = [(targets[row], competitors[row]) for row in rows]
        streams = _streams(model, [texts[i] for i in batch], torch.tensor(pairs), rows)
        with turn(model.backend):
            for start in range(0, len(rows), ROWS):
                part = slice(start, start + ROWS)
                found.append(_taken_apart(model, streams.some(part), pairs[part]))
        order += rows
    back = torch.tensor(order).argsort()
    names = [field.name for field in fields(Contributions)]
    return Contributions(*(torch.cat([getattr(one, name) for one in found])[back].float() for name in names))


def _streams(model: Model, texts: Sequence[Text], pairs: Tensor, rows: Sequence[int]) -> _Streams:
    """One right-padded pass; only the asked rows outlive it."""
    n_layers = model.dims.n_layers
    tokens = torch.zeros(len(texts), max(len(text.ids) for text in texts), dtype=torch.long)
    for i, text in enumerate(texts):
        tokens[i, : len(text.ids)] = text.ids
    layers = range(n_layers)
    asked = [*sites("z", layers), *sites("attn_out", layers), *sites("mlp_out", layers)]
    first, last = Site("resid_pre", 0), Site("resid_post", n_layers - 1)
    at = torch.tensor([text.rows for text in texts])
    lengths = [len(text.ids) for text in texts]
    seen = model.forward(tokens, capture=[first, *asked, last], lengths=lengths, positions=at, logits_at=at)
    assert seen.logits is not None  # they were asked for
    logits = rearrange(seen.logits.cpu(), "text row d_vocab -> (text row) d_vocab").float()
    k = at.shape[1]

    def stacked(name: str) -> Tensor:
        found = [seen[site].cpu() for site in asked if site.name == name]
        return rearrange(torch.stack(found), "layer text row ... -> (text row) layer ...")

    def flat(site: Site) -> Tensor:
        return rearrange(seen[site].cpu(), "text row d_model -> (text row) d_model")

    return _Streams(
        embedding=flat(first),
        attn_out=stacked("attn_out"),
        mlp_out=stacked("mlp_out"),
        z=stacked("z"),
        final=flat(last),
        logits=logits.gather(1, pairs),
        largest=logits.masked_fill(logits.isinf(), 0).abs().amax(-1),
        names=tuple(f"row {texts[i // k].rows[i % k]} of text {row // k}" for i, row in enumerate(rows)),
    )


def _taken_apart(model: Model, streams: _Streams, pairs: Sequence[tuple[int, int]]) -> Contributions:
    """Some rows, part by part, in float64 from what the model itself computed."""
    backend, readout = model.backend, model.backend.readout
    direction, unembedding_bias = _readout(model, streams, pairs)
    norm = freeze(lambda x: readout.final_norm(x).cpu(), streams.final, tolerance=TOLERANCE[backend.dtype])
    normed = readout.final_norm(streams.final).cpu().double()
    difference = (normed * direction).sum(-1) + unembedding_bias
    norm_bias = (norm.bias * direction).sum(-1)
    written = torch.stack([streams.attn_out, streams.mlp_out], 2)
    blocks = rearrange(written, "row layer part d_model -> row (layer part) d_model")
    parts = torch.cat([streams.embedding[:, None], blocks], 1).double()
    values = einsum(norm.apply(parts), direction, "row part d_model, row d_model -> row part")
    error = values.sum(1) + norm_bias + unembedding_bias - difference
    noise = _rounding(backend.dtype, norm.apply(parts.cumsum(1)), normed, direction)
    _check(model, streams.names, error, difference, noise)
    by_layer = rearrange(values[:, 1:], "row (layer part) -> part row layer", part=2)
    heads, attn_bias, head_error = _heads(model, streams, norm, direction)
    model_difference = streams.logits[:, 0] - streams.logits[:, 1]
    return Contributions(
        values[:, 0], by_layer[0], by_layer[1], heads, attn_bias, norm_bias, unembedding_bias,
        difference, model_difference, error.abs(), head_error,
    )  # fmt: skip


def _readout(
    model: Model, streams: _Streams, pairs: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row"]]:
    """W[target] - W[competitor] and the same of the biases, held to the logits that the model itself gave."""
    backend, readout = model.backend, model.backend.readout
    ids = sorted({token for pair in pairs for token in pair})
    weight, bias = (found.cpu().double() for found in readout.unembedding(ids))
    at = torch.tensor([[ids.index(token) for token in pair] for pair in pairs])
    normed = readout.final_norm(streams.final).cpu().double()
    ours = einsum(normed, weight[at], "row d_model, row token d_model -> row token") + bias[at]
    off = (soft_capped(ours, readout.logit_cap) - streams.logits).abs().amax(-1) / streams.largest
    if not bool((off <= TOLERANCE[backend.dtype]).all()):  # NaN too
        raise ValueError(
            f"the final norm and unembedding of {model.name} give logits that are off from its own by"
            f" {float(off.max()):.2g} of the largest, where {TOLERANCE[backend.dtype]:.0e} is allowed;"
            " correct the anatomy row (load(..., anatomy=ROW)), or take off what edits the stream behind the"
            " last layer"
        )
    return weight[at[:, 0]] - weight[at[:, 1]], bias[at[:, 0]] - bias[at[:, 1]]


def _heads(
    model: Model, streams: _Streams, final: FrozenNorm, direction: Float[Tensor, "row d_model"]
) -> tuple[Float[Tensor, "row layer head"], Float[Tensor, "row layer"], Float[Tensor, "row layer"]]:
    """Heads and output bias of each layer, through the family's norm of attn_out, then through the final."""
    backend, readout = model.backend, model.backend.readout
    found, errors = [], []
    eps = torch.finfo(backend.dtype).eps
    for layer in range(model.dims.n_layers):
        heads = readout.head_outputs(layer, streams.z[:, layer]).cpu()
        bias = readout.output_bias(layer).cpu().expand(len(heads), 1, -1)
        parts = torch.cat([heads, bias], 1)

        def normed(x: Tensor, layer: int = layer) -> Tensor:
            return readout.attention_norm(layer, x).cpu()

        frozen = freeze(normed, parts.sum(1), tolerance=TOLERANCE[backend.dtype])
        parts = frozen.apply(parts.double())
        parts[:, -1] += frozen.bias
        attn_out = streams.attn_out[:, layer].double()
        off, size = (parts.sum(1) - attn_out).norm(dim=-1), attn_out.norm(dim=-1)
        if not bool((off <= ALLOWED * size + 4 * eps * parts.flatten(1).norm(dim=-1)).all()):
            raise ValueError(
                f"the heads of layer {layer} of {model.name} and their bias miss its attn_out by"
                f" {float((off / size).max()):.2g} of its length, where {ALLOWED:g} is allowed: its anatomy"
                " row names another output projection, or its attention is not a sum over heads"
            )
        found.append(einsum(final.apply(parts), direction, "row part d_model, row d_model -> row part"))
        errors.append(off / size.clamp_min(torch.finfo(torch.float32).tiny))
    values = torch.stack(found, 1)
    return values[..., :-1], values[..., -1], torch.stack(errors, 1)


def _rounding(
    dtype: torch.dtype,
    stages: Float[Tensor, "row stage d_model"],
    normed: Float[Tensor, "row d_model"],
    direction: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row"]:
    """What rounding leaves of the difference: each sum of the stream, and the norm, is kept in `dtype`.

    Every entry is off by at most eps / 2 of itself with a sign of its own, so errors add as squares.
    """
    each = torch.cat([stages, normed[:, None]], 1) * direction[:, None]
    return torch.finfo(dtype).eps * each.flatten(1).norm(dim=-1)


def _check(
    model: Model,
    names: Sequence[str],
    error: Float[Tensor, "row"],
    difference: Float[Tensor, "row"],
    noise: Float[Tensor, "row"],
) -> None:
    """Raises ValueError where the parts are not the difference; 4 is 14 standard deviations of rounding."""
    over = error.abs() - (ALLOWED * difference.abs() + 4 * noise)
    if bool((over <= 0).all()):
        return
    worst = int(over.nan_to_num(nan=torch.inf).argmax())
    total = float(difference[worst])
    raise ValueError(
        f"at {names[worst]} the parts of {model.name} add up to {total + float(error[worst]):.6g} and the"
        f" logit difference before soft-capping is {total:.6g}: off by {abs(float(error[worst])):.2g}, where"
        f" {ALLOWED:g} of it and {4 * float(noise[worst]):.2g} for rounding are allowed; something else"
        " writes to the stream, or an anatomy row puts attn_out or mlp_out in the wrong place"
    )
