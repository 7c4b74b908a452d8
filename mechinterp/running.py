"""Runs a study in a directory: its cells, resumed where they stopped, then its report.

A study is a module with `Config`, `cells(config)`, `model_specs(config)`, the functions that its cells name,
`combine(config, results)` and `page(config, result, run)`; one whose records have a published schema has
`publish(config, result, folder)` as well. Nothing here knows which study it is.
"""

import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from mechinterp import cells as cell_lists
from mechinterp import engine
from mechinterp.cells import Cell
from mechinterp.config import StudyConfig, load_config
from mechinterp.digests import adapted_sha256
from mechinterp.export import FileFormat
from mechinterp.files import file_sha256, folder_sha256
from mechinterp.json_io import canonical_sha256
from mechinterp.runs import Run, Status

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


def known() -> dict[str, str]:
    """The studies by name, with a line each."""
    import studies

    return dict(studies.STUDIES)


def presets(study: str) -> list[str]:
    """The names of a study's presets."""
    found = [entry.name for entry in files("studies.presets").iterdir()]
    return sorted(
        name.split(".")[1] for name in found if name.startswith(f"{study}.") and name.endswith(".toml")
    )


def ask(
    study: str, *, preset: str | None = None, config: Path | None = None, overrides: Sequence[str] = ()
) -> Asked:
    """A study's configuration from a preset or a file and `key=value` overrides; ValueError says what is
    known.
    """
    if study not in known():
        raise ValueError(f"there is no study {study!r}; the studies are {', '.join(known())}")
    if preset is not None and config is not None:
        raise ValueError("give --preset or --config, not both; --set changes single values of either")
    module = importlib.import_module(f"studies.{study}")
    if preset is None:
        return Asked(study, module, load_config(module.Config, config, overrides))
    if preset not in presets(study):
        raise ValueError(f"{study} has no preset {preset!r}; its presets are {', '.join(presets(study))}")
    with as_file(files("studies.presets") / f"{study}.{preset}.toml") as path:
        return Asked(study, module, load_config(module.Config, path, overrides))


def run(
    asked: Asked,
    folder: Path,
    *,
    limit: int | None = None,
    new: bool = False,
    progress: bool = True,
    report: bool = True,
    formats: Sequence[FileFormat] = (),
) -> Any:
    """Runs what is unfinished and returns the combined result; None where `limit` left the study unfinished.

    Raises what `Run.open` refuses: another config, weights, seed or thread count in the same directory.
    """
    specs = asked.module.model_specs(asked.config)
    with _open(asked, folder, specs, new) as opened, engine.interruptible(opened):
        results = engine.execute(
            opened,
            asked.cells(limit),
            resolve_model=loader(specs),
            task=lambda cell, model, inputs: getattr(asked.module, cell.task)(
                cell, model, inputs, asked.config
            ),
            progress=progress,
        )
        if len(results) < len(asked.cells()):
            return None
        result = asked.module.combine(asked.config, results)
        result.save(folder / "result")
        publish(asked, result, folder)
        if report:
            write_report_of(asked, result, opened, formats)
        return result


def publish(asked: Asked, result: Any, folder: Path) -> None:
    """The run's records as others' readers and `mechinterp audit` take them; nothing where none are known."""
    write = getattr(asked.module, "publish", None)
    if write is not None:
        write(asked.config, result, folder / PUBLISHED)


def _open(asked: Asked, folder: Path, specs: dict[str, dict[str, Any]], new: bool) -> Run:
    inputs = {
        name: folder_sha256(value) if value.is_dir() else file_sha256(value)
        for name, value in asked.config.model_dump().items()
        if isinstance(value, Path) and value.exists()
    }
    return Run.open(
        folder,
        study=asked.study,
        config=asked.config,
        models={name: weights_of(spec) for name, spec in specs.items() if "pair" not in spec},
        inputs=inputs,
        new=new,
    )


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models that a cell needs at once, over one set of weights where the trained one is an adapter."""

    trained: Any
    base: Any


def weights_of(spec: dict[str, Any]) -> str:
    """The `weights_sha256` of the model that these words load, its adapter included, without loading it."""
    from mechinterp import hub

    source = hub.resolve(spec["name"], revision=spec.get("revision"), subfolder=spec.get("subfolder"))
    digest = hub.weights_sha256(source.path)
    if spec.get("adapter") is None:
        return digest
    adapter = hub.weights_sha256(hub.resolve_adapter(str(spec["adapter"])).path)
    return adapted_sha256(digest, adapter)


def loader(specs: dict[str, dict[str, Any]]) -> Callable[[str], Any]:
    """Loads a model of the study by its name there; adapters of one base are put on that base, loaded once.

    A spec {"pair": (trained, base)} names two of the others, which come together as a `Pair`.

    Other backends than transformers rewrite or copy what they are given, so there each has a base of its own.
    """
    from mechinterp.loading import load, with_adapter

    def base_of(spec: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in spec.items() if name != "adapter" and value is not None}

    adapted = [spec for spec in specs.values() if spec.get("adapter") is not None]
    shared = {canonical_sha256(base_of(s)) for s in adapted if s.get("backend") == "transformers"}
    bases: dict[str, Any] = {}

    def resolve(name: str) -> Any:
        if "pair" in specs[name]:
            return Pair(*(resolve(each) for each in specs[name]["pair"]))
        spec, given = specs[name], base_of(specs[name])
        key, model_name = canonical_sha256(given), given.pop("name")
        if key not in shared:
            return load(model_name, **given, adapter=spec.get("adapter"))
        if key not in bases:
            bases[key] = load(model_name, **given)
        return bases[key] if spec.get("adapter") is None else with_adapter(bases[key], spec["adapter"])

    return resolve


def write_report_of(asked: Asked, result: Any, opened: Run, formats: Sequence[FileFormat] = ()) -> Path:
    """The page of a finished run."""
    from mechinterp.report import write_report

    return write_report(asked.module.page(asked.config, result, opened), opened.folder, formats=formats)


def demo(folder: Path) -> list[Any]:
    """Every study of the demo at its demo size, each in a folder of its own, and one report of them all."""
    import studies
    from mechinterp.report import write_book

    results, chapters = [], {}
    for study, overrides in studies.DEMO.items():
        asked = ask(study, preset="demo", overrides=[one.format(demo=folder) for one in overrides])
        results.append(run(asked, folder / study))
        chapters[study] = asked.module.page(asked.config, results[-1], Run.read(folder / study))
    write_book("mechinterp demo", chapters, folder)
    return results


def reopened(folder: Path) -> tuple[Asked, Run]:
    """A run directory to look at: its study and configuration, read-only."""
    found = Run.read(folder)
    module = importlib.import_module(f"studies.{found.manifest.study}")
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
