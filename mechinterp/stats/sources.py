"""Directed pairs are clusters: the same association pooled, within sources and between them (methods 6).

Fifty pairs of five sources are not fifty independent values. The pooled figure is kept, labelled naive; what
holds within every source, and what lies between sources, stands beside it with permutation p.

Each p has its null. `within_p` is exact against source effects but takes targets as exchangeable: where some
targets leak from, and lie near, every source by chance (target effects of twice the pairs' own spread) it
rejects 28 % at 5 sources of 10 targets. `block_p` leaves targets in place and holds 5 % there and against
source effects, but is coarse: five sources have 120 orderings. A claim wants both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mechinterp.stats.agreement import Icc, icc
from mechinterp.stats.association import (
    Association,
    finite_columns,
    is_constant,
    rank_score,
    spearman,
    t_p,
    undefined,
    unit_score,
)
from mechinterp.stats.source_permutations import Ranks, Rows, block_p, within_p

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 3  # targets or sources that have a rank correlation at all
NAIVE = "naive: pairs of one source are not independent"


@dataclass(frozen=True)
class SourceAssociation:
    """Spearman's rho of a predictor and an outcome over directed pairs, at every level of their nesting."""

    pooled: Association  # naive
    within: dict[str, Association]
    constant: tuple[str, ...]  # sources whose predictor or outcome is constant: no rho, left out of the mean
    mean_within: float  # over the sources that have a rho
    within_p: float
    within_method: str
    centred: Association  # ranks minus their source's mean rank
    between: Association  # of source means
    block_p: float
    block_method: str
    leave_one_out: dict[str, float]  # pooled rho without that source
    icc: dict[str, Icc]  # of predictor and outcome; empty where sources differ in their number of targets
    n_sources: int
    n_pairs: int

    @property
    def n_constant(self) -> int:
        """How many sources have no rho because a side is constant."""
        return len(self.constant)

    @property
    def low(self) -> float:
        """Smallest pooled rho without one source."""
        return min((rho for rho in self.leave_one_out.values() if math.isfinite(rho)), default=math.nan)

    @property
    def high(self) -> float:
        """Largest pooled rho without one source."""
        return max((rho for rho in self.leave_one_out.values() if math.isfinite(rho)), default=math.nan)

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a figure: estimate, p, n with its unit, and what it is."""
        import pandas as pd

        defined = sum(math.isfinite(found.estimate) for found in self.within.values())
        note = f"{self.within_method}; constant: {', '.join(self.constant) or 'none'}"
        rows = [
            _row("pooled", self.pooled),
            ("mean within", self.mean_within, self.within_p, defined, "source", note),
            _row("centred", self.centred),
            _row("between", self.between),
            ("blocks", self.pooled.estimate, self.block_p, self.n_sources, "source", self.block_method),
            *(_row(f"within {name}", found) for name, found in self.within.items()),
            *(
                (f"without {name}", rho, math.nan, self.n_sources - 1, "source", "pooled rho")
                for name, rho in self.leave_one_out.items()
            ),
            *(
                (f"ICC {name}", found.value, math.nan, self.n_pairs, "pair", _worth(found))
                for name, found in self.icc.items()
            ),
        ]
        return pd.DataFrame(rows, columns=["figure", "estimate", "p", "n", "unit", "note"])


def by_source(
    x: Float[np.ndarray, "x"],
    y: Float[np.ndarray, "y"],
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    seed: int = 0,
    permutations: int = 10_000,
) -> SourceAssociation:
    """Predictor x and outcome y of each directed pair, pooled, within sources, between them, without each.

    Raises ValueError for missing values, unequal lengths, fewer than three pairs, or a pair given twice.
    """
    x, y = finite_columns(x=x, y=y)
    rows = _rows(sources, targets, len(x))
    ranks = _pooled_ranks(x), _pooled_ranks(y)
    pooled = spearman(x, y, unit="pair")
    pooled = replace(pooled, p_method=f"{NAIVE}; {pooled.p_method}")
    within = {name: _within(x[row], y[row]) for name, row in rows.items()}
    constant = tuple(name for name, row in rows.items() if is_constant(x[row]) or is_constant(y[row]))
    rhos = [found.estimate for found in within.values() if math.isfinite(found.estimate)]
    p_within, within_method = within_p(x, y, [rows[name] for name in _defined(within)], seed, permutations)
    p_block, block_method = block_p(ranks, rows, targets, seed, permutations)
    return SourceAssociation(
        pooled=pooled,
        within=within,
        constant=constant,
        mean_within=float(np.mean(rhos)) if rhos else math.nan,
        within_p=p_within,
        within_method=within_method,
        centred=_centred(ranks, rows),
        between=_between(x, y, rows),
        block_p=p_block,
        block_method=block_method,
        leave_one_out=_without_each(x, y, rows),
        icc=_likeness(x, y, rows),
        n_sources=len(rows),
        n_pairs=len(x),
    )


def _rows(sources: Sequence[str], targets: Sequence[str], n: int) -> Rows:
    if len(sources) != n or len(targets) != n:
        raise ValueError(
            f"{n} pairs need one source and one target each, not {len(sources)} and {len(targets)}"
        )
    pairs = list(zip(sources, targets, strict=True))
    twice = next((pair for pair in pairs if pairs.count(pair) > 1), None) if len(set(pairs)) < n else None
    if twice:
        raise ValueError(f"the pair {twice[0]} -> {twice[1]} is given twice; average its values first")
    found: dict[str, list[int]] = {name: [] for name in dict.fromkeys(sources)}
    for pair, source in enumerate(sources):
        found[source].append(pair)
    return {name: np.array(row, dtype=np.intp) for name, row in found.items()}


def _within(x: Float[np.ndarray, "target"], y: Float[np.ndarray, "target"]) -> Association:
    if len(x) < FEWEST:
        return undefined(len(x), "target", f"Spearman: {len(x)} targets, {FEWEST} are needed")
    return spearman(x, y, unit="target")


def _defined(within: dict[str, Association]) -> list[str]:
    return [name for name, found in within.items() if math.isfinite(found.estimate)]


def _without_each(x: Float[np.ndarray, "pair"], y: Float[np.ndarray, "pair"], rows: Rows) -> dict[str, float]:
    """Pooled rho without each source, whose values are taken out of the counts that ranks are made of."""
    equals = [np.unique(values, return_inverse=True)[1] for values in (x, y)]
    counts = [np.bincount(equal) for equal in equals]
    found = {}
    for name, row in rows.items():
        kept = np.ones(len(x), dtype=bool)
        kept[row] = False
        if kept.sum() < FEWEST or is_constant(x[kept]) or is_constant(y[kept]):
            found[name] = math.nan
            continue
        scores = []
        for equal, count in zip(equals, counts, strict=True):
            left = count - np.bincount(equal[row], minlength=len(count))
            ranks = np.cumsum(left) - (left - 1) / 2  # the average of those of equal values
            scores.append(unit_score(ranks[equal[kept]]))
        found[name] = float(np.clip(scores[0] @ scores[1], -1, 1))
    return found


def _pooled_ranks(values: Float[np.ndarray, "pair"]) -> Float[np.ndarray, "pair"] | None:
    return None if is_constant(values) else rank_score(values)


def _centred(ranks: Ranks, rows: Rows) -> Association:
    """Pooled ranks minus their source's mean, correlated: the partial rho given the sources."""
    n, method = sum(map(len, rows.values())), "Spearman of ranks centred within source"
    if ranks[0] is None or ranks[1] is None:
        return undefined(n, "pair", f"{method}: x or y constant")
    u, v = ranks[0].copy(), ranks[1].copy()
    for row in rows.values():
        u[row] -= u[row].mean()
        v[row] -= v[row].mean()
    if min(np.abs(u).max(), np.abs(v).max()) < 1e-12:
        return undefined(n, "pair", f"{method}: x or y constant within every source")
    r, freedom = float(unit_score(u) @ unit_score(v)), n - len(rows) - 1
    p_method = f"naive: Student t, df n - {len(rows)} sources - 1; within_p permutes"
    return Association(r, t_p(r, freedom), n, "pair", method, p_method, t_p(r, n - 2))


def _between(x: Float[np.ndarray, "pair"], y: Float[np.ndarray, "pair"], rows: Rows) -> Association:
    if len(rows) < FEWEST:
        return undefined(len(rows), "source", f"Spearman: {len(rows)} sources, {FEWEST} are needed")
    means = [np.array([values[row].mean() for row in rows.values()]) for values in (x, y)]
    scales = [max(float(np.abs(mean).max()), 1e-300) for mean in means]
    # equal means of other summands differ by rounding and would not tie
    x_mean, y_mean = (np.round(mean / scale, 12) for mean, scale in zip(means, scales, strict=True))
    return spearman(x_mean, y_mean, unit="source")


def _likeness(x: Float[np.ndarray, "pair"], y: Float[np.ndarray, "pair"], rows: Rows) -> dict[str, Icc]:
    sizes = {len(row) for row in rows.values()}
    if len(rows) < 2 or len(sizes) > 1 or min(sizes) < 2:
        return {}
    table = np.stack(list(rows.values()))
    return {"predictor": icc(x[table], variable="predictor"), "outcome": icc(y[table], variable="outcome")}


def _row(figure: str, found: Association) -> tuple[str, float, float, int, str, str]:
    note = f"{found.method}; {found.p_method}"
    return figure, found.estimate, found.p, found.n, found.unit, note


def _worth(found: Icc) -> str:
    return f"effective n {found.effective_n:.1f} of {found.n_groups * found.n_members}" + (
        f"; {found.note}" if found.note else ""
    )
