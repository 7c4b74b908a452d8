"""Two run directories held against each other: the same cells, the same bytes, or which fields differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.codec import read_tensors
from mechinterp.json_io import read_json
from mechinterp.manifest import changed_fields, short
from mechinterp.runs import Run

SHOWN = 5  # keys, or fields of a cell, in the text
FILES = ("result.json", "tensors.safetensors")
OWN = {"sha256", "tensors_sha256"}  # of the file itself: they differ wherever a field does


@dataclass(frozen=True)
class Differences:
    """`asked` differs between the manifests; `cells` maps keys that both hold to the fields that differ."""

    asked: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    cells: dict[str, tuple[str, ...]]
    same: int

    @property
    def identical(self) -> bool:
        return not (self.asked or self.only_first or self.only_second or self.cells)

    def __str__(self) -> str:
        if self.identical:
            return f"identical: {self.same} cells, byte for byte"
        lines = [f"asked otherwise: {one}" for one in cut(self.asked, 2 * SHOWN)]
        for which, keys in (("first", self.only_first), ("second", self.only_second)):
            if keys:
                lines.append(f"{len(keys)} cells only in the {which}: {', '.join(cut(keys, SHOWN))}")
        lines += [f"{key}: {', '.join(cut(fields, SHOWN))}" for key, fields in self.cells.items()]
        return "\n".join([*lines, f"{len(self.cells)} cells differ, {self.same} are the same"])


def cut(texts: Sequence[str], n: int) -> list[str]:
    """The first n, and how many more there are."""
    return [*texts[:n], f"and {len(texts) - n} more"] if len(texts) > n else list(texts)


def compare(first: Path | str, second: Path | str) -> Differences:
    """Every finished cell of two runs, byte for byte. Raises FileNotFoundError where there is no run."""
    runs = Run.read(first), Run.read(second)
    held = [_cells(run) for run in runs]
    shared = [key for key in held[0] if key in held[1]]
    differing = {key: _fields(held[0][key], held[1][key]) for key in shared}
    found = {key: fields for key, fields in differing.items() if fields}
    return Differences(
        asked=tuple(
            f"{name} ({short(one)} in the first, {short(other)} in the second)"
            for name, (one, other) in changed_fields(runs[0].manifest, runs[1].manifest).items()
        ),
        only_first=tuple(key for key in held[0] if key not in held[1]),
        only_second=tuple(key for key in held[1] if key not in held[0]),
        cells=found,
        same=len(shared) - len(found),
    )


def _cells(run: Run) -> dict[str, Path]:
    """The folders of the finished cells by key, in the order of the keys."""
    folders = ((read_json(path)["key"], path.parent) for path in (run.folder / "cells").rglob("cell.json"))
    return dict(sorted(folders))


def _fields(first: Path, second: Path) -> tuple[str, ...]:
    """Where two cells differ, by path; nothing where all their files have the same bytes."""
    contents = [[_bytes(folder / name) for name in ("cell.json", *FILES)] for folder in (first, second)]
    if contents[0] == contents[1]:
        return ()
    found = []
    for name in ("cell.json", "result.json"):
        one, other = (read_json(folder / name) for folder in (first, second))
        found += [f"{path}" for path in _walk(one, other, "") if path.rpartition(".")[2] not in OWN]
    found += _tensors(first / FILES[1], second / FILES[1])
    return tuple(field for field in found if field != "result_sha256") or ("the bytes of its files",)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _walk(one: Any, other: Any, path: str) -> Iterator[str]:
    """Paths at which two JSON values differ; a list of another length differs as a whole."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _walk(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _walk(a, b, f"{path}.{place}".lstrip("."))
    elif one != other or type(one) is not type(other):
        yield path


def _tensors(first: Path, second: Path) -> list[str]:
    held = [read_tensors(path) if path.is_file() else {} for path in (first, second)]
    found = []
    for name in sorted({*held[0], *held[1]}):
        one, other = (tensors.get(name) for tensors in held)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            found.append(f"{name} (another shape or dtype)")
        elif not _same(one, other):
            found.append(f"{name} (by at most {float((one.double() - other.double()).abs().max()):.3g})")
    return found


def _same(one: Any, other: Any) -> bool:
    import torch

    return torch.equal(one.view(torch.uint8), other.view(torch.uint8)) if one.numel() else True
