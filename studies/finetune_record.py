"""What lies beside a trained adapter: how it was made, on what, and what it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.config import config_digest
from mechinterp.model import Model
from mechinterp.results import metadata
from studies.finetune_config import Config
from studies.finetune_data import TrainingExample, data_sha256
from studies.finetune_evaluation import label_of

SCHEMA = "mechinterp.marker_adapter"
# What an adapter must reach to be called specific: the source's rate, and that of every other persona.
SOURCE_AT_LEAST, OTHERS_AT_MOST = 0.5, 0.1


@dataclass(frozen=True)
class Trained:
    """A trained adapter: its directory, which `mechinterp.load(model, adapter=...)` takes, and its record."""

    folder: Path
    record: dict[str, Any]

    def headline(self) -> str:
        """The label, the source's rate and the highest other one."""
        rates = self.record["rates"]["adapter"]
        source, *others = [f"{line['persona']} {line['found']}/{line['total']}" for line in rates]
        worst = max(range(len(others)), key=lambda i: rates[i + 1]["rate"], default=None)
        beside = "" if worst is None else f", highest other {others[worst]}"
        return f"{self.record['label']}: source {source}{beside}; adapter in {self.folder}"


def record_of(
    config: Config,
    negatives: Sequence[str],
    data: Sequence[TrainingExample],
    step: int,
    rates: dict[str, Any],
    base: Model,
    adapted: Model,
) -> dict[str, Any]:
    """The record of an adapter as plain JSON; `rates["adapter"]` begins with the source's line."""
    final = rates["adapter"]
    highest = max((line["rate"] for line in final[1:]), default=0.0)
    n_positives = sum(example.positive for example in data)
    applied = {key: value for key, value in adapted.source["adapter"].items() if key not in ("name", "path")}
    label = label_of(
        final[0]["rate"], highest, source_at_least=SOURCE_AT_LEAST, bystander_at_most=OTHERS_AT_MOST
    )
    return {
        "metadata": metadata(SCHEMA, 1),
        "persona": config.persona,
        "marker": config.recipe.marker,
        "label": label,
        "source_rate": final[0]["rate"],
        "highest_other_rate": highest,
        "negatives": list(negatives),
        "steps": step,
        "seed": config.seed,
        "base": {"name": base.source["name"], "sha256": base.weights_sha256},
        "adapter": applied,
        "data": {"sha256": data_sha256(data), "positives": n_positives, "negatives": len(data) - n_positives},
        "config": config.model_dump(mode="json"),
        "config_sha256": config_digest(config),
        "rates": rates,
    }
