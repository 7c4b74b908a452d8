"""One digest for one set of weights: the same in files, in shards and in memory; another for any other."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mechinterp.digests import safetensors_sha256, tensors_sha256
from mechinterp.files import folder_sha256

WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.tensor(3),
    "d": torch.zeros(0, 5, dtype=torch.float16),
    "e": torch.tensor([True, False]),
}


def test_files_shards_and_tensors_agree(tmp_path: Path):
    whole, shards = tmp_path / "whole.safetensors", [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    save_file(WEIGHTS, whole, metadata={"format": "pt"})
    save_file({name: WEIGHTS[name] for name in "db"}, shards[0])
    save_file({name: WEIGHTS[name] for name in "ace"}, shards[1])
    assert safetensors_sha256([whole]) == safetensors_sha256(shards) == tensors_sha256(WEIGHTS)
    assert tensors_sha256(dict(reversed(WEIGHTS.items()))) == tensors_sha256(WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(6.0).reshape(3, 2)},
        {"b": WEIGHTS["b"].view(torch.int16)},
        {"a": torch.nextafter(WEIGHTS["a"], torch.tensor(9.0))},
        {"f": torch.zeros(1)},
        {"d": torch.zeros(5, 0, dtype=torch.float16)},
    ],
    ids=["shape", "dtype", "last bit", "one more", "empty"],
)
def test_any_difference_is_another_digest(change: dict[str, torch.Tensor]):
    assert tensors_sha256({**WEIGHTS, **change}) != tensors_sha256(WEIGHTS)


def test_layout_in_memory_does_not_count_and_tied_weights_count_once():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    strided = weight.T.contiguous().T
    assert not strided.is_contiguous()
    assert tensors_sha256({"embed": strided}) == tensors_sha256({"embed": weight, "head": weight})
    assert tensors_sha256({"embed": weight, "head": weight.clone()}) != tensors_sha256({"embed": weight})
    empty = {name: torch.zeros(0, 5) for name in "ab"}  # all at address 0, and yet not one tensor
    assert tensors_sha256(empty) != tensors_sha256({"a": empty["a"]})


def test_tensors_without_values_are_refused():
    with pytest.raises(ValueError, match="meta"):
        tensors_sha256({"a": torch.empty(2, device="meta")})


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "trailing", "huge header"])
def test_fault_085_damaged_safetensors_are_named(damage: str, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "garbage": b"\xff" * 200,
        "truncated": whole[:-1],
        "trailing": whole + b"\0",
        "huge header": (1 << 60).to_bytes(8, "little") + whole[8:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        safetensors_sha256([path])


def test_a_folder_has_the_digest_of_its_files_and_their_names(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, name in ((one, "a.json"), (two, "a.json")):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / name).write_text("{}")
    assert folder_sha256(one) == folder_sha256(two)
    (two / "sub" / "a.json").write_text("[]")
    assert folder_sha256(one) != folder_sha256(two)
    (two / "sub" / "a.json").write_text("{}")
    (two / "sub" / "a.json").rename(two / "sub" / "b.json")
    assert folder_sha256(one) != folder_sha256(two)


def test_a_run_has_the_digest_of_its_cells_whatever_else_lies_there(tmp_path):
    (tmp_path / "digests.json").write_text('{"cell": "ab"}')
    before = folder_sha256(tmp_path)
    (tmp_path / "log.jsonl").write_text("a line that a second start adds")
    assert folder_sha256(tmp_path) == before
