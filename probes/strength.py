"""How strongly to steer, in units that mean the same for every role: raw, unit, residual norms, or equal KL.

A coefficient multiplies the vector as it is. Equal KL asks for the coefficient at which steered text is as
far from the unedited model as a given number of nats, by an aggregate that sees collapse (methods.md 11).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from mechinterp import figures
from mechinterp.chat import Prompt
from mechinterp.divergence import aggregate
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import Site
from probes.persist import SteeredRows, Trial, release

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FAR = 30.0  # in log KL: beyond it a distance is no distance, but "none at all" or "overflow"

Aggregate = Literal["mean", "rmse", "p95", "max"]


@dataclass(frozen=True)
class Raw:
    """times the vector as it is."""

    value: float


@dataclass(frozen=True)
class Unit:
    """times the vector's direction."""

    value: float


@dataclass(frozen=True)
class ResidualNorms:
    """times the direction, in units of the mean norm of the stream where the vector was read."""

    value: float


@dataclass(frozen=True)
class EqualKL:
    """whatever makes the aggregate of the per-position KL of steered text equal to `nats`."""

    nats: float = 1.0
    aggregate: Aggregate = "p95"


Strength = Raw | Unit | ResidualNorms | EqualKL


@dataclass(frozen=True, eq=False)
class Calibration(Result):
    """A coefficient and how it was found: each coefficient tried, and the aggregate of KL it gave, in nats.

    `converged` is False where the bracket was never closed; the coefficient is then the nearest that was
    tried.
    """

    coefficient: float
    reached: float
    asked: float
    how: Aggregate
    tried: tuple[float, ...]
    found: tuple[float, ...]
    converged: bool
    model: str
    n_rows: int
    n_tokens: int
    seeds: tuple[int, ...]

    def to_dataframe(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame({"strength": self.tried, "kl": self.found})

    def figure(self) -> "go.Figure":
        """KL against the coefficient, in the order tried."""
        return figures.scatter(
            self.to_dataframe(),
            "strength",
            "kl",
            title=f"Calibration to {self.how} KL = {self.asked:g} nats",
            x_title="coefficient of the vector",
            y_title=f"{self.how} of per-position KL (nats)",
            subtitle=figures.caption(
                self.model,
                n=self.n_rows,
                unit="row",
                seeds=self.seeds,
                band="none",
                more=[f"{self.n_tokens} tokens a row"],
            ),
        )


def coefficient(
    strength: Raw | Unit | ResidualNorms, vector: Float[Tensor, "d_model"], residual_norm: float
) -> float:
    """What the vector is multiplied by; `residual_norm` is the mean norm of the stream at its site."""
    norm = float(vector.float().norm())
    if norm == 0 or not math.isfinite(norm):
        raise ValueError("the vector has norm zero or is not finite, so no strength can be given to it")
    if not math.isfinite(strength.value):
        raise ValueError(f"a strength must be a finite number, not {strength.value}")
    if isinstance(strength, ResidualNorms) and not 0 < residual_norm < math.inf:
        raise ValueError(f"the mean norm of the stream must be positive and finite, not {residual_norm}")
    match strength:
        case Raw(value):
            return value
        case Unit(value):
            return value / norm
        case ResidualNorms(value):
            return value * residual_norm / norm


def calibrate(
    model: Model,
    prompts: Sequence[Prompt],
    vector: Float[Tensor, "d_model"],
    *,
    site: Site,
    target: EqualKL,
    start: float,
    n_tokens: int = 32,
    steered_rows: SteeredRows = "generated",
    temperature: float | None = None,
    top_p: float = 1.0,
    suppress: Literal["steered", "both", "neither"] = "steered",
    seeds: Sequence[int] = (0,),
    batch_size: int | None = None,
    tolerance: float = 0.1,
    max_tries: int = 12,
) -> Calibration:
    """The coefficient at which rollouts steered by it reach the asked KL to the unedited model on the same
    ids.

    Brackets from `start` by factors of 2, then solves by the Illinois rule in log coefficient and log KL.
    Rollouts use the same seeds at every try; `tolerance` is relative. The aggregate is over all rows' tokens
    together.
    """
    if not 0 < target.nats < math.inf or not 0 < start < math.inf:
        raise ValueError(f"an equal-KL strength needs nats > 0 and start > 0, not {target.nats} and {start}")
    if n_tokens < 1 or not prompts or not seeds or max_tries < 1:
        raise ValueError("a calibration needs at least one token, one prompt, one seed and one try")

    def kl_at(c: float) -> float:
        trials = [
            Trial(str(i), prompt, c * vector, seed) for i, prompt in enumerate(prompts) for seed in seeds
        ]
        try:
            run = release(
                model, trials, {"vector": vector}, site=site, n_steer=n_tokens, n_free=0,
                steered_rows=steered_rows, temperature=temperature, top_p=top_p, suppress=suppress, kl=True,
                batch_size=batch_size,
            )  # fmt: skip
        except FloatingPointError:
            return math.inf  # beyond any coherence: too strong
        assert run.kl is not None  # kl=True was asked
        return float(aggregate(run.kl[run.real], target.aggregate))

    tried, found, converged = solve(kl_at, target.nats, start, tolerance, max_tries)
    best = min(range(len(tried)), key=lambda i: abs(_log_ratio(found[i], target.nats)))
    return Calibration(
        coefficient=tried[best],
        reached=found[best],
        asked=target.nats,
        how=target.aggregate,
        tried=tuple(tried),
        found=tuple(found),
        converged=converged,
        model=model.name,
        n_rows=len(prompts) * len(seeds),
        n_tokens=n_tokens,
        seeds=tuple(seeds),
    )


def solve(
    function: Callable[[float], float], target: float, start: float, tolerance: float, max_tries: int
) -> tuple[list[float], list[float], bool]:
    """Illinois regula falsi on log f(c) = log target, over log c; every try is returned, NaN as infinity.

    Where a bound is only known to be zero or infinite, its distance says nothing and the bracket is halved.
    """
    tried: list[float] = []
    found: list[float] = []
    close = math.log1p(tolerance)

    def gap(log_c: float) -> float:
        value = function(math.exp(log_c))
        tried.append(math.exp(log_c))
        found.append(math.inf if math.isnan(value) else value)
        return _log_ratio(found[-1], target)

    def go_on() -> bool:
        return len(tried) < max_tries and min(abs(_log_ratio(f, target)) for f in found) > close

    low = high = math.log(start)
    at_low = at_high = gap(low)
    while at_low > 0 and go_on():
        high, at_high = low, at_low
        low -= math.log(2)
        at_low = gap(low)
    while at_high < 0 and go_on():
        low, at_low = high, at_high
        high += math.log(2)
        at_high = gap(high)
    side = 0
    while go_on():
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        middle = min(max(middle, low + 0.05 * (high - low)), high - 0.05 * (high - low))
        if max(-at_low, at_high) >= FAR:
            middle = (low + high) / 2
        at = gap(middle)
        if at < 0:
            low, at_low, at_high = middle, at, at_high / 2 if side == -1 and at_high < FAR else at_high
        else:
            high, at_high, at_low = middle, at, at_low / 2 if side == 1 and at_low > -FAR else at_low
        side = -1 if at < 0 else 1
    return tried, found, min(abs(_log_ratio(f, target)) for f in found) <= close


def _log_ratio(value: float, target: float) -> float:
    """log(value / target), cut off where all that is known is that the value is none or too large."""
    return FAR if value == math.inf else max(-FAR, min(FAR, math.log(max(value, 1e-300) / target)))
