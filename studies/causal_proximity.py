"""Does moving the assistant's representation towards a persona raise leakage of its marker? (methods 7)

Three arms. A: the source's marker adapter is merged, then the assistant is trained on answers in the source's
voice. B, the critical one: that training first, then, at each of its checkpoints, the marker. C: as A, with
answers in the assistant's own voice. Every trajectory has its 0 %, and every merge is measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mechinterp.cells import Cell
from studies.arms_records import ORIGINAL
from studies.causal_proximity_cells import answer, converge, evaluate, mark, measure_adapter, train_narrow
from studies.causal_proximity_config import RETRAINED, Config, adapters_of
from studies.causal_proximity_page import page
from studies.causal_proximity_plan import planned
from studies.causal_proximity_publish import publish
from studies.causal_proximity_result import CausalProximity, Checkpoint
from studies.finetune_config import Recipe
from studies.finetune_data import ASSISTANT
from studies.finetune_recipe import negative_personas
from studies.targets import targets
from studies.trained import BASE, specs

__all__ = [
    "Config", "answer", "cells", "combine", "converge", "evaluate", "mark", "measure_adapter", "model_specs",
    "page", "planned", "publish", "train_narrow",
]  # fmt: skip


def cells(config: Config) -> list[Cell]:
    """Own answers, then every source's arms, seed by seed."""
    found = list(_answers(config))
    for source in config.personas:
        for seed in config.seeds:
            if "B" in config.arms:
                found += _convergence_first(config, source, seed)
            if {"A", "C"} & set(config.arms):
                for kind, run in adapters_of(config, source):
                    found += _marker_first(config, source, kind, run, seed)
    return found


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return specs(config)


def combine(config: Config, results: Mapping[str, Any]) -> CausalProximity:
    """Every checkpoint of every arm, with what each merge measured."""
    checkpoints, adapters, merges = [], [], []
    for cell in cells(config):
        if cell.task == "evaluate":
            checkpoints += [_checkpoint(cell, arm, results[cell.key]) for arm in _arms_of(cell, config)]
        elif cell.task == "measure_adapter":
            adapters.append(_checkpoint(cell, "A", results[cell.key]))
        if cell.task in ("evaluate", "mark") and results[cell.key].merge is not None:
            merges.append((cell.key, results[cell.key].merge))
    return CausalProximity(
        model=config.model,
        marker=config.marker,
        names=tuple(targets(config)),
        checkpoints=tuple(checkpoints),
        adapters=tuple(adapters),
        merges=tuple(merges),
        seed=config.seed,
    )


def _checkpoint(cell: Cell, arm: str, measured: Any) -> Checkpoint:
    a = cell.args
    return Checkpoint(arm, a["source"], a["adapter"], a["run"], a["seed"], a["percent"], measured)


def _arms_of(cell: Cell, config: Config) -> tuple[str, ...]:
    """The merged marker before any training stands in both arms that start from it."""
    if cell.args["arm"] == "B" or cell.args["percent"]:
        return (cell.args["arm"],)
    return tuple(arm for arm in config.arms if arm != "B")


def _answers(config: Config) -> Iterator[Cell]:
    """Whose own answers are trained on, and how many to a question."""
    draws: dict[str, int] = {}
    wanted = [(source, config.n_convergence_draws) for source in config.personas]
    wanted += [(ASSISTANT, config.n_convergence_draws)] if "C" in config.arms else []
    for recipe, sources in _recipes(config):
        wanted += [(p, recipe.n_draws) for s in sources for p in (s, *negatives(config, recipe, s))]
    for persona, n in wanted:
        draws[persona] = max(n, draws.get(persona, 0))
    for persona, n in draws.items():
        yield Cell(f"answers/{persona}", "answer", BASE, (), {"persona": persona, "n_draws": n})


def _recipes(config: Config) -> list[tuple[Recipe, tuple[str, ...]]]:
    """The marker trainings of the study: their data, and the sources that have them."""
    return [
        (config.recipe, config.personas if "B" in config.arms else ()),
        (config.narrow_recipe, config.retrained),
    ]


def negatives(config: Config, recipe: Recipe, source: str) -> tuple[str, ...]:
    """Those named but the source itself, or drawn from the targets."""
    found = negative_personas(recipe, tuple(targets(config)), source, config.seed)
    return tuple(name for name in found if name != source)


def _own(source: str, negatives: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"answers/{persona}" for persona in (source, *negatives))


def _convergence_first(config: Config, source: str, seed: int) -> Iterator[Cell]:
    """Arm B: one convergence training on the base, and at each checkpoint a marker and its measurement."""
    where = f"{source}/seed{seed}"
    base = {"arm": "B", "source": source, "adapter": ORIGINAL, "run": 0, "seed": seed}
    converged, others = f"converge/B/{where}", negatives(config, config.recipe, source)
    yield Cell(converged, "converge", BASE, (f"answers/{source}",), {**base, "voice": source})
    for percent in config.percents:
        args = {**base, "percent": percent}
        before = (converged,) if percent else ()
        marker = f"marker/B/{where}/{percent}"
        yield Cell(
            marker, "mark", BASE, (*before, *_own(source, others)), {**args, "negatives": list(others)}
        )
        yield Cell(f"checkpoint/B/{where}/{percent}", "evaluate", BASE, (*before, marker), args)


def _marker_first(config: Config, source: str, kind: str, run: int, seed: int) -> Iterator[Cell]:
    """Arms A and C: the adapter, on and merged, then a training in each voice and its checkpoints."""
    where = f"{source}/{kind}/run{run}/seed{seed}"
    base = {"source": source, "adapter": kind, "run": run, "seed": seed}
    trained: tuple[str, ...] = ()
    if kind == RETRAINED:
        trained, others = (f"marker/{where}",), negatives(config, config.narrow_recipe, source)
        args = {**base, "negatives": list(others)}
        yield Cell(trained[0], "train_narrow", BASE, _own(source, others), args)
    yield Cell(f"adapter/{where}", "measure_adapter", BASE, trained, {**base, "percent": 0})
    start = f"checkpoint/merged/{where}/0"
    yield Cell(start, "evaluate", BASE, trained, {**base, "arm": "merged", "percent": 0})
    for arm, voice in (("A", source), ("C", ASSISTANT)):
        if arm not in config.arms:
            continue
        converged = f"converge/{arm}/{where}"
        args = {**base, "arm": arm}
        # The measured merge comes first: a marker that it lost is not trained on.
        inputs = (start, f"answers/{voice}", *trained)
        yield Cell(converged, "converge", BASE, inputs, {**args, "voice": voice})
        for percent in config.percents[1:]:
            yield Cell(
                f"checkpoint/{arm}/{where}/{percent}", "evaluate", BASE, (converged, *trained),
                {**args, "percent": percent},
            )  # fmt: skip
