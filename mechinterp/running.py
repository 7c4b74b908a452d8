"""Runs a study in a directory: its cells, resumed where they stopped, then its report.

A study is a module with `Config`, `cells(config)`, `model_specs(config)`, the functions that its cells name,
`combine(config, results)` and `page(config, result, run)`; one whose records have a published schema has
`publish(config, result, folder)` as well. Nothing here knows which study it is.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp import cells as cell_lists
from mechinterp import engine
from mechinterp.cells import Cell
from mechinterp.config import StudyConfig, load_config
from mechinterp.export import FileFormat
from mechinterp.files import file_sha256, folder_sha256
from mechinterp.results import Result
from mechinterp.runs import Run, Status
from mechinterp.study_files import is_file, preset_file, study_module
from mechinterp.study_models import loader, weights_of

PUBLISHED = "published"  # the folder of a run that holds its records in the published schemas


@dataclass(frozen=True)
class Asked:
    """A study with its configuration: what the command line and a notebook both start from."""

    study: str
    module: Any
    config: Any

    def cells(self, limit: int | None = None) -> list[Cell]:
        found = self.module.cells(self.config)
        return found if limit is None else cell_lists.select(found, limit)

    def loader(self) -> Callable[[str], Any]:
        """Loads the study's models by their names."""
        return loader(self.module.model_specs(self.config))

    def task(self, cell: Cell, model: Any, inputs: dict[str, Result]) -> Result:
        """What the study does in a cell."""
        return getattr(self.module, cell.task)(cell, model, inputs, self.config)


def ask(
    study: str, *, preset: str | None = None, config: Path | None = None, overrides: Sequence[str] = ()
) -> Asked:
    """A study's configuration from a preset or a file and `key=value` overrides; ValueError says what is
    known. `study` is the name of one or the path of a file that is one.
    """
    if preset is not None and config is not None:
        raise ValueError("give --preset or --config, not both; --set changes single values of either")
    name, module = study_module(study)
    if preset is None:
        return Asked(name, module, load_config(module.Config, config, overrides))
    with preset_file(name, preset) as path:
        return Asked(name, module, load_config(module.Config, path, overrides))


def run(
    asked: Asked,
    folder: Path,
    *,
    limit: int | None = None,
    new: bool = False,
    progress: bool = True,
    report: bool = True,
    formats: Sequence[FileFormat] = (),
    wait: float = 0.0,
) -> Any:
    """Runs what is unfinished and returns the combined result; None where `limit` left the study unfinished.

    `wait` is how many seconds others have to leave the directory. Raises what `Run.open` refuses: another
    config, weights, seed or thread count in the same directory.
    """
    with opened(asked, folder, new=new, wait=wait) as alone, engine.interruptible(alone):
        results = engine.execute(
            alone, asked.cells(limit), resolve_model=asked.loader(), task=asked.task, progress=progress
        )
        if len(results) < len(asked.cells()):
            return None
        result = asked.module.combine(asked.config, results)
        result.save(folder / "result")
        publish(asked, result, folder)
        if report:
            write_report_of(asked, result, alone, formats)
        return result


def publish(asked: Asked, result: Any, folder: Path) -> None:
    """The run's records as others' readers and `mechinterp audit` take them; nothing where none are known."""
    write = getattr(asked.module, "publish", None)
    if write is not None:
        write(asked.config, result, folder / PUBLISHED)


def opened(asked: Asked, folder: Path, *, new: bool = False, wait: float = 0.0) -> Run:
    """The run of what is asked in `folder`, begun or gone on with, for this process alone."""
    return Run.open(folder, **_question(asked), new=new, wait=wait)


def joined(asked: Asked, folder: Path) -> Run:
    """The same beside other workers."""
    return Run.join(folder, **_question(asked))


def _question(asked: Asked) -> dict[str, Any]:
    """What a manifest records of what is asked: files by their digests, models by those of their weights."""
    inputs = {
        name: folder_sha256(value) if value.is_dir() else file_sha256(value)
        for name, value in asked.config.model_dump().items()
        if isinstance(value, Path) and value.exists()
    }
    if is_file(asked.study):
        inputs["study"] = file_sha256(Path(asked.study))
    specs = asked.module.model_specs(asked.config)
    return {
        "study": asked.study,
        "config": asked.config,
        "models": {name: weights_of(spec) for name, spec in specs.items() if "pair" not in spec},
        "inputs": inputs,
    }


def write_report_of(asked: Asked, result: Any, opened: Run, formats: Sequence[FileFormat] = ()) -> Path:
    """The page of a finished run."""
    from mechinterp.report import write_report

    return write_report(asked.module.page(asked.config, result, opened), opened.folder, formats=formats)


def reopened(folder: Path) -> tuple[Asked, Run]:
    """A run directory to look at: its study and configuration, read-only."""
    found = Run.read(folder)
    if is_file(found.manifest.study) and Path(found.manifest.study).resolve().is_relative_to(found.folder):
        raise ValueError(
            f"{folder} brings its own study file, which may be a stranger's code; look at it, and run it"
            " from a place of yours"
        )
    _, module = study_module(found.manifest.study)
    config: StudyConfig = module.Config.model_validate_json(json.dumps(found.manifest.config), strict=True)
    return Asked(found.manifest.study, module, config), found


def finished(folder: Path) -> tuple[Asked, Run, Any]:
    """A finished run, read-only, with what it comes to; ValueError where cells are left."""
    asked, found = reopened(folder)
    left = found.status(asked.cells()).left
    if left:
        raise ValueError(
            f"{folder} is not finished, {len(left)} cells are left; run the same command again first"
        )
    return asked, found, _concluded(asked, found)


def status(folder: Path) -> Status:
    """How far the run in a directory is."""
    asked, found = reopened(folder)
    return found.status(asked.cells())


def report(folder: Path, formats: Sequence[FileFormat] = ()) -> Path:
    """Writes the report of a finished run again, from its cells; of a folder of runs, one report of them all.

    Computes nothing that a cell computes.
    """
    runs = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if runs and not (folder / "manifest.json").is_file():
        return _book(folder, runs)
    asked, found, result = finished(folder)
    publish(asked, result, folder)
    return write_report_of(asked, result, found, formats)


def _concluded(asked: Asked, found: Run) -> Any:
    """What a finished run comes to, from its cells."""
    return asked.module.combine(asked.config, {cell.key: found.result(cell) for cell in asked.cells()})


def _book(folder: Path, runs: Sequence[Path]) -> Path:
    """Every finished run of a folder as a chapter, with one index."""
    from mechinterp.report import write_book

    chapters = {}
    for path in runs:
        asked, found = reopened(path)
        if not found.status(asked.cells()).left:
            chapters[path.name] = asked.module.page(asked.config, _concluded(asked, found), found)
    if not chapters:
        raise ValueError(
            f"none of the {len(runs)} runs in {folder} is finished; run their commands again first"
        )
    return write_book(folder.resolve().name, chapters, folder)


def crowded() -> str | None:
    """A line when other work on the machine will slow this one several times over."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores + 0.5:
        return None
    return (
        f"load average {load:.1f} on {cores} cores: other work slows this down;"
        " OMP_NUM_THREADS=1 may be faster"
    )
