"""RunManifest: what a run directory was started with, and whether it may go on under what is asked now."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.config import StudyConfig, config_digest
from mechinterp.json_io import read_json, write_json
from mechinterp.results import metadata

SCHEMA = "mechinterp.run"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunManifest:
    """Everything outside the cells that decides the bytes of a run, plus the versions that it was made with.

    `models` and `inputs` map names to the SHA-256 of weights and of input files. `threads` is here because
    sums over another number of threads round differently.
    """

    study: str
    config: dict[str, Any]
    config_sha256: str
    models: dict[str, str]
    inputs: dict[str, str]
    versions: dict[str, str | None]
    threads: int
    machine: str

    def write(self, path: Path) -> None:
        """Write the manifest atomically, with its schema."""
        head = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION}
        write_json(path, head | dataclasses.asdict(self))


def manifest_for(
    study: str, config: StudyConfig, *, models: Mapping[str, str], inputs: Mapping[str, str]
) -> RunManifest:
    """The manifest of a run asked for now, in this process."""
    import torch  # a second and a half: not before a run begins

    toolkit = metadata()
    return RunManifest(
        study=study,
        config=config.model_dump(mode="json"),
        config_sha256=config_digest(config),
        models=dict(models),
        inputs=dict(inputs),
        versions={"mechinterp": toolkit["mechinterp"]} | toolkit["libraries"],
        threads=torch.get_num_threads(),
        machine=platform.machine(),
    )


def read_manifest(path: Path) -> RunManifest:
    """The manifest at `path`; raises ValueError for one that is damaged or from a newer mechinterp."""
    table = read_json(path)
    if not isinstance(table, dict) or table.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} is not the manifest of a run; choose another --out")
    found = table.pop("schema_version", None)
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has layout {found} and this mechinterp reads {SCHEMA_VERSION}; update mechinterp,"
            " or choose another --out"
        )
    names = {field.name for field in dataclasses.fields(RunManifest)}
    if set(table) != names:
        raise ValueError(
            f"{path} has other fields ({', '.join(sorted(names ^ set(table)))}); choose another --out"
        )
    return RunManifest(**table)


def differences(there: RunManifest, asked: RunManifest) -> list[str]:
    """What keeps a run from going on, one phrase a field; empty when it may."""
    phrases = []
    for name, (before, now) in changed_fields(there, asked).items():
        remedy = f"; set OMP_NUM_THREADS={before}" if name == "threads" else ""
        phrases.append(f"{name} ({short(before)} there, {short(now)} asked{remedy})")
    shown = 8
    return phrases if len(phrases) <= shown else phrases[:shown] + [f"and {len(phrases) - shown} more"]


def changed_fields(one: RunManifest, other: RunManifest) -> dict[str, tuple[Any, Any]]:
    """The fields that decide a run's bytes and are not the same in both, with both values."""
    old, new = _decisive(one), _decisive(other)
    pairs = {name: (old.get(name, "absent"), new.get(name, "absent")) for name in sorted({*old, *new})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _decisive(manifest: RunManifest) -> dict[str, Any]:
    flat: dict[str, Any] = {"study": manifest.study, "threads": manifest.threads}
    flat |= {f"weights of {name}": sha256 for name, sha256 in manifest.models.items()}
    flat |= {f"input {name}": sha256 for name, sha256 in manifest.inputs.items()}
    flat |= {f"version of {name}": major(text) for name, text in manifest.versions.items()}
    return flat | _flattened(manifest.config, "config")


def _flattened(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, list):
        value = {str(place): item for place, item in enumerate(value)}
    if isinstance(value, dict) and value:
        return {
            name: leaf
            for key, held in value.items()
            for name, leaf in _flattened(held, f"{path}.{key}").items()
        }
    return {path: value}


def major(text: str | None) -> str | None:
    """The part of a version whose change may change numbers: "2" of 2.13.1, "0.8" of 0.8.1."""
    if text is None:
        return None
    parts = text.split(".")
    return ".".join(parts[:2]) if parts[0] == "0" else parts[0]


def short(value: Any) -> str:
    """A value as an error message shows it."""
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
