"""From states to what a lens says of them: a few rows at a time through the head, and never more logits.

Everything is computed in fp32. The logits of a narrow model are computed in fp32 too: rounded to bfloat16,
hundreds of tokens share a value, and a rank among them means little.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.model import Model
from mechinterp.sites import as_index

Targets = Mapping[str, int | Collection[int]] | Sequence[int]

ROWS = 64  # rows of logits in memory at a time; more gain nothing on a CPU
TILE = 16  # rows of them measured at a time: what fits a cache is measured in less than half the time
COLUMNS = 2**14  # of the vocabulary, where weights are widened; fewer cost more in calls than they save
# Largest difference from the model's own logits, relative to the largest of them. In fp32, products of other
# shapes differ by about 1e-6; the logits of a narrow model are rounded to its dtype, those of the lens not.
GATE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LEAST = -1e4  # exp of it is 0 in fp32; -inf times that 0 would be NaN


@dataclass(frozen=True, eq=False)
class LensValues:
    """What a lens says at each place: of many texts, [text row layer] and then target, pair or place in top.

    `rank` counts the tokens with a strictly larger logit (0 is the argmax) and `ties` the others with exactly
    the same one. A group has the logsumexp of its members, and the rank and ties of its best member.
    `difference` is the target's logit minus its competitor's, `entropy` is in nats, `gate_error` the largest
    difference of the last layer's entry from the model's own logits, relative to the largest logit.
    """

    log_prob: Float[Tensor, "*place target"]
    rank: Int[Tensor, "*place target"]
    ties: Int[Tensor, "*place target"]
    difference: Float[Tensor, "*place pair"]
    entropy: Float[Tensor, "*place"]
    top_ids: Int[Tensor, "*place top"]
    top_log_probs: Float[Tensor, "*place top"]
    gate_error: float = 0.0

    def first_layer_ranked(self, at_most: int = 10) -> Float[Tensor, "*before target"]:
        """The first layer after which a target's rank is so low; NaN where there is none."""
        return first_layer(self.rank <= at_most)

    def first_layer_preferred(self) -> Float[Tensor, "*before pair"]:
        """The first layer after which a target's logit is above its competitor's; NaN where there is none."""
        return first_layer(self.difference > 0)


@dataclass(frozen=True)
class Asked:
    """What is asked of every row: groups of token ids by name, pairs of them by place, the k best tokens."""

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]
    top_k: int


@dataclass(frozen=True, eq=False)
class Own:
    """The model's own logits of some of the rows that are read, and which rows these are."""

    logits: Float[Tensor, "own d_vocab"]
    rows: Int[Tensor, "own"]


def first_layer(holds: Bool[Tensor, "*before layer name"]) -> Float[Tensor, "*before name"]:
    """The first layer at which each holds; NaN where it holds at none."""
    first = holds.int().argmax(-2).float()  # of equal values argmax is the first
    return first.masked_fill(~holds.any(-2), torch.nan)


def ask(model: Model, targets: Targets, pairs: Sequence[tuple[str, str]], top_k: int) -> Asked:
    """The request, checked; raises TypeError, ValueError or KeyError with what to write instead."""
    d_vocab = model.dims.d_vocab
    named = targets if isinstance(targets, Mapping) else {str(token): token for token in targets}
    if not named or len(named) < len(targets):
        raise ValueError(f"targets must be at least one, each named once, not {targets!r}")
    groups = {name: _group(name, value, d_vocab) for name, value in named.items()}
    names = tuple(groups)
    for pair in pairs:
        unknown = [name for name in pair if name not in groups]
        if unknown:
            raise KeyError(f"the pair {pair} names {unknown[0]!r}; the targets are {', '.join(names)}")
        if len(pair) != 2 or set(groups[pair[0]]) & set(groups[pair[1]]):
            raise ValueError(f"{pair} is no pair of a target and a competitor without a token in common")
    places = tuple((names.index(target), names.index(competitor)) for target, competitor in pairs)
    k = as_index(top_k, "top_k")
    if not 0 <= k <= d_vocab:
        raise ValueError(f"top_k counts tokens, 0..{d_vocab}, not {k}")
    return Asked(names, tuple(groups.values()), places, k)


def _group(name: str, value: object, d_vocab: int) -> tuple[int, ...]:
    members = value if isinstance(value, Collection) and not isinstance(value, str | Tensor) else [value]
    ids = tuple(sorted(as_index(member, f"a token id of the target {name!r}") for member in members))
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"the target {name!r} must be at least one token id, each once, not {value!r}")
    if ids[0] < 0 or ids[-1] >= d_vocab:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise ValueError(f"the target {name!r} holds the id {wrong}; the model has ids 0..{d_vocab - 1}")
    return ids


# reading ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def read(model: Model, states: Float[Tensor, "row d_model"], asked: Asked, own: Own | None) -> LensValues:
    """What the head of `model` makes of each state, on the CPU.

    Raises ValueError where its logits are not `own`, those that the model itself gave to these rows.
    """
    found = []
    for start in range(0, len(states), ROWS):
        logits = head_logits(model, states[start : start + ROWS])
        error = math.nan  # of a head that is not the model's own
        if own is not None:
            here = (own.rows >= start) & (own.rows < start + ROWS)
            error = distance(logits[own.rows[here] - start], own.logits[here])
            _gate(model, error)
        for tile in logits.split(TILE):
            found.append(each(measured(tile, asked), lambda values: values.cpu(), error))
    return joined(found)


def head_logits(model: Model, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """Final norm, unembedding, scale and soft-capping of a model, in fp32 from the norm's output on."""
    backend = model.backend
    if backend.dtype in (torch.float32, torch.float64):
        return model.unembed(states).float()
    normed = backend.readout.final_norm(states).float()
    logits = torch.empty(len(states), model.dims.d_vocab, device=normed.device)
    for tokens in torch.arange(model.dims.d_vocab).split(COLUMNS):
        weight, bias = backend.readout.unembedding(tokens)
        part = normed.to(weight.device) @ weight.float().T + bias.float()
        logits[:, tokens[0] : tokens[-1] + 1] = part.to(logits.device)
    cap = backend.readout.logit_cap
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def measured(logits: Float[Tensor, "row d_vocab"], asked: Asked) -> LensValues:
    """Every number that is asked of some rows of fp32 logits."""
    highest = logits.amax(-1, keepdim=True)
    shifted = logits - highest
    weights = shifted.exp()
    total = weights.sum(-1)
    log_total = total.log()
    entropy = log_total - weights.mul_(shifted.clamp_min_(LEAST)).sum(-1) / total
    standings = _standings(logits, asked, scratch=weights)
    logit, rank, ties = (torch.stack(columns, -1) for columns in zip(*standings, strict=True))
    difference = [logit[:, target] - logit[:, competitor] for target, competitor in asked.pairs]
    top = logits.topk(asked.top_k) if asked.top_k else None
    empty = logits[:, :0]
    return LensValues(
        log_prob=logit - highest - log_total[:, None],
        rank=rank,
        ties=ties,
        difference=torch.stack(difference, -1) if difference else empty,
        entropy=entropy,
        top_ids=empty.long() if top is None else top.indices,
        top_log_probs=empty if top is None else top.values - highest - log_total[:, None],
    )


def _standings(
    logits: Float[Tensor, "row d_vocab"], asked: Asked, scratch: Float[Tensor, "row d_vocab"]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each target its logit, the number of tokens above it, and of the others level with it.

    They are counted in `scratch`: torch sums floats several times as fast as booleans, and ones exactly.
    """
    found = []
    for ids in asked.ids:
        members = logits[:, list(ids)]
        best = members.amax(-1, keepdim=True)
        above = torch.gt(logits, best, out=scratch).sum(-1).long()
        level = torch.eq(logits, best, out=scratch).sum(-1).long() - (members == best).sum(-1)
        found.append((members.logsumexp(-1), above, level))
    return found


def each(values: LensValues, change: Callable[[Tensor], Tensor], gate_error: float) -> LensValues:
    """The values with every tensor changed alike; their first axes are the same."""
    changed = {name: change(value) for name, value in tensors_of(values).items()}
    return LensValues(**changed, gate_error=gate_error)


def joined(parts: Sequence[LensValues]) -> LensValues:
    """Several values after each other along their first axis."""
    names = tensors_of(parts[0])
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return LensValues(**whole, gate_error=max(part.gate_error for part in parts))


def tensors_of(values: LensValues) -> dict[str, Tensor]:
    """The measures by name, without the gate."""
    return {name: value for name, value in vars(values).items() if isinstance(value, Tensor)}


# the gate ---------------------------------------------------------------------------------------------------


def distance(found: Float[Tensor, "own d_vocab"], own: Float[Tensor, "own d_vocab"]) -> float:
    """The largest difference of a row, relative to its own largest logit; equal infinities are equal."""
    if not len(own):
        return 0.0
    own = own.to(found.device).float()
    apart = (found - own).abs().masked_fill(found == own, 0).amax(-1)
    scale = own.abs().masked_fill(own.isinf(), 0).amax(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float((apart / scale).amax())


def _gate(model: Model, error: float) -> None:
    allowed = GATE[model.backend.dtype]
    if not error <= allowed:  # NaN too
        raise ValueError(
            f"after the last layer the lens differs from the logits of {model.name} itself by {error:.2g} of"
            f" the largest one, where {allowed:g} is allowed in {model.backend.dtype}: its final norm,"
            " unembedding, scale or soft-capping is not what its anatomy row says, or something edits the"
            " stream behind the last layer; correct the row (load(..., anatomy=ROW)) or take the edit off"
        )
