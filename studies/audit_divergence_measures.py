"""What the divergence audit asks of matrices, cosines and answers, each beside what the files store."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechinterp.stats.intervals import wilson
from probes.outputs import SELECTIONS
from studies.audit import Reading
from studies.audit_divergence_analysis import Analysed

SCALE = (
    "the bar std > 0.05 was set in nats without regard to the scale: JS is at most 0.693, typical values are"
    " 0.005 to 0.05"
)
DESCRIBED = (
    "the write-up describes the responses of the pair: a mean over questions, then over the two"
    " generation directions; the code averages over the responses of all personas, third ones included"
)
SINGLE = 1e-6  # cosines are stored in single precision, and were correlated in it
PAIRS_SHARE = "the stored p takes pairs as independent, but they share personas"


def spread(found: Analysed, _: str) -> Reading | None:
    """Smallest, largest, ratio, mean and std (ddof 0) over unordered pairs."""
    one = found.discrimination
    if one is None:
        return None
    value = {"min": one.low, "max": one.high, "ratio": one.ratio, "mean": one.mean, "std": one.std}
    stored = found.records.analysis and found.records.analysis.discrimination
    held = None
    if stored is not None:
        held = {"min": stored.js_min, "max": stored.js_max, "ratio": stored.js_ratio}
        held |= {"mean": stored.js_mean, "std": stored.js_std}
    corrected = {
        "ratio, 95 % over questions": list(one.ratio_bounds),
        "std by noise over questions": one.signal_to_noise,
    }
    return Reading(value, held, corrected if math.isfinite(one.noise) else None)


def bars(found: Analysed, _: str) -> Reading | None:
    """The published criteria, and those that have no unit."""
    one = found.discrimination
    if one is None:
        return None
    verdicts = {c.name: c.passed for c in one.criteria}
    names = list(verdicts)
    value = {"std > 0.05": verdicts[names[0]], "ratio > 3": verdicts[names[1]]}
    stored = found.records.analysis and found.records.analysis.discrimination
    held = None if stored is None else {"std > 0.05": stored.pass_std, "ratio > 3": stored.pass_ratio}
    corrected = {name.removeprefix("ours: "): verdicts[name] for name in names[2:]}
    went_on = "the study went on after a fail" if found.records.published else one.criteria[0].decision
    return Reading(value, held, corrected, SCALE, went_on)


def extremes(found: Analysed, _: str) -> Reading | None:
    """The nearest and the farthest pair by name."""
    one = found.discrimination
    if one is None:
        return None
    return Reading({"nearest": "–".join(one.nearest), "farthest": "–".join(one.farthest)})


def averaging(found: Analysed, _: str) -> Reading | None:
    """Which choice of responses the stored matrix is the mean of."""
    held = found.records.matrices
    if held is None or not held.keys:
        return None
    gaps = {s: float(np.abs(held.selected(s) - held.js).max()) for s in SELECTIONS}
    gaps = {name: gap for name, gap in gaps.items() if math.isfinite(gap)}
    nearest = min(gaps, key=lambda name: gaps[name])
    value: dict[str, Any] = {
        "matrix is the mean over": nearest if gaps[nearest] < 1e-9 else "no known choice"
    }
    value |= {"responses": len(held.keys), "largest difference": gaps[nearest]}
    if "pair" in gaps:
        i, j = np.triu_indices(len(held.personas), 1)
        pair = held.selected("pair")[i, j]
        value["range as described"] = [float(pair.min()), float(pair.max())]
    told = DESCRIBED if found.records.published else ""
    return Reading(value, None, {"largest difference to": gaps}, note=told)


def derived(found: Analysed, _: str) -> Reading | None:
    """The symmetric part of KL and its asymmetry, from KL itself."""
    held = found.records.matrices
    if held is None:
        return None
    gaps = np.abs((held.kl + held.kl.T) / 2 - held.kl_sym), np.abs(np.abs(held.kl - held.kl.T) - held.kl_asym)
    value = {"symmetric part off by": float(gaps[0].max()), "asymmetry off by": float(gaps[1].max())}
    return Reading(value | {"JS off symmetry by": float(np.abs(held.js - held.js.T).max())})


def redundant(found: Analysed, condition: str) -> Reading | None:
    """JS against the cosine of one layer over unordered pairs."""
    layer = layer_of(condition)
    stored = found.records.analysis and found.records.analysis.redundancy
    one = None if stored is None else stored.layers.get(f"layer_{layer}")
    held = None if one is None else correlated(one.spearman_rho, one.spearman_p, one.pearson_r, one.pearson_p)
    like = found.redundancy
    if like is None or layer not in like.spearman:
        told = "stored only: no public file holds the cosine of this layer centred on the study's personas"
        return None if held is None else Reading(None, held, naive=PAIRS_SHARE, note=told)
    rho, linear = like.spearman[layer], like.pearson[layer]
    value = correlated(rho.estimate, rho.naive.asymptotic_p, linear.estimate, linear.asymptotic_p)
    corrected = {
        f"95 % over {rho.n_nodes} personas": [rho.low, rho.high],
        "p over personas (Mantel)": rho.p,
        "redundant (|rho| > 0.80)": abs(rho.estimate) > 0.80,
    }
    return Reading(value, held, corrected, PAIRS_SHARE, rho.note, SINGLE)


def kl_asymmetry(found: Analysed, _: str) -> Reading | None:
    """|KL[a, b] - KL[b, a]| against the difference of leakage over pairs of sources."""
    stored = found.records.analysis and found.records.analysis.kl_asymmetry
    held = None
    if stored is not None:
        held = {"rho": stored.spearman_rho, "p": stored.spearman_p, "pairs": stored.n_pairs}
    rho = found.asymmetry and found.asymmetry.association
    if not rho:
        return None if held is None else Reading(None, held, note="stored only: no KL matrix is here")
    value = {"rho": rho.estimate, "p": rho.naive.asymptotic_p, "pairs": rho.n_pairs}
    corrected = {"p over sources (Mantel)": rho.p}
    naive = (
        f"p = {rho.naive.asymptotic_p:.2g} takes {rho.n_pairs} pairs of {rho.n_nodes} sources as independent"
    )
    return Reading(value, held, corrected, naive, f"made again from the stored KL matrix; {rho.p_method}")


def questions(found: Analysed, _: str) -> Reading | None:
    """How many questions have a coefficient of variation below 0.2."""
    one = found.per_question
    if one is None:
        return None
    stored = found.records.analysis and found.records.analysis.per_question
    finite = [v for v in one.variation if math.isfinite(v)]
    value: dict[str, Any] = {"uninformative": one.n_uninformative, "questions": len(one.questions)}
    value["smallest variation"] = min(finite) if finite else None
    value["means by question"] = list(one.mean)
    held: dict[str, Any] | None = None
    if stored is not None:
        held = {"uninformative": stored.n_uninformative}
        held["means by question"] = [each.js_mean for each in stored.questions]
    told = "variation pools responses and pairs: a question is called informative if either varies"
    return Reading(value, held, note=told)


def answers(found: Analysed, _: str) -> Reading | None:
    """How many texts were generated, and whether there is one for every response of the matrices."""
    held = found.records.answers
    if held is None:
        return None
    texts = [text for asked in held.values() for drawn in asked.values() for text in drawn]
    value: dict[str, Any] = {
        "personas": len(held),
        "questions": len({q for asked in held.values() for q in asked}),
    }
    value["texts"] = len(texts)
    if found.records.matrices is not None:
        value["as many as responses"] = len(texts) == len(found.records.matrices.keys)
    return Reading(value)


def counted(found: Analysed, condition: str) -> Reading | None:
    """One source's own rate and those of all others, against its summary."""
    held = found.records.rates.get(condition)
    if held is None or condition not in held.rates:
        return None
    own = held.rates[condition]
    others = [each.rate for name, each in held.rates.items() if name != condition]
    value = {"source rate": own.rate, "max bystander": max(others), "mean bystander": float(np.mean(others))}
    value |= {"personas": len(held.rates)}
    summary, stored = found.records.summaries.get(condition), None
    if summary is not None:
        stored = {"source rate": summary.source_marker, "max bystander": summary.max_bystander}
        stored |= {"mean bystander": summary.mean_bystander, "personas": summary.n_personas}
    corrected: dict[str, Any] = {"specificity (source - mean bystander)": own.rate - value["mean bystander"]}
    if own.found is not None and own.total:
        interval = wilson(own.found, own.total, unit="completion")
        corrected["source rate, 95 % Wilson"] = [interval.low, interval.high]
    return Reading(value, stored, corrected)


def wide_personas(found: Analysed, _: str) -> Reading | None:
    """How many personas the wide files hold."""
    names = {name for pair in found.records.wide_rates() for name in pair}
    if not found.records.wide and not found.records.rates:
        return None
    told = "the write-up says 112 in places; the data hold 111" if found.records.published else ""
    return Reading({"personas": len(names)}, note=told)


def typed(found: Analysed, _: str) -> Reading | None:
    """Whether the analysis used the rates that were counted, and the JS of the matrices."""
    stored = found.records.analysis and found.records.analysis.leakage_comparison
    counts, held = found.records.wide_rates(), found.records.matrices
    if stored is None or (not counts and held is None):
        return None
    rates = [abs(counts[p.source, p.target] - p.leakage_rate) for p in stored.directed_pairs
             if (p.source, p.target) in counts]  # fmt: skip
    value: dict[str, Any] = {"pairs": len(stored.directed_pairs), "with a counted rate": len(rates)}
    value["rates off by"] = max(rates, default=None)
    if held is not None:
        place = {name: i for i, name in enumerate(held.personas)}
        js = [abs(held.js[place[p.source], place[p.target]] - p.js_value) for p in stored.directed_pairs]
        value["JS off by"] = float(max(js, default=math.nan))
    return Reading(value)


def layer_of(condition: str) -> int:
    """The number in "layer 20"."""
    return int(condition.removeprefix("layer "))


def correlated(rho: float, p: float, r: float, r_p: float) -> Mapping[str, float]:
    """Rank and linear correlation under the names that claims use."""
    return {"rho": rho, "p": p, "pearson": r, "pearson p": r_p}
