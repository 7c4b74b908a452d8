"""The table of the three-arm test (methods 13): as published, and our own of the same keys.

Published: {arm_a, arm_b, arm_c: {source: {"20": {src, asst, cos_L15, ...}}}, arm_b_100pct_full,
ORIGINAL_ADAPTER_QUALITY}. Ours adds to every checkpoint `replicates`, one entry a run and seed with counts
and bystanders, a block `retrained` of the same keys for other adapters, directed `baselines`, and metadata.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechinterp.json_io import read_json, write_json
from mechinterp.results import metadata
from studies.arms_records import (
    ARMS,
    ASSISTANT,
    ORIGINAL,
    Directed,
    Point,
    Quality,
    Trajectories,
    pooled,
)
from studies.marker_records import ROUNDING, MarkerRate

SCHEMA, VERSION = "mechinterp.three_arms", 1
KEYS = {arm: f"arm_{arm.lower()}" for arm in ARMS}
FULL, QUALITY, RETRAINED, BASELINES = (
    "arm_b_100pct_full", "ORIGINAL_ADAPTER_QUALITY", "retrained", "baselines",
)  # fmt: skip
COSINE = re.compile(r"cos_L(\d+)")
PERCENT = re.compile(r"(?:checkpoint_)?(\d{1,3})(?:pct|%)?")
COUNTS = {"src_found", "src_total", "asst_found", "asst_total"}
KNOWN = {"src", "asst", "run", "seed", "bystanders", "replicates"} | COUNTS


def read_trajectories(path: Path | str) -> Trajectories:
    """The table as published or as ours; a ValueError names the file, the place and what to write."""
    document = read_json(Path(path))
    try:
        return trajectories_of(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def trajectories_of(document: Any) -> Trajectories:
    """The table as it stands in JSON."""
    top = _object(document, "$")
    if not any(key in top for key in KEYS.values()):
        raise ValueError(f"$ has none of {', '.join(KEYS.values())}; it has {', '.join(top) or 'nothing'}")
    points, quality = _block(top, ORIGINAL, "$")
    for name, block in _object(top.get(RETRAINED, {}), f"$.{RETRAINED}").items():
        more = _block(_object(block, f"$.{RETRAINED}.{name}"), name, f"$.{RETRAINED}.{name}")
        points, quality = points + more[0], quality + more[1]
    baselines = top.get(BASELINES, [])
    if not isinstance(baselines, list):
        raise ValueError(f"$.{BASELINES} is {baselines!r}; write a list of source, target and rate")
    directed = tuple(_directed(each, f"$.{BASELINES}[{i}]") for i, each in enumerate(baselines))
    return Trajectories(
        tuple(points), tuple(quality), directed, _object(top.get("metadata", {}), "$.metadata")
    )


def write_trajectories(path: Path | str, found: Trajectories, **about: Any) -> None:
    """Ours: the published keys hold all runs and seeds together, `replicates` each of them."""
    adapters = dict.fromkeys(point.adapter for point in found.points)
    document: dict[str, Any] = _written(found, ORIGINAL)
    retrained = {name: _written(found, name) for name in adapters if name != ORIGINAL}
    document |= {RETRAINED: retrained} if retrained else {}
    document[BASELINES] = [
        {"source": d.source, "target": d.target, **_rate_entry(d.rate)} for d in found.baselines
    ]
    told = {**found.about, **metadata(SCHEMA, VERSION), "seeds": list(found.seeds), **about}
    write_json(Path(path), document | {"metadata": told})


def percent_of(checkpoint: object) -> int:
    """20 from 20, "20", "20pct" or "checkpoint_20pct"."""
    match = PERCENT.fullmatch(str(checkpoint))
    if match is None or int(match[1]) > 100:
        raise ValueError(f"the checkpoint {checkpoint!r} is no percentage; write it as '20'")
    return int(match[1])


def _block(held: Mapping[str, Any], adapter: str, where: str) -> tuple[list[Point], list[Quality]]:
    full = _object(held.get(FULL, {}), f"{where}.{FULL}")
    points = []
    for arm, key in KEYS.items():
        for source, line in _object(held.get(key, {}), f"{where}.{key}").items():
            for checkpoint, entry in _object(line, f"{where}.{key}.{source}").items():
                place = f"{where}.{key}.{source}.{checkpoint}"
                try:
                    percent = percent_of(checkpoint)
                    rates = full.get(source) if (arm, percent) == ("B", 100) else None
                    points += _points(entry, rates, place, arm, source, percent, adapter)
                except ValueError as error:
                    text = str(error)
                    raise ValueError(text if text.startswith("$") else f"{place}: {text}") from None
    quality = [
        _quality(each, source, adapter, f"{where}.{QUALITY}.{source}")
        for source, each in _object(held.get(QUALITY, {}), f"{where}.{QUALITY}").items()
    ]
    return points, quality


def _points(
    entry: Any, full: Any, where: str, arm: str, source: str, percent: int, adapter: str
) -> list[Point]:
    """The replicates of a checkpoint, or its one entry; what the entry sums up must be what they hold."""
    held = _object(entry, where)
    replicates = held.get("replicates")
    whole = _point(held, full, where, arm, source, percent, adapter)
    if replicates is None:
        return [whole]
    if not isinstance(replicates, list) or not replicates:
        raise ValueError(f"{where}.replicates is {replicates!r}; write one entry a run and seed")
    found = [
        _point(_object(each, f"{where}.replicates[{i}]"), None, f"{where}.replicates[{i}]", arm, source,
               percent, adapter)
        for i, each in enumerate(replicates)
    ]  # fmt: skip
    together = pooled(found)
    for name in ("source_rate", "assistant_rate"):
        said, summed = getattr(whole, name).rate, getattr(together, name).rate
        if abs(said - summed) > ROUNDING:
            raise ValueError(f"{where} has the {name.replace('_', ' ')} {said}, its replicates {summed:.4g}")
    return found


def _point(
    held: Mapping[str, Any], full: Any, where: str, arm: str, source: str, percent: int, adapter: str
) -> Point:
    odd = next((name for name in held if name not in KNOWN and not COSINE.fullmatch(name)), None)
    if odd is not None:
        raise ValueError(f"{where} has the key {odd!r}; write src, asst and cosines as cos_L15")
    own = _rate(held.get("src"), held.get("src_found"), held.get("src_total"), f"{where}.src")
    assistant = _rate(held.get("asst"), held.get("asst_found"), held.get("asst_total"), f"{where}.asst")
    bystanders = {
        name: _rate(each.get("rate"), each.get("found"), each.get("total"), f"{where}.bystanders.{name}")
        for name, each in _object(held.get("bystanders", {}), f"{where}.bystanders").items()
    }
    if full is not None and not bystanders:
        bystanders = _bystanders(_object(full, f"$.{FULL}.{source}"), source, own, assistant)
    cosines = {
        int(match[1]): _cosine(value, f"{where}.{name}")
        for name, value in held.items()
        if (match := COSINE.fullmatch(name))
    }
    run, seed = held.get("run", 0), held.get("seed")
    if type(run) is not int or not (seed is None or type(seed) is int):
        raise ValueError(f"{where} has run {run!r} and seed {seed!r}; write whole numbers")
    return Point(arm, source, percent, run, seed, own, assistant, bystanders, cosines, adapter)


def _bystanders(
    full: Mapping[str, Any], source: str, own: MarkerRate, assistant: MarkerRate
) -> dict[str, MarkerRate]:
    """All personas but source and assistant, whose rates must be those of the trajectory."""
    for name, rate in ((source, own), (ASSISTANT, assistant)):
        said = full.get(name)
        if said is not None and abs(said - rate.rate) > ROUNDING:
            raise ValueError(f"$.{FULL}.{source}.{name} is {said}, and the checkpoint of 100 % {rate.rate}")
    names = [name for name in full if name not in (source, ASSISTANT)]
    return {name: _rate(full[name], None, None, f"$.{FULL}.{source}.{name}") for name in names}


def _rate(value: Any, found: Any, total: Any, where: str) -> MarkerRate:
    for name, count in (("found", found), ("total", total)):
        if count is not None and type(count) is not int:
            raise ValueError(f"{where}: {name} is {count!r}; write a whole number")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} is {value!r}; write a rate from 0 to 1")
    try:
        return MarkerRate(float(value), found, total)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _cosine(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} is {value!r}; write a number from -1 to 1, or null for none")
    return float(value)


def _quality(value: Any, source: str, adapter: str, where: str) -> Quality:
    held = _object(value, where)
    lacking = [name for name in ("source_rate", "max_bystander", "pattern") if name not in held]
    if lacking:
        raise ValueError(f"{where} has no {' or '.join(lacking)}")
    own, highest = (
        _rate(held[name], None, None, f"{where}.{name}").rate for name in ("source_rate", "max_bystander")
    )
    return Quality(source, own, highest, str(held["pattern"]), adapter)


def _directed(value: Any, where: str) -> Directed:
    held = _object(value, where)
    source, target = held.get("source"), held.get("target")
    if not isinstance(source, str) or not isinstance(target, str):
        raise ValueError(f"{where} needs a source and a target: a leakage value has a direction")
    rate = _rate(held.get("rate"), held.get("found"), held.get("total"), f"{where}.rate")
    return Directed(source, target, rate)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {str(value)[:60]!r}; write an object")
    return value


# writing ----------------------------------------------------------------------------------------------------


def _written(found: Trajectories, adapter: str) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for arm, key in KEYS.items():
        mine = [p for p in found.points if (p.arm, p.adapter) == (arm, adapter)]
        lines: dict[str, dict[str, Any]] = {}
        for source in dict.fromkeys(p.source for p in mine):
            own = [p for p in mine if p.source == source]
            percents = sorted({p.percent for p in own})
            lines[source] = {str(n): _checkpoint([p for p in own if p.percent == n]) for n in percents}
        document[key] = lines
    last = {source: found.at("B", source, 100, adapter=adapter) for source in found.sources}
    document[FULL] = {
        source: {source: p.source_rate.rate, ASSISTANT: p.assistant_rate.rate}
        | {name: rate.rate for name, rate in p.bystander_rates.items()}
        for source, p in last.items()
        if p is not None
    }
    document[QUALITY] = {
        q.source: {"source_rate": q.source_rate, "max_bystander": q.max_bystander, "pattern": q.pattern}
        for q in found.quality
        if q.adapter == adapter
    }
    return document


def _checkpoint(points: Sequence[Point]) -> dict[str, Any]:
    return _entry(pooled(points)) | {
        "replicates": [{"run": p.run, "seed": p.seed, **_entry(p, bystanders=True)} for p in points]
    }


def _entry(point: Point, bystanders: bool = False) -> dict[str, Any]:
    entry: dict[str, Any] = {"src": point.source_rate.rate, "asst": point.assistant_rate.rate}
    for name, rate in (("src", point.source_rate), ("asst", point.assistant_rate)):
        if rate.total:
            entry |= {f"{name}_found": rate.found, f"{name}_total": rate.total}
    entry |= {f"cos_L{layer}": value for layer, value in point.cosines.items()}
    if bystanders:
        entry["bystanders"] = {name: _rate_entry(rate) for name, rate in point.bystander_rates.items()}
    return entry


def _rate_entry(rate: MarkerRate) -> dict[str, Any]:
    return {"rate": rate.rate} | ({"found": rate.found, "total": rate.total} if rate.total else {})
