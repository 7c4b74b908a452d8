"""The one JSON writer and reader: no NaN, no Infinity, no numpy or torch scalars in any file of ours."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechinterp.files import write_bytes


def plain(value: Any, where: str = "value") -> Any:
    """`value` in JSON's own types: arrays, tensors and scalars as numbers, non-finite as None.

    Raises TypeError, with the place, for what JSON cannot hold.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, type):
        raise TypeError(f"{where} is the class {value.__name__}; write what it holds")
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name), f"{where}.{name}") for name in names}
    # Arrays, tensors and the scalars of numpy and torch, known by their method: neither library is imported.
    to_list = getattr(value, "tolist", None)
    if to_list is not None:
        return plain(to_list(), where)
    raise TypeError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; write numbers, text or lists"
    )


def _plain_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        scalar = key.item() if hasattr(key, "item") else key
        if isinstance(scalar, bool) or not isinstance(scalar, str | int):
            raise TypeError(f"{where} has the key {key!r}; JSON keys are text or whole numbers")
        if str(scalar) in out:
            raise ValueError(f"{where} has the key {str(scalar)!r} twice, as text and as a number")
        out[str(scalar)] = plain(item, f"{where}.{scalar}")
    return out


def dumps(value: Any) -> str:
    """`value` as JSON text, one space of indent, keys in their own order, non-finite numbers as null."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, indent=1)


def encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate becomes the six characters that JSON reads back as the same."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` at `path` atomically."""
    write_bytes(path, encoded(dumps(value) + "\n"))


def read_json(path: Path) -> Any:
    """The value in a JSON file; a bare NaN (one published file has some) is read as NaN.

    Raises ValueError that names the file and the line for broken JSON, and the key for one given twice.
    """

    def single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{path} has the key {twice!r} twice in one object; rename or remove one")
        return seen

    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=single)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (line {error.lineno}: {error.msg})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None


def canonical_sha256(value: Any) -> str:
    """The SHA-256 of `value` as canonical JSON: sorted keys, no spaces.

    Raises ValueError for NaN and Infinity, TypeError for anything that is not plain JSON.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(encoded(text)).hexdigest()


def append_line(path: Path, value: Any) -> None:
    """Add one value as one line to a file of JSON lines."""
    line = json.dumps(plain(value), allow_nan=False, ensure_ascii=False) + "\n"
    with path.open("ab") as file:
        file.write(encoded(line))


def read_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines; a last line cut short is left out with a warning.

    Raises ValueError with the line number when an earlier line is broken.
    """
    lines = path.read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}, is not JSON; remove the line to go on") from None
            warnings.warn(f"{path}: the last line was cut short and is left out", stacklevel=2)
    return values


def mend_lines(path: Path) -> None:
    """Drop a last line that a crash cut short, so that the next one does not run on from it."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        warnings.warn(f"{path}: the last line was cut short and is left out", stacklevel=2)
        write_bytes(path, whole)
