"""A three-arm table with known answers: leakage falls with cosine within sources and rises between them."""

from typing import Any

PERSONAS = (
    "software_engineer", "kindergarten_teacher", "data_scientist", "medical_doctor", "librarian",
    "french_person", "villain", "comedian", "police_officer", "zelthari_scholar", "assistant",
)  # fmt: skip
SOURCES = ("villain", "comedian", "kindergarten_teacher", "software_engineer")
CENTRES = (0.1, -0.4, 0.3, 0.6)  # cosine of each source, in which order leakage stands too
LABELS = ("narrow", "narrow", "inverted", "global")
GAPS = (0.01, -0.02, 0.2, 0.3)  # assistant minus bystander mean at 100 %: two of four are alike
PERCENTS = (20, 40, 60, 80, 100)


def leakage(centre: float, step: int) -> float:
    """Of the assistant in arm B: higher for nearer sources, falling over the five steps."""
    return round(0.45 + 0.4 * centre - 0.02 * step, 3)


def published_table() -> dict[str, Any]:
    """The table in the published shape."""
    arms: dict[str, Any] = {"arm_a": {}, "arm_b": {}, "arm_c": {}}
    full, quality = {}, {}
    for place, (source, centre, label) in enumerate(zip(SOURCES, CENTRES, LABELS, strict=True)):
        narrow = label == "narrow"
        for arm in arms:
            arms[arm][source] = {str(p): _entry(arm, centre, step, narrow) for step, p in enumerate(PERCENTS)}
        last = arms["arm_b"][source]["100"]
        mean = last["asst"] - GAPS[place]
        spread = [0.001 * (k - 4) for k in range(9)]
        others = [name for name in PERSONAS if name not in (source, "assistant")]
        rates = {name: mean + shift for name, shift in zip(others, spread, strict=True)}
        full[source] = {source: last["src"], "assistant": last["asst"], **rates}
        quality[source] = {"source_rate": 0.8, "max_bystander": 0.1 + 0.5 * (centre + 0.4), "pattern": label}
    arms["arm_c"]["villain"]["40"] |= {"cos_L15": None, "cos_L20": None}
    return arms | {"arm_b_100pct_full": full, "ORIGINAL_ADAPTER_QUALITY": quality}


def _entry(arm: str, centre: float, step: int, narrow: bool) -> dict[str, Any]:
    cosines = {"cos_L15": round(centre + 0.01 * step, 3), "cos_L20": round(centre - 0.1 + 0.02 * step, 3)}
    if arm == "arm_b":
        return {"src": 0.5 + 0.05 * step, "asst": leakage(centre, step), **cosines}
    if arm == "arm_a":
        return {"src": 0.02 if narrow and not step else 0.0, "asst": 0.0, **cosines}
    return {"src": 0.9 - 0.1 * step if narrow else 0.0, "asst": 0.0, **cosines}
