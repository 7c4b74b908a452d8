"""Which of the explanations that the attention study left open hold: one figure each, with its interval.

Pure functions of a finished text set. Each names the measure and the line that it must pass; the line was
drawn before any of the measures was taken. Questions are the units; below three of them nothing is decided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import resampled_means
from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.intervals import bootstrap_tails
from patching.grid import PatchGrid
from studies.marker_locus_result import UNIT, Locus

Word = Literal["holds", "does not hold", "undecided", "not applicable"]
EARLIER = ("emit-1", "emit-2", "last content")
SUBSTANTIAL = 0.1  # of the distance between base and trained: less than this carries no explanation
BOOTSTRAP = "bootstrap over questions"
HALF = 0.5  # of the distance: the layer from which on the state at emit brings more than half


@dataclass(frozen=True)
class Verdict:
    """One explanation: what was measured, its interval over questions, and what follows."""

    name: str
    verdict: Word
    measure: str
    estimate: float
    low: float
    high: float
    n: int
    reason: str
    test: str = "mean over questions, CR2 and Student t"


def verdicts(locus: Locus) -> tuple[Verdict, ...]:
    """Every explanation, in the order in which the attention study names them."""
    return (
        layer_shift(locus),
        earlier_timesteps(locus),
        mlp_route(locus),
        *seen_or_look(locus),
        system_region(locus),
    )


def layer_shift(locus: Locus) -> Verdict:
    """Does the marker's layer lie apart from the layer where attention changed most?

    The layer from which on the state at emit recovers half, minus the peak of trained minus base attention to
    the system region, both of the mean curve, bootstrapped over questions together. Where layers of the map
    were left out, half may have been passed in any of those before, and the interval reaches down to them.
    """
    name, measure = (
        "layer shift",
        "layer of half recovery at emit minus layer of the largest attention change",
    )
    recovered, cases = _complete(_column(locus.into_base, "emit"))
    attention = (locus.swap.fraction[:, 0] - locus.swap.fraction[:, 3]).double().numpy()[cases]
    layers = np.array([part[0] for part in locus.into_base.layers])
    clusters = _clusters(locus.into_base, cases)
    if len(set(clusters)) < 3:
        return _too_few(name, measure, len(set(clusters)))
    found = _shift(recovered.mean(0), attention.mean(0), layers)
    both = np.concatenate([recovered, attention], 1)
    drawn = resampled_means(both, clusters, seed=locus.seed)
    shifts = np.array([_shift(row[: len(layers)], row[len(layers) :], layers) for row in drawn])
    n = len(set(clusters))
    if math.isnan(found) or np.isnan(shifts).mean() > 0.05:
        nowhere = "half is not recovered at any layer"
        return Verdict(name, "undecided", measure, found, math.nan, math.nan, n, nowhere, BOOTSTRAP)
    low, high = np.quantile(shifts[~np.isnan(shifts)], bootstrap_tails(n, 0.95))
    low -= np.diff(layers).max(initial=1) - 1
    word: Word = "holds" if low > 0 or high < 0 else "undecided"
    reason = "the two layers lie apart" if word == "holds" else "the interval holds 0"
    return Verdict(name, word, measure, found, float(low), float(high), n, reason, BOOTSTRAP)


def _shift(
    recovered: Float[np.ndarray, "cut"], attention: Float[np.ndarray, "layer"], layers: np.ndarray
) -> float:
    above = np.nonzero(recovered >= HALF)[0]
    return float(layers[above[0]] - attention.argmax()) if len(above) else math.nan


def earlier_timesteps(locus: Locus) -> Verdict:
    """Do states of earlier rows of the answer bring the marker?

    The best single layer of each earlier row is chosen on half of the questions and read on the other.
    """
    name, measure = (
        "earlier timesteps",
        "recovered by the best earlier row and layer, read on other questions",
    )
    grid = locus.into_base
    columns = [grid.columns.index(place) for place in EARLIER if place in grid.columns]
    values = grid.recovered().double().numpy()[:, :, columns].reshape(len(grid.cases), -1)
    kept, cases = _complete(values)
    clusters = _clusters(grid, cases)
    held_out = _chosen_on_the_other_half(kept, clusters)
    if held_out is None:
        return _too_few(name, measure, len(set(clusters)))
    side = f"{SUBSTANTIAL:g} of the distance from base to trained"
    return _judged(
        name, measure, held_out, clusters, line=SUBSTANTIAL, above=("holds", f"above {side}"),
        below=("does not hold", f"below {side}"), undecided=f"on both sides of {side}",
    )  # fmt: skip


def mlp_route(locus: Locus) -> Verdict:
    """Do MLPs at emit write more of the marker's change than attention does, directly?"""
    change = locus.attribution.change.values
    return _judged(
        "MLP rather than attention route",
        "direct contribution to the change of marker minus competitor: all MLPs minus all attention",
        (change.mlp_out.sum(1) - change.attn_out.sum(1)).double().numpy(),
        locus.questions,
        above=("holds", "MLPs write more than attention"),
        below=("does not hold", "attention writes more than MLPs"),
    )


def seen_or_look(locus: Locus) -> tuple[Verdict, Verdict]:
    """Is attention at emit changed through the stream that it sees, and through its own weights?"""
    moved: tuple[Word, str] = ("holds", "the effect differs from 0")
    effects = locus.swap.effects()

    def judged(name: str, effect: str) -> Verdict:
        return _judged(
            f"attention changed through {name}",
            f"main effect of the {effect} on emit's attention to {locus.swap.region}, mean over layers",
            effects[effect].mean(1),
            locus.questions,
            above=moved,
            below=moved,
        )

    return judged("changed stream", "stream"), judged("own attention weights", "weights")


def system_region(locus: Locus) -> Verdict:
    """Does the marker need emit's look at the system prompt? Against regions of equal size, all layers."""
    grid = locus.knocked_trained
    every = max(range(len(grid.layers)), key=lambda i: len(grid.layers[i]))
    placebo = np.mean([grid.effects(null=null).double().numpy()[:, every, 0] for null in grid.nulls], axis=0)
    return _judged(
        "the look at the system prompt is needed",
        "change of log p of the marker without emit's look at it, minus the placebo regions' mean",
        grid.effects().double().numpy()[:, every, 0] - placebo,
        grid.cases if grid.clusters is None else grid.clusters,
        above=("does not hold", "without it the marker loses less than without as many other tokens"),
        below=("holds", "without it the marker loses more than without as many other tokens"),
    )


def replicated(loci: Sequence[Locus], name: str) -> str:
    """Whether one explanation has the same sign in every run and seed; with one of them it is not asked."""
    found = [one.estimate for locus in loci for one in verdicts(locus) if one.name == name]
    if len(found) < 2:
        return "one run and seed: not replicated"
    same = all(x > 0 for x in found) or all(x < 0 for x in found)
    return f"same sign in {'all' if same else 'not all'} of {len(found)} runs and seeds"


def _judged(
    name: str,
    measure: str,
    values: Float[np.ndarray, "case"],
    clusters: Sequence[str],
    *,
    above: tuple[Word, str],
    below: tuple[Word, str],
    line: float = 0.0,
    undecided: str = "the interval holds 0",
) -> Verdict:
    """What follows from a mean over questions whose interval lies above the line, below it, or across it."""
    found = clustered_mean(values[:, None], clusters, unit=UNIT)
    if found.n < 3:
        return _too_few(name, measure, found.n)
    estimate, low, high = (float(x[0]) for x in (found.estimate, found.low, found.high))
    word, reason = above if low > line else below if high < line else ("undecided", undecided)
    return Verdict(name, word, measure, estimate, low, high, found.n, reason)


def _chosen_on_the_other_half(
    values: Float[np.ndarray, "case cell"], clusters: Sequence[str]
) -> Float[np.ndarray, "case"] | None:
    """Each case at the cell that was best on the mean of the other half of the clusters; None below four."""
    names = list(dict.fromkeys(clusters))
    if len(names) < 4:
        return None
    first = np.array([names.index(cluster) % 2 == 0 for cluster in clusters])
    found = np.empty(len(values))
    for half in (first, ~first):
        found[half] = values[half, values[~half].mean(0).argmax()]
    return found


def _column(grid: PatchGrid, place: str) -> Float[np.ndarray, "case layer"]:
    return grid.recovered().double().numpy()[:, :, grid.columns.index(place)]


def _complete(values: Float[np.ndarray, "case *axes"]) -> tuple[np.ndarray, np.ndarray]:
    kept = np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    return values[kept], kept


def _clusters(grid: PatchGrid, kept: np.ndarray) -> list[str]:
    labels = grid.cases if grid.clusters is None else grid.clusters
    return [label for label, keep in zip(labels, kept, strict=True) if keep]


def _too_few(name: str, measure: str, n: int) -> Verdict:
    nothing = math.nan
    return Verdict(name, "undecided", measure, nothing, nothing, nothing, n, f"{n} questions are too few")
