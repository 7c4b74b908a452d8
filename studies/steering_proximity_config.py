"""What steering towards a source asks: how far, in which directions, at which rows, under whose prompts."""

from typing import Literal

from pydantic import Field, model_validator

from studies.targets import TargetsConfig, targets


class Config(TargetsConfig):
    """`personas` are the sources, each with its trained model, which is steered while it answers.

    The assistant's centroid is moved at `layer` (the middle, unless asked) along the line to the source's. A
    positive dose d asks for the cosine d of the way from the natural one to 1; a negative dose adds as much
    the other way; 0 is not steered and is always among the doses. Controls get vectors of the same norm: a
    random direction, and the line to `other` (the last bystander, unless asked). Answers are sampled under
    the prompts of the assistant, the source and `n_bystanders` others, all steered alike.
    """

    personas: tuple[str, ...] = Field(("villain",), min_length=1)
    other: str | None = None
    n_bystanders: int = Field(2, ge=1)
    layer: int | None = Field(None, ge=0)
    doses: tuple[float, ...] = Field((-0.5, 0.0, 0.25, 0.5, 0.75), min_length=3)
    rows: Literal["all", "prompt"] = "all"
    n_centroid_questions: int = Field(20, ge=2)

    @model_validator(mode="after")
    def _doses(self) -> "Config":
        if 0.0 not in self.doses or len(set(self.doses)) < len(self.doses):
            raise ValueError(f"doses are given once each, 0 among them, not {list(self.doses)}")
        if max(map(abs, self.doses)) >= 1:
            raise ValueError(
                f"a dose is a part of the way to the source, above -1 and below 1, not {list(self.doses)}"
            )
        known = targets(self)
        if self.other is not None and self.other not in known:
            raise ValueError(f"{self.other} is not among the personas {', '.join(known)}")
        if self.assistant in self.personas:
            raise ValueError("the assistant cannot be moved towards itself; leave it out of the sources")
        return self


def bystanders(config: Config, source: str) -> tuple[str, ...]:
    """Others under whose prompts the steered model answers, in the order of the set."""
    rest = [name for name in targets(config) if name not in (source, config.assistant)]
    return tuple(rest[: config.n_bystanders])


def other_of(config: Config, source: str) -> str:
    """The persona that the control direction points to."""
    if config.other is not None and config.other != source:
        return config.other
    return bystanders(config, source)[-1]
