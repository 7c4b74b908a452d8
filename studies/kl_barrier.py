"""A KL barrier in a training loop: rounds of SFT on the model's own samples, with and without it.

Every arm begins with the base's samples, is trained on them, sampled, and trained on its own samples again;
arms differ in the barrier alone (methods 12.12). What is expected is written down in kl_barrier_result, and
each expectation is reported as met or not.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.cells import Cell
from mechinterp.divergence import aggregate
from mechinterp.results import Result
from studies.finetune_barrier import AGGREGATES
from studies.kl_barrier_cells import train, write
from studies.kl_barrier_config import Config, planned
from studies.kl_barrier_page import page
from studies.kl_barrier_result import KlBarrier, Stage, judge
from studies.models import specs
from studies.personas import questions

__all__ = ["Config", "cells", "combine", "model_specs", "page", "planned", "train", "write"]

BASE = "samples/base"


def cells(config: Config) -> list[Cell]:
    """The base's samples, then every arm's rounds: training, and samples of what came of it."""
    found = [Cell(BASE, "write", "model", (), {"round": 0})]
    for arm in config.arms:
        samples, before = BASE, ()
        for number in range(1, config.rounds + 1):
            args = {"arm": arm.kind, "round": number}
            trained, written = (f"{what}/{arm.kind}/round{number}" for what in ("train", "samples"))
            found.append(Cell(trained, "train", "model", (samples, *before), args))
            found.append(Cell(written, "write", "model", (trained,), args))
            samples, before = written, (trained,)
    return found


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return specs(config)


def combine(config: Config, results: Mapping[str, Result]) -> KlBarrier:
    """Every arm after every round, beside what was expected."""
    found: Mapping[str, Any] = results
    stages = tuple(
        stage_of(arm.kind, n, found[f"train/{arm.kind}/round{n}"], found[f"samples/{arm.kind}/round{n}"])
        for arm in config.arms
        for n in range(1, config.rounds + 1)
    )
    thresholds = {arm.kind: arm.threshold for arm in config.arms if arm.kind != "off"}
    return KlBarrier(
        model=config.model,
        seed=config.seed,
        thresholds=thresholds,
        stages=stages,
        base_repetition=found[BASE].repetition,
        expectations=judge(stages, thresholds),
        samples=tuple(s for arm in config.arms for s in _samples(config, arm.kind, found)),
    )


def stage_of(arm: str, number: int, trained: Any, written: Any) -> Stage:
    """What is concluded from one round of one arm."""
    logged = [entry for entry in trained.log if "fired" in entry]
    losses = [entry["train_loss"] for entry in trained.log if "train_loss" in entry]
    return Stage(
        arm=arm,
        round=number,
        sampled=torch.stack(
            [aggregate(written.divergence, how, mask=written.kept) for how in AGGREGATES], -1
        ),
        batches=in_training(logged),
        repetition=written.repetition,
        question=written.question,
        fired=int(sum(entry["fired"] for entry in logged)),
        seen=int(sum(entry["completions"] for entry in logged)),
        stopped=written.stopped,
        loss=losses[-1] if losses else None,
    )


def in_training(logged: list[dict[str, float]]) -> Float[Tensor, "aggregate"] | None:
    """The aggregates' means over batches, from the training's log."""
    if not logged:
        return None
    return torch.tensor([[entry[f"kl_{how}"] for how in AGGREGATES] for entry in logged]).mean(0)


def _samples(config: Config, arm: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """After the last round, the first sample and the one that lies farthest out at one token."""
    written = found[f"samples/{arm}/round{config.rounds}"]
    largest = written.divergence.amax(1)
    asked = questions(config.question_group)
    chosen = {"the first sample": 0, "the largest divergence at one token": int(largest.argmax())}
    return [
        {
            "arm": arm,
            "question": asked[int(written.question[place])],
            "text": written.shown[place],
            "largest": float(largest[place]),
            "repetition": float(written.repetition[place]),
            "reason": reason,
        }
        for reason, place in chosen.items()
    ]
