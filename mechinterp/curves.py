"""Lines over layers or tokens with their bands: what `per_layer` and `per_token` both draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mechinterp.theme import GREY, INK, PALETTE, colour, dash, ends, label, numbers, say_empty

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


MANY = 2 * len(PALETTE)  # lines that colour and dash can still tell apart


@dataclass(frozen=True)
class Band:
    """A reference across all tokens, such as floor or ceiling: its value, and how far it spreads."""

    label: str
    value: float
    low: float
    high: float


def groups_of(df: pd.DataFrame, by: str | None) -> list[tuple[Any, Any]]:
    """The rows of each value of `by`, in order of appearance."""
    return [("", df)] if by is None else list(df.groupby(by, sort=False, dropna=False))


def lines(
    df: pd.DataFrame, x: str, y: str, by: str | None, low: str | None, high: str | None
) -> tuple[go.Figure, list[str]]:
    """Line and band of each group, and notes on what is missing or crowded."""
    import plotly.graph_objects as go

    figure, notes = go.Figure(), []
    everything = [(name, part.sort_values(x)) for name, part in groups_of(df, by)]
    groups = [(name, part) for name, part in everything if set(numbers(part[y])) - {None}]
    void = [str(name) for name, _ in everything if name not in {name for name, _ in groups}]
    if void and by:
        notes.append(f"no finite values for {', '.join(void[:6])}{' …' if len(void) > 6 else ''}")
    if not groups:
        say_empty(figure)
    elif len(groups) > MANY:
        _crowd(figure, groups, x, y)
        notes.append(f"{len(groups)} lines, each named on hover; the dark line is their median")
    elif len(set(df[x])) == 1:
        _points(figure, groups, x, y, low, high)
        notes.append(f"there is one {x} only, so points stand in for lines, side by side")
    else:
        for place, (name, part) in enumerate(groups):
            if low is not None and high is not None:
                figure.add_scatter(**_band(part, x, low, high, place, 0.18 if len(groups) < 4 else 0.12))
            figure.add_scatter(
                x=numbers(part[x]), y=numbers(part[y]), mode="lines+markers" if len(part) <= 40 else "lines",
                name=label(name, 30), legendgroup=str(place), showlegend=len(groups) > 1,
                line={"color": colour(place), "width": 2 if len(part) <= 200 else 1.5, "dash": dash(place)},
                marker={"size": 5}, customdata=_said(part, y, low, high),
                hovertemplate=f"{x} %{{x}}: %{{customdata}}",
            )  # fmt: skip
    if by and len(groups) > 1:
        figure.update_layout(legend_title_text=label(by))
    return figure, notes


def _points(
    figure: go.Figure,
    groups: list[tuple[Any, Any]],
    x: str,
    y: str,
    low: str | None,
    high: str | None,
) -> None:
    for place, (name, part) in enumerate(groups):
        error: dict[str, Any] = {"visible": False}
        if low is not None and high is not None:
            error = {"type": "data", "symmetric": False, "array": numbers(part[high] - part[y]),
                     "arrayminus": numbers(part[y] - part[low])}  # fmt: skip
        beside = 0.06 * (place - (len(groups) - 1) / 2)
        figure.add_scatter(
            x=[value + beside for value in part[x]], y=numbers(part[y]), mode="markers", name=label(name, 30),
            showlegend=len(groups) > 1, error_y=error, marker={"size": 10, "color": colour(place)},
            customdata=_said(part, y, low, high), hovertemplate="%{customdata}",
        )  # fmt: skip


def _said(part: Any, y: str, low: str | None, high: str | None) -> list[str]:
    if low is None or high is None:
        return [f"{value:.4g}" for value in part[y]]
    return [f"{v:.4g} [{a:.3g}, {b:.3g}]" for v, a, b in zip(part[y], part[low], part[high], strict=True)]


def _band(part: Any, x: str, low: str, high: str, place: int, opacity: float) -> dict[str, Any]:
    """One filled outline for each stretch where both bounds are finite."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    points = zip(numbers(part[x]), numbers(part[low]), numbers(part[high]), strict=True)
    for finite, stretch in groupby(points, key=lambda point: None not in point):
        if finite:
            across, below, above = zip(*stretch, strict=True)
            xs += [*across, *reversed(across), None]
            ys += [*above, *reversed(below), None]
    return {
        "x": xs, "y": ys, "mode": "none", "fill": "toself", "fillcolor": colour(place), "opacity": opacity,
        "legendgroup": str(place), "showlegend": False, "hoverinfo": "skip", "name": "band",
    }  # fmt: skip


def _crowd(figure: go.Figure, groups: list[tuple[Any, Any]], x: str, y: str) -> None:
    """More lines than colours: all thin, named on hover, their median on top."""
    import pandas as pd

    for name, part in groups:
        figure.add_scatter(
            x=numbers(part[x]), y=numbers(part[y]), mode="lines", name=label(name), showlegend=False,
            line={"color": PALETTE[0], "width": 1}, opacity=0.35, hovertemplate=f"{x} %{{x}}: %{{y:.4g}}",
        )  # fmt: skip
    middle = pd.concat([part for _, part in groups]).groupby(x)[y].median()
    figure.add_scatter(
        x=numbers(middle.index), y=numbers(middle), mode="lines", name="median", showlegend=False,
        line={"color": INK, "width": 2.5}, hovertemplate=f"median, {x} %{{x}}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip


def reference_bands(figure: go.Figure, df: pd.DataFrame, bands: Sequence[Band]) -> None:
    """Bands under the lines, each with its name at the right."""
    across = ends(df["token"])
    drawn: tuple[Any, ...] = tuple(figure.select_traces())
    for band in bands:
        figure.add_scatter(
            x=[*across, *reversed(across)], y=[band.low, band.low, band.high, band.high], mode="none",
            fill="toself", fillcolor=GREY, opacity=0.16, showlegend=False, hoverinfo="skip", name="band",
        )  # fmt: skip
        figure.add_scatter(
            x=across, y=[band.value] * 2, mode="lines", line={"color": GREY, "width": 1.4, "dash": "dash"},
            name=label(band.label), showlegend=False, hoverinfo="skip",
        )  # fmt: skip
        figure.add_annotation(
            x=1, xref="paper", y=band.value, text=label(band.label), xanchor="right", yanchor="bottom",
            showarrow=False, font={"size": 13, "color": GREY}, bgcolor="rgba(255,255,255,0.6)", borderpad=1,
        )  # fmt: skip
    figure.data = (*tuple(figure.select_traces())[len(drawn) :], *drawn)


def smoothed(
    df: Any, columns: Sequence[str], by: str | None, window: int, starts: Sequence[int]
) -> pd.DataFrame:
    """Centred running means over `window` tokens of each group and phase, never across a boundary."""
    import pandas as pd

    df = df.sort_values("token", kind="stable")  # keeps the groups in order of appearance
    phase = sum((df["token"] >= start).astype(int) for start in starts) if starts else df["token"] * 0
    keys = [phase] if by is None else [df[by], phase]
    means = df.groupby(keys, sort=False, dropna=False)[list(columns)].transform(
        lambda values: values.rolling(window, center=True, min_periods=1).mean()
    )
    return pd.concat([df.drop(columns=list(columns)), means], axis=1)
