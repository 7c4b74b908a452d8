"""Personas and questions: the shipped lists, and readers for a user's own.

The order of a file is the order of the rows of every matrix made from it, so it is kept; only a persona
with the key "control" is moved to the front.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mechinterp.files import unique_names

# Longer than the context of the models studied here; a text beyond it is a wrong file, not a prompt.
LONGEST_TEXT = 100_000


@dataclass(frozen=True)
class Persona:
    """A character in one line; an empty system prompt means that the system message is left out."""

    key: str
    readable_name: str
    system_prompt: str
    description: str = ""
    short: str = ""  # the label on a matrix axis
    category: str = ""  # its relation to the core set
    related_to: tuple[str, ...] = ()


class _Pairs(list):
    """The members of a JSON object in file order, before equal keys overwrite each other."""


def load_personas(path: Path | str) -> dict[str, Persona]:
    """Personas by key from {"personas": {key: {"system_prompt", ...}}} or from {name: prompt}.

    Raises ValueError with the JSON path of the first entry that is no persona.
    """
    return _personas(Path(path), str(path))


def load_questions(path: Path | str) -> dict[str, tuple[str, ...]]:
    """Questions by group from {"questions": {group: [text]}}; raises ValueError with the JSON path."""
    return _questions(Path(path), str(path))


def roles() -> dict[str, Persona]:
    """The control and the 60 role instructions of the persistence study."""
    return _personas(_shipped("roles.json"), "roles.json")


def core_personas() -> dict[str, Persona]:
    """The 11 core personas, in matrix order (methods A.1)."""
    return {key: persona for key, persona in wide_personas().items() if persona.category == "original"}


def wide_personas() -> dict[str, Persona]:
    """The 111 personas: the core 11, then the 100 of ten relation categories (methods A.1 and A.4)."""
    return _personas(_shipped("personas.json"), "personas.json")


def questions(group: str) -> tuple[str, ...]:
    """The shipped questions of one group, in order; raises ValueError with the groups there are."""
    groups = _questions(_shipped("questions.json"), "questions.json")
    if group not in groups:
        raise ValueError(f"there is no question group {group!r}; the groups are {', '.join(groups)}")
    return groups[group]


def _personas(source: Path | Traversable, label: str) -> dict[str, Persona]:
    where, members = _inside(_read(source, label), "personas", label)
    if not members:
        raise ValueError(f"{where} holds no personas; write at least one name with its prompt")
    personas = {key: _persona(key, value, f"{where}.{key}") for key, value in members.items()}
    unique_names(personas, what=f"{where} key")
    unique_names([persona.readable_name for persona in personas.values()], what=f"{where} readable_name")
    return {key: personas[key] for key in sorted(personas, key=lambda key: key != "control")}


def _persona(key: str, value: object, where: str) -> Persona:
    text_at(key, f"the name at {where}")
    if isinstance(value, str):
        return Persona(key, _readable(key), text_at(value, where, empty=True))
    entry = _object(value, where, 'a prompt or an object with "system_prompt"')
    if "system_prompt" not in entry:
        raise ValueError(f'{where} has no "system_prompt", only {sorted(entry)}')
    optional = {
        name: text_at(entry[name], f"{where}.{name}", empty=True)
        for name in ("description", "short", "category")
        if name in entry
    }
    return Persona(
        key=key,
        readable_name=text_at(entry.get("readable_name", _readable(key)), f"{where}.readable_name"),
        system_prompt=text_at(entry["system_prompt"], f"{where}.system_prompt", empty=True),
        related_to=_texts(entry.get("related_to", []), f"{where}.related_to"),
        **optional,
    )


def _questions(source: Path | Traversable, label: str) -> dict[str, tuple[str, ...]]:
    where, members = _inside(_read(source, label), "questions", label)
    groups = {group: _texts(texts, f"{where}.{group}") for group, texts in members.items()}
    unique_names(groups, what=f"{where} group")
    for group, texts in groups.items():
        text_at(group, f"the name at {where}.{group}")
        if not texts:
            raise ValueError(f"{where}.{group} holds no questions; write at least one or leave the group out")
        unique_names(texts, what=f"{where}.{group} question")
    if not groups:
        raise ValueError(f'{where} holds no questions; write {{"questions": {{group: [text]}}}}')
    return groups


def _shipped(name: str) -> Traversable:
    return files("studies.data").joinpath(name)


def _read(source: Path | Traversable, label: str) -> object:
    # utf-8-sig: a byte order mark that an editor left is no part of the first key.
    try:
        return json.loads(source.read_bytes().decode("utf-8-sig"), object_pairs_hook=_Pairs)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{label} is not JSON in UTF-8: {error}") from error


def _inside(document: object, wrapper: str, label: str) -> tuple[str, dict[str, object]]:
    """The object under `wrapper`, or the document itself where the wrapper is left out, and its JSON path."""
    top = _object(document, f"{label}: $", f'an object {{"{wrapper}": ...}}')
    if wrapper in top and not isinstance(top[wrapper], str):
        where = f"{label}: $.{wrapper}"
        return where, _object(top[wrapper], where, "an object")
    return f"{label}: $", top


def _object(value: object, where: str, wanted: str) -> dict[str, object]:
    if not isinstance(value, _Pairs):
        raise ValueError(f"{where} is {_shown(value)}; write {wanted}")
    members: dict[str, object] = {}
    for key, member in value:
        if key in members:
            raise ValueError(f"{where} holds the key {key!r} twice; rename or remove one")
        members[key] = member
    return members


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or isinstance(value, _Pairs):
        raise ValueError(f"{where} is {_shown(value)}; write a list of texts")
    return tuple(text_at(text, f"{where}[{index}]") for index, text in enumerate(value))


def text_at(value: object, where: str, *, empty: bool = False) -> str:
    """A text of a user's file that can be shown and made into tokens; `where` names it in the refusal."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_shown(value)}; write a text")
    if not empty and not value.strip():
        raise ValueError(f"{where} is empty; write a text")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{where} has {len(value)} characters; write at most {LONGEST_TEXT}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(
            f"{where} holds half of a surrogate pair, which is no character; write the whole one"
        )
    return value


def _readable(key: str) -> str:
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _shown(value: object) -> str:
    kinds = {_Pairs: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value)) or f"{json.dumps(value)[:40]} (a {type(value).__name__})"
