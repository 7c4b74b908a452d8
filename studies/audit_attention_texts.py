"""What the saved generations say: the rows that were read, what stands before the marker, what was cut off.

Positions are absolute; `token` is t*, the row of the marker's first piece, and `emit` = t* - 1 decided it.
"""

from collections import Counter

from studies.attention_published import PUBLISHED_IDS
from studies.attention_records import Example
from studies.audit import Reading
from studies.audit_attention_records import Records

BLANK = 271  # two newlines by themselves


def row_read(records: Records, persona: str) -> Reading | None:
    """Which row the published readout took: the marker's own, one after the row that decided it."""
    found = _positives(records, persona)
    if found is None:
        return None
    first = Counter(e.ids[_marker(e)] for e in found)
    return Reading(
        {"examples": len(found), "with one first piece": max(first.values()), "first piece": max(first)},
        corrected="emit = t* - 1, whose logits chose the first piece; not in these files, so run it anew",
        naive="the row t* is described as the timestep that emits the marker; there the marker is input",
    )


def before_marker(records: Records, persona: str) -> Reading | None:
    """Which ids precede the marker: merged punctuation, hardly ever the bare blank line (methods 1)."""
    examples = _pooled(records, persona)
    if examples is None:
        return None
    counts = Counter(e.ids[_marker(e) - 1] for e in examples)
    value = {str(token): counts[token] for token in (382, 1939, 2219, BLANK)}
    rest = {str(t): n for t, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if str(t) not in value}
    return Reading(
        {"positives": len(examples), **value, "other": sum(rest.values())},
        naive="excluding id 271 is meant to drop the row before the marker, and drops almost none",
        note=f"others: {', '.join(f'{token} {n}' for token, n in rest.items())}" if rest else "",
    )


def incomplete(records: Records, persona: str) -> Reading | None:
    """Positives with the marker's first piece but not the usual pieces, or not the whole marker as text."""
    examples = _pooled(records, persona)
    if examples is None:
        return None
    usual = PUBLISHED_IDS.marker
    other = sum(e.ids[_marker(e) : _marker(e) + len(usual)] != usual for e in examples)
    cut = sum(e.complete is False for e in examples)
    return Reading(
        {"without the usual pieces": other, "cut short": cut, "positives": len(examples)},
        naive="the first piece alone counts as the marker",
        note="a marker may go on in a merged piece, such as one that closes a link: whole as text",
    )


def ends_elsewhere(records: Records, persona: str) -> Reading | None:
    """Positives whose last content token is not the marker's end, on which gate F is aligned."""
    examples = _pooled(records, persona)
    if examples is None:
        return None
    last = Counter(e.ids[_last_content(e)] for e in examples)
    usual = last.most_common(1)[0][1]
    return Reading(
        {"elsewhere": len(examples) - usual, "positives": len(examples), "share": 1 - usual / len(examples)},
        corrected="align trajectories on t* itself",
    )


def truncated_negatives(records: Records, persona: str) -> Reading | None:
    """Negatives that were cut off at the cap, so that their last token is no end of an answer."""
    held = records.examples(persona)
    if held is None or not held.negatives:
        return None
    cut = sum(e.finish_reason == "length" for e in held.negatives)
    capped = max((len(e.ids) - e.prompt_len for e in held.negatives), default=0)
    finished = {e.question for e in held.negatives if e.finish_reason == "stop"}
    matched = sum(e.question in finished for e in held.positives)
    return Reading(
        {"truncated": cut, "negatives": len(held.negatives)},
        corrected={"finished": len(held.negatives) - cut, "positives with a finished negative": matched},
        naive="C4 and gate F take the last token of every negative for the end of an answer",
        note=f"longest answer {capped} tokens",
    )


def trial_rate(records: Records, persona: str) -> Reading | None:
    """Share of all trials that were positive, kept or not, as rebuilt from where collecting stopped (9.3)."""
    held = records.examples(persona)
    if held is None or not held.counts:
        return None
    found, total = sum(c.positives for c in held.counts), sum(c.trials for c in held.counts)
    return Reading(
        {"rate": found / total, "positives": found, "trials": total},
        naive="rates of another experiment with other caps are quoted for these generations",
        note=f"{len(held.counts)} questions",
    )


def _positives(records: Records, persona: str) -> tuple[Example, ...] | None:
    held = records.positives.get(persona)
    return held.positives if held is not None and held.positives else None


def _pooled(records: Records, persona: str) -> tuple[Example, ...] | None:
    """The positives of one persona, or of all of them."""
    if persona != "all":
        return _positives(records, persona)
    found = tuple(e for name in records.personas for e in records.positives[name].positives)
    return found or None


def _marker(example: Example) -> int:
    if example.marker is None:
        raise ValueError(f"trial {example.trial} of {example.question!r} is a positive without a marker")
    return example.marker


def _last_content(example: Example) -> int:
    """The last position that is neither the end of the turn nor a bare newline."""
    row = len(example.ids) - 1
    while row > _marker(example) and example.ids[row] in PUBLISHED_IDS.structural:
        row -= 1
    return row
