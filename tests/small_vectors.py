"""What the tests of vector files share: a model's sizes, seeded numbers, and equality of vectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.vectors import Vectors


@dataclass(frozen=True)
class SmallModel:
    n_layers: int = 4
    d_model: int = 6


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(left: Vectors, right: Vectors) -> bool:
    return (
        left.names == right.names
        and left.layers == right.layers
        and torch.equal(left.values, right.values)
        and left.passport == right.passport
    )
