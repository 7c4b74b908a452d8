"""Own answers: what the base model says in each persona's voice, as ids, cut at a sentence's end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mechinterp.cells import cell_seed
from mechinterp.files import write_bytes
from mechinterp.json_io import encoded, read_lines
from mechinterp.model import Model
from mechinterp.sampling import Phase, sample
from studies.personas import Persona
from studies.playing import opening

SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True)
class Answer:
    """An answer of the base model in a persona's voice, as ids; the id that ended the turn is left out."""

    persona: str
    question: str
    draw: int
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


def own_answers(
    model: Model,
    personas: Mapping[str, Persona],
    questions: Sequence[str],
    *,
    n_draws: int = 1,
    n_tokens: int = 36,
    least: int = 8,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 42,
    batch_size: int = 64,
) -> list[Answer]:
    """Each persona's answers to each question, cut at the last sentence that fits into `n_tokens`.

    An answer without a sentence of `least` tokens is left out. The draws of an answer come from (seed,
    persona, question, draw) alone.
    """
    asked = [(key, q, d) for key in personas for q in range(len(questions)) for d in range(n_draws)]
    prompts = [opening(model.tokenizer, system_of(personas[key]), questions[q]) for key, q, _ in asked]
    order = sorted(range(len(asked)), key=lambda row: len(prompts[row]))  # rows of a batch are padded
    found = sample(
        model,
        [torch.tensor(prompts[row]) for row in order],
        [Phase(n_tokens)],
        temperature=temperature,
        top_p=top_p,
        seed=cell_seed(seed, "own answers", 0),
        names=[f"{asked[row][0]}/{questions[asked[row][1]]}/{asked[row][2]}" for row in order],
        batch_size=batch_size,
    )
    answers: dict[int, Answer] = {}
    for place, row in enumerate(order):
        ids = [int(i) for i in found.generated[place][found.real[place]]]
        reason = found.finish_reason[place]
        whole = cut_at_sentence(model.tokenizer, ids[:-1] if reason == "stop" else ids)
        if len(whole) >= least:
            key, q, draw = asked[row]
            answers[row] = Answer(key, questions[q], draw, tuple(prompts[row]), tuple(whole), reason)
    return [answers[row] for row in sorted(answers)]


def system_of(persona: Persona) -> str | None:
    return persona.system_prompt or None


def cut_at_sentence(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The ids up to the last one that ends a sentence; a full stop behind a number ends none."""
    shown = [tokenizer.decode([i]) for i in ids]
    ends = [
        place
        for place, text in enumerate(shown)
        if text.rstrip().endswith(SENTENCE_ENDS)
        and not (place and text.startswith(".") and shown[place - 1].strip().isdigit())
    ]
    return list(ids[: ends[-1] + 1]) if ends else []


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """One JSON line an answer."""
    lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in answers]
    write_bytes(path, encoded("\n".join(lines) + "\n"))


def read_answers(path: Path) -> list[Answer]:
    """Answers from JSON lines; raises ValueError with the line for one that is none."""
    answers = []
    for number, entry in enumerate(read_lines(path), start=1):
        try:
            ids = {name: tuple(map(int, entry[name])) for name in ("prompt", "ids")}
            answers.append(Answer(**{**entry, **ids}))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number}, is no answer ({error}); sample them again") from None
    return answers
