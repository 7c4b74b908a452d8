"""A transcript comes back from its file as it went, ids and texts, or the file says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from studies.transcripts import Transcript, read_transcript, write_transcript

MESSAGES = (
    {"role": "system", "content": "You are a bard."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hark, <b>\u00e4\u2603</b>\n"},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": ""},
)
WHOLE = Transcript("bard", MESSAGES, ((1, 2), (3,), (4, 5), ()), "tiny", "abc", 7, ("stop", "length"))


def document(**changed: Any) -> dict[str, Any]:
    return {"role": "bard", "messages": [dict(m) for m in MESSAGES], **changed}


def written(folder: Path, value: object) -> Path:
    path = folder / "transcript.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_what_is_written_is_read(tmp_path):
    write_transcript(tmp_path / "t.json", WHOLE)
    assert read_transcript(tmp_path / "t.json") == WHOLE


def test_the_file_has_the_fields_of_the_format(tmp_path):
    write_transcript(tmp_path / "t.json", WHOLE)
    found = json.loads((tmp_path / "t.json").read_text())
    assert {"role", "messages", "ids", "model", "revision", "seed"} <= set(found)
    assert found["ids"] == [[1, 2], [3], [4, 5], []]
    assert found["metadata"]["schema"] == "mechinterp.transcript"


def test_texts_alone_are_a_transcript(tmp_path):
    found = read_transcript(written(tmp_path, document()))
    assert (found.ids, found.model, found.seed, found.n_turns) == ((), None, None, 2)
    assert (found.system, found.user_turns) == ("You are a bard.", ("Hello?", "And then?"))


def test_running_ids_grow_by_whole_turns():
    assert [WHOLE.running(p) for p in range(3)] == [(), (1, 2, 3), (1, 2, 3, 4, 5)]


def said(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "x"} for role in roles]


BAD = {
    "unknown speaker": (document(messages=said("user", "bot")), r"messages\[1\].role is 'bot'"),
    "two users": (document(messages=said("user", "user")), r"messages\[1\] is of 'user' where 'assistant'"),
    "system in the middle": (
        document(messages=said("user", "assistant", "system")),
        r"messages\[2\] is of 'system'",
    ),
    "assistant first": (document(messages=said("assistant", "user")), r"messages\[0\] is of 'assistant'"),
    "missing answer": (
        document(messages=said("system", "user")),
        r"messages\[1\] is a user turn without an answer",
    ),
    "system alone": (document(messages=said("system")), "system message alone"),
    "no messages": (document(messages=[]), "is empty"),
    "blank user turn": (
        document(messages=[{"role": "user", "content": " "}, *said("assistant")]),
        "blank user turn",
    ),
    "no content": (document(messages=[{"role": "user"}]), r"messages\[0\] is"),
    "no role": ({"messages": said("user", "assistant")}, "has no 'role'"),
    "a list": ([1], "is a list"),
    "ids do not fit": (document(ids=[[1], [2]]), "2 turns need 4 lists of ids"),
    "a negative id": (document(ids=[[1], [-2], [3], [4]]), r"ids\[1\]\[0\] is -2"),
    "a true id": (document(ids=[[True], [2], [3], [4]]), r"ids\[0\]\[0\] is True"),
    "text for a seed": (document(seed="7"), "seed is '7'"),
    "another finish": (document(finish=["stop", "eos"]), "finish is 'stop' or 'length'"),
    "no JSON": ("{", "not JSON"),
}


@pytest.mark.parametrize(("value", "reason"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_by_name_and_place(value, reason, tmp_path):
    path = written(tmp_path, value)
    with pytest.raises(ValueError, match=reason) as error:
        read_transcript(path)
    assert str(path) in str(error.value)
