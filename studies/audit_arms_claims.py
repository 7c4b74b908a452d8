"""The printed figures of the three-arm study, as data: measure, condition, value, printed places.

"write-up" is what the source's text says, right or not; "reference" what its table is known to give (methods
6, 7.5, 7.6, 12.8, 16).
"""

from typing import Any

from studies.audit import Claim
from studies.audit_arms_records import SOURCES

RATES, COSINE, LEAKAGE = (
    "rates at the last checkpoint",
    "cosine over training",
    "assistant leakage over training",
)
BASELINES, COLUMN = "rates before any arm", "baseline column has one direction"
RHO, SIGNIFICANT, SIGNS = (
    "rho within source",
    "rho within source, p < 0.05 (L20)",
    "signs of rho within sources",
)
BETWEEN, POOLED = "between sources", "pooled over checkpoints"
ICC_COSINE, ICC_OUTCOME = "ICC of the cosine, L15", "ICC of the outcome"
BESIDE, ALIKE = "bystanders beside the assistant", "sources whose bystanders leak like the assistant"
KEPT_A, KEPT_C = "source rate in arm A", "source rate in arm C"
ADAPTER, SPECIFICITY, ZERO = "adapter before any merge", "specificity as predictor", "measured at 0 %"

# methods 7.6: what the public rates of these adapters say of each direction, source to assistant and back
PUBLIC = {
    "villain": {"source to assistant": 0.0, "assistant to source": 0.04},
    "comedian": {"source to assistant": 0.0, "assistant to source": 0.055},
    "kindergarten_teacher": {"source to assistant": 0.30, "assistant to source": 0.255},
    "software_engineer": {"source to assistant": 0.42, "assistant to source": 0.375},
}
PRINTED_BASELINE = dict(zip(SOURCES, (0.0, 0.055, 0.255, 0.375), strict=True))


def each(measure: str, *values: Any, digits: int | None = None, origin: Any = "write-up") -> list[Claim]:
    """One claim a source: villain, comedian, kindergarten teacher, software engineer."""
    pairs = zip(SOURCES, values, strict=True)
    return [Claim(measure, name, value, digits, origin=origin) for name, value in pairs if value is not None]


def whole(measure: str, value: Any, digits: int | None = None, *, origin: Any = "write-up") -> Claim:
    """One claim on all sources together."""
    return Claim(measure, "all", value, digits, origin=origin)


def known(measure: str, value: Any, digits: int | None = None) -> Claim:
    """What the table is known to give."""
    return whole(measure, value, digits, origin="reference")


def _rates(*values: int | float) -> dict[str, float]:
    names = [f"arm {arm}, {who}" for arm in "ABC" for who in ("source", "assistant")]
    return dict(zip(names, map(float, values), strict=True))


def _over(first: float, last: float, **more: bool) -> dict[str, Any]:
    return {"first": first, "last": last, **more}


def _cosine(first: float, last: float) -> dict[str, Any]:
    return {"first L15": first, "last L15": last, "closer L15": True}


BY_SOURCE = [
    *each(RATES, _rates(0, 0, 0.600, 0.202, 0.885, 0), _rates(0, 0, 0.215, 0.062, 0.160, 0),
          _rates(0, 0, 0.565, 0.540, 0, 0), _rates(0, 0, 0.890, 0.585, 0, 0), digits=3),
    *each(BASELINES, *({"source to assistant": value} for value in PRINTED_BASELINE.values()), digits=3),
    *each(BASELINES, None, None, {"source to assistant": 0.44}, {"source to assistant": 0.64}, digits=2),
    *each(BASELINES, *PUBLIC.values(), digits=3, origin="reference"),
    *each(COSINE, _cosine(-0.528, -0.141), _cosine(-0.404, -0.308), _cosine(-0.116, -0.051),
          _cosine(0.500, 0.546), digits=3),
    *each(LEAKAGE, _over(0.247, 0.202, decreased=True), _over(0.132, 0.062, decreased=True),
          _over(0.775, 0.540, decreased=True), _over(0.770, 0.585, decreased=True), digits=3),
    *each(RHO, *({"L15": a, "L20": b} for a, b in ((-0.30, -0.90), (-0.87, -0.90), (-0.10, -0.40),
          (0.20, -0.70))), digits=2),
    *each(RHO, *({"naive p, L20": p} for p in (0.037, 0.037, 0.505, 0.188)), digits=3),
    *each(SIGNIFICANT, True, True, False, False),
    *each(BESIDE, *({"source": s, "assistant": a, "bystander mean": b} for s, a, b in (
          (0.600, 0.202, 0.195), (0.215, 0.062, 0.053), (0.565, 0.540, 0.438), (0.890, 0.585, 0.358))),
          digits=3),
    *each(BESIDE, *({"difference, pp": d} for d in (0.7, 0.9, 10.2, 22.7)), digits=1),
    *each(KEPT_A, {"first": 0.020, "gone at": 40}, {"first": 0.010, "gone at": 60}, {"gone at": 20},
          {"gone at": 20}, digits=3),
    *each(KEPT_C, {"last": 0.885}, {"first": 0.570, "last": 0.160}, {"gone at": 20}, {"gone at": 20},
          digits=3),
    *each(ADAPTER, None, None, {"source rate": 0.15, "highest bystander": 0.58}, {"source rate": 0.74},
          digits=2),
    *each(ADAPTER, {"label": "narrow"}, {"label": "narrow"}, {"label": "inverted"}, {"label": "global"}),
    *each(ADAPTER, *({"source rate": s, "highest bystander": b} for s, b in (
          (0.91, 0.015), (0.69, 0.0), (0.27, 0.645), (0.875, 0.925))), digits=3, origin="reference"),
]  # fmt: skip
OVER_SOURCES = [
    whole(COLUMN, True),
    known(COLUMN, False),
    whole(SIGNS, {"negative L15": 3, "negative L20": 4}),
    whole(BETWEEN, {"rho L15": 1.0, "p L15": 0.083}, 3),
    whole(POOLED, {"n": 20}),
    Claim(POOLED, "all", {"p L15": [0.0, 1e-4], "p L20": [0.0, 1e-4]}, None, "within"),
    known(POOLED, {"rho L15": 0.839, "rho L20": 0.805}, 3),
    known(POOLED, {"p L15": 4e-6}, 6),
    known(POOLED, {"p L20": 2e-5}, 5),
    whole(ICC_COSINE, {"ICC": 0.949}, 3),
    whole(ICC_OUTCOME, {"ICC": 0.949}, 3),
    known(ICC_OUTCOME, {"ICC": 0.929}, 3),
    *[whole(measure, {"effective n": 4.0}, 0) for measure in (ICC_COSINE, ICC_OUTCOME)],
    *[known(measure, {"effective n": 4.2}, 1) for measure in (ICC_COSINE, ICC_OUTCOME)],
    whole(ALIKE, {"sources": 3}),
    known(ALIKE, {"sources": 2}),
    known(SPECIFICITY, {"original highest bystander": 1.0, "p of it": 0.083, "bystander mean": 0.8}, 3),
    known(ZERO, {"arm A": False, "arm B": False, "arm C": False}),
]  # fmt: skip
CLAIMS = (*BY_SOURCE, *OVER_SOURCES)
