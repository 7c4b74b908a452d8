"""Vectors by name: round trips, foreign formats in their own schema, and files that must be refused."""

import contextlib
import json
import os
import pickle
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from probes.vector_formats import (
    read_activations_pt,
    read_assistant_axis_pt,
    read_centroids,
    read_repeng_gguf,
    read_vectors,
)
from probes.vectors import (
    Passport,
    Vectors,
    check_for,
    load_vectors,
    prompts_digest,
    save_vectors,
    select_layers,
)

REFUSED = (ValueError, TypeError)  # TypeError: where the shapes in the signatures are enforced


@dataclass(frozen=True)
class SmallModel:
    n_layers: int = 4
    d_model: int = 6


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


def same(left: Vectors, right: Vectors) -> bool:
    return (
        left.names == right.names
        and left.layers == right.layers
        and torch.equal(left.values, right.values)
        and left.passport == right.passport
    )


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


@pytest.mark.parametrize("layers", [(1, True), (1, -1), (1, 1), (1, 2.0), (1, "2")], ids=str)
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


# activations_*.pt


def activations_file(folder: Path, **changes: object) -> Path:
    """The schema of methods 13: names with the control first, the mapping in the order of another file."""
    names = ["control", "bard", "leviathan"]
    activations = seeded(3, 4, 6)
    personas = {
        name: {"readable_name": name.title(), "system_prompt": f"You are a {name}."}
        for name in ("leviathan", "control", "bard")
    }
    content = {
        "activations": activations,
        "contrast_vectors": activations - activations[0],
        "persona_names": names,
        "personas": {"personas": personas},
        "metadata": {"model_name": "tiny", "control_key": "control", "num_layers": 4},
    } | changes
    path = folder / "activations_3.pt"
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def test_rows_follow_persona_names_and_not_the_mapping(tmp_path: Path):
    vectors = read_activations_pt(activations_file(tmp_path))
    activations = seeded(3, 4, 6)
    assert vectors.names == ("bard", "leviathan")
    for row, name in enumerate(["control", "bard", "leviathan"]):
        if name != "control":
            assert torch.equal(vectors[name, 2], activations[row, 2] - activations[0, 2])
    assert vectors.passport.reference == "control"
    assert vectors.passport.model == "tiny"


def test_activations_keep_the_control(tmp_path: Path):
    vectors = read_activations_pt(activations_file(tmp_path), kind="activation")
    assert vectors.names == ("control", "bard", "leviathan")
    assert torch.equal(vectors["bard", 3], seeded(3, 4, 6)[1, 3])


def test_metadata_may_be_missing_and_numbers_may_be_bf16(tmp_path: Path):
    contrast = (seeded(3, 4, 6) - seeded(3, 4, 6)[0]).bfloat16()
    path = activations_file(tmp_path, metadata=None, personas=None, contrast_vectors=contrast)
    assert torch.equal(read_activations_pt(path).values, contrast[1:].float())


def test_the_digest_is_of_the_prompts_by_name(tmp_path: Path):
    prompts = {name: f"You are a {name}." for name in ("bard", "control", "leviathan")}
    assert read_activations_pt(activations_file(tmp_path)).passport.prompts_digest == prompts_digest(prompts)


def test_rows_without_names_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="persona_names"):
        read_activations_pt(activations_file(tmp_path, persona_names=None))


def test_a_skipped_row_is_noticed_by_its_number(tmp_path: Path):
    with pytest.raises(ValueError, match="4 persona_names and 3 rows"):
        read_activations_pt(
            activations_file(tmp_path, persona_names=["control", "bard", "guru", "leviathan"])
        )


def test_two_zero_contrasts_are_refused_by_name(tmp_path: Path):
    contrast = seeded(3, 4, 6)
    contrast[:2] = 0
    with pytest.raises(ValueError, match="control, bard"):
        read_activations_pt(activations_file(tmp_path, contrast_vectors=contrast))


def test_fault_009_nan_in_a_file_is_refused(tmp_path: Path):
    contrast = seeded(3, 4, 6)
    contrast[0] = 0
    contrast[2, 1, 0] = float("nan")
    with pytest.raises(ValueError, match="'leviathan' at layer 1"):
        read_activations_pt(activations_file(tmp_path, contrast_vectors=contrast))


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
    contrast = (seeded(3, 4, 6) - seeded(3, 4, 6)[0]).numpy()
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
    path = activations_file(tmp_path, contrast_vectors=(seeded(3, 4, 6) - seeded(3, 4, 6)[0]).numpy())
    read_vectors(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"no tensors at all" * 20, None], ids=["empty", "text", "cut"])
def test_fault_085_a_damaged_pt_is_refused_by_its_path(tmp_path: Path, content: bytes | None):
    path = activations_file(tmp_path)
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(ValueError, match=r"activations_3\.pt"):
        read_activations_pt(path)


# Centroids


NAMES = ["villain", "assistant"]


def test_the_three_centroid_files_say_the_same(tmp_path: Path):
    centroids = {10: seeded(2, 6, seed=10), 5: seeded(2, 6, seed=5)}
    bare, layered, prefixed, single = (
        tmp_path / name for name in ("bare", "b.pt", "c.pt", "centroid_layer5.pt")
    )
    bare.mkdir()
    for layer, value in centroids.items():
        torch.save(value, bare / f"centroids_layer{layer}.pt")
    (bare / "persona_names.json").write_text(json.dumps(NAMES))
    torch.save({"centroids": centroids, "persona_names": NAMES}, layered)
    torch.save(
        {f"layer_{key}": value for key, value in centroids.items()} | {"persona_names": NAMES}, prefixed
    )
    torch.save({"centroid": centroids[5], "persona_names": NAMES}, single)
    for path in (bare, layered, prefixed):
        vectors = read_centroids(path)
        assert vectors.names == tuple(NAMES)
        assert vectors.layers == (5, 10)
        for layer, value in centroids.items():
            assert torch.equal(vectors["assistant", layer], value[1])
        assert same(read_vectors(path), vectors)
    assert torch.equal(read_centroids(single)["assistant", 5], centroids[5][1])
    assert torch.equal(read_centroids(bare / "centroids_layer10.pt")["villain", 10], centroids[10][0])


def test_a_layer_that_no_one_names_must_be_given(tmp_path: Path):
    torch.save({"centroid": seeded(2, 6), "persona_names": NAMES}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="layer="):
        read_centroids(tmp_path / "c.pt")
    assert read_centroids(tmp_path / "c.pt", layer=20).layers == (20,)
    torch.save({"centroid": seeded(2, 6), "persona_names": NAMES}, tmp_path / "layer3.pt")
    with pytest.raises(ValueError, match="layer 3"):
        read_centroids(tmp_path / "layer3.pt", layer=20)


def test_bare_centroids_without_names_are_refused(tmp_path: Path):
    torch.save(seeded(2, 6), tmp_path / "centroids_layer10.pt")
    with pytest.raises(ValueError, match=r"persona_names\.json"):
        read_centroids(tmp_path / "centroids_layer10.pt")


# The assistant axis


def test_the_axis_and_the_role_files_are_read_by_what_they_say(tmp_path: Path):
    axis, role, bare = tmp_path / "axis.pt", tmp_path / "1.pt", tmp_path / "default_vector.pt"
    torch.save(
        {
            "axis": seeded(4, 6),
            "default_mean": seeded(4, 6),
            "role_mean": seeded(4, 6),
            "n_default": 1,
            "n_roles": 9,
        },
        axis,
    )
    torch.save({"vector": seeded(4, 6), "type": "pos_3", "role": "bard"}, role)
    torch.save(seeded(4, 6).bfloat16(), bare)
    for path, name in ((axis, "assistant_axis"), (role, "bard"), (bare, "default_vector")):
        vectors = read_assistant_axis_pt(path)
        assert vectors.names == (name,)
        assert vectors.layers == (0, 1, 2, 3)
        assert torch.allclose(vectors[name, 2], seeded(4, 6)[2], atol=0.02)
        assert same(read_vectors(path), vectors)
    assert read_vectors(axis).passport.method != read_vectors(bare).passport.method


# repeng


def control_vector(path: Path, directions: dict[int, Tensor], architecture: str = "controlvector") -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    writer.add_uint32(f"{architecture}.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_repeng_direction_keeps_its_layer(tmp_path: Path):
    directions = {
        layer: seeded(6, seed=layer) for layer in (3, 1, 2)
    }  # repeng counts from the last layer down
    vectors = read_repeng_gguf(control_vector(tmp_path / "happy.gguf", directions))
    assert vectors.names == ("happy",)
    assert vectors.layers == (1, 2, 3)
    for layer, direction in directions.items():
        assert torch.equal(vectors["happy", layer], direction)
    assert vectors.passport.model == "llama"
    assert same(read_vectors(tmp_path / "happy.gguf"), vectors)


def test_a_repeng_direction_of_the_last_layer_is_no_resid_post(tmp_path: Path):
    directions = {layer: seeded(6, seed=layer) for layer in (1, 2, 3)}
    vectors = read_vectors(control_vector(tmp_path / "happy.gguf", directions))
    with pytest.raises(ValueError, match=r"layer 3 .* final norm"):
        check_for(vectors, SmallModel())
    check_for(vectors, SmallModel(n_layers=5))
    check_for(vectors, SmallModel(), layers=[1, 2])
    check_for(select_layers(vectors, [1, 2]), SmallModel())


def test_fault_005_hidden_states_are_one_ahead_and_the_last_is_normed():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 11}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **sizes)).eval()
    blocks: dict[int, Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(
            lambda _, __, out, layer=layer: blocks.update({layer: out[0] if isinstance(out, tuple) else out})
        )
    with torch.no_grad():
        states = model(torch.arange(5)[None], output_hidden_states=True).hidden_states
    assert all(torch.equal(states[layer + 1], blocks[layer]) for layer in (0, 1))
    assert not torch.allclose(states[3], blocks[2])
    assert torch.equal(states[3], model.model.norm(blocks[2]))


def test_a_gguf_that_is_no_control_vector_is_refused(tmp_path: Path):
    model = control_vector(tmp_path / "m.gguf", {1: seeded(6)}, architecture="llama")
    with pytest.raises(ValueError, match="'llama'"):
        read_repeng_gguf(model)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no tensors at all" * 9, None], ids=repr)
def test_fault_085_a_damaged_gguf_is_refused_by_its_path(tmp_path: Path, content: bytes | None):
    path = control_vector(tmp_path / "v.gguf", {1: seeded(6), 2: seeded(6)})
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(ValueError, match=r"v\.gguf"):
        read_repeng_gguf(path)


# Any file


def test_any_file_is_read_by_what_it_holds(tmp_path: Path):
    ours = save_vectors(two_vectors(), tmp_path / "v.safetensors")
    assert same(read_vectors(ours), two_vectors())
    theirs = activations_file(tmp_path)
    assert same(read_vectors(theirs), read_activations_pt(theirs))


def test_a_foreign_file_survives_being_saved_as_ours(tmp_path: Path):
    vectors = read_vectors(activations_file(tmp_path))
    assert same(load_vectors(save_vectors(vectors, tmp_path / "v.safetensors")), vectors)
    assert len(str(asdict(vectors.passport)["source_sha256"])) == 64


def test_an_unknown_file_is_answered_with_what_was_found(tmp_path: Path):
    torch.save({"weights": seeded(2, 2), "bias": seeded(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="weights, bias"):
        read_vectors(tmp_path / "x.pt")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"x\.csv"):
        read_vectors(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "absent.pt")
