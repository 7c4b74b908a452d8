"""What the published controls really were, from rows redrawn exactly as the source drew them (9.5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studies.attention_published import PUBLISHED_IDS
from studies.attention_records import Example
from studies.attention_redraw import published_draws
from studies.audit import Reading
from studies.audit_attention_records import Records

COMMON = (11, 12)  # the ids of comma and hyphen


@dataclass(frozen=True)
class Drawn:
    """The rows of one positive that the published run kept; `index` is its place among the positives."""

    index: int
    example: Example
    c1: tuple[int, ...]
    c2: tuple[int, ...]
    c3: tuple[int, ...]


def redrawn(records: Records, persona: str) -> tuple[Drawn, ...] | None:
    """The published draws of a persona, without the examples that C1 left out.

    None without its positives, and for a run of ours, whose control rows were drawn in another way.
    """
    held = records.positives.get(persona)
    if held is None or not held.positives or records.own_draws:
        return None
    found = published_draws(held)
    by_control = [found.of(name) for name in ("random_earlier", "late_position", "rare_token")]
    drawn = []
    for index, draws in enumerate(zip(*by_control, strict=True)):
        if not draws[0].skipped:
            rows = (tuple(row.position for row in draw.rows) for draw in draws)
            drawn.append(Drawn(index, held.positives[index], *rows))
    return tuple(drawn)


def c2_holds_emit(records: Records, persona: str) -> Reading | None:
    """In how many examples the rows of C2 contain the row that decided the marker (9.5)."""
    drawn = _pooled(records, persona)
    if not drawn:
        return None
    holds = sum(draw.example.row("emit") in draw.c2 for draw in drawn)
    return Reading(
        {"with the deciding row": holds, "examples": len(drawn)},
        corrected="C2 relative to the row that is read, never that row itself",
        naive="C2 is read as late positions before the marker; it averages the deciding row in",
    )


def c3_picks(records: Records, persona: str) -> Reading | None:
    """What the 'rare' tokens of C3 are: share of commas and hyphens, mean quantile of the id (9.5)."""
    picks = [(draw, row) for draw in _pooled(records, persona) or () for row in draw.c3]
    if not picks:
        return None
    ids = [draw.example.ids[row] for draw, row in picks]
    return Reading(
        {
            "ids 11 and 12": sum(i in COMMON for i in ids) / len(ids),
            "mean id quantile": float(np.mean([_quantile(draw.example, row) for draw, row in picks])),
            "picks": len(ids),
        },
        corrected="rare by corpus counts, or by descending id: a quantile near 1",
        naive="C3 is read as a control for rare tokens; it takes the lowest ids, the commonest tokens",
    )


def skipped(records: Records, persona: str) -> Reading | None:
    """Examples with too few rows for C1, which the published readout leaves out."""
    drawn = redrawn(records, persona)
    if drawn is None:
        return None
    n = len(records.positives[persona].positives)
    return Reading({"skipped": n - len(drawn), "examples": n})


def sample_rows(records: Records, _: str) -> Reading | None:
    """How many rows of the published sample table are those that the redraw gives."""
    table = records.samples
    drawn = redrawn(records, table.persona) if table is not None else None
    if table is None or drawn is None:
        return None
    rows = {d.index: (d.example.question, d.example.marker, d.c1, d.c2, d.c3) for d in drawn}
    alike = sum(rows.get(r.index) == (r.question, r.token, r.c1, r.c2, r.c3) for r in table.rows)
    return Reading({"rows": len(table.rows), "redrawn alike": alike}, note=table.persona)


def questions(records: Records, label: str, n: int) -> list[str] | None:
    """The question of each row of a condition's deltas; None where rows and examples cannot be matched."""
    held = records.examples(label)
    if held is None:
        return None
    if len(held.positives) == n:
        return [example.question for example in held.positives]
    drawn = redrawn(records, held.persona)
    return [d.example.question for d in drawn] if drawn is not None and len(drawn) == n else None


def _pooled(records: Records, persona: str) -> Sequence[Drawn] | None:
    """The draws of one persona, or of all of them."""
    if persona != "all":
        return redrawn(records, persona)
    return [draw for name in records.personas for draw in redrawn(records, name) or ()]


def _quantile(example: Example, row: int) -> float:
    """Share of the tokens that C3 chose from whose id is not above this one's: 1 is the highest id."""
    taken = {*PUBLISHED_IDS.marker, *PUBLISHED_IDS.structural}
    start, stop = example.prompt_len, example.row("token")
    ids = np.array([i for i in example.ids[start:stop] if i not in taken])
    return float((ids <= example.ids[row]).mean())
