"""LoRA: a peft adapter on a base whose weights stay shared, and the proof that it landed.

The base's modules are left alone: the LoRA layers go into its twin, so adapter on and adapter off are two
models over one set of weights. What was applied is recorded and measured, for a lost rsLoRA flag has already
made an update 5.7 times too weak without a word (methods.md 7.6).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mechinterp import hub
from mechinterp.adapter_config import BASE_KEY, AdapterConfig, read_config
from mechinterp.adapter_weights import inject, lora_layers, merge, place, proven, read_weights
from mechinterp.backends.anatomy import Anatomy
from mechinterp.backends.protocol import BackendName
from mechinterp.digests import adapted_sha256

logger = logging.getLogger("mechinterp")


@dataclass(frozen=True, eq=False)
class Attached:
    """A twin of the base with LoRA layers over the base's own tensors, proven to do what its files say."""

    hf_model: nn.Module
    name: str
    sha256: str
    record: dict[str, Any]
    notes: tuple[str, ...] = ()

    def model(self, backend: BackendName, anatomy: Anatomy) -> tuple[nn.Module, tuple[str, ...]]:
        """What a backend is built on, and what to know of it: the twin, or a merged copy where needed."""
        if not needs_merged(backend, anatomy):
            return self.hf_model, self.notes
        what = "copies of the weights that the adapter changes, with the adapter merged into them"
        return merge(self.hf_model), (*self.notes, f"{backend} runs on {what}")

    def digest(self, base_sha256: str) -> str:
        """The digest of base and adapter together."""
        return adapted_sha256(base_sha256, self.sha256)


def needs_merged(backend: BackendName, anatomy: Anatomy) -> bool:
    """Whether a backend reads weights where others run LoRA layers.

    HookedTransformer owns its weights, and the bridge splits a fused projection by its weights alone.
    """
    return backend == "hooked_transformer" or (backend == "transformer_bridge" and anatomy.fused is not None)


def attach(
    hf_model: nn.Module, adapter: str | Path, *, base_names: Sequence[str], base_sha256: str, tokenizer: Any
) -> Attached:
    """A peft adapter (directory or hub id) over a base that is left as it is.

    Raises FileNotFoundError for what is missing, and ValueError where the adapter is for another base, its
    file and its config disagree, the base has an adapter already, or it does not do what its config says.
    """
    refuse_active_adapters(hf_model)
    source = hub.resolve_adapter(str(adapter))
    config = read_config(source.path)
    notes = [
        *_base_notes(config, base_names, base_sha256, source.path),
        *_tokenizer_notes(source.path, tokenizer),
    ]
    tensors = read_weights(source.path)
    model = inject(hf_model, config, source.path)
    notes += place(model, hf_model, tensors, source.path)
    norms = {name: proven(name, layer, config) for name, layer in lora_layers(model).items()}
    notes += _zero_notes(norms, config)
    for note in notes:
        logger.warning("%s: %s", source.name, note)
    sha256 = hub.tensors_sha256(tensors)
    record = {**source.record(), "sha256": sha256, **_effect(config, norms)}
    return Attached(model, Path(source.name).name, sha256, record, tuple(notes))


def _effect(config: AdapterConfig, norms: dict[str, float]) -> dict[str, Any]:
    """What was applied: every rank, alpha and scaling in use, and the norm of the whole change."""
    return {
        "base_model": config.base_name,
        "rank": sorted({config.rank_of(name) for name in norms}),
        "alpha": sorted({config.alpha_of(name) for name in norms}),
        "rslora": config.rslora,
        "scaling": sorted({config.scaling_of(name) for name in norms}),
        "targets": sorted({name.rpartition(".")[2] for name in norms}),
        "n_modules": len(norms),
        "modules_to_save": list(config.modules_to_save),
        "delta_norm": sum(norm**2 for norm in norms.values()) ** 0.5,
    }


def refuse_active_adapters(hf_model: nn.Module) -> None:
    """Raises ValueError where a model runs with a peft adapter: as a base it would spoil the comparison."""
    layers = [
        name for name, module in hf_model.named_modules() if type(module).__module__.startswith("peft.")
    ]
    if layers:
        raise ValueError(
            f"the base has active adapters ({len(layers)} peft modules, the first {layers[0] or 'the top'});"
            " pass the base without one, or merge it first (merge_and_unload)"
        )


def _base_notes(config: AdapterConfig, base_names: Sequence[str], base_sha256: str, path: Path) -> list[str]:
    """Refuses an adapter that recorded other base weights; another name alone proves nothing and is noted."""
    if config.base_sha256 is not None and config.base_sha256 != base_sha256:
        raise ValueError(
            f"{path} was trained on {config.base_name or 'a base'} with weights {config.base_sha256[:12]}"
            f" ({BASE_KEY}); this base, {base_names[0]}, has {base_sha256[:12]}: load the one it was"
            " trained on, by name"
        )
    ends = {_last_part(name) for name in base_names}
    if config.base_sha256 is None and config.base_name and _last_part(config.base_name) not in ends:
        return [
            f"the adapter names {config.base_name!r} as its base; it is used on {base_names[0]!r}, and fits"
        ]
    return []


def _last_part(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()


def _tokenizer_notes(path: Path, tokenizer: Any) -> list[str]:
    """Refuses an adapter saved with a tokenizer of another vocabulary; another chat template is noted."""
    if tokenizer is None or not any((path / file).is_file() for file in hub.TOKENIZER_FILES):
        return []
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(path)
    differing = sorted(set(saved.get_vocab().items()) ^ set(tokenizer.get_vocab().items()))
    if differing:
        raise ValueError(
            f"the tokenizer in {path} differs from the base's in {len(differing)} entries, such as"
            f" {differing[0][0]!r} (id {differing[0][1]}): it was trained on other ids; use its own base"
        )
    if saved.chat_template not in (None, tokenizer.chat_template):
        return ["the adapter was saved with another chat template than the base's, which is the one used"]
    return []


def _zero_notes(norms: dict[str, float], config: AdapterConfig) -> list[str]:
    zero = [name for name, norm in norms.items() if norm == 0]
    if len(zero) == len(norms) and not config.modules_to_save:
        return ["the adapter changes nothing: identical weights, every B A is zero (a checkpoint of step 0?)"]
    if zero:
        return [f"the adapter leaves {len(zero)} of its {len(norms)} modules unchanged, such as {zero[0]}"]
    return []
