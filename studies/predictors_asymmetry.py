"""Whether the direction in which KL is larger is the one in which more leaks (methods 5.5, step 4)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from mechinterp.stats.dyadic import DyadicAssociation, dyadic_spearman

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Matrix = Float[np.ndarray, "persona persona"]


@dataclass(frozen=True, eq=False)
class Asymmetry(Result):
    """Whether the direction in which KL is larger goes with the difference of leakage, among sources."""

    names: tuple[str, ...]
    kl: Matrix
    sources: tuple[str, ...]
    leakage: Mapping[str, float]  # "a -> b"
    association: DyadicAssociation | None  # None with fewer than three sources
    model: str
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row a pair of sources: both directions and their differences."""
        import pandas as pd

        rows = []
        for a, b in itertools.combinations(self.sources, 2):
            there, back = self._kl(a, b), self._kl(b, a)
            out, into = self.leakage[_arrow(a, b)], self.leakage[_arrow(b, a)]
            rows.append((a, b, there, back, abs(there - back), out, into, abs(out - into)))
        return pd.DataFrame(
            rows,
            columns=[
                "a",
                "b",
                "kl a||b",
                "kl b||a",
                "kl asymmetry",
                "leak a->b",
                "leak b->a",
                "leak asymmetry",
            ],
        )

    def figure(self) -> go.Figure:
        """KL(row || column) minus KL(column || row), of all personas."""
        from studies.predictors_figures import asymmetry_map

        return asymmetry_map(self)

    def _kl(self, a: str, b: str) -> float:
        return float(self.kl[self.names.index(a), self.names.index(b)])


def asymmetry(
    kl: Matrix,
    names: Sequence[str],
    leakage: Mapping[tuple[str, str], float],
    sources: Sequence[str],
    *,
    model: str = "model not named",
    seed: int = 0,
) -> Asymmetry:
    """|KL[a, b] - KL[b, a]| against |leak(a -> b) - leak(b -> a)| over the pairs of sources.

    Bounds and p take the source as the unit: all orders of up to seven sources are enumerated. Raises
    ValueError where a source is not in `names` or a direction has no leakage.
    """
    for name in sources:
        if name not in names:
            raise ValueError(f"{name!r} is no persona of the KL matrix, which has {', '.join(names)}")
    lacking = [pair for pair in itertools.permutations(sources, 2) if pair not in leakage]
    if lacking:
        raise ValueError(
            f"there is no leakage of {lacking[0][0]} into {lacking[0][1]}; leave that source out"
        )
    kl, place = np.asarray(kl, dtype=np.float64), [list(names).index(name) for name in sources]
    among = kl[np.ix_(place, place)]
    rates = np.array([[0.0 if a == b else leakage[a, b] for b in sources] for a in sources])
    found = None
    if len(sources) >= 3:
        gaps = np.abs(among - among.T), np.abs(rates - rates.T)
        found = dyadic_spearman(*gaps, names=sources, seed=seed)
    kept = {_arrow(a, b): float(leakage[a, b]) for a, b in itertools.permutations(sources, 2)}
    return Asymmetry(tuple(names), kl, tuple(sources), kept, found, model, seed)


def _arrow(a: str, b: str) -> str:
    return f"{a} -> {b}"
