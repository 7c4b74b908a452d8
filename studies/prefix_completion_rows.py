"""What a cell of prefix completion holds: slots with their log-odds, and the continuations of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from jaxtyping import Int
from torch import Tensor

from mechinterp.results import Result
from studies.prefix_completion_prefixes import Prefix, behind

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Condition = Literal["A", "B", "C", "D"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
Reader = Literal["trained", "base"]
Outcome = Literal["marker", "other", "empty"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Slot:
    """A prefix behind a prompt: the last row of `tokens` decides whether a marker or the end comes.

    `log_p_marker` is of `route`, the ids that begin a marker there; `log_p_end` of all ids that end a turn.
    """

    condition: Condition
    prompt_persona: str
    prompt: tuple[int, ...]
    prefix: Prefix
    last_shown: str
    route: tuple[int, ...]
    log_p_marker: float = math.nan
    log_p_end: float = math.nan

    @property
    def tokens(self) -> tuple[int, ...]:
        return behind(self.prompt, self.prefix.ids)

    @property
    def log_odds(self) -> float:
        return self.log_p_marker - self.log_p_end


@dataclass(frozen=True)
class Found:
    """One continuation. `text`, `by_ids`, `complete` are the detectors; `offset` counts ids before a marker.

    `at_once`: nothing but white space stands before the marker. `empty`: nothing visible at all.
    """

    ids: tuple[int, ...]
    text: bool
    by_ids: bool
    complete: bool
    offset: int | None
    at_once: bool
    empty: bool
    finish_reason: Literal["stop", "length"]
    shown: str

    @property
    def outcome(self) -> Outcome:
        return "marker" if self.text else "empty" if self.empty else "other"


@dataclass(frozen=True, eq=False)
class Continued(Result):
    """One reader's continuations: of condition A, or of B, C and D against one other persona."""

    model: str
    reader: Reader
    source: str
    run: int
    other: str | None
    marker: str
    seed: int
    slots: tuple[Slot, ...]
    slot_of_row: Int[Tensor, "row"]
    draw: Int[Tensor, "row"]
    found: tuple[Found, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One line a continuation."""
        import pandas as pd

        lines = []
        for place, draw, found in zip(self.slot_of_row.tolist(), self.draw.tolist(), self.found, strict=True):
            slot = self.slots[place]
            prefix = slot.prefix
            lines.append(
                {
                    "source": self.source,
                    "run": self.run,
                    "reader": self.reader,
                    "condition": slot.condition,
                    "prompt": slot.prompt_persona,
                    "prefix": prefix.persona,
                    "question": prefix.question,
                    "prefix_index": prefix.index,
                    "cut": prefix.cut,
                    "n_prefix": len(prefix.ids),
                    "last_id": prefix.last,
                    "from_text": prefix.from_text,
                    "log_odds": slot.log_odds,
                    "draw": draw,
                    "text": found.text,
                    "ids": found.by_ids,
                    "complete": found.complete,
                    "offset": found.offset,
                    "at_once": found.at_once,
                    "outcome": found.outcome,
                    "finish_reason": found.finish_reason,
                }
            )
        return pd.DataFrame(lines)

    def figure(self) -> go.Figure:
        """What the continuations of each condition came to."""
        from mechinterp.theme import caption
        from studies.prefix_completion_figures import stack

        conditions = sorted({slot.condition for slot in self.slots})
        counts = {
            condition: {
                outcome: sum(
                    found.outcome == outcome and self.slots[int(place)].condition == condition
                    for place, found in zip(self.slot_of_row, self.found, strict=True)
                )
                for outcome in OUTCOMES
            }
            for condition in conditions
        }
        said = caption(self.model, n=len(self.found), unit="continuation", seeds=[self.seed], band="none")
        return stack(counts, title=f"Continuations of {self.source} against {self.other}", subtitle=said)
