"""Which texts the persistence report shows: extremes, a typical one, a floor and a ceiling."""

from collections.abc import Mapping, Sequence
from typing import Any

from studies.persistence_result import Outcome


def samples(outcomes: Sequence[Outcome], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steered runs that persist most, least and typically, over all conditions, then a floor and a
    ceiling.
    """
    ranked = _ranked(outcomes)
    chosen = {}
    if ranked:
        chosen = {
            "highest persistence": ranked[-1],
            "median persistence": ranked[len(ranked) // 2],
            "lowest persistence": ranked[0],
        }
    found = [
        _sample(reason, o, results[o.condition.cell], "steered", i, value)
        for reason, (value, o, i) in chosen.items()
    ]
    first = outcomes[0]
    runs = results[first.condition.reference]
    found.append(_sample("unsteered floor, first run", first, runs, "floor", 0, None))
    found.append(
        _sample("ceiling, told the role, first run", first, runs, f"ceiling:{first.condition.role}", 0, None)
    )
    return found


def _ranked(outcomes: Sequence[Outcome]) -> list[tuple[float, Outcome, int]]:
    pairs = [
        (float(v), o, i) for o in outcomes for i, v in enumerate(o.persistence["steered"]) if not v.isnan()
    ]
    return sorted(pairs, key=lambda pair: pair[0])


def _sample(
    reason: str, outcome: Outcome, runs: Any, arm: str, index: int, value: float | None
) -> dict[str, Any]:
    row = runs.release.rows(arm)[index]
    return {
        "reason": reason,
        "arm": arm,
        "condition": str(outcome.condition),
        "role": outcome.condition.role,
        "seed": runs.release.seeds[row],
        "persistence": value,
        "steered_text": runs.steered_text[row],
        "free_text": runs.free_text[row],
    }
