"""The page of the divergence audit: what was published, what the files say, how it should be read."""

import math
from collections.abc import Sequence
from typing import Any

from mechinterp.report import Headline, Page, Sample, Table
from mechinterp.results import library_versions
from mechinterp.stats.sources import SourceAssociation
from mechinterp.wording import finite
from studies.audit import Audit
from studies.audit_divergence_analysis import JS, SEED, Analysed
from studies.audit_divergence_claims import (
    CENTRED,
    DELTA,
    DELTA_WIDE,
    LIKE,
    ON_WIDE,
    PARTIAL,
    PARTIAL_WIDE,
    PRIOR,
)
from studies.audit_divergence_figures import all_figures
from studies.audit_page import absent, answer, corrections, exactness, verdicts
from studies.criteria import Criterion, criteria_table
from studies.predictors import Comparison

PARTS = {
    "Prediction of leakage": (
        "JS against leakage", CENTRED, ON_WIDE, "JS beats cosine", "JS by response selection",
        "KL against leakage", "sources without a rho",
    ),
    "What each predictor adds": (PARTIAL, DELTA, PARTIAL_WIDE, DELTA_WIDE),
    "The matrices": (
        LIKE, "range of JS", "published criteria", "extreme pairs", "averaging of JS", "KL asymmetry",
        "uninformative questions", "matrices derived from KL",
    ),
    "The wide set and the records": (
        PRIOR, "personas of the wide set", "marker rates", "rates and JS as analysed", "answers",
    ),
}  # fmt: skip
ASKED = (
    "A marker was trained into some personas and shows up under others' prompts. Does the divergence between"
    " two personas' outputs on the same text say how much leaks from one to the other, and does it say so"
    " better than the cosine between their activations?\n\n"
    "A published study answered from 50 directed pairs of five sources. This page computes its figures again"
    " from the records it left, with no model at hand, and sets the pooled analysis beside one that respects"
    " that pairs of one source are not independent, and the cosine of one centring set beside the other."
)


def page(found: Audit, analysed: Analysed) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    records = analysed.records
    return Page(
        title="Audit of output divergence as a predictor of leakage",
        asked=ASKED,
        answer=" ".join([answer(found), *_verdict(analysed)]),
        setup={
            "model": records.model,
            "n": f"{len(records.core_rates())} directed pairs of {len(records.sources)} sources",
            "personas": list(records.personas) if len(records.personas) < 20 else len(records.personas),
            "sources": list(records.sources),
            "layers": list(records.layers),
            "cosine held against JS": "none" if analysed.layer is None else f"layer {analysed.layer}",
            "resampling seed": SEED,
            "compared with": "the published study" if records.published else "nothing printed: another study",
            **library_versions(),
        },
        headlines=headlines(analysed),
        confidence=_confidence(found, analysed),
        compute={"models run": 0, "findings": len(found.findings), "not computed": len(found.not_computed)},
        digests=dict(found.digests),
        figures=all_figures(analysed),
        samples=_samples(analysed),
        tables=_tables(found, analysed),
        caveats=tuple(dict.fromkeys(f.reading.naive for f in found.findings if f.reading.naive)),
        cannot_show=(
            "Whether other sources give the same: five are few, and whole sources permute in 120 ways only.",
            "Whether another seed, prompt set or model gives the same; answers are greedy, one each.",
            "Divergence by position: the files hold the mean over each response.",
        ),
    )  # fmt: skip


def headlines(analysed: Analysed) -> list[Headline]:
    """JS and each cosine, pooled and within sources; what each says beyond the other."""
    rows: list[Headline] = []
    main = analysed.main
    if main is None:
        return rows
    rows += _of(JS, main.spearman[JS])
    for one in (analysed.own, analysed.wide):
        if one is not None:
            rows += _of(one.second, one.spearman[one.second])
    for one in (analysed.own, analysed.wide):
        if one is not None:
            rows += _beyond(one)
    return rows


def _of(name: str, one: SourceAssociation) -> list[Headline]:
    around = "lowest and highest without one source"
    bounds = (one.low, one.high) if math.isfinite(one.low) else (None, None)
    pooled = Headline(
        f"{name}: rho with leakage, pooled", one.pooled.estimate, *bounds, one.n_pairs, "pair", around,
        "whole sources permuted", finite(one.block_p), f"naive p = {one.pooled.asymptotic_p:.2g}",
    )  # fmt: skip
    defined = one.n_sources - one.n_constant
    note = f"without a rho: {', '.join(one.constant)}" if one.constant else ""
    within = Headline(
        f"{name}: mean rho within sources", one.mean_within, None, None, defined, "source", "",
        "targets permuted within sources", finite(one.within_p), note,
    )  # fmt: skip
    return [pooled, within]


def _beyond(one: Comparison) -> list[Headline]:
    rows = []
    for each in one.beyond:
        without = [v for v in each.partial_without.values() if math.isfinite(v)]
        bounds = (min(without), max(without)) if without else (None, None)
        rows.append(
            Headline(
                f"{each.predictor} given {each.given}: partial rho", each.partial.estimate, *bounds,
                each.partial.n, "pair", "lowest and highest without one source",
                "naive: pairs as independent", finite(each.partial.p),
            )
        )  # fmt: skip
    return rows


def _verdict(analysed: Analysed) -> list[str]:
    """What the comparison comes to, in words made of its numbers."""
    said = []
    for one in (analysed.own, analysed.wide):
        if one is None:
            continue
        gap = one.advantage()
        said.append(
            f"Against the {one.second}, the |rho| of JS differs by {gap['pooled']:+.2f} pooled and by"
            f" {gap['mean within']:+.2f} within sources.".replace("-", "−")
        )
    return said


def _tables(found: Audit, analysed: Analysed) -> list[Table]:
    tables = []
    for title, names in PARTS.items():
        tables += [*verdicts(found, title, names), *corrections(found, title, names)]
    judged = (("Criteria of discrimination", analysed.discrimination),
              ("Criteria of redundancy", analysed.redundancy))  # fmt: skip
    tables += [_criteria(title, one.criteria) for title, one in judged if one is not None]
    return [*tables, *exactness(found), *absent(found)]


def _criteria(title: str, criteria: Sequence[Criterion]) -> Table:
    frame = criteria_table(criteria)
    rows = tuple((name, f"{value:.4g}", *rest) for name, value, *rest in frame.itertuples(index=False))
    return Table(title, tuple(frame.columns), rows)


def _samples(analysed: Analysed) -> list[Sample]:
    """What the members of the extreme pairs answer to one question."""
    one, texts = analysed.discrimination, analysed.records.answers
    if one is None or texts is None:
        return []
    found = []
    for kind, pair in (("nearest", one.nearest), ("farthest", one.farthest)):
        for persona in pair:
            asked = next(iter(texts.get(persona, {})), None)
            drawn = texts[persona][asked] if asked is not None else ()
            if drawn:
                tags = {"persona": persona, "question": asked, "pair": "–".join(pair)}
                why = f"the {kind} pair of personas by JS; the first question"
                found.append(
                    Sample(f"{persona}, of the {kind} pair", tags, (("answer", drawn[0][:600]),), why)
                )
    return found


def _confidence(found: Audit, analysed: Analysed) -> Any:
    if analysed.main is None or found.missing:
        gone = ", ".join(found.missing[:4]) or "the directed pairs"
        return ("moderate", f"exact for what is here, but there is no {gone}")
    few = len(analysed.records.sources)
    return (
        "moderate",
        f"every figure is a fixed function of the files, but {few} sources carry the inference",
    )
