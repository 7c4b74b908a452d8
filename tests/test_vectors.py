"""Vectors by name: round trips, foreign formats in their own schema, and files that must be refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from probes.vectors import (
    Passport,
    Vectors,
    check_for,
    load_vectors,
    prompts_digest,
    save_vectors,
    select_layers,
)
from tests.small_vectors import SmallModel, same, seeded

REFUSED = (ValueError, TypeError)  # TypeError: where the shapes in the signatures are enforced


def two_vectors() -> Vectors:
    passport = Passport(
        model="tiny",
        method="mean_difference",
        positions="gen_prompt_last",
        n_target=3,
        n_reference=3,
        split_half=((0.5, None), (0.25, 1.0)),
    )
    return Vectors(("villain", "librarian"), (3, 1), seeded(2, 2, 6), passport)


# Our own file


def test_saving_and_loading_gives_the_same_vectors(tmp_path: Path):
    vectors = two_vectors()
    assert same(load_vectors(save_vectors(vectors, tmp_path / "v.safetensors")), vectors)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path):
    first = save_vectors(two_vectors(), tmp_path / "a.safetensors").read_bytes()
    assert save_vectors(two_vectors(), tmp_path / "b.safetensors").read_bytes() == first


def test_saving_leaves_no_other_file_and_refuses_another_suffix(tmp_path: Path):
    save_vectors(two_vectors(), tmp_path / "new" / "v.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["v.safetensors"]
    with pytest.raises(ValueError, match=r"v\.safetensors"):
        save_vectors(two_vectors(), tmp_path / "v.pt")


def test_bf16_values_survive_as_the_same_numbers(tmp_path: Path):
    values = seeded(1, 2, 6).bfloat16()
    saved = save_vectors(Vectors(("a",), (0, 1), values, Passport()), tmp_path / "v.safetensors")
    assert torch.equal(load_vectors(saved).values, values.float())


def test_a_vector_is_found_by_name_whatever_the_order_of_the_rows():
    vectors = two_vectors()
    turned = Vectors(vectors.names[::-1], vectors.layers[::-1], vectors.values.flip(0, 1), Passport())
    for name in vectors.names:
        for layer in vectors.layers:
            assert torch.equal(vectors[name, layer], turned[name, layer])


def test_the_table_has_a_row_for_every_name_and_layer():
    vectors = two_vectors()
    table = vectors.to_dataframe().set_index(["name", "layer"])
    assert len(table) == 4
    for name, layer in table.index:
        assert table.loc[(name, layer), "norm"] == pytest.approx(float(vectors[name, layer].norm()))
    assert table.loc[("librarian", 1), "split_half"] == 1.0


def test_the_figure_has_a_line_for_every_name():
    figure = two_vectors().figure()
    assert {trace.name for trace in figure.data} >= {"villain", "librarian"}


def test_selected_layers_keep_their_vectors_and_their_split_half():
    vectors = two_vectors()
    chosen = select_layers(vectors, [1])
    assert chosen.layers == (1,)
    assert torch.equal(chosen["villain", 1], vectors["villain", 1])
    assert chosen.passport.split_half == ((None,), (1.0,))
    with pytest.raises(ValueError, match="layer 2"):
        select_layers(vectors, [2])


def test_a_prompts_digest_knows_the_texts_and_not_their_order():
    assert prompts_digest({"a": "x", "b": "y"}) == prompts_digest({"b": "y", "a": "x"})
    assert prompts_digest({"a": "x", "b": "y"}) != prompts_digest({"a": "y", "b": "x"})


def test_what_is_not_there_is_answered_with_what_is():
    vectors = two_vectors()
    with pytest.raises(ValueError, match="villain, librarian"):
        vectors["villian", 3]
    with pytest.raises(ValueError, match="3, 1"):
        vectors["villain", 2]


@pytest.mark.parametrize("layers", [(0, True), (1, -1), (1, 1), (1, 2.0), (1, "2")], ids=str)
def test_fault_002_layers_are_distinct_integers_from_zero(layers: tuple):
    with pytest.raises(REFUSED):
        Vectors(("a",), layers, seeded(1, 2, 6), Passport())


def test_fault_002_a_flag_is_not_layer_one():
    with pytest.raises(REFUSED):
        two_vectors()["villain", True]


def test_fault_006_vectors_of_another_width_are_refused_with_both_widths():
    with pytest.raises(ValueError, match=r"6 numbers.* d_model 8"):
        check_for(two_vectors(), SmallModel(d_model=8))


def test_fault_006_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match=r"layer 3.* 0\.\.2"):
        check_for(two_vectors(), SmallModel(n_layers=3))
    check_for(two_vectors(), SmallModel(n_layers=3), layers=[1])
    check_for(two_vectors(), SmallModel())


@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 6), (1, 1, 6), (2, 3, 6)], ids=str)
def test_fault_007_values_of_another_shape_are_never_broadcast(shape: tuple[int, ...]):
    with pytest.raises(REFUSED):
        Vectors(("a", "b"), (0, 1), seeded(*shape), Passport())


def test_fault_008_a_name_alone_is_answered_with_the_way_to_one_layer():
    with pytest.raises(REFUSED, match="name, layer|key"):
        two_vectors()["villain"]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_fault_009_vectors_that_are_not_finite_are_refused_by_name_and_layer(bad: float):
    values = seeded(2, 2, 6)
    values[1, 0, 4] = bad
    with pytest.raises(ValueError, match="'librarian' at layer 3"):
        Vectors(("villain", "librarian"), (3, 1), values, Passport())


@pytest.mark.parametrize("names", [("a", "A"), ("café", "cafe\u0301"), ("a", ""), ("a", " ")], ids=ascii)
def test_fault_054_names_that_are_empty_or_equal_are_refused(names: tuple[str, str]):
    with pytest.raises(ValueError, match="name"):
        Vectors(names, (0, 1), seeded(2, 2, 6), Passport())


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "tail"])
def test_fault_085_a_damaged_file_is_refused_by_its_path(tmp_path: Path, damage: str):
    path = save_vectors(two_vectors(), tmp_path / "v.safetensors")
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-9], "empty": b"", "text": b"no tensors", "tail": whole + b"x"}[damage])
    with pytest.raises(ValueError, match=r"v\.safetensors is damaged"):
        load_vectors(path)


def test_fault_086_one_flipped_bit_is_noticed(tmp_path: Path):
    path = save_vectors(two_vectors(), tmp_path / "v.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        load_vectors(path)


def test_safetensors_of_somebody_else_are_refused_with_their_tensors(tmp_path: Path):
    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        load_vectors(tmp_path / "m.safetensors")


def test_fault_091_a_passport_with_nan_is_not_written(tmp_path: Path):
    vectors = two_vectors()
    table = ((float("nan"), 0.0), (0.0, 0.0))
    broken = Vectors(
        vectors.names, vectors.layers, vectors.values, replace(vectors.passport, split_half=table)
    )
    with pytest.raises(ValueError):
        save_vectors(broken, tmp_path / "v.safetensors")
    assert not list(tmp_path.iterdir())
