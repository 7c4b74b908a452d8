"""`marker_eval.json` in both its published variants (methods 13): marker rates under every persona's prompt.

A study over many personas keeps found and total; a checkpoint of the three-arm test keeps rates and cosines.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechinterp.json_io import read_json, write_json
from studies.divergence_records import Cosines, cosines_by_layer, cosines_document

COUNTED = ("found", "total")
ROUNDING = 5e-4  # rates may have been written with three decimals


@dataclass(frozen=True)
class MarkerRate:
    """In how many completions the marker was found; no counts where the file has the rate alone."""

    rate: float
    found: int | None = None
    total: int | None = None
    category: str = ""
    related_to: tuple[str, ...] = ()
    per_question: Any = None  # as it stands in the file

    def __post_init__(self) -> None:
        if not (math.isnan(self.rate) or 0 <= self.rate <= 1):
            raise ValueError(f"the rate {self.rate} is no fraction; write 0 to 1, not percent")
        if self.found is not None and self.total:
            if not 0 <= self.found <= self.total:
                raise ValueError(f"found is {self.found} of {self.total}; it cannot be more than all")
            if abs(self.found / self.total - self.rate) > ROUNDING:
                raise ValueError(f"the rate {self.rate} is not {self.found} of {self.total}; correct one")


@dataclass(frozen=True, eq=False)
class MarkerEval:
    """The rates of one trained model; `source` and `checkpoint` where the file names them."""

    rates: Mapping[str, MarkerRate]
    source: str | None = None
    checkpoint: int | str | None = None
    cosines: Cosines | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def leakage(self, source: str) -> dict[tuple[str, str], float]:
        """(source, target) -> rate of every other persona."""
        return {(source, target): each.rate for target, each in self.rates.items() if target != source}


def read_marker_eval(path: Path | str) -> MarkerEval:
    """Either variant; a ValueError names the file, the persona and what to write."""
    document = read_json(Path(path))
    try:
        if not isinstance(document, dict) or not document:
            raise ValueError("$ holds no personas; write an object with one entry a persona")
        if "marker_rates" in document:
            return _checkpoint(document)
        return MarkerEval({name: _rate(each, f"$.{name}") for name, each in document.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_marker_eval(path: Path | str, found: MarkerEval) -> None:
    """The variant with counts, or, for a checkpoint, the one of the three-arm test with its counts beside."""
    if found.checkpoint is None:
        write_json(Path(path), {name: _entry(name, each) for name, each in found.rates.items()})
        return
    rates = {name: each.rate for name, each in found.rates.items()}
    document: dict[str, Any] = {
        "checkpoint": found.checkpoint, "source": found.source, "marker_rates": rates,
        "cosine_matrices": {} if found.cosines is None else cosines_document(found.cosines),
        "source_marker_rate": rates.get(found.source or ""),
        "assistant_marker_rate": rates.get("assistant"),
    }  # fmt: skip
    counts = {
        name: {"found": each.found, "total": each.total}
        for name, each in found.rates.items()
        if each.total is not None
    }
    write_json(Path(path), document | ({"marker_counts": counts} if counts else {}) | dict(found.extra))


def _checkpoint(document: Mapping[str, Any]) -> MarkerEval:
    rates = document["marker_rates"]
    if not isinstance(rates, dict):
        raise ValueError("$.marker_rates must be an object of persona and rate")
    counts = document.get("marker_counts", {})
    held = {
        name: _rate({"rate": rate, **counts.get(name, {})}, f"$.marker_rates.{name}")
        for name, rate in rates.items()
    }
    source = document.get("source")
    own = document.get("source_marker_rate")
    if own is not None and source in held and abs(own - held[source].rate) > ROUNDING:
        raise ValueError(f"$.source_marker_rate is {own}, and $.marker_rates.{source} {held[source].rate}")
    layers = document.get("cosine_matrices") or {}
    cosines = cosines_by_layer(layers, "$.cosine_matrices") if layers else None
    known = {"marker_rates", "marker_counts", "source", "checkpoint", "cosine_matrices"}
    known |= {"source_marker_rate", "assistant_marker_rate"}
    extra = {name: value for name, value in document.items() if name not in known}
    return MarkerEval(held, source, document.get("checkpoint"), cosines, extra)


def _rate(value: Any, where: str) -> MarkerRate:
    if not isinstance(value, dict) or "rate" not in value:
        raise ValueError(f"{where} has no rate; write an object with rate, found and total")
    rate = value["rate"]
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise ValueError(f"{where}.rate is {rate!r}; write a number from 0 to 1, or null")
    for name in COUNTED:
        if value.get(name) is not None and type(value[name]) is not int:
            raise ValueError(f"{where}.{name} is {value[name]!r}; write a whole number")
    related = value.get("related_to") or ()
    try:
        return MarkerRate(
            math.nan if rate is None else float(rate), value.get("found"), value.get("total"),
            value.get("category", ""), tuple(related), value.get("per_question"),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _entry(name: str, each: MarkerRate) -> dict[str, Any]:
    if each.found is None or each.total is None:
        raise ValueError(f"{name} has a rate without counts; give found and total")
    held = {"rate": each.rate, "found": each.found, "total": each.total}
    held |= {"category": each.category, "related_to": list(each.related_to)}
    return held if each.per_question is None else held | {"per_question": each.per_question}
