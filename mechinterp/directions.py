"""Directions in the residual stream: how they are found, measured and compared.

Pure mathematics on tensors, in fp32 whatever comes in. Rows (prompts, personas, insertion points) are the
first axis; every axis between them and `d_model`, such as layers, is carried along.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

# What is left of a subtraction below this share of its operands is fp32 rounding, not a direction.
ROUNDING = 1e-6
# Elements of one block of permuted means: 64 MiB in fp32.
BLOCK = 2**24


@dataclass(frozen=True, eq=False)
class NormNull:
    """Norm of a mean difference beside the norms that it has when the prompts' labels are shuffled."""

    observed: Float[Tensor, "*axes"]
    null: Float[Tensor, "permutation *axes"]
    p: Float[Tensor, "*axes"]  # (1 + null norms at least as large) / (1 + permutations)


@dataclass(frozen=True, eq=False)
class TopSingular:
    """The first right singular vector of some rows, and the spectrum it heads."""

    direction: Float[Tensor, "*axes d_model"]
    share: Float[Tensor, "*axes"]  # of the squared spectrum: the variance that this direction explains
    spectrum: Float[Tensor, "*axes rank"]


def mean_difference(
    a: Float[Tensor, "n *axes d_model"], b: Float[Tensor, "m *axes d_model"]
) -> Float[Tensor, "*axes d_model"]:
    """mean(a) - mean(b) over prompts (methods 10.1).

    One prompt a side is allowed, as in the published vectors, but leaves no estimate of error: the caller
    warns. A layer where the two sides agree keeps its zero row; sides that agree everywhere raise ValueError.
    """
    _check_rows(a, "the first side of the contrast")
    _check_rows(b, "the second side of the contrast")
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"the sides of a contrast must agree beyond the prompts, not {a.shape[1:]} and {b.shape[1:]}"
        )
    of_a, of_b = a.float().mean(0), b.float().mean(0)
    scale = torch.maximum(of_a.norm(dim=-1), of_b.norm(dim=-1))
    return _not_zero(of_a - of_b, scale)


def pca_of_differences(pairs: Float[Tensor, "prompt *axes d_model"]) -> Float[Tensor, "*axes d_model"]:
    """Unit direction that explains most of the paired differences, signed to agree with their mean.

    The differences are not centred: their mean is the contrast itself, and centring would leave only what
    varies around it. `top_singular(pairs, centered=True)` gives that other direction.
    """
    _check_rows(pairs, "the paired differences")
    _not_zero(pairs.float(), torch.zeros(1, device=pairs.device))
    return top_singular(pairs, centered=False).direction


def top_singular(rows: Float[Tensor, "row *axes d_model"], *, centered: bool) -> TopSingular:
    """First right singular vector of the rows, raw or about their mean (methods 10.3).

    The sign agrees with the raw rows' mean; where that is orthogonal, the largest component is positive.
    """
    _check_rows(rows, "the rows")
    raw = rearrange(rows.float(), "row ... d_model -> ... row d_model")
    mean = raw.mean(-2, keepdim=True)
    matrix = raw - mean if centered else raw
    if not matrix.norm() > ROUNDING * raw.norm():
        raise ValueError(
            f"all {len(rows)} rows are the same, so nothing is left to decompose; give rows that differ"
        )
    _, spectrum, right = torch.linalg.svd(matrix, full_matrices=False)
    direction = right[..., 0, :]
    energy = spectrum.square()
    return TopSingular(_signed(direction, mean.squeeze(-2)), energy[..., 0] / energy.sum(-1), spectrum)


def projection(
    x: Float[Tensor, "*shape d_model"], direction: Float[Tensor, "*k d_model"]
) -> Float[Tensor, "..."]:
    """x · v / ||v||: shape of x without its last axis, then k where k directions are given (methods 10.2)."""
    _finite(direction, "a direction")
    v = direction.float()
    norm = v.norm(dim=-1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError(
            "a direction to project on has norm zero; leave it out, or use `cosine`, which says NaN"
        )
    unit = rearrange(v / norm, "... d_model -> (...) d_model").to(x.device)
    return (x.float() @ unit.T).reshape((*x.shape[:-1], *direction.shape[:-1]))


def cosine(
    x: Float[Tensor, "*#shape d_model"], v: Float[Tensor, "*#shape d_model"]
) -> Float[Tensor, "*#shape"]:
    """Cosine along the last axis, with broadcasting; NaN, never a silent 0, where a vector has norm zero."""
    x, v = x.float(), v.float()
    return (_unit(x) * _unit(v)).sum(-1).clamp(-1, 1)


def cosine_matrix(
    rows: Float[Tensor, "row *axes d_model"], *, center_on: Float[Tensor, "*axes d_model"] | None
) -> Float[Tensor, "*axes row row"]:
    """Cosines of all pairs of rows about `center_on` (methods 4).

    The centre is part of what is measured, so it is always written: `rows.mean(0)` for the rows' own mean,
    another set's mean, one persona's row, or None for none. A row that equals the centre gives NaN against
    every row.
    """
    _check_rows(rows, "the rows")
    rows = rows.float()
    moved = rows if center_on is None else rows - center_on.float()
    lost = moved.norm(dim=-1, keepdim=True) <= ROUNDING * rows.norm(dim=-1, keepdim=True)
    unit = _unit(moved.masked_fill(lost, 0))
    return einsum(unit, unit, "i ... d_model, j ... d_model -> ... i j").clamp(-1, 1)


def split_half_cosine(
    per_prompt: Float[Tensor, "prompt *axes d_model"], generator: torch.Generator, *, n_splits: int = 100
) -> Float[Tensor, "split *axes"]:
    """Cosine between the means of two random halves of the prompts, one row a split."""
    _check_rows(per_prompt, "the per-prompt contrasts")
    n = len(per_prompt)
    if n < 2 or n_splits < 1:
        raise ValueError(f"split halves need two prompts and one split, not {n} and {n_splits}")
    first = _random_subsets(n, n // 2, n_splits, generator).to(per_prompt.device)
    values = per_prompt.float()
    halves = [
        einsum(half / half.sum(1, keepdim=True), values, "split prompt, prompt ... -> split ...")
        for half in (first.float(), (~first).float())
    ]
    return cosine(halves[0], halves[1])


def permutation_norm_null(
    a: Float[Tensor, "n *axes d_model"],
    b: Float[Tensor, "m *axes d_model"],
    generator: torch.Generator,
    *,
    n_permutations: int = 200,
) -> NormNull:
    """Is ||mean(a) - mean(b)|| larger than shuffled labels make it?

    The null treats all n + m prompts as exchangeable; for prompts paired by question it is conservative,
    since the questions' own variance stays in it. With one prompt a side p cannot fall below 1.
    """
    observed = mean_difference(a, b).norm(dim=-1)
    if n_permutations < 1:
        raise ValueError(f"a permutation null needs at least one permutation, not {n_permutations}")
    n, m = len(a), len(b)
    pooled = torch.cat([a.float(), b.float().to(a.device)])
    pooled = pooled - pooled.mean(0)  # cancels in every difference; keeps fp32 for what is left
    first = _random_subsets(n + m, n, n_permutations, generator)
    weights = torch.where(first, 1 / n, -1 / m).to(pooled)
    step = max(1, BLOCK // pooled[0].numel())
    null = torch.cat(
        [
            einsum(block, pooled, "permutation prompt, prompt ... -> permutation ...").norm(dim=-1)
            for block in weights.split(step)
        ]
    )
    reached = reduce((null >= observed * (1 - ROUNDING)).float(), "permutation ... -> ...", "sum")
    return NormNull(observed, null, (1 + reached) / (1 + n_permutations))


def random_direction(d_model: int, norm: float, generator: torch.Generator) -> Float[Tensor, "d_model"]:
    """A direction uniform on the sphere, scaled to `norm`: the control arm of equal size."""
    if d_model < 1 or not 0 < norm < float("inf"):
        raise ValueError(
            f"a random direction needs d_model >= 1 and a finite norm above 0, not {d_model} and {norm}"
        )
    drawn = torch.randn(d_model, generator=generator, device=generator.device)
    return drawn * (norm / drawn.norm())


def _unit(x: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape d_model"]:
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, float("nan"))


def _signed(
    direction: Float[Tensor, "*axes d_model"], mean: Float[Tensor, "*axes d_model"]
) -> Float[Tensor, "*axes d_model"]:
    agreement = (direction * mean).sum(-1, keepdim=True)
    largest = direction.gather(-1, direction.abs().argmax(-1, keepdim=True))
    undecided = agreement.abs() <= ROUNDING * mean.norm(dim=-1, keepdim=True)
    return direction * torch.where(torch.where(undecided, largest, agreement) < 0, -1.0, 1.0)


def _random_subsets(n: int, size: int, count: int, generator: torch.Generator) -> Bool[Tensor, "count n"]:
    order = torch.rand(count, n, generator=generator, device=generator.device).argsort(1)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :size], True)


def _check_rows(rows: Float[Tensor, "row *axes d_model"], what: str) -> None:
    if len(rows) == 0:
        raise ValueError(f"{what} holds no rows (n=0); give at least one prompt")
    _finite(rows, what)


def _finite(x: Float[Tensor, "..."], what: str) -> None:
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(f"{what} holds {bad} values that are NaN or infinite; find the pass that made them")


def _not_zero(
    contrast: Float[Tensor, "*axes d_model"], scale: Float[Tensor, "*#axes"]
) -> Float[Tensor, "*axes d_model"]:
    norm = contrast.norm(dim=-1)
    if not (norm > ROUNDING * scale).any():
        raise ValueError(
            "the contrast is zero at every layer: both sides hold the same activations; give other prompts"
        )
    return contrast
