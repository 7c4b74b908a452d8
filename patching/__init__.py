"""Change a model: from (source, target, tokens, metric) to a grid of effects. Names load when first used."""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "metrics": ("Metric", "kl_to", "log_prob", "logit_difference", "probability", "rank"),
    "cases": ("Case",),
    "cells": ("Edit", "untouched"),
    "sweep": ("Swept", "sweep_cells"),
    "donors": ("FromRun", "MeanOver", "Zero"),
    "grid": ("PatchGrid",),
    "residual": ("patch_cases", "patch_residual"),
    "components": ("ablate", "from_on", "patch_heads", "up_to"),
    "gradients": ("Attribution", "attribution_patching"),
    "knockout": ("knock_out", "knock_out_cases", "sliding"),
}
_OWNER = {name: module for module, names in _HOME.items() for name in names}
__all__ = list(_OWNER)

if TYPE_CHECKING:
    from patching.cases import Case as Case
    from patching.cells import Edit as Edit
    from patching.cells import untouched as untouched
    from patching.components import ablate as ablate
    from patching.components import from_on as from_on
    from patching.components import patch_heads as patch_heads
    from patching.components import up_to as up_to
    from patching.donors import FromRun as FromRun
    from patching.donors import MeanOver as MeanOver
    from patching.donors import Zero as Zero
    from patching.gradients import Attribution as Attribution
    from patching.gradients import attribution_patching as attribution_patching
    from patching.grid import PatchGrid as PatchGrid
    from patching.knockout import knock_out as knock_out
    from patching.knockout import knock_out_cases as knock_out_cases
    from patching.knockout import sliding as sliding
    from patching.metrics import Metric as Metric
    from patching.metrics import kl_to as kl_to
    from patching.metrics import log_prob as log_prob
    from patching.metrics import logit_difference as logit_difference
    from patching.metrics import probability as probability
    from patching.metrics import rank as rank
    from patching.residual import patch_cases as patch_cases
    from patching.residual import patch_residual as patch_residual
    from patching.sweep import Swept as Swept
    from patching.sweep import sweep_cells as sweep_cells


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"patching has no {name!r}; it has {', '.join(sorted(_OWNER))}")
    return getattr(importlib.import_module(f"patching.{_OWNER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
