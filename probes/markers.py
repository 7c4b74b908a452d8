"""Where a marker stands in generated ids: by the characters that each token holds, never by one id.

A tokenizer writes the same marker in several ways: after a space, a full stop or an emoji the first piece is
another one, so that a search for one id misses it. Text is only read here; no ids are made from it.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

MARKER = "[ZLT]"
WORD_START = "▁"  # sentencepiece's sign for a space
LEAST_OPENING = 2  # characters: a bare "[" opens much else


@dataclass(frozen=True)
class Occurrence:
    """One marker. `token` is the token with its first character and `emit` = token - 1 the row that decided
    it.

    Positions are absolute; `ids` are those from `token` to before `end`. Where `complete` is False the answer
    ends inside the marker, or went on differently after its usual opening. `variant` shows how the tokens cut
    the text, such as "[Z|LT|]" or " [|Z|LT|]".
    """

    emit: int
    token: int
    end: int
    ids: tuple[int, ...]
    complete: bool
    variant: str


@dataclass(frozen=True)
class Detection:
    """One answer by every detector.

    `text`: the marker in the decoded answer, in any case. `ids`: its usual opening pieces in the ids.
    `occurrences`: all of them, by character span.
    """

    text: bool
    ids: bool
    occurrences: tuple[Occurrence, ...]


@dataclass(frozen=True)
class Usual:
    """How a tokenizer writes a marker that follows a blank line.

    `opening` is the first piece, or as many as it takes to hold two characters; `lead` counts the bytes of it
    that stand before the marker.
    """

    ids: tuple[int, ...]
    opening: tuple[int, ...]
    lead: int
    n_bytes: int  # of the marker, in `opening`


def find_marker(
    tokenizer: Any,
    tokens: Int[Tensor, "position"] | Sequence[int],
    marker: str = MARKER,
    *,
    after: int,
    which: Literal["first", "all"] = "first",
) -> tuple[Occurrence, ...]:
    """The markers of an answer in order, or the first alone; an empty tuple where there is none.

    `after` is the position of the answer's first token, which is the length of its prompt: a marker in the
    prompt is not looked for. Raises ValueError for a blank marker, one that the tokenizer rewrites, and a
    position that the ids do not have.
    """
    if which not in ("first", "all"):
        raise ValueError(f"which is 'first' or 'all', not {which!r}")
    found = detect(tokenizer, tokens, marker, after=after).occurrences
    return found if which == "all" else found[:1]


def detect(
    tokenizer: Any,
    tokens: Int[Tensor, "position"] | Sequence[int],
    marker: str = MARKER,
    *,
    after: int,
) -> Detection:
    """What each detector says of the answer that begins at position `after`; raises like `find_marker`."""
    usual = usual_ids(tokenizer, marker)
    ids = _checked_ids(tokens, after)
    answer = ids[after:]
    pieces = token_bytes(tokenizer, answer)
    text = b"".join(pieces)
    opened = _opened(answer, usual.opening)
    spans = _spans(text, marker.encode(), pieces, opened, usual)
    shown = text.decode("utf-8", "replace").casefold()
    return Detection(
        text=marker.casefold() in shown,
        ids=bool(opened),
        occurrences=tuple(_occurrence(ids, pieces, after, *span) for span in spans),
    )


def usual_ids(tokenizer: Any, marker: str = MARKER) -> Usual:
    """The pieces of `marker` after two newlines, where markers are trained to stand.

    Raises ValueError where the marker is blank, no text, or comes back from the tokenizer as something else.
    """
    if not isinstance(marker, str) or not marker.strip():
        raise ValueError(f"the marker is {marker!r}; give some visible text, such as '[ZLT]'")
    try:
        wanted = marker.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the marker {marker!r} holds a lone surrogate; take it out") from None
    ids = list(tokenizer("\n\n" + marker, add_special_tokens=False, verbose=False)["input_ids"])
    pieces = token_bytes(tokenizer, ids)
    text = b"".join(pieces)
    start = text.rfind(wanted)
    if start < 0:
        shown = text.decode("utf-8", "replace").strip()
        raise ValueError(
            f"the tokenizer writes the marker {marker!r} as {shown!r}; choose one that it keeps as it is"
        )
    starts = _starts(pieces)
    first, last = (bisect_right(starts, byte) - 1 for byte in (start, start + len(wanted) - 1))
    n = next(n for n in range(1, last - first + 2) if _holds(text, start, starts, first + n, wanted))
    stop = starts[first + n] if first + n < len(starts) else len(text)
    opening = tuple(ids[first : first + n])
    return Usual(tuple(ids[first : last + 1]), opening, start - starts[first], min(stop - start, len(wanted)))


def token_bytes(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """The bytes that each id adds to the text: several ids may share one character.

    Raises ValueError for a tokenizer whose pieces, joined, are not the text that it decodes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        raise ValueError(f"{type(tokenizer).__name__} does not say how it decodes; load the fast tokenizer")
    ids = [int(i) for i in ids]
    spelled = tokenizer.convert_ids_to_tokens(ids)
    read = _byte_level if "ByteLevel" in _kinds(json.loads(backend.decoder.__getstate__())) else _word_start
    # An id of a padded vocabulary has no piece and no text.
    pieces = [b"" if piece is None else read(piece) for piece in spelled]
    shown = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if _comparable(b"".join(pieces).decode("utf-8", "replace")) != _comparable(shown):
        raise ValueError(
            f"the pieces of {type(tokenizer).__name__} do not add up to the text that it decodes; "
            "markers can be found with byte-level and sentencepiece tokenizers only"
        )
    return pieces


def _byte_level(piece: str) -> bytes:
    if all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return piece.encode()


def _word_start(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace(WORD_START, " ").encode()


def _byte_names() -> dict[str, int]:
    """The printable characters by which byte-level tokenizers name the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + n): byte for n, byte in enumerate(rest)}


_BYTE_OF = _byte_names()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    inner = decoder.get("decoders", [])
    return {decoder["type"], *(kind for part in inner for kind in _kinds(part))}


def _comparable(text: str) -> str:
    """Text without what decoders disagree on: the sign for broken bytes, and a first space."""
    return text.replace("\ufffd", "").removeprefix(" ")


def _holds(text: bytes, start: int, starts: list[int], behind: int, wanted: bytes) -> bool:
    """Do the pieces up to `behind` hold two characters of the marker, or all of it?"""
    stop = starts[behind] if behind < len(starts) else len(text)
    held = text[start : min(stop, start + len(wanted))]
    return held == wanted or len(held.decode("utf-8", "ignore")) >= LEAST_OPENING


def _checked_ids(tokens: Int[Tensor, "position"] | Sequence[int], after: int) -> list[int]:
    if isinstance(tokens, Tensor) and tokens.ndim != 1:
        raise ValueError(f"tokens are one row of ids, not {tuple(tokens.shape)}; pass tokens[0]")
    ids = [int(i) for i in tokens]
    if not 1 <= after <= len(ids):
        raise ValueError(
            f"the answer begins at a position 1..{len(ids)}, not {after}; give the length of its prompt"
        )
    return ids


def _starts(pieces: Sequence[bytes]) -> list[int]:
    return list(accumulate(map(len, pieces), initial=0))[:-1]


def _opened(answer: list[int], opening: tuple[int, ...]) -> list[int]:
    """Where in the answer the usual opening occurs."""
    n = len(opening)
    return [i for i in range(len(answer) - n + 1) if tuple(answer[i : i + n]) == opening]


Span = tuple[int, int, bool]  # first token and the one behind the last, within the answer; complete or not


def _spans(
    text: bytes, wanted: bytes, pieces: Sequence[bytes], opened: Sequence[int], usual: Usual
) -> list[Span]:
    """Complete markers, and at bytes outside of them those that were only begun."""
    starts = _starts(pieces)
    found: dict[int, int] = {}
    byte = text.find(wanted)
    while byte >= 0:
        found[byte] = len(wanted)
        byte = text.find(wanted, byte + len(wanted))
    begun = {starts[i] + usual.lead for i in opened}
    cut = next((n for n in range(len(wanted) - 1, usual.n_bytes - 1, -1) if text.endswith(wanted[:n])), 0)
    if cut:
        begun.add(len(text) - cut)
    complete = dict(found)
    for byte in begun:
        if not any(start <= byte < start + n for start, n in complete.items()):
            found[byte] = _shared(text[byte : byte + len(wanted)], wanted)
    return [
        (bisect_right(starts, byte) - 1, bisect_right(starts, byte + n - 1), byte in complete)
        for byte, n in sorted(found.items())
    ]


def _shared(text: bytes, wanted: bytes) -> int:
    """How many first bytes are the same."""
    return next((n for n in range(len(text)) if text[n] != wanted[n]), len(text))


def _occurrence(
    ids: list[int], pieces: Sequence[bytes], after: int, first: int, behind: int, complete: bool
) -> Occurrence:
    token, end = after + first, after + behind
    shown = "|".join(piece.decode("utf-8", "backslashreplace") for piece in pieces[first:behind])
    return Occurrence(token - 1, token, end, tuple(ids[token:end]), complete, shown)
