"""Criteria that were set before: recorded with value, threshold, verdict and what was done about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Sense = Literal["above", "at most", "at least"]
WENT_ON = "recorded; the analysis goes on whatever it says"


@dataclass(frozen=True)
class Criterion:
    """A bar that was set before: `passed` is None where the value is not defined."""

    name: str
    value: float
    threshold: float
    passed: bool | None
    decision: str
    sense: Sense = "above"


def judged(
    name: str,
    value: float,
    threshold: float,
    *,
    sense: Sense = "above",
    decision: str = WENT_ON,
) -> Criterion:
    """A criterion with its verdict: the value must lie above, at most at or at least at the threshold."""
    met = {"above": value > threshold, "at most": value <= threshold, "at least": value >= threshold}[sense]
    return Criterion(name, value, threshold, None if math.isnan(value) else met, decision, sense)


def criteria_table(criteria: Sequence[Criterion]) -> pd.DataFrame:
    """One row a criterion."""
    import pandas as pd

    said = {True: "pass", False: "fail", None: "not applicable"}
    rows = [(c.name, c.value, f"{c.sense} {c.threshold:g}", said[c.passed], c.decision) for c in criteria]
    return pd.DataFrame(rows, columns=["criterion", "value", "threshold", "verdict", "what was done"])
