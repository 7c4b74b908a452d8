"""The work of the persistence study's cells: vectors, references, calibrations and steered runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mechinterp.cells import Cell, cell_seed
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
from studies.persistence_config import Config, asked, contrast_prompts, people, prompt_of, seeds

KINDS = {"raw": Raw, "unit": Unit, "residual_norms": ResidualNorms, "kl": EqualKL}


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
    for layer in config.layers:
        model.check_site(Site("resid_post", layer))
    given = None if config.vectors is None else _read(config, config.vectors, model)
    layers = list(range(model.dims.n_layers)) if given is None else list(config.layers)
    personas = people(config)
    named = {key: personas[key] for key in ("control", *config.roles)}
    prompts = {key: contrast_prompts(config, model, persona) for key, persona in named.items()}
    found = role_vectors(
        model, prompts, control="control", layers=layers, position=LastToken(), seed=config.seed
    )
    norms = {layer: float(found.residual_norm[found.layers.index(layer)]) for layer in config.layers}
    return Directions(found.vectors(), norms, found) if given is None else Directions(given, norms, None)


def _read(config: Config, path: Path, model: Model) -> Vectors:
    """The user's vectors, refused before any pass where they do not fit the model or lack a role."""
    given = read_vectors(path)
    check_for(given, model.dims, layers=config.layers)
    for role in config.roles:
        given[role, config.layers[0]]  # ValueError names the vectors there are
    return given


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
        suppress=config.suppress,
        seeds=seeds(config),
        batch_size=config.batch_size,
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
        push = random_direction(len(vector), norm, generator) if norm else None
        trials.append(Trial("random", prompt, push, seed))
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
