"""Whose prompts a trained model answers under, and how: what every study of leakage asks."""

from typing import Literal

from pydantic import Field, model_validator

from studies.finetune_config import Evaluation
from studies.personas import Persona, core_personas, load_personas, wide_personas
from studies.trained import TrainedConfig


class TargetsConfig(TrainedConfig):
    """`persona_set` is core (11) or wide (111) targets; a `persona_file` takes its place.

    Under a target's prompt `n_draws` answers to each question are sampled for each of `seeds`.
    """

    persona_set: Literal["core", "wide"] = "core"
    assistant: str = "assistant"
    n_draws: int = Field(10, ge=1)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    seeds: tuple[int, ...] = Field((42,), min_length=1)
    batch_size: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _targets(self) -> "TargetsConfig":
        known = targets(self)
        strangers = [key for key in (*self.personas, self.assistant) if key not in known]
        if strangers:
            raise ValueError(
                f"{strangers[0]} is not among the {len(known)} targets; give a persona_file that holds it, or"
                " leave it out"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are given once each, not {list(self.seeds)}")
        return self


def evaluation(config: TargetsConfig) -> Evaluation:
    """How the answers of a study are sampled, as `measure` takes it."""
    return Evaluation(
        n_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        batch_size=config.batch_size,
    )


def targets(config: TargetsConfig) -> dict[str, Persona]:
    """Everyone under whose prompt the marker is looked for, sources and the assistant among them."""
    if config.persona_file is not None:
        return load_personas(config.persona_file)
    return core_personas() if config.persona_set == "core" else wide_personas()
