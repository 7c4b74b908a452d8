"""A repository of the Hugging Face hub as a local snapshot: cached, downloaded, or an error within seconds.

Only safetensors, JSON and tokenizer files are ever fetched; `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and
`HF_HUB_OFFLINE` mean what they mean to huggingface_hub.
"""

import contextlib
import glob
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mechinterp.wheels import offline

TIMEOUT = 3.0  # seconds for the hub's first answer; a silent one is asked twice
SMALL = {".json", ".txt", ".model", ".jinja"}


def cached_snapshot(repository: str, *, revision: str | None, file: str) -> Path | None:
    """The root of the cached snapshot that has `file`, or None; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found).parents[len(PurePosixPath(file).parts) - 1] if isinstance(found, str) else None


def hub_is_off() -> bool:
    """Whether the user has forbidden downloads, with `HF_HUB_OFFLINE` or `MECHINTERP_OFFLINE`."""
    from huggingface_hub import constants

    return offline() or constants.HF_HUB_OFFLINE


def download_snapshot(repository: str, *, revision: str | None, subfolder: str | None, ways_out: str) -> Path:
    """The root of a snapshot with the loadable files of `subfolder`; its directory name is the commit."""
    from huggingface_hub import HfApi, snapshot_download

    if hub_is_off():
        raise ConnectionError(
            f"{repository} is not complete in the cache, and HF_HUB_OFFLINE or MECHINTERP_OFFLINE is set; "
            f"{ways_out}"
        )
    with _in_our_words(repository, revision, ways_out):
        listed = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT).siblings or []
        files = _loadable(repository, [entry.rfilename for entry in listed], subfolder or "")
        patterns = [glob.escape(file) for file in files]
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns, etag_timeout=TIMEOUT)
        )


def download_small_files(repository: str, *, revision: str | None, ways_out: str) -> Path:
    """The root of a snapshot with configuration and tokenizer, and no weights."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in sorted(SMALL)]
    with _in_our_words(repository, revision, ways_out):
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns, etag_timeout=TIMEOUT)
        )


def pickle_message(where: str, file: str) -> str:
    """Why weights that are only there as a pickle are not loaded, and what to do."""
    return (
        f"{where} has its weights only as {file}, a pickle, which could run code; "
        "load it where you trust it and save_pretrained it again as safetensors"
    )


def _loadable(repository: str, files: list[str], subfolder: str) -> list[str]:
    """What of a repository is fetched: one set of weights in `subfolder`, small files there and above."""

    def folder(file: str) -> str:
        return file.rpartition("/")[0]

    here = [file for file in files if folder(file) == subfolder]
    if not here:
        raise FileNotFoundError(
            f"{repository} has no files in {subfolder!r}; leave the subfolder out or correct it"
        )
    weights = {PurePosixPath(file).name: file for file in here if file.endswith(".safetensors")}
    # Mistral repositories hold all weights twice, in their own format too; others hold shards and the whole.
    weights = {name: file for name, file in weights.items() if not name.startswith("consolidated")}
    pickled = [file for file in here if file.endswith((".bin", ".pt", ".pth"))]
    if pickled and not weights:
        raise ValueError(pickle_message(repository, pickled[0]))
    chosen = [weights["model.safetensors"]] if "model.safetensors" in weights else list(weights.values())
    small = [
        file for file in files if folder(file) in {subfolder, ""} and PurePosixPath(file).suffix in SMALL
    ]
    return chosen + small


@contextlib.contextmanager
def _in_our_words(repository: str, revision: str | None, ways_out: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, by hub version
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise PermissionError(
            f"{repository} is gated; accept its terms on its page and set HF_TOKEN to a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} has no revision {revision!r}; write a branch, tag or commit that its page lists"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the hub shows no {repository} to you; correct it, set HF_TOKEN if it is private, or {ways_out}"
        ) from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ConnectionError(
            f"{repository} could not be fetched ({type(error).__name__}: {said}); {ways_out}"
        ) from error
