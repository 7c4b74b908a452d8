"""Messages become token ids here, once, together with their segmentation.

Nothing downstream decodes ids and encodes them again. Regions come from a fast tokenizer's offsets.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor

from mechinterp.chat_layout import Found, Stretch, lay_out
from mechinterp.chat_template import Draft, Fill, learn, messages_of
from mechinterp.chat_tokens import control_inside, control_tokens, marks_of, segment, tokenise
from mechinterp.segmentation import HEADER, SYSTEM_DEFAULT, Segmentation, TokenMarks

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids with their regions; `text` and `messages` are for showing.

    `warnings` says in sentences what the template did that was not asked, such as a default system prompt.
    """

    tokens: Int[Tensor, "1 position"]
    segmentation: Segmentation
    text: str
    messages: tuple[dict[str, str], ...]
    template_sha256: str | None
    warnings: tuple[str, ...] = ()

    @property
    def last(self) -> int:
        """Absolute position of the last token: the row that decides the first generated one."""
        return self.tokens.shape[1] - 1


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    generation_prompt: bool = True,
    system_role: Literal["native", "prepend_user"] = "native",
    allow_control_tokens: bool = False,
    template: str | None = None,
) -> Prompt:
    """A chat as token ids and regions, through the tokenizer's own chat template or `template`.

    Text that the tokenizer reads as a control token is refused inside a message: encoded as ordinary text it
    would have to be tokenised apart from its surroundings, which the model sees in no other chat.
    `allow_control_tokens=True` keeps it, marked as special. `system_role="prepend_user"` puts the system
    message and a blank line before the first user message, for templates without that role.
    Raises ValueError where no exact segmentation can be had.
    """
    checked, source = _checked(messages), _template(tokenizer, template)
    drafts, fill = _drafts(checked, system_role), _filler(tokenizer, source)
    _try(fill, drafts, generation_prompt)
    added = tokenizer.added_tokens_decoder
    grammar = learn(fill, [token.content for token in added.values()])
    control = control_tokens(tokenizer, added, grammar.markup)
    if not allow_control_tokens:
        _refuse_control(checked, _spelled(checked, control.values()))
    roles = dict(enumerate(message["role"] for message in checked))
    found, stretches = lay_out(
        fill, drafts, roles, grammar, generation_prompt=generation_prompt, source=source
    )
    ids, bounds = tokenise(tokenizer, found.text)
    marks = marks_of(tokenizer, ids, control)
    if not allow_control_tokens:
        _refuse_control(checked, control_inside(found.text, stretches, bounds, marks))
    if ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ValueError("this chat begins with two BOS tokens; take one out of the template=")
    segmentation, shared = segment(stretches, bounds, marks)
    warnings = _warnings(found, checked, stretches, generation_prompt) + shared
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return Prompt(torch.tensor([ids]), segmentation, found.text, checked, sha256, warnings)


def plain(tokenizer: Any, text: str) -> Prompt:
    """Text without a chat template, one region `text`; BOS comes first where the tokenizer itself adds it."""
    _check_text(text, "the prompt")
    if not text:
        raise ValueError(
            "the prompt is empty; pass some text, or tokenizer.bos_token for a prompt of BOS alone"
        )
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    bos = tokenizer.bos_token_id
    by_itself = tokenizer(text, verbose=False)["input_ids"][:1]
    if bos is not None and by_itself == [bos] and ids[:1] != [bos]:
        ids = [bos, *ids]
    if not ids:
        raise ValueError(f"the prompt {text!r} has no tokens; pass text that the tokenizer keeps")
    tokens = torch.tensor([ids])
    marks = token_marks(tokenizer, tokens[0])
    segmentation = Segmentation(("text",), torch.zeros_like(tokens[0]), marks.control, marks)
    warnings = () if text.strip() else ("the prompt is blank",)
    return Prompt(tokens, segmentation, text, (), None, warnings)


def insert_question(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    question: str,
    *,
    after_turn: int,
    system_role: Literal["native", "prepend_user"] = "native",
    template: str | None = None,
) -> Prompt:
    """The transcript up to its `after_turn`-th assistant turn, then the question (methods 10.3).

    What follows in the transcript is dropped. 0 is no history: a leading system message, then the question.
    Raises ValueError where the transcript has fewer assistant turns.
    """
    ends = [index + 1 for index, message in enumerate(messages) if message.get("role") == "assistant"]
    if not 0 <= after_turn <= len(ends):
        raise ValueError(
            f"the transcript has {len(ends)} assistant turns; after_turn {after_turn} is not in it"
        )
    lead = next((i for i, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    kept = messages[: ends[after_turn - 1] if after_turn else lead]
    asked = [*kept, {"role": "user", "content": question}]
    return render(tokenizer, asked, system_role=system_role, template=template)


def token_marks(tokenizer: Any, tokens: Int[Tensor, "position"]) -> TokenMarks:
    """Which ids are control tokens and newlines, for `Segmentation.extended` by a generated answer."""
    control = control_tokens(tokenizer, tokenizer.added_tokens_decoder, "")
    return marks_of(tokenizer, [int(token) for token in tokens], control)


def _checked(messages: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], ...]:
    if not messages:
        raise ValueError("there are no messages; pass at least one, such as {'role': 'user', 'content': ...}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise ValueError(f"messages[{index}] is {message!r}; it needs a role and a content, and no more")
        if message["role"] not in ROLES:
            raise ValueError(
                f"messages[{index}] has role {message['role']!r}; the roles are {', '.join(ROLES)}"
            )
        _check_text(message["content"], f"messages[{index}]['content']")
    return tuple(dict(message) for message in messages)


def _check_text(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {text!r}; it must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds a lone surrogate {text[error.start]!r} at character {error.start}, which no "
            "tokenizer can take; decode its source again with errors='replace'"
        ) from None


def _name(messages: Sequence[Mapping[str, str]], index: int) -> str:
    return f"message {index} ({messages[index]['role']})"


def _spelled(messages: Sequence[Mapping[str, str]], control: Iterable[str]) -> tuple[int, str] | None:
    """(message, token) of the first control token spelt out in a message, rendered or not."""
    held = ((index, token) for token in control for index, m in enumerate(messages) if token in m["content"])
    return next(held, None)


def _refuse_control(messages: Sequence[Mapping[str, str]], held: tuple[int, str] | None) -> None:
    if held is not None:
        raise ValueError(
            f"{_name(messages, held[0])} holds {held[1]!r}, which is a control token to the tokenizer; "
            "take it out, or pass allow_control_tokens=True to keep it as one"
        )


def _template(tokenizer: Any, template: str | None) -> str:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; load the fast one (tokenizer.json), "
            "or use plain(tokenizer, text)"
        )
    if template is None and not tokenizer.chat_template:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template; pass template=, or chat=False "
            "(plain(tokenizer, text)) for a prompt without roles"
        )
    return tokenizer.get_chat_template(template)


def _filler(tokenizer: Any, source: str) -> Fill:
    def fill(chat: list[dict[str, str]], generation: bool) -> str:
        return tokenizer.apply_chat_template(
            chat, chat_template=source, tokenize=False, add_generation_prompt=generation
        )

    return fill


def _drafts(messages: Sequence[Mapping[str, str]], system_role: str) -> list[Draft]:
    drafts = [Draft(m["role"], ((index, m["content"]),)) for index, m in enumerate(messages)]
    if system_role not in ("native", "prepend_user"):
        raise ValueError(f"system_role is 'native' or 'prepend_user', not {system_role!r}")
    if system_role == "native" or messages[0]["role"] != "system":
        return drafts
    if len(messages) == 1 or messages[1]["role"] != "user":
        raise ValueError("system_role='prepend_user' needs a user message right after the system message")
    return [Draft("user", (drafts[0].parts[0], (None, "\n\n"), drafts[1].parts[0])), *drafts[2:]]


def _try(fill: Fill, drafts: Sequence[Draft], generation_prompt: bool) -> None:
    """Renders once, to say what to do where the template refuses the chat."""
    try:
        fill(messages_of(drafts), generation_prompt)
        return
    except TemplateError as error:
        refusal = error
    without = [draft for draft in drafts if draft.role != "system"]
    remedy = "change the messages, or pass another template="
    if without and len(without) < len(drafts):
        try:
            fill(messages_of(without), generation_prompt)
            remedy = "it has no system role: pass system_role='prepend_user', or leave the system message out"
        except TemplateError:
            pass  # the system message is not what it minds
    raise ValueError(f"the chat template refuses these messages ({refusal}); {remedy}") from refusal


def _warnings(
    found: Found, messages: Sequence[Mapping[str, str]], stretches: Sequence[Stretch], generation_prompt: bool
) -> tuple[str, ...]:
    """What the template did unasked; ValueError where it leaves a whole message out."""
    warnings = []
    if any(stretch.region == SYSTEM_DEFAULT for stretch in stretches):
        warnings.append("the chat template inserts a system prompt of its own; it is region system_default")
    shown = dict.fromkeys(range(len(messages)), 0)
    for span in found.spans:
        shown[span.owner] += span.origin[1] - span.origin[0]
    for index, message in enumerate(messages):
        text = message["content"]
        if not text.strip():
            warnings.append(f"{_name(messages, index)} is blank")
        elif not shown[index]:
            raise ValueError(
                f"the chat template leaves {_name(messages, index)} out; take it out of the messages, or "
                "pass system_role='prepend_user' if it is a system message"
            )
        elif shown[index] < len(text.strip()):
            missing = len(text.strip()) - shown[index]
            warnings.append(
                f"the chat template moves or leaves out {missing} characters of {_name(messages, index)}"
            )
    if not generation_prompt and stretches[-1].region == HEADER and stretches[-1].stop > stretches[-2].stop:
        warnings.append("the chat template adds a generation prompt although none was asked for")
    return tuple(warnings)
