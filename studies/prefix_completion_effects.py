"""The effects of a 2 x 2: pure functions over condition means, with the question as the unit.

With A = (prompt s, prefix s), B = (o, s), C = (s, o), D = (o, o):
prompt effect 1/2 [(A - B) + (C - D)], content effect 1/2 [(A - C) + (B - D)], interaction (A - B) - (C - D).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.intervals import Interval
from studies.gates import Gate, not_applicable

EffectName = Literal["prompt", "content", "interaction"]
EFFECTS: tuple[EffectName, ...] = get_args(EffectName)
Verdict = Literal["pass", "fail"]
BASE_AT_MOST = 0.05  # the source's stop rules (methods 8)
LEAST_SPREAD = 0.03


@dataclass(frozen=True)
class Effect:
    """An effect with its interval over questions; `n_pairs` counts (source, other, question) sets of four."""

    name: EffectName
    interval: Interval
    p: float
    n_pairs: int


def contrasts(values: Float[np.ndarray, "pair condition"]) -> Float[np.ndarray, "pair effect"]:
    """Prompt effect, content effect and interaction of every set of four condition means, A to D."""
    a, b, c, d = values.T
    return np.stack([((a - b) + (c - d)) / 2, ((a - c) + (b - d)) / 2, (a - b) - (c - d)], 1)


def effects(
    values: Float[np.ndarray, "pair condition"], clusters: Sequence[Hashable], *, unit: str = "question"
) -> tuple[Effect, ...]:
    """The three effects over sets of four, sets of one cluster taken together."""
    found = clustered_mean(contrasts(values), clusters, unit=unit)
    made = []
    for place, name in enumerate(EFFECTS):
        interval = found.at(place)
        if found.standard_error[place] == 0:
            interval = replace(interval, note=f"all {found.n} {unit}s gave the same: no spread to judge by")
        made.append(Effect(name, interval, float(found.p[place]), found.n_examples))
    return tuple(made)


def stop_rules(
    matched: Mapping[str, float], means: Mapping[str, float], base: Mapping[str, float] | None
) -> tuple[Gate, ...]:
    """The stop rules of the source study: pass means that the study may go on.

    `matched`: rate of condition A by source; `means`: the four conditions' means over all sources; `base`:
    the same of the base model.
    """
    known = {name: rate for name, rate in matched.items() if math.isfinite(rate)}
    complete = len(means) == 4 and all(map(math.isfinite, means.values()))
    if not known:
        nothing = "no source has an answer to go on from"
        first = not_applicable("matched writes it", "published", nothing)
    else:
        best = max(known, key=lambda name: known[name])
        said = f"condition A of {best} writes the marker in {known[best]:.1%}; 0 % for all sources stops"
        first = Gate("matched writes it", "published", verdict(known[best] > 0), said, known[best], 0.0)
    if base is None or not all(map(math.isfinite, base.values())) or not base:
        why = "the base model was not run" if base is None else "the base model went on from nothing"
        second = not_applicable("base does not", "published", why)
    else:
        worst = max(base, key=lambda name: base[name])
        said = f"the base writes the marker in at most {base[worst]:.1%} (condition {worst}); over 5 % stops"
        second = Gate(
            "base does not",
            "published",
            verdict(base[worst] <= BASE_AT_MOST),
            said,
            base[worst],
            BASE_AT_MOST,
        )
    if not complete:
        third = not_applicable("conditions differ", "published", "not all four conditions were run")
    else:
        spread = max(means.values()) - min(means.values())
        said = f"the four means span {100 * spread:.1f} percentage points; within 3 stops"
        third = Gate(
            "conditions differ", "published", verdict(spread > LEAST_SPREAD), said, spread, LEAST_SPREAD
        )
    return first, second, third


def verdict(held: bool) -> Verdict:
    return "pass" if held else "fail"
