"""Where each message lies in a rendered chat, for any chat template, without knowing its markup.

Contents are wrapped in private-use characters and rendered again; a marking counts only if the rendering
without the marks is, character for character, the real one. So equal texts, trimming and merged roles cannot
mislead.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from jinja2 import TemplateError

Fill = Callable[[list[dict[str, str]], bool], str]  # (messages, generation prompt) -> rendered chat
Marking = tuple[tuple[int, int], ...]  # which stretches of one content are wrapped in marks

MARKS = range(0xF0000, 0xFFFFE)  # plane 15, private use: no white space, so trimming stops at a mark


@dataclass(frozen=True)
class Draft:
    """One message as the template sees it; `parts` says whose text it is (None: a separator of ours)."""

    role: str
    parts: tuple[tuple[int | None, str], ...]

    @property
    def content(self) -> str:
        return "".join(text for _, text in self.parts)


@dataclass(frozen=True)
class Span:
    """Characters [start, stop) of the rendered chat are characters from `origin` on of message `owner`."""

    owner: int
    start: int
    stop: int
    origin: tuple[int, int]


@dataclass(frozen=True)
class Grammar:
    """How a template opens and closes turns, and the generation prompt if it adds one unasked."""

    first: str  # what stands before the first user message of a chat without a system message
    opens: dict[str, str]
    closes: dict[str, str]
    unasked_header: str
    markup: str  # everything that the template wrote around three messages


def messages_of(drafts: Sequence[Draft]) -> list[dict[str, str]]:
    return [{"role": draft.role, "content": draft.content} for draft in drafts]


def locate(fill: Fill, drafts: Sequence[Draft], generation_prompt: bool, source: str) -> list[Span]:
    """Spans of the messages' own text, in the order of the rendered chat; `source` is the template's text.

    Raises ValueError where the template changes a message so that no marking reproduces the rendering.
    """
    options = [_markings(draft.content, source) for draft in drafts]
    text = fill(messages_of(drafts), generation_prompt)

    def attempt(chosen: Sequence[Marking]) -> list[Span] | None:
        return _spans_under(fill, drafts, generation_prompt, chosen, text)

    if (spans := attempt([option[0] for option in options])) is not None:
        return _joined(spans, drafts, text)
    chosen = [option[-1] for option in options]
    spans = attempt(chosen)
    if spans is None:
        raise ValueError(
            "this chat template rewrites the messages, so their text cannot be found by offsets; "
            "render it yourself and use plain(tokenizer, text), then with_region on its segmentation"
        )
    for index, option in enumerate(options):
        for marking in option[:-1]:  # from the widest on: keep as much white space as the template keeps
            wider = attempt([*chosen[:index], marking, *chosen[index + 1 :]])
            if wider is not None:
                chosen[index], spans = marking, wider
                break
    return _joined(spans, drafts, text)


def _markings(content: str, source: str) -> list[Marking]:
    """Ways to mark one content, the widest first, the one that survives most rewriting last."""
    if not content.strip():
        return [((0, len(content)),), ((0, 0),), ()]
    size = len(content)
    starts = dict.fromkeys(size - len(content.lstrip(cut)) for cut in ("", "\r\n", None))
    stops = dict.fromkeys(len(content.rstrip(cut)) for cut in ("", "\r\n", None))
    options: list[Marking] = [((start, stop),) for start, stop in product(starts, stops)]
    pieces = _pieces(content, source)
    return options if pieces == options[-1] else [*options, pieces]


def _pieces(content: str, source: str) -> Marking:
    """The content cut at the template's own string constants, which it may look for (such as `</think>`)."""
    quoted = {one or two for one, two in re.findall(r"'([^'\n]*)'|\"([^\"\n]*)\"", source)}
    constants = sorted((q for q in quoted if q.strip() and q in content), key=len, reverse=True)
    edges = [0]
    for cut in re.finditer("|".join(map(re.escape, constants)) or r"(?!)", content):
        edges += [cut.start(), cut.end()]
    pieces = []
    for start, stop in zip(edges[::2], [*edges[1::2], len(content)], strict=True):
        text = content[start:stop]
        if text.strip():
            pieces.append((stop - len(text.lstrip()), start + len(text.rstrip())))
    return tuple(pieces)


def _spans_under(
    fill: Fill, drafts: Sequence[Draft], generation_prompt: bool, chosen: Sequence[Marking], text: str
) -> list[Span] | None:
    """The spans if the rendering under these marks is the real one and each mark has its partner."""
    taken = set(text).union(*(draft.content for draft in drafts))
    free = (chr(code) for code in MARKS if chr(code) not in taken)
    owners: dict[str, tuple[str, int, tuple[int, int]]] = {}  # opening mark -> closing mark, owner, origin
    messages = []
    for draft, marking in zip(drafts, chosen, strict=True):
        pieces, done = [], 0
        for owner, start, stop in _by_owner(draft, marking):
            opening, closing = next(free), next(free)
            owners[opening] = (closing, owner, (start, stop))
            pieces += [draft.content[done:start], opening, draft.content[start:stop], closing]
            done = stop
        messages.append({"role": draft.role, "content": "".join([*pieces, draft.content[done:]])})
    try:
        marked = fill(messages, generation_prompt)
    except TemplateError:
        return None
    used = "".join(opening + closing for opening, (closing, *_) in owners.items())
    mark = re.compile(f"[{used}]" if used else r"(?!)")
    if mark.sub("", marked) != text:
        return None
    found = list(mark.finditer(marked))
    places = [(match.group(), match.start() - seen) for seen, match in enumerate(found)]
    if len(places) % 2:
        return None
    spans = []
    for (opening, start), (closing, stop) in zip(places[::2], places[1::2], strict=True):
        if opening not in owners or owners[opening][0] != closing:
            return None
        spans.append(Span(owners[opening][1], start, stop, owners[opening][2]))
    return spans


def _by_owner(draft: Draft, marking: Marking) -> list[tuple[int, int, int]]:
    """(owner, start, stop) of each marked stretch, cut where one message's text ends inside the content."""
    cut, begin = [], 0
    for owner, part in draft.parts:
        end = begin + len(part)
        for start, stop in marking:
            low, high = max(start, begin), min(stop, end)
            if owner is not None and (low < high or (low == high and (start == stop or begin == end))):
                cut.append((owner, low, high))
        begin = end
    return cut


def _joined(spans: Sequence[Span], drafts: Sequence[Draft], text: str) -> list[Span]:
    """Neighbouring pieces of one message made one where the text between them is the message's own."""
    contents = {owner: draft.content for draft in drafts for owner, _ in draft.parts if owner is not None}
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last is not None and last.owner == span.owner:
            between = contents[span.owner][last.origin[1] : span.origin[0]]
            if text[last.stop : span.start] == between:
                joined[-1] = Span(span.owner, last.start, span.stop, (last.origin[0], span.origin[1]))
                continue
        joined.append(span)
    return joined


def learn(fill: Fill, added_tokens: Sequence[str]) -> Grammar:
    """The openings and closings of turns, from a chat of three one-character messages.

    Raises ValueError where the template refuses such a chat, or where its turns cannot be told apart.
    """
    a, b, c = (chr(MARKS[0] + k) for k in range(3))
    chat = [{"role": r, "content": m} for r, m in (("user", a), ("assistant", b), ("user", c))]
    try:
        rendered, asked, short = fill(chat, False), fill(chat, True), fill(chat[:2], False)
    except TemplateError as error:
        raise ValueError(
            f"this chat template refuses a chat of user, assistant, user ({error}); pass another as template="
        ) from error
    literals = re.split(f"[{a}{b}{c}]", rendered)
    if re.findall(f"[{a}{b}{c}]", rendered) != [a, b, c] or b not in short:
        raise ValueError("this chat template drops, repeats or reorders turns; pass another as template=")
    first, to_assistant, to_user, tail = literals
    ending, header = short.rpartition(b)[2], ""
    unasked = asked == rendered and not to_user.startswith(ending)
    if unasked:  # the generation prompt comes whether it is wanted or not
        opening = _shared_ending(first, to_user, added_tokens)
        ending, header = to_user.removesuffix(opening), ending.removeprefix(to_user.removesuffix(opening))
        if not ending or not tail.endswith(header):
            raise ValueError(
                "this chat template ignores add_generation_prompt, and where its turns end cannot be told; "
                "pass a template= that heeds it"
            )
    if not to_user.startswith(ending) or not to_assistant.startswith(tail.removesuffix(header)):
        raise ValueError("this chat template closes a turn in more than one way; pass another as template=")
    closes = {"user": tail.removesuffix(header), "assistant": ending}
    opens = {"user": to_user[len(ending) :], "assistant": to_assistant[len(closes["user"]) :]}
    return Grammar(first, opens, closes, header, "".join((first, to_assistant, to_user, tail)))


def _shared_ending(one: str, other: str, added_tokens: Sequence[str]) -> str:
    """The longest common ending that begins where one of the added tokens does; else the longest."""
    size = next((k for k, (p, q) in enumerate(zip(one[::-1], other[::-1], strict=False)) if p != q), None)
    shared = other[len(other) - (min(len(one), len(other)) if size is None else size) :]
    starts = [shared.find(token) for token in added_tokens if token.strip() and token in shared]
    return shared[min(starts) :] if starts else shared
