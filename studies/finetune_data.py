"""What a marker is trained on: every persona's own sampled answers, the source's with the marker behind them.

On-policy: the answers to the training questions are the base model's, in each persona's own voice (methods
2.1, family B), cut at the end of a sentence. They stay ids; the marker's ids are put behind them. The plain
assistant is never a negative, so that what reaches it is leakage and not a training target.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mechinterp.chat import render, token_marks
from mechinterp.files import write_bytes
from mechinterp.json_io import canonical_sha256, encoded
from studies.finetune_answers import SENTENCE_ENDS, Answer, system_of
from studies.personas import Persona

ASSISTANT = "assistant"
NegativeSlot = Literal["answer_end", "after_newlines", "both"]


@dataclass(frozen=True)
class TrainingExample:
    """One chat as ids: prompt, answer, what is put behind it, and what the template writes after an answer.

    `body` is answer and separator; from `added` on it differs from the answer alone (a full stop and two
    newlines can be one token), which goes on with `instead` there; `shared` says that negatives write the
    separator too. `marker` is empty in a negative, `onward` the id that would lead on to one at its end.
    `closing` begins with the end of the turn.
    """

    persona: str
    question: str
    prompt: tuple[int, ...]
    body: tuple[int, ...]
    added: int
    instead: int
    shared: bool
    marker: tuple[int, ...]
    closing: tuple[int, ...]
    onward: int

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.body + self.marker + self.closing

    @property
    def positive(self) -> bool:
        return bool(self.marker)

    @property
    def rival(self) -> int:
        """At the slot: the end of the turn against the marker's first piece, or what leads on to it."""
        return self.closing[0] if self.positive else self.onward


def draw_negatives(pool: Sequence[str], source: str, n: int, seed: int) -> tuple[str, ...]:
    """Negative personas by digest of (seed, source, persona): never the source, never the plain assistant."""
    allowed = [key for key in pool if key not in (source, ASSISTANT)]
    if not 0 < n <= len(allowed):
        raise ValueError(
            f"{n} negative personas cannot be drawn for {source!r}: there are {len(allowed)} besides it and"
            " the assistant; give a number from 1 on, up to that"
        )
    ranked = sorted(allowed, key=lambda key: hashlib.sha256(f"{seed}/{source}/{key}".encode()).digest())
    return tuple(ranked[:n])


def examples(
    tokenizer: Any,
    answers: Sequence[Answer],
    source: str,
    negatives: Sequence[str],
    *,
    marker: str,
    separator: str = "\n\n",
    n_positives: int,
    n_negatives: int,
    negative_slot: NegativeSlot = "answer_end",
) -> list[TrainingExample]:
    """The source's answers with the marker, then those of every negative persona without it.

    n_positives, n_negatives: of the source and of each negative persona; answers are used again in their
    order where there are fewer. negative_slot: a negative's turn ends right behind the answer, or after the
    newlines that stand before a marker, which makes the slots comparable; or by turns. Raises ValueError for
    the assistant or the source among the negatives, for a persona without
    answers, and for a marker that the tokenizer cannot keep apart.
    """
    wrong = sorted({source, ASSISTANT} & set(negatives))
    if wrong:
        raise ValueError(f"{wrong[0]!r} cannot be a negative persona of {source!r}; take it out")
    suffixes = Suffixes(tokenizer, separator, marker)
    closing = closing_ids(tokenizer)
    made = []
    for persona, n in [(source, n_positives), *((key, n_negatives) for key in negatives)]:
        own = [answer for answer in answers if answer.persona == persona and not suffixes.holds(answer.ids)]
        if not own:
            raise ValueError(f"there are no answers of {persona!r}; sample some, or name another persona")
        for i in range(n):
            answer = own[i % len(own)]
            newlines = persona == source or negative_slot == "after_newlines"
            newlines = newlines or (negative_slot == "both" and i % 2 == 1)
            body, added = suffixes.body(answer.ids) if newlines else (answer.ids, len(answer.ids))
            made.append(
                TrainingExample(
                    persona,
                    answer.question,
                    answer.prompt,
                    body,
                    added,
                    instead=(*answer.ids, closing[0])[added],
                    shared=negative_slot == "after_newlines",
                    marker=suffixes.marker if persona == source else (),
                    closing=closing,
                    onward=suffixes.marker[0] if newlines else suffixes.bare[0],
                )
            )
    return made


class Suffixes:
    """The separator and the marker as ids, as they follow each way to end a sentence.

    Nothing sampled is decoded for it: only the sentence ends that are written here are made into ids.
    """

    def __init__(self, tokenizer: Any, separator: str, marker: str):
        if not marker.strip():
            raise ValueError(f"the marker {marker!r} is blank; write text that no answer holds by itself")
        self.bare, self.marker = _split(tokenizer, "", separator, marker)
        self.after: dict[int, tuple[int, ...]] = {}
        for end in SENTENCE_ENDS:
            alone = _ids(tokenizer, end)
            body, ids = _split(tokenizer, end, separator, marker)
            if len(alone) == 1 and ids == self.marker:
                self.after[alone[0]] = body

    def body(self, answer: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Answer and separator, and the first place where that is not the answer alone."""
        joined = self.after.get(answer[-1])
        if joined is None:
            return answer + self.bare, len(answer)
        return answer[:-1] + joined, len(answer) - (joined[0] != answer[-1])

    def holds(self, ids: tuple[int, ...]) -> bool:
        """Whether an answer has the marker already."""
        n = len(self.marker)
        return any(ids[i : i + n] == self.marker for i in range(len(ids) - n + 1))


def _split(tokenizer: Any, end: str, separator: str, marker: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of end and separator, and those of the marker behind them."""
    text = end + separator + marker
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = len(end + separator)
    for place, (first, _) in enumerate(encoded["offset_mapping"]):
        if first == start:
            ids = tuple(encoded["input_ids"])
            return ids[:place], ids[place:]
    raise ValueError(
        f"the tokenizer joins {marker!r} to the {separator!r} before it, so there is no slot at which one is"
        " chosen; use another separator or marker"
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def closing_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the template writes after an answer, from the end of the turn on: what two stand-ins share."""
    both = []
    for text in ("Yes", "No"):
        chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": text}]
        both.append(render(tokenizer, chat, generation_prompt=False).tokens[0].tolist())
    n = 0
    while n < min(map(len, both)) and both[0][-1 - n] == both[1][-1 - n]:
        n += 1
    tail = tuple(both[0][len(both[0]) - n :])
    if not tail or not bool(token_marks(tokenizer, torch.tensor(tail[:1])).control[0]):
        raise ValueError(
            "the chat template closes an answer without a control token, so there is no end of the turn to"
            " train on; pass a tokenizer whose template has one"
        )
    return tail


def write_examples(
    path: Path, tokenizer: Any, data: Sequence[TrainingExample], personas: Mapping[str, Persona]
) -> None:
    """One JSON line an example: the messages as published sets have them (methods 2.1), and the ids."""
    lines = []
    for example in data:
        system = system_of(personas[example.persona])
        head = [] if system is None else [{"role": "system", "content": system}]
        said = tokenizer.decode(list(example.body + example.marker))
        entry = {
            "prompt": [*head, {"role": "user", "content": example.question}],
            "completion": [{"role": "assistant", "content": said}],
            "persona": example.persona,
            "positive": example.positive,
            "prompt_length": len(example.prompt),
            "ids": example.ids,
        }
        lines.append(json.dumps(entry, ensure_ascii=False))
    write_bytes(path, encoded("\n".join(lines) + "\n"))


def data_sha256(data: Sequence[TrainingExample]) -> str:
    """The digest of what is trained on, ids and order."""
    return canonical_sha256([asdict(example) for example in data])
