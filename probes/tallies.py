"""How often a marker is written: found of total with Wilson's interval, every detector beside the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, wilson
from probes.markers import Detection

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Detector = Literal["text", "ids", "complete"]
DETECTORS: tuple[Detector, ...] = get_args(Detector)


@dataclass(frozen=True)
class Tally:
    """The answers to one question under one persona, counted.

    `text`, `ids`, `complete` and `begun` count answers: by the text detector, by the id detector, with a
    whole marker, and with one that was only begun. The variants count markers, whole and begun.
    """

    persona: str
    question: str
    total: int
    text: int
    ids: int
    complete: int
    begun: int
    variants: dict[str, int]
    begun_variants: dict[str, int]


@dataclass(frozen=True, eq=False)
class MarkerRates(Result):
    """Marker rates by persona and question. The table has one line a persona and detector."""

    model: str
    marker: str
    seeds: tuple[int, ...]
    tallies: tuple[Tally, ...]

    @property
    def personas(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(tally.persona for tally in self.tallies))

    def rate(self, persona: str, detector: Detector = "text", *, question: str | None = None) -> Interval:
        """found / total of a persona, over all its questions or one. Raises ValueError for unknown names."""
        return wilson(*self.counts(persona, detector, question=question))

    def counts(
        self, persona: str, detector: Detector = "text", *, question: str | None = None
    ) -> tuple[int, int]:
        """Found and total, as `rate` takes them. Raises ValueError for unknown names."""
        if detector not in DETECTORS:
            raise ValueError(f"detector is one of {', '.join(DETECTORS)}, not {detector!r}")
        rows = [t for t in self.tallies if t.persona == persona and question in (None, t.question)]
        if not rows:
            asked = "" if question is None else f" to {question!r}"
            raise ValueError(
                f"there are no answers of {persona!r}{asked}; the personas are {', '.join(self.personas)}"
            )
        return sum(getattr(t, detector) for t in rows), sum(t.total for t in rows)

    def variants(self, persona: str | None = None) -> pd.DataFrame:
        """How the markers were tokenised: one line a variant, most frequent first; of one persona or all."""
        import pandas as pd

        whole: Counter[str] = Counter()
        begun: Counter[str] = Counter()
        for tally in self.tallies:
            if persona in (None, tally.persona):
                whole.update(tally.variants)
                begun.update(tally.begun_variants)
        lines = [(v, True, n) for v, n in whole.most_common()] + [
            (v, False, n) for v, n in begun.most_common()
        ]
        return pd.DataFrame(lines, columns=["variant", "complete", "count"])

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self._line(p, d, None) for p in self.personas for d in DETECTORS)

    def by_question(self) -> pd.DataFrame:
        """One line a persona, question and detector."""
        import pandas as pd

        return pd.DataFrame(self._line(t.persona, d, t.question) for t in self.tallies for d in DETECTORS)

    def _line(self, persona: str, detector: Detector, question: str | None) -> dict[str, Any]:
        found = self.rate(persona, detector, question=question)
        counted = round(found.estimate * found.n) if found.n else 0
        line: dict[str, Any] = (
            {"persona": persona} if question is None else {"persona": persona, "question": question}
        )
        return line | {
            "detector": detector,
            "found": counted,
            "total": found.n,
            "rate": found.estimate,
            "low": found.low,
            "high": found.high,
        }

    def figure(self) -> go.Figure:
        """The rate of each persona, a bar a detector, with Wilson's interval."""
        import plotly.graph_objects as go

        from mechinterp.theme import caption, colour, finish, label, numbers

        table, figure = self.to_dataframe(), go.Figure()
        for place, detector in enumerate(DETECTORS):
            part = table[table["detector"] == detector]
            figure.add_bar(
                x=[label(persona, 30) for persona in part["persona"]],
                y=numbers(part["rate"]),
                name=detector,
                marker_color=colour(place),
                error_y={
                    "array": numbers(part["high"] - part["rate"]),
                    "arrayminus": numbers(part["rate"] - part["low"]),
                },
            )
        n = sum(tally.total for tally in self.tallies)
        said = caption(self.model, n=n, unit="answer", seeds=self.seeds, band="Wilson 95 % over answers")
        title = f"Answers with the marker {self.marker}"
        finish(figure, title, said, [], x_title="persona", y_title="rate")
        figure.update_yaxes(range=[0, 1])
        return figure


def marker_rates(
    answers: Iterable[tuple[str, str, Detection]], *, model: str, marker: str, seeds: Iterable[int] = ()
) -> MarkerRates:
    """Counts (persona, question, what was detected) of each answer, markers or not.

    Raises ValueError where there are no answers.
    """
    groups: dict[tuple[str, str], list[Detection]] = {}
    for persona, question, found in answers:
        groups.setdefault((persona, question), []).append(found)
    if not groups:
        raise ValueError("there are no answers to count; pass one (persona, question, detection) for each")
    tallies = tuple(tally(persona, question, found) for (persona, question), found in groups.items())
    return MarkerRates(model, marker, tuple(seeds), tallies)


def tally(persona: str, question: str, found: Iterable[Detection]) -> Tally:
    """The answers of one persona to one question."""
    answers = list(found)
    marks = [mark for answer in answers for mark in answer.occurrences]
    return Tally(
        persona=persona,
        question=question,
        total=len(answers),
        text=sum(answer.text for answer in answers),
        ids=sum(answer.ids for answer in answers),
        complete=sum(any(mark.complete for mark in answer.occurrences) for answer in answers),
        begun=sum(any(not mark.complete for mark in answer.occurrences) for answer in answers),
        variants=dict(Counter(mark.variant for mark in marks if mark.complete)),
        begun_variants=dict(Counter(mark.variant for mark in marks if not mark.complete)),
    )
