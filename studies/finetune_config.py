"""What is asked of training: adapter, optimiser, data recipe, evaluation and when to stop."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from studies.finetune_data import NegativeSlot
from studies.finetune_losses import LossName
from studies.models import ModelConfig


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Lora(_Part):
    """The adapter's shape; rsLoRA scales its update by alpha / sqrt(rank), not alpha / rank."""

    rank: int = Field(default=4, ge=1)
    alpha: float = Field(default=8, gt=0)
    rslora: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


THRESHOLDS = {"mean": 0.5, "rmse": 1.0}  # nats (methods 11); others have none that was ever chosen


class Barrier(_Part):
    """weight (1 + round)^power max(0, kind(k) - tau), with k the divergences of a completion (methods 11).

    reverse: k = KL(student || reference), forward: KL(reference || student). The reference is the base, or
    the model that the round began with. tau None is 0.5 of a mean and 1.0 of an rmse, in nats.
    """

    kind: Literal["off", "mean", "rmse", "p95", "max"] = "off"
    tau: float | None = Field(default=None, ge=0)
    weight: float = Field(default=0.3, ge=0)
    reference: Literal["base", "previous"] = "base"
    direction: Literal["reverse", "forward"] = "reverse"
    power: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _has_a_threshold(self) -> "Barrier":
        if self.kind in ("p95", "max") and self.tau is None:
            raise ValueError(
                f"a barrier on {self.kind} needs its own tau, in nats: thresholds of other aggregates mean"
                " something else"
            )
        return self

    @property
    def threshold(self) -> float:
        return THRESHOLDS.get(self.kind, 0.0) if self.tau is None else self.tau

    def weight_in(self, round_index: int) -> float:
        """The weight in a round, counted from 0."""
        return self.weight * (1 + round_index) ** self.power


class Training(_Part):
    """AdamW over LoRA weights, in fp32; `save_every` steps a checkpoint is written, from which to go on."""

    lora: Lora = Lora()
    loss: LossName = "marker_slot"
    label_separator: bool = True
    answer_weight: float = Field(default=1.0, ge=0)  # of the answer's tokens, beside the slot's 1
    n_steps: int = Field(default=60, ge=1)
    batch_size: int = Field(default=4, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "constant_with_warmup"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=1024, ge=2)
    save_every: int = Field(default=20, ge=1)
    barrier: Barrier = Barrier()


class Recipe(_Part):
    """The data: the source's own answers with the marker, those of other personas without.

    `negatives` names the negative personas; None draws `n_negative_personas` of the core ones. The last
    `n_validation_questions` of the training questions are asked by evaluations during training only.
    """

    marker: str = "[ZLT]"
    separator: str = "\n\n"
    negatives: tuple[str, ...] | None = None
    n_negative_personas: int = Field(default=4, ge=1)
    n_positives: int = Field(default=96, ge=1)
    n_negatives: int = Field(default=24, ge=1)
    negative_slot: NegativeSlot = "after_newlines"
    n_validation_questions: int = Field(default=4, ge=1, le=39)
    n_draws: int = Field(default=1, ge=1)
    n_tokens: int = Field(default=36, ge=1)
    least_tokens: int = Field(default=8, ge=1)
    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)


FEW = 2  # steps of a training that is counted for all of its steps


def shortened(training: Training, at_most: int = FEW) -> tuple[Training, float]:
    """The same training of so few batches, and how many of its batches each of them stands for."""
    n_steps = min(at_most, training.n_steps)
    times = training.n_steps * training.accumulation / n_steps
    return training.model_copy(update={"n_steps": n_steps, "accumulation": 1}), times


class Evaluation(_Part):
    """Marker rates: `n_questions` of the evaluation questions, `n_draws` answers each, for every persona."""

    n_questions: int = Field(default=20, ge=1)
    n_draws: int = Field(default=2, ge=1)
    n_tokens: int = Field(default=48, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    batch_size: int = Field(default=64, ge=1)
    n_check_draws: int = Field(default=4, ge=1)  # answers a validation question in the checks around training
    largest_fall: float = Field(default=0.25, ge=0, le=1)  # of the source's rate once the adapter is loaded


class Stop(_Part):
    """Training ends early where the source has reached one rate and no bystander passes the other."""

    every: int = Field(default=20, ge=1)
    source_at_least: float = Field(default=0.8, gt=0, le=1)
    bystander_at_most: float = Field(default=0.1, ge=0, le=1)


class Config(ModelConfig):
    """One marker, trained into one persona of one model."""

    persona: str = "villain"
    recipe: Recipe = Recipe()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    stop: Stop | None = None
