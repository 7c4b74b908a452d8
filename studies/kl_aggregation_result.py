"""What the aggregation study found: divergences by position, their aggregates, and when hinges fire."""

from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.divergence import Aggregate, aggregate, hinge_barrier
from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, wilson

AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
CASES = ("coherent trait", "incoherent loop")


@dataclass(frozen=True, eq=False)
class KlAggregation(Result):
    """KL(student || reference) at every position, of every draw; cases are CASES, the first draw is shown."""

    divergences: Float[Tensor, "draw case position"]
    thresholds: tuple[float, ...]
    seed: int

    def aggregated(self, how: Aggregate) -> Float[Tensor, "draw case"]:
        return aggregate(self.divergences, how)

    def value(self, case: int, how: Aggregate) -> float:
        """The aggregate of the first draw."""
        return float(self.aggregated(how)[0, case])

    def ratios(self, how: Aggregate) -> Float[Tensor, "draw"]:
        """Incoherent loop over coherent trait."""
        trait, loop = self.aggregated(how).unbind(-1)
        return loop / trait

    def fires(self, case: int, how: Aggregate, tau: float) -> Interval:
        """In how many draws the hinge is above zero."""
        fired = hinge_barrier(self.aggregated(how)[:, case], tau, 1.0) > 0
        return wilson(int(fired.sum()), len(fired), unit="draw")

    def with_gradient(self, case: int, how: Aggregate) -> int:
        """At how many positions of the first draw the aggregate has a gradient."""
        k = self.divergences[0, case].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(aggregate(k, how), k)
        return int((slope != 0).sum())

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each case and aggregate: the first draw's value, its ratio, and how often hinges fire."""
        rows = []
        for place, case in enumerate(CASES):
            for how in AGGREGATES:
                row: dict[str, Any] = {"case": case, "aggregate": how, "value": self.value(place, how)}
                row |= {"ratio": float(self.ratios(how)[0]), "with_gradient": self.with_gradient(place, how)}
                for tau in self.thresholds:
                    row[f"fires_{tau:g}"] = self.fires(place, how, tau).estimate
                rows.append(row)
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        from studies.kl_aggregation_figures import by_position

        return by_position(self)

    def headline(self) -> str:
        ratios = ", ".join(f"{how} {float(self.ratios(how)[0]):.1f}" for how in AGGREGATES)
        return f"kl_aggregation: incoherent loop over coherent trait: {ratios}"
