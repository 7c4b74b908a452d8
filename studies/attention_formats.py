"""The published files of the attention study (methods 13), read and written value for value.

Field names are the keys of the files. `positives_{persona}.json` is read by `studies/attention_records.py`,
the summary by `studies/attention_summary.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechinterp.files import write_bytes
from mechinterp.json_io import read_json, write_json
from studies.attention_formats_codec import Layers, Table, encode_record, read_record

HEADINGS = ("ex_idx", "question", "t_marker", "c1_positions", "c2_positions", "c3_positions")


@dataclass(frozen=True, eq=False)
class Deltas:
    """Marker row minus the mean of each control's rows: share on system_B, mean over heads (methods 9.5).

    Rows are the positives in their order, without those that had too few C1 rows.
    """

    persona: str
    delta_c1: Table
    delta_c2: Table
    delta_c3: Table
    metadata: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("delta_c2", "delta_c3"):
            shape = getattr(self, name).shape
            if shape != self.delta_c1.shape:
                raise ValueError(f"$.{name} is {shape} where delta_c1 is {self.delta_c1.shape}; (n, layers)")


@dataclass(frozen=True, eq=False)
class Preflight:
    """Marker rates under each attention implementation, and whether they differ by less than is tolerated."""

    rates: Mapping[str, float]
    delta: float
    tolerance_pp: float  # a fraction in the published file, whatever its name says: 0.05
    passed: bool
    metadata: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MidrunInfo:
    """The safety rail's signal-to-noise per layer, and the runs of `contig` layers above the threshold."""

    n_examples: int
    snr_per_layer: Layers
    passing_windows: tuple[tuple[int, float], ...]  # first layer, smallest ratio within
    threshold: float
    contig: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MidrunGate:
    """The safety rail after the first examples (methods 9.6)."""

    passed: bool
    info: MidrunInfo
    n_examples: int
    metadata: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunMetadata:
    """Versions, commit and pinned revisions of a run, as they stand in its file."""

    values: Mapping[str, Any]

    @property
    def model_revision(self) -> str | None:
        return self.values.get("hf_pinned_revision")

    @property
    def base_revision(self) -> str | None:
        return self.values.get("base_model_revision")

    @property
    def versions(self) -> dict[str, Any]:
        """The entries that name a version, by library."""
        ending = "_version"
        return {name.removesuffix(ending): v for name, v in self.values.items() if name.endswith(ending)}


@dataclass(frozen=True)
class SampleRow:
    """Which rows were read of one example; positions are absolute, `token` is t*."""

    index: int
    question: str
    token: int
    c1: tuple[int, ...]
    c2: tuple[int, ...]
    c3: tuple[int, ...]


@dataclass(frozen=True)
class SampleTable:
    """The first examples of a persona with the rows that were read of each."""

    title: str
    persona: str
    rows: tuple[SampleRow, ...]


def read_deltas(path: Path | str) -> Deltas:
    """`per_example_deltas_{label}.json`; a ValueError names the file and the field."""
    return read_record(Deltas, path)


def read_preflight(path: Path | str) -> Preflight:
    """`preflight.json`; a ValueError names the file and the field."""
    return read_record(Preflight, path)


def read_midrun_gate(path: Path | str) -> MidrunGate:
    """`midrun_gate_{persona}.json`; a ValueError names the file and the field."""
    return read_record(MidrunGate, path)


def read_run_metadata(path: Path | str) -> RunMetadata:
    """`run_metadata.json`: any object."""
    values = read_json(Path(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: $ is a {type(values).__name__}; write an object")
    return RunMetadata(values)


def write_record(path: Path | str, record: Deltas | Preflight | MidrunGate) -> None:
    """One JSON file under the published keys; NaN becomes null."""
    write_json(Path(path), encode_record(record))


def write_run_metadata(path: Path | str, record: RunMetadata) -> None:
    """One JSON file with the values as they are."""
    write_json(Path(path), record.values)


def read_sample_table(path: Path | str) -> SampleTable:
    """`sample_table.md`: a title, the persona and a Markdown table; a ValueError names the line."""
    title, persona, rows = "", "", []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# "):
            title = line[2:].strip()
        elif line.startswith("Persona:"):
            persona = line.removeprefix("Persona:").strip()
        elif line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
            if tuple(cells) == HEADINGS or all(set(cell) <= set("-:") for cell in cells):
                continue
            rows.append(_sample_row(cells, f"{path}, line {number}"))
    return SampleTable(title, persona, tuple(rows))


def write_sample_table(path: Path | str, table: SampleTable) -> None:
    """The table as Markdown, under the published headings."""
    lines = [f"# {table.title}", "", f"Persona: {table.persona}", ""]
    lines += [_markdown(HEADINGS), "|" + "---|" * len(HEADINGS)]
    for row in table.rows:
        question = " ".join(row.question.split()).replace("|", r"\|")
        lines.append(
            _markdown([row.index, question, row.token, *(list(rows) for rows in (row.c1, row.c2, row.c3))])
        )
    write_bytes(Path(path), ("\n".join(lines) + "\n").encode())


def _sample_row(cells: Sequence[str], where: str) -> SampleRow:
    if len(cells) != len(HEADINGS):
        raise ValueError(f"{where} has {len(cells)} cells; write {len(HEADINGS)}: {', '.join(HEADINGS)}")
    values: dict[str, str] = dict(zip(HEADINGS, cells, strict=True))

    def held(name: str, kind: type) -> Any:
        try:
            found = json.loads(values[name])
        except json.JSONDecodeError:
            found = None
        whole = found if isinstance(found, list) else [found]
        if not isinstance(found, kind) or not all(type(each) is int for each in whole):
            asked = "a list of positions" if kind is list else "a whole number"
            raise ValueError(f"{where}: {name} is {values[name]!r}; write {asked}")
        return found

    c1, c2, c3 = (tuple(held(f"{name}_positions", list)) for name in ("c1", "c2", "c3"))
    question = values["question"].replace(r"\|", "|")
    return SampleRow(held("ex_idx", int), question, held("t_marker", int), c1, c2, c3)


def _markdown(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
