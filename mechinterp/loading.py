"""Names, directories and loaded objects become a `Model`: one door, whatever the library.

What is loaded is recorded (`Model.source`) and verified: three tokens say whether the sites are where they
should be, and a wrong anatomy is refused before anyone reads a number from it.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mechinterp import hub
from mechinterp.adapter_weights import merge
from mechinterp.adapters import Attached, attach, refuse_active_adapters
from mechinterp.backends.anatomy import Anatomy, anatomy_of, config_of
from mechinterp.backends.protocol import Backend, BackendName
from mechinterp.backends.verify import verify as verify_sites
from mechinterp.model import Model
from mechinterp.wrappers import ready_made, unwrapped

logger = logging.getLogger("mechinterp")
DType = Literal["auto", "float32", "bfloat16", "float16"]
UNVERIFIED = "sites not verified"
OWN_ATTENTION = ("hooked_transformer", "transformer_bridge")  # they compute scores and patterns themselves


def load(
    name: str,
    *,
    backend: BackendName = "transformers",
    adapter: str | Path | None = None,
    dtype: DType | torch.dtype = "auto",
    device: str = "auto",
    revision: str | None = None,
    subfolder: str | None = None,
    anatomy: Anatomy | None = None,
    verify: bool = True,
    remote: bool = False,
) -> Model:
    """A model by name: the embedded one, a Hugging Face id (`id@revision:subfolder`), or a local directory.

    dtype "auto" is the checkpoint's own on a GPU and float32 on a CPU. device "auto" is the GPU where there
    is one, else the CPU; "balanced" spreads the layers over all devices (accelerate's device_map). `adapter`
    is a peft directory or id whose effect is proven before it is returned. `remote`, with backend "nnsight",
    leaves an id's weights on an NDIF server, which runs single passes. Raises ValueError or OSError with what
    to do.
    """
    _check_backend(backend)
    if remote:
        from mechinterp.elsewhere import load_remote

        inside = hub.parsed(name, revision, subfolder).subfolder
        if backend != "nnsight" or adapter is not None or inside is not None or Path(name).is_dir():
            raise ValueError(
                'remote=True is for an id on backend="nnsight", without an adapter or a subfolder; leave it'
                " out to load the weights here"
            )
        return _checked(load_remote(name, revision=revision), verify)
    source = hub.resolve(name, revision=revision, subfolder=subfolder)
    hf_model = _load_weights(source.path, dtype, device)
    refuse_active_adapters(hf_model)  # transformers puts one on by itself where it lies beside the weights
    record = source.record()
    digest = hub.weights_sha256(source.path)
    tokenizer = _load_tokenizer(source.tokenizer_path)
    if adapter is None:
        return _build(hf_model, tokenizer, name, backend, digest, record, anatomy, verify)
    names = (source.name, str(source.path))
    attached = attach(hf_model, adapter, base_names=names, base_sha256=digest, tokenizer=tokenizer)
    row = anatomy or anatomy_of(hf_model.config)
    return _adapted(attached, tokenizer, name, backend, digest, record, row, verify)


def with_adapter(base: Model, adapter: str | Path) -> Model:
    """A loaded base with a peft adapter on: another `Model` over the same weights; the base stays off.

    Raises as `load`, and ValueError for a base whose library keeps no Hugging Face model to share.
    """
    attached = _attached(base, adapter)
    made: Any = base.backend
    verify = UNVERIFIED not in base.notes
    digest, record = base.weights_sha256, base.source
    return _adapted(attached, base.tokenizer, base.name, made.name, digest, record, made.anatomy, verify)


def merge_adapter(base: Model, adapter: str | Path) -> Model:
    """A loaded base with a peft adapter merged in: a base itself, which takes the next adapter.

    The weights that the adapter changes are copies; all others are shared, and the base stays as it is.
    Raises as `with_adapter`, and ValueError where the merged model's logits are not those of the adapter.
    """
    attached = _attached(base, adapter)
    made: Any = base.backend
    record = {**base.source, "merged": [*base.source.get("merged", ()), attached.record]}
    model = _build(
        merge(attached.hf_model), base.tokenizer, f"{base.name}+{attached.name}", made.name,
        attached.digest(base.weights_sha256), record, made.anatomy, UNVERIFIED not in base.notes,
    )  # fmt: skip
    return replace(model, notes=(*model.notes, *attached.notes))


def _attached(base: Model, adapter: str | Path) -> Attached:
    if "adapter" in base.source:
        raise ValueError(
            f"{base.name} has active adapters; give the base without one, or merge_adapter(base, ...) first"
        )
    made: Any = base.backend
    hf_model = made.model if made.name == "transformers" else getattr(made, "hf_model", None)
    if hf_model is None:
        raise ValueError(
            f"the {made.name} backend of {base.name} keeps no Hugging Face model to put an adapter on; write"
            f" load(name, backend={made.name!r}, adapter=...)"
        )
    names, digest = (base.source["name"], base.name), base.weights_sha256
    return attach(hf_model, adapter, base_names=names, base_sha256=digest, tokenizer=base.tokenizer)


def _adapted(
    attached: Attached,
    tokenizer: Any,
    base_name: str,
    backend: BackendName,
    base_sha256: str,
    record: dict[str, Any],
    anatomy: Anatomy,
    verify: bool,
) -> Model:
    hf_model, notes = attached.model(backend, anatomy)
    name, digest = f"{base_name}+{attached.name}", attached.digest(base_sha256)
    record = {**record, "adapter": attached.record}
    model = _build(hf_model, tokenizer, name, backend, digest, record, anatomy, verify)
    return replace(model, notes=(*model.notes, *notes))


def wrap(
    hf_model: nn.Module,
    tokenizer: Any,
    *,
    backend: BackendName = "transformers",
    name: str | None = None,
    anatomy: Anatomy | None = None,
    verify: bool = True,
) -> Model:
    """A model object that you have already: Hugging Face's, nnsight's or transformer-lens's.

    The object, its config, modules, hooks and attention implementation are left as they are.
    """
    _check_backend(backend)
    ready = ready_made(hf_model, backend)
    config: Any = getattr(hf_model, "config", None) or getattr(hf_model, "cfg", None)
    label = (
        name
        or getattr(config, "_name_or_path", "")
        or getattr(config, "model_name", "")
        or type(hf_model).__name__
    )
    record = {"name": label, "kind": "object", "revision": None, "subfolder": None}
    if ready is not None:
        digest, ends = hub.tensors_sha256(hf_model.state_dict()), eos_of(hf_model, tokenizer)
        return _checked(Model(label, ready, tokenizer, digest, record, (), ends), verify)
    inner = unwrapped(hf_model)
    digest = hub.tensors_sha256(hf_model.state_dict())
    return _build(inner, tokenizer, label, backend, digest, record, anatomy, verify)


def _build(
    hf_model: nn.Module,
    tokenizer: Any,
    name: str,
    backend: BackendName,
    digest: str,
    record: dict[str, Any],
    anatomy: Anatomy | None,
    verify: bool,
) -> Model:
    row = anatomy or anatomy_of(hf_model.config)
    made, notes = make_backend(backend, hf_model, row)
    record = {
        **record,
        "dtype": str(made.dtype).removeprefix("torch."),
        "attention": "eager"
        if backend in OWN_ATTENTION
        else getattr(config_of(hf_model, row), "_attn_implementation", None),
        "architecture": hf_model.config.model_type,  # pyright: ignore
    }
    return _checked(Model(name, made, tokenizer, digest, record, notes, eos_of(hf_model, tokenizer)), verify)


def eos_of(hf_model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a turn or a text: of the tokenizer, the config and the generation config."""
    found: set[int] = set()
    for holder in (
        getattr(hf_model, "generation_config", None),
        getattr(hf_model, "config", None),
        tokenizer,
    ):
        value = getattr(holder, "eos_token_id", None)
        found |= set(value) if isinstance(value, (list, tuple)) else {value} if value is not None else set()
    return frozenset(map(int, found))


def make_backend(
    backend: BackendName, hf_model: nn.Module, anatomy: Anatomy
) -> tuple[Backend, tuple[str, ...]]:
    """The library's side of a model, and what its user must know about it."""
    notes: tuple[str, ...] = ()
    if hf_model.training:
        notes = (
            "the model was in train() mode; it runs in eval() here, without dropout, and its mode is kept",
        )
    if backend == "transformers":
        from mechinterp.backends.transformers import TransformersBackend

        return TransformersBackend(hf_model, anatomy), notes
    if backend == "nnsight":
        from mechinterp.backends.nnsight import NNsightBackend

        return NNsightBackend(hf_model, anatomy), notes
    from mechinterp.backends import transformer_lens as lens

    if backend == "transformer_bridge":
        return lens.bridge(hf_model, anatomy), notes
    copied = "HookedTransformer re-lays the weights and owns a second copy of them"
    return lens.hooked_transformer(hf_model, anatomy), (*notes, copied)


def _checked(model: Model, verify: bool) -> Model:
    if not verify:
        return replace(model, notes=(*model.notes, UNVERIFIED))
    verify_sites(model.backend)
    for note in model.notes:
        logger.info("%s: %s", model.name, note)
    return model


def _load_weights(path: Path, dtype: DType | torch.dtype, device: str) -> nn.Module:
    """A causal model from safetensors on disk; where one device holds it, no dispatch hooks are added."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    spread = device in ("balanced", "sequential")
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kwargs: dict[str, Any] = {"device_map": device} if spread else {}
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=_dtype(dtype, place), use_safetensors=True, **kwargs
        )
    finally:
        if shown:
            hf_logging.enable_progress_bar()
    if not spread:
        model.to(place)  # pyright: ignore[reportArgumentType]  # its decorator hides the signature
    return model.eval()


def _dtype(dtype: DType | torch.dtype, place: str) -> Any:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if place == "cpu" else "auto"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype {dtype!r} is not one of auto, float32, bfloat16, float16")
    return getattr(torch, dtype)


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _check_backend(backend: str) -> None:
    known = BackendName.__args__
    if backend not in known:
        raise ValueError(f"there is no backend {backend!r}; the backends are {', '.join(known)}")
