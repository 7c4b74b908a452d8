"""An audit: published records analysed again without any model, beside what was published of them.

A `Measure` is a function from records to a `Reading`; a `Claim` is a printed figure as data. What comes out
is a list of `Finding`s in one fixed order: the same files give the same bytes.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mechinterp.directory import probe
from mechinterp.files import write_csv
from mechinterp.json_io import plain, write_json
from mechinterp.report import write_report
from mechinterp.results import metadata

AUDITS = {
    "zlt_attention": "studies.audit_attention",
    "output_divergence": "studies.audit_divergence",
    "causal_proximity": "studies.audit_arms",
}
SCHEMA, VERSION = "mechinterp.audit", 1
HALF = 0.5 + 1e-9  # of the last printed digit, and what binary fractions add to it


@dataclass(frozen=True)
class Reading:
    """What the records say: the value as published analyses take it, and the file's own value beside it.

    `corrected` is the analysis as it should be, `naive` the reading that misleads; empty where there is none.
    A value of None says that the files hold the stored figure and nothing that it could be computed from.
    """

    value: Any
    stored: Any = None
    corrected: Any = None
    naive: str = ""
    note: str = ""
    tolerance: float = 1e-12  # to the stored value: the rounding of sums in another order, or of the inputs


@dataclass(frozen=True)
class Measure:
    """One question to the records; `scope` says of what, `needs` which files ({label} is the condition)."""

    name: str
    section: str
    scope: Literal["condition", "persona", "pair", "rail", "named", "layer", "source", "all"]
    needs: tuple[str, ...]
    read: Callable[[Any, str], Reading | None]


@dataclass(frozen=True)
class Claim:
    """A figure as printed. Numbers agree when they round to `digits` places; only printed keys are compared.

    `says` "within" takes [low, high], "at least" a bound, "one of" a figure that one of the value's keys must
    have. What others found in the same records has the origin "reference".
    """

    measure: str
    condition: str
    value: Any
    digits: int | None = None
    says: Literal["equals", "within", "at least", "one of"] = "equals"
    origin: Literal["write-up", "reference"] = "write-up"


@dataclass(frozen=True)
class Finding:
    """One measure of one condition with everything that is to be held against it."""

    name: str
    section: str
    condition: str
    reading: Reading
    claims: tuple[tuple[Claim, bool | None], ...] = ()  # None: not all of the records are here
    difference: float | None = None  # largest absolute difference to what the files store

    @property
    def agrees(self) -> bool | None:
        """Whether every figure that could be compared is met; None where there was none."""
        said = [met for _, met in self.claims if met is not None]
        if self.reading.stored is not None and self.reading.value is not None:
            said.append(same(self.reading.stored, self.reading.value, self.reading.tolerance))
        return all(said) if said else None


@dataclass(frozen=True)
class Audit:
    """Every finding, what could not be computed and of which file it lacks, and the files themselves."""

    study: str
    findings: tuple[Finding, ...]
    not_computed: tuple[tuple[str, str, tuple[str, ...]], ...]  # measure, condition, needed files
    digests: Mapping[str, str]
    missing: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str, condition: str) -> Finding | None:
        """The finding of one measure on one condition."""
        held = (f for f in self.findings if f.name == name and f.condition == condition)
        return next(held, None)


def audit(study: str, directory: Path | str, out: Path | str) -> Path:
    """Audit the records in `directory`; writes audit.json, audit.csv and report.html with its figures.

    Raises ValueError for a study without an audit, FileNotFoundError for a directory without records.
    """
    if study not in AUDITS:
        raise ValueError(f"there is no audit of {study!r}; the audits are {', '.join(AUDITS)}")
    folder = probe(Path(out))
    module = importlib.import_module(AUDITS[study])
    found, page = module.audit_records(directory)
    write_json(folder / "audit.json", document(found))
    write_csv(folder / "audit.csv", table(found))
    return write_report(page, folder)


def compare(
    measures: Sequence[Measure],
    claims: Sequence[Claim],
    records: Any,
    conditions: Mapping[str, Sequence[str]],
    complete: Callable[[Measure], bool],
) -> tuple[tuple[Finding, ...], tuple[tuple[str, str, tuple[str, ...]], ...]]:
    """Every measure on every condition of its scope, and which of them the records cannot answer.

    `complete` says of a measure whether all records are there that its claims were made of.
    """
    findings, lacking = [], []
    for measure in measures:
        for condition in conditions[measure.scope]:
            reading = measure.read(records, condition)
            if reading is None:
                needed = tuple(name.format(label=condition) for name in measure.needs)
                lacking.append((measure.name, condition, needed))
                continue
            made = [c for c in claims if (c.measure, c.condition) == (measure.name, condition)]
            said = reading.stored if reading.value is None else reading.value
            held = tuple((c, meets(c, said) if complete(measure) else None) for c in made)
            alone = reading.stored is None or reading.value is None
            gap = None if alone else difference(reading.stored, reading.value)
            findings.append(Finding(measure.name, measure.section, condition, reading, held, gap))
    return tuple(findings), tuple(lacking)


def meets(claim: Claim, value: Any) -> bool:
    """Whether a recomputed value rounds to what was printed."""
    if isinstance(claim.value, Mapping):
        return all(
            meets(Claim("", "", printed, claim.digits, claim.says), value[name])
            for name, printed in claim.value.items()
        )
    if claim.says == "one of":
        return claim.value in value.values()
    slack = 0.0 if claim.digits is None else HALF * 10.0**-claim.digits
    if claim.says == "at least":
        return value >= claim.value - slack
    if claim.says == "within":
        numbers = value if isinstance(value, list) else [value]
        low, high = claim.value
        return all(low - slack <= number <= high + slack for number in numbers)
    if isinstance(claim.value, list):
        pairs = zip(claim.value, value, strict=False)
        return len(claim.value) == len(value) and all(
            meets(Claim("", "", printed, claim.digits), each) for printed, each in pairs
        )
    if isinstance(claim.value, float) and isinstance(value, int | float):
        return abs(value - claim.value) <= slack
    return bool(claim.value == value)


def difference(stored: Any, value: Any) -> float | None:
    """The largest absolute difference of the numbers in two values of one shape; None without any."""
    if isinstance(stored, Mapping) and isinstance(value, Mapping):
        gaps = [difference(each, value.get(name)) for name, each in stored.items()]
    elif isinstance(stored, list) and isinstance(value, list):
        gaps = [difference(a, b) for a, b in zip(stored, value, strict=False)]
        gaps += [math.inf] if len(stored) != len(value) else []
    elif any(isinstance(each, bool | str) or each is None for each in (stored, value)):
        return None if stored == value else math.inf
    else:
        return float(abs(stored - value)) if not (stored != stored and value != value) else 0.0
    return max((gap for gap in gaps if gap is not None), default=None)


def same(stored: Any, value: Any, tolerance: float = 1e-12) -> bool:
    """Equal but for rounding: 1e-12 covers sums in another order, where shares lie between 0 and 1."""
    gap = difference(stored, value)
    return gap is None or gap <= tolerance


def document(found: Audit) -> dict[str, Any]:
    """The audit as JSON: full precision, no time stamps, no paths."""
    return {
        "study": found.study,
        "metadata": metadata(SCHEMA, VERSION) | {"input_digests": dict(found.digests)},
        "not_present": list(found.missing),
        "facts": plain(found.facts),
        "findings": [_finding(each) for each in found.findings],
        "not_computed": [
            {"name": name, "condition": condition, "needs": list(needs)}
            for name, condition, needs in found.not_computed
        ],
    }


def _finding(found: Finding) -> dict[str, Any]:
    claims = [
        {"origin": c.origin, "says": c.says, "value": c.value, "digits": c.digits, "agrees": met}
        for c, met in found.claims
    ]
    head = {"name": found.name, "section": found.section, "condition": found.condition}
    body = {"recomputed": found.reading.value, "stored": found.reading.stored, "printed": claims}
    told = {"agrees": found.agrees, "max_abs_difference_to_stored": found.difference}
    words = {name: getattr(found.reading, name) for name in ("corrected", "naive", "note")}
    return plain({**head, **body, **told, **words})


def table(found: Audit) -> Any:
    """One line a finding, values as short text, for a spreadsheet."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "condition": f.condition,
                "claim": f.name,
                "methods section": f.section,
                "printed": " · ".join(printed(c) for c, _ in f.claims),
                "stored": short(f.reading.stored),
                "recomputed": short(f.reading.value),
                "agrees": {True: "yes", False: "no", None: "not compared"}[f.agrees],
                "max abs difference to stored": f.difference,
                "corrected": short(f.reading.corrected),
                "naive": f.reading.naive,
                "note": f.reading.note,
            }
            for f in found.findings
        ]
    )


def printed(claim: Claim) -> str:
    """A claim as it reads."""
    said = "" if claim.says in ("equals", "one of") else f"{claim.says} "
    return f"{said}{short(claim.value)}" + (" (reference)" if claim.origin == "reference" else "")


def is_series(value: Any) -> bool:
    """Whether a value is a list of numbers by layer or row, which a table does not spell out."""
    return isinstance(value, list | tuple) and len(value) > 6 and all(isinstance(v, float) for v in value)


def short(value: Any) -> str:
    """A value in a table's cell: four significant digits, long lists of numbers by their length."""
    if value is None or value == "":
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {short(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        if is_series(value):
            return f"{len(value)} values, {short(min(value))} to {short(max(value))}"
        return "[" + ", ".join(short(each) for each in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
