"""The hook layer and the maths: knows nothing of personas or markers. `import mechinterp as mi`.

Names are loaded when they are first used: importing the package costs milliseconds and no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "loading": ("load", "merge_adapter", "with_adapter", "wrap"),
    "activations": ("Activations", "State"),
    "model": ("Model",),
    "sites": ("Site",),
    "chat": ("Prompt", "insert_question", "plain", "render"),
    "segmentation": ("Segmentation",),
    "interventions": ("Add", "Apply", "Clamp", "ProjectOut", "Replace", "Rotate"),
    "knockout": ("KnockOut",),
    "where": (
        "At", "Constant", "Everywhere", "FirstN", "From", "Generated", "InPrompt", "InRegion", "Newest",
        "Ramp", "WholePrompt",
    ),
    "sampling": ("Phase", "Samples", "Watch", "sample", "stop_ids"),
    "results": ("Result", "load_result"),
    "coloured_text": ("pieces", "token_view"),
    "cells": ("Cell",),
    "runs": ("Run",),
    "certificate": ("certify",),
}  # fmt: skip
_OWNER = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *_OWNER]

if TYPE_CHECKING:
    from mechinterp.activations import Activations as Activations
    from mechinterp.activations import State as State
    from mechinterp.cells import Cell as Cell
    from mechinterp.certificate import certify as certify
    from mechinterp.chat import Prompt as Prompt
    from mechinterp.chat import insert_question as insert_question
    from mechinterp.chat import plain as plain
    from mechinterp.chat import render as render
    from mechinterp.coloured_text import pieces as pieces
    from mechinterp.coloured_text import token_view as token_view
    from mechinterp.interventions import Add as Add
    from mechinterp.interventions import Apply as Apply
    from mechinterp.interventions import Clamp as Clamp
    from mechinterp.interventions import ProjectOut as ProjectOut
    from mechinterp.interventions import Replace as Replace
    from mechinterp.interventions import Rotate as Rotate
    from mechinterp.knockout import KnockOut as KnockOut
    from mechinterp.loading import load as load
    from mechinterp.loading import merge_adapter as merge_adapter
    from mechinterp.loading import with_adapter as with_adapter
    from mechinterp.loading import wrap as wrap
    from mechinterp.model import Model as Model
    from mechinterp.results import Result as Result
    from mechinterp.results import load_result as load_result
    from mechinterp.runs import Run as Run
    from mechinterp.sampling import Phase as Phase
    from mechinterp.sampling import Samples as Samples
    from mechinterp.sampling import Watch as Watch
    from mechinterp.sampling import sample as sample
    from mechinterp.sampling import stop_ids as stop_ids
    from mechinterp.segmentation import Segmentation as Segmentation
    from mechinterp.sites import Site as Site
    from mechinterp.where import At as At
    from mechinterp.where import Constant as Constant
    from mechinterp.where import Everywhere as Everywhere
    from mechinterp.where import FirstN as FirstN
    from mechinterp.where import From as From
    from mechinterp.where import Generated as Generated
    from mechinterp.where import InPrompt as InPrompt
    from mechinterp.where import InRegion as InRegion
    from mechinterp.where import Newest as Newest
    from mechinterp.where import Ramp as Ramp
    from mechinterp.where import WholePrompt as WholePrompt


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"mechinterp has no {name!r}; it has {', '.join(sorted(_OWNER))}")
    return getattr(importlib.import_module(f"mechinterp.{_OWNER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
