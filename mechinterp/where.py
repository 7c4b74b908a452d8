"""Where an edit acts and when: rows of sequences, places among them, and schedules over generated tokens.

Positions are absolute indices into a sequence's own tokens and steps count generated tokens, so one place
means the same for a whole sequence, for cached steps and for padded batches.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.sites import as_index


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of which sequences an activation holds.

    `position` is negative on left padding. `step` is the generated token that the row decides, counted from 0
    at the last prompt token; it is negative in the prompt before that. `real` is False on padding at either
    side.
    """

    position: Int[Tensor, "batch position"]
    step: Int[Tensor, "batch position"]
    real: Bool[Tensor, "batch position"]


@dataclass(frozen=True)
class Everywhere:
    """Every real row."""

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        return rows.real


@dataclass(frozen=True)
class At:
    """The rows at these absolute positions, in every sequence."""

    positions: tuple[int, ...]

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        return rows.real & torch.isin(
            rows.position, torch.tensor(self.positions, device=rows.position.device)
        )


@dataclass(frozen=True)
class From:
    """The rows from an absolute position on."""

    position: int

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        return rows.real & (rows.position >= self.position)


@dataclass(frozen=True)
class InPrompt:
    """The rows before the one that decides the first generated token."""

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        return rows.real & (rows.step < 0)


@dataclass(frozen=True)
class WholePrompt:
    """The rows of the prompt, the one that decides the first generated token among them."""

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        return rows.real & (rows.step <= 0)


@dataclass(frozen=True)
class Generated:
    """The rows that decide generated tokens: from the last prompt row on (steering policy `generated`)."""

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        return rows.real & (rows.step >= 0)


@dataclass(frozen=True)
class Newest:
    """Only the row that decides the next token; all earlier rows stay natural (steering policy `last`).

    In a single pass this is the last real row. `sample` keeps a natural cache beside it, at twice the cost.
    """

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        last = rows.position.masked_fill(~rows.real, -1).amax(1, keepdim=True)
        return rows.real & (rows.position == last)


@dataclass(frozen=True, eq=False)
class InRegion:
    """The rows of a region of a prompt's segmentation; rows past its end belong to no region."""

    positions: Int[Tensor, "n"]

    def mask(self, rows: Rows) -> Bool[Tensor, "batch position"]:
        return rows.real & torch.isin(rows.position, self.positions.to(rows.position.device))


Where = Everywhere | At | From | InPrompt | WholePrompt | Generated | Newest | InRegion


@dataclass(frozen=True)
class Constant:
    """The same strength at every step."""

    def factor(self, step: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position"]:
        return torch.ones_like(step, dtype=torch.float32)


@dataclass(frozen=True)
class FirstN:
    """Full strength while the first n tokens are decided, nothing after; prompt rows count as before."""

    n: int

    def __post_init__(self):
        if as_index(self.n, "n of FirstN") < 0:
            raise ValueError(f"FirstN counts tokens from 0 on, not {self.n}")

    def factor(self, step: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position"]:
        return (step < self.n).float()


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` times the strength, linearly over n steps, and `end` from then on."""

    n: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        if as_index(self.n, "n of Ramp") < 1 or not math.isfinite(self.start) or not math.isfinite(self.end):
            raise ValueError(f"{self} needs n >= 1 steps and finite ends; Constant() is the ramp of no steps")

    def factor(self, step: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position"]:
        share = (step.float() / self.n).clamp(0, 1)
        return self.start + (self.end - self.start) * share


Schedule = Constant | FirstN | Ramp
