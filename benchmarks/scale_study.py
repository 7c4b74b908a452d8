"""As many cells as asked, each a number after some milliseconds: what engines and directories cost."""

import time
from dataclasses import dataclass

import pandas as pd

from mechinterp.cells import Cell, cell_seed
from mechinterp.config import StudyConfig
from mechinterp.report import Page
from mechinterp.results import Result


class Config(StudyConfig):
    n: int = 100
    milliseconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Number(Result):
    value: int

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({"value": [self.value]})

    def headline(self) -> str:
        return f"sum {self.value}"


def cells(config: Config) -> list[Cell]:
    return [
        Cell(f"number/{i}", "number", args={"seed": cell_seed(config.seed, "n", i)}) for i in range(config.n)
    ]


def model_specs(config: Config) -> dict:
    return {}


def number(cell: Cell, model: None, inputs: dict, config: Config) -> Number:
    time.sleep(config.milliseconds / 1000)
    return Number(cell.args["seed"] % 1000)


def combine(config: Config, results: dict) -> Number:
    return Number(sum(one.value for one in results.values()))


def page(config: Config, result: Number, run) -> Page:
    return Page(
        title="Scale", asked="What does a cell cost?", answer=result.headline(), setup={}, headlines=(),
        confidence=("high", "it counts"), compute={}, digests={}, figures={},
    )  # fmt: skip
