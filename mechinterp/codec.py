"""Values to (JSON, tensors) and back, exactly: what a Result is made of, and nothing that could run code.

Containers and classes that JSON lacks are objects with one key that starts with `$`; tensors are stored under
the path of their field. A class is named by its import path, and only dataclasses of our own packages, or
subclasses of Result that this process has already defined, are built again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("mechinterp", "probes", "patching", "studies")
MODULE = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*")


def encode(value: Any, tensors: dict[str, Tensor], where: str = "result") -> Any:
    """`value` as strict JSON; its tensors are put into `tensors` under their place in it.

    Raises TypeError that names the place of a value that could not be read back.
    """
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str or type(value) is int:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, list):
        return [encode(item, tensors, f"{where}/{place}") for place, item in enumerate(value)]
    if isinstance(value, tuple) and type(value) is tuple:
        return {"$tuple": [encode(item, tensors, f"{where}/{place}") for place, item in enumerate(value)]}
    if isinstance(value, dict):
        return _encode_dict(value, tensors, where)
    if isinstance(value, Path):
        return {"$path": value.as_posix()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_record(value, tensors, where)
    return _encode_numbers(value, tensors, where)


def _encode_dict(value: dict[Any, Any], tensors: dict[str, Tensor], where: str) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, tensors, f"{where}/{key}") for key, item in value.items()}
    # Keys that JSON would turn into text (1 and "1" would be one) are kept as values, in pairs.
    pairs = enumerate(value.items())
    return {
        "$dict": [
            [encode(key, tensors, f"{where}/{place}/key"), encode(item, tensors, f"{where}/{place}")]
            for place, (key, item) in pairs
        ]
    }


def _encode_record(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    kind = type(value)
    if "." in kind.__qualname__:
        raise TypeError(f"{where} is a {kind.__qualname__}; define the class at module level to save it")
    fields = [field.name for field in dataclasses.fields(value) if field.init]
    return {
        "$record": f"{kind.__module__}:{kind.__qualname__}",
        "version": getattr(kind, "VERSION", 1),
        "fields": {name: encode(getattr(value, name), tensors, f"{where}/{name}") for name in fields},
    }


def _encode_numbers(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta or value.dtype == torch.complex128:
            raise TypeError(
                f"{where} is a {value.layout} {value.dtype} tensor; make it dense and at most complex64"
            )
        tensors[where] = value.detach()
        return {"$tensor": where}
    if numpy is not None and isinstance(value, numpy.generic):
        return encode(value.item(), tensors, where)
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
        import torch as pytorch

        inner = encode(pytorch.from_numpy(value.copy()), tensors, where)
        return {"$array": inner["$tensor"]}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a result cannot hold; use tensors, numbers, text,"
        " lists, tuples, dicts, paths and dataclasses"
    )


def decode(value: Any, tensors: dict[str, Tensor], base: type) -> Any:
    """What `encode` was given. `base` is the class whose subclasses may live outside our packages.

    Raises ValueError for a tag, class or version that this code does not know.
    """
    if isinstance(value, list):
        return [decode(item, tensors, base) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, tensors, base) for key, item in value.items()}
    held = value[tag]
    match tag:
        case "$tuple":
            return tuple(decode(item, tensors, base) for item in held)
        case "$dict":
            return {decode(key, tensors, base): decode(item, tensors, base) for key, item in held}
        case "$float":
            return float(held)
        case "$path":
            return Path(held)
        case "$tensor":
            return _stored(tensors, held)
        case "$array":
            return _stored(tensors, held).numpy()
        case "$record":
            return _decode_record(value, tensors, base)
    raise ValueError(f"it holds {tag!r}, which this version does not know; delete it to recompute")


def _stored(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the tensor {name!r} is missing; delete it to recompute")
    return tensors[name]


def _decode_record(value: dict[str, Any], tensors: dict[str, Tensor], base: type) -> Any:
    kind = find_class(value["$record"], base)
    version = getattr(kind, "VERSION", 1)
    if value["version"] != version:
        raise ValueError(
            f"it holds {kind.__name__} version {value['version']} and this code reads version {version};"
            " delete it to recompute"
        )
    wanted = {field.name for field in dataclasses.fields(kind) if field.init}
    if wanted != set(value["fields"]):
        names = ", ".join(sorted(wanted ^ set(value["fields"])))
        raise ValueError(f"{kind.__name__} has other fields now ({names}); delete it to recompute")
    return kind(**{name: decode(item, tensors, base) for name, item in value["fields"].items()})


def find_class(path: str, base: type) -> type:
    """The dataclass named `module:Class`: of our packages, or an already defined subclass of `base`."""
    module, _, name = path.partition(":")
    for known in subclasses(base):
        if (known.__module__, known.__qualname__) == (module, name):
            return known
    # A leading underscore is refused too: importing a package's __main__ would run it.
    if module.partition(".")[0] not in PACKAGES or not MODULE.fullmatch(module) or not MODULE.fullmatch(name):
        raise ValueError(
            f"it names the class {path!r}, which is not ours; import the module that defines it first"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ValueError(f"it names the class {path!r}, which this version does not have") from None
    if not dataclasses.is_dataclass(found) or not isinstance(found, type) or found.__module__ != module:
        raise ValueError(f"it names {path!r}, which is no dataclass of ours")
    return found


def subclasses(base: type) -> Iterator[type]:
    """Every class derived from `base` that this process has defined, the latest definition first."""
    for child in reversed(base.__subclasses__()):
        yield child
        yield from subclasses(child)


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """The tensors as one safetensors file; views of one storage are stored as tensors of their own."""
    from safetensors.torch import save

    own: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        dense = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        storage = dense.untyped_storage().data_ptr()
        own[name] = dense.clone() if storage in storages else dense
        storages.add(storage)
    return save(own)


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of the digest given if one is.

    Raises ValueError that names the file where it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    # Read whole, not mapped: what was hashed is what is used, and a file changed later changes no tensor.
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    # safetensors finds a broken header but not a flipped bit in the numbers.
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found[:12]}, expected {sha256[:12]}; delete it to recompute"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); delete it to recompute"
        ) from None
