"""Cells: a study as a list of units of work, known before anything runs.

A cell is frozen JSON: what can be listed can be resumed, planned, cut short and sent elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mechinterp.files import slug


@dataclass(frozen=True)
class Cell:
    """One unit of work: the function `task` of the study, on `model`, with the results of the cells `inputs`.

    `key`, such as "generate/villain/3", names its folder. `args` are plain JSON (tuples become lists) and
    hold all that decides the result and is not in the configuration: seeds and batch composition too.
    """

    key: str
    task: str
    model: str | None = None
    inputs: tuple[str, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(part.strip() for part in self.key.split("/")):
            raise ValueError(
                f"{self.key!r} is no cell key; write words between slashes, such as 'generate/villain/3'"
            )
        try:
            args = json.loads(json.dumps(self.args, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the args of cell {self.key} must be plain JSON: {error}") from None
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "args", args)

    def __hash__(self) -> int:
        return hash((self.key, self.task, self.model, self.inputs))

    @property
    def folder(self) -> str:
        """Its key as a relative path of safe names."""
        return "/".join(slug(part) for part in self.key.split("/"))


def cell_seed(seed: int, name: str, index: int) -> int:
    """The seed of one trial, in [0, 2^63): the same in every process, unlike Python's `hash`."""
    digest = hashlib.sha256(json.dumps([seed, name, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuse a key given twice, an input that does not come before its reader, and a key inside another."""
    folders: dict[str, str] = {}
    keys: set[str] = set()
    for cell in cells:
        if cell.key in keys:
            raise ValueError(f"two cells have the key {cell.key}; give each its own")
        for needed in cell.inputs:
            if needed not in keys:
                raise ValueError(
                    f"cell {cell.key} reads {needed}, which no earlier cell makes; list it before"
                )
        keys.add(cell.key)
        folders[cell.folder] = cell.key
    for folder, key in folders.items():
        parts = folder.split("/")
        for length in range(1, len(parts)):
            outer = folders.get("/".join(parts[:length]))
            if outer is not None:
                raise ValueError(f"cell {key} lies inside cell {outer}; rename one, such as {outer}/all")


def select(cells: Sequence[Cell], limit: int) -> list[Cell]:
    """The first `limit` cells and every cell that these read, in their order."""
    if limit < 1:
        raise ValueError(f"a limit of {limit} cells leaves nothing to do; give 1 or more")
    return needed(cells, cells[:limit])


def needed(cells: Sequence[Cell], chosen: Sequence[Cell]) -> list[Cell]:
    """The chosen cells and every cell that these read, in the order of `cells`."""
    by_key = {cell.key: cell for cell in cells}
    kept: set[str] = set()
    wanted = [cell.key for cell in chosen]
    while wanted:
        key = wanted.pop()
        if key not in kept:
            kept.add(key)
            wanted.extend(by_key[key].inputs)
    return [cell for cell in cells if cell.key in kept]


def listed(cells: Sequence[Cell]) -> str:
    """The list of cells as text, one a line, under a line that counts tasks and models."""
    tasks = Counter(cell.task for cell in cells)
    models = {cell.model for cell in cells} - {None}
    lines = [
        f"{len(cells)} cells ({', '.join(f'{n} {task}' for task, n in tasks.items())}), {len(models)} models"
    ]
    width = max((len(cell.key) for cell in cells), default=0)
    for cell in cells:
        reads = f"  reads {len(cell.inputs)}" if cell.inputs else ""
        lines.append(f"  {cell.key:<{width}}  {cell.task}  on {cell.model or 'no model'}{reads}")
    return "\n".join(lines)
