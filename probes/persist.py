"""Steer n tokens, let go, and follow the projections: the persistence of a steered persona (methods.md 10.2).

Rows are trials: a prompt, a vector or none, and a seed. All of them run in one batch, and what happens to the
steered keys and values at the release is the named choice `cache`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp import figures
from mechinterp.chat import Prompt
from mechinterp.divergence import aggregate
from mechinterp.interventions import Add, Everywhere, Generated, Intervention, Newest
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sampling import Phase, Samples, Telemetry, Watch, sample, stop_ids
from mechinterp.sites import Site
from mechinterp.stats.intervals import curve_interval

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SteeredRows = Literal["generated", "all", "last"]
CachePolicy = Literal["fresh", "carry"]
WHERE = {"generated": Generated(), "all": Everywhere(), "last": Newest()}


@dataclass(frozen=True, eq=False)
class Trial:
    """One row: what is asked, what is added to the stream (its strength included; None is nothing), and its
    seed.

    `name` and `seed` fix what the row draws; `arm` groups rows that are replicates of each other.
    """

    arm: str
    prompt: Prompt
    vector: Float[Tensor, "d_model"] | None
    seed: int


@dataclass(frozen=True, eq=False)
class Release(Result):
    """Trials in rows, generated tokens in columns; `projections` are x . v / |v| on every named vector.

    At a steered token `projections` is taken after the edit and `natural` before it. `kl` is to the unedited
    model on the same ids, in nats; 0 at tokens that see no edit.
    """

    model: str
    site: Site
    n_steer: int
    cache: CachePolicy
    steered_rows: SteeredRows
    names: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens: Int[Tensor, "row position"]
    prompt_lengths: Int[Tensor, "row"]
    generated: Int[Tensor, "row token"]
    real: Bool[Tensor, "row token"]
    phase: Int[Tensor, "token"]
    finish_reason: tuple[str, ...]
    projections: Float[Tensor, "row token vector"]
    natural: Float[Tensor, "row token vector"]
    norms: Float[Tensor, "row token"]
    entropy: Float[Tensor, "row token"]
    kl: Float[Tensor, "row token"] | None
    batches: tuple[int, ...]

    def rows(self, arm: str) -> list[int]:
        """The rows of an arm; KeyError with the arms there are."""
        found = [i for i, name in enumerate(self.arms) if name == arm]
        if not found:
            raise KeyError(f"there is no arm {arm!r}; the arms are {', '.join(dict.fromkeys(self.arms))}")
        return found

    def curves(self, arm: str, name: str) -> Float[Tensor, "row token"]:
        """The projections of an arm's rows on one vector; NaN past a row's end."""
        if name not in self.names:
            raise KeyError(f"there is no vector {name!r}; there are {', '.join(self.names)}")
        rows = self.rows(arm)
        values = self.projections[rows, :, self.names.index(name)]
        return values.masked_fill(~self.real[rows], torch.nan)

    def free(self) -> Bool[Tensor, "token"]:
        """Which generated tokens are past the release."""
        return self.phase == 1

    def coherence(self, how: Literal["mean", "rmse", "p95", "max"]) -> Float[Tensor, "row"]:
        """An aggregate of each row's KL over its steered tokens, in nats (methods.md 11)."""
        if self.kl is None:
            raise ValueError("this release was run without kl=True, so its coherence is not known")
        steered = self.phase == 0
        return aggregate(self.kl[:, steered], how, mask=self.real[:, steered])

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a row, token and vector."""
        import pandas as pd

        n_rows, n_tokens = self.generated.shape
        k = len(self.names)
        table = {
            "arm": [arm for arm in self.arms for _ in range(n_tokens * k)],
            "seed": [seed for seed in self.seeds for _ in range(n_tokens * k)],
            "token": [t for _ in range(n_rows) for t in range(n_tokens) for _ in range(k)],
            "phase": [
                ("steered", "free")[p] for _ in range(n_rows) for p in self.phase.tolist() for _ in range(k)
            ],
            "vector": list(self.names) * (n_rows * n_tokens),
            "projection": self.projections.flatten().tolist(),
            "cosine": (self.projections / self.norms[..., None]).flatten().tolist(),
            "natural": self.natural.flatten().tolist(),
            "real": self.real.repeat_interleave(k, 1).flatten().tolist(),
        }
        return pd.DataFrame(table)

    def figure(self) -> "go.Figure":
        """The projection on the first vector by token, a line an arm, with the release marked."""
        return curves_figure(self, self.names[0], list(dict.fromkeys(self.arms)))


def curves_figure(release: Release, name: str, arms: Sequence[str]) -> "go.Figure":
    """Mean projection on one vector by token, with 95 % t bands over runs, for some arms."""
    import pandas as pd

    parts = [
        curve_interval(release.curves(arm, name)).to_dataframe("token", "projection").assign(arm=arm)
        for arm in arms
    ]
    n = min(len(release.rows(arm)) for arm in arms)
    return figures.per_token(
        pd.concat(parts),
        "projection",
        by="arm",
        low="low",
        high="high",
        boundaries=[(0, "steered"), (release.n_steer, f"free ({release.cache} cache)")],
        title=f"Projection on {name} by generated token",
        y_title=f"x . v / |v| at {release.site}",
        subtitle=figures.caption(
            release.model, n=n, unit="run", seeds=sorted(set(release.seeds)), band="95 % t over runs"
        ),
    )


def release(
    model: Model,
    trials: Sequence[Trial],
    directions: Mapping[str, Float[Tensor, "d_model"]],
    *,
    site: Site,
    n_steer: int,
    n_free: int,
    cache: CachePolicy = "fresh",
    steered_rows: SteeredRows = "generated",
    temperature: float | None = None,
    top_p: float = 1.0,
    suppress: Literal["steered", "both", "neither"] = "steered",
    kl: bool = False,
    batch_size: int | None = None,
) -> Release:
    """Runs all trials in one batch and watches every token.

    `suppress` says in which phases the stop ids are never sampled; "steered" lets the free text end of
    itself. Raises ValueError before any compute where a request cannot be met.
    """
    if steered_rows not in WHERE:
        raise ValueError(f"steered_rows is generated, all or last, not {steered_rows!r}")
    if suppress not in ("steered", "both", "neither"):
        raise ValueError(f"suppress is steered, both or neither, not {suppress!r}")
    if not trials or not directions:
        raise ValueError("a release needs at least one trial and one direction to project on")
    stops = stop_ids(model)
    phases = [
        Phase(
            n_steer,
            _steering(trials, site, steered_rows),
            suppress=stops if suppress != "neither" else frozenset(),
        ),
        Phase(n_free, cache=cache, suppress=stops if suppress == "both" else frozenset()),
    ]
    names = tuple(directions)
    samples = sample(
        model,
        [trial.prompt.tokens[0] for trial in trials],
        phases,
        temperature=temperature,
        top_p=top_p,
        names=_labels(trials),
        watch=Watch(site, torch.stack([directions[name].float() for name in names]), kl=kl),
        batch_size=batch_size,
    )
    return _released(model, trials, site, n_steer, cache, steered_rows, names, samples)


def _steering(trials: Sequence[Trial], site: Site, rows: SteeredRows) -> tuple[Intervention, ...]:
    """One Add for the whole batch: a vector a row, zero where a row is not steered."""
    if all(trial.vector is None for trial in trials):
        return ()
    some = next(trial.vector for trial in trials if trial.vector is not None)
    shapes = sorted({tuple(trial.vector.shape) for trial in trials if trial.vector is not None})
    if len(shapes) > 1:
        raise ValueError(f"the trials' vectors have shapes {shapes}; one site takes one shape")
    vectors = torch.stack([torch.zeros_like(some) if t.vector is None else t.vector.to(some) for t in trials])
    strength = torch.tensor([0.0 if trial.vector is None else 1.0 for trial in trials])
    return (Add(site, vectors, where=WHERE[rows], strength=strength),)


def _labels(trials: Sequence[Trial]) -> list[str]:
    """What a row's draws are keyed by: its seed alone, so that arms are paired; repeats get a number."""
    seen: dict[tuple[str, int], int] = {}
    labels = []
    for trial in trials:
        key = (trial.arm, trial.seed)
        seen[key] = seen.get(key, -1) + 1
        labels.append(f"{trial.seed}/{seen[key]}")
    return labels


def _released(
    model: Model,
    trials: Sequence[Trial],
    site: Site,
    n_steer: int,
    cache: CachePolicy,
    rows: SteeredRows,
    names: tuple[str, ...],
    samples: Samples,
) -> Release:
    telemetry = samples.telemetry
    assert isinstance(telemetry, Telemetry)  # the sample was watched
    return Release(
        model=model.name,
        site=site,
        n_steer=n_steer,
        cache=cache,
        steered_rows=rows,
        names=names,
        arms=tuple(trial.arm for trial in trials),
        seeds=tuple(trial.seed for trial in trials),
        tokens=samples.tokens,
        prompt_lengths=samples.prompt_lengths,
        generated=samples.generated,
        real=samples.real,
        phase=samples.phase,
        finish_reason=samples.finish_reason,
        projections=telemetry.projections,
        natural=telemetry.natural,
        norms=telemetry.norms,
        entropy=telemetry.entropy,
        kl=telemetry.kl,
        batches=samples.batches,
    )


def persistence(
    model: Model,
    prompt: Prompt,
    vector: Float[Tensor, "d_model"],
    *,
    site: Site,
    n_steer: int,
    n_free: int,
    strength: float = 1.0,
    cache: CachePolicy = "fresh",
    steered_rows: SteeredRows = "generated",
    temperature: float | None = None,
    top_p: float = 1.0,
    seeds: Sequence[int] = (42,),
    suppress: Literal["steered", "both", "neither"] = "steered",
    kl: bool = False,
) -> Release:
    """One vector on one prompt: arms `steered` and `floor` (unsteered), one row a seed each."""
    seeds = list(dict.fromkeys(seeds))
    trials = [Trial("steered", prompt, strength * vector, seed) for seed in seeds]
    trials += [Trial("floor", prompt, None, seed) for seed in seeds]
    return release(
        model, trials, {"vector": vector}, site=site, n_steer=n_steer, n_free=n_free, cache=cache,
        steered_rows=steered_rows, temperature=temperature, top_p=top_p, suppress=suppress, kl=kl,
    )  # fmt: skip
