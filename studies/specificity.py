"""Does an adapter's specificity, seen on others, predict its leakage to the assistant? (methods 12.8)

Predictor and outcome must not share data: the assistant and the personas nearest to it are held out of the
bystanders. The unit is the source, of which there are few: p is exact and leave-one-out stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from mechinterp.stats.association import Association, partial_spearman, spearman
from studies.leakage_result import Leakage

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FEWEST = 3
Matrix = Float[np.ndarray, "persona persona"]
OWN = ("specificity", "breadth", "max_bystander")  # of the adapter; the others are of the base model


@dataclass(frozen=True)
class SourceRow:
    """One source: leakage to the assistant, and what is to predict it."""

    source: str
    assistant_rate: float
    predictors: dict[str, float]
    n_bystanders: int


@dataclass(frozen=True, eq=False)
class Specificity(Result):
    """Every source but the assistant; the associations are over sources.

    `partial` holds each of the adapter's own predictors given JS and given each cosine, NaN where sources are
    too few. `without` is the range of rho when one source is left out.
    """

    model: str
    assistant: str
    held_out: tuple[str, ...]
    rows: tuple[SourceRow, ...]
    spearman: dict[str, Association]
    partial: dict[str, Association]
    without: dict[str, tuple[float, float]]
    note: str

    def to_dataframe(self) -> pd.DataFrame:
        """One line a source."""
        import pandas as pd

        return pd.DataFrame(
            {"source": row.source, "assistant_rate": row.assistant_rate, **row.predictors}
            for row in self.rows
        )

    def figure(self) -> go.Figure:
        """Specificity against leakage to the assistant, a point a source."""
        from mechinterp.figures import caption, scatter

        rho = self.spearman.get("specificity")
        more = [f"held out: {', '.join(self.held_out)}"]
        if rho is not None:
            more.append(f"rho {rho.estimate:.2f}, p {rho.p:.2g}")
        return scatter(
            self.to_dataframe(),
            "specificity",
            "assistant_rate",
            name="source",
            subtitle=caption(self.model, n=len(self.rows), unit="source", seeds=[], band="none", more=more),
            title="Specificity on held-out bystanders against leakage to the assistant",
            x_title="source rate minus mean rate of held-out bystanders",
            y_title="rate under the assistant's prompt",
        )


def held_out(cosine: Matrix, names: Sequence[str], assistant: str, n_nearest: int) -> tuple[str, ...]:
    """The assistant, and the personas whose cosine with it is highest."""
    row = cosine[list(names).index(assistant)]
    others = [place for place, name in enumerate(names) if name != assistant]
    near = sorted(others, key=lambda place: -row[place])[:n_nearest]
    return (assistant, *(names[place] for place in near))


def specificity(
    leakage: Leakage, matrices: Mapping[str, Matrix], names: Sequence[str], *, n_nearest: int
) -> Specificity:
    """`matrices` are the base model's predictors by name; the first that is a cosine says who is near.

    Raises ValueError where nobody is left to be a bystander.
    """
    names, assistant = list(names), leakage.assistant
    nearness = next(matrix for name, matrix in matrices.items() if "cosine" in name)
    out = held_out(nearness, names, assistant, n_nearest)
    rows = []
    for source in leakage.sources:
        if source == assistant:
            continue
        one = leakage.standing(source, without=out)
        i, j = names.index(source), names.index(assistant)
        own = {name: float(getattr(one, name)) for name in OWN}
        base = {name: float(matrix[i, j]) for name, matrix in matrices.items()}
        left = [t for t in leakage.targets if t not in (source, *out)]
        rows.append(SourceRow(source, leakage.rate(source, assistant).estimate, {**own, **base}, len(left)))
    if len(rows) < FEWEST:
        note = f"{len(rows)} sources besides the assistant: no association over fewer than {FEWEST}"
        return Specificity(leakage.model, assistant, out, tuple(rows), {}, {}, {}, note)
    outcome = np.array([row.assistant_rate for row in rows])
    values = {name: np.array([row.predictors[name] for row in rows]) for name in rows[0].predictors}
    partial = {}
    if len(rows) >= FEWEST + 1:
        partial = {
            f"{name} given {base}": partial_spearman(values[name], outcome, values[base], unit="source")
            for name in OWN
            for base in matrices
        }
    return Specificity(
        model=leakage.model,
        assistant=assistant,
        held_out=out,
        rows=tuple(rows),
        spearman={name: spearman(x, outcome, unit="source") for name, x in values.items()},
        partial=partial,
        without={name: _without(x, outcome) for name, x in values.items()},
        note="" if partial else f"{len(rows)} sources: partials want {FEWEST + 1}",
    )


def _without(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The lowest and highest rho when one source is left out; NaN where none is defined."""
    if len(x) <= FEWEST:
        return math.nan, math.nan
    kept = [np.arange(len(x)) != place for place in range(len(x))]
    found = [spearman(x[rest], y[rest], unit="source").estimate for rest in kept]
    defined = [rho for rho in found if not math.isnan(rho)]
    return (min(defined), max(defined)) if defined else (math.nan, math.nan)
