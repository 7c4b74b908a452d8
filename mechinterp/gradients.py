"""How a score of the logits changes with an activation: one forward pass, one backward pass, any backend.

The graph begins at the first site that is asked for, and only the asked activations are differentiated: the
parameters are constants, whatever their requires_grad says, and nothing is left on the model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.backends.protocol import Pass
from mechinterp.interventions import Intervention
from mechinterp.model import Model
from mechinterp.rows import check_positions, layout, slots_at
from mechinterp.sites import WRITABLE, Site

Score = Callable[[Float[Tensor, "batch k d_vocab"]], Float[Tensor, ""]]


@dataclass(frozen=True, eq=False)
class Gradients:
    """One pass: `values[site]` and d score / d values, both [batch position ...] and in the model's dtype.

    `logits` are the scored rows, in fp32. Sequences of a batch do not see each other, so the gradient of a
    sum over them holds that of each.
    """

    tokens: Int[Tensor, "batch position"]
    score: float
    logits: Float[Tensor, "batch k d_vocab"]
    values: dict[Site, Tensor]
    gradients: dict[Site, Tensor]

    def __getitem__(self, site: Site) -> Tensor:
        """The gradient at a site."""
        if site not in self.gradients:
            asked = ", ".join(str(s) for s in sorted(self.gradients))
            raise KeyError(f"no gradient at {site} was asked for (asked: {asked}); name it in sites")
        return self.gradients[site]


def gradients(
    model: Model,
    tokens: Int[Tensor, "batch position"],
    sites: Iterable[Site],
    score: Score,
    *,
    logits_at: Sequence[int] | Int[Tensor, "batch k"] | None,
    interventions: Sequence[Intervention] = (),
    lengths: Sequence[int] | None = None,
) -> Gradients:
    """d score / d activation at sites; `score` makes one number of the logits [batch k d_vocab], in fp32.

    logits_at, lengths: as in `Model.forward`. An activation is what the model goes on with, after the edits
    of its site; its gradient is through everything above it. Raises TypeError, ValueError or IndexError
    before any compute where the request cannot be met, and after the forward pass for a score that is no
    number of the logits.
    """
    asked = _checked_sites(model, sites)
    tokens = model.checked_tokens(tokens, None)
    model.check_interventions(interventions, len(tokens))
    rows, ends = layout(tokens, lengths, 0, None, None)
    check_positions(interventions, ends)
    request = Pass(
        tokens=tokens,
        rows=rows,
        pad_left=None,
        capture=asked,
        interventions=tuple(interventions),
        logit_slots=slots_at(logits_at, ends, torch.zeros_like(ends), "logits_at"),
        live=True,
    )
    if not request.wants_logits:
        raise ValueError("logits_at=() computes no logits to score; name the rows that the score reads")
    with torch.enable_grad():
        seen = model.run(request, ends, asked)
        assert seen.logits is not None  # the request wants them
        logits = seen.logits.float() if seen.logits.dtype != torch.float64 else seen.logits
        scored = score(logits)
    _check_score(scored)
    values = [seen.values[site] for site in asked]
    found = torch.autograd.grad(scored, values, allow_unused=True)
    _check_found(model, asked, found)
    return Gradients(
        tokens=tokens,
        score=float(scored.detach()),
        logits=logits.detach(),
        values={site: x.detach() for site, x in zip(asked, values, strict=True)},
        gradients=dict(zip(asked, found, strict=True)),
    )


def _checked_sites(model: Model, sites: Iterable[Site]) -> tuple[Site, ...]:
    asked = tuple(dict.fromkeys(sites))
    if not asked:
        raise ValueError("no sites were given; name at least one, such as Site('resid_post', 0)")
    for site in asked:
        model.check_site(site)
        if site.name not in WRITABLE:
            raise ValueError(
                f"there is no gradient at {site}; the sites that have one are {', '.join(WRITABLE)}"
            )
    return asked


def _check_found(model: Model, asked: tuple[Site, ...], found: Sequence[Tensor | None]) -> None:
    """Every activation is on a path to the logits, so none without a gradient is a true zero."""
    for site, gradient in zip(asked, found, strict=True):
        if gradient is None:
            raise RuntimeError(
                f"the {model.backend.name} backend shows {site} and goes on with something else, so it has"
                " no gradient there; use the transformers backend"
            )


def _check_score(scored: object) -> None:
    if not isinstance(scored, Tensor) or scored.ndim or not scored.is_floating_point():
        what = f"{list(scored.shape)}" if isinstance(scored, Tensor) else type(scored).__name__
        raise TypeError(
            f"score must return one number, a tensor of no dimensions, not {what}; sum over batch and rows"
        )
    if not scored.requires_grad:
        raise ValueError(
            "the score does not depend on the logits in a way that has a gradient; make it of them, without"
            " detach(), argmax or item()"
        )
    if not scored.isfinite():
        raise FloatingPointError(f"the score is {float(scored.detach())}; its gradient would be NaN")
