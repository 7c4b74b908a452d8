"""From a name to a local model directory: an embedded model, a directory, or a repository of the hub.

A name never means two different sets of weights: no source stands in for another, a hub name is recorded with
its commit, and `weights_sha256` tells what was there.
"""

import contextlib
import hashlib
import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from mechinterp.digests import safetensors_sha256, tensors_sha256
from mechinterp.embedded import EMBEDDED, cache_folder, find_embedded, known, pull, ready, verify
from mechinterp.files import write_bytes
from mechinterp.remote import cached_snapshot, download_snapshot, hub_is_off, pickle_message

__all__ = [
    "Source",
    "cache_folder",
    "known",
    "parsed",
    "pull",
    "resolve",
    "resolve_adapter",
    "tensors_sha256",
    "verify",
    "weights_sha256",
]

REFERENCE = re.compile(r"(?P<name>[^@:]+)(@(?P<revision>[^@:]+))?(:(?P<subfolder>[^@:]+))?")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
Content = Literal["model", "adapter"]
CONFIG: dict[Content, str] = {"model": "config.json", "adapter": "adapter_config.json"}


@dataclass(frozen=True)
class Source:
    """Where weights came from: `path` is a local directory in Hugging Face format, the subfolder included."""

    name: str
    path: Path
    revision: str | None
    subfolder: str | None
    kind: Literal["embedded", "hub", "directory"]

    def record(self) -> dict[str, str | None]:
        """What a manifest keeps of it; the local path says nothing on another machine."""
        return {"name": self.name, "kind": self.kind, "revision": self.revision, "subfolder": self.subfolder}

    @property
    def tokenizer_path(self) -> Path:
        """`path`, or the directory that its subfolder lies in where only that has a tokenizer."""
        if self.subfolder is None or _has_tokenizer(self.path):
            return self.path
        root = self.path.parents[len(PurePosixPath(self.subfolder).parts) - 1]
        return root if _has_tokenizer(root) else self.path


def resolve(name: str, *, revision: str | None = None, subfolder: str | None = None) -> Source:
    """A model by embedded name, directory or hub id (also `id@revision:subfolder`), fetched where needed.

    Raises `ValueError` for a name that contradicts itself or weights that are not safetensors,
    `FileNotFoundError` for what does not exist, `PermissionError` for a gated model, and `ConnectionError`
    where the hub does not answer.
    """
    wanted = parsed(name, revision, subfolder)
    if wanted.name in {model.name for model in EMBEDDED}:
        if wanted.revision or wanted.subfolder:
            raise ValueError(f"{wanted.name} is one pinned model; ask for it without a revision or subfolder")
        return replace(wanted, path=ready(find_embedded(wanted.name)), kind="embedded")
    return _located(wanted, "model")


def resolve_adapter(name: str, *, revision: str | None = None, subfolder: str | None = None) -> Source:
    """A peft adapter by local directory or hub id; as `resolve`."""
    return _located(parsed(name, revision, subfolder), "adapter")


def weights_sha256(path: Path) -> str:
    """Digest of the tensors that a model or adapter directory loads: `tensors_sha256` of what is stored.

    It is remembered in the cache folder under each file's place, size and times; `verify` reads all bytes.
    """
    files = [file.resolve() for file in _weight_files(path)]
    marks = [
        (str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        for file, stat in ((file, file.stat()) for file in files)
    ]
    key = hashlib.sha256(json.dumps(marks).encode()).hexdigest()
    remembered = cache_folder() / "digests" / key
    if remembered.is_file() and re.fullmatch("[0-9a-f]{64}", known_digest := remembered.read_text()):
        return known_digest
    digest = safetensors_sha256(files)
    # A file changed within the clock's grain could change again unseen, so only settled ones are remembered.
    if time.time_ns() - max(max(mark[2:4]) for mark in marks) > 2e9:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(remembered, digest.encode())
    return digest


def parsed(name: str, revision: str | None, subfolder: str | None) -> Source:
    """The parts of a reference, as a `Source` whose path is still that of the directory it may name."""
    if _is_directory(name) and name not in {"", *(model.name for model in EMBEDDED)}:
        parts: dict[str, str | None] = {"name": name, "revision": None, "subfolder": None}
    elif match := REFERENCE.fullmatch(name):
        parts = match.groupdict()
    else:
        raise ValueError(
            f"{name!r} is no model name; write a directory, id, id@revision or id@revision:subfolder"
        )
    for part, given in (("revision", revision), ("subfolder", subfolder)):
        if given is not None and parts[part] not in (None, given):
            raise ValueError(
                f"{name!r} asks for {part} {parts[part]!r} and {part}= for {given!r}; give it once"
            )
        parts[part] = given if given is not None else parts[part]
    for part in ("revision", "subfolder"):
        if (value := parts[part]) is not None and not _is_inside(value):
            raise ValueError(
                f"{part} {value!r} is not a plain relative name; write one without '..' or a leading '/'"
            )
    plain = parts["name"] or name
    return Source(plain, Path(plain), parts["revision"], parts["subfolder"], "directory")


def _is_directory(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # longer than a file name may be; a home that does not exist
        return False


def _is_inside(value: str) -> bool:
    return bool(re.fullmatch(r"[\w.+ -]+(/[\w.+ -]+)*", value)) and not {".", ".."} & set(value.split("/"))


def _located(wanted: Source, content: Content) -> Source:
    if _is_directory(wanted.name):
        return _directory(wanted, content)
    if not REPOSITORY.fullmatch(wanted.name):
        raise FileNotFoundError(f"there is no directory {wanted.name}; correct the path, or {_ways_out()}")
    return _cached(wanted, content) or _downloaded(wanted, content)


def _cached(wanted: Source, content: Content) -> Source | None:
    """The cached snapshot where it is complete; a branch then means the commit that was fetched for it."""
    file = str(PurePosixPath(wanted.subfolder or "") / CONFIG[content])
    root = cached_snapshot(wanted.name, revision=wanted.revision, file=file)
    if root is None:
        return None
    source = _in_snapshot(wanted, root)
    if _fault(source.path, content):
        return None
    # Without a tokenizer it may be half a download, or all that the repository has: the hub knows.
    whole = content == "adapter" or _has_tokenizer(source.tokenizer_path) or hub_is_off()
    return source if whole else None


def _downloaded(wanted: Source, content: Content) -> Source:
    root = download_snapshot(
        wanted.name, revision=wanted.revision, subfolder=wanted.subfolder, ways_out=_ways_out()
    )
    source = _in_snapshot(wanted, root)
    if fault := _fault(source.path, content):
        raise fault
    return source


def _in_snapshot(wanted: Source, root: Path) -> Source:
    return replace(wanted, path=root / (wanted.subfolder or ""), revision=root.name, kind="hub")


def _ways_out() -> str:
    return (
        f"use an embedded model ({', '.join(model.name for model in EMBEDDED)}), a local directory, "
        "a copied cache (HF_HOME) or a mirror (HF_ENDPOINT)"
    )


def _directory(wanted: Source, content: Content) -> Source:
    if wanted.revision:
        raise ValueError(
            f"{wanted.name} is a local directory, which has no revision {wanted.revision!r}; leave it out"
        )
    path = wanted.path.expanduser().absolute() / (wanted.subfolder or "")
    if fault := _fault(path, content):
        raise fault
    # A relative directory must not read like the hub's model of the same name.
    relative = not wanted.path.is_absolute() and not wanted.name.startswith((".", "~"))
    return replace(wanted, name=f"./{wanted.name}" if relative else wanted.name, path=path)


def _fault(path: Path, content: Content) -> OSError | ValueError | None:
    """Why a directory cannot be loaded, or None."""
    if not path.is_dir():
        return FileNotFoundError(f"there is no directory {path}")
    other: Content = "adapter" if content == "model" else "model"
    if not (path / CONFIG[content]).is_file():
        if (path / CONFIG[other]).is_file():
            return ValueError(f"{path} holds a {other} and not a {content}; {_instead(content)}")
        return FileNotFoundError(f"{path} has no {CONFIG[content]}; give a directory made by save_pretrained")
    try:
        missing = [file.name for file in _weight_files(path) if not file.is_file()]
    except (FileNotFoundError, ValueError) as error:
        return error
    if missing:
        return FileNotFoundError(
            f"{path} lacks {', '.join(missing[:3])}, which its index names; copy or fetch it again"
        )
    return None


def _instead(content: Content) -> str:
    return "pass its base model and this as adapter=" if content == "model" else "pass it as the model"


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files that are loaded from a directory; one that its index names may be missing."""
    for single in ("model.safetensors", "adapter_model.safetensors"):
        if (path / single).is_file():
            return [path / single]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = {
                str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            }
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is damaged ({error!r}); copy or fetch it again") from error
        if outside := sorted(shard for shard in shards if not _is_inside(shard)):
            raise ValueError(
                f"{index} names {outside[0]!r}, a file outside its directory; do not use this copy"
            )
        return [path / shard for shard in sorted(shards)]
    if pickled := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)):
        raise ValueError(pickle_message(str(path), pickled[0]))
    raise FileNotFoundError(f"{path} has no model.safetensors; give a directory made by save_pretrained")


def _has_tokenizer(path: Path) -> bool:
    return any((path / file).is_file() for file in TOKENIZER_FILES)
