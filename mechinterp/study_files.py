"""Where studies are: those that ship, with their presets, and a user's own files."""

import importlib
import importlib.util
import sys
from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType

from mechinterp.files import slug

PARTS = ("Config", "cells", "model_specs", "combine", "page")


def known() -> dict[str, str]:
    """The studies by name, with a line each."""
    import studies

    return dict(studies.STUDIES)


def presets(study: str) -> list[str]:
    """The names of a study's presets: those that ship, or `STEM.PRESET.toml` beside a study's file."""
    entries = Path(study).parent.iterdir() if is_file(study) else files("studies.presets").iterdir()
    found = [entry.name for entry in entries]
    stem = Path(study).stem
    return sorted(
        name.split(".")[1]
        for name in found
        if name.startswith(f"{stem}.") and name.endswith(".toml") and name.count(".") == 2
    )


def preset_file(study: str, preset: str) -> AbstractContextManager[Path]:
    """The file of a preset; ValueError names those that are known."""
    if preset not in presets(study):
        known_ones = ", ".join(presets(study)) or "none yet"
        raise ValueError(f"{study} has no preset {preset!r}; its presets are {known_ones}")
    name = f"{Path(study).stem}.{preset}.toml"
    return as_file(Path(study).with_name(name) if is_file(study) else files("studies.presets") / name)


def is_file(study: str) -> bool:
    """Whether a study is named by the path of its file."""
    return study.endswith(".py")


def study_module(study: str) -> tuple[str, ModuleType]:
    """A study's name, as a manifest keeps it, and its module.

    A user's file is imported as a module of its own; its name is its path. Raises ValueError for a study that
    is not known, FileNotFoundError for a file that is not there, and ValueError for one that is no study.
    """
    if not is_file(study):
        if study not in known():
            raise ValueError(
                f"there is no study {study!r}; the studies are {', '.join(known())}, or your own .py file"
            )
        return study, importlib.import_module(f"studies.{study}")
    path = Path(study).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no study at {path}; `mechinterp new study NAME` writes one")
    module = _imported(path)
    missing = [name for name in PARTS if not hasattr(module, name)]
    if missing:
        raise ValueError(
            f"{path} is no study: it has no {', '.join(missing)}; see `mechinterp new study NAME`"
        )
    return str(path), module


def _imported(path: Path) -> ModuleType:
    """The module of a file, imported once. Its name has the file's stem alone: saved results hold it."""
    name = f"study_{slug(path.stem).replace('-', '_').replace('.', '_')}"
    there = sys.modules.get(name)
    if there is not None and there.__file__ == str(path):
        return there
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be imported; give a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
