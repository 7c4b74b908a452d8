"""Named vectors over layers, and the passport that says what they are.

A vector is asked for by name and layer, never by its row: files disagree about the order of their rows.
Layer L means the output of block L, whatever the file that the vectors came from calls it.
"""

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mechinterp.files import unique_names, write_bytes

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SCHEMA = "mechinterp.vectors/1"
BLOCK_OUTPUT = "layer L is the output of block L"


@runtime_checkable
class Sizes(Protocol):
    """What a model must say of itself before vectors can be checked against it."""

    @property
    def n_layers(self) -> int: ...
    @property
    def d_model(self) -> int: ...


@dataclass(frozen=True)
class Passport:
    """Where vectors come from; None stands for what nobody recorded."""

    model: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    site: str = "resid_post"
    layer_convention: str = BLOCK_OUTPUT  # as the source declared it, before our numbering
    last_layer_normed: bool = False  # the model's last layer was read after the final norm: not resid_post
    method: str | None = None
    positions: str | None = None  # which rows were read, and how they were pooled
    reference: str | None = None  # what was subtracted
    norm_units: str = "activation"  # or "unit"
    template_sha256: str | None = None
    prompts_digest: str | None = None
    n_target: int | None = None
    n_reference: int | None = None
    split_half: tuple[tuple[float | None, ...], ...] | None = None  # cosine, [name][layer]
    null_percentile: tuple[tuple[float | None, ...], ...] | None = None  # of the norm, [name][layer]
    source_format: str | None = None
    source_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Vectors:
    """One vector of the residual stream for every name and layer; `vectors["villain", 22]` is [d_model].

    Raises ValueError for values that are not finite, do not match the names and layers, or equal names.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "name layer d_model"]
    passport: Passport

    def __post_init__(self) -> None:
        unique_names(self.names, what="vector")
        _check_layers(self.layers)
        _check_values(self)

    def __getitem__(self, key: tuple[str, int]) -> Float[Tensor, "d_model"]:
        if not (isinstance(key, tuple) and len(key) == 2):
            raise ValueError(
                f"a vector has a name and a layer; write vectors[name, layer], not vectors[{key!r}]"
            )
        name, layer = key
        if name not in self.names:
            raise ValueError(f"there is no vector {name!r}; the names are {_listed(self.names)}")
        if isinstance(layer, bool) or layer not in self.layers:
            raise ValueError(f"there is no vector for layer {layer!r}; the layers are {_listed(self.layers)}")
        return self.values[self.names.index(name), self.layers.index(layer)]

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per name and layer: the norm and, where known, split_half and null_percentile."""
        import pandas as pd

        norms = self.values.norm(dim=-1).tolist()
        rows = [
            {"name": name, "layer": layer, "norm": norms[row][column]}
            | {
                measure: table[row][column]
                for measure in ("split_half", "null_percentile")
                if (table := getattr(self.passport, measure)) is not None
            }
            for row, name in enumerate(self.names)
            for column, layer in enumerate(self.layers)
        ]
        return pd.DataFrame(rows)

    def figure(self) -> "go.Figure":
        """The norm of every vector over the layers."""
        from mechinterp.figures import per_layer

        passport = self.passport
        said = [
            passport.model,
            passport.site,
            passport.method,
            f"n = {passport.n_target or 'unknown'} a side",
        ]
        subtitle = ", ".join(part for part in said if part)
        return per_layer(self.to_dataframe(), y="norm", by="name", subtitle=subtitle)


def select_layers(vectors: Vectors, layers: Sequence[int]) -> Vectors:
    """The same vectors at these layers only, in this order."""
    missing = [layer for layer in layers if layer not in vectors.layers]
    if missing:
        raise ValueError(
            f"there is no vector for layer {missing[0]!r}; the layers are {_listed(vectors.layers)}"
        )
    columns = [vectors.layers.index(layer) for layer in layers]

    def columns_of(table: tuple[tuple[float | None, ...], ...] | None) -> tuple | None:
        return table and tuple(tuple(row[column] for column in columns) for row in table)

    passport = replace(
        vectors.passport,
        split_half=columns_of(vectors.passport.split_half),
        null_percentile=columns_of(vectors.passport.null_percentile),
    )
    return Vectors(vectors.names, tuple(layers), vectors.values[:, columns], passport)


def check_for(vectors: Vectors, sizes: Sizes, *, layers: Sequence[int] | None = None) -> None:
    """Raise ValueError unless the vectors at `layers` (all of them by default) fit a model of these sizes."""
    width = vectors.values.shape[-1]
    if width != sizes.d_model:
        raise ValueError(f"the vectors have {width} numbers each and the model has d_model {sizes.d_model}")
    asked = vectors.layers if layers is None else tuple(layers)
    for layer in asked:
        if layer not in vectors.layers:
            raise ValueError(
                f"there is no vector for layer {layer!r}; the layers are {_listed(vectors.layers)}"
            )
        if layer >= sizes.n_layers:
            raise ValueError(
                f"there is a vector for layer {layer}, and the model has layers 0..{sizes.n_layers - 1}"
            )
    last = sizes.n_layers - 1
    if vectors.passport.last_layer_normed and last in asked:
        raise ValueError(
            f"layer {last} of these vectors was read after the final norm, so it is no resid_post; "
            f"leave it out with select_layers, or name the layers that you use"
        )


def prompts_digest(prompts: Mapping[str, str]) -> str:
    """SHA-256 of named prompts, the same in whatever order they come."""
    canonical = json.dumps(dict(prompts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def save_vectors(vectors: Vectors, path: Path | str) -> Path:
    """Write the vectors as fp32 safetensors, the passport as JSON in its header, at once or not at all."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"vectors are written as .safetensors; write {path.with_suffix('.safetensors').name}"
        )
    values = vectors.values.detach().to("cpu", torch.float32).contiguous()
    header = {
        "schema": SCHEMA,
        "names": vectors.names,
        "layers": [operator.index(layer) for layer in vectors.layers],
        "values_sha256": _digest(values),
        "passport": asdict(vectors.passport),
    }
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save({"values": values}, metadata={"mechinterp": text}))
    return path


def load_vectors(path: Path | str) -> Vectors:
    """Read what save_vectors wrote; raises ValueError naming the file if it is anything else or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("mechinterp")
            if text is None or set(file.keys()) != {"values"}:
                raise ValueError(
                    f"{path} holds the tensors {_listed(sorted(file.keys()))} and no vectors of ours"
                )
            values = file.get_tensor("values")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    header = json.loads(text)
    if header.get("schema") != SCHEMA:
        raise ValueError(f"{path} has the schema {header.get('schema')!r}, this version reads {SCHEMA!r}")
    if header["values_sha256"] != _digest(values):
        raise ValueError(f"{path} is damaged: its numbers do not match their SHA-256; make or fetch it again")
    return Vectors(
        tuple(header["names"]), tuple(header["layers"]), values, _passport(header["passport"], path)
    )


def _passport(entry: dict[str, object], path: Path | str) -> Passport:
    unknown = set(entry) - {field.name for field in fields(Passport)}
    if unknown:
        raise ValueError(
            f"{path} has the passport entries {sorted(unknown)}, which this version does not know"
        )
    frozen = {
        name: tuple(tuple(row) for row in value) if isinstance(value, list) else value
        for name, value in entry.items()
    }
    return Passport(**frozen)  # pyright: ignore[reportArgumentType]


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def _check_layers(layers: tuple[int, ...]) -> None:
    for layer in layers:
        if isinstance(layer, bool) or not hasattr(layer, "__index__") or layer < 0:
            raise ValueError(f"{layer!r} is no layer; write 0-based integers")
    if len(set(layers)) != len(layers) or not layers:
        raise ValueError(f"layers must be given, each once, not {tuple(layers)}")


def _check_values(vectors: Vectors) -> None:
    values, names, layers = vectors.values, vectors.names, vectors.layers
    if values.ndim != 3 or not values.is_floating_point():
        raise ValueError(
            f"vectors are floats of the shape [name layer d_model], not {values.dtype} {list(values.shape)}"
        )
    if values.shape[:2] != (len(names), len(layers)):
        raise ValueError(
            f"{len(names)} names and {len(layers)} layers do not fit {list(values.shape)} values"
        )
    bad = (~values.isfinite()).any(-1).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(f"the vector {names[row]!r} at layer {layers[column]} holds NaN or infinity")
    for measure in ("split_half", "null_percentile"):
        table = getattr(vectors.passport, measure)
        if table is not None and [len(row) for row in table] != [len(layers)] * len(names):
            raise ValueError(f"{measure} needs one number for every name and layer: {list(values.shape[:2])}")


def _listed(values: Sequence[object]) -> str:
    shown = ", ".join(str(value) for value in values[:20])
    return shown + (f", and {len(values) - 20} more" if len(values) > 20 else "")
