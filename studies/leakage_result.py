"""Marker rates from source to target as directed records; what an adapter is called by them (methods 3)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, wilson
from studies.finetune_evaluation import Label, label_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Record:
    """Answers under `target`'s prompt by the model that `source`'s marker was trained into, counted.

    `capped` counts the answers that the length cut; `question` is None where only the sum is on record.
    """

    source: str
    target: str
    run: int
    seed: int
    question: str | None
    found: int
    total: int
    capped: int | None = None


@dataclass(frozen=True, eq=False)
class Leaked(Result):
    """One cell: the records of a model under some targets, and the first answer of each with and without."""

    records: tuple[Record, ...]
    samples: tuple[dict[str, Any], ...]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([vars(record) for record in self.records])


@dataclass(frozen=True)
class Standing:
    """A source's own rate beside everyone else's. Bystanders are all but the source and the assistant."""

    source: str
    source_rate: Interval
    assistant_rate: Interval | None
    breadth: float
    max_bystander: float
    max_bystander_name: str
    specificity: float
    label: Label
    constant: bool


@dataclass(frozen=True, eq=False)
class Leakage(Result):
    """All records of a run; the table has one line a source and target, runs and seeds together."""

    model: str
    marker: str
    assistant: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    records: tuple[Record, ...]
    counted: str
    label_at_least: float
    label_at_most: float
    samples: tuple[dict[str, Any], ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({record.seed for record in self.records}))

    @cached_property
    def _by_direction(self) -> dict[tuple[str, str], list[Record]]:
        """The records of each source and target, in their order; a hundred targets are asked for often."""
        found: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            found.setdefault((record.source, record.target), []).append(record)
        return found

    def rate(
        self, source: str, target: str, *, run: int | None = None, seed: int | None = None,
        question: str | None = None,
    ) -> Interval:  # fmt: skip
        """found / total of one direction with Wilson's interval, over all runs, seeds, questions or one."""
        return wilson(*self._counted(source, target, run=run, seed=seed, question=question))

    def _estimate(self, source: str, target: str, **which: Any) -> float:
        """The rate alone: an interval takes a hundred times as long."""
        found, total = self._counted(source, target, **which)
        return found / total if total else math.nan

    def _counted(
        self, source: str, target: str, *, run: int | None = None, seed: int | None = None,
        question: str | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        mine = [
            r
            for r in self._by_direction.get((source, target), ())
            if run in (None, r.run) and seed in (None, r.seed) and question in (None, r.question)
        ]
        if not mine:
            raise ValueError(
                f"there are no answers of the model of {source!r} under {target!r}; the sources are"
                f" {', '.join(self.sources)}, the targets {', '.join(self.targets)}"
            )
        return sum(r.found for r in mine), sum(r.total for r in mine)

    def row(self, source: str, **which: Any) -> np.ndarray:
        """The rates of a source under every target, in the order of `targets`; the source itself is NaN."""
        return np.array([np.nan if t == source else self._estimate(source, t, **which) for t in self.targets])

    def pairs(self, *, without: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """(source, target) of all directed pairs of different personas."""
        return tuple((s, t) for s in self.sources for t in self.targets if s != t and t not in without)

    def standing(self, source: str, *, without: Collection[str] = ()) -> Standing:
        """What the source's adapter is called, over the bystanders that are not held out."""
        bystanders = [t for t in self.targets if t not in (source, self.assistant, *without)]
        if not bystanders:
            raise ValueError(f"{source} has no bystander among {', '.join(self.targets)}; name more targets")
        rates = {t: self._estimate(source, t) for t in bystanders}
        highest = max(rates, key=lambda t: rates[t])
        own, breadth = self.rate(source, source), float(np.mean(list(rates.values())))
        row = self.row(source)
        return Standing(
            source=source,
            source_rate=own,
            assistant_rate=None if source == self.assistant else self.rate(source, self.assistant),
            breadth=breadth,
            max_bystander=rates[highest],
            max_bystander_name=highest,
            specificity=own.estimate - breadth,
            label=label_of(
                own.estimate,
                float(np.nanmax(row)),
                source_at_least=self.label_at_least,
                bystander_at_most=self.label_at_most,
            ),
            constant=bool(np.ptp(row[~np.isnan(row)]) == 0),
        )

    @property
    def constant_sources(self) -> tuple[str, ...]:
        """Sources whose rate is the same under every target: they have no association with anything."""
        return tuple(s for s in self.sources if self.standing(s).constant)

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([self._line(s, t) for s in self.sources for t in self.targets])

    def _line(self, source: str, target: str) -> dict[str, Any]:
        found = self.rate(source, target)
        mine = self._by_direction[source, target]
        by_seed = [self._estimate(source, target, seed=seed) for seed in {r.seed for r in mine}]
        return {
            "source": source,
            "target": target,
            "found": sum(r.found for r in mine),
            "total": found.n,
            "rate": found.estimate,
            "low": found.low,
            "high": found.high,
            "n_seeds": len(by_seed),
            "lowest_seed": min(by_seed),
            "highest_seed": max(by_seed),
        }

    def standings(self) -> pd.DataFrame:
        """One line a source: its rate, the assistant's, breadth, highest bystander, specificity, label."""
        import pandas as pd

        return pd.DataFrame(
            {
                "source": one.source,
                "source_rate": one.source_rate.estimate,
                "assistant_rate": None if one.assistant_rate is None else one.assistant_rate.estimate,
                "breadth": one.breadth,
                "max_bystander": one.max_bystander,
                "max_bystander_name": one.max_bystander_name,
                "specificity": one.specificity,
                "label": one.label,
                "constant": one.constant,
            }
            for one in (self.standing(source) for source in self.sources)
        )

    def headline(self) -> str:
        """One line a source: its own rate, the highest bystander, breadth, label."""
        lines = ["source                source  highest bystander  breadth  label"]
        for one in (self.standing(source) for source in self.sources):
            lines.append(
                f"{one.source:<20} {one.source_rate.estimate:>7.2f} {one.max_bystander:>18.2f}"
                f" {one.breadth:>8.2f}  {one.label}"
            )
        return "\n".join(lines)

    def figure(self) -> go.Figure:
        """Rates as a map, source down and target across."""
        from studies.leakage_figures import rate_map

        return rate_map(self)


def merged(parts: Sequence[Leaked]) -> tuple[tuple[Record, ...], tuple[dict[str, Any], ...]]:
    """The records and samples of several cells, in their order."""
    return tuple(r for part in parts for r in part.records), tuple(s for part in parts for s in part.samples)
