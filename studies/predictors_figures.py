"""Figures of predictors of leakage: matrices, scatters with within-source lines, bars of rho (methods 14)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechinterp.figures import caption, heatmap, scatter
from mechinterp.stats.sources import SourceAssociation
from mechinterp.theme import GREY, INK, colour, ends, finish, label, numbers
from studies.predictors import Comparison
from studies.predictors_asymmetry import Asymmetry
from studies.predictors_matrices import Discrimination, PerQuestion, Redundancy

if TYPE_CHECKING:
    import plotly.graph_objects as go

MILLI = 1000  # matrices are shown in thousandths of a nat, which two digits can tell apart
LEAKAGE = "leakage (marker rate)"


def divergence_map(found: Discrimination) -> go.Figure:
    """The JS matrix, annotated."""
    import pandas as pd

    names = list(found.names)
    more = ["means over responses", *([f"{found.n_questions} questions"] * bool(found.n_questions))]
    return heatmap(
        pd.DataFrame(found.js * MILLI, index=names, columns=names),
        subtitle=_said(found.model, len(names), "persona", (), "none", more),
        title="Jensen-Shannon divergence between personas' outputs",
        x_title="", y_title="", colour_title="JS (10⁻³ nats)",
    )  # fmt: skip


def cosine_map(found: Redundancy, layer: int) -> go.Figure:
    """The cosine matrix of one layer, annotated."""
    import pandas as pd

    names = list(found.names)
    return heatmap(
        pd.DataFrame(found.cosines[layer], index=names, columns=names),
        subtitle=_said(found.model, len(names), "persona", (), "none", [f"centred on {found.centring}"]),
        title=f"Cosine between personas' centroids, layer {layer}",
        x_title="", y_title="", colour_title="cosine", center=0.0,
    )  # fmt: skip


def redundancy_scatter(found: Redundancy, layer: int) -> go.Figure:
    """JS against the cosine of one layer, a point a pair of personas."""
    import pandas as pd

    i, j = np.triu_indices(len(found.names), 1)
    rho = found.spearman[layer]
    names = [f"{found.names[a]}, {found.names[b]}" for a, b in zip(i, j, strict=True)]
    more = [
        f"rho {_signed(rho.estimate)} [{_signed(rho.low)}, {_signed(rho.high)}]",
        f"95 % over {rho.n_nodes} resampled personas, seed {found.seed}",
        f"centred on {found.centring}",
    ]
    return scatter(
        pd.DataFrame({"cosine": found.cosines[layer][i, j], "js": found.js[i, j], "pair": names}),
        "cosine", "js", name="pair", trend=True,
        subtitle=_said(found.model, len(i), "pair", (), "none", more),
        title=f"Output divergence against cosine, layer {layer}",
        x_title=f"cosine, layer {layer}", y_title="JS (nats)",
    )  # fmt: skip


def asymmetry_map(found: Asymmetry) -> go.Figure:
    """KL(row || column) - KL(column || row): red where the row's outputs surprise the column more."""
    import pandas as pd

    names = list(found.names)
    more = []
    if found.association is not None:
        rho = found.association
        tested = f"p {rho.p:.2g} over" if math.isfinite(rho.p) else "over"
        more = [f"rho with leakage asymmetry {_signed(rho.estimate)}", f"{tested} {rho.n_nodes} sources"]
    return heatmap(
        pd.DataFrame((found.kl - found.kl.T) * MILLI, index=names, columns=names),
        subtitle=_said(found.model, len(names), "persona", (), "none", more),
        title="Asymmetry of KL between personas' outputs",
        x_title="column", y_title="row",
        colour_title="KL(row‖col) − KL(col‖row) (10⁻³ nats)", center=0.0,
    )  # fmt: skip


def predictor_scatter(
    found: Comparison, predictor: str, *, title: str | None = None, outcome: str = LEAKAGE
) -> go.Figure:
    """One predictor against leakage, coloured by source, with a least-squares line within each source."""
    import plotly.graph_objects as go

    figure = go.Figure()
    _points(figure, found, predictor, {}, legend=True)
    finish(figure, title or f"Leakage against {predictor}", _of_pairs(found, [predictor]),
           _notes(found, [predictor]), x_title=predictor, y_title=outcome)  # fmt: skip
    return figure


def hero(found: Comparison) -> go.Figure:
    """Both predictors against leakage on the same pairs."""
    from plotly.subplots import make_subplots

    both = [found.first, found.second]
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06,
        subplot_titles=[label(_rho(found.spearman[name])) for name in both],
    )  # fmt: skip
    for column, name in enumerate(both, 1):
        _points(figure, found, name, {"row": 1, "col": column}, legend=column == 1)
    finish(figure, f"Leakage against {both[0]} and {both[1]}", _of_pairs(found, []), _notes(found, both),
           x_title="", y_title="")  # fmt: skip
    for column, name in enumerate(both, 1):
        figure.update_xaxes(title_text=label(name, 60), row=1, col=column)
    figure.update_yaxes(title_text=LEAKAGE, row=1, col=1)
    figure.update_annotations(font_size=14)
    figure.update_layout(margin_t=figure.to_dict()["layout"]["margin"]["t"] + 24)
    return figure


def rho_bars(
    found: Mapping[str, Mapping[str, SourceAssociation]],
    *,
    title: str,
    x_title: str,
    model: str,
    seeds: Sequence[int] = (),
    stored: Mapping[str, Mapping[str, float]] | None = None,
) -> go.Figure:
    """Pooled rho with leakage as bars, a colour a group: {group: {place on the axis: association}}.

    Whiskers reach over the pooled rho without each source; diamonds are the mean rho within sources. Where
    only the pooled figure is known, `stored`, the bar is hollow.
    """
    import plotly.graph_objects as go

    figure, known = go.Figure(), stored or {}
    for place, (group, held) in enumerate(found.items()):
        pooled = [each.pooled.estimate for each in held.values()]
        error = {
            "type": "data", "symmetric": False, "thickness": 1.3, "width": 4,
            "array": numbers([each.high - rho for each, rho in zip(held.values(), pooled, strict=True)]),
            "arrayminus": numbers([rho - each.low for each, rho in zip(held.values(), pooled, strict=True)]),
        }  # fmt: skip
        figure.add_bar(
            x=list(held), y=numbers(pooled), name=label(group, 40), offsetgroup=str(place), error_y=error,
            marker_color=colour(place), opacity=0.8, showlegend=len(found) > 1,
            hovertemplate="%{x}: pooled rho %{y:.3f}<extra></extra>",
        )  # fmt: skip
        alone = known.get(group, {})
        if alone:
            hollow = {"color": "white", "line": {"width": 2, "color": colour(place)}}
            figure.add_bar(
                x=list(alone), y=numbers(alone.values()), name=label(f"{group}, stored only", 40),
                offsetgroup=str(place), marker=hollow,
                hovertemplate="%{x}: stored rho %{y:.3f}<extra></extra>",
            )  # fmt: skip
        figure.add_scatter(
            x=list(held), y=numbers([each.mean_within for each in held.values()]), mode="markers",
            name="mean within sources", legendgroup="within", showlegend=place == 0, offsetgroup=str(place),
            marker={"symbol": "diamond", "size": 10, "color": "white", "line": {"width": 2, "color": INK}},
            hovertemplate="%{x}: mean within sources %{y:.3f}<extra></extra>",
        )  # fmt: skip
    some = next(iter(next(iter(found.values())).values()))
    band = "pooled rho without each source, lowest to highest"
    said = _said(model, some.n_pairs, "pair", seeds, band, [f"{some.n_sources} sources"])
    constant = sorted({name for held in found.values() for each in held.values() for name in each.constant})
    notes = [f"{', '.join(constant)}: constant, so without a rho within"] if constant else []
    finish(figure, title, said, notes, x_title=x_title, y_title="Spearman's rho with leakage")
    figure.update_layout(barmode="group", scattermode="group")
    places = sorted({*found, *known}, key=lambda group: -len(found.get(group, ())))
    order = dict.fromkeys(x for group in places for held in (found, known) for x in held.get(group, ()))
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(order))
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    return figure


def variation_bars(found: PerQuestion) -> go.Figure:
    """Coefficient of variation of each question against the line under which it tells nothing."""
    import plotly.graph_objects as go

    threshold = found.criteria[0].threshold
    figure = go.Figure(
        go.Bar(
            y=[label(q, 60) for q in found.questions], x=numbers(found.variation), orientation="h",
            marker_color=[GREY if c.passed is False else colour(0) for c in found.criteria],
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )  # fmt: skip
    n = found.n_values[0]
    said = _said(found.model, len(found.questions), "question", (), "none", [f"{n} values a question"])
    notes = [f"dotted: {threshold:g}; {found.n_uninformative} questions lie below it"]
    finish(figure, "Variation of JS by question", said, notes, x_title="std / mean of JS", y_title="")
    figure.add_vline(x=threshold, line={"color": INK, "dash": "dot", "width": 1.3})
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=200 + 26 * len(found.questions))
    return figure


def _points(figure: Any, found: Comparison, predictor: str, where: dict[str, int], *, legend: bool) -> None:
    """Points and a line of each source."""
    x, y = found.pairs.values(predictor), np.array(found.pairs.leakage)
    names = np.array(found.pairs.sources)
    for place, source in enumerate(dict.fromkeys(found.pairs.sources)):
        own = names == source
        figure.add_scatter(
            x=numbers(x[own]), y=numbers(y[own]), mode="markers", name=label(source, 30),
            legendgroup=str(place), showlegend=legend,
            marker={"size": 9, "color": colour(place), "opacity": 0.85,
                    "line": {"width": 0.8, "color": "white"}},
            customdata=[label(f"{source} → {found.pairs.targets[i]}", 80) for i in np.flatnonzero(own)],
            hovertemplate="%{customdata}<br>(%{x:.4g}, %{y:.4g})<extra></extra>", **where,
        )  # fmt: skip
        if own.sum() > 1 and np.ptp(x[own]) > 0:
            slope, start = np.polyfit(x[own], y[own], 1)
            across = ends(x[own])
            figure.add_scatter(
                x=across, y=[float(start + slope * end) for end in across], mode="lines",
                legendgroup=str(place), showlegend=False, hoverinfo="skip",
                line={"color": colour(place), "width": 1.6}, **where,
            )  # fmt: skip


def _of_pairs(found: Comparison, predictors: Sequence[str]) -> str:
    pairs = found.pairs
    n = len(set(pairs.sources))
    more = [f"{n} sources", *(_rho(found.spearman[name]) for name in predictors)]
    return _said(pairs.model, len(pairs.leakage), "pair", pairs.seeds, "none", more)


def _notes(found: Comparison, predictors: Sequence[str]) -> list[str]:
    constant = dict.fromkeys(name for each in predictors for name in found.spearman[each].constant)
    notes = ["lines are least squares within each source"]
    return [*notes, f"{', '.join(constant)}: constant, so without a rho within"] if constant else notes


def _rho(found: SourceAssociation) -> str:
    return f"rho pooled {_signed(found.pooled.estimate)}, within {_signed(found.mean_within)}"


def _said(model: str, n: int, unit: str, seeds: Sequence[int], band: str, more: Sequence[str] = ()) -> str:
    return caption(model, n=n, unit=unit, seeds=seeds, band=band, more=more)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "not defined"
