"""Trajectories of the three-arm test: one point a checkpoint of one training run (methods 7).

A leakage value says from whom to whom: in a point the model's source is `source`, and each rate stands under
the persona whose prompt it was measured with. Percent 0 is the model before any convergence training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, wilson
from studies.marker_records import MarkerRate

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ARMS = {"A": "marker first", "B": "convergence first", "C": "generic control"}
ORIGINAL = "original"  # the marker adapter as it was; others are retrained
ASSISTANT = "assistant"
SPECIFIC = ("narrow", "specific")  # labels of adapters whose marker stays with its source


@dataclass(frozen=True)
class Point:
    """One evaluated model: rates under every prompt, and the centred cosine of source and assistant by layer.

    `seed` is None where the file names none; a cosine that was not measured is NaN.
    """

    arm: str
    source: str
    percent: int
    run: int
    seed: int | None
    source_rate: MarkerRate
    assistant_rate: MarkerRate
    bystander_rates: Mapping[str, MarkerRate] = field(default_factory=dict)
    cosines: Mapping[int, float] = field(default_factory=dict)
    adapter: str = ORIGINAL

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"there is no arm {self.arm!r}; the arms are {', '.join(ARMS)}")
        if not 0 <= self.percent <= 100:
            raise ValueError(f"the checkpoint {self.percent} is no percentage; write 0 to 100")
        wrong = next((n for n, c in self.cosines.items() if not (math.isnan(c) or abs(c) <= 1)), None)
        if wrong is not None:
            raise ValueError(
                f"the cosine of layer {wrong} is {self.cosines[wrong]}; write -1 to 1, or null for none"
            )
        if self.source in self.bystander_rates:
            raise ValueError(f"{self.source} is the source, so no bystander; leave its rate to source_rate")

    @property
    def bystander_mean(self) -> float:
        """Mean rate under the other personas' prompts; NaN without any."""
        rates = [each.rate for each in self.bystander_rates.values()]
        return float(np.mean(rates)) if rates else math.nan

    def cosine(self, layer: int) -> float:
        """The cosine of one layer; NaN where it was not measured."""
        return self.cosines.get(layer, math.nan)


@dataclass(frozen=True)
class Quality:
    """A marker adapter before any merge: its own rate, the highest bystander's, and what it is called."""

    source: str
    source_rate: float
    max_bystander: float
    pattern: str
    adapter: str = ORIGINAL

    @property
    def specific(self) -> bool:
        """Whether the marker stayed with its source."""
        return self.pattern in SPECIFIC


@dataclass(frozen=True)
class Directed:
    """A rate under `target`'s prompt of the model that `source`'s marker was trained into, before any arm."""

    source: str
    target: str
    rate: MarkerRate


@dataclass(frozen=True, eq=False)
class Trajectories(Result):
    """Every checkpoint of every arm, source, adapter, run and seed."""

    points: tuple[Point, ...]
    quality: tuple[Quality, ...] = ()
    baselines: tuple[Directed, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("there are no checkpoints; give one Point each")
        keys = [(p.arm, p.adapter, p.source, p.percent, p.run, p.seed) for p in self.points]
        twice = (
            next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
        )
        if twice:
            arm, adapter, source, percent, run, seed = twice
            raise ValueError(
                f"arm {arm}, {source} ({adapter} adapter) has {percent} % twice for run {run}, seed {seed};"
                " number runs apart"
            )

    @property
    def model(self) -> str:
        """As the file names it."""
        return str(self.about.get("model", "model not named in the records"))

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(point.source for point in self.points))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that a point names."""
        return tuple(sorted({point.seed for point in self.points if point.seed is not None}))

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that any point has a cosine of."""
        held = {n for p in self.points for n, c in p.cosines.items() if math.isfinite(c)}
        return tuple(sorted(held))

    @property
    def counted(self) -> bool:
        """Whether every rate of source and assistant comes with its counts."""
        return all(r.total for p in self.points for r in (p.source_rate, p.assistant_rate))

    def arms(self, source: str) -> tuple[tuple[str, str], ...]:
        """(arm, adapter) of every trajectory of a source, in the order of the arms."""
        found = dict.fromkeys((p.arm, p.adapter) for p in self.points if p.source == source)
        return tuple(sorted(found, key=lambda each: (each[0], each[1] != ORIGINAL)))

    def runs(self, arm: str, source: str, adapter: str = ORIGINAL) -> tuple[tuple[int, int | None], ...]:
        """(run, seed) of every trajectory."""
        mine = (p for p in self.points if (p.arm, p.source, p.adapter) == (arm, source, adapter))
        return tuple(dict.fromkeys((p.run, p.seed) for p in mine))

    def line(
        self, arm: str, source: str, *, adapter: str = ORIGINAL, only: tuple[int, int | None] | None = None
    ) -> tuple[Point, ...]:
        """The checkpoints of a source in order, runs and seeds together, or one (run, seed); may be empty."""
        mine = [p for p in self.points if (p.arm, p.source, p.adapter) == (arm, source, adapter)]
        if only is not None:
            mine = [p for p in mine if (p.run, p.seed) == only]
        percents = sorted({p.percent for p in mine})
        return tuple(pooled([p for p in mine if p.percent == percent]) for percent in percents)

    def at(self, arm: str, source: str, percent: int, *, adapter: str = ORIGINAL) -> Point | None:
        """One checkpoint, runs and seeds together."""
        return next((p for p in self.line(arm, source, adapter=adapter) if p.percent == percent), None)

    def adapter_quality(self, source: str, adapter: str = ORIGINAL) -> Quality | None:
        """What the marker adapter of a source was like before any merge."""
        return next((q for q in self.quality if (q.source, q.adapter) == (source, adapter)), None)

    def baseline(self, source: str, target: str) -> MarkerRate | None:
        """A directed rate before any arm."""
        held = (d.rate for d in self.baselines if (d.source, d.target) == (source, target))
        return next(held, None)

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([_row(point, self.layers) for point in self.points])

    def figure(self) -> go.Figure:
        """Source retention above, assistant leakage below, a column a source."""
        from studies.arms_figures import hero

        return hero(self)


def interval(rate: MarkerRate) -> Interval:
    """A rate with Wilson's bounds where it was counted, and without where it was not."""
    if rate.found is not None and rate.total:
        return wilson(rate.found, rate.total)
    note = "the file has the rate without its counts"
    return Interval(rate.rate, math.nan, math.nan, 0, "answer", "none", 0.95, note)


def pooled(points: Sequence[Point]) -> Point:
    """Points of one checkpoint as one: counts are added, rates without counts and cosines are averaged.

    Bystanders and layers are those that every point has.
    """
    first = points[0]
    if len(points) == 1:
        return first
    bystanders = [n for n in first.bystander_rates if all(n in p.bystander_rates for p in points)]
    layers = [n for n in first.cosines if all(n in p.cosines for p in points)]
    return replace(
        first, run=0, seed=None,
        source_rate=pooled_rate(p.source_rate for p in points),
        assistant_rate=pooled_rate(p.assistant_rate for p in points),
        bystander_rates={n: pooled_rate(p.bystander_rates[n] for p in points) for n in bystanders},
        cosines={n: float(np.mean([p.cosines[n] for p in points])) for n in layers},
    )  # fmt: skip


def pooled_rate(rates: Iterable[MarkerRate]) -> MarkerRate:
    """Found of total over all, or the mean rate where one of them has no counts."""
    held = list(rates)
    counts = [(r.found, r.total) for r in held if r.found is not None and r.total]
    if len(counts) < len(held):
        return MarkerRate(float(np.mean([r.rate for r in held])))
    found, total = (sum(column) for column in zip(*counts, strict=True))
    return MarkerRate(found / total, found, total)


def _row(point: Point, layers: Sequence[int]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arm": point.arm, "adapter": point.adapter, "source": point.source, "percent": point.percent,
        "run": point.run, "seed": point.seed,
    }  # fmt: skip
    for name, rate in (("source", point.source_rate), ("assistant", point.assistant_rate)):
        bounds = interval(rate)
        row |= {f"{name}_rate": rate.rate, f"{name}_found": rate.found, f"{name}_total": rate.total}
        row |= {f"{name}_low": bounds.low, f"{name}_high": bounds.high}
    row |= {"bystander_mean": point.bystander_mean, "n_bystanders": len(point.bystander_rates)}
    return row | {f"cos_L{layer}": point.cosine(layer) for layer in layers}
