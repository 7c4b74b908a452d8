"""What the persistence study concludes: each condition's runs beside their floor and ceiling.

The unit of replication is the run (a seed); runs of all arms share their draws, so differences are paired by
seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.results import Result
from mechinterp.stats.halflife import HalfLife
from mechinterp.stats.intervals import Interval, mean_interval
from mechinterp.stats.paired import SignFlip, sign_flip
from probes.decay import normalised, release_half_life, windows
from probes.persist import Release
from probes.roles import RoleVectors
from probes.strength import Calibration

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

AGGREGATES = ("mean", "rmse", "p95", "max")
N_WINDOWS = 4


@dataclass(frozen=True)
class Condition:
    """One role steered one way: which, where, how strongly, what happened to the cache, and which cells hold
    it.
    """

    role: str
    layer: int
    strength: float
    cache: str
    question: int
    other: str | None
    cell: str
    other_cell: str | None
    reference: str

    def __str__(self) -> str:
        where = f"layer {self.layer}, strength {self.strength:g}"
        return f"{self.role}, {where}, {self.cache}, question {self.question}"


@dataclass(frozen=True, eq=False)
class Outcome:
    """A condition's runs: projections on the role's own vector by arm, and what follows from them.

    Arms are steered, random, other, floor and ceiling; curves hold NaN past a run's end. `persistence` is
    (free mean - floor) / (ceiling - floor) of each run; `drift` the same for steered runs on every role's
    vector. `coherence` is empty without KL, `calibration` None unless strengths are in nats.
    """

    condition: Condition
    coefficient: float
    strength_in_norms: float
    n_steer: int
    seeds: tuple[int, ...]
    curves: dict[str, Float[Tensor, "run token"]]
    cosines: dict[str, Float[Tensor, "run"]]
    floor: float
    ceiling: float
    persistence: dict[str, Float[Tensor, "run"]]
    windows: Float[Tensor, "run window"]
    half_life: HalfLife
    coherence: dict[str, dict[str, Float[Tensor, "run"]]]
    calibration: Calibration | None
    drift: Float[Tensor, "role"]
    n_stopped: dict[str, int]

    def interval(self, arm: str) -> Interval:
        """The mean normalised persistence of an arm, bootstrapped over runs."""
        return over_runs(self.persistence[arm], "bootstrap")

    def against(self, arm: str) -> SignFlip:
        """Steered minus another arm, paired by seed: mean free projection."""
        return sign_flip(self.free_means("steered") - self.free_means(arm))

    def free_means(self, arm: str) -> Float[Tensor, "run"]:
        """Each run's mean projection over its free tokens."""
        return self.curves[arm][:, self.n_steer :].nanmean(1)


def over_runs(values: Float[Tensor, "run"], method: Literal["bootstrap", "t"]) -> Interval:
    """The mean over the runs in which the value is defined, and how many are not."""
    defined = values.isfinite()
    found = mean_interval(values[defined], method=method)
    missing = len(values) - int(defined.sum())
    return (
        replace(found, note=found.note or f"undefined in {missing} of {len(values)} runs")
        if missing
        else found
    )


@dataclass(frozen=True, eq=False)
class Persistence(Result):
    """All conditions of a run. The table has one line a condition and arm."""

    model: str
    site: str
    n_steer: int
    roles: tuple[str, ...]
    names: dict[str, str]
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    vectors: RoleVectors | None
    samples: tuple[dict[str, Any], ...]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        lines = []
        for outcome in self.outcomes:
            for arm in outcome.persistence:
                found = outcome.interval(arm)
                kl = outcome.coherence.get(arm, {})
                c = outcome.condition
                line = {
                    "role": c.role,
                    "layer": c.layer,
                    "strength": c.strength,
                    "cache": c.cache,
                    "question": c.question,
                    "arm": arm,
                    "n": found.n,
                    "persistence": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "free_projection": float(outcome.free_means(arm).nanmean()),
                    "cosine": float(outcome.cosines[arm].nanmean()),
                    "floor": outcome.floor,
                    "ceiling": outcome.ceiling,
                    "half_life": outcome.half_life.estimate if arm == "steered" else float("nan"),
                    "stopped": outcome.n_stopped[arm],
                }
                lines.append(line | {f"kl_{how}": float(kl[how].nanmean()) for how in kl})
        return pd.DataFrame(lines)

    def attractors(self, layer: int, strength: float, cache: str) -> Float[Tensor, "steered projected"]:
        """Where free text drifts to: the role steered by the role projected on, in ceiling gaps."""
        rows = []
        for role in self.roles:
            found = [
                o.drift
                for o in self.outcomes
                if (o.condition.role, o.condition.layer, o.condition.strength, o.condition.cache)
                == (role, layer, strength, cache)
            ]
            if not found:
                rows.append(torch.full((len(self.roles),), torch.nan))
            else:
                rows.append(torch.stack(found).nanmean(0))
        return torch.stack(rows)

    def headline(self) -> str:
        """The answer in a few lines of plain text."""
        from studies.persistence_page import answer

        lines = [answer(self)]
        for outcome in self.outcomes:
            found = outcome.interval("steered")
            shown = f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]" if found.n else "undefined"
            lines.append(f"  {outcome.condition}: persistence {shown}, n = {found.n}")
        return "\n".join(lines)

    def figure(self) -> go.Figure:
        """The first condition's projections by token; `studies.persistence_figures` draws the others."""
        from studies.persistence_figures import curves

        return curves(self, self.outcomes[0])


def conclude(
    conditions: Sequence[Condition],
    results: Mapping[str, Any],
    names: dict[str, str],
    vectors: RoleVectors | None,
    *,
    n_steer: int,
    seed: int,
) -> Persistence:
    """Every condition with its floor and ceiling. Raises ValueError where no condition has finished."""
    from studies.persistence_samples import samples

    if not conditions:
        raise ValueError("no steered cell has finished; run the study further, without --limit")
    outcomes = tuple(_outcome(c, results, n_steer, seed) for c in conditions)
    some: Release = results[conditions[0].cell].release
    return Persistence(
        model=some.model,
        site=some.site.name,
        n_steer=n_steer,
        roles=some.names,
        names=names,
        seeds=outcomes[0].seeds,
        outcomes=outcomes,
        vectors=vectors,
        samples=tuple(samples(outcomes, results)),
    )


def _outcome(condition: Condition, results: Mapping[str, Any], n_steer: int, seed: int) -> Outcome:
    role, runs, reference = condition.role, results[condition.cell], results[condition.reference]
    sources: dict[str, tuple[Release, str]] = {
        "steered": (runs.release, "steered"),
        "random": (runs.release, "random"),
    }
    if condition.other_cell is not None:
        sources["other"] = (results[condition.other_cell].release, "steered")
    sources["floor"] = (reference.release, "floor")
    sources["ceiling"] = (reference.release, f"ceiling:{role}")
    curves = {arm: found.curves(name, role) for arm, (found, name) in sources.items()}
    free = {arm: curve[:, n_steer:] for arm, curve in curves.items()}
    floor, ceiling = (float(free[arm].nanmean()) for arm in ("floor", "ceiling"))
    return Outcome(
        condition=condition,
        coefficient=runs.coefficient,
        strength_in_norms=runs.strength_in_norms,
        n_steer=n_steer,
        seeds=tuple(runs.release.seeds[i] for i in runs.release.rows("steered")),
        curves=curves,
        cosines={arm: _cosine(found, name, role, n_steer) for arm, (found, name) in sources.items()},
        floor=floor,
        ceiling=ceiling,
        persistence={arm: normalised(curve, floor, ceiling) for arm, curve in free.items()},
        windows=windows(free["steered"], N_WINDOWS),
        half_life=release_half_life(free["steered"], floor, seed=seed),
        coherence={}
        if runs.release.kl is None
        else {arm: _coherence(runs.release, arm) for arm in ("steered", "random")},
        calibration=results.get(f"calibrate/{role}/layer{condition.layer}/{condition.strength:g}"),
        drift=_drift(runs.release, reference.release, n_steer),
        n_stopped={arm: _stopped(found, name) for arm, (found, name) in sources.items()},
    )


def _stopped(release: Release, arm: str) -> int:
    """How many of an arm's runs ended of themselves."""
    return sum(release.finish_reason[row] == "stop" for row in release.rows(arm))


def _cosine(release: Release, arm: str, role: str, n_steer: int) -> Float[Tensor, "run"]:
    rows = release.rows(arm)
    cosine = release.curves(arm, role) / release.norms[rows]
    return cosine[:, n_steer:].nanmean(1)


def _coherence(release: Release, arm: str) -> dict[str, Float[Tensor, "run"]]:
    rows = release.rows(arm)
    return {how: release.coherence(how)[rows] for how in AGGREGATES}


def _drift(release: Release, reference: Release, n_steer: int) -> Float[Tensor, "role"]:
    """The steered runs' free mean on every role's vector, in that role's ceiling - floor; NaN where that is
    not positive.
    """
    found = []
    for role in release.names:
        means = [
            float(r.curves(arm, role)[:, n_steer:].nanmean())
            for r, arm in ((release, "steered"), (reference, "floor"), (reference, f"ceiling:{role}"))
        ]
        mean, floor, ceiling = means
        found.append((mean - floor) / (ceiling - floor) if ceiling > floor else float("nan"))
    return torch.tensor(found)
