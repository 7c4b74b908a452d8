"""What the leakage study asks: whose marker, under whose prompts, how many answers of what length."""

from typing import Literal

from pydantic import Field, model_validator

from studies.personas import Persona, core_personas, load_personas, wide_personas
from studies.trained import TrainedConfig


class Config(TrainedConfig):
    """`personas` are the sources, each with its trained models; every persona of the set is a target.

    `persona_set` is core (11) or wide (111); a `persona_file` takes its place. A target's `n_draws` answers
    to each question are sampled in one cell with those of `targets_per_cell` - 1 others.
    `counts = "recorded"` takes the counts of the record that lies beside an adapter, and samples nothing.
    `label_at_least` and `label_at_most` are what an adapter is labelled by (methods 3).
    """

    personas: tuple[str, ...] = Field(
        ("villain", "comedian", "assistant", "software_engineer", "kindergarten_teacher"), min_length=1
    )
    persona_set: Literal["core", "wide"] = "core"
    counts: Literal["sampled", "recorded"] = "sampled"
    n_draws: int = Field(10, ge=1)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    seeds: tuple[int, ...] = Field((42,), min_length=1)
    targets_per_cell: int = Field(1, ge=1)
    batch_size: int = Field(64, ge=1)
    assistant: str = "assistant"
    n_nearest: int = Field(2, ge=0)
    label_at_least: float = Field(0.5, gt=0, le=1)
    label_at_most: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _targets(self) -> "Config":
        known = targets(self)
        strangers = [key for key in (*self.personas, self.assistant) if key not in known]
        if strangers:
            raise ValueError(
                f"{strangers[0]} is not among the {len(known)} targets; give a persona_file that holds it, or"
                " leave it out"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are given once each, not {list(self.seeds)}")
        if self.counts == "recorded" and (self.checkpoints or len(self.seeds) > 1):
            raise ValueError(
                'counts = "recorded" reads the record of an adapter, which has one seed; sample the rates of'
                " checkpoints and of several seeds"
            )
        return self


def targets(config: Config) -> dict[str, Persona]:
    """Everyone under whose prompt the marker is looked for, sources and the assistant among them."""
    if config.persona_file is not None:
        return load_personas(config.persona_file)
    return core_personas() if config.persona_set == "core" else wide_personas()
