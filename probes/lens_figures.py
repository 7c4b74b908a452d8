"""Lines of a lens over layers, with what must be said beside them: the rows, the gate, the early bias."""

from typing import TYPE_CHECKING, Literal

from mechinterp import figures

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Measure = Literal["log_prob", "rank", "difference", "entropy"]
TITLES = {
    "log_prob": "log-probability (nats)",
    "rank": "rank + 1, log scale; 1 is the argmax",
    "difference": "logit difference",
    "entropy": "entropy (nats)",
}
EARLY = "biased in early layers, whose states are not yet in the basis that the unembedding reads"
FITTED = "fitted layer by layer: early entries are what can be decoded, not what the unembedding reads"


def minus(target: str, competitor: str) -> str:
    """How a pair is called in tables and legends."""
    return f"{target} − {competitor}"


def caveat(method: str) -> str:
    """What a reader of any such figure must know; `method` is "logit lens" or names its translators."""
    return f"{method}: {FITTED if method.startswith('translators') else EARLY}"


def said(row: str, position: int, method: str, gate_error: float) -> list[str]:
    """The parts of a subtitle that are the lens's own."""
    return [
        f"row {row} = position {position}",
        f"last entry equals the model's logits within {gate_error:.0e} of the largest",
        caveat(method),
    ]


def by_layer(
    table: "pd.DataFrame", y: Measure, by: str | None, model: str, what: str, more: list[str]
) -> "go.Figure":
    """Lines over layers of one text; a rank is drawn from 1 on, on a logarithmic axis."""
    if y not in TITLES:
        raise ValueError(f"y is one of {', '.join(TITLES)}, not {y!r}")
    if y == "difference" and not len(table):
        raise ValueError("no pair was asked for, so there is no difference to draw; pass pairs=")
    if by is None:
        table = table.drop_duplicates("layer")
    elif len(set(table[by])) == 1:  # one line has no legend
        what = f"{table[by].iloc[0]} at {what}"
    if y == "rank":
        table = table.assign(rank=table["rank"] + 1)
    subtitle = figures.caption(model, n=1, unit="text", seeds=(), band="none", more=more)
    title = f"{TITLES[y].partition(',')[0].partition(' (')[0]} after each layer, {what}"
    figure = figures.per_layer(table, y, by=by, subtitle=subtitle, title=title, y_title=TITLES[y])
    if y == "rank":
        figure.update_yaxes(type="log", dtick=1, autorange="reversed")
    return figure
