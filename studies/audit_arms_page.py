"""The page of the three-arm audit: what was published, what the table says, how it should be read."""

from typing import Any

from mechinterp.report import Page, Table
from mechinterp.results import library_versions
from studies.arms_figures import all_figures
from studies.arms_tables import effect_table, headlines, kept_table, verdict
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
        answer=" ".join([answer(found), *verdict(records.analysis)]),
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
        headlines=headlines(records.analysis),
        confidence=_confidence(records),
        compute={"models run": 0, "findings": len(found.findings), "not computed": len(found.not_computed)},
        digests=dict(found.digests),
        figures=all_figures(records.analysis),
        tables=_tables(found, records),
        caveats=tuple(dict.fromkeys(f.reading.naive for f in found.findings if f.reading.naive)),
        cannot_show=_cannot_show(records),
    )


def _tables(found: Audit, records: Records) -> list[Table]:
    tables = []
    for title, names in PARTS.items():
        tables += [*verdicts(found, title, names), *corrections(found, title, names)]
    return [*tables, *effect_table(records.analysis), *kept_table(records.analysis), *absent(found)]


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
