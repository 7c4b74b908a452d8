"""The published control rows, redrawn bit for bit with their defects (methods 9.5). For audits only.

One generator serves all examples in turn, C1 before C3. C2 holds the row that decided the marker, C3 the most
common tokens, and C4 was never read.
"""

import numpy as np

from studies.attention_controls import MARGIN, N_EARLIER, N_LATE, N_RARE, RAREST, Row
from studies.attention_draws import Controls, Draw, draw_of
from studies.attention_published import PUBLISHED_IDS, KnownIds
from studies.attention_records import Example, Examples

SKIPPED = "fewer than five candidates for C1, so the published run left the example out"


def published_draws(examples: Examples, *, ids: KnownIds = PUBLISHED_IDS, seed: int = 42) -> Controls:
    """C1 to C3 at the token row of every positive, as the published run drew them."""
    generator = np.random.default_rng(seed)
    draws: dict[str, list[Draw]] = {"random_earlier": [], "late_position": [], "rare_token": []}
    for index, example in enumerate(examples.positives):
        earlier = _earlier(example, ids, generator)
        drawn = {
            "random_earlier": earlier,
            "late_position": _late(example, ids) if earlier else [],
            "rare_token": _lowest_ids(example, ids, generator) if earlier else [],
        }
        for name, positions in drawn.items():
            rows = tuple(Row("positive", index, int(p)) for p in positions)
            draws[name].append(draw_of(name, index, rows, examples, "" if earlier else SKIPPED))
    markers = tuple(example.row("token") for example in examples.positives)
    held = tuple(draw for found in draws.values() for draw in found)
    return Controls(examples.persona, "published", "token", seed, markers, held)


def _earlier(example: Example, ids: KnownIds, generator: np.random.Generator) -> list[int]:
    taken = {*ids.marker, ids.blank_line}
    span = range(example.prompt_len + MARGIN, example.row("token") - MARGIN)
    candidates = [p for p in span if example.ids[p] not in taken]
    if len(candidates) < N_EARLIER:
        return []
    return generator.choice(candidates, size=N_EARLIER, replace=False).tolist()


def _late(example: Example, ids: KnownIds) -> list[int]:
    """Up to the row that decided the marker, which stays in unless it is a bare blank line."""
    marker, taken = example.row("token"), {*ids.marker, ids.blank_line}
    return [p for p in range(max(0, marker - N_LATE), marker) if example.ids[p] not in taken]


def _lowest_ids(example: Example, ids: KnownIds, generator: np.random.Generator) -> list[int]:
    """Meant as the rarest twentieth: the sort puts the most common pieces, the lowest ids, at its end."""
    taken = {*ids.marker, *ids.structural}
    span = range(example.prompt_len, example.row("token"))
    candidates = [p for p in span if example.ids[p] not in taken]
    if not candidates:
        return []
    by_id = sorted(candidates, key=lambda p: -example.ids[p])
    last = by_id[-max(1, len(candidates) // RAREST) :]
    return last if len(last) <= N_RARE else generator.choice(last, size=N_RARE, replace=False).tolist()
