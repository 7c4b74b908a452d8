"""Plays a role through user turns on ids, and puts questions into the conversation that was played.

A sampled answer is never made into ids again. What follows an answer (what closes it, the next user turn,
the header of the next answer) is taken from the template rendered around stand-in answers, and must begin
with a control token, so that it cannot depend on the answer's text. A template that writes earlier turns
anew is refused: the ids of each prompt are a prefix of the next one's, or there is no conversation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.cells import cell_seed
from mechinterp.chat import render, token_marks
from mechinterp.model import Model
from mechinterp.sampling import Phase, sample, stop_ids
from studies.transcripts import Transcript

STAND_INS = (
    "Yes",
    "No",
)  # they share neither first nor last letter, so what two renderings share is the template's


def opening(tokenizer: Any, system: str | None, question: str) -> list[int]:
    """The ids of a conversation's first prompt, up to where the answer begins."""
    return _rendered(tokenizer, _system(system) + [_said("user", question)])


def following(tokenizer: Any, system: str | None, turns: Sequence[str], question: str) -> list[int]:
    """The ids from the end of the last answer to `turns` to the start of the answer to `question`.

    Raises ValueError where the template changes what stood before, or joins an answer's text to what follows
    it.
    """
    before = _system(system)
    for turn in turns[:-1]:
        before += [_said("user", turn), _said("assistant", STAND_INS[0])]
    before.append(_said("user", turns[-1]))
    prompt = _rendered(tokenizer, before)
    both = [
        _rendered(tokenizer, [*before, _said("assistant", a), _said("user", question)]) for a in STAND_INS
    ]
    for ids in both:
        kept = _common(prompt, ids)
        if kept < len(prompt):
            raise ValueError(
                f"the chat template writes earlier turns anew: with {len(turns) + 1} user turns the ids"
                " differ from"
                f" position {kept} of {len(prompt)} on, so a conversation cannot go on from its ids; use a"
                " model whose"
                " template keeps them, or leave the system message out"
            )
    if both[0][len(prompt)] == both[1][len(prompt)]:
        raise ValueError(
            "the chat template puts text of its own before the answers of earlier turns, which the model did"
            " not see when"
            " it gave them, so a conversation cannot go on from its ids"
        )
    tail = both[0][len(both[0]) - _common(both[0][::-1], both[1][::-1]) :]
    if not tail or len(prompt) + len(tail) >= min(map(len, both)) or not _is_control(tokenizer, tail[0]):
        raise ValueError(
            "the chat template closes an answer without a control token, so what follows depends on the"
            " answer's text"
            " and a conversation cannot be continued on ids"
        )
    return tail


def play(
    model: Model,
    role: str,
    system: str | None,
    turns: Sequence[str],
    *,
    n_tokens: int,
    temperature: float | None,
    top_p: float,
    seed: int,
) -> Transcript:
    """A conversation: each user turn answered by the model, each answer sampled from the ids so far.

    The draws of turn t come from (seed, role, t) alone. Raises ValueError before the first answer where the
    template does not keep earlier turns.
    """
    bridges = [following(model.tokenizer, system, turns[:t], turns[t]) for t in range(1, len(turns))]
    messages, ids, finish = _system(system), [], []
    for t, turn in enumerate(turns):
        asked = bridges[t - 1] if t else opening(model.tokenizer, system, turn)
        ids.append(tuple(asked))
        running = torch.tensor([i for part in ids for i in part])
        found = sample(
            model,
            [running],
            [Phase(n_tokens)],
            temperature=temperature,
            top_p=top_p,
            seed=cell_seed(seed, f"play/{role}", t),
        )
        answer = [int(i) for i in found.generated[0][found.real[0]]]
        if found.finish_reason[0] == "stop":
            answer = answer[:-1]  # what closes the turn is the first id of what follows
        ids.append(tuple(answer))
        finish.append(found.finish_reason[0])
        messages += [_said("user", turn), _said("assistant", model.decode(answer))]
    return Transcript(
        role, tuple(messages), tuple(ids), model.name, model.source.get("revision"), seed, tuple(finish)
    )


def with_ids(model: Model, given: Transcript) -> Transcript:
    """A transcript as this model's ids: its own ones checked, or those of its texts, rendered once.

    Raises ValueError for ids of another tokenizer or template, and where the template does not keep earlier
    turns.
    """
    tokenizer = model.tokenizer
    asked = [opening(tokenizer, given.system, given.user_turns[0])]
    asked += [
        following(tokenizer, given.system, given.user_turns[:t], turn)
        for t, turn in enumerate(given.user_turns)
        if t
    ]
    if not given.ids:
        answers = _encoded(model, given, asked)
        return replace(given, ids=tuple(tuple(p) for pair in zip(asked, answers, strict=True) for p in pair))
    stops = stop_ids(model)
    for t, text in enumerate(given.answers):
        prompt, answer = given.ids[2 * t], given.ids[2 * t + 1]
        if (
            list(prompt) != asked[t]
            or max(answer, default=0) >= model.dims.d_vocab
            or model.decode(answer) != text
        ):
            raise ValueError(
                f"the ids of turn {t + 1} are not the text of turn {t + 1} in {model.name}: they come from"
                " another tokenizer"
                " or template; leave the ids out, and they are made from the texts"
            )
        if answer and answer[-1] in stops:
            raise ValueError(
                f"the ids of answer {t + 1} end in {answer[-1]}, which closes the turn; leave it out of the"
                " answer"
            )
    return given


def inserted(model: Model, transcript: Transcript, question: str, *, after: int) -> Int[Tensor, "position"]:
    """The conversation up to its `after`-th answer, then the question and the header of its answer.

    What follows in the transcript is dropped; 0 is the question alone, after the system message (methods
    10.3).
    """
    if not 0 <= after <= transcript.n_turns:
        raise ValueError(
            f"the transcript has {transcript.n_turns} turns; there is no point after turn {after}"
        )
    if after == 0:
        return torch.tensor(opening(model.tokenizer, transcript.system, question))
    tail = following(model.tokenizer, transcript.system, transcript.user_turns[:after], question)
    return torch.tensor([*transcript.running(after), *tail])


def _encoded(model: Model, given: Transcript, asked: Sequence[list[int]]) -> list[list[int]]:
    """The ids of each answer within the whole conversation, rendered with a user turn after it."""
    running: list[int] = []
    answers = []
    for t, prompt in enumerate(asked):
        running += prompt
        upto = [*given.messages[: len(_system(given.system)) + 2 * t + 2], _said("user", "Go on.")]
        tail = following(model.tokenizer, given.system, given.user_turns[: t + 1], "Go on.")
        ids = _rendered(model.tokenizer, upto)
        if ids[: len(running)] != running or ids[len(ids) - len(tail) :] != tail:
            raise ValueError(
                f"the chat template does not keep turn {t + 1} of the transcript as it is; give its ids too"
            )
        answers.append(ids[len(running) : len(ids) - len(tail)])
        running += answers[-1]
    return answers


def _rendered(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Ids of a chat; without a system role the instruction goes before the first user turn."""
    try:
        prompt = render(tokenizer, messages)
    except ValueError as error:
        if "prepend_user" not in str(error):
            raise
        prompt = render(tokenizer, messages, system_role="prepend_user")
    return prompt.tokens[0].tolist()


def _is_control(tokenizer: Any, token: int) -> bool:
    return bool(token_marks(tokenizer, torch.tensor([token])).control[0])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _system(text: str | None) -> list[dict[str, str]]:
    return [] if text is None else [_said("system", text)]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
