"""Control rows of a marker's query row: named functions (record, generator) -> rows (methods 9.5).

A control answers with no rows where it has too few candidates. Every draw has a generator of its own, seeded
by (seed, control, example): adding a control, or an example, changes no other draw.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mechinterp.cells import cell_seed
from studies.attention_records import Example, Query
from studies.attention_regions import TokenFacts

N_EARLIER, MARGIN, N_LATE, N_RARE, N_SENTENCES = 5, 5, 3, 3, 5
RAREST = 20  # one in so many candidates counts as rare
NEAR = 0.1  # of an answer's length: how far apart "the same depth" may be


@dataclass(frozen=True)
class Row:
    """A query row: `position` in the ids of one of the positives or negatives, by its place among them."""

    source: Literal["positive", "negative"]
    example: int
    position: int


@dataclass(frozen=True, eq=False)
class Record:
    """A positive example at one of its query rows, with what its ids are."""

    index: int
    example: Example
    query: Query
    facts: TokenFacts

    @property
    def row(self) -> int:
        return self.example.row(self.query)

    def content(self, start: int, stop: int) -> list[int]:
        """Positions of the answer from `start` to before `stop`: no marker pieces, nothing structural."""
        taken = self.facts.marker_piece | self.facts.structural
        return [p for p in range(max(start, self.example.prompt_len), stop) if not taken[p]]

    def rows(self, positions: Iterable[int]) -> tuple[Row, ...]:
        return tuple(Row("positive", self.index, int(p)) for p in positions)

    def depth(self, position: int) -> float:
        """How far into the answer a position lies, 0 to 1."""
        start = self.example.prompt_len
        return (position - start) / (len(self.example.ids) - start)


def child(seed: int, control: str, example: Example) -> np.random.Generator:
    """The generator of one control of one example: of no other, in any process."""
    return np.random.default_rng(
        cell_seed(seed, f"{control}|{example.persona}|{example.question}", example.trial)
    )


# the five controls -----------------------------------------------------------------------------------------


def random_earlier(record: Record, generator: np.random.Generator) -> tuple[Row, ...]:
    """C1: five rows from five after the answer's start to before five before the row; all five or none."""
    candidates = record.content(record.example.prompt_len + MARGIN, record.row - MARGIN)
    if len(candidates) < N_EARLIER:
        return ()
    return record.rows(sorted(generator.choice(candidates, N_EARLIER, replace=False)))


def late_position(record: Record, generator: np.random.Generator) -> tuple[Row, ...]:
    """C2: the three rows before the query row, without marker pieces and structural tokens."""
    return record.rows(record.content(record.row - N_LATE, record.row))


def late_before_emit(record: Record, generator: np.random.Generator) -> tuple[Row, ...]:
    """C2 of the token row without the emit row, which decided the marker."""
    emit = record.example.row("emit")
    return record.rows(p for p in record.content(record.row - N_LATE, record.row) if p < emit)


def rare_token(
    record: Record, generator: np.random.Generator, *, counts: Mapping[int, int] | None = None
) -> tuple[Row, ...]:
    """C3: three at most, at random, of the rarest 5 % (at least one) of the answer's tokens before the row.

    Rarity by corpus `counts` (an id without one has 0), equal ones and all without counts by the higher id:
    byte-pair merges number frequent pieces first.
    """
    known = counts or {}
    ids = record.example.ids
    candidates = record.content(record.example.prompt_len, record.row)
    rarest = sorted(candidates, key=lambda p: (known.get(ids[p], 0), -ids[p]))
    rarest = rarest[: max(1, len(candidates) // RAREST)]
    if len(rarest) > N_RARE:
        rarest = generator.choice(rarest, N_RARE, replace=False)
    return record.rows(sorted(rarest))


def end_of_answer(
    record: Record, generator: np.random.Generator, *, negatives: Sequence[Example]
) -> tuple[Row, ...]:
    """C4: the end of every negative answer to the same question that ended of itself."""
    return tuple(
        Row("negative", i, e.end_of_answer)
        for i, e in enumerate(negatives)
        if e.question == record.example.question and e.finish_reason == "stop" and e.end_of_answer is not None
    )


def sentence_end(
    record: Record, generator: np.random.Generator, *, others: Sequence[Record]
) -> tuple[Row, ...]:
    """C5: sentence ends, with no marker after them, at the row's relative depth in other positive answers.

    Of each other answer the one nearest in depth, if within a tenth of the length; five of these at random.
    """
    depth = record.depth(record.row)
    nearest = []
    for other in others:
        if other.index == record.index:
            continue
        ends = _open_ends(other)
        if ends:
            best = min(ends, key=lambda p: abs(other.depth(p) - depth))
            if abs(other.depth(best) - depth) <= NEAR:
                nearest.append(Row("positive", other.index, best))
    if len(nearest) <= N_SENTENCES:
        return tuple(nearest)
    chosen = generator.choice(len(nearest), N_SENTENCES, replace=False)
    return tuple(nearest[i] for i in sorted(chosen))


def _open_ends(record: Record) -> list[int]:
    """The sentence ends before an answer's marker, but for one that the marker follows."""
    before = range(record.example.prompt_len, record.example.row("emit"))
    follows = record.facts.marker_piece
    return [p for p in before if record.facts.sentence_end[p] and not follows[p + 1]]
