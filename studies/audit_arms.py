"""The audit of the three-arm test: which questions are put to its table, and what comes out.

`mechinterp audit causal_proximity FILE --out DIR` asks every measure of every source, published or ours.
"""

from pathlib import Path
from typing import Any

from mechinterp.report import Page
from studies import audit_arms_breadth as breadth
from studies import audit_arms_claims as claims
from studies import audit_arms_measures as measures
from studies.audit import Audit, Measure, compare
from studies.audit_arms_page import page
from studies.audit_arms_records import Records, read_records

A, B, C = "arm_a", "arm_b", "arm_c"
FULL, QUALITY = "arm_b_100pct_full", "ORIGINAL_ADAPTER_QUALITY"
RATES = ("{label}/marker_eval.json", "assistant/marker_eval.json")
MEASURES = (
    Measure(claims.RATES, "7.5, 16", "source", (A, B, C), measures.rates),
    Measure(claims.BASELINES, "7.6, 16", "source", RATES, measures.baselines),
    Measure(claims.COLUMN, "7.6, 16", "all", ("the published table",), measures.column),
    Measure(claims.COSINE, "7.3, 16", "source", (B,), measures.cosine),
    Measure(claims.LEAKAGE, "7.6, 16", "source", (B,), measures.leakage),
    Measure(claims.ZERO, "7.6", "all", (A, B, C), breadth.zero),
    Measure(claims.RHO, "7.4, 16", "source", (B,), measures.within),
    Measure(claims.SIGNIFICANT, "6, 7.6, 16", "source", (B,), measures.significant),
    Measure(claims.SIGNS, "7.5", "all", (B,), measures.signs),
    Measure(claims.BETWEEN, "6, 16", "all", (B,), measures.between),
    Measure(claims.POOLED, "7.4, 16", "all", (B,), measures.pooled),
    Measure(claims.ICC_COSINE, "6, 16", "all", (B,), measures.icc_of_cosine),
    Measure(claims.ICC_OUTCOME, "6, 16", "all", (B,), measures.icc_of_outcome),
    Measure(claims.BESIDE, "7.5, 16", "source", (FULL,), breadth.beside),
    Measure(claims.ALIKE, "7.5, 16", "all", (FULL,), breadth.alike),
    Measure(claims.KEPT_A, "7.5, 16", "source", (A,), breadth.kept_a),
    Measure(claims.KEPT_C, "7.5, 16", "source", (C,), breadth.kept_c),
    Measure(claims.ADAPTER, "3, 16", "source", (QUALITY,), breadth.adapter),
    Measure(claims.SPECIFICITY, "12.8", "all", (QUALITY, FULL), breadth.specificity),
)


def audit_records(path: Path | str) -> tuple[Audit, Page]:
    """Every finding on the table or the folder of checkpoints, and the page that shows them."""
    records = read_records(path)
    found = examine(records)
    return found, page(found, records)


def examine(records: Records) -> Audit:
    """Every measure asked of every source, beside what was printed of it."""
    findings, lacking = compare(
        MEASURES,
        claims.CLAIMS if records.published else (),
        records,
        {"all": ("all",), "source": records.sources},
        complete=lambda measure: True,
    )
    return Audit("causal_proximity", findings, lacking, records.digests, records.missing, facts(records))


def facts(records: Records) -> dict[str, Any]:
    """What the records are of."""
    found = records.found
    return {
        "model": found.model,
        "sources": list(found.sources),
        "arms": sorted({p.arm for p in found.points}),
        "checkpoints": sorted({p.percent for p in found.points}),
        "seeds": list(found.seeds),
        "layers": list(found.layers),
        "rates with counts": found.counted,
        "compared with the published figures": records.published,
    }
