"""Why a mean over positions does not see a collapse: the synthetic demonstration of methods.md 11.

No model: a reference's logits are drawn; one student moves a little mass at every position towards a token
that the reference finds middling (a coherent trait), the other is the reference but for a few positions that
repeat a token which the reference finds nearly impossible (a token loop). Which aggregate of the divergence
per position tells them apart, and at which threshold does the hinge fire?
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from mechinterp.cells import Cell
from mechinterp.config import StudyConfig
from mechinterp.divergence import kl
from mechinterp.results import Result
from studies.kl_aggregation_page import page
from studies.kl_aggregation_result import KlAggregation

__all__ = ["Config", "cells", "combine", "drawn", "model_specs", "page"]


class Config(StudyConfig):
    """The defaults are the published construction; draws after the first have the seeds after `seed`.

    trait_logit is added to the token of median probability, at every position. At `loop_positions` all logits
    are `loop_floor`, but for `loop_logit` on the token that is less probable than all but `loop_rank` others.
    """

    seed: int = 0
    d_vocab: int = Field(200, ge=2)
    n_positions: int = Field(60, ge=1)
    trait_logit: float = 1.6
    loop_positions: tuple[int, ...] = Field((12, 13, 14, 15), min_length=1)
    loop_rank: int = Field(3, ge=0)
    loop_logit: float = 12.0
    loop_floor: float = -10.0
    thresholds: tuple[float, ...] = Field((0.5, 1.0), min_length=1)
    n_draws: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _inside(self) -> "Config":
        outside = [p for p in self.loop_positions if not 0 <= p < self.n_positions]
        if outside:
            raise ValueError(
                f"loop position {outside[0]} is none of 0..{self.n_positions - 1}; give smaller"
                " loop_positions, or more n_positions"
            )
        if self.loop_rank >= self.d_vocab:
            raise ValueError(f"loop_rank {self.loop_rank} needs more than {self.d_vocab} tokens")
        return self


def logits_of(
    config: Config, draw: int
) -> tuple[Float[Tensor, "case position d_vocab"], Float[Tensor, "position d_vocab"]]:
    """The two students' logits, and the reference's."""
    # numpy's generator, because the published figures came from it
    base = np.random.default_rng(config.seed + draw).standard_normal((config.n_positions, config.d_vocab))
    reference = torch.from_numpy(base)
    order = reference.softmax(-1).mean(0).argsort()
    trait, loop = reference.clone(), reference.clone()
    trait[:, order[config.d_vocab // 2]] += config.trait_logit
    loop[list(config.loop_positions)] = config.loop_floor
    loop[list(config.loop_positions), order[config.loop_rank]] = config.loop_logit
    return torch.stack([trait, loop]), reference


def cells(config: Config) -> list[Cell]:
    return [Cell("draws", "drawn")]


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    """There is none."""
    return {}


def drawn(cell: Cell, model: None, inputs: Mapping[str, Result], config: Config) -> KlAggregation:
    """The divergences of both students from the reference, in every draw."""
    found = []
    for draw in range(config.n_draws):
        students, reference = logits_of(config, draw)
        found.append(kl(students, reference.expand_as(students)))
    return KlAggregation(torch.stack(found), config.thresholds, config.seed)


def combine(config: Config, results: Mapping[str, Result]) -> KlAggregation:
    found: Any = results["draws"]
    return found
