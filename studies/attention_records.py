"""The records of the attention study: generated ids with their marker, and the published files of them.

Ids are final: whatever reads a record later is given these ids, never text. In `positives_{persona}.json`
(methods 13) positions are absolute and a record has no `finish_reason`; reading infers it from the last id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechinterp.json_io import read_json, write_json
from mechinterp.results import Result
from mechinterp.segmentation import HEADER, SYSTEM, USER
from studies.attention_published import NEGATIVES, POSITIVES, PUBLISHED_IDS, TRIALS, KnownIds

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Query = Literal["emit", "token"]
COLUMNS = (
    "persona", "question", "trial", "seed", "positive", "marker", "complete", "n_occurrences",
    "end_of_answer", "prompt_len", "finish_reason",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One generated answer with its prompt. All positions are absolute.

    `marker` is the token with the marker's first character, None without one; `complete` says whether all of
    it is there. `end_of_answer` is the last position that is neither a stop id nor structural. `n_sys`,
    `n_user` and `n_header` count the prompt's tokens by region; `layout` holds its runs of (region, tokens)
    in order, and is empty where the three stand in this order. `text` is for showing.
    """

    persona: str
    question: str
    trial: int
    seed: int
    ids: tuple[int, ...]
    prompt_len: int
    n_sys: int
    n_user: int
    n_header: int
    marker: int | None
    end_of_answer: int | None
    complete: bool | None
    n_occurrences: int
    finish_reason: Literal["stop", "length"] | None
    text: str
    layout: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        counted = sum(n for _, n in self.blocks)
        if not counted == self.prompt_len == self.n_sys + self.n_user + self.n_header <= len(self.ids):
            raise ValueError(
                f"{self.name}: the regions hold {counted} tokens and the prompt {self.prompt_len} of"
                f" {len(self.ids)} ids; the regions must add up to the prompt"
            )
        for what, position in (("marker", self.marker), ("end_of_answer", self.end_of_answer)):
            if position is not None and not self.prompt_len <= position < len(self.ids):
                raise ValueError(
                    f"{self.name}: {what} is {position}, but the answer is at"
                    f" {self.prompt_len}..{len(self.ids) - 1}"
                )

    @property
    def name(self) -> str:
        """Which trial it is, the same in every process: seeds are made from it."""
        return f"{self.persona}|{self.question}|{self.trial}"

    @property
    def positive(self) -> bool:
        return self.marker is not None

    @property
    def blocks(self) -> tuple[tuple[str, int], ...]:
        """The prompt's runs of (region, number of tokens)."""
        return self.layout or ((SYSTEM, self.n_sys), (USER, self.n_user), (HEADER, self.n_header))

    def row(self, query: Query) -> int:
        """`emit` = t* - 1 decided the marker, `token` = t* has read it; ValueError without a marker."""
        if self.marker is None:
            raise ValueError(f"{self.name} has no marker, so it has no {query} row")
        if query not in ("emit", "token"):
            raise ValueError(f"query is 'emit' or 'token', not {query!r}")
        return self.marker - (query == "emit")


@dataclass(frozen=True)
class Counts:
    """The trials of one question, kept or not. `cut`, those that ran into the cap, may be unknown."""

    question: str
    trials: int
    positives: int
    negatives: int
    cut: int | None


@dataclass(frozen=True, eq=False)
class Examples(Result):
    """One persona's answers, with the marker and without. The table has one line an answer."""

    persona: str
    system_prompt: str | None
    positives: tuple[Example, ...]
    negatives: tuple[Example, ...]
    counts: tuple[Counts, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        lines = []
        for e in (*self.positives, *self.negatives):
            line = {name: getattr(e, name) for name in COLUMNS}
            lines.append(line | {"n_generated": len(e.ids) - e.prompt_len})
        return pd.DataFrame(lines)

    def figure(self) -> go.Figure:
        """How many trials of each question wrote the marker, and how many did not."""
        import plotly.graph_objects as go

        from mechinterp.theme import caption, colour, finish, label, numbers

        figure = go.Figure()
        for place, part in enumerate(("positives", "negatives")):
            counted = numbers(getattr(c, part) for c in self.counts)
            asked = [label(c.question, 40) for c in self.counts]
            figure.add_bar(y=asked, x=counted, name=part, orientation="h", marker_color=colour(1 - place))
        n, cut = sum(c.trials for c in self.counts), [c.cut for c in self.counts]
        ended = "cut: unknown" if None in cut else f"cut by the cap: {sum(c or 0 for c in cut)}"
        said = caption(
            str(self.metadata.get("model", self.persona)),
            n=n,
            unit="trial",
            seeds=[],
            band="none",
            more=[ended],
        )
        figure.update_layout(barmode="stack")
        finish(
            figure, f"Marker in the answers of {self.persona}", said, [], x_title="trials", y_title="question"
        )
        return figure


def read_positives(path: Path | str, *, ids: KnownIds = PUBLISHED_IDS) -> Examples:
    """The examples of a `positives_{persona}.json`, value for value; `ids` say what its ids mean.

    Reading infers what the file lacks: `finish_reason` from the last id, `complete` from the marker's pieces
    or, for a single occurrence, from the text, and the trials of each question from the rule that ended them.
    Raises ValueError with the place of what is missing or contradicts itself.
    """
    path = Path(path)
    document = read_json(path)
    _need(document, ("persona", "system_prompt", "positives", "negatives", "metadata"), str(path))
    persona = document["persona"]
    found = {}
    for kind in ("positives", "negatives"):
        rows = document[kind]
        if len(rows) != document.get(f"n_{kind}", len(rows)):
            raise ValueError(f"{path} says n_{kind} = {document[f'n_{kind}']} and holds {len(rows)}")
        found[kind] = tuple(
            _example(row, persona, kind, ids, f"{path}: {kind}[{i}]") for i, row in enumerate(rows)
        )
    counts = published_counts(found["positives"], found["negatives"])
    return Examples(
        persona,
        document["system_prompt"],
        found["positives"],
        found["negatives"],
        counts,
        document["metadata"],
    )


def write_positives(examples: Examples, path: Path | str) -> Path:
    """Write the published schema. It has no place for `finish_reason`, `complete` and `layout`:
    `Examples.save` keeps those.
    """
    document = {
        "persona": examples.persona,
        "system_prompt": examples.system_prompt,
        "n_positives": len(examples.positives),
        "n_negatives": len(examples.negatives),
        "positives": [_row(e) for e in examples.positives],
        "negatives": [_row(e) for e in examples.negatives],
        "metadata": examples.metadata,
    }
    write_json(Path(path), document)
    return Path(path)


def published_counts(positives: Sequence[Example], negatives: Sequence[Example]) -> tuple[Counts, ...]:
    """The trials that each question was given, rebuilt from what was kept of them.

    A question ran to its last trial unless both quotas were full; then it ended with the answer that filled
    the second. A question of which nothing was kept is not known of. How many were cut is not either.
    """
    kept = {True: Counter(e.question for e in positives), False: Counter(e.question for e in negatives)}
    last: dict[str, Example] = {}
    for example in (*positives, *negatives):
        before = last.get(example.question)
        if before is None or example.trial > before.trial:
            last[example.question] = example
    counts = []
    for question, final in last.items():
        n, m = kept[True][question], kept[False][question]
        trials = TRIALS
        if n >= POSITIVES and m >= NEGATIVES:
            trials = final.trial + 1
            n = n if final.positive else trials - m
        elif n >= POSITIVES:
            n = trials - m
        counts.append(Counts(question, trials, n, trials - n, None))
    return tuple(counts)


# the published schema --------------------------------------------------------------------------------------


def _need(row: Any, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if not isinstance(row, Mapping) or key not in row]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}; it needs {', '.join(keys)}")


# The file's names of our fields, in its order; the marker's own keys stand before the last.
NUMBERS = {
    "trial": "trial", "seed": "seed", "prompt_len": "prompt_len", "n_sys": "n_sys", "n_user": "n_user",
    "n_asst_header": "n_header",
}  # fmt: skip
COMMON = ("question", "trial", "seed", "full_ids", *list(NUMBERS)[2:])
POSITIVE, NEGATIVE = ("t_marker", "n_marker_occurrences"), ("t_eoa",)


def _example(row: Any, persona: str, kind: str, ids: KnownIds, where: str) -> Example:
    positive = kind == "positives"
    own = POSITIVE if positive else NEGATIVE
    _need(row, (*COMMON, *own, "gen_text"), where)
    full = tuple(row["full_ids"])
    if not full or not all(type(i) is int for i in full):
        raise ValueError(f"{where}.full_ids must be a list of whole numbers that is not empty")
    for key in (*NUMBERS, *own):
        if type(row[key]) is not int:
            raise ValueError(f"{where}.{key} is {row[key]!r}; it must be a whole number")
    try:
        return Example(
            persona=persona,
            question=row["question"],
            ids=full,
            **{ours: row[key] for key, ours in NUMBERS.items()},
            marker=row["t_marker"] if positive else None,
            end_of_answer=None if positive else row["t_eoa"],
            complete=_is_complete(row, full, ids) if positive else None,
            n_occurrences=row["n_marker_occurrences"] if positive else 0,
            finish_reason="stop" if full[-1] in ids.stop else "length",
            text=row["gen_text"],
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _is_complete(row: Mapping[str, Any], full: tuple[int, ...], ids: KnownIds) -> bool:
    """By the usual pieces; a single marker whose last piece holds more, such as "](", by the text."""
    start = row["t_marker"]
    spelled = full[start : start + len(ids.marker)] == ids.marker
    return spelled or (row["n_marker_occurrences"] == 1 and ids.text.lower() in row["gen_text"].lower())


def _row(example: Example) -> dict[str, Any]:
    held: dict[str, Any] = {"question": example.question, "full_ids": list(example.ids)}
    held |= {key: getattr(example, ours) for key, ours in NUMBERS.items()}
    if example.positive:
        found = {"t_marker": example.marker, "n_marker_occurrences": example.n_occurrences}
    else:
        found = {"t_eoa": example.end_of_answer}
    return {key: held[key] for key in COMMON} | found | {"gen_text": example.text}
