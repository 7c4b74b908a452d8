"""Activations of many prompts, all layers in one pass each, without logits.

Prompts that begin with the same ids share that part's keys and values (roles x questions mostly do), the rest
runs right-padded in batches of like length, and every layer's states are reduced where they are made. Exact:
with a causal mask neither padding nor a cached prefix changes what a row sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.activations import State, with_parts
from mechinterp.backends.protocol import Pass
from mechinterp.model import Model
from mechinterp.sites import Site
from mechinterp.where import Rows

ROWS = 1536  # slots a pass: larger batches gain nothing here, smaller ones lose up to a fifth
STEP = 64  # slots: how finely even passes are sought
SHARED = 6  # a common prefix shorter than this costs more than it saves


@dataclass(frozen=True)
class Group:
    """Prompts that begin with the same `prefix` ids, by their index."""

    prefix: tuple[int, ...]
    members: tuple[int, ...]


@torch.no_grad()
def gather(
    model: Model,
    prompts: Sequence[Int[Tensor, "position"]],
    sites: Sequence[Site],
    positions: Sequence[Int[Tensor, "k"]],
) -> Float[Tensor, "prompt site d_model"]:
    """The mean over each prompt's own positions, at every site, in fp32 on the CPU.

    `positions` are absolute, at least one a prompt; one position is that row itself. The sites must be of one
    shape. Raises ValueError or IndexError before any compute.
    """
    ids, wanted = _checked(model, prompts, sites, positions)
    out: Tensor | None = None
    for batch in batches(groups(ids, [min(w) for w in wanted]), ids):
        values = _pass(model, batch, ids, wanted, tuple(sites))
        if out is None:
            out = torch.empty(len(ids), len(sites), *values.shape[2:])
        out[[i for group in batch for i in group.members]] = values.cpu()
    assert out is not None  # there is at least one prompt
    return out


def _checked(
    model: Model, prompts: Sequence[Tensor], sites: Sequence[Site], positions: Sequence[Tensor]
) -> tuple[list[list[int]], list[list[int]]]:
    for site in sites:
        model.check_site(site)
    if len({model.dims.shape(site) for site in sites}) != 1 or any(site.name == "pattern" for site in sites):
        raise ValueError("gather reads sites of one shape; ask for the others in a second call")
    ids = [[int(i) for i in torch.as_tensor(p).flatten()] for p in prompts]
    wanted = [sorted({int(w) for w in torch.as_tensor(p).flatten()}) for p in positions]
    if not ids or len(ids) != len(wanted):
        raise ValueError(
            f"{len(ids)} prompts need as many lists of positions, and at least one; got {len(wanted)}"
        )
    for number, (row, at) in enumerate(zip(ids, wanted, strict=True)):
        if not row:
            raise ValueError(f"prompt {number} holds no tokens")
        if not at:
            raise ValueError(f"prompt {number} has no positions to read; is the region empty?")
        if at[0] < 0 or at[-1] >= len(row):
            raise IndexError(
                f"prompt {number} has positions 0..{len(row) - 1}; {at[0] if at[0] < 0 else at[-1]} was asked"
            )
        if max(row) >= model.dims.d_vocab or min(row) < 0:
            raise ValueError(f"prompt {number} holds an id outside 0..{model.dims.d_vocab - 1}")
        if model.dims.n_ctx is not None and len(row) > model.dims.n_ctx:
            raise ValueError(
                f"prompt {number} has {len(row)} tokens; {model.name} has a context of {model.dims.n_ctx}"
            )
    return ids, wanted


def groups(ids: Sequence[Sequence[int]], first_wanted: Sequence[int]) -> list[Group]:
    """Prompts grouped under common prefixes so that the fewest tokens run; no prefix reaches a position to be
    read.
    """
    order = sorted(range(len(ids)), key=lambda i: tuple(ids[i]))
    caps = [min(first_wanted[i], len(ids[i]) - 1) for i in range(len(ids))]
    return _split(ids, caps, order)[1]


def _split(ids: Sequence[Sequence[int]], caps: list[int], order: list[int]) -> tuple[int, list[Group]]:
    """The cheapest grouping of neighbours in sorted order: one prefix for all, or the groups at the next
    branching.
    """
    if len(order) == 1:
        return len(ids[order[0]]), [Group((), (order[0],))]
    shared = _common(ids[order[0]], ids[order[-1]])
    prefix = min(shared, *(caps[i] for i in order))
    prefix = prefix if prefix >= SHARED else 0
    together = prefix + sum(len(ids[i]) - prefix for i in order)
    parts: list[list[int]] = [[order[0]]]
    for before, after in zip(order, order[1:], strict=False):
        if _common(ids[before], ids[after]) > shared:
            parts[-1].append(after)
        else:
            parts.append([after])
    if len(parts) == 1 or len(parts) == len(order):
        return together, [Group(tuple(ids[order[0]][:prefix]), tuple(order))]
    apart = [_split(ids, caps, part) for part in parts]
    cost = sum(c for c, _ in apart)
    if cost < together:
        return cost, [group for _, found in apart for group in found]
    return together, [Group(tuple(ids[order[0]][:prefix]), tuple(order))]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def batches(found: Sequence[Group], ids: Sequence[Sequence[int]]) -> list[list[Group]]:
    """Groups packed into passes of at most ROWS slots, those of like suffix length together.

    No more passes than ROWS asks for, and those as even as they come: a small last pass runs at a worse rate.
    """
    packed: list[list[Group]] = []
    for shared in (False, True):
        part = [group for group in found if bool(group.prefix) == shared]
        rows = _rows(part, ids)
        passes = len(_cut(rows, ROWS))
        cap = next((c for c in range(STEP, ROWS, STEP) if len(_cut(rows, c)) <= passes), ROWS)
        packed += [_regroup(part, cut) for cut in _cut(rows, cap)]
    return packed


def _rows(found: Sequence[Group], ids: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """(suffix length, group, member) of every prompt: groups by longest suffix, members by their own."""
    rows: list[list[tuple[int, int, int]]] = []
    for k, group in enumerate(found):
        rows.append(sorted((len(ids[i]) - len(group.prefix), k, i) for i in group.members))
    return [row for block in sorted(rows, key=lambda block: block[-1][0]) for row in block]


def _cut(rows: Sequence[tuple[int, int, int]], cap: int) -> list[list[tuple[int, int, int]]]:
    """Rows in this order, cut so that each piece fills at most `cap` slots once padded to its widest row."""
    cuts: list[list[tuple[int, int, int]]] = []
    widest = 0
    for row in rows:
        if cuts and (len(cuts[-1]) + 1) * max(widest, row[0]) <= cap:
            cuts[-1].append(row)
            widest = max(widest, row[0])
        else:
            cuts.append([row])
            widest = row[0]
    return cuts


def _regroup(found: Sequence[Group], rows: Sequence[tuple[int, int, int]]) -> list[Group]:
    """The groups of one pass: a group that a cut divides has its prefix run in both."""
    members: dict[int, list[int]] = {}
    for _, k, i in rows:
        members.setdefault(k, []).append(i)
    return [Group(found[k].prefix, tuple(inside)) for k, inside in members.items()]


def _pass(
    model: Model, batch: list[Group], ids: list[list[int]], wanted: list[list[int]], sites: tuple[Site, ...]
) -> Float[Tensor, "prompt site d_model"]:
    """One pass over the suffixes of a batch, over the keys and values of its prefixes."""
    deepest = max(site.layer for site in sites)
    prefixes = [group.prefix for group in batch]
    state = prefilled(model, prefixes, deepest) if prefixes[0] else None
    rows = [(group, i) for group in batch for i in group.members]
    owner = torch.tensor([k for k, group in enumerate(batch) for _ in group.members])
    device = model.backend.device
    width = max(len(ids[i]) - len(g.prefix) for g, i in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    pool = torch.zeros(len(rows), width)
    for k, (group, i) in enumerate(rows):
        start = len(group.prefix)
        tokens[k, : len(ids[i]) - start] = torch.tensor(ids[i][start:])
        pool[k, [w - start for w in wanted[i]]] = 1 / len(wanted[i])
    before = torch.tensor([len(g.prefix) for g, _ in rows])
    position = before[:, None] + torch.arange(width)[None]
    ends = torch.tensor([len(ids[i]) for _, i in rows])
    laid = Rows(
        position.to(device),
        (position - (ends[:, None] - 1)).to(device),
        (position < ends[:, None]).to(device),
    )
    state = None if state is None else state.for_one_pass(owner.to(device))
    request = Pass(
        tokens=tokens.to(device),
        rows=laid,
        pad_left=None if state is None else state.pad_left,
        capture=with_parts(sites),
        logit_slots=torch.zeros(len(rows), 0, dtype=torch.long, device=device),
        stop_after=deepest,
        cache=None if state is None else state.cache,
        keep_cache=state is not None,
        pool=pool,
    )
    seen = model.run(request, ends.to(device), sites)
    return torch.stack([seen.values[site].cpu() for site in sites], 1)


def prefilled(model: Model, prefixes: list[tuple[int, ...]], deepest: int) -> State:
    """Keys and values of the prefixes, left-padded so that each ends where its suffixes begin."""
    lengths = torch.tensor([len(p) for p in prefixes], device=model.backend.device)
    longest = int(lengths.max())
    tokens = torch.zeros(len(prefixes), longest, dtype=torch.long, device=model.backend.device)
    for k, prefix in enumerate(prefixes):
        tokens[k, longest - len(prefix) :] = torch.tensor(prefix)
    pad = longest - lengths
    position = torch.arange(longest, device=tokens.device)[None] - pad[:, None]
    request = Pass(
        tokens=tokens,
        rows=Rows(position, position - (lengths[:, None] - 1), position >= 0),
        pad_left=pad if bool(pad.any()) else None,
        logit_slots=tokens[:, :0],
        stop_after=deepest,
        keep_cache=True,
    )
    state = model.run(request, lengths, ()).state
    assert state is not None  # the pass keeps its cache
    return state
