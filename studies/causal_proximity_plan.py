"""What `mechinterp plan` needs to know of the three arms: their adapters and how long they train."""

from __future__ import annotations

import json
from math import gcd
from pathlib import Path

import torch

from mechinterp.model import Model
from studies import finetune_training as training
from studies.causal_proximity_config import Config
from studies.finetune_config import FEW, Lora, shortened
from studies.finetune_lora import trainable
from studies.trained import trained


def planned(config: Config, base: Model, folder: Path) -> tuple[Config, dict[str, float]]:
    """The arms on a stand-in: adapters of its own size, and few steps of each training.

    Returns by how much each task's training was shortened, too.
    """
    adapters = {
        persona: tuple(
            _written(base, _shape(config, path), folder / f"{persona}-{run}")
            for run, path in enumerate(trained(config, persona))
        )
        for persona in config.personas
    }
    percents = [percent for percent in config.percents if percent]
    fewest = {"convergence": 100 // gcd(*percents), "marker_training": FEW, "narrow": FEW}
    few = {name: shortened(getattr(config, name), n) for name, n in fewest.items()}
    tasks = {"converge": "convergence", "mark": "marker_training", "train_narrow": "narrow"}
    settings = {name: one for name, (one, _) in few.items()}
    small = config.model_copy(update={"adapters": adapters, **settings})
    return small, {task: few[name][1] for task, name in tasks.items()}


def _shape(config: Config, path: str) -> Lora:
    """An adapter's shape: as the study demands it, as its own file says, or the usual one."""
    file = Path(path) / "adapter_config.json"
    if config.adapter_lora is not None or not file.is_file():
        return config.adapter_lora or Lora()
    said = json.loads(file.read_text())
    return Lora(
        rank=said["r"], alpha=said["lora_alpha"], rslora=said["use_rslora"], targets=said["target_modules"]
    )


def _written(base: Model, lora: Lora, folder: Path) -> str:
    """An adapter for the stand-in that changes it a little."""
    model = trainable(base, lora, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-3)
    training.save(model, base, folder, dtype=torch.float32)
    return str(folder)
