"""What steering towards a source finds: dose-response of leakage, source rate and damage, beside controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, mean_interval, wilson
from mechinterp.stats.paired import SignFlip, sign_flip
from studies.steering_proximity_cells import RANDOM, SOURCE, Dosed, Line

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Steered(Result):
    """One source's trained model, steered: its line and every direction and dose."""

    source: str
    run: int
    line: Line
    dosed: tuple[Dosed, ...]

    def at(self, direction: str, dose: float) -> Dosed:
        """One direction and dose; the unsteered one is every direction's dose 0."""
        wanted = SOURCE if dose == 0 else direction
        return next(one for one in self.dosed if (one.direction, one.dose) == (wanted, dose))

    def rate(self, direction: str, dose: float, role: str, question: str | None = None) -> Interval:
        """found / total under the prompts of a role: assistant, source or bystander."""
        mine = [
            c for c in self.at(direction, dose).counts if c.role == role and question in (None, c.question)
        ]
        return wilson(sum(c.found for c in mine), sum(c.total for c in mine))

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(count.question for count in self.dosed[0].counts))

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.direction for one in self.dosed))

    def cosine(self, direction: str, dose: float, layer: int | None = None) -> float:
        """The re-extracted centred cosine, at the steered layer unless another is asked for."""
        return float(self.at(direction, dose).cosine[self.line.layer if layer is None else layer])

    def slopes(self, direction: str, role: str = "assistant") -> np.ndarray:
        """Each question's least-squares slope of the rate over the part of the way that was added.

        The part is the strength over the distance from assistant to source: +1 would put one on the other.
        """
        x = np.array([self._part(dose) for dose in self.line.doses])
        x = x - x.mean()
        rates = [
            [self.rate(direction, dose, role, question).estimate for dose in self.line.doses]
            for question in self.questions
        ]
        return np.array(rates) @ x / (x @ x)

    def _part(self, dose: float) -> float:
        place = self.line.doses.index(dose)
        return self.line.strengths[place] / self.distance

    @property
    def distance(self) -> float:
        """How far apart the centroids of source and assistant are at the layer."""
        return float((self.line.there[self.line.layer] - self.line.home).norm())

    def slope(self, direction: str, role: str = "assistant") -> tuple[Interval, SignFlip]:
        """The mean slope over questions with its bootstrap interval, and a sign flip over questions."""
        values = torch.from_numpy(self.slopes(direction, role))
        return mean_interval(values, method="bootstrap", unit="question"), sign_flip(values, unit="question")

    def beyond(self, control: str = RANDOM) -> tuple[Interval, SignFlip]:
        """The slope towards the source minus a control's, paired by question."""
        values = torch.from_numpy(self.slopes(SOURCE) - self.slopes(control))
        return mean_interval(values, method="bootstrap", unit="question"), sign_flip(values, unit="question")

    def to_dataframe(self) -> pd.DataFrame:
        """One line a direction and dose."""
        import pandas as pd

        return pd.DataFrame(self._line(d, dose) for d in self.directions for dose in self.line.doses)

    def _line(self, direction: str, dose: float) -> dict[str, Any]:
        one, place = self.at(direction, dose), self.line.doses.index(dose)
        found = {role: self.rate(direction, dose, role) for role in ("assistant", "bystander", "source")}
        return {
            "source": self.source,
            "direction": direction,
            "dose": dose,
            "strength": self.line.strengths[place],
            "requested": self.line.requested[place] if direction == SOURCE else None,
            "cosine": self.cosine(direction, dose),
            "cosine_last_layer": float(one.cosine[-1]),
            **{f"{role}_rate": rate.estimate for role, rate in found.items()},
            "low": found["assistant"].low,
            "high": found["assistant"].high,
            "n": found["assistant"].n,
            **{f"kl_{how}": value for how, value in one.damage.items()},
        }


@dataclass(frozen=True, eq=False)
class SteeringProximity(Result):
    """Every source that was steered towards."""

    model: str
    marker: str
    seeds: tuple[int, ...]
    sources: tuple[Steered, ...]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.concat([one.to_dataframe() for one in self.sources], ignore_index=True)

    def headline(self) -> str:
        from studies.steering_proximity_page import answer

        return answer(self)

    def figure(self) -> go.Figure:
        """Leakage to the assistant by dose, of the first source."""
        from studies.steering_proximity_figures import response

        return response(self, self.sources[0])
