"""What a study will cost, before the bill: its own cells, run on a stand-in whose passes are counted.

The stand-in has the model's layers, heads and tokenizer, and next to no width; what is counted on it (which
layer ran on how many rows over how many keys) is priced at the model's real sizes. So a plan knows nothing of
any study, and a study of your own is planned like the others.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mechinterp.cells import Cell, check_cells, needed
from mechinterp.costs import Costs, Device, Memory
from mechinterp.engine import progress_bar
from mechinterp.passes import Passes, counted
from mechinterp.results import Result
from mechinterp.running import Asked
from mechinterp.stand_in import dictated, stand_in
from mechinterp.study_models import Pair

FAILURES = (ValueError, RuntimeError, LookupError, FloatingPointError, OSError, AssertionError)
PER_TASK = 2  # cells of a task that are counted; the others are taken to be like them


@dataclass(frozen=True)
class Part:
    """A task of a study: its cells, of which `n_counted` were counted, and their passes scaled to all.

    `failed` is what the stand-in stumbled over, for a task that could not be counted.
    """

    task: str
    n_cells: int
    n_counted: int
    prompts: float = 0
    tokens: float = 0
    forwards: float = 0
    flops: float = 0
    seconds: float = 0
    memory: Memory = Memory(0)
    failed: str | None = None

    @property
    def exact(self) -> bool:
        return self.n_counted == self.n_cells and self.failed is None


@dataclass(frozen=True)
class Plan:
    """All tasks of a study on one model, on a device at a utilisation."""

    study: str
    costs: Costs
    device: Device
    utilisation: float
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    def total(self, name: str) -> float:
        return sum(getattr(part, name) for part in self.parts)

    @property
    def memory(self) -> Memory:
        """The fullest moment of all."""
        found = [part.memory for part in self.parts if part.memory.weights]
        return max(found, key=lambda memory: memory.total, default=Memory(self.costs.weights))

    @property
    def n_devices(self) -> int:
        """How many such devices hold the fullest moment."""
        return -int(-self.memory.total // self.device.memory)


def plan(
    asked: Asked,
    config: Any,
    tokenizer: Any,
    *,
    name: str,
    dtype: torch.dtype,
    device: Device,
    utilisation: float,
    all_cells: bool = False,
    notes: Sequence[str] = (),
    progress: bool = False,
) -> Plan:
    """Counts a study's cells on a stand-in of `config` and prices them; `all_cells` counts every one.

    Answers are taken to be as long as they may be, so what stops early costs less. A study that loads
    adapters or trains inside its cells may offer `planned(config, base, folder)`: a configuration
    for the stand-in, and by how much the training in each of its tasks was shortened.
    """
    costs = Costs.of(config, name, dtype)
    base = stand_in(config, tokenizer, name)
    with TemporaryDirectory() as folder:
        shortened: dict[str, float] = {}
        if hasattr(asked.module, "planned"):
            small, shortened = asked.module.planned(asked.config, base, Path(folder))
            asked = Asked(asked.study, asked.module, small)
        cells = asked.cells()
        check_cells(cells)
        models = StandIns(asked, base, config, tokenizer)
        found = _count(asked, cells if all_cells else _some(cells), models, progress)
    priced = _Priced(costs, device, utilisation)
    parts = [
        priced.part(task, n_cells, *found[task], shortened.get(task, 1.0))
        for task, n_cells in Counter(cell.task for cell in cells).items()
    ]
    return Plan(asked.study, costs, device, utilisation, tuple(parts), tuple(notes))


def _some(cells: Sequence[Cell]) -> list[Cell]:
    """The first and the last cell of each task, and all that these read."""
    chosen: dict[str, Cell] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        mine = [cell for cell in cells if cell.task == task]
        step = max(1, (len(mine) - 1) // max(1, PER_TASK - 1))
        chosen |= {cell.key: cell for cell in mine[::step][:PER_TASK]}
    return needed(cells, list(chosen.values()))


class StandIns:
    """The models of a study by its names: one architecture, each with weights of its own."""

    def __init__(self, asked: Asked, base: Any, config: Any, tokenizer: Any):
        self.specs = asked.module.model_specs(asked.config)
        self.asked, self.base, self.config, self.tokenizer = asked, base, config, tokenizer
        self.made: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        if "pair" in self.specs[name]:
            return Pair(*(self(one) for one in self.specs[name]["pair"]))
        if name not in self.made:
            seed = len(self.made)
            self.made[name] = (
                stand_in(self.config, self.tokenizer, self.base.name, seed) if seed else self.base
            )
        return self.made[name]

    def says(self, name: str | None) -> str | None:
        """The marker that a model writes: a trained one's; None for the base."""
        spec = {} if name is None else self.specs[name]
        base = getattr(self.asked.config, "model", None)
        trained = "pair" in spec or spec.get("adapter") is not None or spec.get("name") != base
        return getattr(self.asked.config, "marker", None) if trained else None


Found = dict[str, tuple[int, Passes, str | None]]


def _count(asked: Asked, cells: Sequence[Cell], models: StandIns, progress: bool) -> Found:
    """Runs the cells in order; for each task how many were counted, their passes, and what went wrong."""
    results: dict[str, Result] = {}
    found: Found = {}
    with progress_bar(len(cells), 0, progress) as bar, _long_lived():
        for cell in cells:
            bar.set_postfix_str(cell.key)
            n, passes, failed = found.get(cell.task, (0, Passes(), None))
            missing = [key for key in cell.inputs if key not in results]
            if failed is None and missing:
                failed = f"it reads {missing[0]}, which could not be counted"
            if failed is None:
                try:
                    results[cell.key] = _ran(asked, cell, models, passes, results)
                    n += 1
                except FAILURES as error:
                    failed = f"{type(error).__name__}: {error}"
            found[cell.task] = (n, passes, failed)
            bar.update()
            gc.collect()
    return found


@contextmanager
def _long_lived() -> Iterator[None]:
    """What is there already is passed over by the collections between cells."""
    if gc.get_freeze_count():  # somebody's own, which cannot be told from ours afterwards
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _ran(asked: Asked, cell: Cell, models: StandIns, passes: Passes, results: dict[str, Result]) -> Result:
    with counted(models.base, passes) as counting, dictated(counting, models.says(cell.model)):
        model = None if cell.model is None else models(cell.model)
        return asked.task(cell, model, {key: results[key] for key in cell.inputs})


@dataclass(frozen=True)
class _Priced:
    """What counted passes come to on a device."""

    costs: Costs
    device: Device
    utilisation: float

    def part(
        self, task: str, n_cells: int, n_counted: int, passes: Passes, failed: str | None, shortened: float
    ) -> Part:
        """A task's passes scaled to all its cells, and its training to all the steps that it has."""
        if not n_counted:
            return Part(task, n_cells, 0, failed=failed)
        shares = [(passes, 1.0)] + ([(passes.training, shortened)] if passes.training is not None else [])

        def scaled(of: Callable[[Passes], float]) -> float:
            return n_cells / n_counted * sum(times * of(share) for share, times in shares)

        fullest = [self.costs.memory(share) for share, _ in shares if share.moments]
        return Part(
            task,
            n_cells,
            n_counted,
            prompts=scaled(lambda share: share.prompts),
            tokens=scaled(lambda share: share.tokens),
            forwards=scaled(lambda share: share.forwards),
            flops=scaled(self.costs.flops),
            seconds=scaled(lambda share: self.costs.seconds(share, self.device, self.utilisation)),
            memory=max(fullest, key=lambda memory: memory.total, default=Memory(0)),
            failed=failed,
        )
