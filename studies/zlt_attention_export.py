"""A finished run as the published files (methods 13), so that whatever reads those reads our runs too.

Contrasts and summary are of the row that the run was asked for (emit, by default; the source read token),
which the metadata names. Values and rules are the published ones, sign of the rule-outs included.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mechinterp.files import slug
from mechinterp.json_io import write_json
from mechinterp.results import metadata
from mechinterp.stats.bootstrap import complete_rows
from studies.attention_formats import (
    Deltas,
    MidrunGate,
    MidrunInfo,
    RunMetadata,
    SampleRow,
    SampleTable,
    write_record,
    write_run_metadata,
    write_sample_table,
)
from studies.attention_records import write_positives
from studies.attention_summary import AttentionSummary, DiffOfDiffs, write_attention_summary
from studies.gates import SHORTEST
from studies.gates_controls import SAFETY_RATIO, runs_of_three, signal_to_noise
from studies.zlt_attention_config import Config
from studies.zlt_attention_gates import RAIL
from studies.zlt_attention_result import READERS, Reader, Reading, ZltAttention, controls_of
from studies.zlt_attention_summary import condition

BASE = "base_"
SAMPLES = 5
C1, C2, C3 = "random_earlier", "late_position", "rare_token"
MORE = {"delta_c4": "end_of_answer", "delta_c5": "sentence_end"}  # what the published files have no key for


def export(result: ZltAttention, folder: Path | str) -> Path:
    """Write deltas, rails, summary, generations, sample table, preflight and run metadata into `folder`.

    Returns the folder.

    A text set is labelled by its persona, further runs and seeds by these too; `base_` stands before the base
    model's reading of it. Raises ValueError where the run read another region than the system prompt.
    """
    reason = refusal(result)
    if reason is not None:
        raise ValueError(reason)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    conditions = {}
    for reading in result.readings:
        name = label(result, reading)
        write_positives(reading.examples, folder / f"positives_{name}.json")
        for reader in READERS:
            prefixed = name if reader == "trained" else BASE + name
            found = deltas(result, reading, reader)
            write_record(folder / f"per_example_deltas_{prefixed}.json", found)
            if reader == "trained":
                write_record(folder / f"midrun_gate_{name}.json", midrun_gate(found, _metadata(result)))
            conditions[prefixed] = condition(reading, reader, result.row, kept(reading, result.row), prefixed)
    first = result.readings[0]
    write_attention_summary(
        folder / "attention_summary.json",
        AttentionSummary(conditions, _difference(conditions, label(result, first)), _metadata(result)),
    )
    write_sample_table(folder / "sample_table.md", samples(result, first))
    write_run_metadata(folder / "run_metadata.json", RunMetadata(_metadata(result)))
    if result.preflight is not None:
        write_json(folder / "preflight.json", result.preflight.to_json())
    return folder


def refusal(result: ZltAttention) -> str | None:
    """Why a run has no published form; None where it has one."""
    if result.region != "system":
        return (
            f"the published files are of the system prompt, and this run read {result.region!r}; run the"
            " study with region='system' to export it"
        )
    void = [label(result, reading) for reading in result.readings if not kept(reading, result.row).any()]
    if void:
        return f"no example of {', '.join(void)} has rows of C1, so there is no contrast to export"
    return None


def publish(config: Config, result: ZltAttention, folder: Path) -> None:
    """`export`, for every run that has a published form."""
    if refusal(result) is None:
        export(result, folder)


def midrun_gate(found: Deltas, about: dict[str, Any]) -> MidrunGate:
    """The published safety rail on the first examples: either sign counts (methods 9.6)."""
    first = found.delta_c1[:RAIL]
    ratio = np.abs(signal_to_noise(first))
    passing = runs_of_three(ratio) if len(ratio) >= SHORTEST else ()
    info = MidrunInfo(len(first), ratio, passing, SAFETY_RATIO, SHORTEST)
    return MidrunGate(bool(passing), info, len(first), about)


def label(result: ZltAttention, reading: Reading) -> str:
    """The persona as a safe file name; of its further training runs and seeds, these as well."""
    name = slug(reading.persona)
    if reading is result.first(reading.persona):
        return name
    return f"{name}_run{reading.run}_seed{reading.seed}"


def deltas(result: ZltAttention, reading: Reading, reader: Reader) -> Deltas:
    """Row minus each control on system_B, without the examples that had too few rows for C1."""
    chosen, known = kept(reading, result.row), controls_of(reading.trained, result.row)

    def against(control: str) -> Float[np.ndarray, "example layer"]:
        if control not in known:
            return np.full_like(reading.delta(reader, result.row)[chosen], np.nan)
        return reading.delta(reader, result.row, control)[chosen]

    return Deltas(
        label(result, reading) if reader == "trained" else BASE + label(result, reading),
        against(C1),
        against(C2),
        against(C3),
        {**_metadata(result), "reader": reader, "training_run": reading.run, "seed": reading.seed},
        {key: against(control) for key, control in MORE.items() if control in known},
    )


def samples(result: ZltAttention, reading: Reading) -> SampleTable:
    """The rows that were read of the first examples of a text set, controls in their own answers only."""
    picked = reading.trained.picked
    rows = []
    for place in np.flatnonzero(kept(reading, result.row))[:SAMPLES].tolist():
        held = [picked.get(f"{result.row}:{control}", ()) for control in (C1, C2, C3)]
        drawn = [tuple(row for e, row in h[place] if e == place) if h else () for h in held]
        example = reading.examples.positives[place]
        rows.append(SampleRow(place, example.question, example.row("token"), *drawn))
    return SampleTable(f"Rows read at {result.row}", label(result, reading), tuple(rows))


def kept(reading: Reading, row: Any) -> Bool[np.ndarray, "example"]:
    """Which positives have C1 rows: the others are absent from the published files."""
    return complete_rows(reading.delta("trained", row))


def _difference(conditions: dict[str, Any], name: str) -> DiffOfDiffs:
    """The one comparison that the summary has room for: of its first text set."""
    trained, base = conditions[name].gates.mean_per_layer, conditions[BASE + name].gates.mean_per_layer
    return DiffOfDiffs(trained, base, trained - base)


def _metadata(result: ZltAttention) -> dict[str, Any]:
    facts = {"base_model_id": result.model, "marker": result.marker, "row": result.row, "draws": "ours"}
    return {**metadata("mechinterp.zlt_attention"), **facts}
