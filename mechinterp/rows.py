"""Which slots of a batch are which positions: absolute ones in, slots of a chunk out, misfits refused."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.interventions import Intervention
from mechinterp.sites import as_index
from mechinterp.where import At, From, Rows


def layout(
    tokens: Int[Tensor, "batch slot"],
    lengths: Sequence[int] | None,
    n_before: int,
    pad_left: Int[Tensor, "batch"] | None,
    prompt_lengths: Int[Tensor, "batch"] | None,
) -> tuple[Rows, Int[Tensor, "batch"]]:
    """The position, generated step and realness of each slot; and where each row's tokens end."""
    n_batch, n = tokens.shape
    pad = torch.zeros(n_batch, dtype=torch.long, device=tokens.device) if pad_left is None else pad_left
    position = torch.arange(n_before, n_before + n, device=tokens.device)[None] - pad[:, None]
    ends = position[:, -1] + 1
    if lengths is not None:
        counts = [as_index(length, "a length") for length in lengths]
        if len(counts) != n_batch or not all(0 < count <= n for count in counts):
            raise ValueError(
                f"lengths {counts} do not fit tokens of shape {(n_batch, n)}: one for each row, 1..{n}"
            )
        ends = position[:, 0] + torch.tensor(counts, device=tokens.device)
    prompts = ends if prompt_lengths is None else prompt_lengths
    real = (position >= 0) & (position < ends[:, None])
    return Rows(position, position - (prompts[:, None] - 1), real), ends


def slots_at(
    positions: Sequence[int] | Tensor | None, ends: Tensor, offset: Tensor, what: str
) -> Int[Tensor, "batch k"] | None:
    """Absolute positions as slots of this chunk; `offset` is the position of the chunk's first slot."""
    if positions is None:
        return None
    if not isinstance(positions, (Tensor, Sequence)) or isinstance(positions, str):
        raise TypeError(f"{what} must be a list of positions or a tensor of them, not {positions!r}")
    if not isinstance(positions, Tensor):
        positions = torch.tensor([as_index(p, what) for p in positions], dtype=torch.long)
    if not is_integer(positions) or positions.shape[:-1] not in ((), (len(ends),)) or not positions.ndim:
        raise ValueError(
            f"{what} must be whole numbers of shape [k] or [{len(ends)}, k], not {positions.dtype} of"
            f" {list(positions.shape)}"
        )
    wanted = positions.to(ends.device).long()
    wanted = wanted.expand(len(ends), -1) if wanted.ndim == 1 else wanted
    wanted = torch.where(wanted == -1, ends[:, None] - 1, wanted)
    bad = (wanted < offset[:, None]) | (wanted >= ends[:, None])
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        raise IndexError(
            f"{what} {wanted[row].tolist()} are not all in row {row}, whose tokens here are at"
            f" {int(offset[row])}..{int(ends[row]) - 1}"
        )
    return wanted - offset[:, None]


def check_positions(interventions: Sequence[Intervention], ends: Int[Tensor, "batch"]) -> None:
    """Raises IndexError for an edit at a position that one of its rows has not; `ends` is where each ends."""
    for intervention in interventions:
        where = intervention.where
        asked = (
            where.positions if isinstance(where, At) else (where.position,) if isinstance(where, From) else ()
        )
        rows = range(len(ends)) if intervention.batch_rows is None else intervention.batch_rows
        for position in asked:
            short = [
                row
                for row in rows
                if isinstance(where, At) and as_index(position, "position") >= int(ends[row])
            ]
            if as_index(position, "position") < 0 or short:
                row = short[0] if short else 0
                raise IndexError(
                    f"{type(intervention).__name__} at {intervention.site} names position {position};"
                    f" the tokens of row {row} are at 0..{int(ends[row]) - 1} (batch_rows= limits an edit to"
                    " some rows)"
                )


def packed(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Texts by number, those of like length together, in batches of at most `slots` padded tokens."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= slots:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def one_text(
    tokens: Int[Tensor, "1 position"] | Int[Tensor, "position"], *, many: str, name: str = "tokens"
) -> Int[Tensor, "position"]:
    """The ids of a single text, with or without a batch axis of one; `many` names what takes several."""
    ids = torch.as_tensor(tokens)
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"{name} must be one text, [1, position], not {list(ids.shape)}; see {many}")
    return ids


def is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
