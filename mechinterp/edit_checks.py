"""Edits that cannot act are refused before any compute: each would be silence or NaN in mid-pass."""

import math
from numbers import Real

import torch
from torch import Tensor

from mechinterp.interventions import Clamp, Intervention, ProjectOut, Rotate
from mechinterp.sites import WRITABLE, as_index
from mechinterp.where import At, Schedule, Where


def check(intervention: Intervention, shape: tuple[int, ...], n_batch: int) -> None:
    """Refuses an edit that cannot act at a site of this shape in a batch of this size."""
    if not isinstance(intervention, Intervention):
        raise TypeError(
            f"{intervention!r} is no intervention; use Add, Replace, ProjectOut, Clamp, Rotate or Apply"
        )
    site = intervention.site
    if site.name not in WRITABLE:
        remedy = "; to change the stream there, add at attn_out" if site.name == "resid_mid" else ""
        raise ValueError(
            f"{site} can be read, not written; the writable sites are {', '.join(WRITABLE)}{remedy}"
        )
    for tensor in intervention.tensors():
        _check_tensor(intervention, tensor, shape, n_batch)
    _check_strength(intervention.strength, n_batch)
    _check_parts(intervention)
    rows = intervention.batch_rows
    if rows is not None and not {as_index(row, "a batch row") for row in rows} <= set(range(n_batch)):
        raise ValueError(f"batch_rows {rows} are not all within the batch of {n_batch} rows")


def _check_strength(strength: object, n_batch: int) -> None:
    if isinstance(strength, Tensor) and strength.shape != (n_batch,):
        raise ValueError(
            f"strength has shape {tuple(strength.shape)}; give one number, or one for each of {n_batch} rows"
        )
    if isinstance(strength, bool) or not isinstance(strength, (Real, Tensor)):
        raise TypeError(f"strength must be a number, not {strength!r}")
    if not torch.as_tensor(strength).isfinite().all():
        raise ValueError(f"strength must be finite, not {strength}")


def _check_parts(intervention: Intervention) -> None:
    """Refuses a place, a schedule or a bound that would be silence or NaN in the middle of a pass."""
    where, schedule = intervention.where, intervention.schedule
    if not isinstance(where, Where):
        raise TypeError(f"where must be Everywhere(), At((3,)), From(3) or the like, not {where!r}")
    if isinstance(where, At) and not isinstance(where.positions, (tuple, list, range)):
        raise TypeError(f"At takes the positions as a tuple, At((3,)), not {where.positions!r}")
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be Constant(), FirstN(n) or Ramp(n), not {schedule!r}")
    if isinstance(intervention, Clamp) and not intervention.low <= intervention.high:
        raise ValueError(f"Clamp needs low <= high, not {intervention.low} and {intervention.high}")
    if isinstance(intervention, Rotate) and not math.isfinite(intervention.angle):
        raise ValueError(f"Rotate needs a finite angle in radians, not {intervention.angle}")


def _check_tensor(intervention: Intervention, tensor: object, shape: tuple[int, ...], n_batch: int) -> None:
    what = f"the vector of {type(intervention).__name__} at {intervention.site}"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} must be a tensor, not {type(tensor).__name__}")
    if tuple(tensor.shape) not in (shape, (n_batch, *shape)):
        hint = (
            "; index it with a layer first"
            if tensor.ndim == len(shape) + 1 and tensor.shape[1:] == shape
            else ""
        )
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)}, but the site holds {shape} (or {(n_batch, *shape)} for"
            f" a vector for each batch row){hint}"
        )
    if not tensor.isfinite().all():
        raise ValueError(f"{what} holds NaN or infinity")
    directional = isinstance(intervention, (ProjectOut, Clamp, Rotate))
    if directional and (tensor.float().reshape(-1, math.prod(shape)).norm(dim=-1) == 0).any():
        raise ValueError(f"{what} has norm zero, so it has no direction")
