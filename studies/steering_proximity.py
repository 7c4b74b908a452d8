"""Does bringing the assistant nearer to a source, without training, raise leakage to it? (methods 12.9)

The centred cosine of assistant and source is moved by adding a vector, solved for a requested value and
verified by reading the centroid again; leakage, the source's own rate and damage are measured at every dose,
beside random vectors and vectors to another persona of the same norm.
"""

from collections.abc import Mapping
from typing import Any

from mechinterp.cells import Cell
from studies.steering_proximity_cells import DIRECTIONS, SOURCE, dose, draw_line
from studies.steering_proximity_config import Config
from studies.steering_proximity_page import page
from studies.steering_proximity_result import Steered, SteeringProximity
from studies.trained import BASE, model_name, specs, trained

__all__ = ["Config", "cells", "combine", "dose", "draw_line", "model_specs", "page"]


def cells(config: Config) -> list[Cell]:
    """Per trained model its line, then every direction and dose; dose 0 is the same for all directions."""
    found = []
    for source in config.personas:
        for run in range(len(trained(config, source))):
            args, name = {"source": source, "run": run}, model_name(source, run)
            line = f"line/{source}/run{run}"
            found.append(Cell(line, "draw_line", name, (), args))
            for direction in DIRECTIONS:
                for one in config.doses:
                    if one == 0 and direction != SOURCE:
                        continue
                    key = f"dose/{source}/run{run}/{direction}/{one:g}"
                    found.append(
                        Cell(key, "dose", name, (line,), {**args, "direction": direction, "dose": one})
                    )
    return found


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return {name: spec for name, spec in specs(config).items() if name != BASE}


def combine(config: Config, results: Mapping[str, Any]) -> SteeringProximity:
    """Every source's trained models with all their doses."""
    every, sources = cells(config), []
    for source in config.personas:
        for run in range(len(trained(config, source))):
            mine = [c for c in every if c.args["source"] == source and c.args["run"] == run]
            line = next(results[c.key] for c in mine if c.task == "draw_line")
            dosed = tuple(results[c.key] for c in mine if c.task == "dose")
            sources.append(Steered(source, run, line, dosed))
    return SteeringProximity(config.model, config.marker, config.seeds, tuple(sources))
