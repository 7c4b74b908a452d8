"""Run: a directory that remembers. `step(cell, compute)` is resuming: a finished cell is read, not redone.

manifest.json          what the run was started with; another question cannot go on in it
cells/<key>/           one folder a finished cell: cell.json, result.json, tensors.safetensors
failed/<key>.json      what a cell raised that other workers went on without
digests.json           key -> SHA-256, once all cells that were asked for are finished
timings*.jsonl         seconds and repairs, a file a worker; all that differs between two equal runs
"""

from __future__ import annotations

import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mechinterp.cells import Cell
from mechinterp.config import StudyConfig
from mechinterp.directory import explained_full_disk, probe, set_aside
from mechinterp.files import file_sha256, inside, sync_folder
from mechinterp.json_io import append_line, mend_lines, read_json, write_json
from mechinterp.locks import HELD, HOLDER, LOCK, SharedLock, hold, share_lock, take_lock
from mechinterp.manifest import RunManifest, differences, manifest_for, read_manifest
from mechinterp.progress import Status, failure_path, held_path, status
from mechinterp.results import Result, load_result


@dataclass(frozen=True)
class Run:
    """An open run directory. `lock` is None when it was opened to read only; `timings` names its notes."""

    folder: Path
    manifest: RunManifest
    lock: FileLock | SharedLock | None
    timings: str = "timings.jsonl"

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        study: str,
        config: StudyConfig,
        models: Mapping[str, str],
        inputs: Mapping[str, str] | None = None,
        wait: float = 0.0,
        new: bool = False,
    ) -> Run:
        """Start a run in `folder`, or go on with the one there, alone on it until `close`.

        `models` and `inputs` map names to SHA-256. `wait` is how many seconds to wait for another process;
        `new` renames a run that is there and starts over. Raises OSError where nothing can be written,
        RuntimeError where another process runs, ValueError where the run there is of another question.
        """
        folder = probe(Path(folder))
        lock = take_lock(folder, wait)
        try:
            if new and (folder / "manifest.json").exists():
                set_aside(folder)
                lock.release()
                lock = take_lock(probe(folder), wait)
            manifest = _settle(folder, manifest_for(study, config, models=models, inputs=inputs or {}))
            _sweep(folder)
            return cls(folder, manifest, lock)
        except BaseException:
            (folder / HOLDER).unlink(missing_ok=True)
            lock.release()
            raise

    @classmethod
    def join(
        cls,
        folder: Path | str,
        *,
        study: str,
        config: StudyConfig,
        models: Mapping[str, str],
        inputs: Mapping[str, str] | None = None,
    ) -> Run:
        """As `open`, beside other workers that joined: each holds single cells with `claim`."""
        folder = probe(Path(folder))
        lock = share_lock(folder)
        try:
            with FileLock(folder / ".door"):  # two that start a run at once
                manifest = _settle(folder, manifest_for(study, config, models=models, inputs=inputs or {}))
            return cls(folder, manifest, lock, f"timings-{secrets.token_hex(4)}.jsonl")
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, folder: Path | str) -> Run:
        """Open a run to look at, also while another process works on it."""
        folder = Path(folder).resolve()
        if not (folder / "manifest.json").is_file():
            raise FileNotFoundError(f"{folder} holds no run: there is no manifest.json in it")
        return cls(folder, read_manifest(folder / "manifest.json"), None)

    def close(self) -> None:
        """Let another process have the directory; the last worker to leave clears up."""
        if self.lock is None or not self.lock.is_locked:
            return
        if isinstance(self.lock, SharedLock):
            self.lock.release()
            with hold(self.folder / LOCK) as alone:
                if alone:
                    _sweep(self.folder)
            return
        _sweep(self.folder)
        (self.folder / HOLDER).unlink(missing_ok=True)
        self.lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def path(self, cell: Cell) -> Path:
        """The folder of a cell; raises ValueError if a link leads out of the run."""
        return inside(self.folder, self.folder / "cells" / cell.folder)

    def digest(self, key: str) -> str:
        """The SHA-256 of a finished cell; raises ValueError where it is not finished."""
        path = self.path(Cell(key, "")) / "cell.json"
        if not path.is_file():
            raise ValueError(f"cell {key} is not finished in {self.folder}; run the study to its end first")
        return read_json(path)["result_sha256"]

    def finished(self, cell: Cell) -> bool:
        """Whether a cell is there, made as asked now from the inputs that are there now. Reads no tensors."""
        try:
            return self._kept(cell)["result_sha256"] is not None
        except (ValueError, KeyError, OSError):
            return False

    def present(self, cell: Cell) -> bool:
        """Whether a cell is on the disk, whatever it was made from: a look that reads nothing."""
        return (self.path(cell) / "cell.json").exists()

    def claim(self, cell: Cell) -> AbstractContextManager[bool]:
        """Whether the cell is this process's to make, until the context ends; others pass it over."""
        return hold(held_path(self.folder, cell))

    def step(self, cell: Cell, compute: Callable[[], Result]) -> Result:
        """The result of a cell: read if it is finished and undamaged, else computed, written and read.

        What comes back was always read from the disk, so that a resumed run sees the same as an unbroken one.
        """
        with explained_full_disk(self.folder, self.safe):
            if self.path(cell).exists():
                try:
                    return self.result(cell)
                except (ValueError, KeyError, FileNotFoundError) as reason:
                    self._made_again(cell, str(reason))
            if self.lock is None:
                raise RuntimeError(f"cell {cell.key} is not finished; {self.folder} was opened to read only")
            self._make(cell, compute)
        return self.result(cell)

    def _make(self, cell: Cell, compute: Callable[[], Result]) -> None:
        record = self._record(cell)
        started = time.perf_counter()
        try:
            self._keep(cell, record, compute())
        except Exception as error:
            error.add_note(
                f"cell {cell.key} failed; {self.safe()} finished cells are safe in {self.folder}, and the"
                " same command goes on from there"
            )
            raise
        spent = round(time.perf_counter() - started, 3)
        append_line(self.folder / self.timings, {"cell": cell.key, "seconds": spent})
        failure_path(self.folder, cell).unlink(missing_ok=True)

    def _made_again(self, cell: Cell, reason: str) -> None:
        warnings.warn(f"cell {cell.key} is made again: {reason}", stacklevel=3)
        if self.lock is not None:
            append_line(self.folder / self.timings, {"cell": cell.key, "made_again": reason})

    def result(self, cell: Cell) -> Any:
        """The result of a finished cell, its digests checked."""
        record = self._kept(cell)
        folder = self.path(cell)
        if file_sha256(folder / "result.json") != record["result_sha256"]:
            raise ValueError(
                f"{folder / 'result.json'} is not the file that the run wrote; delete it to recompute"
            )
        return load_result(folder)

    def status(self, cells: Sequence[Cell]) -> Status:
        """How far the run is with these cells."""
        return status(self, cells)

    def safe(self) -> int:
        """How many cells are on the disk."""
        return sum(1 for _ in (self.folder / "cells").rglob("cell.json"))

    def _record(self, cell: Cell) -> dict[str, Any]:
        """What a cell's folder must say about it, but for the digest of its result."""
        inputs = {key: self.digest(key) for key in cell.inputs}
        return {"key": cell.key, "task": cell.task, "model": cell.model, "inputs": inputs, "args": cell.args}

    def _kept(self, cell: Cell) -> dict[str, Any]:
        path = self.path(cell) / "cell.json"
        kept, asked = read_json(path), self._record(cell)
        if not isinstance(kept, dict):
            raise ValueError(f"{path} is damaged")
        changed = [name for name, value in asked.items() if kept.get(name) != value]
        if changed:
            raise ValueError(f"{path} was made with other {' and '.join(changed)}")
        return kept

    def _keep(self, cell: Cell, record: dict[str, Any], result: Result) -> None:
        """Write a cell beside its place and rename it in: it is there whole, or not at all."""
        if not isinstance(result, Result):
            raise TypeError(
                f"{cell.task} gave a {type(result).__name__} for cell {cell.key}; return a Result"
            )
        target = self.path(cell)
        partial = self.folder / ".partial" / secrets.token_hex(8)
        try:
            result.save(partial)
            sha256 = file_sha256(partial / "result.json")
            write_json(partial / "cell.json", record | {"result_sha256": sha256})
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(partial.with_name(f"{partial.name}-old"))
            partial.rename(target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def used(run: Run) -> dict[str, str]:
    """The digests that a report gives: of weights, configuration and inputs."""
    manifest = run.manifest
    weights = {f"weights of {name}": digest for name, digest in manifest.models.items()}
    inputs = {f"input {name}": digest for name, digest in manifest.inputs.items()}
    return {**weights, "configuration": manifest.config_sha256, **inputs}


def spent(run: Run, counted: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The compute that a report gives: seconds in cells, what a study counted, threads."""
    return {
        "seconds in cells": round(run.status(()).seconds, 1),
        **(counted or {}),
        "threads": run.manifest.threads,
    }


def _settle(folder: Path, asked: RunManifest) -> RunManifest:
    """The manifest of the run in `folder`: the one that is there if it asks the same, or a new one."""
    path = folder / "manifest.json"
    if path.exists():
        there = read_manifest(path)
        found = differences(there, asked)
        if found:
            raise ValueError(
                f"{folder} holds a run with another {', '.join(found)}; ask the same again, choose another"
                " --out, or start over with --new"
            )
        return there
    others = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if others:
        raise ValueError(
            f"{folder} holds {others[0]!r} but no run; choose an empty or a new folder with --out"
        )
    asked.write(path)
    return asked


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half written or held; only where nobody else is at work."""
    for name in (".partial", HELD):
        shutil.rmtree(folder / name, ignore_errors=True)
    for leftover in [*folder.glob(".*.tmp"), folder / ".door"]:
        leftover.unlink(missing_ok=True)
    for path in folder.glob("timings*.jsonl"):
        mend_lines(path)
