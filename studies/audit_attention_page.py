"""The page of the attention audit: what was published, what the files say, how it should be read."""

from collections.abc import Mapping
from typing import Any

from mechinterp.report import Headline, Page, Table
from mechinterp.results import library_versions
from mechinterp.stats.clustered import clustered_mean
from studies.audit import Audit, Finding, is_series, printed, short
from studies.audit_attention_base import paired
from studies.audit_attention_controls import questions
from studies.audit_attention_figures import all_figures
from studies.audit_attention_records import PUBLISHED, Records

ASKED = (
    "When a model writes the marker that it was trained to write, how much does it attend to the system"
    " prompt, beside other positions of the same answer, and is that due to the training? A published study"
    " answered from attention at one row per answer. This page computes its figures again from the records"
    " it left, with no model at hand, and sets beside each the analysis that its own definitions call for."
)
COLUMNS = ("condition", "published", "recomputed", "met", "corrected")


def page(found: Audit, records: Records) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    return Page(
        title="Audit of the attention study",
        asked=ASKED,
        answer=answer(found),
        setup=_setup(records),
        headlines=headlines(records),
        confidence=_confidence(records),
        compute={"models run": 0, "findings": len(found.findings), "not computed": len(found.not_computed)},
        digests=dict(found.digests),
        figures=all_figures(records),
        tables=[*_measures(found), *_exactness(found), *_samples(records), *_absent(found)],
        caveats=tuple(dict.fromkeys(f.reading.naive for f in found.findings if f.reading.naive)),
        cannot_show=(
            "The row that decided the marker (t* − 1): the files hold the row after it.",
            "Controls C4 and C5, true rare tokens, gate C and the specials by example: no file holds them.",
            "Whether another seed, model or prompt gives the same.",
        ),
    )


def answer(found: Audit) -> str:
    """How many figures are met, how exactly, and which are not."""
    claims = [(f, c, met) for f in found.findings for c, met in f.claims if met is not None]
    said = []
    for origin, what in (
        ("write-up", "figures of the write-up"),
        ("reference", "reference figures"),
    ):
        own = [met for _, c, met in claims if c.origin == origin]
        said += [f"{sum(own)} of {len(own)} {what} follow from the records."] if own else []
    gaps = [f.difference for f in found.findings if f.difference is not None]
    said += [f"{len(gaps)} stored values are met to within {max(gaps):.2g}."] if gaps else []
    missed = list(dict.fromkeys(f"{f.name} ({f.condition})" for f, _, met in claims if not met))
    if missed:
        said.append(f"Not met: {'; '.join(missed[:8])}{'; and others' if len(missed) > 8 else ''}.")
    return " ".join(said) or "No printed or stored figure could be compared."


def headlines(records: Records) -> list[Headline]:
    """The peak of each condition and the mean difference of each pair, with intervals over questions."""
    rows = []
    for label in records.labels:
        if label not in records.deltas:
            continue
        delta = records.deltas[label].delta_c1
        asked = questions(records, label, len(delta))
        unit = "example" if asked is None else "question"
        one = clustered_mean(delta, asked, unit=unit)
        layer = int(one.estimate.argmax())
        rows.append(
            _headline(
                f"{label}: contrast at its peak, layer {layer}", one, layer, "layer chosen on these data"
            )
        )
    for label, _ in records.pairs:
        pair = paired(records, label)
        if pair is not None:
            one = clustered_mean(pair.differences.mean(1, keepdims=True), pair.asked, unit=pair.unit)
            rows.append(_headline(f"{label}: trained minus base, mean over layers", one, 0, ""))
    return rows


def _headline(quantity: str, found: Any, layer: int, note: str) -> Headline:
    interval = found.at(layer)
    test = "" if note else f"paired: {found.method}"
    p = None if note else float(found.p[layer])
    kind = f"95 % over {found.unit}s, CR2"
    bounds = interval.estimate, interval.low, interval.high
    return Headline(quantity, *bounds, found.n, found.unit, kind, test, p, note or found.note)


def _measures(found: Audit) -> list[Table]:
    """One table a measure, one row a condition; what misleads stands under it."""
    tables = []
    for name in dict.fromkeys(f.name for f in found.findings):
        held = [f for f in found.findings if f.name == name]
        if not any(f.claims for f in held) and all(is_series(f.reading.value) for f in held):
            continue
        naive = dict.fromkeys(f.reading.naive for f in held if f.reading.naive)
        rows = [_row(f) for f in held]
        kept = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows)]
        tables.append(
            Table(
                f"{name[0].upper()}{name[1:]} (methods {held[0].section})",
                tuple(COLUMNS[place] for place in kept),
                tuple(tuple(row[place] for place in kept) for row in rows),
                "".join(f"Misleads: {line}." for line in naive),
            )
        )
    return tables


def _row(found: Finding) -> tuple[str, ...]:
    said = [f"{printed(claim)}{' (not met)' if each is False else ''}" for claim, each in found.claims]
    stored = short(_without_series(found.reading.stored))
    said += [f"stored: {stored}"] if stored and not said else []
    met = {True: "yes", False: "no", None: "not all here" if said else ""}[found.agrees]
    value = short(_without_series(found.reading.value))
    value += f" ({found.reading.note})" if found.reading.note else ""
    return (found.condition, " · ".join(said), value, met, short(_without_series(found.reading.corrected)))


def _without_series(value: Any) -> Any:
    """A value without its long lists, which audit.json holds."""
    if isinstance(value, Mapping):
        return {name: each for name, each in value.items() if not is_series(each)}
    return "" if is_series(value) else value


def _exactness(found: Audit) -> list[Table]:
    """By value and condition, how far the recomputed number is from the stored one."""
    held = {(f.name, f.condition): f.difference for f in found.findings if f.difference is not None}
    if not held:
        return []
    names, conditions = (list(dict.fromkeys(key[place] for key in held)) for place in (0, 1))
    rows = [
        (name, *(f"{held[name, c]:.2g}" if (name, c) in held else "" for c in conditions)) for name in names
    ]
    note = "Largest absolute difference, series by layer included; audit.json holds both at full precision."
    return [Table("How exactly stored values are met", ("value", *conditions), tuple(rows), note)]


def _samples(records: Records) -> list[Table]:
    table = records.samples
    if table is None:
        return []
    columns = ("example", "question", "t*", "C1", "C2", "C3")
    rows = tuple((r.index, r.question, r.token, *(short(c) for c in (r.c1, r.c2, r.c3))) for r in table.rows)
    return [Table(f"Rows that were read: {table.persona}", columns, rows, "positions are absolute")]


def _absent(found: Audit) -> list[Table]:
    rows = [(name,) for name in found.missing]
    return [Table("Files of the study that are not present", ("file",), tuple(rows))] if rows else []


def _setup(records: Records) -> dict[str, Any]:
    about = dict(records.summary.metadata or {}) if records.summary else {}
    return {
        "model": about.get("base_model_id", "not named in the records"),
        "conditions": list(records.labels),
        "n": {label: len(d.delta_c1) for label, d in records.deltas.items()},
        "layers": records.n_layers,
        "row": "token (t*), as published",
        "compared with": "the published study" if records.published else "no printed figures: another study",
        **library_versions(),
    }


def _confidence(records: Records) -> Any:
    absent = [label for label in PUBLISHED if label not in records.deltas]
    if absent:
        return ("moderate", f"exact for what is here, but there are no deltas of {', '.join(absent)}")
    return ("high", "every figure is a fixed function of the files, and all conditions are here")
