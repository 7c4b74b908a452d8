"""What is read from the logits of one row: small objects that name the row and the tokens they look at.

A metric says at which position it reads, so no engine ever unembeds another row.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.sites import as_index


@runtime_checkable
class Metric(Protocol):
    """A number for each set of logits of the row at `at`, in fp32; `tokens` are the ids it names."""

    @property
    def at(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> tuple[int, ...]: ...

    def read(self, logits: Float[Tensor, "cell d_vocab"]) -> Float[Tensor, "cell"]: ...


@dataclass(frozen=True)
class LogProb:
    """log p(token) after the row at `at`, in nats."""

    token: int
    at: int
    name: str = "log p"

    @property
    def tokens(self) -> tuple[int, ...]:
        return (self.token,)

    def read(self, logits: Float[Tensor, "cell d_vocab"]) -> Float[Tensor, "cell"]:
        return logits[:, self.token] - logits.logsumexp(-1)


@dataclass(frozen=True)
class Probability:
    """p(token) after the row at `at`."""

    token: int
    at: int
    name: str = "p"

    @property
    def tokens(self) -> tuple[int, ...]:
        return (self.token,)

    def read(self, logits: Float[Tensor, "cell d_vocab"]) -> Float[Tensor, "cell"]:
        return (logits[:, self.token] - logits.logsumexp(-1)).exp()


@dataclass(frozen=True)
class LogitDifference:
    """logit[token] - logit[other] after the row at `at`, in nats of odds between the two."""

    token: int
    other: int
    at: int
    name: str = "logit difference"

    @property
    def tokens(self) -> tuple[int, ...]:
        return (self.token, self.other)

    def read(self, logits: Float[Tensor, "cell d_vocab"]) -> Float[Tensor, "cell"]:
        return logits[:, self.token] - logits[:, self.other]


@dataclass(frozen=True)
class Rank:
    """How many tokens have a larger logit than `token`: 0 is the argmax, ties count for the token."""

    token: int
    at: int
    name: str = "rank"

    @property
    def tokens(self) -> tuple[int, ...]:
        return (self.token,)

    def read(self, logits: Float[Tensor, "cell d_vocab"]) -> Float[Tensor, "cell"]:
        return (logits > logits[:, self.token, None]).sum(-1).float()


@dataclass(frozen=True, eq=False)
class KLTo:
    """KL(run || patched) in nats, from the distribution that a given run has after the row at `at`."""

    log_probs: Float[Tensor, "d_vocab"]
    at: int
    name: str = "KL"

    @property
    def tokens(self) -> tuple[int, ...]:
        return ()

    def read(self, logits: Float[Tensor, "cell d_vocab"]) -> Float[Tensor, "cell"]:
        given = self.log_probs.to(logits)
        # a padded id may be at minus infinity in both: it has no mass and adds nothing
        differing = torch.where(given.isneginf(), 0.0, given - logits.log_softmax(-1))
        return (given.exp() * differing).sum(-1)


def log_prob(token: int, *, at: int) -> LogProb:
    """log p(token) after the row at position `at`."""
    return LogProb(as_index(token, "token"), as_index(at, "at"))


def probability(token: int, *, at: int) -> Probability:
    """p(token) after the row at position `at`."""
    return Probability(as_index(token, "token"), as_index(at, "at"))


def logit_difference(token: int, other: int, *, at: int) -> LogitDifference:
    """logit[token] - logit[other] after the row at position `at`."""
    return LogitDifference(as_index(token, "token"), as_index(other, "other"), as_index(at, "at"))


def rank(token: int, *, at: int) -> Rank:
    """The rank of `token` after the row at position `at`; 0 is the argmax."""
    return Rank(as_index(token, "token"), as_index(at, "at"))


def kl_to(logits: Float[Tensor, "d_vocab"], *, at: int) -> KLTo:
    """KL in nats from the distribution of these logits to the patched run's, after the row at `at`."""
    if logits.ndim != 1 or not logits.is_floating_point():
        raise ValueError(f"kl_to takes the logits of one row, [d_vocab], not {list(logits.shape)}")
    return KLTo(logits.detach().float().log_softmax(-1), as_index(at, "at"))
