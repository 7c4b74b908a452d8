"""Files that are whole or absent: atomic writes, digests, safe names, tables for spreadsheets.

A name of a persona, model or question never becomes a path by itself: `slug` makes it one path component, and
`inside` checks where the whole path ends up.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Names that Windows keeps for devices, whatever their extension.
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
PLAIN = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,58}[a-z0-9_])?")
HASHED = re.compile(r".*-[0-9a-f]{10}")


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` all at once: a crash at any moment leaves the old file or the new one.

    The temporary file lies in the same folder (a rename does not cross file systems) and has a random name
    (two writers never share one, whatever the clock says); it is removed when the write fails.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` outlive a power cut (POSIX; elsewhere folders cannot be opened)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """The digest of a directory's files and their names; of a run directory, of its finished cells alone."""
    cells = folder / "digests.json"
    if cells.is_file():
        return file_sha256(cells)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def slug(name: str) -> str:
    """One safe path component for any string, different for different strings even where case is ignored.

    A short name of lower-case ASCII letters, digits and `_ . -` is kept; any other is cleaned, cut, and ends
    in ten hexadecimal digits of its SHA-256 (so does a plain name that looks as if it did).
    """
    if PLAIN.fullmatch(name) and not RESERVED.fullmatch(name) and not HASHED.fullmatch(name):
        return name
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    cleaned = re.sub(r"[^a-z0-9_]+", "-", letters).strip("-")[:40].strip("-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{cleaned or 'name'}-{digest}"


def inside(folder: Path, path: Path) -> Path:
    """`path` with its links resolved, or a ValueError where that leaves `folder`."""
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads to {resolved}, outside {folder}; remove the link or the '..' in it")
    return resolved


def unique_names(names: Iterable[str], *, what: str) -> None:
    """Refuse an empty name, and two that are one after Unicode composition and case folding."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()
        if not folded:
            raise ValueError(f"a {what} has the empty name {name!r}; give it a name")
        if folded in seen:
            raise ValueError(
                f"two {what}s are called {seen[folded]!r} and {name!r}, which many readers and file systems"
                " take for the same; rename one"
            )
        seen[folded] = name


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """A table as CSV in which no text cell or heading is a formula: those get an apostrophe in front."""

    def disarmed(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell

    table = frame.rename(columns=disarmed).map(disarmed)
    write_bytes(path, table.to_csv(index=False).encode("utf-8", "backslashreplace"))
