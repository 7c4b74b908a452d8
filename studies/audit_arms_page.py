"""The page of the three-arm audit: what was published, what the table says, how it should be read."""

import math
from typing import Any

from mechinterp.report import Headline, Page, Table
from mechinterp.results import library_versions
from studies.arms_analysis import FROM_FIRST
from studies.arms_figures import all_figures
from studies.arms_records import interval
from studies.audit import Audit
from studies.audit_arms_claims import (
    ADAPTER,
    ALIKE,
    BASELINES,
    BESIDE,
    BETWEEN,
    COLUMN,
    COSINE,
    ICC_COSINE,
    ICC_OUTCOME,
    KEPT_A,
    KEPT_C,
    LEAKAGE,
    POOLED,
    RATES,
    RHO,
    SIGNIFICANT,
    SIGNS,
    SPECIFICITY,
    ZERO,
)
from studies.audit_arms_records import Records
from studies.audit_page import absent, answer, corrections, verdicts

PARTS = {
    "Over training": (COSINE, LEAKAGE, ZERO, RHO, SIGNIFICANT, SIGNS),
    "Over sources": (BETWEEN, POOLED, ICC_COSINE, ICC_OUTCOME, SPECIFICITY),
    "Assistant and bystanders": (BESIDE, ALIKE),
    "Arms and adapters": (RATES, BASELINES, COLUMN, KEPT_A, KEPT_C, ADAPTER),
}
ASKED = (
    "Does moving the assistant's representation towards a persona make that persona's marker leak to the"
    " assistant? Three arms: the marker first and then convergence training (A), convergence first and then"
    " the marker (B, the critical one), the marker first and then generic training (C).\n\n"
    "A study answered from one run a source and five checkpoints a run. This page computes its figures again"
    " from its table, with no model at hand, and sets beside each the analysis that its design allows: few"
    " sources, checkpoints that follow each other, a start that has to be measured."
)


def page(found: Audit, records: Records) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    held = records.found
    return Page(
        title="Audit of the three-arm test of proximity",
        asked=ASKED,
        answer=" ".join([answer(found), *_verdict(records)]),
        setup={
            "model": held.model,
            "n": f"{len(held.points)} checkpoints of {len(held.sources)} sources",
            "arms": sorted({p.arm for p in held.points}),
            "sources": list(held.sources),
            "checkpoints": [f"{n} %" for n in sorted({p.percent for p in held.points})],
            "layers": list(held.layers),
            "seeds": list(held.seeds) or "not named in the records",
            "rates": "with their counts" if held.counted else "without counts, so without intervals",
            "compared with": "the published study" if records.published else "nothing printed: another study",
            **library_versions(),
        },
        headlines=headlines(records),
        confidence=_confidence(records),
        compute={"models run": 0, "findings": len(found.findings), "not computed": len(found.not_computed)},
        digests=dict(found.digests),
        figures=all_figures(records.analysis),
        tables=_tables(found, records),
        caveats=tuple(dict.fromkeys(f.reading.naive for f in found.findings if f.reading.naive)),
        cannot_show=_cannot_show(records),
    )


def headlines(records: Records) -> list[Headline]:
    """Leakage of every source at the last checkpoint, rho within and between sources, breadth."""
    one, rows = records.analysis, []
    for source in records.sources:
        point = records.found.at(one.arm, source, one.percent)
        if point is not None:
            rate = interval(point.assistant_rate)
            bounds = (rate.low, rate.high) if rate.n else (None, None)
            rows.append(
                Headline(
                    f"{source} to assistant, arm {one.arm} at {one.percent} %", rate.estimate, *bounds,
                    rate.n or 1, "answer" if rate.n else "rate", "Wilson 95 %" * bool(rate.n), "", None,
                    rate.note,
                )
            )  # fmt: skip
    for trend in one.trends:
        said = f"layer {trend.layer}: mean rho within sources, from {_start(trend.start)}"
        test = f"sign test over sources ({trend.n_negative} of {trend.n_sources} negative)"
        rows.append(
            Headline(said, trend.mean, None, None, trend.n_sources, "source", "", test, _or_none(trend.p))
        )
    for predictor in one.predictors:
        found = predictor.association
        rows.append(
            Headline(
                f"{predictor.name}: rho with leakage over sources", _or_none(found.estimate), None, None,
                found.n, "source", "", found.p_method if math.isfinite(found.p) else "", _or_none(found.p),
                predictor.note if math.isfinite(found.p) else found.method,
            )
        )  # fmt: skip
    return rows


def _verdict(records: Records) -> list[str]:
    """What it comes to, in words made of its numbers."""
    one = records.analysis
    said = []
    for trend in one.trends:
        if trend.start == FROM_FIRST:
            p = f", sign test p = {trend.p:.3f}" if math.isfinite(trend.p) else ""
            said.append(
                f"At layer {trend.layer} the rho of cosine and leakage is negative within {trend.n_negative}"
                f" of {trend.n_sources} sources{p}."
            )
    if one.beside:
        count = sum(b.alike for b in one.beside)
        said.append(f"Bystanders leak like the assistant in {count} of {len(one.beside)} sources.")
    smallest = 2 / math.factorial(len(records.sources)) if len(records.sources) > 2 else math.nan
    if math.isfinite(smallest):
        said.append(f"With {len(records.sources)} sources no test between them can reach p < {smallest:.2g}.")
    return said


def _tables(found: Audit, records: Records) -> list[Table]:
    tables = []
    for title, names in PARTS.items():
        tables += [*verdicts(found, title, names), *corrections(found, title, names)]
    return [*tables, *_effects(records), *_kept(records), *absent(found)]


def _effects(records: Records) -> list[Table]:
    """Every change from 0 % and from the first checkpoint."""
    rows = tuple(
        (e.source, e.measure, f"{e.start} %", f"{e.end} %", f"{e.before:.3f}", f"{e.after:.3f}",
         f"{e.change:+.3f}")
        for e in records.analysis.effects
    )  # fmt: skip
    columns = ("source", "measure", "from", "to", "before", "after", "change")
    title = f"Arm {records.analysis.arm}: changes over training"
    return [Table(title, columns, rows, "one run a line unless seeds say otherwise")] * bool(rows)


def _kept(records: Records) -> list[Table]:
    """What each arm kept."""
    rows = tuple(
        (r.source, r.arm, r.adapter, r.pattern, "not measured" if math.isnan(r.before) else f"{r.before:.3f}",
         f"{r.first_rate:.3f}", f"{r.last_rate:.3f}", "" if r.gone_at is None else f"{r.gone_at} %")
        for r in records.analysis.retention
    )  # fmt: skip
    columns = ("source", "arm", "adapter", "label", "at 0 %", "first", "last", "gone at")
    return [Table("The source's own rate in every arm", columns, rows)]


def _cannot_show(records: Records) -> tuple[str, ...]:
    said = [f"Whether other sources give the same: {len(records.sources)} are few."]
    if len(records.found.seeds) < 2:
        said.append("Whether another training run gives the same: there is one seed.")
    if not any(p.percent == 0 for p in records.found.points):
        said.append("What happened between 0 % and the first checkpoint, the merge included.")
    if not records.found.counted:
        said.append("How uncertain each rate is: the table has no counts.")
    return (*said, "Whether proximity causes leakage: training moves much else besides the cosine.")


def _confidence(records: Records) -> Any:
    few = f"{len(records.sources)} sources"
    seeds = len(records.found.seeds)
    runs = f"{seeds} seeds" if seeds > 1 else "one run each"
    return ("low", f"the arithmetic is exact, but {few} and {runs} carry the inference")


def _start(start: str) -> str:
    return f"the {start}" if start == FROM_FIRST else start


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
