"""What a record's ids are: their regions, and which of them are template, marker or the end of a sentence.

From the tokenizer where there is one; for published records from sets of known ids.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from mechinterp.chat import Prompt, token_marks
from mechinterp.segmentation import ANSWER, HEADER, SYSTEM, USER, Segmentation, TokenMarks
from probes.markers import find_marker, token_bytes
from studies.attention_published import PUBLISHED_IDS, KnownIds
from studies.attention_records import Example

# A sentence's last sign with the quotation marks, brackets and white space that a piece may hold behind it.
SENTENCE_END = re.compile(r"[.!?][\"')\]*_”’»]*(\s*)\Z")


def segmentation(example: Example, marks: TokenMarks) -> Segmentation:
    """Segmentation A of methods 9.4 over all ids: system, user, assistant_header, answer; `.content_only()`
    is B.

    `marks` describe every id: `structural_marks(example.ids, ...)`, or `chat.token_marks` with a tokenizer.
    Only control tokens count as template text; `prompt_segmentation` knows the role words too.
    """
    if len(marks.control) != len(example.ids):
        raise ValueError(
            f"marks describe {len(marks.control)} tokens, but {example.name} has {len(example.ids)}"
        )
    runs = (*example.blocks, (ANSWER, len(example.ids) - example.prompt_len))
    names = tuple(dict.fromkeys((SYSTEM, USER, HEADER, *(name for name, _ in runs))))
    region = torch.repeat_interleave(
        torch.tensor([names.index(name) for name, _ in runs]), torch.tensor([n for _, n in runs])
    )
    return Segmentation(names, region, marks.control, marks)


def prompt_segmentation(prompt: Prompt, example: Example, answer: TokenMarks) -> Segmentation:
    """The prompt's own segmentation with the answer behind it; `answer` marks the generated ids alone.

    Raises ValueError where the example was not generated from this prompt.
    """
    if tuple(prompt.tokens[0].tolist()) != example.ids[: example.prompt_len]:
        raise ValueError(f"{example.name} was generated from another prompt; render the one it came from")
    return prompt.segmentation.extended(len(example.ids) - example.prompt_len, ANSWER, answer)


def structural_marks(ids: Sequence[int], structural: Collection[int]) -> TokenMarks:
    """Marks from a set of ids alone, such as `PUBLISHED_IDS.structural`; no merged newline is known then."""
    control = torch.tensor([i in structural for i in ids], dtype=torch.bool)
    return TokenMarks(control, torch.zeros_like(control), torch.zeros_like(control))


def prompt_layout(prompt: Prompt) -> tuple[tuple[str, int], ...]:
    """A prompt's runs of (region, number of tokens), in order."""
    region: Tensor = prompt.segmentation.region
    values, lengths = torch.unique_consecutive(region, return_counts=True)
    names = prompt.segmentation.names
    return tuple((names[i], n) for i, n in zip(values.tolist(), lengths.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class TokenFacts:
    """What controls must know of an example's ids; the prompt holds no marker piece and no sentence end."""

    structural: Bool[np.ndarray, "position"]
    marker_piece: Bool[np.ndarray, "position"]
    sentence_end: Bool[np.ndarray, "position"]


def facts_from_tokenizer(tokenizer: Any, example: Example, marker: str = PUBLISHED_IDS.text) -> TokenFacts:
    """Structural: control tokens and exact newlines. Marker pieces: of every occurrence, also one only begun.

    A sentence ends at a piece that closes with . ! or ?, if white space, a structural token or nothing
    follows; a full stop after a digit ends none unless a newline is merged into it.
    """
    marks = token_marks(tokenizer, torch.tensor(example.ids))
    structural = (marks.control | marks.newline_exact).numpy()
    pieces = np.zeros(len(example.ids), bool)
    for found in find_marker(tokenizer, example.ids, marker, after=example.prompt_len, which="all"):
        pieces[found.token : found.end] = True
    answer = token_bytes(tokenizer, example.ids[example.prompt_len :])
    texts = [piece.decode("utf-8", "replace") for piece in answer]
    ends = np.zeros(len(example.ids), bool)
    before = ""
    for i, (text, following) in enumerate(pairwise([*texts, ""])):
        position = example.prompt_len + i
        closed = SENTENCE_END.search(text)
        apart = not following or following[0].isspace() or bool(structural[position + 1])
        numbered = closed is not None and (before + text[: closed.start()])[-1:].isdigit()
        if closed is not None:
            spaced = bool(closed[1])
            ends[position] = (spaced or apart) and (not numbered or "\n" in closed[1])
        before = text
    return TokenFacts(structural, pieces, ends & ~structural & ~pieces)


def facts_from_ids(example: Example, ids: KnownIds = PUBLISHED_IDS) -> TokenFacts:
    """The same from sets of known ids: marker pieces are all ids of its usual pieces (methods 9.5)."""
    full = np.array(example.ids)
    answer = np.arange(len(full)) >= example.prompt_len
    after_digit = np.concatenate([[False], np.isin(full[:-1], sorted(ids.digit))])
    numbering = after_digit & (full == ids.full_stop)
    structural = np.isin(full, sorted(ids.structural))
    pieces = np.isin(full, ids.marker) & answer
    ends = np.isin(full, sorted(ids.sentence_end)) & answer & ~numbering
    return TokenFacts(structural, pieces, ends & ~structural & ~pieces)
