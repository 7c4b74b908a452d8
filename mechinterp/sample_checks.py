"""What sampling cannot do is refused before any compute."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mechinterp.model import Model
from mechinterp.rows import check_positions, is_integer
from mechinterp.samples import Phase, Watch
from mechinterp.sites import as_index


def rows_of_prompts(prompts: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The ids of each prompt; what would be cut up, run together or rounded into other prompts is refused."""
    if isinstance(prompts, Tensor) and prompts.ndim != 2:
        raise TypeError(
            f"prompts of shape {tuple(prompts.shape)} are no rows; write [ids] or ids[None] for one prompt"
        )
    rows = []
    for prompt in prompts:
        if not isinstance(prompt, (Tensor, list, tuple, range)):
            raise TypeError(
                f"a prompt must be ids, not {type(prompt).__name__}; of a Prompt, pass its tokens"
            )
        row = torch.as_tensor(prompt)
        if row.numel() and (not is_integer(row) or not (row.ndim == 1 or (row.ndim == 2 and len(row) == 1))):
            raise TypeError(
                f"a prompt must be whole ids of shape [position], not {row.dtype} of {tuple(row.shape)}"
            )
        rows.append(row.flatten().long())
    return rows


def check_sampling(
    model: Model, rows: list[Tensor], phases: Sequence[Phase], temperature: float | None, top_p: float
) -> None:
    if not rows or any(len(row) == 0 for row in rows):
        raise ValueError("each prompt needs at least one token; an empty one cannot be continued")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive, not {temperature}; leave it out for greedy")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be within (0, 1], not {top_p}")
    if not phases or any(as_index(p.n_tokens, "n_tokens") < 0 for p in phases):
        raise ValueError(f"phases need n_tokens >= 0 each, not {[p.n_tokens for p in phases]}")
    total = max(map(len, rows)) + sum(p.n_tokens for p in phases)
    if model.dims.n_ctx is not None and total > model.dims.n_ctx:
        raise ValueError(
            f"{model.name} has a context of {model.dims.n_ctx} positions; prompt and phases need {total}"
        )
    low, high = min(int(r.min()) for r in rows), max(int(r.max()) for r in rows)
    if low < 0 or high >= model.dims.d_vocab:
        raise ValueError(
            f"{model.name} has ids 0..{model.dims.d_vocab - 1}; a prompt holds {low if low < 0 else high}"
        )


def check_phase(model: Model, phase: Phase, rows: list[Tensor], n_tokens: int) -> None:
    """Refuses edits that the model cannot take, positions that no row will have, and ids that are none."""
    model.check_interventions(phase.interventions, len(rows))
    check_positions(phase.interventions, torch.tensor([len(row) + n_tokens for row in rows]))
    if phase.cache not in ("fresh", "carry"):
        raise ValueError(f"cache must be 'fresh' or 'carry', not {phase.cache!r}")
    bad = sorted(i for i in phase.suppress if not 0 <= as_index(i, "a suppressed id") < model.dims.d_vocab)
    if bad:
        raise ValueError(f"{model.name} has ids 0..{model.dims.d_vocab - 1}; {bad[0]} cannot be suppressed")
    if len(phase.suppress) == model.dims.d_vocab:
        raise ValueError("every id is suppressed, so none can be sampled")


def check_watch(model: Model, watch: Watch) -> None:
    for site in (watch.site, *watch.capture):
        model.check_site(site)
        if site.name == "pattern":
            raise ValueError(
                "a pattern grows with every token and cannot be watched; capture it in a forward pass"
            )
    directions = watch.directions
    if (
        not isinstance(directions, Tensor)
        or directions.ndim != 2
        or directions.shape[1:] != model.dims.shape(watch.site)
    ):
        shape = tuple(directions.shape) if isinstance(directions, Tensor) else type(directions).__name__
        raise ValueError(f"directions have shape {shape}; {watch.site} needs [vector {model.dims.d_model}]")
    if (directions.float().norm(dim=-1) == 0).any() or not directions.isfinite().all():
        raise ValueError("a watched direction has norm zero or is not finite; leave it out")
