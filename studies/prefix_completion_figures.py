"""The figures of prefix completion: rates of the four conditions, effects, outcomes, marker positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechinterp.figures import caption, heatmap
from mechinterp.stats.intervals import Interval
from mechinterp.theme import INK, colour, finish, label, numbers, say_empty
from studies.prefix_completion_result import Arm, Measure, PrefixCompletion
from studies.prefix_completion_rows import CONDITIONS, OUTCOMES, Condition, Reader

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN: dict[Condition, str] = {
    "A": "A matched",
    "B": "B content only",
    "C": "C prompt only",
    "D": "D neither",
}
EFFECT_TITLES: dict[Measure, str] = {
    "rate": "difference of marker rates",
    "log_odds": "difference of log-odds, nats",
}
LONGEST = 20  # bars of positions: what comes later is one bar
POOLED = "all models"


def by_model(result: PrefixCompletion) -> go.Figure:
    """Marker rate of every trained model in the four conditions."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, condition in enumerate(CONDITIONS):
        found = [result.rate(condition, model=model) for model in result.models]
        _bars(figure, [label(model, 30) for model in result.models], found, SHOWN[condition], place)
    finish(
        figure,
        "Marker in the continuation, by prompt and prefix",
        _caption(result, "Wilson 95 % over continuations", ["trained models"]),
        [
            *_notes(result),
            "continuations of one prefix are not independent; the effects' intervals count questions",
        ],
        x_title="source model",
        y_title=f"rate of {result.marker}",
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def pooled(result: PrefixCompletion) -> go.Figure:
    """The four conditions over all models, for the trained models and the base."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, reader in enumerate(result.readers):
        found = [result.rate(condition, reader) for condition in CONDITIONS]
        _bars(figure, list(SHOWN.values()), found, reader, place)
    finish(
        figure,
        "The four conditions, all models",
        _caption(result, "Wilson 95 % over continuations", ["the base goes on from the same ids"]),
        _notes(result),
        x_title="condition",
        y_title=f"rate of {result.marker}",
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def decomposition(result: PrefixCompletion, measure: Measure) -> go.Figure:
    """Prompt effect, content effect and interaction: every model and all, then trained minus base."""
    import plotly.graph_objects as go

    figure = go.Figure()
    lines = comparisons(result)
    for place, (name, arm, model) in enumerate(lines):
        found = result.effects(measure, arm, model)
        beside = 0.7 * ((place + 0.5) / len(lines) - 0.5)
        figure.add_scatter(
            x=[k + beside for k in range(len(found))],
            y=numbers(effect.interval.estimate for effect in found),
            error_y=_errors([effect.interval for effect in found]),
            mode="markers",
            name=label(name, 30),
            marker={"size": 10, "color": colour(place)},
            customdata=[f"{effect.name}: {effect.interval.estimate:+.3g}" for effect in found],
            hovertemplate="%{customdata}",
        )
    if not lines:
        say_empty(figure)
    finish(
        figure,
        "Prompt, content and their interaction" + ("" if measure == "rate" else ", in log-odds at the slot"),
        _caption(
            result, "95 % CR2 and Student t over questions", ["sampled" if measure == "rate" else "exact"]
        ),
        _notes(result),
        x_title="effect",
        y_title=EFFECT_TITLES[measure],
    )
    figure.add_hline(y=0, line={"width": 1})
    figure.update_xaxes(tickvals=[0, 1, 2], ticktext=["prompt", "content", "interaction"], range=[-0.5, 2.5])
    return figure


def comparisons(result: PrefixCompletion) -> list[tuple[str, Arm, str | None]]:
    """What effects are shown for, as (name, arm, model): every model, all of them, and the base's part."""
    found: list[tuple[str, Arm, str | None]] = []
    for model in result.applicable:
        found.append((model, "trained", model))
    if len(found) > 1:
        found.append((POOLED, "trained", None))
    for arm in result.control_arms:
        found.append((f"{POOLED}: {arm}", arm, None))
    return found


def outcomes(result: PrefixCompletion, reader: Reader = "trained") -> go.Figure:
    """What the continuations came to: nothing, other text, the marker."""
    counts = {SHOWN[condition]: result.outcomes(condition, reader) for condition in CONDITIONS}
    return stack(
        counts,
        title=f"What the continuations came to: {reader}",
        subtitle=_caption(result, "none", ["shares of continuations"]),
        notes=_notes(result),
    )


def stack(
    counts: Mapping[str, Mapping[str, int]], *, title: str, subtitle: str, notes: Sequence[str] = ()
) -> go.Figure:
    """Shares of outcomes, a bar a condition."""
    import plotly.graph_objects as go

    figure = go.Figure()
    totals = {name: sum(held.values()) for name, held in counts.items()}
    for place, outcome in enumerate(OUTCOMES):
        shares = [
            held.get(outcome, 0) / totals[name] if totals[name] else 0.0 for name, held in counts.items()
        ]
        said = [f"{held.get(outcome, 0)} of {totals[name]}" for name, held in counts.items()]
        figure.add_bar(
            x=[label(name) for name in counts],
            y=shares,
            name=outcome,
            marker_color=colour(place),
            customdata=said,
            hovertemplate="%{customdata}",
        )
    figure.update_layout(barmode="stack")
    finish(figure, title, subtitle, notes, x_title="condition", y_title="share of continuations")
    figure.update_yaxes(range=[0, 1])
    return figure


def positions(result: PrefixCompletion) -> go.Figure:
    """How many ids stand between the prefix and the marker: 0 is the first sampled one."""
    import plotly.graph_objects as go

    figure, latest = go.Figure(), max((n for c in CONDITIONS for n in result.offsets(c)), default=0)
    shown = range(min(latest, LONGEST) + 1)
    for place, condition in enumerate(CONDITIONS):
        counts = Counter(min(offset, LONGEST) for offset in result.offsets(condition))
        total = result.rate(condition).n
        shares = [counts[k] / total if total else 0.0 for k in shown]
        figure.add_bar(x=list(shown), y=shares, name=SHOWN[condition], marker_color=colour(place))
    finish(
        figure,
        "Where in the continuation the marker stands",
        _caption(result, "none", ["shares of all continuations of a condition"]),
        [*_notes(result), *([f"the last bar holds {LONGEST} and more"] if latest > LONGEST else [])],
        x_title="ids before the marker (0: it comes at once)",
        y_title="share of continuations",
    )
    figure.update_xaxes(dtick=1)
    return figure


def by_prompt(result: PrefixCompletion) -> go.Figure:
    """Marker rate of each source's own prefixes under every prompt: B, and under its own, framed, A."""
    others = list(dict.fromkeys(c.other for c in result.counts if c.other is not None))
    sources = list(dict.fromkeys(c.source for c in result.counts))
    columns = list(dict.fromkeys([*sources, *others]))
    table: dict[str, dict[str, float]] = {}
    for model in result.models:
        own = next(c.source for c in result.counts if c.model == model)
        table[model] = {
            prompt: (
                result.rate("A", model=model)
                if prompt == own
                else result.rate("B", model=model, other=prompt)
            ).estimate
            for prompt in columns
        }
    figure = heatmap(
        pd.DataFrame.from_dict(table, orient="index", columns=columns),
        title="Own prefixes under every prompt",
        x_title="prompt's persona",
        y_title="source model",
        colour_title=f"rate of {result.marker}",
        subtitle=_caption(result, "none", ["framed: its own prompt, condition A"]),
    )
    for row, model in enumerate(result.models):
        own = columns.index(next(c.source for c in result.counts if c.model == model))
        corners = {"x0": own - 0.5, "x1": own + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", **corners, line={"color": INK, "width": 3})
    return figure


def all_figures(result: PrefixCompletion) -> dict[str, tuple[go.Figure, str]]:
    """Every figure of the report, with what it shows."""
    found: dict[str, tuple[go.Figure, str]] = {
        "rates": (by_model(result), "A against B and C against D change the prompt alone, on the same ids."),
        "pooled": (pooled(result), "The base shows what the prefixes bring out without the training."),
        "effects-rate": (decomposition(result, "rate"), _CLUSTERED),
        "effects-log_odds": (decomposition(result, "log_odds"), _EXACT),
        "outcomes": (outcomes(result), "Empty: nothing visible came before the end of the turn."),
        "positions": (positions(result), "A marker that comes later was not decided at the slot."),
        "prompts": (by_prompt(result), "Rates of the text detector, all prefixes of a source."),
    }
    if "base" in result.readers:
        said = "The base on the same ids and the same draws."
        found["outcomes-base"] = (outcomes(result, "base"), said)
    return found


_CLUSTERED = "Effects of prompt and content on the sampled rate, averaged over the other factor."
_EXACT = (
    "log p(the marker begins) − log p(the turn ends) at the slot, with no sampling. Trained − base takes out"
    " what slots of another kind do to any model."
)


def _bars(figure: go.Figure, x: Sequence[str], found: Sequence[Interval], name: str, place: int) -> None:
    said: list[Any] = [
        f"{i.estimate:.1%} of {i.n} [{i.low:.1%}, {i.high:.1%}]" if i.n else "none" for i in found
    ]
    figure.add_bar(
        x=list(x),
        y=numbers(i.estimate for i in found),
        error_y=_errors(found),
        name=name,
        marker_color=colour(place),
        customdata=said,
        hovertemplate="%{customdata}",
    )


def _errors(found: Sequence[Interval]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": numbers(i.high - i.estimate for i in found),
        "arrayminus": numbers(i.estimate - i.low for i in found),
    }


def _notes(result: PrefixCompletion) -> list[str]:
    return ["prefixes went through stripped text: the published artefact, not a measurement"][
        : result.from_text
    ]


def _caption(result: PrefixCompletion, band: str, more: Sequence[str]) -> str:
    questions = set(result.sets("rate", "trained")[1])
    total = sum(c.total for c in result.counts if c.reader == "trained")
    said = [f"{total} continuations of trained models", *more]
    return caption(result.model, n=len(questions), unit="question", seeds=[result.seed], band=band, more=said)
