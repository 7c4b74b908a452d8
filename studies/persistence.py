"""Persistence of a steered persona: steer n tokens, let go, and see how long it stays (methods.md 10).

For each role, layer, strength and cache policy: runs steered by the role's vector and by random directions of
equal norm; beside them an unsteered floor, a ceiling that is told the role, and the runs that another role's
vector steered, read on this role's. All arms draw with the same seeds, so runs are paired.
"""

from collections.abc import Mapping
from typing import Any

from mechinterp.cells import Cell
from mechinterp.results import Result
from studies.models import specs
from studies.persistence_config import Config, other_role, people
from studies.persistence_page import page
from studies.persistence_result import Condition, Persistence, conclude
from studies.persistence_runs import calibrated, extract, reference, steer

__all__ = ["Config", "calibrated", "cells", "combine", "extract", "model_specs", "page", "reference", "steer"]


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
            theirs = theirs if theirs in results else None  # not run yet
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
