"""The page of any audit: a verdict on every figure, published beside recomputed beside corrected."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechinterp.report import Table
from studies.audit import Audit, Finding, is_series, printed, short

REPRODUCES, CONTRADICTED, STORED = "reproduces", "contradicted", "stored only"
KNOWN, OTHER, DIFFERS, AS_STORED = "as known", "not as known", "differs from the file", "as stored"
UNSAID = "nothing to compare"


def verdict(found: Finding) -> str:
    """One word on a finding; what the write-up says weighs more than what is known of its files."""
    met = {
        origin: [each for claim, each in found.claims if claim.origin == origin and each is not None]
        for origin in ("write-up", "reference")
    }
    if found.reading.value is None:
        return STORED if all(met["write-up"]) else CONTRADICTED
    if not all(met["write-up"]):
        return CONTRADICTED
    if found.difference is not None and found.difference > found.reading.tolerance:
        return DIFFERS
    if not all(met["reference"]):
        return OTHER
    if met["write-up"]:
        return REPRODUCES
    if met["reference"]:
        return KNOWN
    return AS_STORED if found.reading.stored is not None else UNSAID


def verdicts(found: Audit, title: str, names: Sequence[str]) -> list[Table]:
    """The findings of these names that were printed or stored: published, recomputed, verdict and why."""
    rows = [
        (f.name, f.condition, published(f), recomputed(f), verdict(f), f.reading.note)
        for f in found.findings
        if f.name in names and (f.claims or f.reading.stored is not None)
    ]
    columns = ("figure", "of", "published", "recomputed", "verdict", "why, and of what")
    note = "(reference): what the public files were known to give before. Stored: the file's own value."
    return [Table(f"{title}: published and recomputed", columns, tuple(rows), note)] * bool(rows)


def corrections(found: Audit, title: str, names: Sequence[str]) -> list[Table]:
    """Those with a reading that misleads, or an analysis that the design calls for."""
    rows = [
        (f.name, f.condition, plain_value(f), short(without_series(f.reading.corrected)), f.reading.naive)
        for f in found.findings
        if f.name in names and (f.reading.corrected or f.reading.naive)
    ]
    columns = ("figure", "of", "as published analyses take it (naive)", "corrected", "what misleads")
    return [Table(f"{title}: naive and corrected", columns, tuple(rows))] * bool(rows)


def exactness(found: Audit) -> list[Table]:
    """How far each recomputed number is from the stored one."""
    rows = [(f.name, f.condition, f"{f.difference:.2g}") for f in found.findings if f.difference is not None]
    note = "Largest absolute difference, series included; audit.json holds both at full precision."
    return [
        Table("How exactly stored values are met", ("figure", "of", "difference"), tuple(rows), note)
    ] * bool(rows)


def absent(found: Audit) -> list[Table]:
    """Files that are not present, and what could not be computed for want of them."""
    missing = [(name,) for name in found.missing]
    lacking = [(name, condition, ", ".join(needs)) for name, condition, needs in found.not_computed]
    tables = []
    if missing:
        tables.append(Table("Files of the study that are not present", ("file",), tuple(missing)))
    if lacking:
        tables.append(Table("Not computed", ("figure", "of", "needs"), tuple(lacking)))
    return tables


def answer(found: Audit) -> str:
    """How many findings have each verdict, and which of them contradict what was printed."""
    said = [verdict(f) for f in found.findings if f.claims]
    printed_figures = [each for f in found.findings for c, each in f.claims if c.origin == "write-up"]
    if not said:
        gaps = [f.difference for f in found.findings if f.difference is not None]
        if not gaps:
            return "No printed or stored figure could be compared."
        return f"{len(gaps)} stored values are met to within {max(gaps):.2g}."
    counts = {name: said.count(name) for name in dict.fromkeys(said)}
    text = (
        f"{sum(each is True for each in printed_figures)} of {len(printed_figures)} printed figures follow"
        f" from the records. Verdicts: {', '.join(f'{name} {n}' for name, n in counts.items())}."
    )
    against = [
        f"{f.name}{'' if f.condition == 'all' else f' ({f.condition})'}"
        for f in found.findings
        if f.claims and verdict(f) in (CONTRADICTED, OTHER, DIFFERS)
    ]
    return f"{text} Contradicted: {'; '.join(against)}." if against else text


def published(found: Finding) -> str:
    """Printed figures, then those known of the files, or else what the file stores."""
    said = [f"{printed(c)}{' (not met)' if met is False else ''}" for c, met in found.claims]
    stored = short(without_series(found.reading.stored))
    return " · ".join(said) or (f"stored: {stored}" if stored else "")


def recomputed(found: Finding) -> str:
    """What the records give under the keys that were printed; all of it where none were."""
    value = without_series(found.reading.value)
    if value is None:
        return "—"
    named = {key for c, _ in found.claims if isinstance(c.value, Mapping) for key in c.value}
    if isinstance(value, Mapping) and named:
        value = {key: each for key, each in value.items() if key in named}
    return short(value)


def plain_value(found: Finding) -> str:
    """The value as published analyses take it, or the stored one where there is no other."""
    value = found.reading.value if found.reading.value is not None else found.reading.stored
    return short(without_series(value))


def without_series(value: Any) -> Any:
    """A value without its long lists, which audit.json holds."""
    if isinstance(value, Mapping):
        return {name: each for name, each in value.items() if not is_series(each)}
    return "" if is_series(value) else value
