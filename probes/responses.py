"""Responses as ids, and the states that decide each of their tokens behind any prompt (teacher forcing).

A response is never made into text and back: behind every prompt stand the very same ids, and behind them what
the chat template closes a turn with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.activations import State
from mechinterp.backends.protocol import Pass
from mechinterp.batches import shrinking
from mechinterp.chat import render
from mechinterp.gather import prefilled
from mechinterp.model import Model
from mechinterp.sites import Site
from mechinterp.where import Rows

STAND_INS = ("Yes", "No")  # they share neither first nor last letter: what their renderings share is markup


@dataclass(frozen=True)
class Response:
    """What `writer` answered to `question`, as ids without the end of the turn; `draw` counts its samples."""

    writer: str
    question: str
    ids: tuple[int, ...]
    draw: int = 0


SystemRole = Literal["native", "prepend_user"]  # the second for templates without a system role


def turn_end(
    model: Model, system: str | None, question: str, *, system_role: SystemRole = "native"
) -> tuple[int, ...]:
    """The ids that the template puts behind an answer, such as `<|im_end|>` and a newline."""
    first, second = (_rendered(model, system, question, answer, system_role) for answer in STAND_INS)
    shared = 0
    while shared < min(len(first), len(second)) and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    return tuple(first[len(first) - shared :])


def tokenised(
    model: Model,
    systems: Mapping[str, str | None],
    texts: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    system_role: SystemRole = "native",
) -> list[Response]:
    """Texts, {writer: {question: [text]}}, as responses whose ids are the same behind every prompt.

    Raises ValueError where the ids of a text depend on the prompt before it.
    """
    found = []
    asked = dict.fromkeys(question for answers in texts.values() for question in answers)
    around = {question: _around(model, systems, question, system_role) for question in asked}
    for writer, answers in texts.items():
        for question, drawn in answers.items():
            prompts, ends = around[question]
            for draw, text in enumerate(drawn):
                ids = {
                    name: _between(
                        _rendered(model, system, question, text, system_role), prompts[name], ends[name]
                    )
                    for name, system in systems.items()
                }
                if len(set(ids.values())) != 1:
                    raise ValueError(
                        f"the ids of the answer of {writer} to {question!r} depend on the prompt before it;"
                        " give answers as ids, which are put behind every prompt as they are"
                    )
                found.append(Response(writer, question, next(iter(ids.values())), draw))
    return found


def _around(
    model: Model, systems: Mapping[str, str | None], question: str, system_role: SystemRole
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Each persona's prompt, and how many ids close its turn: the same for everyone's answers."""
    told = {name: (model, system, question) for name, system in systems.items()}
    prompts = {name: prompt_ids(*one, system_role) for name, one in told.items()}
    return prompts, {name: len(turn_end(*one, system_role=system_role)) for name, one in told.items()}


def _between(whole: Sequence[int], prompt: Sequence[int], n_end: int) -> tuple[int, ...]:
    if list(whole[: len(prompt)]) != list(prompt):
        raise ValueError(
            "the chat template renders an answered question other than an open one, so where the answer's ids"
            " begin is not known; give answers as ids"
        )
    return tuple(whole[len(prompt) : len(whole) - n_end])


def prompt_ids(model: Model, system: str | None, question: str, system_role: SystemRole) -> list[int]:
    """One question as ids, up to where the answer begins."""
    return model.chat(question, system=system, system_role=system_role).tokens[0].tolist()


def _rendered(
    model: Model, system: str | None, question: str, answer: str, system_role: SystemRole
) -> list[int]:
    head = [] if system is None else [{"role": "system", "content": system}]
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return (
        render(model.tokenizer, [*head, *said], generation_prompt=False, system_role=system_role)
        .tokens[0]
        .tolist()
    )


# the states -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Keys and values of prompts without their last token, which the rows of a response begin with."""

    model: Model
    state: State | None
    last: tuple[int, ...]
    lengths: tuple[int, ...]


def prefill(
    model: Model, prompts: Sequence[Sequence[int]], batch_size: int | None = None
) -> tuple[Prefilled, ...]:
    """Prompts of any lengths, for all responses that will stand behind them; all in one pass unless asked."""
    if any(len(prompt) < 1 for prompt in prompts):
        raise ValueError("a prompt is empty; a response stands behind one token or more")
    if len({len(prompt) == 1 for prompt in prompts}) > 1:
        raise ValueError("one prompt has a single token and another has more; give them alike")
    size = len(prompts) if batch_size is None else batch_size
    return tuple(_prefilled(model, prompts[k : k + size]) for k in range(0, len(prompts), size))


def _prefilled(model: Model, prompts: Sequence[Sequence[int]]) -> Prefilled:
    heads = [tuple(prompt[:-1]) for prompt in prompts]
    state = prefilled(model, heads, model.dims.n_layers - 1) if all(heads) else None
    if state is not None:  # selected: without the room that it holds for tokens to come
        state = state.select(torch.arange(len(heads), device=model.backend.device))
    return Prefilled(model, state, tuple(prompt[-1] for prompt in prompts), tuple(map(len, prompts)))


def deciding_states(
    before: Sequence[Prefilled], response: Sequence[int], batch_size: int
) -> tuple[Float[Tensor, "prompt row d_model"], int]:
    """The last layer's resid_post at the rows that decide each id of the response, behind every prompt.

    Also the largest batch that ran: one that memory has no room for is halved, for good.
    """
    parts: list[tuple[int, Tensor]] = []
    for prompts in before:
        n = len(prompts.last)
        done = list(shrinking(n, batch_size, partial(_pass, prompts, response)))
        parts += [(len(part), states) for part, states in done]
        if (largest := max(len(part) for part, _ in done)) < min(n, batch_size):
            batch_size = largest
    return torch.cat([states for _, states in parts]), max(size for size, _ in parts)


def _pass(before: Prefilled, response: Sequence[int], part: range) -> Float[Tensor, "prompt row d_model"]:
    model, device = before.model, before.model.backend.device
    tokens = torch.tensor([[before.last[i], *response[:-1]] for i in part], device=device)
    lengths = torch.tensor([before.lengths[i] for i in part], device=device)
    position = lengths[:, None] - 1 + torch.arange(tokens.shape[1], device=device)
    rows = Rows(position, position - (lengths[:, None] - 1), torch.ones_like(position, dtype=torch.bool))
    state = (
        None if before.state is None else before.state.for_one_pass(torch.tensor(list(part), device=device))
    )
    site = Site("resid_post", model.dims.n_layers - 1)
    request = Pass(
        tokens=tokens,
        rows=rows,
        pad_left=None if state is None else state.pad_left,
        capture=(site,),
        logit_slots=tokens[:, :0],
        cache=None if state is None else state.cache,
        keep_cache=state is not None,
    )
    return model.run(request, lengths, (site,)).values[site]
