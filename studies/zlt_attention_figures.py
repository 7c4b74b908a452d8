"""The figures of the attention study (methods 14): contrasts by layer, trained against base, and rates.

Each is made from a `ZltAttention`; those over regions, rows and conditions are in `zlt_attention_maps`.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechinterp.figures import caption, per_layer
from mechinterp.stats.clustered import ClusteredMean, clustered_mean
from mechinterp.stats.multiplicity import MaxT
from mechinterp.theme import INK, colour, ends, finish, numbers, whole_step
from studies.zlt_attention_gates import SHORT
from studies.zlt_attention_maps import (
    ALPHA,
    PROMPT,
    along_tested,
    colours_by_reader,
    conditions,
    layers_of,
    least,
    marker_window,
    named,
    regions,
    step_name,
    told,
    trajectory,
    trajectory_map,
)
from studies.zlt_attention_rates import rates
from studies.zlt_attention_result import READERS, ROWS, UNIT, Query, Reading, ZltAttention, controls_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

POINTWISE = "95 % over questions (CR2, Student t), pointwise"
TINTS = {"raised": colour(1), "lowered": colour(0), "not told from 0": "#B8B8B8"}


def curves(result: ZltAttention, reading: Reading) -> "go.Figure":
    """The contrast (row minus C1) by layer, trained and base on the same ids, with simultaneous bands."""
    tested = {reader: reading.tested(reading.delta(reader, result.row)) for reader in READERS}
    parts = [
        found.band().to_dataframe("layer", "contrast").assign(reader=reader)
        for reader, found in tested.items()
    ]
    found = tested["trained"]
    return _contrasts(
        pd.concat(parts),
        "reader",
        title=f"{named(result, reading)}: row {result.row} minus C1, trained and base",
        subtitle=told(result, reading, found, f"95 % simultaneous over {len(found.estimate)} layers",
                      ["critical values " + ", ".join(f"{t.critical:.2f} ({r})" for r, t in tested.items())]),
        region=result.region,
    )  # fmt: skip


def difference(result: ZltAttention, reading: Reading) -> "go.Figure":
    """Trained minus base by layer, paired by example: coloured where the sign-flip max-T says so."""
    import plotly.graph_objects as go

    tested, pointwise = difference_tested(result, reading)
    figure = go.Figure()
    verdicts = np.array([_verdict(e, p) for e, p in zip(tested.estimate, tested.p_max_t, strict=True)])
    for verdict, tint in TINTS.items():
        layers = np.flatnonzero(verdicts == verdict)
        figure.add_bar(
            x=layers.tolist(), y=numbers(tested.estimate[layers]), name=verdict, marker_color=tint,
            width=0.8,  # else a trace of a few layers has bars as wide as these are apart
            customdata=[_p_values(tested, layer) for layer in layers.tolist()],
            hovertemplate="layer %{x}: %{y:.4g}<br>%{customdata}<extra></extra>",
        )  # fmt: skip
    for name, held, width in (("simultaneous", tested, 1.2), ("pointwise", pointwise, 4)):
        figure.add_scatter(
            x=list(range(len(tested.estimate))), y=numbers(tested.estimate), mode="markers", name=name,
            marker={"size": 1, "color": INK}, hoverinfo="skip", showlegend=False,
            error_y={"type": "data", "array": numbers(held.high - held.estimate), "symmetric": False,
                     "arrayminus": numbers(held.estimate - held.low), "thickness": width, "width": 0,
                     "color": INK},
        )  # fmt: skip
    counted = f"{int((tested.p_max_t < ALPHA).sum())} of {len(verdicts)} layers at p < {ALPHA} by max-T"
    by_rate = f"{int((tested.p_bh < ALPHA).sum())} by Benjamini-Hochberg"
    band = f"thin 95 % simultaneous ({tested.critical:.2f} SE), thick 95 % pointwise"
    finish(
        figure,
        f"{named(result, reading)}: trained − base of (row {result.row} − C1)",
        told(result, reading, tested, band, [counted, by_rate, least(tested, "layer")]),
        [tested.note] if tested.note else [],
        x_title="layer",
        y_title=f"fraction of attention to {result.region}",
    )
    figure.update_layout(barmode="overlay", bargap=0.25, legend_traceorder="normal")
    figure.update_xaxes(tick0=0, dtick=whole_step(len(verdicts)), range=[-0.6, len(verdicts) - 0.4])
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    return figure


def difference_tested(result: ZltAttention, reading: Reading) -> tuple[MaxT, ClusteredMean]:
    """The paired diff-of-diffs of the study's row: tested over all layers, and each layer's own interval."""
    values = reading.difference(result.row)
    return reading.tested(values), clustered_mean(values, reading.questions, unit=UNIT)


def controls(result: ZltAttention, reading: Reading) -> "go.Figure":
    """The trained model's row minus each control by layer."""
    parts, counted = [], {}
    for control in controls_of(reading.trained, result.row):
        found = clustered_mean(reading.delta("trained", result.row, control), reading.questions, unit=UNIT)
        counted[SHORT[control]] = f"{found.n_examples} examples of {found.n} questions"
        parts.append(_by_layer(found).assign(control=control_name(control)))
    each = "; ".join(f"{name} {count}" for name, count in counted.items())
    if len(set(counted.values())) == 1:
        each = f"each of {next(iter(counted.values()))}"
    n = len(set(reading.questions))
    return _contrasts(
        pd.concat(parts),
        "control",
        title=f"{named(result, reading)}, trained: row {result.row} minus each control",
        subtitle=caption(result.model, n=n, unit=UNIT, seeds=[reading.seed], band=POINTWISE, more=[each]),
        region=result.region,
    )


def rows(result: ZltAttention, reading: Reading) -> "go.Figure":
    """The contrast to C1 at emit and at token: deciding the marker, and having read its first piece."""
    parts, found = [], None
    for row in _rows_read(reading):
        for reader in READERS:
            found = clustered_mean(reading.delta(reader, row), reading.questions, unit=UNIT)
            parts.append(_by_layer(found).assign(row=f"{reader}, {row}"))
    if found is None:
        raise ValueError(f"{reading.name} has neither emit nor token rows; read one of them")
    figure = _contrasts(
        pd.concat(parts),
        "row",
        title=f"{named(result, reading)}: emit against token, each minus its own C1",
        subtitle=told(result, reading, found, POINTWISE, ["emit = t* − 1, token = t*"]),
        region=result.region,
    )
    colours_by_reader(figure)
    return figure


def all_figures(result: ZltAttention) -> "dict[str, tuple[go.Figure, str]]":
    """Every figure of the report, with what it shows: first those of all conditions, then by persona."""
    found: dict[str, tuple[go.Figure, str]] = {
        "rates": (rates(result), "Only answers with the marker are read; this is how often there was one."),
        "conditions": (
            conditions(result),
            "Above 0 the row attends more to the region than C1 does, random earlier rows of its answer.",
        ),
    }
    for persona in result.personas:
        reading = result.first(persona)
        drawn = {
            "curves": (curves(result, reading), "Both models read the same ids at the same rows."),
            "difference": (
                difference(result, reading),
                said_of_layers(difference_tested(result, reading)[0]),
            ),
            "regions": (
                regions(result, reading),
                "Absolute fractions: what a contrast hides, and how much the specials and the sink absorb.",
            ),
            "trajectory": (
                trajectory(result, reading),
                f"Aligned on the marker; dotted lines stand at emit and token;"
                f" {layers_of(reading, marker_window(reading, result.row))}.",
            ),
            "trajectory-map": (trajectory_map(result, reading), _said_of_cells(reading)),
            "controls": (
                controls(result, reading),
                "A claim about the marker needs the row to exceed every control, not C1 alone.",
            ),
            "emit-token": (
                rows(result, reading),
                "The published study read token, where the marker's first piece is input already.",
            ),
        }
        found |= {_file(f"{name}-{persona}"): held for name, held in drawn.items()}
    return found


def said_of_layers(tested: MaxT) -> str:
    """Which layers differ, by max-T, with their sign."""
    if not np.isfinite(tested.p_max_t).any():
        return f"No test: {tested.note}."
    where = raised_and_lowered(tested)
    return f"Training against base, max-T over {len(tested.estimate)} layers: {where}."


def raised_and_lowered(tested: MaxT) -> str:
    """Raised in layers 3-5 and lowered in layer 9, or that no layer is told from 0 and why."""
    signs = {word: np.flatnonzero((tested.p_max_t < ALPHA) & (way * tested.estimate > 0))
             for word, way in (("raised", 1), ("lowered", -1))}  # fmt: skip
    said = [f"{word} in {_layers(layers)}" for word, layers in signs.items() if len(layers)]
    return " and ".join(said) or f"told from 0 in no layer ({least(tested, 'layer')})"


def control_name(control: str) -> str:
    """C1 random earlier."""
    return f"{SHORT[control]} {control.replace('_', ' ')}"


def _said_of_cells(reading: Reading) -> str:
    tested, shape = along_tested(reading)
    marked = np.asarray(tested.p_max_t < ALPHA).reshape(shape)
    rows = np.flatnonzero([bool(row.any()) for row in marked])
    steps = [step_name(reading.trained.steps[place]) for place in rows]
    where = f", at rows {', '.join(steps)}" if steps else ""
    return f"{int(marked.sum())} of {marked.size} cells differ between trained and base by max-T{where}."


def _contrasts(table: pd.DataFrame, by: str, *, title: str, subtitle: str, region: str) -> "go.Figure":
    figure = per_layer(
        table, "contrast", by=by, low="low", high="high", title=title, subtitle=subtitle,
        y_title=f"attention to {PROMPT[region]}, row − control",
    )  # fmt: skip
    across: Any = ends(table["layer"])
    if across[0] != across[1]:
        figure.add_hline(y=0, line={"color": INK, "width": 1})
    return figure


def _by_layer(found: ClusteredMean) -> pd.DataFrame:
    return found.curve().to_dataframe("layer", "contrast")


def _rows_read(reading: Reading) -> list[Query]:
    return [row for row in ROWS if "random_earlier" in controls_of(reading.trained, row)]


def _verdict(estimate: float, p: float) -> str:
    if not p < ALPHA:
        return "not told from 0"
    return "raised" if estimate > 0 else "lowered"


def _p_values(tested: MaxT, layer: int) -> str:
    held = {"max-T": tested.p_max_t, "BH": tested.p_bh, "alone": tested.p}
    return ", ".join(f"p {name} {values[layer]:.3g}" for name, values in held.items())


def _layers(layers: np.ndarray) -> str:
    """Layers as spans: layers 3–5, 9."""
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"layer{'' if len(layers) == 1 else 's'} {', '.join(spans)}"


def _file(name: str) -> str:
    """A name that a figure's file can have."""
    return re.sub("[^a-z0-9_-]", "_", name.lower())[:100]
