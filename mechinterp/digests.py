"""What makes two sets of weights the same: one SHA-256 over names, dtypes, shapes and bytes.

The digest of a directory's safetensors files, of the tensors read from them and of the model that was loaded
from them in the stored dtype is the same string, however the files are sharded.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from mechinterp.json_io import canonical_sha256

if TYPE_CHECKING:
    from torch import Tensor

# torch's name of a dtype -> the name in a safetensors header
STORED_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def tensors_sha256(state_dict: "Mapping[str, Tensor]") -> str:
    """Digest of named tensors; of several names for one tensor (tied weights) the first counts."""
    described = [_described(name, tensor) for name, tensor in _without_aliases(state_dict).items()]
    return _combined(described)


def safetensors_sha256(files: Iterable[Path]) -> str:
    """Digest of the tensors in safetensors files together; equal to `tensors_sha256` of what they hold."""
    described: list[Callable[[], str]] = []
    for file in files:
        described += _described_file(file)
    return _combined(described)


def adapted_sha256(base_sha256: str, adapter_sha256: str) -> str:
    """Digest of a base and an adapter on it, from the digests of their tensors."""
    return canonical_sha256([base_sha256, adapter_sha256])


def _combined(described: "Iterable[Callable[[], str]]") -> str:
    # hashlib lets go of the interpreter while it hashes, so threads count.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lines = sorted(pool.map(lambda describe: describe(), described))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _line(name: str, dtype: str, shape: Iterable[int], content: "memoryview | mmap.mmap") -> str:
    return json.dumps([name, dtype, list(shape), hashlib.sha256(content).hexdigest()])


def _without_aliases(state_dict: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    distinct: dict[tuple, str] = {}
    for name, tensor in state_dict.items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values; load the model before digesting it"
            )
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        distinct.setdefault(place if tensor.numel() else (name,), name)
    return {name: state_dict[name] for name in distinct.values()}


def _described(name: str, tensor: "Tensor") -> Callable[[], str]:
    import torch

    dtype = STORED_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise ValueError(
            f"{name} has dtype {tensor.dtype}, which safetensors cannot store; digest the plain model"
        )

    def describe() -> str:
        # Copied to the host one at a time: a second copy of a large model would not fit.
        flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        return _line(name, dtype, tensor.shape, flat.numpy().data)

    return describe


def _described_file(file: Path) -> list[Callable[[], str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass  # checks that header and file length agree, which the reading below relies on
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); fetch or save it again") from error
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))[8 + size :]
    return [_describe_slice(name, entry, content) for name, entry in header.items() if name != "__metadata__"]


def _describe_slice(name: str, entry: dict, content: memoryview) -> Callable[[], str]:
    begin, end = entry["data_offsets"]
    return lambda: _line(name, entry["dtype"], entry["shape"], content[begin:end])
