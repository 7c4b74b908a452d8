"""What the three arms gave: every checkpoint, the adapters before a merge, both sides of every merge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mechinterp.results import Result
from studies.arms_analysis import ArmsAnalysis, analyse
from studies.arms_records import (
    ARMS,
    ASSISTANT,
    ORIGINAL,
    Directed,
    Point,
    Quality,
    Trajectories,
    pooled_rate,
)
from studies.causal_proximity_measures import Measured
from studies.finetune_evaluation import label_of
from studies.finetune_merge import Merge
from studies.finetune_record import OTHERS_AT_MOST, SOURCE_AT_LEAST
from studies.marker_records import MarkerRate

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Checkpoint:
    """Where a measured model stands: arm, source, which adapter, run, seed and percent of the training."""

    arm: str
    source: str
    adapter: str
    run: int
    seed: int
    percent: int
    measured: Measured

    def point(self, names: tuple[str, ...]) -> Point:
        """As a point of a trajectory; `names` are the personas of the cosines, in their order."""
        rates = dict(self.measured.rates)
        own, assistant = rates.pop(self.source), rates.pop(ASSISTANT)
        i, j = names.index(self.source), names.index(ASSISTANT)
        layers = zip(self.measured.layers, self.measured.cosines, strict=True)
        cosines = {layer: float(matrix[i, j].clamp(-1, 1)) for layer, matrix in layers}
        return Point(
            self.arm, self.source, self.percent, self.run, self.seed, own, assistant, rates, cosines,
            self.adapter,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class CausalProximity(Result):
    """`names` are the personas of all cosines; `merges` are named by the cell that merged."""

    model: str
    marker: str
    names: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    adapters: tuple[Checkpoint, ...]
    merges: tuple[tuple[str, Merge], ...]
    seed: int

    @cached_property
    def trajectories(self) -> Trajectories:
        """All checkpoints as trajectories, with what the adapters were before any merge."""
        return Trajectories(
            tuple(checkpoint.point(self.names) for checkpoint in self.checkpoints),
            self._quality(),
            self._baselines(),
            {"model": self.model},
        )

    @cached_property
    def analyses(self) -> tuple[ArmsAnalysis, ...]:
        """One an arm and adapter, the critical arm first."""
        held = dict.fromkeys((c.arm, c.adapter) for c in self.checkpoints)
        order = sorted(held, key=lambda each: (each[0] != "B", each))
        return tuple(analyse(self.trajectories, arm=arm, adapter=adapter) for arm, adapter in order)

    def rates_before(self, source: str, adapter: str) -> dict[str, MarkerRate]:
        """The rates of a marker adapter before any merge, runs and seeds together."""
        mine = [c.measured.rates for c in self.adapters if (c.source, c.adapter) == (source, adapter)]
        return {name: pooled_rate(rates[name] for rates in mine) for name in mine[0]}

    def to_dataframe(self) -> pd.DataFrame:
        """One line a checkpoint: rates with counts and Wilson's bounds, cosines by layer."""
        return self.trajectories.to_dataframe()

    def merge_table(self) -> pd.DataFrame:
        """One line a merge: what was applied, counts before and after, divergence of the two models."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for key, one in self.merges:
            rows.append(
                {"cell": key, "adapter": one.adapter, "rank": one.rank, "alpha": one.alpha,
                 "rslora": one.rslora, "scaling": one.scaling, "delta_norm": one.delta_norm,
                 "before_found": one.before.found, "after_found": one.after.found,
                 "total": one.before.total, "kl": one.kl}
            )  # fmt: skip
        return pd.DataFrame(rows)

    def figure(self) -> go.Figure:
        """Source retention above, assistant leakage below, a column a source."""
        return self.trajectories.figure()

    def headline(self) -> str:
        """Of the first arm analysed: leakage and cosine from 0 % to the end, a source each."""
        first = self.analyses[0]
        said = []
        for source in self.trajectories.sources:
            line = self.trajectories.line(first.arm, source, adapter=first.adapter)
            if line:
                start, end = (p.assistant_rate for p in (line[0], line[-1]))
                said.append(f"{source} {_told(start)} -> {_told(end)}")
        arm = f"arm {first.arm} ({ARMS[first.arm]})"
        return f"causal_proximity, {arm}, leakage to the assistant from 0 to 100 %: {'; '.join(said)}"

    def _quality(self) -> tuple[Quality, ...]:
        found = []
        for source, adapter in dict.fromkeys((c.source, c.adapter) for c in self.adapters):
            rates = self.rates_before(source, adapter)
            own = rates[source].rate
            highest = max(rate.rate for name, rate in rates.items() if name != source)
            others = [rate.rate for name, rate in rates.items() if name not in (source, ASSISTANT)]
            pattern = label_of(
                own, highest, source_at_least=SOURCE_AT_LEAST, bystander_at_most=OTHERS_AT_MOST
            )
            found.append(Quality(source, own, max(others, default=0.0), pattern, adapter))
        return tuple(found)

    def _baselines(self) -> tuple[Directed, ...]:
        """Source to assistant under the given adapters; a retrained one is not what was published."""
        sources = dict.fromkeys(c.source for c in self.adapters if c.adapter == ORIGINAL)
        return tuple(Directed(s, ASSISTANT, self.rates_before(s, ORIGINAL)[ASSISTANT]) for s in sources)


def _told(rate: MarkerRate) -> str:
    return f"{rate.found}/{rate.total}"
