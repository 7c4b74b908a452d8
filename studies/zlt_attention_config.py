"""What the attention study asks: whose markers, of which trained models, read where and against what."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from studies.trained import TrainedConfig, trained


class Config(TrainedConfig):
    """`seeds` are generation seeds. `records` is a directory of `positives_{persona}.json` or a finished run
    of this study, and then nothing is generated.
    """

    records: Path | None = None
    seeds: tuple[int, ...] = Field((42,), min_length=1)
    n_trials: int = Field(30, ge=1)
    n_positives: int = Field(10, ge=1)
    n_negatives: int = Field(5, ge=0)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    batch_size: int = Field(10, ge=1)
    questions_per_cell: int = Field(1, ge=1)
    row: Literal["emit", "token"] = "emit"
    newlines: Literal["exact", "any_trailing"] = "exact"
    region: Literal["system", "user", "answer"] = "system"
    draws: Literal["ours", "published"] = "ours"
    n_rows_before: int = Field(10, ge=1)
    preflight: bool = True
    n_preflight: int = Field(200, ge=2)
    replication: str | None = "software_engineer"

    @model_validator(mode="after")
    def _one_seed(self) -> "Config":
        if self.records is not None and len(self.seeds) > 1:
            raise ValueError("records hold one generation seed each; leave `seeds` at one value")
        return self


def replicates(config: Config, persona: str) -> list[tuple[int, int]]:
    """Every (training run, generation seed) of a persona."""
    return [(run, seed) for run in range(len(trained(config, persona))) for seed in config.seeds]


def blocks(config: Config) -> list[tuple[str, list[int]]]:
    """The questions that share a cell, with the cell's name: q3, or q0-9."""
    found, step = [], config.questions_per_cell
    for start in range(0, config.n_questions, step):
        block = list(range(start, min(start + step, config.n_questions)))
        found.append((f"q{block[0]}" if len(block) == 1 else f"q{block[0]}-{block[-1]}", block))
    return found
