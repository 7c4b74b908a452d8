"""The audit of the divergence study: which questions are put to its published records, and what comes out.

`mechinterp audit output_divergence DIR --out DIR` asks every measure of every layer and source.
"""

from pathlib import Path
from typing import Any

from mechinterp.report import Page
from studies import audit_divergence_leakage as leakage
from studies import audit_divergence_measures as held
from studies.audit import Audit, Measure, compare
from studies.audit_divergence_analysis import Analysed, analyse
from studies.audit_divergence_claims import (
    BEATS,
    CENTRED,
    CLAIMS,
    DELTA,
    DELTA_WIDE,
    LIKE,
    ON_WIDE,
    PARTIAL,
    PARTIAL_WIDE,
    PRIOR,
)
from studies.audit_divergence_page import page
from studies.audit_divergence_records import (
    ANALYSIS,
    ANSWERS,
    COSINES,
    MATRICES,
    RATES,
    SUMMARY,
    WIDE,
    Records,
    read_records,
)

PAIRS = (MATRICES, ANALYSIS)
MEASURES = (
    Measure("JS against leakage", "5.5, 16", "all", PAIRS, leakage.js_leakage),
    Measure(CENTRED, "4, 16", "layer", (COSINES, ANALYSIS), leakage.own_cosine),
    Measure(ON_WIDE, "4", "layer", (WIDE, ANALYSIS), leakage.wide_cosine),
    Measure(BEATS, "5.5, 16", "all", (*PAIRS, COSINES, WIDE), leakage.beats),
    Measure(PARTIAL, "6, 16", "all", (*PAIRS, COSINES), lambda found, _: leakage.partials(found, "own")),
    Measure(DELTA, "6, 16", "all", (*PAIRS, COSINES), lambda found, _: leakage.delta_r2(found, "own")),
    Measure(PARTIAL_WIDE, "5.5", "all", (*PAIRS, WIDE), lambda found, _: leakage.partials(found, "wide")),
    Measure(DELTA_WIDE, "5.5", "all", (*PAIRS, WIDE), lambda found, _: leakage.delta_r2(found, "wide")),
    Measure(LIKE, "5.5, 16", "layer", (MATRICES, COSINES), held.redundant),
    Measure("range of JS", "5.5, 16", "all", (MATRICES,), held.spread),
    Measure("published criteria", "5.5", "all", (MATRICES,), held.bars),
    Measure("extreme pairs", "16", "all", (MATRICES,), held.extremes),
    Measure("averaging of JS", "5.4, 16", "all", (MATRICES,), held.averaging),
    Measure("JS by response selection", "5.4", "all", (MATRICES,), leakage.selections),
    Measure("KL against leakage", "5.4", "all", (MATRICES,), leakage.kl_leakage),
    Measure("KL asymmetry", "5.5, 16", "all", PAIRS, held.kl_asymmetry),
    Measure("uninformative questions", "5.5", "all", (MATRICES,), held.questions),
    Measure("matrices derived from KL", "5.4", "all", (MATRICES,), held.derived),
    Measure(PRIOR, "16", "layer", (WIDE,), leakage.every_pair),
    Measure("personas of the wide set", "1, 16", "all", (WIDE,), held.wide_personas),
    Measure("marker rates", "3", "source", (RATES, SUMMARY), held.counted),
    Measure("sources without a rho", "3", "all", PAIRS, leakage.constant),
    Measure("rates and JS as analysed", "3", "all", (ANALYSIS, RATES), held.typed),
    Measure("answers", "5.1", "all", (ANSWERS,), held.answers),
)


def audit_records(directory: Path | str) -> tuple[Audit, Page]:
    """Every finding on the records in `directory`, and the page that shows them."""
    analysed = analyse(read_records(directory))
    found = examine(analysed)
    return found, page(found, analysed)


def examine(analysed: Analysed) -> Audit:
    """Every measure asked of every layer and source that is there, beside what was printed of it."""
    records = analysed.records
    findings, lacking = compare(
        MEASURES,
        CLAIMS if records.published else (),
        analysed,
        {
            "all": ("all",),
            "layer": [f"layer {n}" for n in records.layers],
            "source": list(records.sources),
        },
        complete=lambda measure: measure.name != BEATS or all(analysed.by_layer.values()),
    )
    return Audit("output_divergence", findings, lacking, records.digests, records.missing, facts(records))


def facts(records: Records) -> dict[str, Any]:
    """What the records are of."""
    return {
        "model": records.model,
        "personas": list(records.personas),
        "sources": list(records.sources),
        "directed pairs": len(records.core_rates()),
        "layers": list(records.layers),
        "compared with the published figures": records.published,
    }
