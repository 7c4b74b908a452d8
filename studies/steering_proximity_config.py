"""What steering towards a source asks: how far, in which directions, at which rows, under whose prompts."""

from typing import Literal

from pydantic import Field, model_validator

from studies.leakage_config import targets
from studies.personas import Persona
from studies.trained import TrainedConfig


class Config(TrainedConfig):
    """`personas` are the sources, each with its trained model, which is steered while it answers.

    The assistant's centroid is moved at `layer` (the middle, unless asked) along the line to the source's. A
    positive dose d asks for the cosine d of the way from the natural one to 1; a negative dose adds as much
    the other way; 0 is not steered and is always among the doses. Controls get vectors of the same norm: a
    random direction, and the line to `other` (the last bystander, unless asked). Answers are sampled under
    the prompts of the assistant, the source and `n_bystanders` others, all steered alike.
    """

    personas: tuple[str, ...] = Field(("villain",), min_length=1)
    persona_set: Literal["core", "wide"] = "core"
    assistant: str = "assistant"
    other: str | None = None
    n_bystanders: int = Field(2, ge=1)
    layer: int | None = Field(None, ge=0)
    doses: tuple[float, ...] = Field((-0.5, 0.0, 0.25, 0.5, 0.75), min_length=3)
    rows: Literal["all", "prompt"] = "all"
    n_draws: int = Field(10, ge=1)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    seeds: tuple[int, ...] = Field((42,), min_length=1)
    batch_size: int = Field(64, ge=1)
    n_centroid_questions: int = Field(20, ge=2)

    @model_validator(mode="after")
    def _doses(self) -> "Config":
        if 0.0 not in self.doses or len(set(self.doses)) < len(self.doses):
            raise ValueError(f"doses are given once each, 0 among them, not {list(self.doses)}")
        if max(map(abs, self.doses)) >= 1:
            raise ValueError(
                f"a dose is a part of the way to the source, above -1 and below 1, not {list(self.doses)}"
            )
        known = targets_of(self)
        strangers = [p for p in (*self.personas, self.assistant, self.other) if p and p not in known]
        if strangers:
            raise ValueError(f"{strangers[0]} is not among the personas {', '.join(known)}")
        if self.assistant in self.personas:
            raise ValueError("the assistant cannot be moved towards itself; leave it out of the sources")
        return self


def targets_of(config: Config) -> dict[str, Persona]:
    """The personas whose mean centres the cosines."""
    return targets(config)  # pyright: ignore[reportArgumentType]  # it reads persona_set and persona_file alone


def bystanders(config: Config, source: str) -> tuple[str, ...]:
    """Others under whose prompts the steered model answers, in the order of the set."""
    rest = [name for name in targets_of(config) if name not in (source, config.assistant)]
    return tuple(rest[: config.n_bystanders])


def other_of(config: Config, source: str) -> str:
    """The persona that the control direction points to."""
    return config.other if config.other not in (None, source) else bystanders(config, source)[-1]  # pyright: ignore[reportReturnType]
