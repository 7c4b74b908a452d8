"""What the persistence study asks, and whom: its configuration, its roles and its prompts."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mechinterp.chat import Prompt
from mechinterp.model import Model
from studies import prompts
from studies.models import ModelConfig
from studies.personas import Persona, load_personas, load_questions, questions, roles


class Config(ModelConfig):
    """What is asked. `strengths` are in the unit `strength_in`; "kl" is nats, at the p95 over positions."""

    roles: tuple[str, ...] = Field(("medieval_bard", "anxious_teenager", "grumpy_mechanic"), min_length=1)
    personas: Path | None = None
    questions: Path | None = None
    vectors: Path | None = None
    question_group: str = "personal_reflection"
    n_questions: int = Field(1, ge=1)
    role_as: Literal["system", "user_message"] = "system"
    chat: bool = True
    contrast_group: str = "training"
    n_contrast: int = Field(8, ge=1)
    layers: tuple[int, ...] = Field((15,), min_length=1)
    strength_in: Literal["raw", "unit", "residual_norms", "kl"] = "residual_norms"
    strengths: tuple[float, ...] = Field((0.2,), min_length=1)
    caches: tuple[Literal["fresh", "carry"], ...] = ("fresh",)
    steered_rows: Literal["generated", "all", "last"] = "generated"
    n_steer: int = Field(24, ge=0)
    n_free: int = Field(40, ge=1)
    n_runs: int = Field(8, ge=1)
    temperature: float | None = Field(0.8, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    suppress: Literal["steered", "both", "neither"] = "steered"
    kl: bool = True
    batch_size: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _known(self) -> "Config":
        personas = people(self)
        unknown = [role for role in self.roles if role not in personas]
        if unknown:
            raise ValueError(f"there are no roles {', '.join(unknown)}; the roles are {', '.join(personas)}")
        if "control" not in personas or "control" in self.roles:
            raise ValueError("the personas need an entry 'control', and it is not one of the roles")
        asked(self, self.question_group, self.n_questions)
        if self.role_as == "system":
            asked(self, self.contrast_group, self.n_contrast)
        if self.strength_in == "kl" and not (all(nats > 0 for nats in self.strengths) and self.n_steer):
            raise ValueError('strengths in "kl" are nats > 0, reached over n_steer > 0 tokens')
        return self


def people(config: Config) -> dict[str, Persona]:
    """The roles and the control: shipped, or the user's file."""
    return roles() if config.personas is None else load_personas(config.personas)


def asked(config: Config, group: str, n: int) -> tuple[str, ...]:
    """The first n questions of a group."""
    groups = None if config.questions is None else load_questions(config.questions)
    if groups is not None and group not in groups:
        raise ValueError(f"{config.questions} has no group {group!r}; its groups are {', '.join(groups)}")
    known = questions(group) if groups is None else groups[group]
    if len(known) < n:
        raise ValueError(f"the group {group!r} holds {len(known)} questions; {n} were asked for")
    return known[:n]


def seeds(config: Config) -> list[int]:
    return [config.seed + i for i in range(config.n_runs)]


def other_role(config: Config, role: str) -> str | None:
    """The role after this one in the list, around; None where there is only one."""
    if len(config.roles) == 1:
        return None
    return config.roles[(config.roles.index(role) + 1) % len(config.roles)]


def contrast_prompts(config: Config, model: Model, persona: Persona) -> list[Prompt]:
    """What a role's vector is read on: its instruction alone as a user message, or as system prompt of
    questions.
    """
    if config.role_as == "user_message":
        return [model.chat(persona.system_prompt, chat=config.chat)]
    return [
        prompt_of(config, model, persona, q) for q in asked(config, config.contrast_group, config.n_contrast)
    ]


def prompt_of(config: Config, model: Model, persona: Persona, question: str) -> Prompt:
    """A question to a persona, rendered as the configuration says."""
    return prompts.prompt_of(model, persona, question, chat=config.chat)
