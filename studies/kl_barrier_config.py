"""What the barrier study asks: which arms, how many rounds, and on how many samples of the model's own."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from studies.finetune_config import Barrier, Lora, Training, shortened
from studies.models import ModelConfig
from studies.personas import questions

ARMS = (Barrier(kind="off"), Barrier(kind="mean", tau=0.5), Barrier(kind="rmse", tau=1.0))


class Config(ModelConfig):
    """Round r trains each arm on samples of its round r - 1; the base's are those of round 0.

    Arms differ in their barrier alone: data of round 1, order, seeds and everything in `training` are shared.
    `n_gram` is what counts as a repetition: ids in a row that were there before.
    """

    arms: tuple[Barrier, ...] = Field(ARMS, min_length=1)
    rounds: int = Field(2, ge=2)
    question_group: str = "training"
    n_questions: int = Field(8, ge=1)
    n_draws: int = Field(2, ge=1)
    n_tokens: int = Field(40, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    n_gram: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=1)
    training: Training = Training(
        lora=Lora(rank=4, alpha=8), loss="completion", n_steps=12, learning_rate=1e-3, save_every=1000
    )

    @model_validator(mode="after")
    def _comparable(self) -> "Config":
        kinds = [arm.kind for arm in self.arms]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"two arms are {twice[0]!r}; run the study once for each, with its own --out")
        if self.training.barrier.kind != "off":
            raise ValueError("the barrier of an arm is written in `arms`; leave training.barrier out")
        there = len(questions(self.question_group))
        if self.n_questions > there:
            raise ValueError(f"{self.question_group} has {there} questions; {self.n_questions} were asked")
        if self.adapter is not None:
            raise ValueError("the arms are adapters themselves; give the base, without an adapter")
        return self

    def barrier(self, kind: str) -> Barrier:
        return next(arm for arm in self.arms if arm.kind == kind)


def planned(config: Config, base: Any, folder: Path) -> tuple[Config, dict[str, float]]:
    """For `mechinterp plan`: few steps of each training, and how many each of them stands for."""
    few, times = shortened(config.training)
    return config.model_copy(update={"training": few}), {"train": times}
