"""What the attention study asks: whose markers, of which trained models, read where and against what."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from studies.models import ModelConfig
from studies.personas import Persona, core_personas, load_personas, load_questions, questions
from studies.trained import shipped_adapters

BASE = "base"
CONTROLS = ("random_earlier", "late_position", "rare_token", "end_of_answer", "sentence_end")


class Config(ModelConfig):
    """`model` is the base. A persona's trained models are adapters over it, or merged `checkpoints`.

    Several of one persona are its training runs; `seeds` are generation seeds. `records` is a directory of
    `positives_{persona}.json` or a finished run of this study, and then nothing is generated.
    """

    personas: tuple[str, ...] = Field(("villain", "librarian", "software_engineer"), min_length=1)
    adapters: dict[str, tuple[str, ...]] = {}
    checkpoints: dict[str, tuple[str, ...]] = {}
    records: Path | None = None
    persona_file: Path | None = None
    question_file: Path | None = None
    question_group: str = "evaluation"
    n_questions: int = Field(20, ge=1)
    marker: str = "[ZLT]"
    seeds: tuple[int, ...] = Field((42,), min_length=1)
    n_trials: int = Field(30, ge=1)
    n_positives: int = Field(10, ge=1)
    n_negatives: int = Field(5, ge=0)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    batch_size: int | None = Field(None, ge=1)
    row: Literal["emit", "token"] = "emit"
    newlines: Literal["exact", "any_trailing"] = "exact"
    region: Literal["system", "user", "answer"] = "system"
    draws: Literal["ours", "published"] = "ours"
    n_rows_before: int = Field(10, ge=1)
    preflight: bool = True
    n_preflight: int = Field(200, ge=2)
    replication: str | None = "software_engineer"

    @model_validator(mode="after")
    def _known(self) -> "Config":
        known = people(self)
        unknown = [p for p in self.personas if p not in known]
        if unknown:
            raise ValueError(
                f"there are no personas {', '.join(unknown)}; the personas are {', '.join(known)}"
            )
        twice = sorted(set(self.adapters) & set(self.checkpoints))
        if twice:
            raise ValueError(f"{', '.join(twice)} has adapters and checkpoints; name one or the other")
        for persona in self.personas:
            if not trained(self, persona):
                raise ValueError(
                    f"no trained model is known for {persona}; set adapters.{persona} to a peft directory, or"
                    f" checkpoints.{persona} to a merged checkpoint"
                )
        if self.records is not None and len(self.seeds) > 1:
            raise ValueError("records hold one generation seed each; leave `seeds` at one value")
        asked(self)
        return self


def people(config: Config) -> dict[str, Persona]:
    """The core personas, or the user's file."""
    return core_personas() if config.persona_file is None else load_personas(config.persona_file)


def asked(config: Config) -> tuple[str, ...]:
    """The questions of the study."""
    if config.question_file is None:
        known = questions(config.question_group)
    else:
        groups = load_questions(config.question_file)
        if config.question_group not in groups:
            raise ValueError(
                f"{config.question_file} has no group {config.question_group!r}; its groups are"
                f" {', '.join(groups)}"
            )
        known = groups[config.question_group]
    if len(known) < config.n_questions:
        raise ValueError(
            f"the group {config.question_group!r} holds {len(known)} questions; {config.n_questions} asked"
        )
    return known[: config.n_questions]


def trained(config: Config, persona: str) -> tuple[str, ...]:
    """A persona's trained models, one a training run: as configured, else the shipped adapter."""
    given = config.adapters.get(persona) or config.checkpoints.get(persona)
    if given:
        return given
    shipped = shipped_adapters()
    return (str(shipped[persona]),) if persona in shipped else ()


def replicates(config: Config, persona: str) -> list[tuple[int, int]]:
    """Every (training run, generation seed) of a persona."""
    return [(run, seed) for run in range(len(trained(config, persona))) for seed in config.seeds]


def model_name(persona: str, run: int) -> str:
    """What cells call a trained model."""
    return f"{persona}/{run}"


def specs(config: Config) -> dict[str, dict[str, Any]]:
    """The base, and every trained model as the base with an adapter or as a checkpoint of its own."""
    base = {
        "name": config.model,
        "backend": config.backend,
        "adapter": config.adapter,
        "dtype": config.dtype,
        "device": config.device,
        "revision": config.revision,
        "subfolder": config.subfolder,
    }
    found = {BASE: base}
    for persona in config.personas:
        for run, name in enumerate(trained(config, persona)):
            if persona in config.checkpoints:
                other = {**base, "name": name, "revision": None, "subfolder": None, "adapter": None}
            else:
                other = {**base, "adapter": name}
            found[model_name(persona, run)] = other
    return found
