"""Readers of other people's vector files; every one gives Vectors, with rows taken by name.

Layers, as each format declares them (the passport records it):
- persona activations and the assistant axis: forward-hook output of `layers[L]`, so L is our L;
- repeng GGUF: `direction.L` was trained on `hidden_states[L + 1]` and is added to the output of block L, so
  L is our L too; but the last entry of `hidden_states` is after the final norm, so the direction of the
  model's last layer is in another basis and check_for refuses it. llama.cpp's own generator writes the same
  format with the output of block L - 1 under `direction.L`; nothing in the file tells the two apart.
"""

import hashlib
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from mechinterp.files import file_sha256
from probes.torch_files import described, load_tensors, mapping_of, names_of, tensor_of
from probes.vectors import BLOCK_OUTPUT, Passport, Vectors, load_vectors, prompts_digest

HIDDEN_STATES = (
    "direction.L is of hidden_states[L + 1], the output of block L; the last is after the final norm"
)


def read_vectors(path: Path | str) -> Vectors:
    """Vectors from any of the formats below or our own, chosen by what the file holds."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_vectors(path)
    if path.suffix == ".gguf":
        return read_repeng_gguf(path)
    if path.is_dir() or re.fullmatch(r"centroids_layer\d+\.pt", path.name):
        return read_centroids(path)
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(
            f"{path} is no vector file that is known here: write a .safetensors, .gguf or .pt file"
        )
    found = load_tensors(path)
    keys = {str(key) for key in found} if isinstance(found, dict) else set()
    if "persona_names" in keys and keys & {"contrast_vectors", "activations"}:
        return _activations(path, found, "contrast")
    if "persona_names" in keys:
        return _centroids(path, found, None)
    if isinstance(found, Tensor) or keys & {"axis", "vector"}:
        return _assistant_axis(path, found)
    raise ValueError(f"{path} holds {described(found)}, which is none of the known vector formats")


def read_activations_pt(path: Path | str, *, kind: Literal["contrast", "activation"] = "contrast") -> Vectors:
    """Role vectors of the persistence study's activations_*.pt, named by its persona_names.

    The control's contrast with itself, zero at every layer, is left out. Raises ValueError when names and
    rows differ in number, or there are no names: the `personas` mapping has another order than the rows.
    """
    return _activations(Path(path), load_tensors(Path(path)), kind)


def read_centroids(path: Path | str, *, layer: int | None = None) -> Vectors:
    """Persona centroids: a bare tensor beside persona_names.json (a file, or a folder of
    centroids_layer{L}.pt), {"centroid", "persona_names"} or {"centroids" or "layer_L", "persona_names"}.

    `layer` is for a file of one layer whose name does not say which.
    """
    path = Path(path)
    if not path.is_dir():
        return _centroids(path, load_tensors(path), layer)
    files = sorted(path.glob("centroids_layer*.pt"), key=lambda file: _layer_in_name(file, None))
    if not files:
        raise ValueError(f"the folder {path} holds no centroids_layer*.pt")
    by_layer = {_layer_in_name(file, None): tensor_of(file, load_tensors(file), 2) for file in files}
    digests = "".join(file_sha256(file) for file in files)
    digest = hashlib.sha256(digests.encode()).hexdigest()
    return _stacked(path, by_layer, _names_beside(path), digest)


def read_assistant_axis_pt(path: Path | str) -> Vectors:
    """One vector for every layer: a bare [layer d_model] tensor, or the dict of a role or of the axis.

    Role and default vectors are means over answer tokens, not contrasts; the axis is default minus roles.
    """
    return _assistant_axis(Path(path), load_tensors(Path(path)))


def read_repeng_gguf(path: Path | str) -> Vectors:
    """A control vector of repeng: GGUF tensors direction.{layer}; the vector is named after the file."""
    from gguf import GGMLQuantizationType, GGUFReader

    path = Path(path)
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is damaged or no GGUF file: {error}") from error
    architecture = _gguf_text(reader, "general.architecture")
    if architecture != "controlvector":
        raise ValueError(f"{path} is a GGUF of the architecture {architecture!r}, not a control vector")
    directions = {}
    for tensor in reader.tensors:
        if not (match := re.fullmatch(r"direction\.(\d+)", tensor.name)):
            raise ValueError(
                f"{path} holds the tensor {tensor.name!r}; a control vector has direction.LAYER only"
            )
        if tensor.tensor_type not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            raise ValueError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; write it as F32 or F16")
        directions[int(match[1])] = tensor_of(path, numpy.array(tensor.data), 1)
    passport = Passport(
        model=_gguf_text(reader, "controlvector.model_hint"),
        layer_convention=HIDDEN_STATES,
        last_layer_normed=True,
        method="repeng",
        positions="last token",
        norm_units="unit",
        source_format="repeng_gguf",
        source_sha256=file_sha256(path),
    )
    return _one_vector(path, path.stem, directions, passport)


def _activations(path: Path, found: object, kind: Literal["contrast", "activation"]) -> Vectors:
    key = "contrast_vectors" if kind == "contrast" else "activations"
    entry = mapping_of(path, found, key, "persona_names")
    names = names_of(path, entry["persona_names"])
    values = tensor_of(path, entry[key], 3)
    _same_number(path, names, values)
    metadata = mapping_of(path, entry.get("metadata") or {})
    keep = list(range(len(names)))
    if kind == "contrast":
        keep = [row for row in keep if values[row].any()]
    zero = [name for row, name in enumerate(names) if row not in keep]
    if len(zero) > 1:
        raise ValueError(
            f"{path}: the contrasts of {', '.join(zero)} are all zero; only the control's may be"
        )
    prompts = _system_prompts(path, entry.get("personas"), names)
    passport = Passport(
        model=metadata.get("model_name"),
        layer_convention=BLOCK_OUTPUT,
        method="difference of one prompt" if kind == "contrast" else "activation of one prompt",
        positions="newline before the answer",
        reference=(zero[0] if zero else metadata.get("control_key")) if kind == "contrast" else None,
        prompts_digest=None if prompts is None else prompts_digest(prompts),
        n_target=1,
        n_reference=1 if kind == "contrast" else None,
        source_format="activations_pt",
        source_sha256=file_sha256(path),
    )
    return Vectors(tuple(names[row] for row in keep), tuple(range(values.shape[1])), values[keep], passport)


def _system_prompts(path: Path, personas: object, names: tuple[str, ...]) -> dict[str, str] | None:
    """The instructions by name, for the digest; the mapping's order says nothing about the rows."""
    if personas is None:
        return None
    entries = mapping_of(path, mapping_of(path, personas, "personas")["personas"], *names)
    return {name: str(entries[name].get("system_prompt", "")) for name in names}


def _centroids(path: Path, found: object, layer: int | None) -> Vectors:
    if isinstance(found, Tensor):
        by_layer = {_layer_in_name(path, layer): tensor_of(path, found, 2)}
        return _stacked(path, by_layer, _names_beside(path.parent), file_sha256(path))
    entry = mapping_of(path, found, "persona_names")
    rest = {key: value for key, value in entry.items() if key not in ("persona_names", "metadata")}
    if "centroid" in rest:
        by_layer = {_layer_in_name(path, layer): rest["centroid"]}
    else:
        source = rest["centroids"] if isinstance(rest.get("centroids"), Mapping) else rest
        by_layer = {_layer_of(path, key): value for key, value in source.items()}
    by_layer = {key: tensor_of(path, value, 2) for key, value in sorted(by_layer.items())}
    return _stacked(path, by_layer, names_of(path, entry["persona_names"]), file_sha256(path))


def _stacked(path: Path, by_layer: dict[int, Tensor], names: tuple[str, ...], digest: str) -> Vectors:
    if len({value.shape for value in by_layer.values()}) != 1:
        shapes = {layer: list(value.shape) for layer, value in by_layer.items()}
        raise ValueError(f"{path}: the layers differ in shape: {shapes}")
    values = torch.stack(list(by_layer.values()), dim=1)
    _same_number(path, names, values)
    passport = Passport(
        layer_convention=BLOCK_OUTPUT,
        method="centroid",
        positions="last prompt token",
        source_format="centroids_pt",
        source_sha256=digest,
    )
    return Vectors(names, tuple(by_layer), values, passport)


def _assistant_axis(path: Path, found: object) -> Vectors:
    passport = Passport(
        layer_convention=BLOCK_OUTPUT,
        positions="mean over answer tokens",
        source_format="assistant_axis_pt",
        source_sha256=file_sha256(path),
    )
    if isinstance(found, Tensor):
        method = "default minus roles" if path.stem.endswith("axis") else "mean"
        return _one_vector(path, path.stem, _rows(path, found), replace(passport, method=method))
    entry = mapping_of(path, found)
    if "axis" in entry:
        passport = replace(
            passport,
            method="default minus roles",
            n_target=entry.get("n_default"),
            n_reference=entry.get("n_roles"),
        )
        return _one_vector(path, "assistant_axis", _rows(path, entry["axis"]), passport)
    entry = mapping_of(path, found, "vector", "role")
    method = "mean of answers fully in role" if entry.get("type") == "pos_3" else "mean"
    return _one_vector(path, entry["role"], _rows(path, entry["vector"]), replace(passport, method=method))


def _one_vector(path: Path, name: str, directions: dict[int, Tensor], passport: Passport) -> Vectors:
    lengths = {len(direction) for direction in directions.values()}
    if len(lengths) != 1:
        raise ValueError(f"{path} holds directions of the lengths {sorted(lengths)}; all must have d_model")
    layers = tuple(sorted(directions))
    return Vectors((name,), layers, torch.stack([directions[layer] for layer in layers])[None], passport)


def _rows(path: Path, value: object) -> dict[int, Tensor]:
    return dict(enumerate(tensor_of(path, value, 2)))


def _names_beside(folder: Path) -> tuple[str, ...]:
    path = folder / "persona_names.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: a bare tensor of centroids says nothing of its rows")
    found = json.loads(path.read_text(encoding="utf-8"))
    return names_of(path, found["persona_names"] if isinstance(found, dict) else found)


def _same_number(path: Path, names: tuple[str, ...], values: Tensor) -> None:
    if len(names) != len(values):
        raise ValueError(
            f"{path} holds {len(names)} persona_names and {len(values)} rows; which is whose is lost"
        )


def _layer_in_name(path: Path, layer: int | None) -> int:
    match = re.search(r"layer_?(\d+)", path.stem)
    if layer is None and match is None:
        raise ValueError(f"neither {path} nor its name says which layer it is of; write layer=")
    if layer is not None and match is not None and int(match[1]) != layer:
        raise ValueError(f"{path} is of layer {match[1]} by its name, and layer={layer} was asked")
    return int(match[1]) if match else operator.index(layer)  # pyright: ignore[reportArgumentType]


def _layer_of(path: Path, key: object) -> int:
    match = re.fullmatch(r"(?:layer_?)?(\d+)", str(key))
    if match is None:
        raise ValueError(f"{path} holds the key {key!r} where a layer is expected: 10, '10' or 'layer_10'")
    return int(match[1])


def _gguf_text(reader: Any, field: str) -> str | None:
    found = reader.get_field(field)
    return None if found is None else bytes(found.parts[-1]).decode("utf-8", errors="replace")
