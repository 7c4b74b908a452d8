"""Which trained models a study is about: those its configuration names, or the shipped marker adapters."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from studies.models import ModelConfig
from studies.personas import Persona, core_personas, load_personas, load_questions, questions

BASE = "base"
FOLDER = "adapters"


@dataclass(frozen=True)
class Shipped:
    """A shipped adapter and its record: configuration, seed, data digest and measured rates."""

    persona: str
    path: Path
    record: dict[str, Any]


def shipped() -> dict[str, Shipped]:
    """The shipped marker adapters by persona, in the order of their names."""
    root = Path(str(files("studies.data"))) / FOLDER
    found = sorted(path for path in root.glob("*") if (path / "adapter_config.json").is_file())
    return {
        path.name: Shipped(path.name, path, json.loads((path / "record.json").read_text())) for path in found
    }


def shipped_adapters() -> dict[str, Path]:
    """Their directories, as `load(adapter=...)` takes them."""
    return {persona: one.path for persona, one in shipped().items()}


class TrainedConfig(ModelConfig):
    """`model` is the base. A persona's trained models are adapters over it, or merged `checkpoints`.

    Several of one persona are its training runs; a persona without any has the shipped adapter. All
    checkpoints are of one revision, in a subfolder that may hold `{persona}`.
    """

    personas: tuple[str, ...] = Field(("villain", "librarian", "software_engineer"), min_length=1)
    adapters: dict[str, tuple[str, ...]] = {}
    checkpoints: dict[str, tuple[str, ...]] = {}
    checkpoint_revision: str | None = None
    checkpoint_subfolder: str | None = None
    persona_file: Path | None = None
    question_file: Path | None = None
    question_group: str = "evaluation"
    n_questions: int = Field(20, ge=1)
    marker: str = "[ZLT]"

    @model_validator(mode="after")
    def _trained_and_asked(self) -> "TrainedConfig":
        check_known(self, self.personas)
        twice = sorted(set(self.adapters) & set(self.checkpoints))
        if twice:
            raise ValueError(f"{', '.join(twice)} has adapters and checkpoints; name one or the other")
        for persona in self.personas:
            if not trained(self, persona):
                raise ValueError(
                    f"no trained model is known for {persona}; set adapters.{persona} to a peft directory, or"
                    f" checkpoints.{persona} to a merged checkpoint"
                )
        asked(self)
        return self


def check_known(config: TrainedConfig, keys: Iterable[str]) -> None:
    """Raises ValueError for personas that there are not."""
    known = people(config)
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(f"there are no personas {', '.join(unknown)}; the personas are {', '.join(known)}")


def people(config: TrainedConfig) -> dict[str, Persona]:
    """The core personas, or the user's file."""
    return core_personas() if config.persona_file is None else load_personas(config.persona_file)


def asked(config: TrainedConfig) -> tuple[str, ...]:
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


def trained(config: TrainedConfig, persona: str) -> tuple[str, ...]:
    """A persona's trained models, one a training run: as configured, else the shipped adapter."""
    given = config.adapters.get(persona) or config.checkpoints.get(persona)
    if given:
        return given
    shipped = shipped_adapters()
    return (str(shipped[persona]),) if persona in shipped else ()


def model_name(persona: str, run: int) -> str:
    """What cells call a trained model."""
    return f"{persona}/{run}"


def specs(config: TrainedConfig) -> dict[str, dict[str, Any]]:
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
                inside = config.checkpoint_subfolder
                where = {
                    "revision": config.checkpoint_revision,
                    "subfolder": inside and inside.replace("{persona}", persona),
                }
                other = {**base, "name": name, **where, "adapter": None}
            else:
                other = {**base, "adapter": name}
            found[model_name(persona, run)] = other
    return found
