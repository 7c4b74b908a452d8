"""Records as JSON objects: a frozen dataclass, whose fields are the file's keys, says what a file may hold.

Numbers that are null in the file are NaN here and null again when written. A field that may be missing has
the default None; keys that the class does not name go to its field `extra`, so that nothing is lost.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Float

from mechinterp.json_io import plain, read_json

# "_" is any size: that sizes agree is checked by the records, in words that name file and field
Layers = Float[np.ndarray, "_"]  # one number a layer
Table = Float[np.ndarray, "_ _"]  # rows of layers
EXPECTED = {str: "text", int: "a whole number", bool: "true or false", float: "a number, or null for none"}


def read_record(cls: type, path: Path | str) -> Any:
    """The record of class `cls` in a JSON file; a ValueError names the file, the key and what to write."""
    document = read_json(Path(path))
    try:
        return decode_record(cls, document, "$")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def decode_record(cls: type, value: Any, where: str) -> Any:
    """One object of the file as a record of class `cls`."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_short(value)}; write an object with {', '.join(_keys(cls))}")
    hints, found = _hints(cls), {}
    extra = {name: held for name, held in value.items() if name not in hints}
    for field in dataclasses.fields(cls):
        if field.name == "extra":
            continue
        if field.name in value:
            found[field.name] = _decode(hints[field.name], value[field.name], f"{where}.{field.name}")
            if found[field.name] is None:
                extra[field.name] = None  # null in the file, which is not the same as missing
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} has no {field.name!r}, only {', '.join(value) or 'nothing'}")
    return cls(**found, extra=extra)


def encode_record(record: Any) -> dict[str, Any]:
    """The record in JSON's own types, under the keys of the file."""
    return plain(_encode(record))


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "extra"}
        kept = {name: _encode(each) for name, each in held.items() if each is not None}
        return kept | dict(getattr(value, "extra", {}))
    if isinstance(value, Mapping):
        return {name: _encode(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_encode(each) for each in value]
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Layers or kind is Table:
        return _array(value, where, axes=1 if kind is Layers else 2)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        (present,) = (each for each in inner if each is not type(None))
        return None if value is None else _decode(present, value, where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_short(value)}; write an object")
        if inner[1] is Any:
            return value
        return {name: _decode(inner[1], each, f"{where}.{name}") for name, each in value.items()}
    if dataclasses.is_dataclass(kind):
        return decode_record(kind, value, where)  # type: ignore[arg-type]
    return _scalar(kind, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float:
        return _number(value, where)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {_short(value)}; write {EXPECTED[kind]}")
    return value


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} is {_short(value)}; write {EXPECTED[float]}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} is a whole number too large for a float; write a smaller one") from None


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_short(value)}; write a list")
    if inner[-1] is not Ellipsis and len(value) != len(inner):
        raise ValueError(f"{where} has {len(value)} members; write {len(inner)}")
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
    return tuple(
        _decode(kind, each, f"{where}[{i}]") for i, (kind, each) in enumerate(zip(kinds, value, strict=True))
    )


def _array(value: Any, where: str, axes: int) -> np.ndarray:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_short(value)}; write a list of {'numbers' if axes == 1 else 'rows'}")
    if axes == 1:
        return np.array([_number(each, f"{where}[{i}]") for i, each in enumerate(value)], dtype=np.float64)
    rows = [_array(row, f"{where}[{i}]", axes=1) for i, row in enumerate(value)]
    uneven = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if uneven is not None:
        raise ValueError(
            f"{where}[{uneven}] has {len(rows[uneven])} layers where {where}[0] has {len(rows[0])}; give"
            " every row the same number"
        )
    return np.stack(rows) if rows else np.empty((0, 0))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(cls).items() if name != "extra"}


def _keys(cls: type) -> list[str]:
    return list(_hints(cls))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
