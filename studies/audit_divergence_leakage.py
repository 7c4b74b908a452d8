"""What the divergence audit asks of leakage: predictors pooled, within sources, without each of them."""

import math
from typing import Any

from mechinterp.stats.sources import SourceAssociation
from probes.outputs import SELECTIONS
from studies.audit import Reading
from studies.audit_divergence_analysis import (
    BACKWARD,
    FORWARD,
    JS,
    Analysed,
    own_set,
    selection_name,
    wide_set,
)
from studies.audit_divergence_measures import SINGLE, correlated, layer_of
from studies.audit_divergence_records import CORE
from studies.predictors import Beyond, Comparison

ROUNDED = "rho at the file's 4 decimals"
DECIMALS = 1.5e-4  # what cosines rounded to four decimals move a rho by, where near ties change places


def js_leakage(found: Analysed, _: str) -> Reading | None:
    """JS against leakage over directed pairs."""
    main = found.main
    if main is None:
        return None
    stored = found.records.analysis and found.records.analysis.leakage_comparison
    held = None
    if stored is not None:
        held = correlated(
            stored.js_leakage_spearman_rho, stored.js_leakage_spearman_p,
            stored.js_leakage_pearson_r, stored.js_leakage_pearson_p,
        )  # fmt: skip
    one, linear = main.spearman[JS], main.pearson[JS]
    value = correlated(one.pooled.estimate, one.pooled.asymptotic_p, linear.estimate, linear.asymptotic_p)
    return Reading(value, held, nested(one), pooled(one))


def own_cosine(found: Analysed, condition: str) -> Reading | None:
    """The cosine centred on the study's own personas against leakage, one layer."""
    layer = layer_of(condition)
    stored = found.records.analysis and found.records.analysis.leakage_comparison
    one = None if stored is None else stored.cosine_matched.get(f"layer_{layer}")
    held = None if one is None else correlated(one.spearman_rho, one.spearman_p, one.pearson_r, one.pearson_p)
    association = found.by_layer.get(own_set(found.records), {}).get(layer)
    if association is None:
        told = "stored only: no public file holds the cosine of this layer centred on the study's personas"
        return None if held is None else Reading(None, held, note=told)
    value: dict[str, Any] = {"rho": association.pooled.estimate, "p": association.pooled.asymptotic_p}
    if found.own is not None and layer == found.layer:
        linear = found.own.pearson[found.name(own_set(found.records))]
        value |= {"pearson": linear.estimate, "pearson p": linear.asymptotic_p}
    held = held and {key: held[key] for key in value}
    return Reading(value, held, nested(association), pooled(association), "", SINGLE)


def wide_cosine(found: Analysed, condition: str) -> Reading | None:
    """The same pairs and layer, the cosine centred on the wide set."""
    layer = layer_of(condition)
    association = found.by_layer.get(wide_set(found.records), {}).get(layer)
    if association is None:
        return None
    category = found.records.wide[layer].categories.get(CORE)
    return _rounded(association, category and category.spearman_rho, category and category.n_pairs)


def every_pair(found: Analysed, condition: str) -> Reading | None:
    """The wide cosine on all pairs of the wide file."""
    layer = layer_of(condition)
    association = found.all_pairs.get(layer)
    if association is None:
        return None
    stored = found.records.wide[layer].aggregate
    return _rounded(association, stored and stored.spearman_rho, stored and stored.n_pairs)


def selections(found: Analysed, _: str) -> Reading | None:
    """JS against leakage by whose responses count."""
    if found.own is None and found.wide is None:
        return None
    held = (found.own or found.wide).spearman  # type: ignore[union-attr]
    one = {s: held[selection_name(s)] for s in SELECTIONS if selection_name(s) in held}
    if len(one) < 2:
        return None
    return Reading(
        {name: each.pooled.estimate for name, each in one.items()},
        corrected={f"{name}, within sources": each.mean_within for name, each in one.items()},
        naive="pooled over pairs; whichever choice is reported was one of four",
    )


def kl_leakage(found: Analysed, _: str) -> Reading | None:
    """Both directions of KL against leakage."""
    main = found.main
    if main is None or FORWARD not in main.spearman:
        return None
    one = {name: main.spearman[name] for name in (FORWARD, BACKWARD)}
    return Reading(
        {name: each.pooled.estimate for name, each in one.items()},
        corrected={f"{name}, within sources": each.mean_within for name, each in one.items()},
    )


def partials(found: Analysed, centring: str) -> Reading | None:
    """JS given the cosine, and the cosine given JS."""
    main = found.own if centring == "own" else found.wide
    if main is None or not main.beyond:
        return None
    js, cosine = main.beyond
    value = {"JS|cosine": js.partial.estimate, "p of JS|cosine": js.partial.p}
    value |= {"cosine|JS": cosine.partial.estimate, "p of cosine|JS": cosine.partial.p}
    corrected = {"JS|cosine without each source": _range(js, "partial_without")}
    corrected |= {"cosine|JS without each source": _range(cosine, "partial_without")}
    return Reading(value, None, corrected, _naive(main), _on(main))


def delta_r2(found: Analysed, centring: str) -> Reading | None:
    """What each adds to the other in least squares on raw values."""
    main = found.own if centring == "own" else found.wide
    if main is None or not main.beyond:
        return None
    js, cosine = (one.added for one in main.beyond)
    value = {"JS alone": cosine.r2_first, "cosine alone": js.r2_first, "both": js.r2_both}
    value |= {"add JS": js.delta_r2, "F of JS": js.f, "p of JS": js.p}
    value |= {"add cosine": cosine.delta_r2, "F of cosine": cosine.f, "p of cosine": cosine.p}
    corrected = {"add JS without each source": _range(main.beyond[0], "delta_r2_without")}
    corrected |= {"add cosine without each source": _range(main.beyond[1], "delta_r2_without")}
    return Reading(value, None, corrected, _naive(main), _on(main))


def beats(found: Analysed, _: str) -> Reading | None:
    """Whether |rho| of JS exceeds that of the cosine in every layer, under each centring."""
    main = found.main
    if main is None:
        return None
    js = main.spearman[JS]
    own = {n: abs(each.pooled.estimate) for n, each in found.by_layer[own_set(found.records)].items()}
    stored = found.records.analysis and found.records.analysis.leakage_comparison
    if stored is not None:
        kept = {int(k.removeprefix("layer_")): abs(c.spearman_rho) for k, c in stored.cosine_matched.items()}
        own = kept | own
    wide = {n: abs(each.pooled.estimate) for n, each in found.by_layer[wide_set(found.records)].items()}
    lost = {
        name: [n for n, rho in sorted(held.items()) if rho >= abs(js.pooled.estimate)]
        for name, held in (("own", own), ("wide", wide))
    }
    value: dict[str, Any] = {
        "at every layer, own centring": not lost["own"] if own else None,
        "at every layer, wide centring": not lost["wide"] if wide else None,
        "under both centrings": not lost["own"] and not lost["wide"] if own and wide else None,
    }
    within = {JS: js.mean_within}
    within |= {one.second: one.spearman[one.second].mean_within for one in (found.own, found.wide) if one}
    told = "the cosine is at least as strong in layer " + ", ".join(map(str, lost["wide"]))
    told = f"{told} where it is {wide_set(found.records)}" if lost["wide"] else "no layer contradicts it"
    return Reading(
        value, None, {"mean rho within sources": within},
        "the verdict is on pooled |rho| of one centring set; what holds within sources stands beside it",
        told,
    )  # fmt: skip


def constant(found: Analysed, _: str) -> Reading | None:
    """Sources whose rates do not vary over the targets, which have no rho within."""
    main = found.main
    if main is None:
        return None
    one = main.spearman[JS]
    naive = "a source without a rho is left out of the mean within sources, but not of the pooled figure"
    return Reading({"sources": list(one.constant), "of": one.n_sources}, naive=naive if one.constant else "")


def nested(one: SourceAssociation) -> dict[str, Any]:
    """The same association by the nesting of its pairs."""
    return {
        "mean within sources": one.mean_within,
        "p within sources": one.within_p,
        "p of whole sources": one.block_p,
        "without each source": [one.low, one.high],
        "sources without a rho": one.n_constant,
    }


def pooled(one: SourceAssociation) -> str:
    """What the pooled p assumes."""
    return (
        f"the pooled p = {one.pooled.asymptotic_p:.2g} takes {one.n_pairs} pairs of {one.n_sources} sources"
        " as independent"
    )


def _rounded(one: SourceAssociation, stored: float | None, n: int | None) -> Reading:
    """Files with four decimals are met by a value rounded to four."""
    rho = one.pooled.estimate
    value: dict[str, Any] = {"rho": rho, "p": one.pooled.asymptotic_p, "pairs": one.n_pairs}
    value[ROUNDED] = round(rho, 4) if math.isfinite(rho) else None
    same = stored is not None and n == one.n_pairs
    held = {ROUNDED: stored, "pairs": n} if same else None
    told = "the file's own figure was made of cosines that it holds rounded to four decimals"
    return Reading(value, held, nested(one), pooled(one), told, DECIMALS)


def _range(one: Beyond, name: str) -> list[float]:
    finite = [value for value in getattr(one, name).values() if math.isfinite(value)]
    return [min(finite), max(finite)] if finite else []


def _naive(main: Comparison) -> str:
    one = main.spearman[JS]
    return f"p and F take {one.n_pairs} pairs of {one.n_sources} sources as independent"


def _on(main: Comparison) -> str:
    return f"the cosine is {main.second}"
