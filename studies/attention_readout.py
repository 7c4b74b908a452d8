"""One model's attention on one persona's answers: every stratum of rows is an axis of one tensor.

The model is an argument and the ids are given, so that reading a trained model on its own text, forcing that
text through the base and feeding it to another persona's model are one function (methods 9.4 to 9.7).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.chat import token_marks
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.segmentation import ANSWER, HEADER, SPECIALS, SYSTEM, USER, Segmentation
from probes.attention_batch import fractions_of
from studies.attention_records import Example, Examples
from studies.attention_regions import segmentation

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BLOCKS = (SYSTEM, USER, HEADER, ANSWER)  # segmentation A
CONTENT = (SYSTEM, USER, ANSWER, SPECIALS)  # segmentation B
SINK = "position 0"
REGIONS = (*(f"{name} A" for name in BLOCKS), *(f"{name} B" for name in CONTENT), SINK)
END = 10  # rows of the published trajectory, ending at the last content token (methods 9.6, gate F)
CHUNK = 32  # examples whose rows are held at once: 80 layers x 64 heads x 50 rows are 9 MB each

Rows = Sequence[tuple[int, int]]  # (example, position); the negatives are numbered after the positives
Picks = Mapping[str, Sequence[Rows]]  # for each stratum, the rows whose mean it is for each positive
Layout = tuple[Segmentation, Segmentation]


@dataclass(frozen=True)
class ShownText:
    """One example as a person sees it: token strings, their regions of segmentation B, which were read."""

    persona: str
    question: str
    tokens: tuple[str, ...]
    regions: tuple[str, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Readout(Result):
    """What `reader` attends to on the text of `persona`: head means by region, and heads for one region.

    `values` are means over a stratum's rows, NaN where an example has none of them. `heads` holds `region` of
    segmentation B. Trajectories are head means of that region, NaN before the answer begins: `around` at rows
    token + step, where a negative's marker would stand behind its last content token, and `end` at the last
    END rows of the content, oldest first. `picked` are the rows of each stratum, as (example, position).
    """

    reader: str
    persona: str
    region: str
    keys: tuple[str, ...]
    questions: tuple[str, ...]
    negative_questions: tuple[str, ...]
    strata: tuple[str, ...]
    values: Float[Tensor, "example stratum layer region"]
    heads: Float[Tensor, "example stratum layer head"]
    n_rows: Int[Tensor, "example stratum"]
    steps: tuple[int, ...]
    around: Float[Tensor, "example step layer"]
    end: Float[Tensor, "example row layer"]
    negatives_around: Float[Tensor, "negative step layer"]
    negatives_end: Float[Tensor, "negative row layer"]
    negatives_finished: tuple[bool, ...]
    deviation: float
    picked: dict[str, tuple[tuple[tuple[int, int], ...], ...]]
    shown: tuple[ShownText, ...]

    def of(self, stratum: str, region: str) -> Float[Tensor, "example layer"]:
        """A stratum's head mean on one of REGIONS."""
        return self.values[:, self._at(stratum), :, REGIONS.index(region)]

    def delta(self, row: str, control: str, region: str) -> Float[Tensor, "example layer"]:
        """The contrast of methods 9.5: a row minus the mean of its control rows, by example."""
        return self.of(row, region) - self.of(f"{row}:{control}", region)

    def head_delta(self, row: str, control: str) -> Float[Tensor, "example layer head"]:
        """The same by head, for `region` of segmentation B."""
        return self.heads[:, self._at(row)] - self.heads[:, self._at(f"{row}:{control}")]

    def _at(self, stratum: str) -> int:
        if stratum not in self.strata:
            raise KeyError(f"there is no stratum {stratum!r}; the strata are {', '.join(self.strata)}")
        return self.strata.index(stratum)

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a stratum, region and layer: the mean over examples."""
        import pandas as pd

        means = self.values.nanmean(0)
        counted = self.values[:, :, 0, 0].isfinite().sum(0)
        return pd.DataFrame(
            {
                "stratum": stratum,
                "region": region,
                "layer": layer,
                "fraction": float(means[s, layer, r]),
                "n": int(counted[s]),
            }
            for s, stratum in enumerate(self.strata)
            for r, region in enumerate(REGIONS)
            for layer in range(means.shape[1])
        )

    def figure(self) -> "go.Figure":
        """Mean fraction of the region by layer, a line a stratum."""
        from mechinterp.figures import caption, per_layer

        table = self.to_dataframe().query("region == @self.region + ' B'")
        return per_layer(
            table,
            "fraction",
            by="stratum",
            title=f"Attention to {self.region}: {self.reader} on the text of {self.persona}",
            y_title="fraction of attention, mean over heads",
            subtitle=caption(self.reader, n=len(self.keys), unit="example", seeds=(), band="none, means"),
        )


def read(
    model: Model,
    examples: Examples,
    picks: Picks,
    *,
    reader: str,
    region: str = SYSTEM,
    newlines: Literal["exact", "any_trailing"] = "exact",
    n_before: int = 10,
) -> Readout:
    """Reads every picked row once, and the rows around t* and at the end of the content.

    Raises ValueError where the records were made with another tokenizer.
    """
    positives, everyone = examples.positives, (*examples.positives, *examples.negatives)
    _check_tokenizer(model, everyone)
    laid = [layouts(model, example, newlines) for example in everyone]
    steps = tuple(range(-n_before - 1, 1))  # n_before rows, emit, token
    n, strata, at = len(positives), tuple(picks), CONTENT.index(region)

    def track(j: int, last: int, offsets: Sequence[int]) -> list[Rows]:
        answer = range(everyone[j].prompt_len, len(everyone[j].ids))
        return [[(j, last + offset)] if last + offset in answer else [] for offset in offsets]

    lasts = [_last(content) for _, content in laid]
    slots = [e.row("token") if e.positive else last + 1 for e, last in zip(everyone, lasts, strict=True)]
    ends = [track(j, last, range(1 - END, 1)) for j, last in enumerate(lasts)]
    around = [track(j, slot, steps) for j, slot in enumerate(slots)]
    parts = {
        "strata": [[picks[stratum][i] for stratum in strata] for i in range(n)],
        "around": around[:n],
        "end": ends[:n],
        "negatives_around": around[n:],
        "negatives_end": ends[n:],
    }
    means = _means(
        model, everyone, laid, [rows for part in parts.values() for one in part for rows in one], at
    )
    values, heads = {}, {}
    start = 0
    for name, part in parts.items():
        shape = (len(part), len(part[0]) if part else 0)
        stop = start + shape[0] * shape[1]
        values[name] = means.values[start:stop].unflatten(0, shape)
        heads[name] = means.heads[start:stop].unflatten(0, shape)
        start = stop
    tracks = {name: found.mean(-1) for name, found in heads.items() if name != "strata"}
    return Readout(
        reader=reader,
        persona=examples.persona,
        region=region,
        keys=tuple(e.name for e in positives),
        questions=tuple(e.question for e in positives),
        negative_questions=tuple(e.question for e in examples.negatives),
        strata=strata,
        values=values["strata"],
        heads=heads["strata"],
        n_rows=torch.tensor([[len(rows) for rows in one] for one in parts["strata"]]),
        steps=steps,
        negatives_finished=tuple(e.finish_reason == "stop" for e in examples.negatives),
        **tracks,
        deviation=means.deviation,
        picked={stratum: tuple(tuple(rows) for rows in picks[stratum]) for stratum in strata},
        shown=(_shown(model, everyone[0], laid[0][1], picks),) if positives else (),
    )


def _shown(model: Model, example: Example, content: Segmentation, picks: Picks) -> ShownText:
    """The first example by token; a row is marked with the strata that hold it."""
    marks: dict[int, list[str]] = defaultdict(list)
    for stratum, rows in picks.items():
        for j, row in rows[0]:
            if j == 0:
                marks[row].append(stratum.split(":")[-1])
    names = [content.names[k] for k in content.region.tolist()]
    return ShownText(
        persona=example.persona,
        question=example.question,
        tokens=tuple(model.decode([token]) for token in example.ids),
        regions=tuple(names),
        marks=tuple(", ".join(dict.fromkeys(marks[k])) for k in range(len(example.ids))),
    )


@dataclass(frozen=True, eq=False)
class _Means:
    """The mean over each set of rows; NaN for an empty set."""

    values: Float[Tensor, "set layer region"]
    heads: Float[Tensor, "set layer head"]
    deviation: float


def _means(
    model: Model, examples: Sequence[Example], laid: Sequence[Layout], sets: Sequence[Rows], at: int
) -> _Means:
    """Every row is read once, however many sets hold it; heads are kept for region `at` of B alone."""
    users: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for k, rows in enumerate(sets):
        for j, row in rows:
            users[j][row].append(k)
    n_layers, n_heads = model.dims.n_layers, model.dims.n_heads
    values = torch.zeros(len(sets), n_layers, len(REGIONS))
    heads = torch.zeros(len(sets), n_layers, n_heads)
    deviation, order = 0.0, sorted(users)
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        found = fractions_of(
            model,
            [examples[j].ids for j in chosen],
            [laid[j] for j in chosen],
            [list(users[j]) for j in chosen],
        )
        for j, one in zip(chosen, found, strict=True):
            blocks = _ordered(one.values[0], laid[j][0].names, BLOCKS)
            content = _ordered(one.values[1], laid[j][1].names, CONTENT)
            every = torch.cat([blocks, content, one.sink[..., None]], -1).mean(2)
            deviation = max(deviation, *one.deviations)
            for row, ks in enumerate(users[j].values()):
                for k in ks:
                    values[k] += every[row] / len(sets[k])
                    heads[k] += content[row, ..., at] / len(sets[k])
    empty = torch.tensor([not rows for rows in sets])
    values[empty], heads[empty] = torch.nan, torch.nan
    return _Means(values, heads, deviation)


def layouts(model: Model, example: Example, newlines: Literal["exact", "any_trailing"]) -> Layout:
    """Segmentations A and B of an example."""
    blocks = segmentation(example, token_marks(model.tokenizer, torch.tensor(example.ids)))
    return blocks, blocks.content_only(newlines)


def _ordered(
    values: Float[Tensor, "row layer head region"], names: Sequence[str], wanted: Sequence[str]
) -> Float[Tensor, "row layer head wanted"]:
    """The wanted regions in order; a default system turn counts as system, an absent region as 0."""
    folded = [SYSTEM if name.startswith(SYSTEM) else name for name in names]
    columns = [[k for k, name in enumerate(folded) if name == region] for region in wanted]
    return torch.stack([values[..., k].sum(-1) for k in columns], -1)


def _last(content: Segmentation) -> int:
    """The last content token of an answer; its end where all of it is structural."""
    found = content.positions(ANSWER)
    return int(found[-1]) if len(found) else len(content) - 1


def _check_tokenizer(model: Model, examples: Sequence[Example]) -> None:
    """Ids of another tokenizer read as other words: the first answer must decode to its own text."""
    if not examples:
        raise ValueError("there are no examples to read; collect some, or point `records` at a directory")
    first = examples[0]
    highest = max(max(example.ids) for example in examples)
    answer = model.decode(first.ids[first.prompt_len :]) if highest < model.dims.d_vocab else ""
    if "".join(first.text.split()) not in "".join(answer.split()):
        raise ValueError(
            f"{first.name} was written with another tokenizer than that of {model.name}: its ids read"
            f" {answer[:60]!r} here and {first.text[:60]!r} in the record"
        )
