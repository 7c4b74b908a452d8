"""Files of other people, each in its own schema: rows by name, layers by our numbering."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
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
from tests.small_vectors import SmallModel, same, seeded

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
    ours = Vectors(("villain",), (3, 1), seeded(1, 2, 6), Passport(model="tiny"))
    assert same(read_vectors(save_vectors(ours, tmp_path / "v.safetensors")), ours)
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
