"""The rendered chat cut into stretches of characters: whose turn, and message text or template text.

The markup of a turn belongs to the turn (methods 9.4, block-inclusive). A system message that the template
puts inside a user turn takes what the template adds for it; the turn's own opening stays with the user.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from mechinterp.chat_template import MARKS, Draft, Fill, Grammar, Span, locate, messages_of
from mechinterp.segmentation import ANSWER, HEADER, SYSTEM, SYSTEM_DEFAULT, USER

BLOCK = {"system": SYSTEM, "user": USER, "assistant": ANSWER}
OPENING = {"system": SYSTEM, "user": USER, "assistant": HEADER}


@dataclass(frozen=True)
class Stretch:
    """Characters up to `stop`, from where the stretch before it ended; `turn` is a message's index or -1."""

    region: str
    stop: int
    turn: int
    content: bool


@dataclass(frozen=True)
class Found:
    """A rendered chat, where its messages' texts are, and how its template builds turns."""

    text: str
    spans: tuple[Span, ...]
    roles: dict[int, str]
    grammar: Grammar


def lay_out(
    fill: Fill,
    drafts: Sequence[Draft],
    roles: dict[int, str],
    grammar: Grammar,
    *,
    generation_prompt: bool,
    source: str,
) -> tuple[Found, list[Stretch]]:
    """Every character of the rendered chat in one stretch; ValueError where a turn's end cannot be found."""
    text = fill(messages_of(drafts), generation_prompt)
    spans = tuple(locate(fill, drafts, generation_prompt, source))
    if not spans:
        raise ValueError("this chat template shows none of the messages; pass another as template=")
    found = Found(text, spans, roles, grammar)
    stretches = _default_system(fill, drafts, generation_prompt, found)
    for index, span in enumerate(spans):
        stretches += _before(found, index, stretches[-1].stop if stretches else 0)
        stretches.append(Stretch(BLOCK[roles[span.owner]], span.stop, span.owner, True))
    last = spans[-1]
    header = _header_size(fill, drafts, generation_prompt, found)
    stretches.append(Stretch(BLOCK[roles[last.owner]], len(text) - header, last.owner, False))
    stretches.append(Stretch(HEADER, len(text), -1, False))
    return found, stretches


def _before(found: Found, index: int, begin: int) -> list[Stretch]:
    """The template text in front of one span: the end of the turn before it, then the opening of its own."""
    span, roles = found.spans[index], found.roles
    stretches = []
    if index:
        previous = found.spans[index - 1].owner
        if previous == span.owner:
            return [Stretch(BLOCK[roles[span.owner]], span.start, span.owner, False)]
        closed = _closing(found, index)
        if closed is None and roles[previous] == "system":
            return [Stretch(SYSTEM, span.start, previous, False)]
        if closed is None:
            raise ValueError(
                f"the end of message {previous} ({roles[previous]}) cannot be told from the start of "
                f"message {span.owner} ({roles[span.owner]}) in {found.text[begin : span.start]!r}; "
                "pass another template="
            )
        begin += closed
        stretches.append(Stretch(BLOCK[roles[previous]], begin, previous, False))
    host = _host(found, index)
    if host is not None:
        opening = found.text[begin : span.start]
        usual = (found.grammar.first, found.grammar.opens["user"])
        begin += next((len(start) for start in usual if opening.startswith(start)), 0)
        stretches.append(Stretch(OPENING[roles[host]], begin, host, False))
    return [*stretches, Stretch(OPENING[roles[span.owner]], span.start, span.owner, False)]


def _closing(found: Found, index: int) -> int | None:
    """How much of the text in front of span `index` ends the turn before it; None if both share a turn."""
    previous, span = found.spans[index - 1], found.spans[index]
    literal = found.text[previous.stop : span.start]
    close = found.grammar.closes.get(found.roles[previous.owner])
    opening = found.grammar.opens.get(found.roles[span.owner])
    if close is not None and literal.startswith(close):
        return len(close)
    if opening is not None and literal.endswith(opening):
        return len(literal) - len(opening)
    return None


def _host(found: Found, index: int) -> int | None:
    """The message in whose turn a system message stands, where it has no turn of its own."""
    owner = found.spans[index].owner
    after = next((k for k in range(index + 1, len(found.spans)) if found.spans[k].owner != owner), None)
    if found.roles[owner] != "system" or after is None or _closing(found, after) is not None:
        return None
    return found.spans[after].owner


def _header_size(fill: Fill, drafts: Sequence[Draft], generation_prompt: bool, found: Found) -> int:
    """Length of the generation prompt: what asking for it appends, or what the template appends unasked."""
    without, asked = (fill(messages_of(drafts), wanted) for wanted in (False, True))
    if without == asked:
        header, tail = found.grammar.unasked_header, found.text[found.spans[-1].stop :]
        return len(header) if tail.endswith(header) else 0
    if not asked.startswith(without):
        raise ValueError("this chat template changes earlier text when it adds the generation prompt")
    return len(asked) - len(without) if generation_prompt else 0


def _default_system(
    fill: Fill, drafts: Sequence[Draft], generation_prompt: bool, found: Found
) -> list[Stretch]:
    """The system block that the template inserts when there is no system message, if it does.

    With a system message of one mark the template writes `opening mark closing`; without one, the default is
    whatever stands between the same opening and closing.
    """
    if any(draft.role == "system" for draft in drafts):  # one put before the question has no turn of its own
        return []
    mark, start = chr(MARKS[-1]), found.spans[0].start
    messages = [{"role": "system", "content": mark}, *messages_of([d for d in drafts if d.role != "system"])]
    try:
        with_system = fill(messages, generation_prompt)
    except TemplateError:  # no system role, so no default one
        return []
    opening, _, rest = with_system.partition(mark)
    literal, remainder = found.text[:start], found.text[start:]
    if not rest.endswith(remainder):
        return []
    closing = rest.removesuffix(remainder)
    turn = found.grammar.opens.get(drafts[0].role, "")
    own_turn = closing.endswith(turn) and literal.startswith(opening) and literal.endswith(closing)
    if not own_turn or len(literal) < len(opening) + len(closing):
        return []
    inside = len(literal) - len(closing)
    return [
        Stretch(SYSTEM_DEFAULT, len(opening), -1, False),
        Stretch(SYSTEM_DEFAULT, inside, -1, True),
        Stretch(SYSTEM_DEFAULT, len(literal) - len(turn), -1, False),
    ]
