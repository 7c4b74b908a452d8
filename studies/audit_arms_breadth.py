"""What the three-arm audit asks of bystanders, of the adapters, and of what each arm kept of the marker."""

import math

from studies.arms_effects import ALIKE, PERCENTAGE_POINTS, Retention
from studies.arms_records import ARMS, ORIGINAL
from studies.audit import Reading
from studies.audit_arms_measures import NO_ZERO, UNEXPLAINED
from studies.audit_arms_records import Records


def beside(records: Records, source: str) -> Reading | None:
    """Bystander mean, lowest and highest beside the assistant's rate, in percentage points."""
    found = next((b for b in records.analysis.beside if b.source == source), None)
    point = records.found.at(records.analysis.arm, source, records.analysis.percent)
    if found is None or point is None:
        return None
    value = {"source": point.source_rate.rate, "assistant": found.assistant}
    value |= {"bystander mean": found.bystander_mean, "difference, pp": found.difference}
    note = f"{found.n_bystanders} bystanders, all but source and assistant"
    return Reading(value, corrected={"lowest": found.lowest, "highest": found.highest}, note=note)


def alike(records: Records, _: str) -> Reading | None:
    """In how many sources bystanders and assistant are within five percentage points."""
    held = records.analysis.beside
    if not held:
        return None
    gaps = sorted((abs(b.difference), b.source) for b in held)
    count = sum(b.alike for b in held)
    told = ", ".join(f"{source} {gap:.1f}" for gap, source in gaps)
    bar = PERCENTAGE_POINTS * ALIKE
    note = f"alike: within {bar:g} pp; {count} of {len(held)}: the differences are {told} pp"
    inside, outside = [g for g, _ in gaps if g <= bar], [g for g, _ in gaps if g > bar]
    if inside and outside:
        note += f"; any bar from {inside[-1]:.1f} to {outside[0]:.1f} pp gives the same count"
    return Reading({"sources": count, "of": len(held)}, note=note)


def kept_a(records: Records, source: str) -> Reading | None:
    """The source's own rate in arm A, and the first checkpoint at which it is gone."""
    return _kept(records, source, "A")


def kept_c(records: Records, source: str) -> Reading | None:
    """The same in arm C."""
    return _kept(records, source, "C")


def adapter(records: Records, source: str) -> Reading | None:
    """The marker adapter before any merge, as the table has it."""
    found = records.found.adapter_quality(source)
    if found is None:
        return None
    value = {
        "source rate": found.source_rate,
        "highest bystander": found.max_bystander,
        "label": found.pattern,
    }
    naive = "" if found.specific else "arms A and C test proximity only with an adapter that was specific"
    return Reading(value, naive=naive)


def specificity(records: Records, _: str) -> Reading | None:
    """Breadth and cosine as predictors of the assistant's rate over sources."""
    held = {
        p.name: p.association for p in records.analysis.predictors if math.isfinite(p.association.estimate)
    }
    if not held or (
        records.published and not {"original highest bystander", "bystander mean"} <= held.keys()
    ):
        return None
    value = {name: found.estimate for name, found in held.items()}
    if "original highest bystander" in held:
        value["p of it"] = held["original highest bystander"].p
    n = next(iter(held.values())).n
    return Reading(
        value,
        corrected={f"exact p, {name}": found.p for name, found in held.items()},
        naive="the bystander mean of the same checkpoint is not independent of the outcome: one model",
        note=f"unit: source, {n} of them; the smallest attainable p is {2 / math.factorial(n):.3f}",
    )


def zero(records: Records, _: str) -> Reading | None:
    """Which arms were measured at 0 %, for every source that they have."""
    found = records.found
    value = {}
    for arm in (arm for arm in ARMS if any(p.arm == arm for p in found.points)):
        mine = [s for s in found.sources if (arm, ORIGINAL) in found.arms(s)]
        value[f"arm {arm}"] = all(found.at(arm, source, 0) is not None for source in mine)
    return Reading(value, naive="" if all(value.values()) else NO_ZERO)


def _kept(records: Records, source: str, arm: str) -> Reading | None:
    held = [r for r in records.analysis.retention if (r.source, r.arm) == (source, arm)]
    found = next((r for r in held if r.adapter == ORIGINAL), None)
    if found is None:
        return None
    value = {"first": found.first_rate, "last": found.last_rate, "gone at": found.gone_at}
    corrected = {f"at 0 %, {r.adapter} adapter": r.before for r in held if math.isfinite(r.before)}
    corrected |= {f"last, {r.adapter} adapter": r.last_rate for r in held if r is not found}
    return Reading(
        value, corrected=corrected or None, naive=UNEXPLAINED * found.unexplained, note=_label(found)
    )


def _label(found: Retention) -> str:
    gone = "kept to the end" if found.gone_at is None else f"gone at {found.gone_at} %"
    return f"{found.pattern} adapter, {gone}"
