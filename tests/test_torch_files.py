"""Files of unknown origin: no code of theirs is ever run, and what is refused is refused by name."""

import contextlib
import os
import pickle
import random
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from probes.vector_formats import read_activations_pt, read_assistant_axis_pt, read_centroids, read_vectors


def activations_file(folder: Path, **changes: object) -> Path:
    """The schema of methods 13, in the smallest file that has it."""
    content = {"contrast_vectors": contrasts(), "persona_names": ["control", "bard", "leviathan"]} | changes
    path = folder / "activations_3.pt"
    torch.save(content, path)
    return path


def contrasts() -> Tensor:
    activations = torch.randn((3, 4, 6), generator=torch.Generator().manual_seed(0))
    return activations - activations[0]


class TouchesAFile:
    """A pickle that runs a command when it is opened by an ordinary unpickler."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("nested", ["value", "numpy", "bare", "raw"])
def test_fault_087_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, nested: str):
    mark, path = tmp_path / "executed", tmp_path / "evil.pt"
    evil = TouchesAFile(mark)
    if nested == "raw":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    elif nested == "numpy":
        torch.save({"activations": numpy.array([evil], dtype=object)}, path)
    else:
        torch.save(evil if nested == "bare" else {"persona_names": ["a"], "metadata": evil}, path)
    for reader in (read_activations_pt, read_centroids, read_assistant_axis_pt, read_vectors):
        with pytest.raises(ValueError, match="could run code"):
            reader(path)
    assert not mark.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)  # the trap is real: opened with trust, it does run
    assert mark.exists()


def test_fault_088_numpy_arrays_of_floats_are_taken(tmp_path: Path):
    plain = read_activations_pt(activations_file(tmp_path))
    contrast = contrasts().numpy()
    legacy = read_activations_pt(activations_file(tmp_path, contrast_vectors=contrast))
    assert torch.equal(plain.values, legacy.values)


@pytest.mark.parametrize(
    "value",
    [Path("x"), numpy.array(["a"]), random.Random(0), numpy.float64(3)],
    ids=lambda v: type(v).__name__,
)
def test_fault_088_other_objects_are_refused_by_name(tmp_path: Path, value: object):
    with pytest.raises(ValueError, match=r"could run code|asks for"):
        read_activations_pt(activations_file(tmp_path, metadata={"model_name": value}))


def test_fault_088_reading_leaves_no_lasting_trust(tmp_path: Path):
    path = activations_file(tmp_path, contrast_vectors=contrasts().numpy())
    read_vectors(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"no tensors at all" * 20, None], ids=["empty", "text", "cut"])
def test_fault_085_a_damaged_pt_is_refused_by_its_path(tmp_path: Path, content: bytes | None):
    path = activations_file(tmp_path)
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(ValueError, match=r"activations_3\.pt"):
        read_activations_pt(path)
