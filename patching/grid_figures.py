"""How a grid looks: its map beside the maps of its nulls, and its columns as lines over layers."""

from typing import TYPE_CHECKING

import numpy as np

from mechinterp import figures
from mechinterp.theme import DIVERGING, finish, label, numbers
from patching.grid import LEAST, PatchGrid, Quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go


def maps(grid: PatchGrid, of: Quantity, metric: str | None) -> "go.Figure":
    """Heat maps side by side, one scale; blank cells are undefined in every case."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = (None, *grid.nulls)
    titles = [grid.donor, *(f"null: {name}" for name in grid.nulls)]
    figure = make_subplots(
        rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[label(title) for title in titles] if grid.nulls else None,
    )  # fmt: skip
    drawn = [_mean(grid, of, metric, name) for name in names]
    reach = (
        max((float(np.nanmax(np.abs(one))) for one in drawn if np.isfinite(one).any()), default=1.0) or 1.0
    )
    rows = [grid.layer_name(i) for i in range(len(grid.layers))]
    columns = [label(name, 22) for name in grid.labels]
    for place, one in enumerate(drawn):
        figure.add_trace(
            go.Heatmap(
                z=[numbers(line) for line in one], colorscale=DIVERGING, zmin=-reach, zmax=reach,
                hoverongaps=False, showscale=place == 0,
                customdata=[[f"layer {row}, {column}" for column in columns] for row in rows],
                hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>",
                colorbar={
                    "title": {"text": label(_title(grid, of, metric)), "side": "right"}, "thickness": 14,
                },
            ), row=1, col=place + 1,
        )  # fmt: skip
    finish(
        figure, _heading(grid), _subtitle(grid), _notes(grid, of, metric),
        x_title="", y_title="",
    )  # fmt: skip
    every = max(1, len(columns) // 40)
    shown = list(range(0, len(columns), every))
    figure.update_xaxes(tickvals=shown, ticktext=[columns[i] for i in shown], tickangle=-60, tickfont_size=10)
    every = max(1, len(rows) // 32)
    figure.update_yaxes(
        tickvals=list(range(0, len(rows), every)), ticktext=rows[::every], tickfont_size=11,
        autorange="reversed",
    )  # fmt: skip
    figure.update_yaxes(title_text="layer", col=1)
    top = figure.to_dict()["layout"]["margin"]["t"] + (24 if grid.nulls else 0)
    figure.update_layout(height=max(460, 240 + 15 * len(rows)), margin_t=top)
    return figure


def profile(grid: PatchGrid, of: Quantity, metric: str | None) -> "go.Figure":
    """A line a column over single layers, mean over cases with pointwise bounds."""
    import pandas as pd

    mean = grid.mean(of, metric)
    n = len(grid.columns)
    lines = [
        {
            "layer": part[0],
            "column": column,
            "mean": float(mean.estimate[i * n + j]),
            "low": float(mean.low[i * n + j]),
            "high": float(mean.high[i * n + j]),
        }
        for i, part in enumerate(grid.layers)
        for j, column in enumerate(grid.columns)
    ]
    if any(len(part) > 1 for part in grid.layers):
        raise ValueError("a profile runs over single layers; this grid patches sets of them, see figure()")
    return figures.per_layer(
        pd.DataFrame(lines), "mean", by="column", low="low", high="high",
        subtitle=_subtitle(grid, mean.method),
        title=_heading(grid), y_title=_title(grid, of, metric),
    )  # fmt: skip


def _mean(grid: PatchGrid, of: Quantity, metric: str | None, null: str | None) -> np.ndarray:
    """Mean over the cases that have a value; NaN where none has."""
    values = grid.quantity(of, metric, null)
    kept = np.isfinite(values).all(1)
    mean = values[kept].mean(0) if kept.any() else np.full(values.shape[1], np.nan)
    return mean.reshape(len(grid.layers), len(grid.columns))


def _heading(grid: PatchGrid) -> str:
    if grid.site == "attention":
        return f"attention knocked out in {grid.target}"
    return f"{grid.site} patched into {grid.target}"


def _title(grid: PatchGrid, of: Quantity, metric: str | None) -> str:
    name = grid.metrics[grid.metric(metric)]
    return f"change of {name}" if of == "effect" else f"recovered fraction of {name}"


def _subtitle(grid: PatchGrid, band: str = "none") -> str:
    n = len(grid.cases) if grid.clusters is None else len(set(grid.clusters))
    said = [f"{len(grid.cases)} texts"] if grid.clusters is not None else []
    return figures.caption(
        f"{grid.donor} → {grid.target}", n=n, unit=grid.unit, seeds=(grid.seed,), band=band,
        more=[*said, f"engine: {grid.engine}"],
    )  # fmt: skip


def _notes(grid: PatchGrid, of: Quantity, metric: str | None) -> list[str]:
    n = grid.n_undefined(metric)
    if of == "effect" or not n:
        return []
    return [f"{n} of {len(grid.cases)} texts are left out: donor and target differ by less than {LEAST:g}"]
