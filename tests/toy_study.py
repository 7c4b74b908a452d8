"""A study without a model, run from its file: draws and sums over pairs; what goes wrong is asked for."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mechinterp.cells import Cell, cell_seed
from mechinterp.config import StudyConfig
from mechinterp.report import Page
from mechinterp.results import Result


class Config(StudyConfig):
    """`mended` is a file: once it is there, cells of `bad` and `deadly` work as the others do."""

    n: int = 6
    seconds: float = 0.0
    bad: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    large: tuple[int, ...] = ()
    mended: str = ""


@dataclass(frozen=True, eq=False)
class Draw(Result):
    values: torch.Tensor


@dataclass(frozen=True, eq=False)
class Total(Result):
    value: torch.Tensor

    def headline(self) -> str:
        return f"total {float(self.value[0]):.3f}"


def cells(config: Config) -> list[Cell]:
    draws = [
        Cell(f"draw/{i}", "draw", args={"i": i, "seed": cell_seed(config.seed, "draw", i)})
        for i in range(config.n)
    ]
    sums = [
        Cell(f"sum/{i}", "add", inputs=(f"draw/{i}", f"draw/{(i + 1) % config.n}")) for i in range(config.n)
    ]
    return draws + sums


def model_specs(config: Config) -> dict:
    return {}


def draw(cell: Cell, model: None, inputs: dict, config: Config) -> Draw:
    time.sleep(config.seconds)
    i, mended = cell.args["i"], Path(config.mended)
    if i in config.bad and not mended.is_file():
        raise ZeroDivisionError("no mean of nothing")
    if i in config.deadly and not mended.is_file():
        mended.write_text("once is enough")
        os.kill(os.getpid(), signal.SIGKILL)
    size = 200_000 if i in config.large else 8
    return Draw(torch.randn(size, generator=torch.Generator().manual_seed(cell.args["seed"])))


def add(cell: Cell, model: None, inputs: dict, config: Config) -> Total:
    return Total(torch.stack([held.values[:8] for held in inputs.values()]).sum(0))


def combine(config: Config, results: dict) -> Total:
    return Total(torch.stack([held.value for held in results.values() if isinstance(held, Total)]).sum(0))


def page(config: Config, result: Total, run) -> Page:
    return Page(
        title="Toy", asked="How much?", answer=result.headline(), setup={}, headlines=(),
        confidence=("low", "it is a toy"), compute={}, digests={}, figures={},
    )  # fmt: skip
