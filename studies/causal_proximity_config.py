"""What the three-arm test asks: arms, checkpoints, both trainings, and how every merge is checked."""

from typing import Literal

from pydantic import Field, model_validator

from studies.arms_records import ORIGINAL
from studies.finetune_config import Lora, Recipe, Training
from studies.finetune_data import ASSISTANT
from studies.targets import TargetsConfig
from studies.trained import trained

Arm = Literal["A", "B", "C"]
DEPTHS = (10, 15, 20, 25)  # of the 28 layers of the model that was published on
PUBLISHED_LAYERS = 28
RETRAINED = "narrow"  # the marker adapter that the study trains anew

MARKER = Recipe(n_negative_personas=4, n_positives=96, n_negatives=24)
NARROW = Recipe(n_negative_personas=9, n_positives=96, n_negatives=24)


class Config(TargetsConfig):
    """`personas` are the sources; A and C start from their adapters, merged, B trains its own marker.

    A source of `retrained` has a narrow adapter besides, trained by `narrow` on `narrow_recipe`, with which A
    and C run again. `percents` are checkpoints of the `convergence` training, 0 % among them. `layers` of the
    cosine are those published, as parts of the depth, unless given. Trainings and answers are made for each
    of `seeds`; the texts that are trained on are the base's own, to all training questions, sampled with
    `seed` once. Every merge is checked on the first `n_check_questions` of the evaluation. `adapter_lora` is
    what a given adapter must be. `assistant_draws` of a source take the place of `n_draws` for the assistant.
    """

    personas: tuple[str, ...] = Field(
        ("villain", "comedian", "kindergarten_teacher", "software_engineer"), min_length=1
    )
    arms: tuple[Arm, ...] = Field(("A", "B", "C"), min_length=1)
    percents: tuple[int, ...] = (0, 20, 40, 60, 80, 100)
    retrained: tuple[str, ...] = ()
    adapter_lora: Lora | None = None
    convergence: Training = Training(loss="all_tokens", learning_rate=5e-4, schedule="cosine", n_steps=40)
    n_convergence_draws: int = Field(2, ge=1)
    recipe: Recipe = MARKER
    marker_training: Training = Training()
    narrow_recipe: Recipe = NARROW
    narrow: Training = Training()
    layers: tuple[int, ...] | None = None
    n_centroid_questions: int = Field(20, ge=2)
    assistant_draws: dict[str, int] = {}
    n_check_questions: int = Field(4, ge=1)
    n_check_draws: int = Field(4, ge=1)
    largest_fall: float = Field(0.25, ge=0, le=1)

    @model_validator(mode="after")
    def _arms(self) -> "Config":
        if self.assistant != ASSISTANT or ASSISTANT in self.personas:
            raise ValueError(f"the arms bring a source near the persona {ASSISTANT!r}, which is no source")
        if self.backend != "transformers" or self.adapter is not None:
            raise ValueError("the arms are trained: backend='transformers', and a base without an adapter")
        if self.checkpoints:
            raise ValueError("arms A and C merge adapters; give adapters of the sources, not checkpoints")
        if self.recipe.marker != self.marker or self.narrow_recipe.marker != self.marker:
            raise ValueError(f"the marker is {self.marker!r}; write the same into recipe and narrow_recipe")
        for name in ("retrained", "assistant_draws"):
            unknown = [key for key in getattr(self, name) if key not in self.personas]
            if unknown:
                raise ValueError(f"{name} names {unknown[0]}, which is not among the sources")
        return self

    @model_validator(mode="after")
    def _checkpoints(self) -> "Config":
        percents = self.percents
        if sorted(set(percents)) != list(percents) or percents[0] != 0 or percents[-1] != 100:
            raise ValueError(
                f"percents rise from 0 to 100, not {list(percents)}: without 0 % the first jump is not seen"
            )
        for percent in percents:
            if self.convergence.n_steps * percent % 100:
                raise ValueError(
                    f"{percent} % of {self.convergence.n_steps} steps is no whole step; choose n_steps so"
                )
        return self


def steps_of(config: Config) -> dict[int, int]:
    """The training step of every checkpoint after 0 %."""
    return {p: config.convergence.n_steps * p // 100 for p in config.percents if p}


def layers_of(config: Config, n_layers: int) -> tuple[int, ...]:
    """Those asked for, or the published ones at the same part of the depth."""
    if config.layers is not None:
        wrong = [layer for layer in config.layers if not 0 <= layer < n_layers]
        if wrong:
            raise ValueError(f"layer {wrong[0]} is asked for and the model has {n_layers}, from 0")
        return config.layers
    return tuple(dict.fromkeys(depth * n_layers // PUBLISHED_LAYERS for depth in DEPTHS))


def adapters_of(config: Config, source: str) -> tuple[tuple[str, int], ...]:
    """(kind, run) of every marker adapter that arms A and C start from."""
    found = [(ORIGINAL, run) for run in range(len(trained(config, source)))]
    return (*found, *([(RETRAINED, 0)] if source in config.retrained else []))
