"""Do prompt effect, attention at the marker, leakage and divergence go together over personas?

Finished runs of the studies are read again, without any model, and joined: one row a persona.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechinterp.cells import Cell
from mechinterp.results import Result
from mechinterp.running import finished
from studies.persona_table_columns import OF
from studies.persona_table_config import Config
from studies.persona_table_page import page
from studies.persona_table_result import PersonaTable, conclude

__all__ = ["Config", "cells", "combine", "join", "model_specs", "page"]


def cells(config: Config) -> list[Cell]:
    """One: the join computes nothing that is worth resuming."""
    return [Cell("table", "join", None)]


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return {}


def join(cell: Cell, model: None, inputs: Mapping[str, Result], config: Config) -> PersonaTable:
    """Reads every run again. Raises ValueError for a run of another study, an unfinished one, and trained
    models of one name with different weights.
    """
    found, weights = {}, {}
    for study in OF:
        folder: Path | None = getattr(config, study)
        if folder is None:
            continue
        asked, opened, found[study] = finished(folder)
        if asked.study != study:
            raise ValueError(f"{folder} is a run of {asked.study}; give one of {study}")
        for name, digest in opened.manifest.models.items():
            if weights.setdefault(name, digest) != digest:
                raise ValueError(f"{folder} has another {name} than the runs before it: the weights differ")
    return conclude(found, fewest=config.fewest)


def combine(config: Config, results: Mapping[str, Any]) -> PersonaTable:
    return results["table"]
