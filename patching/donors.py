"""What is put in place of a site's rows: another run's, none, a mean of rows; placebos of the same size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.model import Model
from mechinterp.sites import Site
from patching.cases import Case

Values = dict[Site, Float[Tensor, "position *shape"]]  # one row for each position in the case's order


class Donor(Protocol):
    """Gives the rows that a case receives, and what the metrics read in the run that they come from."""

    @property
    def name(self) -> str: ...

    def values(
        self, target: Model, case: Case, sites: Sequence[Site], positions: Sequence[int]
    ) -> tuple[Values, Float[Tensor, "metric"]]: ...


@dataclass(frozen=True, eq=False)
class FromRun:
    """The rows of the source model on the case's source ids, at the aligned positions."""

    source: Model

    @property
    def name(self) -> str:
        return self.source.name

    def values(
        self, target: Model, case: Case, sites: Sequence[Site], positions: Sequence[int]
    ) -> tuple[Values, Float[Tensor, "metric"]]:
        at = [case.source_position(position) for position in positions]
        rows = [case.source_position(metric.at) for metric in case.metrics]
        ids = torch.as_tensor(case.donor_tokens)[None, : max(*at, *rows) + 1]
        seen = self.source.forward(ids, capture=sites, positions=at, logits_at=rows)
        assert seen.logits is not None  # rows were asked for
        read = [m.read(seen.logits[0, i, None].float())[0].cpu() for i, m in enumerate(case.metrics)]
        return {site: seen[site][0] for site in sites}, torch.stack(read)


@dataclass(frozen=True)
class Zero:
    """Nothing: rows of zeros."""

    name: str = "zero"

    def values(
        self, target: Model, case: Case, sites: Sequence[Site], positions: Sequence[int]
    ) -> tuple[Values, Float[Tensor, "metric"]]:
        dims, dtype, device = target.dims, target.backend.dtype, target.backend.device
        rows = {s: torch.zeros(len(positions), *dims.shape(s), dtype=dtype, device=device) for s in sites}
        return rows, torch.full((len(case.metrics),), torch.nan)


@dataclass(frozen=True)
class MeanOver:
    """The mean of the target's own rows at the case's control positions."""

    name: str = "mean of control rows"

    def values(
        self, target: Model, case: Case, sites: Sequence[Site], positions: Sequence[int]
    ) -> tuple[Values, Float[Tensor, "metric"]]:
        at = list(case.control)
        if not at or min(at) < 0 or max(at) >= len(case.tokens):
            raise ValueError(f"control positions {at} of {case.name or 'a case'}: name some within the text")
        ids = torch.as_tensor(case.tokens)[None, : max(at) + 1]
        seen = target.forward(ids, capture=sites, positions=at, logits_at=())
        means = {site: seen[site][0].float().mean(0, keepdim=True) for site in sites}
        rows = {site: mean.expand(len(positions), *mean.shape[1:]) for site, mean in means.items()}
        return rows, torch.full((len(case.metrics),), torch.nan)


Null = Literal["random", "shuffled"]


def norm_matched(
    own: Float[Tensor, "position *shape"], given: Float[Tensor, "position *shape"], generator: torch.Generator
) -> Float[Tensor, "position *shape"]:
    """Own rows moved as far as the given ones are away, each in a direction drawn at random."""
    flat = (given.float() - own.float()).flatten(1)
    drawn = torch.randn(flat.shape, generator=generator).to(flat)
    step = flat.norm(dim=1, keepdim=True) * drawn / drawn.norm(dim=1, keepdim=True)
    return own.float() + step.reshape(own.shape)


def rows_of_another(
    given: Float[Tensor, "other *shape"], n: int, generator: torch.Generator
) -> Float[Tensor, "n *shape"]:
    """n rows of another donor: all in their order where there are as many, else drawn from them."""
    if len(given) == n:
        return given
    return given[torch.randint(len(given), (n,), generator=generator).to(given.device)]


def derangement(n: int, generator: torch.Generator) -> list[int]:
    """A permutation that leaves nobody in place: one cycle through all, drawn at random; n is at least 2."""
    order = torch.randperm(n, generator=generator).tolist()
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [after[i] for i in range(n)]
