"""Transcripts: a conversation in a role as messages and as the ids that were really in the model's context.

On disk (methods 13): {"role", "messages": [{role, content}], "ids": [[int]], "model", "revision", "seed"}.
`ids` holds two lists a turn: what precedes the answer (a leading system message is in the first), and the
answer's own ids without what closes it. Joined, they are the conversation; the texts are for showing.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.json_io import read_json, write_json
from mechinterp.results import metadata
from studies.personas import text_at

SCHEMA = "mechinterp.transcript"
SPEAKERS = ("system", "user", "assistant")


@dataclass(frozen=True)
class Transcript:
    """Turns of user and assistant after at most one system message; `ids` is empty where only texts are.

    `finish` says of each answer whether it ended of itself ("stop") or at the cap ("length"). Raises
    ValueError for another order of speakers, empty user turns, missing answers, and ids that do not fit.
    """

    role: str
    messages: tuple[dict[str, str], ...]
    ids: tuple[tuple[int, ...], ...] = ()
    model: str | None = None
    revision: str | None = None
    seed: int | None = None
    finish: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_turns(self.messages)
        n = self.n_turns
        if self.ids and len(self.ids) != 2 * n:
            raise ValueError(
                f"{n} turns need {2 * n} lists of ids, two a turn, not {len(self.ids)}; or leave the ids out"
            )
        if self.finish and (len(self.finish) != n or set(self.finish) - {"stop", "length"}):
            raise ValueError(f"finish is 'stop' or 'length' for each of {n} answers, not {list(self.finish)}")

    @property
    def n_turns(self) -> int:
        return len(self.answers)

    @property
    def system(self) -> str | None:
        """The system message; None where there is none."""
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None

    @property
    def user_turns(self) -> tuple[str, ...]:
        return tuple(m["content"] for m in self.messages if m["role"] == "user")

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(m["content"] for m in self.messages if m["role"] == "assistant")

    def running(self, turns: int) -> tuple[int, ...]:
        """All ids up to the end of the `turns`-th answer; nothing for 0."""
        return tuple(i for part in self.ids[: 2 * turns] for i in part)


def write_transcript(path: Path, transcript: Transcript) -> None:
    """One JSON file, whole or not at all."""
    write_json(
        path,
        {
            "role": transcript.role,
            "messages": list(transcript.messages),
            "ids": [list(part) for part in transcript.ids],
            "model": transcript.model,
            "revision": transcript.revision,
            "seed": transcript.seed,
            "finish": list(transcript.finish),
            "metadata": metadata(SCHEMA, 1),
        },
    )


def read_transcript(path: Path | str) -> Transcript:
    """The transcript in a JSON file; `ids`, `model`, `revision`, `seed` and `finish` may be missing.

    Raises ValueError with the file's name and the JSON path of what is wrong.
    """
    document = read_json(Path(path))
    if not isinstance(document, dict):
        raise ValueError(
            f'{path}: $ is a {type(document).__name__}; write {{"role": ..., "messages": [...]}}'
        )
    for name in ("role", "messages"):
        if name not in document:
            raise ValueError(f"{path}: $ has no {name!r}, only {sorted(document)}")
    try:
        return Transcript(
            role=text_at(document["role"], "$.role"),
            messages=_messages(document["messages"]),
            ids=_ids(document.get("ids") or []),
            model=_optional(document, "model", str),
            revision=_optional(document, "revision", str),
            seed=_optional(document, "seed", int),
            finish=tuple(
                text_at(f, f"$.finish[{i}]")
                for i, f in enumerate(_listed(document.get("finish") or [], "$.finish"))
            ),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_turns(messages: Sequence[Mapping[str, str]]) -> None:
    if not messages:
        raise ValueError("$.messages is empty; write at least one user turn with its answer")
    start = int(messages[0]["role"] == "system")
    for index, message in enumerate(messages[start:], start):
        due = ("user", "assistant")[(index - start) % 2]
        if message["role"] != due:
            raise ValueError(
                f"$.messages[{index}] is of {message['role']!r} where {due!r} must speak; turns go user,"
                " assistant, user, ..."
            )
        if due == "user" and not message["content"].strip():
            raise ValueError(f"$.messages[{index}] is a blank user turn; write a text")
    spoken = len(messages) - start
    if spoken == 0:
        raise ValueError(
            "$.messages holds a system message alone; write at least one user turn with its answer"
        )
    if spoken % 2:
        raise ValueError(
            f"$.messages[{len(messages) - 1}] is a user turn without an answer; add the answer or drop the"
            " turn"
        )


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    found = []
    for index, entry in enumerate(_listed(value, "$.messages")):
        where = f"$.messages[{index}]"
        if not isinstance(entry, dict) or not {"role", "content"} <= set(entry):
            raise ValueError(f'{where} is {str(entry)[:60]!r}; write {{"role": ..., "content": ...}}')
        speaker = text_at(entry["role"], f"{where}.role")
        if speaker not in SPEAKERS:
            raise ValueError(f"{where}.role is {speaker!r}; the speakers are {', '.join(SPEAKERS)}")
        found.append({"role": speaker, "content": text_at(entry["content"], f"{where}.content", empty=True)})
    return tuple(found)


def _ids(value: Any) -> tuple[tuple[int, ...], ...]:
    parts = []
    for index, part in enumerate(_listed(value, "$.ids")):
        row = []
        for place, token in enumerate(_listed(part, f"$.ids[{index}]")):
            if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                raise ValueError(f"$.ids[{index}][{place}] is {token!r}; token ids are whole numbers from 0")
            row.append(operator.index(token))
        parts.append(tuple(row))
    return tuple(parts)


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {str(value)[:60]!r}; write a list")
    return value


def _optional(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(
            f"$.{name} is {value!r}; write a {'text' if kind is str else 'whole number'}, or leave it out"
        )
    return value
