"""The records of an attention study in one directory: whatever files are there, read and checked.

A condition has a label: the persona whose model wrote the text, with `base_` before it where the base model
was fed that text. Nothing but the files is needed; what is missing is listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.files import file_sha256
from studies.attention_formats import (
    Deltas,
    MidrunGate,
    Preflight,
    SampleTable,
    read_deltas,
    read_midrun_gate,
    read_preflight,
    read_run_metadata,
    read_sample_table,
)
from studies.attention_records import Examples, read_positives
from studies.attention_summary import AttentionSummary, Condition, read_attention_summary

BASE = "base_"
ISSUE = 224  # what the metadata of the published files calls the study
PUBLISHED = ("librarian", "villain", "comedian", "software_engineer", "base_librarian")
SINGLE = ("attention_summary.json", "preflight.json", "run_metadata.json", "sample_table.md")


@dataclass(frozen=True, eq=False)
class Records:
    """What a directory holds; `digests` are of the files read, `missing` the names of those not there."""

    digests: Mapping[str, str]
    missing: tuple[str, ...]
    deltas: Mapping[str, Deltas]
    summary: AttentionSummary | None
    positives: Mapping[str, Examples]
    midrun: Mapping[str, MidrunGate]
    preflight: Preflight | None
    samples: SampleTable | None
    published: bool  # no file says that it is of another study
    own_draws: bool = False  # a run of ours says that it drew its control rows itself

    @property
    def labels(self) -> tuple[str, ...]:
        """Conditions with deltas or a summary: the published ones first, in their order."""
        return _ordered({*self.deltas, *(self.summary.per_persona if self.summary else ())})

    @property
    def personas(self) -> tuple[str, ...]:
        """Personas with saved generations."""
        return _ordered(set(self.positives))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Trained and base conditions on the same ids."""
        return tuple((label, BASE + label) for label in self.labels if BASE + label in self.labels)

    @property
    def n_layers(self) -> int | None:
        """Layers of the model; None where no file has any."""
        held = [d.delta_c1.shape[1] for d in self.deltas.values()]
        held += [
            len(c.gates.mean_per_layer) for c in (self.summary.per_persona if self.summary else {}).values()
        ]
        return held[0] if held else None

    def condition(self, label: str) -> Condition | None:
        """What the summary stores of a condition; None where it does not."""
        return self.summary.per_persona.get(label) if self.summary else None

    def examples(self, label: str) -> Examples | None:
        """The generations that a condition was read on."""
        return self.positives.get(label.removeprefix(BASE))


def read_records(directory: Path | str) -> Records:
    """Every file of the study in `directory`.

    Raises FileNotFoundError where there is none, ValueError with file and field for a broken one.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a directory; give the one that holds the records")
    deltas = _by_label(folder, "per_example_deltas_", read_deltas)
    positives = _by_label(folder, "positives_", read_positives)
    midrun = _by_label(folder, "midrun_gate_", read_midrun_gate)
    summary = _single(folder, SINGLE[0], read_attention_summary)
    preflight = _single(folder, SINGLE[1], read_preflight)
    run = _single(folder, SINGLE[2], read_run_metadata)
    samples = _single(folder, SINGLE[3], read_sample_table)
    blocks = [each.metadata for held in (deltas, positives, midrun) for each in held.values()]
    blocks += [each.metadata for each in (summary, preflight) if each is not None]
    every = [*blocks, run.values if run else None]
    published = _is_published(every)
    names = _present(folder)
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no attention records; give a directory with attention_summary.json,"
            " per_example_deltas_*.json or positives_*.json"
        )
    records = Records(
        {name: file_sha256(folder / name) for name in names},
        (), deltas, summary, positives, midrun, preflight, samples, published,
        own_draws=any(block is not None and block.get("draws") == "ours" for block in every),
    )  # fmt: skip
    _check_layers(records)
    return _with_missing(records)


def _present(folder: Path) -> list[str]:
    kinds = ("per_example_deltas_", "positives_", "midrun_gate_")
    found = [p.name for kind in kinds for p in folder.glob(f"{kind}*.json")]
    return sorted([*found, *(name for name in SINGLE if (folder / name).is_file())])


def _by_label(folder: Path, start: str, read: Any) -> dict[str, Any]:
    paths = sorted(folder.glob(f"{start}*.json"))
    return {path.stem.removeprefix(start): read(path) for path in paths}


def _single(folder: Path, name: str, read: Any) -> Any:
    return read(folder / name) if (folder / name).is_file() else None


def _is_published(blocks: list[Mapping[str, Any] | None]) -> bool:
    return all(block.get("issue") == ISSUE for block in blocks if block)


def _ordered(labels: set[str]) -> tuple[str, ...]:
    known = {label: place for place, label in enumerate(PUBLISHED)}
    return tuple(sorted(labels, key=lambda label: (known.get(label, len(known)), label)))


def _check_layers(records: Records) -> None:
    """Every condition has the same number of layers, or the records are of different models."""
    counts = {f"per_example_deltas_{label}.json": d.delta_c1.shape[1] for label, d in records.deltas.items()}
    if records.summary is not None:
        stored = records.summary.per_persona.items()
        counts |= {f"attention_summary.json: {label}": len(c.gates.mean_per_layer) for label, c in stored}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {n}" for name, n in counts.items())
        raise ValueError(f"the records have different numbers of layers ({told}); keep one model's together")


def _with_missing(records: Records) -> Records:
    """The files that records of these conditions (and of the published study, if they are its) would have."""
    from dataclasses import replace

    labels = set(records.labels) | set(records.personas) | (set(PUBLISHED) if records.published else set())
    personas = {label.removeprefix(BASE) for label in labels}
    due = [*SINGLE, *(f"per_example_deltas_{label}.json" for label in _ordered(labels | personas))]
    due += [f"per_example_deltas_{BASE}{persona}.json" for persona in _ordered(personas)]
    due += [f"positives_{persona}.json" for persona in _ordered(personas)]
    due += ["midrun_gate_librarian.json"] if records.published else []
    absent = tuple(name for name in dict.fromkeys(due) if name not in records.digests)
    return replace(records, missing=absent)
