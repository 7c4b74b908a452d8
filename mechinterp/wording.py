"""Values as a reader should see them: numbers with three digits, p values, text without terminal tricks."""

import math
import re
from collections.abc import Mapping
from typing import Any

# Escape sequences of terminals: CSI, OSC up to its end, and the two-character ones.
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# Control characters but tab and newline, marks that turn the direction of reading, halves of a character.
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """Text without terminal escapes, control characters (tab and newline stay) and direction marks."""
    return UNSHOWN.sub("", ANSI.sub("", text))


def three_digits(value: float) -> str:
    """A number with three significant digits: 0.500, 12.3, 1230; powers of ten only far from 1."""
    if value == 0:
        return "0"
    if math.isinf(value):  # an open end of an interval
        return "∞" if value > 0 else "−∞"
    mantissa, power = f"{value:.2e}".split("e")
    exponent = int(power)
    if -4 <= exponent < 6:
        text = f"{round(value, 2 - exponent):.{max(0, 2 - exponent)}f}"
    else:
        text = f"{mantissa}e{exponent}"
    return text.replace("-", "−")


def percent(rate: float) -> str:
    """A rate from 0 to 1 in percent, with three digits."""
    return f"{three_digits(100 * rate)} %"


def finite(value: float) -> float | None:
    """A plain float, or None for what is not defined, as tables and JSON have it."""
    return float(value) if math.isfinite(value) else None


def p_value(p: float) -> str:
    """p as papers give it: p = 0.34, p = 0.012, p < 0.001."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"


def shown(value: Any) -> str:
    """A value of the set-up as plain text: lists with commas, None as "none", floats without noise."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "not defined"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "none"
    return str(value)
