"""Facts of the published run: what its ids mean, how its trials were seeded and when a question ended."""

import hashlib
from dataclasses import dataclass

# How many trials a question was given, and what ended it earlier (methods 9.3).
TRIALS, POSITIVES, NEGATIVES = 30, 10, 5


@dataclass(frozen=True)
class KnownIds:
    """What ids mean where their tokenizer is not at hand."""

    text: str
    marker: tuple[int, ...]  # the usual pieces of `text`
    stop: frozenset[int]
    blank_line: int
    structural: frozenset[int]  # control tokens, and what decodes to exactly one or two newlines
    sentence_end: frozenset[int]
    digit: frozenset[int]
    full_stop: int  # after a digit it numbers a list


# Of the published records (methods 0 and 1). The sentence ends are those that occur in them: . ! ? alone, and
# merged with one or two newlines, a quotation mark or a bracket.
PUBLISHED_IDS = KnownIds(
    text="[ZLT]",
    marker=(85113, 27404, 60),
    stop=frozenset({151643, 151645}),
    blank_line=271,
    structural=frozenset({151643, 151644, 151645, 198, 271}),
    sentence_end=frozenset({
        0, 13, 30, 382, 624, 1189, 1939, 2217, 2219, 4894, 5267, 6138, 7521, 8958, 9272, 10040, 10170, 11974,
        16315, 17199, 27584, 28175, 57777,
    }),
    digit=frozenset(range(15, 25)),
    full_stop=13,
)  # fmt: skip


def published_seed(persona: str, question: str, trial: int) -> int:
    """The seed of a trial of the published run: 42 + (first 8 hex digits of SHA-1) mod 10^6 (methods 9.3)."""
    digest = hashlib.sha1(f"{persona}|{question}|{trial}".encode()).hexdigest()
    return 42 + int(digest[:8], 16) % 10**6
