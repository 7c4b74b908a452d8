"""Gates against controls: the base model (E), the rule-outs H4, H5 and C4, and the mid-run safety rail.

The source tested its rule-outs with the sign turned: C1's contrast minus the control's is the control minus
C1, which says nothing of the marker. Both tests are here, named; all are pure functions over contrasts.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import complete_rows, published_sem
from mechinterp.stats.clustered import clustered_mean
from mechinterp.wording import finite
from studies.gates import (
    SHORTEST,
    Definition,
    Gate,
    above_zero,
    by_layers,
    not_applicable,
    votes_of,
    within,
)

Window = tuple[int, int] | None
HYPOTHESES = {"C2": " (H4 late position)", "C3": " (H5 rare token)", "C4": " (end of answer)"}
SAFETY_RATIO = 2.0  # standard errors


def base_rule_out(
    trained: Float[np.ndarray, "example layer"],
    base: Float[np.ndarray, "example layer"] | None,
    window: Window,
    *,
    clusters: Sequence[Hashable] | None = None,
) -> Gate:
    """Gate E: training, not the text, raises the contrast, in three contiguous layers of the H1 window.

    Trained minus base on the same examples, its 95 % interval over clusters above zero; the base read the
    identical tokens. The source names this gate and implements none. Raises ValueError if the rows differ.
    """
    name = "E base rule-out"
    if base is None:
        return not_applicable(name, "ours", "the base model was not force-fed these examples")
    if window is None:
        return not_applicable(name, "ours", "no H1 window: no three contiguous layers pass A, B and C")
    if trained.shape != base.shape:
        raise ValueError(f"trained {trained.shape} and base {base.shape} must hold the same examples, layers")
    gate = above_zero(name, trained - base, clusters)
    if gate.per_layer is None:
        return gate
    votes = np.array(gate.per_layer) & within(window, trained.shape[1])
    what = f"trained above base, paired 95 % interval, within layers {window[0]}-{window[1]}"
    return by_layers(name, "ours", votes, what)


def rule_out_as_coded(
    delta_c1: Float[np.ndarray, "example layer"],
    delta_control: Float[np.ndarray, "example layer"] | None,
    window: Window,
    *,
    control: str,
) -> Gate:
    """The published flags: mean(delta_C1 - delta_Ck) - SEM > 0, that is, the control exceeds C1.

    C4 never reached the source's aggregator: with None the answer is not applicable, as its summary has it.
    """
    name = f"rule-out {control}{HYPOTHESES.get(control, '')}"
    if delta_control is None:
        return not_applicable(name, "published", f"no rows of {control}")
    difference = delta_c1 - delta_control
    complete = int(complete_rows(difference).sum())
    if complete < 3:
        return not_applicable(name, "published", f"{complete} complete examples; three are needed")
    what = f"{control} above C1 by one SEM; the marker is not in this difference"
    return _over_window(name, "published", _above_sem(difference), window, what)


def rule_out(
    delta_control: Float[np.ndarray, "example layer"] | None,
    window: Window,
    *,
    control: str,
    bar: Literal["sem", "interval"] = "interval",
    clusters: Sequence[Hashable] | None = None,
) -> Gate:
    """The marker row exceeds the control at every layer of the H1 window (methods 12.5).

    The bar is one bootstrap SEM, as the source meant it, or the lower end of the 95 % interval over clusters.
    The value is the share of the window's layers that pass.
    """
    name = f"rule-out {control}{HYPOTHESES.get(control, '')}"
    if delta_control is None:
        return not_applicable(name, "ours", f"no rows of {control}")
    rows = complete_rows(delta_control)
    if rows.sum() < 3:
        return not_applicable(name, "ours", f"{int(rows.sum())} complete examples; three are needed")
    if bar == "sem":
        what = f"marker above {control} by one SEM, {int(rows.sum())} examples"
        return _over_window(name, "ours", _above_sem(delta_control), window, what)
    gate = above_zero(name, delta_control, clusters)
    if gate.per_layer is None:
        return gate
    what = f"marker above {control} by its 95 % interval, {int(rows.sum())} examples"
    return _over_window(name, "ours", np.array(gate.per_layer), window, what)


def matched_by_question(
    marker: Float[np.ndarray, "example layer"],
    questions: Sequence[Hashable],
    control: Float[np.ndarray, "answer layer"],
    control_questions: Sequence[Hashable],
) -> Float[np.ndarray, "example layer"]:
    """Marker minus the mean control row of the same question (C4); NaN where that question has none.

    Examples of a question then share their control, so the question is the unit: pass the questions on as
    clusters.
    """
    means: dict[Hashable, np.ndarray] = {}
    for question in dict.fromkeys(control_questions):
        own = [place for place, asked in enumerate(control_questions) if asked == question]
        means[question] = control[own].mean(0)
    missing = np.full(marker.shape[1], np.nan)
    return np.stack([row - means.get(q, missing) for row, q in zip(marker, questions, strict=True)])


def safety_rail(delta: Float[np.ndarray, "example layer"], *, definition: Definition = "published") -> Gate:
    """May the run go on? A mean of two analytic standard errors in three contiguous layers (methods 9.6).

    Published, either sign counts, so a fall passes as well; ours asks for a rise. The value is the best
    window's smallest ratio.
    """
    name = "mid-run safety rail"
    ratio = signal_to_noise(delta)
    if not np.isfinite(ratio).any() or len(ratio) < SHORTEST:
        return not_applicable(name, definition, f"{len(delta)} examples of {len(ratio)} layers give no ratio")
    held = np.abs(ratio) if definition == "published" else ratio
    best = max(smallest for _, smallest in runs_of_three(held, above=-np.inf))
    side = "either sign" if definition == "published" else "a rise"
    reason = f"best three contiguous layers reach {best:.2f} standard errors ({side}, {len(delta)} examples)"
    verdict = "pass" if best >= SAFETY_RATIO else "fail"
    return Gate(name, definition, verdict, reason, finite(best), SAFETY_RATIO, votes_of(held >= SAFETY_RATIO))


def signal_to_noise(delta: Float[np.ndarray, "example layer"]) -> Float[np.ndarray, "layer"]:
    """Mean over its analytic standard error (ddof 1) of the complete rows, with its sign."""
    return clustered_mean(delta).t


def runs_of_three(
    ratio: Float[np.ndarray, "layer"], *, above: float = SAFETY_RATIO
) -> tuple[tuple[int, float], ...]:
    """First layer and smallest value of every three contiguous layers that all reach `above`."""
    smallest = np.lib.stride_tricks.sliding_window_view(ratio, SHORTEST).min(1)
    return tuple((start, float(least)) for start, least in enumerate(smallest) if least >= above)


def _above_sem(difference: Float[np.ndarray, "example layer"]) -> np.ndarray:
    rows = difference[complete_rows(difference)]
    return rows.mean(0) - published_sem(rows) > 0


def _over_window(name: str, definition: Definition, votes: np.ndarray, window: Window, what: str) -> Gate:
    """Pass iff every layer of the window does."""
    inside = within(window, len(votes))
    share = float(votes[inside].mean())
    reason = f"{int(votes.sum())} of {len(votes)} layers pass ({what})"
    verdict = "pass" if share == 1 else "fail"
    gate = Gate(name, definition, verdict, reason, share, 1.0, votes_of(votes))
    if window is None:
        return replace(gate, verdict="not applicable", reason=f"{reason}; no H1 window to judge them in")
    failing = np.flatnonzero(inside & ~votes).tolist()
    where = f"{int(votes[inside].sum())} of {int(inside.sum())} in layers {window[0]}-{window[1]}"
    return replace(gate, reason=f"{reason}; {where}" + (f", failing at {failing}" if failing else ""))
