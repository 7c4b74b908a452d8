"""Where is the marker decided, what writes it, and which states bring it from the trained model to the base?

On the answers of a finished attention run: the lens and the parts that write the marker at the row that
decided it, states carried from trained to base and back, what is lost without parts of a block or without a
look at the system prompt, and whose stream and whose weights change where the row looks (methods 12.1 to
12.4, 12.11).
"""

from collections.abc import Mapping
from typing import Any

from mechinterp.cells import Cell
from studies.marker_locus_cells import (
    ABLATIONS,
    ablated,
    attributed,
    carried,
    carried_token,
    chosen,
    knocked,
    lensed,
    swap,
    taken,
)
from studies.marker_locus_config import Config
from studies.marker_locus_page import page
from studies.marker_locus_result import Locus, MarkerLocus
from studies.trained import BASE, model_name, specs
from studies.zlt_attention import text_cells, text_set
from studies.zlt_attention_cells import generate
from studies.zlt_attention_config import replicates

__all__ = [
    "Config",
    "ablated",
    "attributed",
    "carried",
    "carried_token",
    "cells",
    "chosen",
    "combine",
    "generate",
    "knocked",
    "lensed",
    "model_specs",
    "page",
    "swap",
    "taken",
]
DIRECTIONS = ("into base", "into trained")
TEXTS = ("taken", "generate", "chosen")  # tasks that make what the others read


def cells(config: Config) -> list[Cell]:
    """Per persona, training run and seed: its answers, then every measurement of them on its own."""
    found = []
    for persona in config.personas:
        for run, seed in replicates(config, persona):
            args = {"persona": persona, "run": run, "seed": seed}
            where, pair = text_set(args), _pair(persona, run)
            texts = text_cells(config, args)
            read = Cell(f"chosen/{where}", "chosen", pair, tuple(cell.key for cell in texts), args)
            found += [*texts, read]
            asked = [("lens", "lensed", {}), ("attribution", "attributed", {}), ("swap", "swap", {})]
            asked += [(f"carried {way}", "carried", {"direction": way}) for way in DIRECTIONS]
            asked += [(f"token {way}", "carried_token", {"direction": way}) for way in DIRECTIONS]
            asked += [
                (f"{part} {donor}", "ablated", {"part": part, "donor": donor}) for part, donor in ABLATIONS
            ]
            asked += [(f"knocked {reader}", "knocked", {"reader": reader}) for reader in ("trained", BASE)]
            for name, task, more in asked:
                found.append(Cell(f"{name}/{where}", task, pair, (read.key,), {**args, **more}))
    return found


def _pair(persona: str, run: int) -> str:
    return f"{model_name(persona, run)} and {BASE}"


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    """The trained models and the base, and each trained one together with it."""
    found = specs(config)
    pairs = {
        _pair(persona, run): {"pair": (model_name(persona, run), BASE)}
        for persona in config.personas
        for run, _ in replicates(config, persona)
    }
    return {**found, **pairs}


def combine(config: Config, results: Mapping[str, Any]) -> MarkerLocus:
    """Every text set whose measurements are all there. Raises ValueError where there is none."""
    loci, every = [], cells(config)
    for persona in config.personas:
        for run, seed in replicates(config, persona):
            end = "/" + text_set({"persona": persona, "run": run, "seed": seed})
            asked = [cell.key for cell in every if cell.key.endswith(end) and cell.task not in TEXTS]
            if all(key in results for key in asked):
                loci.append(
                    _locus(persona, run, seed, {key.removesuffix(end): results[key] for key in asked})
                )
    if not loci:
        raise ValueError("no text set has all its measurements yet; run the study further, without --limit")
    return MarkerLocus(model=config.model, marker=config.marker, loci=tuple(loci))


def _locus(persona: str, run: int, seed: int, own: Mapping[str, Any]) -> Locus:
    ways = {way: own[f"carried {way}"] for way in DIRECTIONS}
    return Locus(
        persona=persona,
        run=run,
        seed=seed,
        lens=own["lens"],
        attribution=own["attribution"],
        swap=own["swap"],
        into_base=ways["into base"],
        into_trained=ways["into trained"],
        token_into_base=own["token into base"],
        token_into_trained=own["token into trained"],
        ablations={f"{part} {donor}": own[f"{part} {donor}"] for part, donor in ABLATIONS},
        knocked_trained=own["knocked trained"],
        knocked_base=own[f"knocked {BASE}"],
    )
