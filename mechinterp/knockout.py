"""Attention knock-out as data: which rows may not attend to which keys, in which layers and heads.

It goes through the attention mask, so what is left of a row renormalises in the kernel's own softmax. Places
are absolute positions, as everywhere: left padding and cached prefixes are accounted for here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp.backends.protocol import Dims
from mechinterp.sites import as_index
from mechinterp.where import Rows

Indices = Sequence[int] | Int[Tensor, "n"]
Forbidden = Mapping[int, Bool[Tensor, "batch head slot key"]]


@dataclass(frozen=True)
class KnockOut:
    """The query rows at `rows` do not attend to the keys at `keys`, in these layers.

    layers, heads, batch_rows: indices; None is every head, every sequence of the batch. rows, keys: absolute
    positions, as a tuple, a range or a tensor (`segmentation.positions("system")`); row -1 is each
    sequence's last. A key later than a row is hidden from it anyway. Raises TypeError for what is no index,
    ValueError for an empty or repeated one.
    """

    layers: Indices
    rows: Indices
    keys: Indices
    heads: Indices | None = None
    batch_rows: Indices | None = None

    def __post_init__(self):
        for name in ("layers", "rows", "keys", "heads", "batch_rows"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _indices(given, name))


@dataclass(frozen=True, eq=False)
class Chunk:
    """What places in a pass are resolved against: its slots, where each sequence ends, and what is cached."""

    rows: Rows
    ends: Int[Tensor, "batch"]
    pad_left: Int[Tensor, "batch"] | None = None
    n_cached: int = 0

    @property
    def key_position(self) -> Int[Tensor, "batch key"]:
        """The position of every cached and new slot; negative on left padding."""
        n_batch, n = self.rows.position.shape
        slot = torch.arange(self.n_cached + n, device=self.ends.device).expand(n_batch, -1)
        return slot if self.pad_left is None else slot - self.pad_left[:, None]

    def visible(self, window: int | None) -> Bool[Tensor, "batch slot key"]:
        """The keys that each slot sees under the causal mask and a sliding window."""
        key = rearrange(self.key_position, "batch key -> batch 1 key")
        query = rearrange(self.rows.position, "batch slot -> batch slot 1")
        seen = (key >= 0) & (key <= query)
        return seen if window is None else seen & (key > query - window)


def forbidden_keys(
    knockouts: Sequence[KnockOut], dims: Dims, chunk: Chunk, name: str, stop_after: int | None = None
) -> Forbidden:
    """For each layer with something to forbid, the visible keys that no longer are; heads may be one for all.

    Raises TypeError, ValueError or IndexError for what cannot be met, and ValueError for a row that would be
    left no key.
    """
    for knockout in knockouts:
        _check(knockout, dims, chunk, name)
        if stop_after is not None and max(knockout.layers) > stop_after:
            raise ValueError(
                f"stop_after={stop_after} ends the pass before layer {max(knockout.layers)}, where a"
                " knock-out acts; stop later, or leave it out"
            )
    if len(set(knockouts)) < len(tuple(knockouts)):
        raise ValueError("the same knock-out is given twice; name each once")
    found: dict[int, Tensor] = {}
    shared: dict[tuple, Tensor] = {}
    for layer in sorted({int(layer) for knockout in knockouts for layer in knockout.layers}):
        window = dims.windows[layer] if dims.windows else None
        acting = tuple(i for i, knockout in enumerate(knockouts) if layer in knockout.layers)
        if (acting, window) not in shared:
            visible = rearrange(chunk.visible(window), "batch slot key -> batch 1 slot key")
            hidden = _union([knockouts[i] for i in acting], dims.n_heads, chunk) & visible
            _check_left(visible & ~hidden, hidden, layer, chunk)
            shared[acting, window] = hidden
        if shared[acting, window].any():  # else the kernel keeps the very mask that it has
            found[layer] = shared[acting, window]
    return found


def _union(knockouts: Sequence[KnockOut], n_heads: int, chunk: Chunk) -> Bool[Tensor, "batch head slot key"]:
    per_head = any(knockout.heads is not None for knockout in knockouts)
    (n_batch, n), n_keys = chunk.rows.position.shape, chunk.key_position.shape[1]
    device = chunk.ends.device
    hidden = torch.zeros(n_batch, n_heads if per_head else 1, n, n_keys, dtype=torch.bool, device=device)
    for knockout in knockouts:
        rows = rearrange(_chosen_rows(knockout, chunk), "batch slot -> batch 1 slot 1")
        keys = torch.isin(chunk.key_position, torch.tensor(knockout.keys, device=device))
        block = rows & rearrange(keys, "batch key -> batch 1 1 key")
        if knockout.heads is None:
            hidden |= block
        else:
            hidden[:, list(knockout.heads)] |= block
    return hidden


def _chosen_rows(knockout: KnockOut, chunk: Chunk) -> Bool[Tensor, "batch slot"]:
    position = chunk.rows.position
    chosen = torch.isin(position, torch.tensor(knockout.rows, device=position.device))
    if -1 in knockout.rows:
        chosen |= position == chunk.ends[:, None] - 1
    chosen &= chunk.rows.real
    if knockout.batch_rows is not None:
        kept = torch.zeros_like(chosen)
        kept[list(knockout.batch_rows)] = True
        chosen &= kept
    return chosen


def _check(knockout: KnockOut, dims: Dims, chunk: Chunk, name: str) -> None:
    if not isinstance(knockout, KnockOut):
        raise TypeError(f"{knockout!r} is no knock-out; write KnockOut(layers, rows, keys)")
    for layer in knockout.layers:
        if not 0 <= layer < dims.n_layers:
            raise IndexError(f"{name} has layers 0..{dims.n_layers - 1}; there is no layer {layer}")
    for head in knockout.heads or ():
        if not 0 <= head < dims.n_heads:
            raise IndexError(f"{name} has heads 0..{dims.n_heads - 1}; there is no head {head}")
    ends = chunk.ends.tolist()
    if not {*(knockout.batch_rows or ())} <= set(range(len(ends))):
        raise IndexError(f"batch_rows {knockout.batch_rows} are not all within the batch of {len(ends)} rows")
    for row in range(len(ends)) if knockout.batch_rows is None else knockout.batch_rows:
        for what, positions in (("row", knockout.rows), ("key", knockout.keys)):
            wrong = [p for p in positions if not 0 <= p < ends[row] and (what, p) != ("row", -1)]
            if wrong:
                raise IndexError(
                    f"a knock-out names {what} {wrong[0]}; the tokens of row {row} are at 0..{ends[row] - 1}"
                    " (batch_rows= limits a knock-out to some rows)"
                )
    if not _chosen_rows(knockout, chunk).any():
        raise ValueError(
            f"the rows {knockout.rows} of a knock-out are all in the cached prefix, which is there already;"
            " give it to the pass that computes them"
        )


def _check_left(left: Tensor, hidden: Tensor, layer: int, chunk: Chunk) -> None:
    """Refuses a row without any key: its softmax would be over nothing."""
    alone = hidden.any(-1) & ~left.any(-1)
    if alone.any():
        row, head, slot = alone.nonzero()[0].tolist()
        position = int(chunk.rows.position[row, slot])
        of_head = f" (head {head})" if hidden.shape[1] > 1 else ""
        raise ValueError(
            f"a knock-out leaves the row at position {position} of batch row {row} no key in layer"
            f" {layer}{of_head}; leave it one, such as its own position {position}, out of keys"
        )


def _indices(given: object, name: str) -> tuple[int, ...]:
    """A tuple of ints from a sequence or a one-dimensional tensor of them."""
    if isinstance(given, Tensor) and given.ndim == 1:
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise TypeError(f"{name} of a knock-out must be a tuple of integers, not {given!r}")
    indices = tuple(as_index(index, f"{name} of a knock-out:") for index in given)
    if not indices:
        raise ValueError(f"{name} of a knock-out is empty; name at least one, or leave the knock-out out")
    if len(set(indices)) < len(indices):
        twice = next(index for index in indices if indices.count(index) > 1)
        raise ValueError(f"{name} of a knock-out names {twice} twice; name each once")
    return indices
