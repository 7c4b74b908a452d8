"""What the leakage study asks: whose marker, how many answers a cell, counted or sampled."""

from typing import Literal

from pydantic import Field, model_validator

from studies.targets import TargetsConfig


class Config(TargetsConfig):
    """`personas` are the sources, each with its trained models; every persona of the set is a target.

    A target's answers are sampled in one cell with those of `targets_per_cell` - 1 others.
    `counts = "recorded"` takes the counts of the record that lies beside an adapter, and samples nothing.
    `label_at_least` and `label_at_most` are what an adapter is labelled by (methods 3).
    """

    personas: tuple[str, ...] = Field(
        ("villain", "comedian", "assistant", "software_engineer", "kindergarten_teacher"), min_length=1
    )
    counts: Literal["sampled", "recorded"] = "sampled"
    targets_per_cell: int = Field(1, ge=1)
    label_at_least: float = Field(0.5, gt=0, le=1)
    label_at_most: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _recorded(self) -> "Config":
        if self.counts == "recorded" and (self.checkpoints or len(self.seeds) > 1):
            raise ValueError(
                'counts = "recorded" reads the record of an adapter, which has one seed; sample the rates of'
                " checkpoints and of several seeds"
            )
        return self
