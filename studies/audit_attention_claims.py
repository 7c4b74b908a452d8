"""The printed figures of the attention study, as data: measure, condition, value, printed places.

"write-up" is what the source's text says, right or not; "reference" what its public files are known to give
(methods 9.5 to 9.9, 12.5, 16). Agreement of either with the records at hand is what the audit reports.
"""

from typing import Any

from studies.audit import Claim

LIBRARIAN, VILLAIN, COMEDIAN, ENGINEER, BASED = (
    "librarian", "villain", "comedian", "software_engineer", "base_librarian",
)  # fmt: skip
CONDITIONS = (LIBRARIAN, VILLAIN, COMEDIAN, ENGINEER, BASED)


def each(measure: str, *values: Any, digits: int | None = None, origin: Any = "write-up") -> list[Claim]:
    """One claim a condition, in the order librarian, villain, comedian, software_engineer, base_librarian."""
    pairs = zip(CONDITIONS, values, strict=False)
    return [Claim(measure, name, value, digits, origin=origin) for name, value in pairs if value is not None]


def known(measure: str, *values: Any, digits: int | None = None) -> list[Claim]:
    """The same for figures that the public files are known to give."""
    return each(measure, *values, digits=digits, origin="reference")


def _counts(*counts: int) -> dict[str, int]:
    return dict(zip("ABCD", counts, strict=True))


def _rule_out(passed: int, inside: int, window: int) -> dict[str, int]:
    return {"all layers": passed, "layers": 28, "in H1 windows": inside, "window layers": window}


def _peak(layer: int, delta: float) -> dict[str, Any]:
    return {"layer": layer, "delta": delta}


WITHIN_PERSONAS = [
    *each("examples", 112, 110, 104, 57, 112),
    *each("layers passing A/B/C/D", _counts(24, 28, 23, 23), _counts(24, 28, 21, 21),
          _counts(24, 28, 24, 24), _counts(24, 28, 24, 24), _counts(24, 28, 23, 23)),
    *each("windows", [[6, 27]], [[8, 10], [12, 27]], [[4, 27]], [[4, 27]], [[6, 27]]),
    *known("H1 window", [6, 27], [12, 27], [4, 27], [4, 27], [6, 27]),
    *each("peak", _peak(14, 0.049), _peak(22, 0.225), _peak(19, 0.113), _peak(14, 0.027), _peak(19, 0.063),
          digits=3),
    *known("C2 rule-out, right sign", _rule_out(25, 20, 22), _rule_out(27, 19, 19), _rule_out(23, 20, 24),
           _rule_out(23, 20, 24), _rule_out(24, 19, 22)),
    *known("C3 rule-out, right sign", _rule_out(24, 22, 22), _rule_out(24, 19, 19), _rule_out(24, 24, 24),
           _rule_out(26, 24, 24), _rule_out(24, 22, 22)),
    *each("H1 layers where the marker is not above C2", [], [], [], [], []),
    *known("H1 layers where the marker is not above C2", [25, 26], [], [24, 25, 26, 27], [25, 26, 27],
           [25, 26, 27]),
]  # fmt: skip
BEYOND_THE_GATES = [
    *known("gate F", *({"ratio": r, "reframe required": False} for r in (0.078, 0.014, 0.042, 0.054)),
           {"applicable": False}, digits=3),
    *known("gate F", *({"at the deciding row": r} for r in (0.75, 0.16, 0.69, 0.62)), digits=2),
    *each("sink reframe", *({"reframe required": False},) * 5),
    *known("sink reframe", *({"passes without": 24},) * 5),
    *known("naive inflation of the peak", 4.6, 1.1, 2.3, 9.2, 2.8, digits=1),
    *known("specials", None, {"contrast max": 0.215}, None, None, {"contrast max": 0.167}, digits=3),
    *known("specials", {"absolute": 0.61}, {"absolute": 0.57}, {"absolute": 0.61}, {"absolute": 0.61},
           {"absolute": 0.57}, digits=2),
    *each("specials", *({"absolute": 0.61},) * 5, digits=2),
    *[Claim("naive inflation of the peak", name, [2.0, 3.0], 0, "within") for name in CONDITIONS],
    *[Claim("specials", name, {"contrast max": [0.24, 0.26]}, 2, "within") for name in CONDITIONS],
    Claim("specials, all conditions", "all", {"gap max": [0.161, 0.244], "contrast mean": [0.068, 0.112],
          "gap mean": [0.037, 0.092], "contrast max": [0.167, 0.256]}, 3, origin="reference"),
    Claim("specials, all conditions", "all", {"absolute": [0.57, 0.61], "system_A absolute": [0.52, 0.57]}, 2,
          origin="reference"),
    Claim("specials, all conditions", "all", {"gap max": [0.16, 0.24], "gap mean": [0.04, 0.09]}, 2),
    Claim("specials, all conditions", "all", {"inflation": [1.1, 9.2]}, 1, origin="reference"),
    Claim("sink reframe, all conditions", "all", {"passes with specials": [18, 21],
          "passes without": [24, 24], "reframes": 0}, origin="reference"),
]  # fmt: skip
AGAINST_BASE = [
    Claim("diff-of-diffs", LIBRARIAN, {"mean": -0.0029, "max": 0.0061, "max layer": 24, "min": -0.0222,
          "min layer": 19, "layers above zero": 10, "base larger by 0.005": 8,
          "trained larger by 0.005": 2}, 4),
    Claim("diff-of-diffs", LIBRARIAN, {"sign test p": 0.185}, 3),
    Claim("paired difference", LIBRARIAN, {"beyond 2 SEM": 23, "minimum layer": 19, "maximum layer": 24,
          "negative": [7, 8, 9, 10, 11, 12, 15, 16, 17, 18, 19, 20, 22, 25],
          "positive": [1, 2, 3, 4, 6, 13, 21, 23, 24]}, origin="reference"),
    Claim("paired difference", LIBRARIAN, {"z at the minimum": -10.5, "z at the maximum": 14.9}, 1,
          origin="reference"),
    Claim("paired difference, mean over layers", LIBRARIAN, {"mean": -0.00289, "n": 112}, 5,
          origin="reference"),
    Claim("paired difference, mean over layers", LIBRARIAN, {"t": -8.7}, 1, origin="reference"),
    Claim("peaks", LIBRARIAN, {"trained layer": 14, "base layer": 19, "base over trained": 0.28}, 2),
    Claim("contrast and absolute share", LIBRARIAN, {"layer": 19, "trained contrast": 0.041,
          "base contrast": 0.063}, 3),
    Claim("contrast and absolute share", LIBRARIAN, {"trained absolute": 0.044, "base absolute": 0.072}, 3,
          origin="reference"),
]  # fmt: skip
GENERATIONS = [
    *known("negatives cut off at the cap", *({"truncated": n, "negatives": 100} for n in (72, 63, 74, 76))),
    *known("positive rate of trials", *({"rate": r} for r in (0.198, 0.194, 0.185, 0.095)), digits=3),
    *[Claim("positive rate of trials", name, {"rate": [0.32, 0.67]}, 2, "within") for name in CONDITIONS[:4]],
    *known("C1 examples left out", *({"skipped": 0},) * 4),
    *[Claim("C3 picks", name, {"ids 11 and 12": 0.77}, 2, "at least", "reference")
      for name in CONDITIONS[:4]],
    *known("C3 picks", *({"mean id quantile": 0.05},) * 4, digits=2),
    Claim("before the marker, all personas", "all", {"382": 271, "1939": 81, "2219": 18, "271": 3,
          "positives": 383}, origin="reference"),
    Claim("incomplete markers, all personas", "all", 18, None, "one of", "reference"),
    Claim("C2 holds the deciding row, all personas", "all", {"with the deciding row": 380, "examples": 383},
          origin="reference"),
    Claim("positives ending elsewhere, all personas", "all", {"share": 0.05}, 2, origin="reference"),
    Claim("sample table", "all", {"rows": 5, "redrawn alike": 5}, origin="reference"),
    Claim("preflight", "all", {"eager": 0.21, "sdpa": 0.205}, 3),
    Claim("preflight", "all", {"standard error": 0.041}, 3, origin="reference"),
    *each("C4 in the per-example files", True, True, True, True, True),
    *known("C4 in the per-example files", False, False, False, False, False),
]  # fmt: skip
CLAIMS = (*WITHIN_PERSONAS, *BEYOND_THE_GATES, *AGAINST_BASE, *GENERATIONS)
