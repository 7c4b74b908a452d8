"""Open .pt files of unknown origin: tensors, plain containers and numpy arrays, and never any code."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy._core import multiarray
from torch import Tensor


def load_tensors(path: Path) -> object:
    """What torch.save wrote, on the CPU; raises ValueError for a file that asks for anything executable.

    There is no way to ask for more trust: a pickle that names a function other than numpy's array
    constructor is not opened at all.
    """
    try:
        with torch.serialization.safe_globals(_numpy_arrays()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} asks for {named[1] if named else 'Python objects'}, which could run code, so it was not "
            "opened; ask its author for a file of tensors, lists, dicts and texts only"
        ) from error
    except (RuntimeError, EOFError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no torch file: {str(error)[:200]}") from error


def tensor_of(path: Path, value: object, axes: int) -> Tensor:
    """fp32 tensor of so many axes from a float tensor or array; raises ValueError saying what was found."""
    if isinstance(value, numpy.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != axes:
        raise ValueError(f"{path} holds {described(value)} where floats with {axes} axes are expected")
    return value.float()


def mapping_of(path: Path, value: object, *keys: str) -> Mapping[str, Any]:
    """The dict itself, once it holds all these keys; raises ValueError saying what was found."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} holds {described(value)} where a dict with {', '.join(keys)} is expected")
    for key in keys:
        if key not in value:
            raise ValueError(f"{path} holds {described(value)} and no {key!r}")
    return value


def names_of(path: Path, names: object) -> tuple[str, ...]:
    """Names of rows as a tuple; raises ValueError for anything but a list of texts."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: persona_names is {described(names)}; it must be a list of texts")
    return tuple(names)


def described(value: object) -> str:
    """What was found, for an error message; no more of it than a line."""
    if isinstance(value, Tensor | numpy.ndarray):
        return f"an array of the shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(str(key) for key in list(value)[:8]) or 'nothing'}"
    return f"a {type(value).__name__}"


def _numpy_arrays() -> list:
    """What a pickled float array is made of, under the old and the new names of numpy's module."""
    kinds = [type(numpy.dtype(name)) for name in ("float16", "float32", "float64")]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    constructors = [(multiarray._reconstruct, f"{module}._reconstruct") for module in modules]
    return [numpy.ndarray, numpy.dtype, *kinds, *constructors]
