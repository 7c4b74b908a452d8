"""A model's shape without its weights: configuration, tokenizer, and what stands in for what is not here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mechinterp import hub
from mechinterp.embedded import EMBEDDED
from mechinterp.known_configs import SIZES, known_config
from mechinterp.remote import cached_snapshot, download_small_files, hub_is_off

CONFIG = "config.json"


@dataclass(frozen=True, eq=False)
class Shape:
    """`notes` say what was not at hand and what took its place."""

    name: str
    config: Any
    tokenizer: Any
    dtype: torch.dtype
    notes: tuple[str, ...] = ()


def shape_of(name: str, dtype: str = "auto") -> Shape:
    """Of an embedded model, a directory, the path of a config.json, or an id.

    An id's files are taken from the cache or the hub; the sizes of some public models are known here. Without
    its tokenizer the embedded model's cuts the text. `dtype` "auto" is the checkpoint's own, else bf16.
    Raises ConnectionError for an id whose configuration cannot be had.
    """
    folder = _folder(name)
    config = _config(name, folder)
    notes: list[str] = []
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        stand_in = EMBEDDED[0].name
        tokenizer = _tokenizer(hub.resolve(stand_in).path)
        notes.append(f"the tokenizer of {name} is not here: texts are cut by that of {stand_in}")
    if folder is None and not Path(name).is_file():
        notes.append(f"the sizes of {name} are those that mechinterp knows, not read from its repository")
    own = getattr(config, "dtype", None)
    wanted = getattr(torch, dtype) if dtype != "auto" else own if own is not None else torch.bfloat16
    return Shape(name, config, tokenizer, wanted, tuple(notes))


def _folder(name: str) -> Path | None:
    """Where a model's configuration and tokenizer lie; None where its sizes alone are known."""
    path = Path(name)
    if path.is_file():
        return path.parent
    if path.is_dir() or name in {model.name for model in EMBEDDED}:
        return hub.resolve(name).path
    wanted = hub.parsed(name, None, None)
    if wanted.name in SIZES:
        return cached_snapshot(wanted.name, revision=wanted.revision, file=CONFIG)
    return small_files(wanted.name, wanted.revision) / (wanted.subfolder or "")


def small_files(repository: str, revision: str | None) -> Path:
    """Where the configuration and the tokenizer of a repository lie, fetched from the hub where needed.

    Raises ConnectionError where the hub does not answer, and as `hub.resolve` where it refuses.
    """
    found = cached_snapshot(repository, revision=revision, file=CONFIG)
    if found is not None:
        return found
    way_out = "give a directory, or the path of its config.json"
    if hub_is_off():
        raise ConnectionError(f"{repository} is not in the cache, and the hub is switched off; {way_out}")
    return download_small_files(repository, revision=revision, ways_out=way_out)


def _config(name: str, folder: Path | None) -> Any:
    from transformers import AutoConfig

    if folder is None:
        return known_config(hub.parsed(name, None, None).name)
    file = Path(name) if Path(name).is_file() else folder / CONFIG
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        family = said.pop("model_type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no model's configuration ({error!r}); give its config.json") from None
    return AutoConfig.for_model(family, **said)


def _tokenizer(folder: Path | None) -> Any | None:
    from transformers import AutoTokenizer

    if folder is None or not any((folder / file).is_file() for file in hub.TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder)
