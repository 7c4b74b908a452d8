"""A study's configuration: a frozen pydantic model, read from a TOML or JSON file and `key=value` overrides.

Files and overrides are checked strictly (no "3" for 3, no true for 1); an unknown key is answered with the
known ones, the closest first.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mechinterp.json_io import canonical_sha256, read_json

Config = TypeVar("Config", bound="StudyConfig")


class StudyConfig(BaseModel):
    """The base of every study's `Config`: what the study asks, and nothing about where it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    seed: int = 42

    @classmethod
    def from_toml(cls: type[Config], path: Path) -> Config:
        """The configuration in a TOML (or JSON) file."""
        return load_config(cls, path)


def load_config(cls: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a file (None: the defaults), changed by overrides such as `steering.layer=3`.

    An override's value is TOML, or text where it is no TOML or the field wants text. Raises ValueError that
    names each wrong key or value and what would be right.
    """
    table = read_table(path) if path is not None else {}
    source = str(path) if path is not None else "the configuration"
    texts: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value, text = parse_override(override)
        _put(table, keys, value, override)
        texts[keys] = text
    try:
        return _checked(cls, table, source)
    except ValidationError as error:
        # `revision=1234567` reads as a number, but the field knows that it is text.
        wrong = {tuple(map(str, one["loc"])) for one in error.errors() if one["type"] == "string_type"}
        for keys in wrong & set(texts):
            _put(table, keys, texts[keys], texts[keys])
    try:
        return _checked(cls, table, source)
    except ValidationError as error:
        raise ValueError(_explained(cls, error, source)) from None


def _checked(cls: type[Config], table: dict[str, Any], source: str) -> Config:
    try:
        text = json.dumps(table, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{source} holds a date, nan or inf ({error}); write finite numbers or text"
        ) from None
    # JSON mode, because strict is strict on types there, yet takes an array for a tuple and text for a path.
    return cls.model_validate_json(text, strict=True)


def read_table(path: Path) -> dict[str, Any]:
    """The table in a TOML or JSON file; raises ValueError that names the file where it is neither."""
    if path.suffix not in {".toml", ".json"}:
        raise ValueError(f"{path} is not read: a configuration is a .toml or .json file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    if path.suffix == ".json":
        table = read_json(path)
        if not isinstance(table, dict):
            raise ValueError(f"{path} holds a {type(table).__name__}; write an object of keys and values")
        return table
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML ({error})") from None


def parse_override(override: str) -> tuple[tuple[str, ...], Any, str]:
    """`a.b=3` as (("a", "b"), 3, "3"); raises ValueError for text of another form."""
    key, equals, text = override.partition("=")
    keys = _toml_value(key.strip() + " = 0")
    if not equals or keys is None:
        raise ValueError(
            f"--set {override!r} is not understood; write key=value, such as seed=43 or steering.layer=3"
        )
    names = []
    while isinstance(keys, dict):
        name, keys = next(iter(keys.items()))
        names.append(name)
    text = text.strip()
    table = _toml_value(f"value = {text}")
    value = text if table is None or set(table) != {"value"} else table["value"]
    return tuple(names), text if isinstance(value, date | datetime | time) else value, text


def _toml_value(line: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None


def _put(table: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ValueError(f"--set {override!r}: {key} is a value, not a table; set {key} itself")
    table[keys[-1]] = value


def _explained(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    """One line for each wrong key or value, with its path."""
    lines = []
    for one in error.errors():
        path = ".".join(map(str, one["loc"])) or "the whole"
        if one["type"] == "extra_forbidden":
            known = _known(cls, one["loc"])
            lines.append(
                f"{path} is not a key; known are {', '.join(known)}" if known else f"{path} is not a key"
            )
        elif one["type"] == "missing":
            lines.append(f"{path} is missing; write it in the file or give --set {path}=...")
        else:
            given = repr(one["input"])
            lines.append(f"{path} is {given[:80]}: {one['msg'][:1].lower()}{one['msg'][1:]}")
    return f"{source}: " + "; ".join(lines)


def _known(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The fields that could stand where `location` ends, the most similar to its last part first."""
    model: type[BaseModel] | None = cls
    for part in location[:-1]:
        if model is not None and part in model.model_fields:
            model = _model_in(model.model_fields[str(part)].annotation)
    if model is None:
        return []
    asked = str(location[-1])
    return sorted(
        model.model_fields,
        key=lambda name: -difflib.SequenceMatcher(None, name.lower(), asked.lower()).ratio(),
    )


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model in an annotation such as `tuple[Arm, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def config_digest(config: StudyConfig) -> str:
    """The SHA-256 of a configuration, the same however its file was written."""
    return canonical_sha256(config.model_dump(mode="json"))
