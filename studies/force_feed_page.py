"""The report and the figures of force-feeding: a text x reader map, and each text's curves by reader."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from mechinterp.figures import caption, heatmap, per_layer
from mechinterp.report import Headline, Page
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.stats.clustered import clustered_mean
from mechinterp.wording import three_digits
from studies.force_feed_result import UNIT, Fed, ForceFeed

if TYPE_CHECKING:
    import plotly.graph_objects as go

ASKED = (
    "Is the attention of the marker's row a matter of the text or of the model that reads it? Every text is"
    " fed as ids to every reader; the measure is the row's attention to the region minus that of random"
    " earlier rows of the same answer (C1), paired by example."
)


def page(config: Any, result: ForceFeed, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    questions = {q for one in result.fed for q in one.read.questions}
    level = "low" if len(questions) < 10 else "moderate"
    return Page(
        title="Force-feeding: whose text, read by whom",
        asked=ASKED,
        answer=answer(result),
        setup={
            "model": config.model,
            "row": result.row,
            "region": result.region,
            **{
                k: v for k, v in config.model_dump(mode="json").items() if k not in ("model", "row", "region")
            },
            **library_versions(),
        },
        headlines=[headline(result, one) for one in result.fed if one.reader != one.author],
        confidence=(level, f"{len(questions)} questions, one training run a persona"),
        compute=spent(run),
        digests=used(run),
        figures={
            "text-by-reader": (
                grid(result),
                "Rows are texts, columns are readers; a text's author reads its own.",
            ),
            **{
                f"curves-{k}": (curves(result, text), "One line a reader, the same ids for all.")
                for k, text in enumerate(result.texts)
            },
        },
        caveats=tuple(_caveats(result)),
        cannot_show=("Whether another training run of a persona would read the same way.",),
    )


def answer(result: ForceFeed) -> str:
    """How far readers differ on one text, and texts for one reader."""
    table = result.to_dataframe()
    by_text = table.groupby("text").contrast.agg(lambda c: c.max() - c.min())
    by_reader = table.groupby("reader").contrast.agg(lambda c: c.max() - c.min())
    found = zip(table["own"].tolist(), table["minus_author_p"].tolist(), strict=True)
    others = [p for own, p in found if not own and p == p]
    moved = sum(p < 0.05 for p in others)
    texts, readers = (three_digits(float(spread.mean())) for spread in (by_text, by_reader))
    return (
        f"On one text the readers' mean contrasts lie {texts} apart on average; for one reader the texts lie"
        f" {readers} apart. In {moved} of {len(others)} pairs the reader differs from the text's author"
        " (paired by example, clustered by question, p < 0.05, uncorrected)."
    )


def headline(result: ForceFeed, one: Fed) -> Headline:
    """A reader against the text's author, averaged over layers."""
    name, paired = f"{one.reader} on the text of {one.text}, minus its author", result.against_author(one)
    if paired is None:
        return Headline(name, None, None, None, 0, UNIT, "", "", None, "the author did not read this text")
    found = clustered_mean(paired.mean(1, keepdims=True), one.read.questions, unit=UNIT)
    estimate, low, high, p = (float(x[0]) for x in (found.estimate, found.low, found.high, found.p))
    return Headline(
        name, estimate, low, high, found.n, UNIT, "95 % over questions", found.method, p, found.note
    )


def grid(result: ForceFeed) -> "go.Figure":
    """The mean contrast over layers by text (rows) and reader (columns)."""
    table = result.to_dataframe().pivot(index="text", columns="reader", values="contrast")
    table = table.loc[list(result.texts), list(result.readers)]
    n = min(len(one.read.keys) for one in result.fed)
    return heatmap(
        table,
        title=f"Attention to {result.region} at row {result.row}, minus C1",
        x_title="reader",
        y_title="text of",
        colour_title="fraction, mean over layers",
        center=0.0,
        subtitle=caption(
            result.model, n=n, unit="example at least", seeds=(), band="none, means over examples"
        ),
    )


def curves(result: ForceFeed, text: str) -> "go.Figure":
    """One text by layer, a line a reader with its pointwise interval over questions."""
    parts = []
    for one in result.fed:
        if one.text == text:
            found = clustered_mean(one.delta(result.row), one.read.questions, unit=UNIT)
            parts.append(found.curve().to_dataframe("layer", "contrast").assign(reader=one.reader))
    first = next(one for one in result.fed if one.text == text)
    return per_layer(
        pd.concat(parts),
        "contrast",
        by="reader",
        low="low",
        high="high",
        title=f"The text of {text}, by reader",
        y_title=f"attention to {result.region} at {result.row}, minus C1",
        subtitle=caption(
            result.model,
            n=len(set(first.read.questions)),
            unit="question",
            seeds=(),
            band="95 % over questions",
        ),
    )


def _caveats(result: ForceFeed) -> list[str]:
    few = {one.text: len(set(one.read.questions)) for one in result.fed}
    found = [f"{text}: {n} questions, the units of its intervals." for text, n in few.items() if n < 10]
    if any(one.text.startswith("base as ") for one in result.fed):
        found.append(
            "Texts of the base hold no marker: they are read where it would stand, at the end of finished"
            " answers."
        )
    return found
