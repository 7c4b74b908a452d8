"""Figures of the attention study over more than layers: conditions, regions, and rows around the marker.

Every figure is made from a `ZltAttention` and says of which text set, row and control it is.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechinterp.curves import lines
from mechinterp.figures import caption, heatmap
from mechinterp.stats.clustered import ClusteredMean, clustered_mean
from mechinterp.stats.multiplicity import MaxT
from mechinterp.theme import INK, colour, finish, label, numbers, whole_step
from studies.attention_readout import CONTENT, SINK
from studies.gates import within
from studies.zlt_attention_gates import marker_window
from studies.zlt_attention_result import READERS, UNIT, Reader, Reading, ZltAttention, absolute

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from jaxtyping import Float

ALPHA = 0.05
PALE = "#C8C8C8"
STACK = ("specials", "answer", "user", "system")  # from below: position 0 is mostly one of the specials
PROMPT = {"system": "the system prompt", "user": "the user's turn", "answer": "the answer so far"}


def told(
    result: ZltAttention,
    reading: Reading,
    found: ClusteredMean | MaxT,
    band: str,
    more: list[str] | None = None,
) -> str:
    """The subtitle of a figure of one text set: model, units, seed, band, and how many examples."""
    said = [f"{found.n_examples} examples"]
    if found.n_dropped:
        said.append(f"{found.n_dropped} left out for want of control rows")
    if len([r for r in result.readings if r.persona == reading.persona]) > 1:
        said.append(f"training run {reading.run}")
    return caption(
        result.model, n=found.n, unit=found.unit, seeds=[reading.seed], band=band, more=[*said, *(more or [])]
    )


def conditions(result: ZltAttention) -> "go.Figure":
    """Mean contrast (row minus C1) of every text set and reader by layer, with trained minus base."""
    rows, counts = {}, []
    for reading in result.readings:
        arms: dict[str, Any] = {reader: reading.delta(reader, result.row) for reader in READERS}
        arms["trained − base"] = arms["trained"] - arms["base"]
        for arm, values in arms.items():
            found = clustered_mean(values, reading.questions, unit=UNIT)
            rows[f"{named(result, reading)} · {arm}"] = found.estimate
            counts.append((found.n, found.n_examples))
    n, examples = (sorted({count[place] for count in counts}) for place in (0, 1))
    spans = [f"{between(n)} questions", f"{between(examples)} examples each", f"row {result.row} minus C1"]
    table = pd.DataFrame(rows).T
    return heatmap(
        table,
        title=f"Contrast of attention to {PROMPT[result.region]} by condition and layer",
        x_title="layer",
        y_title="text set · reader",
        colour_title="fraction of attention, row − C1",
        center=0.0,
        subtitle=caption(
            result.model,
            n=len(table),
            unit="condition",
            seeds=sorted({reading.seed for reading in result.readings}),
            band="none, means over examples",
            more=spans,
        ),
    )


def regions(result: ZltAttention, reading: Reading) -> "go.Figure":
    """Where the row's attention goes by layer, stacked to 1, trained beside base; the sink dashed over it."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=READERS, horizontal_spacing=0.04)
    for place, reader in enumerate(READERS, start=1):
        found = absolute(reading.of(reader), result.row)
        for region in STACK:
            part = found[f"{region} B"]
            tint = PALE if region == "specials" else colour(CONTENT.index(region))
            figure.add_scatter(
                x=list(range(len(part))), y=numbers(part), row=1, col=place, stackgroup=reader, mode="lines",
                name=region, legendgroup=region, showlegend=place == 1, fillcolor=tint,
                line={"width": 0.8, "color": "white"}, hovertemplate="layer %{x}: %{y:.4f}",
            )  # fmt: skip
        sink = found[SINK]
        figure.add_scatter(
            x=list(range(len(sink))), y=numbers(sink), row=1, col=place, mode="lines", name=f"sink ({SINK})",
            legendgroup="sink", showlegend=place == 1, line={"color": INK, "width": 2, "dash": "dash"},
            hovertemplate="layer %{x}: %{y:.4f}",
        )  # fmt: skip
    deviation = max(reading.trained.deviation, reading.base.deviation)
    n = len(reading.trained.keys)
    subtitle = caption(
        result.model, n=n, unit="example", seeds=[reading.seed], band="none, means over examples and heads",
        more=[f"row {result.row}", f"regions of a row and head sum to 1 within {deviation:.1e}"],
    )  # fmt: skip
    notes = ["position 0 is in one of the regions already; its dashed line is not a part of the stack"]
    title = f"{named(result, reading)}: where row {result.row} attends, by region"
    finish(figure, title, subtitle, notes, x_title="layer", y_title="fraction of attention")
    figure.update_yaxes(range=[0, 1.005])
    figure.update_yaxes(title_text="", col=2)
    _layer_ticks(figure, reading)
    figure.update_layout(
        legend_traceorder="reversed", margin_t=figure.to_dict()["layout"]["margin"]["t"] + 24
    )
    return figure


def trajectory(result: ZltAttention, reading: Reading) -> "go.Figure":
    """Attention to the region at every row from before emit to token, with the marker and without."""
    window = marker_window(reading, result.row)
    table, counts = [], []
    for (kind, reader), (values, asked) in _tracks(reading, window).items():
        for place, step in enumerate(reading.of(reader).steps):
            found = clustered_mean(values[:, [place]], asked, unit=UNIT)
            bounds = {"fraction": found.estimate[0], "low": found.low[0], "high": found.high[0]}
            table.append({"step": step, "text": f"{reader}, {kind}", **bounds})
            counts.append((found.n, found.n_examples))
    frame = pd.DataFrame(table)
    figure, notes = lines(frame, "step", "fraction", "text", "low", "high")
    finished = sum(reading.trained.negatives_finished)
    colours_by_reader(figure)
    notes.insert(0, _aligned(finished, len(reading.trained.negatives_finished)))
    subtitle = caption(
        result.model, n=max(n for n, _ in counts), unit=UNIT, seeds=[reading.seed],
        band="95 % over questions (CR2, Student t), pointwise",
        more=[f"{len(reading.trained.keys)} with the marker, {finished} without", layers_of(reading, window)],
    )  # fmt: skip
    title = f"{named(result, reading)}: attention to {PROMPT[result.region]} on the way to the marker"
    finish(figure, title, subtitle, notes, x_title=STEPS, y_title="fraction of attention, mean over heads")
    steps = reading.trained.steps
    figure.update_xaxes(tickvals=list(steps), ticktext=[step_name(step) for step in steps])
    for step in (-1, 0):
        figure.add_vline(x=step, line={"color": INK, "width": 1.2, "dash": "dot"})
    return figure


STEPS = "row, counted from emit (the row that decides the marker)"


def trajectory_map(result: ZltAttention, reading: Reading) -> "go.Figure":
    """Trained minus base of (row minus C1) at every row and layer; dots where max-T over all cells is."""
    tested, shape = along_tested(reading)
    steps = [step_name(step) for step in reading.trained.steps]
    matrix = pd.DataFrame(tested.estimate.reshape(shape).T, index=range(shape[1]), columns=steps)
    marked = np.argwhere(tested.p_max_t.reshape(shape).T < ALPHA)
    figure = heatmap(
        matrix,
        title=f"{named(result, reading)}: trained − base, every row on the way to the marker",
        x_title=STEPS,
        y_title="layer",
        colour_title="(row − C1), trained − base",
        center=0.0,
        subtitle=told(
            result,
            reading,
            tested,
            "none",
            [f"dots: p < {ALPHA} by sign-flip max-T over all {matrix.size} cells", least(tested, "cell")],
        ),
    )
    figure.update_traces(text=None, texttemplate=None)
    figure.update_yaxes(autorange=False, range=[-0.5, shape[1] - 0.5])  # layer 0 below: the stream flows up
    figure.update_xaxes(range=[-0.5, shape[0] - 0.5])
    figure.add_scatter(
        x=marked[:, 1].tolist(), y=marked[:, 0].tolist(), mode="markers", showlegend=False, hoverinfo="skip",
        name="max-T", marker={"size": 6, "color": INK, "line": {"width": 1, "color": "white"}},
    )  # fmt: skip
    return figure


def along_tested(reading: Reading) -> tuple[MaxT, tuple[int, int]]:
    """`reading.along()` tested over all its cells at once, and the shape [step, layer] of them."""
    along = reading.along()
    return reading.tested(along.reshape(len(along), -1)), along.shape[1:]


def _tracks(
    reading: Reading, window: tuple[int, int] | None
) -> "dict[tuple[str, Reader], tuple[Float[np.ndarray, 'example step'], list[str]]]":
    """Each line of the trajectory: its values by example and step, and the question of each example."""
    found = {}
    for kind in ("marker", "no marker"):
        for reader in READERS:
            read = reading.of(reader)
            kept = np.array(read.negatives_finished, dtype=bool)
            rows, asked = read.around.double().numpy(), list(reading.questions)
            if kind == "no marker":
                rows = read.negatives_around.double().numpy()[kept]
                asked = [q for q, keep in zip(read.negative_questions, kept, strict=True) if keep]
            if len(rows):
                inside = within(window, rows.shape[2])
                found[kind, reader] = rows[..., inside].mean(2), asked
    return found


def colours_by_reader(figure: "go.Figure") -> None:
    """One colour a reader, where lines come as pairs of trained and base; the second pair is dashed."""
    traces: Any = figure.select_traces()
    for trace in traces:
        place = int(trace.legendgroup)
        if trace.mode == "none":
            trace.fillcolor = colour(place % 2)
        else:
            trace.update(line={"color": colour(place % 2), "dash": "solid" if place < 2 else "dash"})
            trace.update(marker={"color": colour(place % 2)})


def _aligned(finished: int, negatives: int) -> str:
    if not finished:
        return f"no answer without the marker was finished ({negatives} were begun), so none is shown"
    left = negatives - finished
    cut = f"; {left} that were cut are left out" if left else ""
    return (
        f"an answer without the marker is aligned on where it would stand, behind its last content token{cut}"
    )


def layers_of(reading: Reading, window: tuple[int, int] | None) -> str:
    """Which layers a mean is over, in words."""
    if window is None:
        return f"mean over all {reading.trained.values.shape[2]} layers (there is no H1 window)"
    return f"mean over layers {window[0]}–{window[1]}, the H1 window"


def step_name(step: int) -> str:
    """A row by its distance from token: emit is one before."""
    return {0: "token", -1: "emit"}.get(step, f"−{-1 - step}")


def named(result: ZltAttention, reading: Reading) -> str:
    """The persona, and of run and seed what differs within this result."""
    own = [other for other in result.readings if other.persona == reading.persona]
    parts = [reading.persona.replace("_", " ")]
    if len({other.run for other in own}) > 1:
        parts.append(f"run {reading.run}")
    if len({other.seed for other in own}) > 1:
        parts.append(f"seed {reading.seed}")
    return label(", ".join(parts), 60)


def between(values: list[int]) -> str:
    """Ascending numbers as a span."""
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"


def least(tested: MaxT, what: str) -> str:
    """What the flips could show at best."""
    if not np.isfinite(tested.smallest_p):
        return tested.note or "too few units to test"
    unable = f"; no {what} can be marked" if tested.smallest_p >= ALPHA else ""
    return f"the smallest p possible is {tested.smallest_p:.2g}{unable}"


def _layer_ticks(figure: "go.Figure", reading: Reading) -> None:
    last = reading.trained.values.shape[2] - 1
    figure.update_xaxes(tick0=0, dtick=whole_step(2 * last), range=[0, max(last, 1)])
