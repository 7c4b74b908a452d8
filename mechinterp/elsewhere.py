"""A model that stays where it is: loaded without weights, its passes run by nnsight on an NDIF server."""

from __future__ import annotations

import hashlib
from typing import Any

from mechinterp import hub
from mechinterp.model import Model


def load_remote(name: str, *, revision: str | None) -> Model:
    """A model by its Hugging Face id, not verified; only its configuration and tokenizer are fetched.

    Its digest is that of name and revision: nobody here sees the weights. Raises ConnectionError where the
    hub or the server does not answer.
    """
    from mechinterp.backends.nnsight_remote import RemoteBackend, weightless
    from mechinterp.loading import eos_of
    from mechinterp.shapes import small_files

    wanted = hub.parsed(name, revision, None)
    repository, revision = wanted.name, wanted.revision
    small_files(repository, revision)
    root: Any = weightless(repository, revision)
    backend = RemoteBackend(root)
    digest = hashlib.sha256(f"remote {repository}@{revision}".encode()).hexdigest()
    record = {"name": repository, "kind": "remote", "revision": revision, "subfolder": None}
    record |= {
        "dtype": str(backend.dtype).removeprefix("torch."),
        "architecture": root._module.config.model_type,
    }
    notes = ("the model runs on an NDIF server; its weights were not seen here",)
    tokenizer = root.tokenizer
    return Model(name, backend, tokenizer, digest, record, notes, eos_of(root._module, tokenizer))
