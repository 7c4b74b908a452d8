"""From characters to tokens: which stretch of a rendered chat each token lies in, and what its id says."""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from mechinterp.chat_layout import Stretch
from mechinterp.segmentation import CHAT_REGIONS, Segmentation, TokenMarks

Bounds = tuple[int, int]  # first character of a token, and the one behind its last


def tokenise(tokenizer: Any, text: str) -> tuple[list[int], list[Bounds]]:
    """Ids of a rendered chat, whose template wrote BOS already, and the characters of each.

    Normalisers that compose characters and offsets trimmed of spaces leave gaps: a space belongs to the token
    behind it, anything else to the token before it.
    """
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )
    bounds: list[Bounds] = []
    reach = 0
    for start, stop in encoded["offset_mapping"]:
        if start > reach and text[reach:start].isspace():
            start = reach
        bounds.append((min(start, max(stop, reach)), max(start, stop)))
        reach = max(reach, stop)
    return list(encoded["input_ids"]), bounds


def control_tokens(tokenizer: Any, added: Mapping[int, Any], markup: str) -> dict[int, str]:
    """The special tokens, and those added tokens with which the template writes `markup`, by id.

    Added tokens of white space (Gemma's blank lines) are ordinary text.
    """
    shown = {i: token.content for i, token in added.items() if token.content.strip()}
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return {i: text for i, text in shown.items() if i in special or text in markup}


def marks_of(tokenizer: Any, ids: Sequence[int], control: Collection[int]) -> TokenMarks:
    """Masks over the ids; a token is looked at alone, as it decodes."""
    shown = {i: tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in set(ids)}
    exact = torch.tensor([shown[i] in ("\n", "\n\n") for i in ids], dtype=torch.bool)
    ending = torch.tensor([shown[i].endswith("\n") for i in ids], dtype=torch.bool)
    return TokenMarks(torch.tensor([i in control for i in ids], dtype=torch.bool), exact, ending & ~exact)


def segment(
    stretches: Sequence[Stretch], bounds: Sequence[Bounds], marks: TokenMarks
) -> tuple[Segmentation, tuple[str, ...]]:
    """Each token goes where its first character of message text is, or else its first character.

    It is special unless it holds message text. Also says, as warnings, which tokens reach into a second
    region.
    """
    filled = [new for old, new in pairwise([Stretch("", 0, -1, False), *stretches]) if new.stop > old.stop]
    stops = [stretch.stop for stretch in filled]
    chosen, special, warnings = [], [], []
    for position, (start, stop) in enumerate(bounds):
        first = min(bisect_right(stops, start), len(filled) - 1)
        last = min(bisect_right(stops, max(start, stop - 1)), len(filled) - 1)
        covered = filled[first : last + 1]
        home = next((stretch for stretch in covered if stretch.content), covered[0])
        chosen.append(home)
        special.append(not home.content)
        regions = list(dict.fromkeys(stretch.region for stretch in covered))
        if len(regions) > 1:
            both = " and ".join(regions)
            warnings.append(f"token {position} holds text of {both}; it counts as {home.region}")
    segmentation = Segmentation(
        CHAT_REGIONS,
        torch.tensor([CHAT_REGIONS.index(stretch.region) for stretch in chosen], dtype=torch.long),
        torch.tensor(special, dtype=torch.bool) | marks.control,
        marks,
        torch.tensor([stretch.turn for stretch in chosen], dtype=torch.long),
    )
    return segmentation, tuple(warnings)


def control_inside(
    text: str, stretches: Sequence[Stretch], bounds: Sequence[Bounds], marks: TokenMarks
) -> tuple[int, str] | None:
    """(message, text) of the first control token that message text was read as, if there is one.

    Looked for among the ids, so no normalisation and no seam between two texts gets past.
    """
    begin = 0
    inside: list[tuple[int, int, int]] = []
    for stretch in stretches:
        if stretch.content and stretch.turn >= 0:
            inside.append((begin, stretch.stop, stretch.turn))
        begin = stretch.stop
    for position in marks.control.nonzero().flatten().tolist():
        start, stop = bounds[position]
        for low, high, turn in inside:
            # white space alone is a control token that swallows its neighbours' spaces (rstrip), not a role
            if text[max(start, low) : min(stop, high)].strip():
                return turn, text[start:stop]
    return None
