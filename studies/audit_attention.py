"""The audit of the attention study: which questions are put to its published records, and what comes out.

`mechinterp audit zlt_attention DIR --out DIR` asks every measure below of every condition that is there.
"""

from functools import partial
from pathlib import Path
from typing import Any

from mechinterp.report import Page
from studies import audit_attention_base as base
from studies import audit_attention_controls as controls
from studies import audit_attention_gates as gates
from studies import audit_attention_regions as regions
from studies import audit_attention_texts as texts
from studies.audit import Audit, Measure, compare
from studies.audit_attention_claims import CLAIMS
from studies.audit_attention_page import page
from studies.audit_attention_records import BASE, PUBLISHED, Records, read_records

SUMMARY, DELTAS = "attention_summary.json", "per_example_deltas_{label}.json"
BASED, TEXTS = "per_example_deltas_base_{label}.json", "positives_{label}.json"

ALL_TEXTS = ("positives_*.json",)
BOTH, PAIR = (DELTAS, SUMMARY), (DELTAS, BASED)
MEASURES = (
    Measure("examples", "16", "condition", (DELTAS,), gates.examples),
    Measure("mean contrast by layer", "9.6", "condition", (DELTAS,), gates.mean_per_layer),
    Measure("SEM by layer", "6", "condition", (DELTAS,), gates.sem_per_layer),
    Measure("direction by layer", "9.6", "condition", (DELTAS,), gates.direction_per_layer),
    Measure("layers passing A/B/C/D", "9.6, 16", "condition", BOTH, gates.gate_counts),
    Measure("layers whose vote is as stored", "9.6", "condition", BOTH, gates.votes_alike),
    Measure("windows", "9.6, 16", "condition", BOTH, gates.windows),
    Measure("H1 window", "9.6", "condition", BOTH, gates.longest_window),
    Measure("peak", "16", "condition", (DELTAS,), gates.peak),
    Measure("row that was read", "9.9/1", "persona", (TEXTS,), texts.row_read),
    Measure("C2 holds the deciding row", "9.5", "persona", (TEXTS,), controls.c2_holds_emit),
    Measure("C2 rule-out as coded", "9.6", "condition", BOTH, partial(gates.ruled_out_as_coded, control=2)),
    Measure("C2 rule-out, right sign", "12.5", "condition", BOTH, partial(gates.ruled_out, control=2)),
    Measure("H1 layers where the marker is not above C2", "9.9/13", "condition", BOTH, gates.below_c2),
    Measure("C3 picks", "9.5", "persona", (TEXTS,), controls.c3_picks),
    Measure("C3 rule-out as coded", "9.6", "condition", BOTH, partial(gates.ruled_out_as_coded, control=3)),
    Measure("C3 rule-out, right sign", "12.5", "condition", BOTH, partial(gates.ruled_out, control=3)),
    Measure("C4 in the per-example files", "9.5", "condition", (DELTAS,), regions.fourth_control),
    Measure("negatives cut off at the cap", "9.3", "persona", (TEXTS,), texts.truncated_negatives),
    Measure("C1 examples left out", "9.5", "persona", (TEXTS,), controls.skipped),
    Measure("sample table", "9.5", "all", ("sample_table.md", "positives_*.json"), controls.sample_rows),
    Measure("gate F", "9.6", "condition", (SUMMARY,), regions.trajectory),
    Measure("sink reframe", "9.6", "condition", (SUMMARY,), regions.reframe),
    Measure("head selection on halves", "9.6", "condition", (SUMMARY,), regions.head_selection),
    Measure("mid-run safety rail", "9.6", "rail", ("midrun_gate_{label}.json", DELTAS), regions.safety_rail),
    Measure("specials", "9.8", "condition", (SUMMARY,), regions.specials),
    Measure("naive inflation of the peak", "9.8", "condition", (SUMMARY,), regions.inflation),
    Measure("diff-of-diffs by layer", "9.7", "pair", PAIR, base.by_layer),
    Measure("diff-of-diffs", "9.7, 16", "pair", PAIR, base.described),
    Measure("paired difference", "9.7", "pair", PAIR, base.paired_layers),
    Measure("paired difference, mean over layers", "9.7, 16", "pair", PAIR, base.layer_mean),
    Measure("contrast and absolute share", "9.7", "pair", (SUMMARY,), base.absolute_at_peak),
    Measure("peaks", "9.7", "pair", PAIR, base.peaks),
    Measure("gate E", "9.6", "pair", PAIR, base.gate_e),
    Measure("layer-profile shift", "9.7", "pair", PAIR, base.shift_of_profile),
    Measure("replication in the persona named before", "12.10", "named", (DELTAS,), regions.replication),
    Measure("before the marker", "1", "persona", (TEXTS,), texts.before_marker),
    Measure("incomplete markers", "1", "persona", (TEXTS,), texts.incomplete),
    Measure("positives ending elsewhere", "9.6", "persona", (TEXTS,), texts.ends_elsewhere),
    Measure("positive rate of trials", "9.3, 16", "persona", (TEXTS,), texts.trial_rate),
    Measure("before the marker, all personas", "1", "all", ALL_TEXTS, texts.before_marker),
    Measure("incomplete markers, all personas", "1", "all", ALL_TEXTS, texts.incomplete),
    Measure("positives ending elsewhere, all personas", "9.6", "all", ALL_TEXTS, texts.ends_elsewhere),
    Measure("C2 holds the deciding row, all personas", "9.5", "all", ALL_TEXTS, controls.c2_holds_emit),
    Measure("specials, all conditions", "9.8", "all", (SUMMARY,), regions.ranges),
    Measure("sink reframe, all conditions", "9.6, 16", "all", (SUMMARY,), regions.reframes),
    Measure("preflight", "9.2, 16", "all", ("preflight.json",), regions.preflight),
)  # fmt: skip


def audit_records(directory: Path | str) -> tuple[Audit, Page]:
    """Every finding on the records in `directory`, and the page that shows them."""
    records = read_records(directory)
    found = examine(records)
    return found, page(found, records)


def examine(records: Records) -> Audit:
    """Every measure asked of every condition that is there, beside what was printed of it."""
    findings, lacking = compare(
        MEASURES,
        CLAIMS if records.published else (),
        records,
        {
            "condition": records.labels,
            "persona": records.personas,
            "pair": [trained for trained, _ in records.pairs],
            "rail": sorted(records.midrun) or ["librarian"] * records.published,
            "named": ["software_engineer"] * ("software_engineer" in records.labels),
            "all": ("all",),
        },
        complete=lambda measure: _complete(records, measure),
    )
    return Audit("zlt_attention", findings, lacking, records.digests, records.missing, facts(records))


def facts(records: Records) -> dict[str, Any]:
    """What the records are of."""
    about = records.summary.metadata if records.summary and records.summary.metadata else {}
    return {
        "conditions": list(records.labels),
        "personas with generations": list(records.personas),
        "trained and base pairs": [list(pair) for pair in records.pairs],
        "layers": records.n_layers,
        "model": about.get("base_model_id"),
        "compared with the published figures": records.published,
    }


def _complete(records: Records, measure: Measure) -> bool:
    """Whether all conditions are here that a printed figure over all of them was made of."""
    personas = {label for label in PUBLISHED if not label.startswith(BASE)}
    over = {
        ALL_TEXTS: personas <= set(records.personas),
        (SUMMARY,): set(PUBLISHED) <= set(records.labels),
    }
    return measure.scope != "all" or over.get(measure.needs, True)
