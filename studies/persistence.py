"""Persistence of a steered persona: steer n tokens, let go, and see how long the persona stays (methods.md
10).

For each role, layer, strength and cache policy: runs steered by the role's vector, by a random direction of
equal norm, and by another role's vector; beside them an unsteered floor and a ceiling that is told the role.
All arms draw with the same seeds, so runs are paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from mechinterp.cells import Cell, cell_seed
from mechinterp.chat import Prompt, plain, render
from mechinterp.directions import random_direction
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import Site
from probes.contrast import LastToken
from probes.persist import Release, Trial, release
from probes.roles import RoleVectors, role_vectors
from probes.strength import Calibration, EqualKL, Raw, ResidualNorms, Unit, calibrate, coefficient
from probes.vector_formats import read_vectors
from probes.vectors import Vectors, check_for
from studies.models import ModelConfig, specs
from studies.persistence_page import page as page
from studies.persistence_result import Condition, Persistence, conclude
from studies.personas import Persona, load_personas, load_questions, questions, roles

TITLE = "Persistence of a steered persona"
KINDS = {"raw": Raw, "unit": Unit, "residual_norms": ResidualNorms, "kl": EqualKL}


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
        return self


def people(config: Config) -> dict[str, Persona]:
    """The roles and the control: shipped, or the user's file."""
    return roles() if config.personas is None else load_personas(config.personas)


def asked(config: Config, group: str, n: int) -> tuple[str, ...]:
    """The first n questions of a group."""
    known = questions(group) if config.questions is None else load_questions(config.questions)[group]
    if len(known) < n:
        raise ValueError(f"the group {group!r} holds {len(known)} questions; {n} were asked for")
    return known[:n]


def cells(config: Config) -> list[Cell]:
    """Vectors once; calibrations where strengths are in nats; then references and steered runs."""
    found = [Cell("vectors", "extract", model="model")]
    for layer in config.layers:
        for q in range(config.n_questions):
            args = {"layer": layer, "question": q}
            found.append(Cell(f"reference/layer{layer}/q{q}", "reference", "model", ("vectors",), args))
    for role in config.roles:
        for layer in config.layers:
            for value in config.strengths:
                found += _steered(config, role, layer, value)
    return found


def _steered(config: Config, role: str, layer: int, value: float) -> list[Cell]:
    args = {"role": role, "layer": layer, "strength": value}
    inputs, found = ["vectors"], []
    if config.strength_in == "kl":
        key = f"calibrate/{role}/layer{layer}/{value:g}"
        found.append(Cell(key, "calibrated", "model", ("vectors",), args))
        inputs.append(key)
    for cache in config.caches:
        for q in range(config.n_questions):
            key = f"steer/{role}/layer{layer}/{value:g}/{cache}/q{q}"
            found.append(Cell(key, "steer", "model", tuple(inputs), {**args, "cache": cache, "question": q}))
    return found


@dataclass(frozen=True, eq=False)
class Directions(Result):
    """The roles' vectors at every layer of the study, and the norm that strengths are measured in."""

    vectors: Vectors
    residual_norm: dict[int, float]
    roles: RoleVectors | None

    def __getitem__(self, key: tuple[str, int]) -> torch.Tensor:
        return self.vectors[key]

    def to_dataframe(self):
        return self.vectors.to_dataframe()

    def figure(self):
        return self.vectors.figure() if self.roles is None else self.roles.figure()


@dataclass(frozen=True, eq=False)
class Runs(Result):
    """One cell's runs, with their texts for showing and what steered them."""

    release: Release
    steered_text: tuple[str, ...]
    free_text: tuple[str, ...]
    coefficient: float
    strength_in_norms: float

    def to_dataframe(self):
        return self.release.to_dataframe()

    def figure(self):
        return self.release.figure()


def extract(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Directions:
    """Role minus control at the last prompt token, over the contrast questions; or a file of vectors,
    checked.
    """
    layers = list(range(model.dims.n_layers)) if config.vectors is None else list(config.layers)
    personas = people(config)
    named = {key: personas[key] for key in ("control", *config.roles)}
    prompts = {key: contrast_prompts(config, model, persona) for key, persona in named.items()}
    found = role_vectors(
        model, prompts, control="control", layers=layers, position=LastToken(), seed=config.seed
    )
    norms = {layer: float(found.residual_norm[found.layers.index(layer)]) for layer in config.layers}
    if config.vectors is None:
        return Directions(found.vectors(), norms, found)
    given = read_vectors(config.vectors)
    check_for(given, model.dims, layers=config.layers)
    for role in config.roles:
        given[role, config.layers[0]]  # KeyError names the vectors there are
    return Directions(given, norms, None)


def reference(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Runs:
    """The unsteered floor, and for each role the ceiling that is told the role."""
    personas, question = (
        people(config),
        asked(config, config.question_group, config.n_questions)[cell.args["question"]],
    )
    arms = {"floor": prompt_of(config, model, personas["control"], question)}
    arms |= {f"ceiling:{role}": prompt_of(config, model, personas[role], question) for role in config.roles}
    trials = [Trial(arm, prompt, None, seed) for arm, prompt in arms.items() for seed in seeds(config)]
    return _run(cell, model, inputs, config, trials, "fresh", 0.0, 0.0)


def calibrated(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Calibration:
    """The coefficient at which steered text reaches the asked KL."""
    directions: Directions = inputs["vectors"]
    role, layer = cell.args["role"], cell.args["layer"]
    prompts = [
        prompt_of(config, model, people(config)["control"], q)
        for q in asked(config, config.question_group, config.n_questions)
    ]
    vector = directions[role, layer]
    return calibrate(
        model,
        prompts,
        vector,
        site=Site("resid_post", layer),
        target=EqualKL(cell.args["strength"]),
        start=coefficient(ResidualNorms(0.2), vector, directions.residual_norm[layer]),
        n_tokens=config.n_steer,
        steered_rows=config.steered_rows,
        temperature=config.temperature,
        top_p=config.top_p,
        seeds=seeds(config),
    )


def steer(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Runs:
    """Runs steered by the role, and by random directions of equal norm, a new one a run."""
    directions: Directions = inputs["vectors"]
    role, layer, value = cell.args["role"], cell.args["layer"], cell.args["strength"]
    vector, residual = directions[role, layer].float(), directions.residual_norm[layer]
    scale = _coefficient(config, inputs, vector, residual, value)
    norm = float(vector.norm()) * abs(scale)
    prompt = prompt_of(
        config,
        model,
        people(config)["control"],
        asked(config, config.question_group, config.n_questions)[cell.args["question"]],
    )
    trials = [Trial("steered", prompt, scale * vector, seed) for seed in seeds(config)]
    for seed in seeds(config):
        generator = torch.Generator().manual_seed(cell_seed(seed, f"random/{role}/{layer}", 0))
        trials.append(Trial("random", prompt, random_direction(len(vector), norm, generator), seed))
    return _run(cell, model, inputs, config, trials, cell.args["cache"], scale, norm / residual)


def _coefficient(
    config: Config, inputs: Mapping[str, Any], vector: torch.Tensor, residual: float, value: float
) -> float:
    found = [result for result in inputs.values() if isinstance(result, Calibration)]
    if found:
        return found[0].coefficient
    return coefficient(KINDS[config.strength_in](value), vector, residual)


def _run(
    cell: Cell,
    model: Model,
    inputs: Mapping[str, Any],
    config: Config,
    trials: list[Trial],
    cache: Any,
    scale: float,
    in_norms: float,
) -> Runs:
    layer = cell.args["layer"]
    watched = {role: inputs["vectors"][role, layer] for role in config.roles}
    steered = any(trial.vector is not None for trial in trials)
    found = release(
        model,
        trials,
        watched,
        site=Site("resid_post", layer),
        n_steer=config.n_steer,
        n_free=config.n_free,
        cache=cache,
        steered_rows=config.steered_rows,
        temperature=config.temperature,
        top_p=config.top_p,
        suppress=config.suppress,
        kl=config.kl and steered,
        batch_size=config.batch_size,
    )
    texts = [
        tuple(
            model.decode(row[real & (found.phase == phase)])
            for row, real in zip(found.generated, found.real, strict=True)
        )
        for phase in (0, 1)
    ]
    return Runs(found, texts[0], texts[1], scale, in_norms)


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
    """A question to a persona; models without a system role get the instruction before the question."""
    if not config.chat:
        return plain(model.tokenizer, f"{persona.system_prompt}\n\n{question}\n\n")
    messages = [{"role": "system", "content": persona.system_prompt}, {"role": "user", "content": question}]
    try:
        return render(model.tokenizer, messages)
    except ValueError as error:
        if "prepend_user" not in str(error):
            raise
        return render(model.tokenizer, messages, system_role="prepend_user")


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return specs(config)


def combine(config: Config, results: Mapping[str, Result]) -> Persistence:
    """Every condition's runs beside their floor and ceiling: persistence, half-life, drift and coherence."""
    conditions = []
    for cell in cells(config):
        if cell.task == "steer" and cell.key in results:
            role, layer, question = cell.args["role"], cell.args["layer"], cell.args["question"]
            other = other_role(config, role)
            theirs = None if other is None else cell.key.replace(f"steer/{role}/", f"steer/{other}/", 1)
            conditions.append(
                Condition(
                    role=role,
                    layer=layer,
                    strength=cell.args["strength"],
                    cache=cell.args["cache"],
                    question=question,
                    other=other,
                    cell=cell.key,
                    other_cell=theirs,
                    reference=f"reference/layer{layer}/q{question}",
                )
            )
    names = {key: persona.readable_name for key, persona in people(config).items()}
    vectors: Any = results["vectors"]
    return conclude(conditions, dict(results), names, vectors.roles, n_steer=config.n_steer, seed=config.seed)
