"""The figures that studies share: a DataFrame in, a plotly Figure out; nothing is shown or written here.

Every figure takes a subtitle that says model, n, seeds and band (`caption` writes one). Names may come from a
model or a user's file, so each passes `label`. What could not be drawn as asked is said in a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechinterp.curves import MANY, Band, groups_of, lines, reference_bands, smoothed
from mechinterp.theme import (
    DIVERGING,
    INK,
    PALETTE,
    SEQUENTIAL,
    caption,
    colour,
    dash,
    ends,
    finish,
    label,
    numbers,
    say_empty,
    whole_step,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["Band", "caption", "dose_response", "heatmap", "label", "per_layer", "per_token", "scatter"]


def per_layer(
    df: pd.DataFrame,
    y: str,
    *,
    subtitle: str,
    by: str | None = None,
    low: str | None = None,
    high: str | None = None,
    title: str | None = None,
    y_title: str | None = None,
) -> go.Figure:
    """Lines over the column `layer`, one for each value of `by`, with bands from `low` to `high`."""
    figure, notes = lines(df, "layer", y, by, low, high)
    finish(figure, title or f"{y} per layer", subtitle, notes, x_title="layer", y_title=y_title or y)
    first, last = ends(df["layer"])
    figure.update_xaxes(tick0=0, dtick=whole_step(last - first), range=[first - 0.5, last + 0.5])
    return figure


def per_token(
    df: pd.DataFrame,
    y: str,
    *,
    subtitle: str,
    by: str | None = None,
    low: str | None = None,
    high: str | None = None,
    boundaries: Sequence[tuple[int, str]] = (),
    bands: Sequence[Band] = (),
    smooth: int = 1,
    title: str | None = None,
    y_title: str | None = None,
) -> go.Figure:
    """Lines over the column `token`, with phase boundaries and reference bands.

    A boundary (position, label) stands before the first token of the phase that it names.
    """
    said = []
    if smooth > 1:
        columns = dict.fromkeys(column for column in (y, low, high) if column is not None)
        df = smoothed(df, list(columns), by, smooth, [position for position, _ in boundaries])
        said.append(f"lines and bands are centred running means over {smooth} tokens within a phase")
    figure, notes = lines(df, "token", y, by, low, high)
    reference_bands(figure, df, bands)
    finish(figure, title or f"{y} by token", subtitle, [*said, *notes], x_title="token", y_title=y_title or y)
    first, last = ends(df["token"])
    figure.update_xaxes(tick0=0, dtick=whole_step(last - first))
    for position, name in boundaries:
        figure.add_vline(x=position - 0.5, line={"color": INK, "width": 1.2, "dash": "dot"})
        figure.add_annotation(
            x=position - 0.5, y=1, yref="paper", text=label(name), yanchor="bottom", xanchor="left",
            xshift=-4, showarrow=False, font={"size": 13},
        )  # fmt: skip
    if boundaries:
        figure.update_layout(margin_t=figure.to_dict()["layout"]["margin"]["t"] + 20)
    return figure


def heatmap(
    matrix: pd.DataFrame,
    *,
    subtitle: str,
    title: str,
    x_title: str,
    y_title: str,
    colour_title: str,
    center: float | None = None,
) -> go.Figure:
    """A matrix as cells: its index down, its columns across; the scale diverges about `center` if given."""
    import plotly.graph_objects as go

    cells = [numbers(row) for row in matrix.to_numpy(dtype=float)]
    finite = [value for row in cells for value in row if value is not None]
    empty = matrix.size - len(finite)
    notes = [f"{empty} of {matrix.size} cells are undefined and shown in grey"] if empty else []
    reach = max((abs(value - (center or 0)) for value in finite), default=1.0) or 1.0
    scale: dict[str, Any] = {"colorscale": SEQUENTIAL}
    if center is not None:
        scale = {"colorscale": DIVERGING, "zmin": center - reach, "zmax": center + reach}
    rows, columns = matrix.shape
    trace = go.Heatmap(
        z=cells, xgap=int(columns <= 20), ygap=int(rows <= 20), hoverongaps=False, **scale,
        customdata=[[f"{label(row)}, {label(name)}" for name in matrix.columns] for row in matrix.index],
        hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>",
        colorbar={
            "title": {"text": label(colour_title), "side": "right"}, "thickness": 14, "outlinewidth": 0,
        },
    )  # fmt: skip
    if matrix.size <= 150:  # more numbers than this are not read
        trace.text = [["" if value is None else _short(value, reach) for value in row] for row in cells]
        trace.update(texttemplate="%{text}", textfont_size=12 if columns <= 10 else 10)
    figure = go.Figure(trace)
    finish(figure, title, subtitle, notes, x_title=x_title, y_title=y_title)
    _lay_out_cells(figure, matrix)
    if not finite:
        say_empty(figure)
    return figure


def scatter(
    df: pd.DataFrame,
    x: str,
    y: str,
    *,
    subtitle: str,
    by: str | None = None,
    name: str | None = None,
    trend: bool = False,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
) -> go.Figure:
    """Points coloured by `by`, each with its `name` on hover; `trend` adds one least-squares line."""
    import plotly.graph_objects as go

    figure, drawn = go.Figure(), df.dropna(subset=[x, y])
    notes = [f"{len(df) - len(drawn)} of {len(df)} points have no value and are left out"][
        : len(df) > len(drawn)
    ]
    groups = groups_of(drawn, by) if len(drawn) else []
    if len(groups) > MANY:
        notes.append(f"{len(groups)} groups share one colour; their names are shown on hover")
        groups = [("", drawn)]
    for place, (group, part) in enumerate(groups):
        named = part[name or by] if name or by else [""] * len(part)
        figure.add_scatter(
            x=numbers(part[x]), y=numbers(part[y]), mode="markers", name=label(group, 30),
            showlegend=len(groups) > 1,
            marker={"size": 9, "color": colour(place), "symbol": ("circle", "diamond")[place // len(PALETTE)],
                    "opacity": 0.85, "line": {"width": 0.8, "color": "white"}},
            customdata=[label(each, 80) for each in named],
            hovertemplate="%{customdata}<br>(%{x:.4g}, %{y:.4g})<extra></extra>",
        )  # fmt: skip
    if trend:
        notes += _trend(figure, drawn, x, y)
    finish(figure, title or f"{y} against {x}", subtitle, notes, x_title=x_title or x, y_title=y_title or y)
    if not len(drawn):
        say_empty(figure)
    return figure


def dose_response(
    df: pd.DataFrame,
    *,
    subtitle: str,
    frontier: float,
    by: str | None = None,
    title: str = "Effect and coherence by strength",
    effect_title: str = "effect",
    x_title: str = "strength",
) -> go.Figure:
    """Effect above, KL below, by strength; open markers and a dotted line mark the coherence frontier.

    Columns: strength, effect, kl (nats), and effect_low with effect_high where there is an interval.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.06)
    df = df.sort_values("strength")
    groups = groups_of(df, by)
    for place, (group, part) in enumerate(groups):
        symbols = ["circle-open" if kl > frontier else "circle" for kl in part["kl"]]
        for row, column in ((1, "effect"), (2, "kl")):
            error = {"type": "data", "symmetric": False, "visible": False, "thickness": 1.2, "width": 3}
            if column == "effect" and {"effect_low", "effect_high"} <= set(df.columns):
                error |= {"array": numbers(part["effect_high"] - part["effect"]), "visible": True}
                error |= {"arrayminus": numbers(part["effect"] - part["effect_low"])}
            figure.add_scatter(
                x=numbers(part["strength"]), y=numbers(part[column]), row=row, col=1, mode="lines+markers",
                name=label(group, 30), legendgroup=str(place), showlegend=row == 1 and len(groups) > 1,
                error_y=error, line={"color": colour(place), "width": 2, "dash": dash(place)},
                marker={"size": 9, "symbol": symbols, "line": {"width": 2, "color": colour(place)}},
                hovertemplate=f"strength %{{x:.4g}}: {column} %{{y:.4g}}",
            )  # fmt: skip
    figure.add_scatter(
        x=ends(df["strength"]), y=[frontier] * 2, row=2, col=1, mode="lines",
        name=f"coherence frontier: KL {frontier:g}", line={"color": INK, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )  # fmt: skip
    beyond = sum(kl > frontier for kl in df["kl"])
    notes = [f"open markers ({beyond} of {len(df)}) lie beyond the coherence frontier, KL > {frontier:g}"]
    finish(figure, title, subtitle, notes, x_title=x_title, y_title=effect_title)
    figure.update_yaxes(title_text="KL (nats)", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="", row=1, col=1)
    figure.update_layout(height=620, legend_title_text=label(by or ""))
    return figure


def _trend(figure: go.Figure, df: Any, x: str, y: str) -> list[str]:
    import numpy as np

    across = ends(df[x])
    if len(df) < 3 or across[0] == across[1]:
        return ["no trend line: it needs three points and two values across"]
    slope, start = np.polyfit(df[x].astype(float), df[y].astype(float), 1)
    figure.add_scatter(
        x=across, y=[float(start + slope * end) for end in across], mode="lines",
        name="least squares, all points", line={"color": INK, "width": 1.5, "dash": "dash"}, hoverinfo="skip",
    )  # fmt: skip
    return []


def _short(value: float, reach: float) -> str:
    """Two places for small matrices of small numbers, none for large; never a minus zero."""
    places = 0 if reach >= 100 else 1 if reach >= 10 else 2
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")


def _lay_out_cells(figure: go.Figure, matrix: pd.DataFrame) -> None:
    """Ticks that name rows and columns, a height that keeps cells legible, squares for a square matrix."""
    rows, columns = matrix.shape
    cell = min(46.0, max(10.0, 700 / max(rows, 1)))

    def ticks(names: Sequence[object], width: int) -> dict[str, Any]:
        every = -(-len(names) // 64)
        shown = range(0, len(names), every)
        return {
            "tickvals": list(shown),
            "ticktext": [label(names[i], width) for i in shown],
            "tickfont": {"size": 13 if len(names) <= 24 else 9 if len(names) > 40 else 11},
        }

    square = list(matrix.index) == list(matrix.columns)
    room = cell if square else 780 / max(columns, 1)
    longest = max((len(str(name)) for name in matrix.columns), default=0)
    figure.update_layout(height=round(240 + rows * cell), plot_bgcolor="#C8C8C8")
    figure.update_xaxes(**ticks(list(matrix.columns), 26), showgrid=False, showline=False, ticks="")
    figure.update_xaxes(tickangle=0 if 7 * longest < room else -45 if room > 18 else -90)
    figure.update_yaxes(
        **ticks(list(matrix.index), 40), showgrid=False, showline=False, ticks="", autorange="reversed"
    )
    if square:
        figure.update_layout(width=max(800, round(170 + 6 * min(longest, 26) + columns * cell)))
        figure.update_xaxes(constrain="domain")
        figure.update_yaxes(scaleanchor="x", constrain="domain")
