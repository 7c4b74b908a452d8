"""Result: a frozen record with a table and a figure, that saves itself and loads back bit for bit.

A saved result is a folder: tensors in `tensors.safetensors`, everything else in `result.json`, which holds
the SHA-256 of both. No time stamp goes in: the same computation gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mechinterp.codec import decode, encode, read_tensors, tensor_bytes
from mechinterp.files import write_bytes
from mechinterp.json_io import canonical_sha256, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

SCHEMA = "mechinterp.result"
SCHEMA_VERSION = 1
LIBRARIES = ("torch", "transformers", "transformer-lens", "nnsight")


class Result:
    """The base of every result: subclasses are dataclasses with `frozen=True, eq=False`.

    Fields may be tensors, arrays, numbers, text, None, paths, other dataclasses of ours, and lists, tuples
    and dicts of these. `VERSION` goes up when the fields change their meaning; an older file is then refused.
    """

    VERSION: ClassVar[int] = 1

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # The decorator writes a __repr__ with whole tensors unless the class has one already.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Result.__repr__

    def __repr__(self) -> str:
        return short_repr(self)

    def to_dataframe(self) -> pd.DataFrame:
        """The result as one tidy table."""
        raise NotImplementedError(f"{type(self).__name__} has no table; look at its fields")

    def figure(self) -> go.Figure:
        """The result as one figure, neither shown nor written."""
        raise NotImplementedError(f"{type(self).__name__} has no figure; draw from its table or fields")

    def save(self, folder: Path | str) -> Path:
        """Write the result into `folder` (made if missing) and return the folder.

        A crash in between leaves files whose digests disagree, which `load_result` refuses.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        document = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "metadata": metadata()}
        document |= {"result": encode(self, tensors), "tensors_sha256": None}
        if tensors:
            data = tensor_bytes(tensors)
            document["tensors_sha256"] = hashlib.sha256(data).hexdigest()
            write_bytes(folder / "tensors.safetensors", data)
        write_json(folder / "result.json", document | {"sha256": canonical_sha256(document)})
        if not tensors:
            (folder / "tensors.safetensors").unlink(missing_ok=True)
        return folder

    def digest(self) -> str:
        """The SHA-256 of the content: two results are equal, bit for bit, when their digests are."""
        tensors: dict[str, Tensor] = {}
        document = encode(self, tensors)
        return canonical_sha256(
            [document, hashlib.sha256(tensor_bytes(tensors)).hexdigest() if tensors else None]
        )

    def _repr_html_(self) -> str:
        """What it is, of which model, n and seed, and the first rows of its table."""
        from mechinterp.notebook import html_of

        return html_of(self)

    def _ipython_display_(self) -> None:
        """In a notebook a result shows itself: the words and the table, then the figure."""
        from mechinterp.notebook import display

        display(self)


def load_result(folder: Path | str) -> Any:
    """The Result that was saved in `folder`, after both digests were checked.

    Raises FileNotFoundError where there is none, ValueError where it is damaged, of another version, or of a
    class that is neither in our packages nor defined yet.
    """
    folder = Path(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no saved result: there is no result.json in it")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a saved result; give a folder that Result.save wrote")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has layout {document.get('schema_version')!r} and this version reads {SCHEMA_VERSION};"
            " update mechinterp, or delete it to recompute"
        )
    expected = document.pop("sha256", None)
    if canonical_sha256(document) != expected:
        raise ValueError(f"{path} was changed or damaged after it was written; delete it to recompute")
    tensors = _checked_tensors(folder / "tensors.safetensors", document["tensors_sha256"])
    try:
        return decode(document["result"], tensors, Result)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _checked_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    if sha256 is None:
        return {}
    if not path.is_file():
        raise ValueError(f"{path} is missing; delete the folder to recompute it")
    return read_tensors(path, sha256)


@functools.cache
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str | None]:
    """The installed versions of the libraries that numbers depend on, without importing them."""
    return {package: _installed(package) for package in LIBRARIES}


def metadata(schema: str = SCHEMA, schema_version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """What every output carries: schema, toolkit and library versions. Never a time stamp."""
    return {
        "schema": schema,
        "schema_version": schema_version,
        "mechinterp": _installed("mechinterp"),
        "libraries": library_versions(),
    }


def short_repr(result: Any) -> str:
    """`Class(field=..., ...)` on at most 20 lines, tensors by shape and dtype."""
    parts = []
    for field in dataclasses.fields(result)[:18]:
        value = getattr(result, field.name)
        shape = getattr(value, "shape", None)
        text = f"<{value.dtype} {list(shape)}>" if shape is not None else repr(value).replace("\n", " ")
        parts.append(f"{field.name}={text if len(text) <= 80 else text[:77] + '...'}")
    rest = ["..."] if len(dataclasses.fields(result)) > 18 else []
    return f"{type(result).__name__}(\n  " + ",\n  ".join(parts + rest) + "\n)"
