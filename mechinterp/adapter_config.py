"""What a peft adapter's config says, read strictly: nothing in it that changes the model is passed over.

peft fills a missing entry with its default and drops one that it does not know; here both are refused.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.json_io import read_json

BASE_KEY = "mechinterp_base_sha256"
SIDE_FILE = "mechinterp.json"
# Starts that leave the base's weights alone; PiSSA, OLoRA, CorDA, LoftQ... subtract theirs from them.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
FOR_PEFT = (
    "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "modules_to_save", "fan_in_fan_out",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
)  # fmt: skip
WITHOUT_EFFECT = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "bias", "init_lora_weights", "eva_config", "megatron_core",
    "qalora_group_size", BASE_KEY,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class AdapterConfig:
    """What `adapter_config.json` says that the adapter computes, and the base it was trained on."""

    entries: dict[str, Any]
    base_name: str | None
    base_sha256: str | None

    @property
    def rslora(self) -> bool:
        return bool(self.entries.get("use_rslora"))

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        return tuple(self.entries.get("modules_to_save") or ())

    def rank_of(self, name: str) -> int:
        return _by_pattern(self.entries.get("rank_pattern"), name, self.entries["r"])

    def alpha_of(self, name: str) -> float:
        return _by_pattern(self.entries.get("alpha_pattern"), name, self.entries["lora_alpha"])

    def scaling_of(self, name: str) -> float:
        """alpha / sqrt(r) with rsLoRA, alpha / r without (methods.md 2.1)."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.rslora else rank)

    def unmatched(self, found: Iterable[str]) -> list[str]:
        """The targets that the config names one by one and that none of the modules `found` is."""
        targets = self.entries["target_modules"]
        wanted = [] if isinstance(targets, str) else list(targets)
        names = list(found)
        return sorted(t for t in wanted if not any(n == t or n.endswith(f".{t}") for n in names))

    def for_peft(self) -> Any:
        """peft's own config with the same effect; LoRA tensors start empty and dropout is off."""
        from peft import LoraConfig

        entries = {key: self.entries[key] for key in FOR_PEFT if self.entries.get(key) is not None}
        return LoraConfig(**entries, inference_mode=True, init_lora_weights=True)


def read_config(path: Path) -> AdapterConfig:
    """The config in an adapter directory. Raises ValueError for what is more than plain LoRA, by name."""
    file = path / "adapter_config.json"
    entries = read_json(file)
    if not isinstance(entries, dict) or entries.get("peft_type") != "LORA":
        kind = entries.get("peft_type") if isinstance(entries, dict) else type(entries).__name__
        raise ValueError(
            f"{file} describes {kind!r}; only LORA adapters are supported: merge it and load the merged model"
        )
    for key in ("r", "lora_alpha", "target_modules"):
        if entries.get(key) in (None, "", []):
            raise ValueError(f"{file} has no {key}; put in the value that the adapter was trained with")
    _check_entries(entries, file)
    side = path / SIDE_FILE
    recorded = read_json(side) if side.is_file() else {}
    return AdapterConfig(
        entries, entries.get("base_model_name_or_path"), entries.get(BASE_KEY) or recorded.get(BASE_KEY)
    )


def _check_entries(entries: dict[str, Any], file: Path) -> None:
    start = entries.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ValueError(
            f"{file} has init_lora_weights={start!r}, which changed the base's weights before training,"
            " and here they are shared; save the adapter with path_initial_model_for_weight_conversion"
        )
    if entries.get("bias", "none") != "none":
        raise ValueError(
            f"{file} has bias={entries['bias']!r}, which trained the base's own biases, and here they are"
            " shared; merge the adapter (merge_and_unload) and load the merged model"
        )
    for key, value in entries.items():
        if value and key not in FOR_PEFT and key not in WITHOUT_EFFECT:
            raise ValueError(
                f"{file} sets {key}={value!r}, which is more than plain LoRA; merge the adapter"
                " (merge_and_unload) and load the merged model"
            )


def _by_pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """The first pattern that is the end of a module's path, as peft matches them."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)
