"""The control rows of one persona, drawn and kept: which rows, which ids, what was skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from studies.attention_controls import (
    Record,
    Row,
    child,
    end_of_answer,
    late_before_emit,
    late_position,
    random_earlier,
    rare_token,
    sentence_end,
)
from studies.attention_records import Example, Examples, Query
from studies.attention_regions import TokenFacts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LABELS = {
    "random_earlier": "C1 random earlier",
    "late_position": "C2 late position",
    "late_before_emit": "C2 late position, without emit",
    "rare_token": "C3 rare token",
    "end_of_answer": "C4 end of answer",
    "sentence_end": "C5 sentence end",
}
NONE = {
    "random_earlier": "fewer than five content rows between its start and its marker",
    "late_position": "no content row among the three before",
    "late_before_emit": "no content row among those before emit",
    "rare_token": "no content row before the marker",
    "end_of_answer": "no finished negative answer to its question",
    "sentence_end": "no sentence end at its depth in another positive answer",
}


@dataclass(frozen=True)
class Draw:
    """One control of one example: its rows and the ids there, or why there are none."""

    control: str
    example: int
    rows: tuple[Row, ...]
    ids: tuple[int, ...]
    skipped: str = ""


@dataclass(frozen=True, eq=False)
class Controls(Result):
    """The control rows of one persona's positives. The table has one line a control and example."""

    persona: str
    definition: Literal["ours", "published"]
    query: Query
    seed: int
    markers: tuple[int, ...]  # the query row of each positive
    draws: tuple[Draw, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(draw.control for draw in self.draws))

    def of(self, control: str) -> tuple[Draw, ...]:
        """The draws of one control, one an example, in order. Raises ValueError with the names there are."""
        found = tuple(draw for draw in self.draws if draw.control == control)
        if not found:
            raise ValueError(f"there is no control {control!r}; there are {', '.join(self.names)}")
        return found

    def skipped(self) -> dict[str, dict[str, int]]:
        """How many examples each control leaves out, by reason."""
        return {name: dict(Counter(d.skipped for d in self.of(name) if d.skipped)) for name in self.names}

    def needed(self) -> dict[tuple[str, int], tuple[int, ...]]:
        """The rows to read of each (source, example), ascending, the query rows among them."""
        wanted: dict[tuple[str, int], set[int]] = {}
        for index, position in enumerate(self.markers):
            wanted.setdefault(("positive", index), set()).add(position)
        for row in (row for draw in self.draws for row in draw.rows):
            wanted.setdefault((row.source, row.example), set()).add(row.position)
        return {key: tuple(sorted(positions)) for key, positions in wanted.items()}

    def contrast(
        self, control: str, value: Callable[[Row], Float[np.ndarray, "*shape"]]
    ) -> Float[np.ndarray, "example *shape"]:
        """value(query row) - mean of value over the control's rows; NaN where the example is skipped."""
        found = []
        for draw, position in zip(self.of(control), self.markers, strict=True):
            own = np.asarray(value(Row("positive", draw.example, position)), dtype=float)
            rows = [np.asarray(value(row), dtype=float) for row in draw.rows]
            found.append(own - np.mean(rows, axis=0) if rows else np.full_like(own, np.nan))
        return np.stack(found)

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(
            {
                "control": draw.control,
                "example": draw.example,
                "query": self.markers[draw.example],
                "n": len(draw.rows),
                "rows": " ".join(f"{row.source[0]}{row.example}:{row.position}" for row in draw.rows),
                "ids": " ".join(map(str, draw.ids)),
                "skipped": draw.skipped,
            }
            for draw in self.draws
        )

    def figure(self) -> go.Figure:
        """How many examples have each control, and how many are skipped."""
        import plotly.graph_objects as go

        from mechinterp.theme import caption, colour, finish, label

        figure = go.Figure()
        used = [sum(not draw.skipped for draw in self.of(name)) for name in self.names]
        left = [len(self.of(name)) - n for name, n in zip(self.names, used, strict=True)]
        shown = [label(LABELS[name]) for name in self.names]
        for place, (name, counted) in enumerate((("used", used), ("skipped", left))):
            figure.add_bar(x=shown, y=counted, name=name, marker_color=colour(place))
        n, more = len(self.markers), [f"query row: {self.query}", f"definition: {self.definition}"]
        said = caption(self.persona, n=n, unit="positive", seeds=[self.seed], band="none", more=more)
        figure.update_layout(barmode="stack")
        finish(figure, "Control rows", said, [], x_title="control", y_title="examples")
        return figure


def draw_controls(
    examples: Examples,
    facts: Callable[[Example], TokenFacts],
    *,
    query: Query = "emit",
    seed: int = 42,
    counts: Mapping[int, int] | None = None,
) -> Controls:
    """C1 to C5 of every positive, at its `query` row.

    `facts` says what an example's ids are: `facts_from_ids`, or `facts_from_tokenizer` with its tokenizer.
    Raises ValueError where there are no positives.
    """
    if not examples.positives:
        raise ValueError(f"{examples.persona} has no positive example, so there is no row to control")
    records = [Record(i, e, query, facts(e)) for i, e in enumerate(examples.positives)]
    controls: dict[str, Callable[[Record, np.random.Generator], tuple[Row, ...]]] = {
        "random_earlier": random_earlier,
        "late_position": late_position,
        "rare_token": lambda record, own: rare_token(record, own, counts=counts),
        "end_of_answer": lambda record, own: end_of_answer(record, own, negatives=examples.negatives),
        "sentence_end": lambda record, own: sentence_end(record, own, others=records),
    }
    if query == "token":
        controls["late_before_emit"] = late_before_emit
    draws = [
        draw_of(name, record.index, pick(record, child(seed, name, record.example)), examples)
        for name, pick in controls.items()
        for record in records
    ]
    markers = tuple(record.row for record in records)
    return Controls(examples.persona, "ours", query, seed, markers, tuple(draws))


def draw_of(control: str, index: int, rows: tuple[Row, ...], examples: Examples, why: str = "") -> Draw:
    """The rows with the ids at them; without rows, with the reason."""
    found = {"positive": examples.positives, "negative": examples.negatives}
    ids = tuple(found[row.source][row.example].ids[row.position] for row in rows)
    return Draw(control, index, rows, ids, "" if rows else why or NONE[control])
