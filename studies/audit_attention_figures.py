"""The figures of the attention audit, drawn from the records that its findings come from."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechinterp.figures import caption, heatmap, per_layer
from mechinterp.files import slug
from mechinterp.stats.bootstrap import complete_rows, published_sem
from mechinterp.stats.multiplicity import MaxT, max_t
from mechinterp.theme import numbers
from studies.audit_attention_base import paired
from studies.audit_attention_controls import questions
from studies.audit_attention_gates import mean_contrast
from studies.audit_attention_records import BASE, Records

if TYPE_CHECKING:
    import plotly.graph_objects as go

SIMULTANEOUS = "95 % simultaneous over layers"
SHARE = "share on system_B: marker − C1"


def all_figures(records: Records) -> "dict[str, tuple[go.Figure, str]]":
    """Every figure that the records allow, with what it shows."""
    found: dict[str, tuple[go.Figure, str]] = {}
    for label in records.labels:
        if label in records.deltas and not label.startswith(BASE):
            found[_file(f"contrast-{label}")] = (
                contrasts(records, label),
                "Bars are ±1 published bootstrap SEM; the band holds for all layers at once.",
            )
    for label, _ in records.pairs:
        if paired(records, label) is not None:
            found[_file(f"paired-difference-{label}")] = (
                differences(records, label),
                "Each example is its own control; bars that leave zero do so among all layers at once.",
            )
    if any(mean_contrast(records, label) is not None for label in records.labels):
        found["conditions-by-layer"] = (conditions(records), "Mean contrast of every condition.")
    for label in records.labels:
        if label in records.deltas:
            found[_file(f"rule-outs-{label}")] = (
                rule_outs(records, label),
                "Solid: the marker minus the control, which must lie above zero. Dashed: what the stored"
                " flags test, the control minus C1.",
            )
    return found


def contrasts(records: Records, label: str) -> "go.Figure":
    """Mean contrast by layer, trained and base where both are here."""
    parts, errors = [], []
    for name in (label, BASE + label):
        if name not in records.deltas:
            continue
        found, sem = _over_layers(records, name)
        kind = "base, fed the same ids" if name.startswith(BASE) else "trained"
        parts.append(_frame(found).assign(model=kind))
        errors.append(sem)
    n = len(records.deltas[label].delta_c1)
    figure = per_layer(
        pd.concat(parts),
        "delta",
        by="model",
        low="low",
        high="high",
        title=f"{label}: contrast on the system prompt by layer",
        y_title=SHARE,
        subtitle=_caption(records, n, f"{SIMULTANEOUS}; bars ±1 SEM", parts[0].attrs["unit"]),
    )
    _add_errors(figure, errors)
    _zero(figure)
    return figure


def differences(records: Records, label: str) -> "go.Figure":
    """Paired difference trained minus base by layer, as bars with the simultaneous interval."""
    pair = paired(records, label)
    if pair is None:
        raise ValueError(f"{label} has no paired base records; ask only for pairs")
    found = max_t(pair.differences, pair.asked, unit=pair.unit)
    frame = _frame(found)
    figure = per_layer(
        frame,
        "delta",
        title=f"{label}: trained minus base, paired by example",
        y_title="difference of contrasts",
        subtitle=_caption(records, found.n_examples, SIMULTANEOUS, pair.unit),
    )
    figure.update_traces(visible=False)
    outside = (found.low > 0) | (found.high < 0)
    figure.add_bar(
        x=frame["layer"], y=numbers(frame["delta"]), showlegend=False,
        marker_color=["#0072B2" if each else "#A9B8C4" for each in outside],
        error_y={"array": numbers(found.high - found.estimate), "thickness": 1.2, "width": 2},
        hovertemplate="layer %{x}: %{y:.4f}<extra></extra>",
    )  # fmt: skip
    _zero(figure)
    return figure


def conditions(records: Records) -> "go.Figure":
    """Condition by layer."""
    means = {label: mean_contrast(records, label) for label in records.labels}
    held = {label: mean for label, mean in means.items() if mean is not None}
    return heatmap(
        pd.DataFrame(np.stack(list(held.values())), index=list(held), columns=range(records.n_layers or 0)),
        title="Contrast on the system prompt by condition and layer",
        x_title="layer",
        y_title="condition",
        colour_title="marker − C1",
        center=0.0,
        subtitle=_caption(records, len(held), "none, means over examples", "condition"),
    )


def rule_outs(records: Records, label: str) -> "go.Figure":
    """Marker minus C2 and C3 with the published error, beside the difference that was coded."""
    deltas = records.deltas[label]
    parts = []
    for name, control in (("C2", deltas.delta_c2), ("C3", deltas.delta_c3)):
        for kind, rows in (
            (f"marker − {name}", control),
            (f"as coded: {name} − C1", deltas.delta_c1 - control),
        ):
            kept = rows[complete_rows(rows)]
            mean, sem = kept.mean(0), published_sem(kept)
            parts.append(
                pd.DataFrame(
                    {
                        "layer": range(len(mean)),
                        "delta": mean,
                        "low": mean - sem,
                        "high": mean + sem,
                        "test": kind,
                    }
                )
            )
    figure = per_layer(
        pd.concat(parts),
        "delta",
        by="test",
        low="low",
        high="high",
        title=f"{label}: rule-outs of C2 and C3, right sign and as coded",
        y_title="share on system_B",
        subtitle=_caption(records, len(deltas.delta_c1), "±1 bootstrap SEM", "example"),
    )
    figure.for_each_trace(
        lambda trace: trace.update(line_dash="dash" if trace.name.startswith("as coded") else "solid")
    )
    _zero(figure)
    return figure


def _file(name: str) -> str:
    """A name that a figure's file can have: another for another label."""
    return slug(name).replace(".", "-")


def _over_layers(records: Records, label: str) -> tuple[MaxT, np.ndarray]:
    delta = records.deltas[label].delta_c1
    asked = questions(records, label, len(delta))
    found = max_t(delta, asked, unit="example" if asked is None else "question")
    return found, published_sem(delta)


def _frame(found: MaxT) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "layer": range(len(found.estimate)),
            "delta": found.estimate,
            "low": found.low,
            "high": found.high,
        }
    )
    frame.attrs["unit"] = found.unit
    return frame


def _add_errors(figure: "go.Figure", errors: list[np.ndarray]) -> None:
    traces: Any = figure.select_traces()
    lines = [trace for trace in traces if trace.name != "band"]
    for trace, sem in zip(lines, errors, strict=False):
        trace.update(error_y={"array": numbers(sem), "thickness": 1.2, "width": 2})


def _zero(figure: "go.Figure") -> None:
    figure.add_hline(y=0, line={"color": "#666666", "width": 1})


def _caption(records: Records, n: int, band: str, unit: str) -> str:
    about: dict[str, Any] = dict(records.summary.metadata or {}) if records.summary else {}
    over = [] if unit in ("example", "condition") else [f"units are {unit}s"]
    counted = "condition" if unit == "condition" else "example"
    model = str(about.get("base_model_id") or "published records")
    return caption(model, n=n, unit=counted, seeds=[42] if records.published else [], band=band, more=over)
