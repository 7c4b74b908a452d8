"""Changes over a trajectory, bystanders beside the assistant, and what each arm kept of the marker (7.4-7.6).

Every change is given from 0 % where that was measured, and from the first checkpoint after it: between them
lies the jump that a study without a 0 % point does not see.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from studies.arms_records import ORIGINAL, Point, Trajectories

ALIKE = 0.05  # of a rate: bystanders and assistant leak alike within five percentage points
GONE = 0.0  # a source rate that is no more than this is lost
PERCENTAGE_POINTS = 100


@dataclass(frozen=True)
class Effect:
    """One measure of one source from a start to the last checkpoint."""

    source: str
    measure: str
    start: int
    end: int
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Beside:
    """The assistant's rate beside the bystanders', under the same model."""

    source: str
    assistant: float
    bystander_mean: float
    lowest: float
    highest: float
    n_bystanders: int

    @property
    def difference(self) -> float:
        """Assistant minus bystander mean, in percentage points."""
        return PERCENTAGE_POINTS * (self.assistant - self.bystander_mean)

    @property
    def alike(self) -> bool:
        """Whether the two are within five percentage points."""
        return abs(self.difference) <= PERCENTAGE_POINTS * ALIKE


@dataclass(frozen=True)
class Retention:
    """What an arm kept of the source's marker; `gone_at` is the first checkpoint at which it is lost.

    `before` is the rate at 0 %, after the merge and before training; NaN where it was not measured: then a
    marker that is gone at the first checkpoint may have been lost by the merge or by the training.
    """

    arm: str
    source: str
    adapter: str
    pattern: str
    before: float
    first: int
    first_rate: float
    last: int
    last_rate: float
    gone_at: int | None

    @property
    def unexplained(self) -> bool:
        """Gone at the first checkpoint without a measurement before it."""
        return self.gone_at == self.first and math.isnan(self.before)


def effects(found: Trajectories, arm: str, *, adapter: str = ORIGINAL) -> tuple[Effect, ...]:
    """Of source and assistant rate, bystander mean and every cosine, from 0 % and from the first checkpoint.

    A measure that is missing at either end has none.
    """
    rows = []
    for source in found.sources:
        line = found.line(arm, source, adapter=adapter)
        trained = [p for p in line if p.percent > 0]
        if not trained:
            continue
        end = _measures(trained[-1])
        for start in dict.fromkeys((line[0].percent, trained[0].percent)):
            held = _measures(next(p for p in line if p.percent == start))
            rows += [
                Effect(source, name, start, trained[-1].percent, value, end[name])
                for name, value in held.items()
                if math.isfinite(value) and math.isfinite(end.get(name, math.nan))
                and start < trained[-1].percent
            ]  # fmt: skip
    return tuple(rows)


def bystanders_beside(points: Sequence[Point]) -> tuple[Beside, ...]:
    """Of every source whose bystanders were measured."""
    rows = []
    for point in points:
        rates = [rate.rate for rate in point.bystander_rates.values()]
        if rates:
            beside = (point.assistant_rate.rate, point.bystander_mean, min(rates), max(rates), len(rates))
            rows.append(Beside(point.source, *beside))
    return tuple(rows)


def retentions(found: Trajectories) -> tuple[Retention, ...]:
    """Of every arm, source and adapter."""
    rows = []
    for source in found.sources:
        for arm, adapter in found.arms(source):
            line = found.line(arm, source, adapter=adapter)
            trained = [p for p in line if p.percent > 0]
            if not trained:
                continue
            quality = found.adapter_quality(source, adapter)
            lost = (p.percent for p in trained if p.source_rate.rate <= GONE)
            first, last = trained[0], trained[-1]
            rows.append(
                Retention(
                    arm, source, adapter, quality.pattern if quality else "not on record",
                    line[0].source_rate.rate if line[0].percent == 0 else math.nan,
                    first.percent, first.source_rate.rate, last.percent, last.source_rate.rate,
                    next(lost, None),
                )
            )  # fmt: skip
    return tuple(rows)


def _measures(point: Point) -> dict[str, float]:
    held = {"source rate": point.source_rate.rate, "assistant rate": point.assistant_rate.rate}
    held["bystander mean"] = point.bystander_mean
    return held | {f"cosine L{layer}": value for layer, value in point.cosines.items()}
