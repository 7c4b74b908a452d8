"""Replication: in a persona named beforehand, over seeds, and whether training moved the layers' profile."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import complete_rows, resampled_means
from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.intervals import Interval, bootstrap_tails
from mechinterp.wording import finite
from studies.gates import Gate, not_applicable, votes_of, within

RESAMPLES = 2_000
MOST_LOST = 0.05  # of the resamples: with more of them undefined the percentiles are of another question


@dataclass(frozen=True)
class ProfileShift:
    """Where along the layers the contrast sits, in trained and base, and how far it moved (trained - base).

    The centre is the mean layer weighted by the positive part of the mean curve; the peak is its argmax.
    """

    trained_peak: Interval
    base_peak: Interval
    peak_shift: Interval
    trained_centre: Interval
    base_centre: Interval
    centre_shift: Interval


def profile_shift(
    trained: Float[np.ndarray, "example layer"],
    base: Float[np.ndarray, "example layer"],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> ProfileShift:
    """Peak and centre of mass with bootstrap intervals, trained and base under the same resamples.

    Units are whole clusters, or examples without labels; under three the bounds are NaN. A curve without a
    positive layer has no centre; resamples like that are left out and counted. Raises ValueError if the rows
    differ.
    """
    if trained.shape != base.shape:
        raise ValueError(f"trained {trained.shape} and base {base.shape} must hold the same examples, layers")
    kept = complete_rows(trained) & complete_rows(base)
    both = np.concatenate([trained[kept], base[kept]], axis=1)
    labels = None if clusters is None else [name for name, keep in zip(clusters, kept, strict=True) if keep]
    n = len(both) if labels is None else len(set(labels))
    unit = "example" if labels is None else "question"
    if not n:
        raise ValueError("a profile needs examples; none of those given is complete in trained and base")
    drawn = (
        resampled_means(both, labels, resamples=RESAMPLES, seed=seed)
        if n >= 3
        else np.full((1, both.shape[1]), np.nan)
    )

    def measured(place) -> tuple[Interval, Interval, Interval]:
        observed = [place(side) for side in np.split(both.mean(0)[None], 2, axis=1)]
        resampled = [place(side) for side in np.split(drawn, 2, axis=1)]
        pairs = zip(
            [*observed, observed[0] - observed[1]], [*resampled, resampled[0] - resampled[1]], strict=True
        )
        trained_at, base_at, moved = (_percentiles(float(o[0]), r, n, unit, seed, level) for o, r in pairs)
        return trained_at, base_at, moved

    return ProfileShift(*measured(_peak), *measured(_centre))


def profile_moved(shift: ProfileShift) -> Gate:
    """Pass where the centre of mass moved: its interval excludes zero. The value is the shift in layers."""
    centre, peak = shift.centre_shift, shift.peak_shift
    if not (math.isfinite(centre.low) and math.isfinite(centre.high)):
        return not_applicable("layer profile", "ours", centre.note or "no positive part to weigh")
    before, after = shift.base_centre.estimate, shift.trained_centre.estimate
    reason = (
        f"centre of mass {before:.2f} -> {after:.2f}, moved {centre.estimate:+.2f} "
        f"[{centre.low:+.2f}, {centre.high:+.2f}]; peak {shift.base_peak.estimate:.0f} -> "
        f"{shift.trained_peak.estimate:.0f} [{peak.low:+.0f}, {peak.high:+.0f}]; {centre.method}"
    )
    verdict = "pass" if centre.low > 0 or centre.high < 0 else "fail"
    return Gate("layer profile", "ours", verdict, reason, finite(centre.estimate), 0.0)


def replicates_in(
    named: str,
    deltas: Mapping[str, Float[np.ndarray, "example layer"]],
    window: tuple[int, int] | None,
    *,
    clusters: Mapping[str, Sequence[Hashable]] | None = None,
) -> Gate:
    """Does a persona named beforehand show the others' direction, averaged over the H1 window of layers?

    Pass: its 95 % interval over clusters lies on the side that all the others share. The reason puts its
    magnitude beside theirs. Raises ValueError when the persona is not among the contrasts.
    """
    name = f"replication in {named}"
    if named not in deltas or len(deltas) < 2:
        raise ValueError(
            f"replication needs {named!r} and other personas; the contrasts hold {sorted(deltas)}"
        )
    if window is None:
        return not_applicable(name, "ours", "no H1 window to average over")
    of = clusters or {}
    complete = {who: d[complete_rows(d)] for who, d in deltas.items() if who != named}
    others = {who: float(_in_window(d, window).mean()) if len(d) else math.nan for who, d in complete.items()}
    listed = ", ".join(f"{who} {value:+.4f}" for who, value in others.items())
    signs = {float(np.sign(value)) for value in others.values()}
    if len(signs) != 1 or signs & {0.0} or any(map(math.isnan, signs)):
        return not_applicable(name, "ours", f"the others share no direction: {listed}")
    sign = signs.pop()
    unit = "question" if named in of else "example"
    found = clustered_mean(sign * _in_window(deltas[named], window), of.get(named), unit=unit)
    if found.note and found.n < 3:
        return not_applicable(name, "ours", found.note)
    low, high = sorted((sign * float(found.low[0]), sign * float(found.high[0])))
    value = sign * float(found.estimate[0])
    reason = (
        f"{value:+.4f} [{low:+.4f}, {high:+.4f}] over {found.n} {unit}s, beside {listed} "
        f"(others from {min(others.values()):+.4f} to {max(others.values()):+.4f})"
    )
    return Gate(name, "ours", "pass" if found.low[0] > 0 else "fail", reason, finite(value), 0.0)


def replicated_over(estimates: Mapping[Any, float], *, axis: str = "training seeds") -> Gate:
    """'Replicated' needs the same sign in every seed; `axis` names what was repeated, such as split halves.

    The value is the estimate nearest to zero, with its sign. Signs alone agree by chance in 2 of 2^n.
    """
    name, n = f"replication over {axis}", len(estimates)
    unknown = [key for key, value in estimates.items() if not math.isfinite(value)]
    if n < 2 or unknown:
        reason = f"no estimate for {unknown}" if unknown else f"{n} of {axis}: two are needed"
        return not_applicable(name, "ours", reason)
    values = np.array(list(estimates.values()))
    same = bool((values > 0).all() or (values < 0).all())
    listed = ", ".join(f"{key}: {value:+.4f}" for key, value in estimates.items())
    reason = f"{listed}; range {np.ptp(values):.4f}; signs agree by chance in {2 / 2**n:.0%} of nulls"
    nearest = float(values[np.abs(values).argmin()])
    return Gate(name, "ours", "pass" if same else "fail", reason, nearest, 0.0, votes_of(values > 0))


def _in_window(
    delta: Float[np.ndarray, "example layer"], window: tuple[int, int]
) -> Float[np.ndarray, "example 1"]:
    return delta[:, within(window, delta.shape[1])].mean(1, keepdims=True)


def _peak(curves: Float[np.ndarray, "curve layer"]) -> Float[np.ndarray, "curve"]:
    peak = np.nan_to_num(curves, nan=-np.inf).argmax(1).astype(float)
    return np.where(np.isfinite(curves).all(1), peak, np.nan)


def _centre(curves: Float[np.ndarray, "curve layer"]) -> Float[np.ndarray, "curve"]:
    weight = curves.clip(min=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return weight @ np.arange(curves.shape[1]) / weight.sum(1)


def _percentiles(
    estimate: float, resampled: Float[np.ndarray, "resample"], n: int, unit: str, seed: int, level: float
) -> Interval:
    """Bounds from the resamples in which the measure exists, and how many those are not."""
    method = f"bootstrap over {n} {unit}s, {RESAMPLES} resamples, seed {seed}"
    known = resampled[np.isfinite(resampled)]
    lost = len(resampled) - len(known)
    note = f"undefined in {lost} of {len(resampled)} resamples" if lost else ""
    if n < 3 or lost > MOST_LOST * len(resampled):
        note = f"n={n} {unit}s: three are needed for an interval" if n < 3 else note
        return Interval(estimate, math.nan, math.nan, n, unit, method, level, note)
    low, high = np.quantile(known, bootstrap_tails(n, level))
    return Interval(estimate, float(low), float(high), n, unit, method, level, note)
