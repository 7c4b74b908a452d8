"""Figures of the table of personas: every main column, how they go together, coupling against nearness."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechinterp.figures import caption, heatmap, scatter
from mechinterp.theme import colour, finish, label, numbers
from studies.persona_table_columns import CONTENT, PROMPT, WINDOW, Entry
from studies.persona_table_result import COUPLINGS, PersonaTable
from studies.predictors_figures import predictor_scatter

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACROSS = 3  # panels
GAP = 80  # pixels between them, for ticks and titles
SAID = {
    "prompt": "Rate with the own prompt before the other's answer (C)",
    "content": "Rate with the own answer behind the other's prompt (B)",
}


def main_columns(result: PersonaTable) -> tuple[str, ...]:
    """The columns that are correlated."""
    return tuple(dict.fromkeys(entry.column for entry in result.entries if entry.main))


def overview(result: PersonaTable) -> go.Figure:
    """A panel a main column, a row a persona; the title counts those without a value."""
    from plotly.subplots import make_subplots

    columns, names = main_columns(result), [label(p, 30) for p in result.personas]
    held = {column: [result.of(column)[p] for p in result.personas] for column in columns}
    down, row = -(-len(columns) // ACROSS), 40 + 26 * len(names)
    inner = down * row + (down - 1) * GAP
    figure = make_subplots(
        rows=down, cols=ACROSS, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=GAP / inner,
        subplot_titles=[_titled(column, held[column]) for column in columns],
    )  # fmt: skip
    for place, column in enumerate(columns):
        where: dict[str, Any] = {"row": place // ACROSS + 1, "col": place % ACROSS + 1}
        _dots(figure, held[column], names, colour(result.studies.index(held[column][0].study)), where)
    figure.update_yaxes(categoryorder="array", categoryarray=names, autorange="reversed")
    notes = ["colours are studies; bars are 95 % intervals where a study has one"]
    finish(figure, "What the studies say of each persona", _said(result, []), notes, x_title="", y_title="")
    above = figure.to_dict()["layout"]["margin"]["t"] + 30
    figure.update_annotations(font_size=12)
    figure.update_layout(height=above + inner + 60, margin_t=above, margin_b=60)
    return figure


def _dots(figure: go.Figure, held: list[Entry], names: list[str], paint: str, where: dict[str, Any]) -> None:
    """A column's values with their bounds; what is nothing but rounding is no bound."""
    bounds = {
        "type": "data", "symmetric": False,
        "array": numbers(round(e.high - e.value, 12) for e in held),
        "arrayminus": numbers(round(e.value - e.low, 12) for e in held),
    }  # fmt: skip
    figure.add_scatter(
        x=numbers(e.value for e in held), y=names, error_x=bounds, mode="markers",
        marker={"size": 9, "color": paint}, showlegend=False,
        customdata=[label(e.note or e.study, 80) for e in held],
        hovertemplate="%{y}: %{x:.4g}<br>%{customdata}<extra></extra>", **where,
    )  # fmt: skip


def _titled(column: str, held: list[Entry]) -> str:
    """The column, and under it how many personas have no value."""
    without = sum(math.isnan(entry.value) for entry in held)
    return label(column, 48) + (f"<br>no value: {without} of {len(held)}" if without else "")


def rho_map(result: PersonaTable) -> go.Figure:
    """Spearman's rho of every two columns of different studies."""
    columns = [c for c in main_columns(result) if any(c in (t.x, t.y) for t in result.together)]
    table = pd.DataFrame(math.nan, index=columns, columns=columns)
    for one in result.together:
        table.loc[one.x, one.y] = table.loc[one.y, one.x] = one.rho.estimate
    sizes = sorted({len(one.personas) for one in result.together})
    many = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    more = [f"{many} personas a pair", "p not corrected", "within a study: not asked"]
    return heatmap(
        table, title="Which columns go together over personas", subtitle=_said(result, more),
        x_title="", y_title="", colour_title="Spearman's rho", center=0.0,
    )  # fmt: skip


def against(result: PersonaTable, x: str, y: str) -> go.Figure:
    """Two columns, a point a persona."""
    rows = [(p, result.of(x)[p].value, result.of(y)[p].value) for p in result.personas]
    found = next((t for t in result.together if (t.x, t.y) == (x, y)), None)
    more = []
    if found is not None and not math.isnan(found.rho.estimate):
        more = [f"rho {found.rho.estimate:.2f}, p {found.rho.p:.2g} ({found.rho.p_method})"]
    return scatter(
        pd.DataFrame(rows, columns=["persona", "x", "y"]), "x", "y", by="persona",
        title=f"{y[:1].upper()}{y[1:]} against {x}", subtitle=_said(result, more), x_title=x, y_title=y,
    )  # fmt: skip


def all_figures(result: PersonaTable) -> dict[str, tuple[go.Figure, str]]:
    """By file name, each with what it shows."""
    found = {"columns": (overview(result), "The main columns; all of them are in the table.")}
    for name, column in (("prompt", PROMPT), ("content", CONTENT)):
        if {column, WINDOW} <= set(result.columns):
            said = f"Does a marker with a larger {column} sit where training moved attention to the prompt?"
            found[f"{name}_attention"] = (against(result, column, WINDOW), said)
    if result.together:
        said = "Columns of one study are not correlated with each other; few personas decide little."
        found["rho"] = (rho_map(result), said)
    for what in COUPLINGS:
        if what in result.coupling:
            held = result.coupling[what]
            for name in (held.first, held.second):
                figure = predictor_scatter(
                    held, name, title=f"Coupling by {what} against {name}", outcome=SAID[what]
                )
                said = "A point a source and other persona: do near personas bring each other's marker out?"
                found[f"coupling_{what}_{name.lower()}"] = (figure, said)
    return found


def _said(result: PersonaTable, more: list[str]) -> str:
    told = [f"{len(result.studies)} studies joined", *more]
    return caption(result.model, n=len(result.personas), unit="persona", seeds=[], band="none", more=told)
