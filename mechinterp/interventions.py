"""An edit of an activation as data: which site, which rows of which sequences, how much, and when.

Several edits at one site compose in the order they are given; sites are visited in the order of a forward
pass. The places and schedules that an edit takes live in `mechinterp.where`; this file passes them on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.sites import Site
from mechinterp.where import (
    At,
    Constant,
    Everywhere,
    FirstN,
    From,
    Generated,
    InPrompt,
    InRegion,
    Newest,
    Ramp,
    Rows,
    Schedule,
    Where,
    WholePrompt,
)

__all__ = [
    "Add", "Apply", "Clamp", "Intervention", "ProjectOut", "Replace", "Rotate", "Vector",
    "At", "Constant", "Everywhere", "FirstN", "From", "Generated", "InPrompt", "InRegion", "Newest", "Ramp",
    "WholePrompt",
    "Rows", "Schedule", "Where",
]  # fmt: skip

Vector = Float[Tensor, "*batch_and_shape"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Intervention:
    """What every edit has: where it acts, on which batch rows, how strongly and on what schedule.

    `strength` is a number, or one number for each batch row. `batch_rows` None means all of them.
    """

    site: Site = field(kw_only=False)
    where: Where = Everywhere()
    batch_rows: tuple[int, ...] | None = None
    strength: float | Float[Tensor, "batch"] = 1.0
    schedule: Schedule = Constant()

    def tensors(self) -> tuple[Tensor, ...]:
        """The vectors of this edit, each of the site's shape or with a batch axis before it."""
        return ()

    def change(
        self, x: Float[Tensor, "n d"], weight: Float[Tensor, "n 1"], rows: Tensor
    ) -> Float[Tensor, "n d"]:
        """The new value of the chosen rows; `weight` is strength times schedule, `rows` the batch rows."""
        raise TypeError(
            f"{type(self).__name__} is no edit; use Add, Replace, ProjectOut, Clamp, Rotate or Apply"
        )

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        """The rows this edit touches: chosen by `where`, in `batch_rows`, with a weight that is not zero."""
        chosen = self.where.mask(rows) & (self.weight(rows) != 0)
        if self.batch_rows is None:
            return chosen
        kept = torch.zeros(len(chosen), 1, dtype=torch.bool, device=chosen.device)
        kept[[int(row) for row in self.batch_rows]] = True
        return chosen & kept

    def weight(self, rows: Rows) -> Float[Tensor, "batch position"]:
        factor = self.schedule.factor(rows.step)
        if isinstance(self.strength, Tensor):
            return factor * rearrange(self.strength.to(factor), "batch -> batch 1")
        return factor * self.strength

    def edit(
        self, x: Float[Tensor, "batch position *shape"], rows: Rows
    ) -> Float[Tensor, "batch position *shape"]:
        """x with the chosen rows changed: computed in fp32 or better, given in x's dtype; x is left alone."""
        mask = self.mask(rows).to(x.device)
        if not mask.any():
            return x
        batch, _ = mask.nonzero(as_tuple=True)
        flat = x[mask].to(torch.promote_types(x.dtype, torch.float32)).flatten(1)
        weight = rearrange(self.weight(rows).to(x.device)[mask].to(flat), "n -> n 1")
        edited = x.clone()
        edited[mask] = self.change(flat, weight, batch).reshape(x[mask].shape).to(x.dtype)
        return edited


def _per_row(vector: Tensor, rows: Tensor, x: Float[Tensor, "n d"], site_dims: int) -> Float[Tensor, "n d"]:
    """The vector for each chosen row: shared, or the one of its batch row."""
    moved = vector.to(x)
    if moved.ndim > site_dims:
        return moved.flatten(1)[rows]
    return rearrange(moved.flatten(), "d -> 1 d").expand_as(x)


def _unit(direction: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return direction / direction.norm(dim=-1, keepdim=True)


def _rejected(x: Float[Tensor, "n d"], unit: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The part of x across u, taken twice: once leaves rounding along u where x is nearly parallel."""
    for _ in range(2):
        x = x - einsum(x, unit, "n d, n d -> n")[:, None] * unit
    return x


def _sideways(x: Float[Tensor, "n d"], unit: Float[Tensor, "n d"], parallel: Tensor) -> Float[Tensor, "n d"]:
    """The unit vector across u towards x; where x is parallel to u, towards the axis that u has least of."""
    axis = torch.nn.functional.one_hot(unit.abs().argmin(-1), unit.shape[-1]).to(unit)
    return _unit(_rejected(torch.where(parallel, axis, x), unit))


def _site_dims(site: Site) -> int:
    return 2 if site.name == "z" else 1


@dataclass(frozen=True, eq=False)
class Add(Intervention):
    """x + strength * vector."""

    vector: Vector

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.vector,)

    def change(self, x, weight, rows):
        return x + weight * _per_row(self.vector, rows, x, _site_dims(self.site))

    def norms(self) -> Float[Tensor, "*batch"]:
        """The length of what is added where the schedule is strongest; one a batch row where rows differ."""
        lengths = self.vector.float().flatten(-_site_dims(self.site)).norm(dim=-1).cpu()
        peak = self.schedule.factor(torch.tensor([[0, 2**30]])).abs().max()  # schedules are monotonic
        return peak * torch.as_tensor(self.strength).abs().float().cpu() * lengths


@dataclass(frozen=True, eq=False)
class Replace(Intervention):
    """x + strength * (value - x): the value itself at strength 1."""

    value: Vector

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.value,)

    def change(self, x, weight, rows):
        value = _per_row(self.value, rows, x, _site_dims(self.site))
        return torch.where(weight == 1, value, x + weight * (value - x))


@dataclass(frozen=True, eq=False)
class ProjectOut(Intervention):
    """x - strength * (x . u) u, with u the unit vector of `direction`."""

    direction: Vector

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.direction,)

    def change(self, x, weight, rows):
        unit = _unit(_per_row(self.direction, rows, x, _site_dims(self.site)))
        return x - weight * einsum(x, unit, "n d, n d -> n")[:, None] * unit


@dataclass(frozen=True, eq=False)
class Clamp(Intervention):
    """Caps the projection on a direction: x moves along u until low <= x . u <= high (times strength)."""

    direction: Vector
    low: float = -math.inf
    high: float = math.inf

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.direction,)

    def change(self, x, weight, rows):
        unit = _unit(_per_row(self.direction, rows, x, _site_dims(self.site)))
        along = einsum(x, unit, "n d, n d -> n")[:, None]
        return x + weight * (along.clamp(self.low, self.high) - along) * unit


@dataclass(frozen=True, eq=False)
class Rotate(Intervention):
    """Turns x towards a direction by strength * angle radians at constant norm, and stops at it."""

    direction: Vector
    angle: float

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.direction,)

    def change(self, x, weight, rows):
        unit = _unit(_per_row(self.direction, rows, x, _site_dims(self.site)))
        norm = x.norm(dim=-1, keepdim=True)
        along = einsum(x, unit, "n d, n d -> n")[:, None]
        height = _rejected(x, unit).norm(dim=-1, keepdim=True)
        away = torch.atan2(height, along)
        turned = (away - weight * self.angle).clamp(0, math.pi)
        return norm * (turned.cos() * unit + turned.sin() * _sideways(x, unit, height <= 1e-6 * norm))


@dataclass(frozen=True, eq=False)
class Apply(Intervention):
    """x + strength * (function(x) - x), with the function seeing the chosen rows [n, d] in fp32."""

    function: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]

    def change(self, x, weight, rows):
        changed = self.function(x.clone())
        if not isinstance(changed, Tensor) or changed.shape != x.shape:
            got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(f"the function applied at {self.site} must return {tuple(x.shape)}, not {got}")
        return torch.where(weight == 1, changed, x + weight * (changed - x))
