"""What is asked of sampling and what comes of it: phases, what is watched, and rows of sampled ids."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.interventions import Intervention
from mechinterp.sites import Site


@dataclass(frozen=True, eq=False)
class Phase:
    """A stretch of sampling. `suppress` holds ids that it never samples; `cache` is what it goes on from."""

    n_tokens: int
    interventions: tuple[Intervention, ...] = ()
    cache: Literal["fresh", "carry"] = "fresh"
    suppress: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Watch:
    """What is recorded at the row that decides each generated token.

    `directions` [vector d_model] are projected on at `site`: x . v / |v|. `kl` compares every distribution
    with the unedited model's on the same ids, which runs beside with a cache of its own and doubles the cost.
    """

    site: Site
    directions: Float[Tensor, "vector d_model"]
    capture: tuple[Site, ...] = ()
    kl: bool = False


@dataclass(frozen=True, eq=False)
class Telemetry:
    """What was watched, one entry a generated token. `natural` is the projection before this pass's edits."""

    projections: Float[Tensor, "row token vector"]
    natural: Float[Tensor, "row token vector"]
    norms: Float[Tensor, "row token"]
    entropy: Float[Tensor, "row token"]
    kl: Float[Tensor, "row token"] | None
    captured: dict[Site, Float[Tensor, "row token *shape"]]


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of sampled ids. `tokens` are prompt and answer, right-padded; `generated` the answers alone.

    `real` is False past a row's end; `phase` numbers the phase of each generated token.
    """

    tokens: Int[Tensor, "row position"]
    lengths: Int[Tensor, "row"]
    prompt_lengths: Int[Tensor, "row"]
    generated: Int[Tensor, "row token"]
    real: Bool[Tensor, "row token"]
    phase: Int[Tensor, "token"]
    finish_reason: tuple[Literal["stop", "length"], ...]
    names: tuple[str, ...]
    telemetry: Telemetry | None
    batches: tuple[int, ...]


def joined(parts: list[Samples], sizes: tuple[int, ...]) -> Samples:
    """Batches as one; shorter ones are padded with what is not real."""
    if len(parts) == 1:
        return replace(parts[0], batches=sizes)

    def cat(tensors: list[Tensor]) -> Tensor:
        n = max(t.shape[1] for t in tensors)
        grown = [torch.cat([t, t.new_zeros(t.shape[0], n - t.shape[1], *t.shape[2:])], 1) for t in tensors]
        return torch.cat(grown)

    notes = [p.telemetry for p in parts if p.telemetry is not None]
    telemetry = None
    if notes:
        kls = [t.kl for t in notes if t.kl is not None]
        telemetry = Telemetry(
            *(
                cat([getattr(t, name) for t in notes])
                for name in ("projections", "natural", "norms", "entropy")
            ),
            kl=cat(kls) if kls else None,
            captured={s: cat([t.captured[s] for t in notes]) for s in notes[0].captured},
        )
    return Samples(
        tokens=cat([p.tokens for p in parts]),
        lengths=torch.cat([p.lengths for p in parts]),
        prompt_lengths=torch.cat([p.prompt_lengths for p in parts]),
        generated=cat([p.generated for p in parts]),
        real=cat([p.real for p in parts]),
        phase=max((p.phase for p in parts), key=len),
        finish_reason=tuple(r for p in parts for r in p.finish_reason),
        names=tuple(n for p in parts for n in p.names),
        telemetry=telemetry,
        batches=sizes,
    )
