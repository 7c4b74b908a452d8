"""Whole records of statistics on fixed data, every field of them: values, units, methods, notes.

`python -m tests.golden` writes what they are now to golden.json; look at the difference before you keep it.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechinterp.stats import halflife
from mechinterp.stats.agreement import icc
from mechinterp.stats.association import partial_spearman, pearson, spearman
from mechinterp.stats.bootstrap import bootstrap_curve, published_sem, resampled_means
from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.dyadic import dyadic_spearman
from mechinterp.stats.halflife import half_life
from mechinterp.stats.halves import select_heads
from mechinterp.stats.intervals import cluster_interval, curve_interval, mean_interval, wilson
from mechinterp.stats.multiplicity import max_t, sign_balance, simultaneous_quantile
from mechinterp.stats.paired import sign_flip
from mechinterp.stats.regression import added_predictor
from mechinterp.stats.sources import by_source

FILE = Path(__file__).with_name("golden.json")
DRAWN = np.random.default_rng(7)
X, Y, Z, W = DRAWN.normal(size=(4, 16)).round(3)
CURVES = (DRAWN.normal(size=(18, 3)) + [0.5, 0.0, -1.0]).round(3)
GAPS = CURVES.copy()
GAPS[2, 1] = np.nan
LABELS = [f"q{i % 5}" for i in range(18)]
DECAY = torch.tensor(3 * 2.0 ** (-np.arange(12) / 4) + DRAWN.normal(size=(15, 12)) * 0.3).round(decimals=3)
MATRIX, OTHER = (m + m.T for m in DRAWN.normal(size=(2, 9, 9)).round(3))
HEADS = DRAWN.normal(size=(8, 2, 4)).round(3) + 0.5
ONES = np.ones(16)
PAIRS = [(s, t) for s in "abcd" for t in "abcdefg" if s != t]
SOURCES, TARGETS = ([pair[i] for pair in PAIRS] for i in (0, 1))
P, Q = DRAWN.normal(size=(2, len(PAIRS))).round(3)
FLAT = np.where(np.array(SOURCES) == "a", 0.0, Q)
SHIFT = np.array(["abcd".index(source) for source in SOURCES], dtype=float)
MANY = [(f"s{i}", f"t{j}") for i in range(8) for j in range(4)]
MANY_X, MANY_Y = np.random.default_rng(8).normal(size=(2, len(MANY))).round(3)
UNEQUAL = [f"q{i}" for i in (0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5, 5, 6, 6, 6, 7, 8)]
TIED = np.zeros((6, 2, 40))
TIED[:, :, 1] = np.random.default_rng(9).normal(size=(6, 2)).round(2) - 1
GROUPED = DRAWN.normal(size=(5, 4)).round(3) + np.arange(5)[:, None]
NOISE = np.random.default_rng(10).normal(size=(18, 12)).round(3)
TOKENS = np.arange(12)


def decaying(*half_lives: float, noise: float = 0.0, n: int = 8) -> torch.Tensor:
    """Runs that decay so, the half-lives in turn, with some noise."""
    lives = np.array([half_lives[i % len(half_lives)] for i in range(n)])
    return torch.tensor(2.0 ** (-TOKENS / lives[:, None]) + noise * NOISE[:n])


def unseen(curves: torch.Tensor, first: int) -> torch.Tensor:
    """The first tokens of no run, and the last of one alone."""
    curves = curves.clone()
    curves[:, :first] = math.nan
    curves[1:, -1] = math.nan
    return curves


def judged(*cases: tuple[float, float, float, float]) -> Any:
    """Estimate, low, high and p of a half-life in a window of 12 tokens, at 0.95."""
    return [halflife._judge(*case[:3], 12, case[3], 0.05) for case in cases]


GRID = np.geomspace(halflife.FASTEST, halflife.SLOWEST * 12, 240)
SLOW = 0.99 * halflife.SLOWEST * 12
APART = [f"q{i}" for i, size in enumerate((1, 1, 2, 6, 3, 5, 4, 1, 7)) for _ in range(size)]
WEAK = np.random.default_rng(1).normal(size=(len(APART), 3)).round(3) + 0.4
SILENT = HEADS.copy()
SILENT[:, 0, 0] = 0
NINE = [(f"s{i}", f"t{j}") for i in range(9) for j in range(3)]
NINE_X, NINE_Y = np.random.default_rng(11).normal(size=(2, len(NINE))).round(3)


def nodes(k: int) -> dict[str, Any]:
    return {"a": MATRIX[:k, :k], "b": OTHER[:k, :k], "names": [f"n{i}" for i in range(k)]}


CASES: dict[str, Callable[[], Any]] = {
    "spearman 16": lambda: spearman(X, Y, unit="pair"),
    "spearman 6, exact": lambda: spearman(X[:6], Y[:6], unit="pair"),
    "spearman, ties": lambda: spearman(X.round(0), Y.round(0), unit="pair"),
    "spearman, constant": lambda: spearman(X, ONES, unit="pair"),
    "pearson 16": lambda: pearson(X, Y, unit="pair"),
    "pearson 5, exact": lambda: pearson(X[:5], Y[:5], unit="pair"),
    "partial": lambda: partial_spearman(X, Y, Z, unit="persona"),
    "partial, constant": lambda: partial_spearman(X, Y, ONES, unit="persona"),
    "partial, nothing left": lambda: partial_spearman(X, Y, X, unit="persona"),
    "added": lambda: added_predictor(X, Y, Z, unit="pair"),
    "added, constant": lambda: added_predictor(X, ONES, ONES, unit="pair"),
    "added, the same twice": lambda: added_predictor(X, Y, 2 * Y + 1, unit="pair"),
    "added, fits all": lambda: added_predictor(X + 2 * Y, X, Y, unit="pair"),
    "mean, t": lambda: mean_interval(torch.tensor(X), method="t", unit="text", level=0.9),
    "mean, bootstrap": lambda: mean_interval(torch.tensor(X), method="bootstrap", seed=3),
    "mean of 2": lambda: mean_interval(torch.tensor(X[:2]), method="t"),
    "mean of 2, bootstrap": lambda: mean_interval(torch.tensor(X[:2]), method="bootstrap"),
    "mean of none": lambda: mean_interval(torch.tensor(X[:0]), method="t"),
    "clusters": lambda: cluster_interval(torch.tensor(X), [i // 3 for i in range(16)], unit="question"),
    "3 clusters": lambda: cluster_interval(torch.tensor(X[:9]), [i // 3 for i in range(9)], level=0.9),
    "2 clusters": lambda: cluster_interval(torch.tensor(X[:4]), [0, 0, 1, 1]),
    "wilson": lambda: [wilson(3, 17), wilson(0, 5, unit="run", level=0.9), wilson(0, 0)],
    "curve": lambda: curve_interval(torch.tensor(GAPS), unit="run", level=0.9),
    "curve of 3": lambda: curve_interval(torch.tensor(GAPS[:3])),
    "published sem": lambda: published_sem(GAPS, n_boot=50),
    "published sem of 1": lambda: published_sem(GAPS[:1]),
    "resampled": lambda: resampled_means(CURVES[:4], resamples=3, seed=5),
    "bootstrap curve": lambda: bootstrap_curve(GAPS, LABELS, unit="question", seed=2, level=0.9),
    "bootstrap curve of 2": lambda: bootstrap_curve(CURVES[:2]),
    "clustered": lambda: clustered_mean(GAPS, LABELS, unit="question", level=0.9),
    "clustered, read": lambda: [clustered_mean(GAPS, LABELS).at(1), clustered_mean(GAPS, LABELS).curve()],
    "clustered, 2": lambda: clustered_mean(CURVES[:2]),
    "clustered, none": lambda: clustered_mean(CURVES[:0]),
    "max t": lambda: max_t(GAPS, LABELS, unit="question", level=0.9),
    "max t, drawn": lambda: max_t(CURVES, seed=4),
    "max t, band": lambda: max_t(CURVES[:6]).band(),
    "max t of 2": lambda: max_t(CURVES[:2]),
    "max t of none": lambda: max_t(CURVES[:0]),
    "signs": lambda: [sign_balance(CURVES[0]), sign_balance(np.zeros(3))],
    "sign flips": lambda: sign_flip(torch.tensor(X[:9]), unit="question"),
    "sign flips, drawn": lambda: sign_flip(torch.tensor(X), seed=2),
    "sign flips of 1 and 0": lambda: [sign_flip(torch.tensor(X[:n]), unit="text") for n in (1, 0)],
    "half-life": lambda: half_life(DECAY[:8], floor=0.0, unit="run", level=0.9),
    "half-life, drawn": lambda: half_life(DECAY, floor=0.1, seed=3),
    "half-life, none": lambda: half_life(-DECAY[:6], floor=0.0),
    "half-life of 2": lambda: half_life(DECAY[:2], floor=0.0),
    "dyadic 7": lambda: dyadic_spearman(**nodes(7), resamples=200),
    "dyadic 9": lambda: dyadic_spearman(**nodes(9), seed=2, resamples=200, level=0.9),
    "dyadic 4": lambda: dyadic_spearman(**nodes(4)),
    "dyadic 3": lambda: dyadic_spearman(**nodes(3)),
    "dyadic, ties": lambda: dyadic_spearman(
        MATRIX[:6, :6].round(0), OTHER[:6, :6].round(0), names=list("abcdef"), resamples=300
    ),
    "dyadic, constant": lambda: dyadic_spearman(np.ones((5, 5)), MATRIX[:5, :5], names=list("abcde")),
    "sources": lambda: by_source(P, Q, SOURCES, TARGETS, permutations=500),
    "sources, table": lambda: by_source(P, Q, SOURCES, TARGETS, permutations=500).to_dataframe(),
    "sources, one constant": lambda: by_source(P, FLAT, SOURCES, TARGETS, permutations=500),
    "sources, constant table": lambda: by_source(
        P, FLAT, SOURCES, TARGETS, permutations=500
    ).to_dataframe(),
    "sources that are alike": lambda: by_source(
        P + 3 * SHIFT, Q, SOURCES, TARGETS, permutations=100
    ).to_dataframe(),
    "8 sources": lambda: by_source(MANY_X, MANY_Y, *zip(*MANY, strict=True), seed=3, permutations=200),
    "2 sources of 3": lambda: by_source(P[:6], Q[:6], list("aaabbb"), list("bcdacd"), permutations=50),
    "2 sources of 2": lambda: by_source(P[:4], Q[:4], list("aabb"), list("cdcd"), permutations=50),
    "sources of 5 and 3": lambda: by_source(
        P[:8], Q[:8], list("aaaaabbb"), list("cdefgcde"), permutations=50
    ),
    "1 source": lambda: by_source(P[:5], Q[:5], list("aaaaa"), list("bcdef"), permutations=50),
    "sources, x constant": lambda: by_source(0 * P, Q, SOURCES, TARGETS, permutations=50),
    "sources, y constant": lambda: by_source(P, 0 * Q, SOURCES, TARGETS, permutations=50),
    "sources, constant within": lambda: by_source(P, SHIFT, SOURCES, TARGETS, permutations=50),
    "max t, unequal": lambda: max_t(CURVES, UNEQUAL),
    "max t, nothing varies": lambda: max_t(np.ones((6, 2)), level=0.9),
    "heads, ties": lambda: select_heads(TIED, per_layer=20),
    "correlation of 3": lambda: [spearman(X[:3], Y[:3], unit="pair"), pearson(X[:3], Y[:3], unit="pair")],
    "icc": lambda: icc(GROUPED, variable="JS"),
    "icc, negative": lambda: icc(GROUPED.T, variable="JS"),
    "icc, constant": lambda: icc(np.ones((2, 3)), variable="JS"),
    "half-life, weak": lambda: half_life(decaying(3, noise=1.5), floor=0.0, level=0.75),
    "half-life, weak and drawn": lambda: half_life(
        decaying(3, noise=2.0, n=15), floor=0.0, seed=5, level=0.5
    ),
    "half-life, first tokens unseen": lambda: half_life(
        unseen(decaying(0.4, 0.6, noise=0.002), 1), floor=0.0
    ),
    "half-life, two tokens unseen": lambda: half_life(
        unseen(0.05 * decaying(0.6, 0.9, noise=0.05, n=3), 2), floor=0.0, level=0.75
    ),
    "half-life, weak and unseen": lambda: half_life(
        unseen(decaying(1, noise=0.5, n=7), 1), floor=0.0, level=0.5
    ),
    "half-life, gone at once": lambda: half_life(decaying(0.01), floor=0.0),
    "half-life, all but gone": lambda: half_life(decaying(GRID[1] * 1.005), floor=0.0),
    "half-life, slow": lambda: half_life(decaying(GRID[-2] * 0.995), floor=0.0),
    "half-life, no decay": lambda: half_life(decaying(300), floor=0.0),
    "half-life, nothing": lambda: half_life(torch.zeros(8, 12), floor=0.0),
    "half-life, nothing seen": lambda: half_life(torch.full((8, 12), math.nan), floor=0.0),
    "half-life of 5": lambda: half_life(decaying(3, noise=0.1, n=5), floor=0.0),
    "half-life of 4": lambda: half_life(decaying(3, noise=0.1, n=4), floor=0.0),
    "half-life of 3 tokens": lambda: half_life(decaying(1, noise=0.02)[:, :3], floor=0.0),
    "half-life, judged": lambda: judged(
        (4, 3, 5, 0.05), (4, 3, 5, 0.051), (0.3, 0.2, 0.5, 0), (0.3, 0.2, 0.6, 0), (0.6, 0.5, 0.8, 0),
        (12, 8, 20, 0), (12.1, 8, 20, 0), (9, 5, SLOW, 0), (9, 5, SLOW - 1e-9, 0), (9, 5, 150, 0),
    ),
    "dyadic 5": lambda: dyadic_spearman(**nodes(5), resamples=300),
    "9 sources": lambda: by_source(NINE_X, NINE_Y, *zip(*NINE, strict=True), seed=3, permutations=3000),
    "1 source of 8": lambda: by_source(NINE_X[:8], NINE_Y[:8], ["a"] * 8, list("bcdefghi"), permutations=50),
    "max t, weak and unequal": lambda: max_t(WEAK, APART),
    "max t of 4, its least p": lambda: [max_t(CURVES[:4], level=level) for level in (0.875, 0.874)],
    "quantile": lambda: simultaneous_quantile(CURVES, np.ones(18)),
    "mean, bootstrap, labelled": lambda: mean_interval(
        torch.tensor(X), method="bootstrap", unit="text", level=0.5
    ),
    "icc, none": lambda: icc(np.array([[-1, 1], [0, 2], [1, 3]]), variable="JS"),
    "spearman, both constant": lambda: spearman(ONES, ONES, unit="pair"),
    "heads, one silent": lambda: select_heads(SILENT, per_layer=3),
    "heads": lambda: select_heads(HEADS, per_layer=2),
    "heads, clusters": lambda: select_heads(HEADS, [0, 0, 1, 1, 2, 2, 3, 3], per_layer=1, seed=1),
}  # fmt: skip


def plain(value: Any) -> Any:
    """As JSON holds it; numbers to 9 digits, so that a library's last bit changes nothing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict("list"))
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (bool, np.bool_, str)) or value is None:
        return value if not isinstance(value, np.bool_) else bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    number = float(value)
    return float(f"{number:.9g}") if math.isfinite(number) else str(number)


if __name__ == "__main__":
    records = {name: plain(case()) for name, case in CASES.items()}
    FILE.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
