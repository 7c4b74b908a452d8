"""What the three-arm audit asks of each source and of all together."""

import math
from typing import Any

from studies.arms_analysis import FROM_FIRST, FROM_ZERO, OUTCOME
from studies.arms_records import ARMS, ASSISTANT, Point
from studies.audit import Reading
from studies.audit_arms_claims import PRINTED_BASELINE, PUBLIC
from studies.audit_arms_records import ARM, Records
from studies.marker_records import ROUNDING

NO_ZERO = "without a 0 % point the jump to the first checkpoint is not seen, and a trend starts after it"
SMALL = "the t approximation is not valid for few checkpoints: all orderings are counted instead"
FOLLOW = "checkpoints of one training run follow each other: whatever drifts with training correlates"
UNEXPLAINED = (
    "gone at the first checkpoint with nothing measured between merge and training: the adapter may have been"
    " merged too weakly (its configuration was lost for a time, 5.7 times), or erased by training"
)
LEVEL = 0.05


def rates(records: Records, source: str) -> Reading | None:
    """Source and assistant rate of every arm at the last checkpoint."""
    value, gone = {}, []
    for arm in ARMS:
        point = records.found.at(arm, source, records.analysis.percent)
        if point is None:
            continue
        value |= {f"arm {arm}, source": point.source_rate.rate}
        value |= {f"arm {arm}, assistant": point.assistant_rate.rate}
        gone += [f"arm {arm}" for r in _kept(records, source, arm) if r.gone_at is not None]
    naive = f"an assistant's rate of 0 says nothing where the source's marker is gone: {', '.join(gone)}"
    return Reading(value, naive=naive if gone else "") if value else None


def cosine(records: Records, source: str) -> Reading | None:
    """Cosine of source and assistant at the first and last checkpoint after 0 %."""
    line = [p for p in records.found.line(ARM, source) if p.percent > 0]
    value: dict[str, Any] = {}
    for layer in records.found.layers:
        held = [p.cosine(layer) for p in line if math.isfinite(p.cosine(layer))]
        if held:
            value |= {f"first L{layer}": held[0], f"last L{layer}": held[-1]}
            value[f"closer L{layer}"] = held[-1] > held[0]
    return Reading(value, corrected=_from_zero(records, source, "cosine")) if value else None


def leakage(records: Records, source: str) -> Reading | None:
    """The assistant's rate at the first and last checkpoint after 0 %; corrected: from 0 %."""
    line = [p for p in records.found.line(ARM, source) if p.percent > 0]
    if not line:
        return None
    first, last = line[0].assistant_rate.rate, line[-1].assistant_rate.rate
    value = {"first": first, "last": last, "decreased": last < first}
    corrected = _from_zero(records, source, "assistant rate")
    before = records.found.baseline(source, ASSISTANT)
    note = ""
    if not corrected and (before is not None or records.published):
        rate = before.rate if before is not None else PUBLIC[source]["source to assistant"]
        corrected = {
            "before any arm": rate,
            "change to the first": first - rate,
            "change to the last": last - rate,
        }
        note = "before any arm: the original adapter, trained otherwise than in arm B, which has no 0 %"
    return Reading(
        value, corrected=corrected or None, naive="" if _has_zero(line, records) else NO_ZERO, note=note
    )


def baselines(records: Records, source: str) -> Reading | None:
    """The directed rates before any arm."""
    directions = {
        "source to assistant": records.found.baseline(source, ASSISTANT),
        "assistant to source": records.found.baseline(ASSISTANT, source),
    }
    value = {name: rate.rate for name, rate in directions.items() if rate is not None}
    if len(value) < len(directions):
        return None
    return Reading(value, note="source to assistant is the leakage that the arms are about")


def column(records: Records, _: str) -> Reading | None:
    """Whether the printed baselines are all of the same direction."""
    if not records.published:
        return None
    recomputed = {s: r.value for s in records.sources if (r := baselines(records, s)) is not None}
    held = recomputed if len(recomputed) == len(records.sources) else PUBLIC
    directions = {
        source: [name for name, rate in held[source].items() if abs(rate - printed) <= ROUNDING]
        for source, printed in PRINTED_BASELINE.items()
    }
    shared = set.intersection(*map(set, directions.values()))
    told = ", ".join(f"{s} {' and '.join(d) or 'neither'}" for s, d in directions.items())
    origin = (
        "the rates beside the table" if held is recomputed else "the adapters' public rates (methods 7.6)"
    )
    return Reading(
        bool(shared),
        corrected={source: held[source]["source to assistant"] for source in PRINTED_BASELINE},
        naive="a column of 'baseline leak' holds rates of both directions; leakage has a source and a target",
        note=f"the column mixes directions, by {origin}: {told}; the table itself holds none",
    )


def within(records: Records, source: str) -> Reading | None:
    """rho of cosine with the assistant's rate over one source's checkpoints, with naive and exact p."""
    value, corrected = {}, {}
    for layer in records.found.layers:
        found = records.analysis.rho(source, layer)
        if found is None:
            continue
        one, zero = found.association, records.analysis.rho(source, layer, FROM_ZERO)
        value |= {f"L{layer}": one.estimate, f"naive p, L{layer}": one.asymptotic_p}
        corrected |= {f"exact p, L{layer}": one.p, f"checkpoints, L{layer}": one.n}
        if zero is not None:
            corrected |= {f"rho from 0 %, L{layer}": zero.association.estimate}
            corrected |= {f"exact p from 0 %, L{layer}": zero.association.p}
    note = f"unit: checkpoint of {source}; {FOLLOW}"
    return Reading(value, corrected=corrected, naive=SMALL, note=note) if value else None


def significant(records: Records, source: str) -> Reading | None:
    """Whether rho at layer 20, or the last layer there is, has an exact p below 0.05."""
    layer = _layer(records, 20)
    found = None if layer is None else records.analysis.rho(source, layer)
    if found is None or not math.isfinite(found.association.p):
        return None
    one = found.association
    smallest = 2 / math.factorial(one.n)
    note = (
        f"layer {layer}: t approximation p = {one.asymptotic_p:.3f}, exact p = {one.p:.3f} over all orderings"
        f" of {one.n} checkpoints (smallest attainable {smallest:.3f})"
    )
    tests = len([w for w in records.analysis.within if w.start == FROM_FIRST])
    return Reading(one.p < LEVEL, note=f"{note}; one of {tests} such tests")


def signs(records: Records, _: str) -> Reading | None:
    """In how many sources rho is negative, by layer, and the sign test over sources."""
    held = [t for t in records.analysis.trends if t.start == FROM_FIRST]
    if not held:
        return None
    value: dict[str, Any] = {f"negative L{t.layer}": t.n_negative for t in held}
    corrected: dict[str, Any] = {f"sign test over sources, L{t.layer}": t.p for t in held}
    corrected |= {f"mean rho, L{t.layer}": t.mean for t in held}
    zero = [t for t in records.analysis.trends if t.start == FROM_ZERO]
    corrected |= {f"negative from 0 %, L{t.layer}": t.n_negative for t in zero}
    return Reading(
        value | {"sources": held[0].n_sources}, corrected=corrected,
        naive=f"the sign depends on the layer; {FOLLOW}{'' if zero else '; ' + NO_ZERO}",
    )  # fmt: skip


def between(records: Records, _: str) -> Reading | None:
    """Cosine and leakage over sources at the last checkpoint, with the exact p."""
    held = {n: a for n, a in records.analysis.between.items() if math.isfinite(a.estimate)}
    if not held:
        return None
    value = {f"rho L{n}": a.estimate for n, a in held.items()} | {f"p L{n}": a.p for n, a in held.items()}
    n = next(iter(held.values())).n
    note = f"unit: source; with {n} of them no p is below {2 / math.factorial(n):.3f}"
    return Reading(value, naive="a perfect order of few sources is no evidence", note=note)


def pooled(records: Records, _: str) -> Reading | None:
    """All checkpoints of all sources as if independent: the wrong way."""
    held = {n: a for n, a in records.analysis.pooled.items() if math.isfinite(a.estimate)}
    if not held:
        return None
    value: dict[str, Any] = {f"rho L{n}": a.estimate for n, a in held.items()}
    value |= {f"p L{n}": a.p for n, a in held.items()} | {"n": next(iter(held.values())).n}
    likeness = records.analysis.icc.get(OUTCOME)
    corrected = {f"between sources, p L{n}": records.analysis.between[n].p for n in held}
    if likeness is not None:
        corrected["effective n"] = likeness.effective_n
    naive = "the wrong way: checkpoints of one source are not independent values"
    return Reading(value, corrected=corrected, naive=naive)


def icc_of_cosine(records: Records, _: str) -> Reading | None:
    """ICC of the predictor at layer 15, or the first layer there is."""
    layer = _layer(records, 15)
    reading = _icc(records, f"cosine L{layer}")
    if reading is None:
        return None
    others = {n: i.value for n, i in records.analysis.icc.items() if n not in (OUTCOME, f"cosine L{layer}")}
    return Reading(reading.value, corrected=others or None, note=reading.note)


def icc_of_outcome(records: Records, _: str) -> Reading | None:
    """ICC of the assistant's rate."""
    reading = _icc(records, OUTCOME)
    if reading is None:
        return None
    naive = "an ICC without its variable: the printed 0.949 is the cosine's at layer 15" * records.published
    return Reading(reading.value, naive=naive, note=reading.note)


def _icc(records: Records, name: str) -> Reading | None:
    found = records.analysis.icc.get(name)
    if found is None or not math.isfinite(found.value):
        return None
    note = f"of {name}, {found.n_groups} sources of {found.n_members} checkpoints"
    return Reading({"ICC": found.value, "effective n": found.effective_n}, note=note)


def _from_zero(records: Records, source: str, measure: str) -> dict[str, float]:
    """Before, after and change from the 0 % checkpoint, where there is one."""
    held = [
        e for e in records.analysis.effects
        if e.source == source and e.start == 0 and e.measure.startswith(measure)
    ]  # fmt: skip
    found: dict[str, float] = {}
    for each in held:
        name = "" if each.measure == measure else each.measure.removeprefix(measure)
        found |= {f"at 0 %{name}": each.before, f"change from 0 %{name}": each.change}
    return found


def _has_zero(line: list[Point], records: Records) -> bool:
    return any(p.percent == 0 for p in records.found.line(ARM, line[0].source))


def _kept(records: Records, source: str, arm: str) -> list[Any]:
    return [r for r in records.analysis.retention if (r.source, r.arm) == (source, arm)]


def _layer(records: Records, wanted: int) -> int | None:
    layers = records.found.layers
    return wanted if wanted in layers else layers[-1] if layers else None
