"""The model in training: peft's LoRA over a twin of the base, whose weights are shared and never change."""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechinterp.adapters import refuse_active_adapters
from mechinterp.backends.transformers import TransformersBackend
from mechinterp.backends.twin import twin
from mechinterp.model import Model
from studies.finetune_config import Lora


def trainable(base: Model, lora: Lora, *, seed: int) -> Any:
    """peft's model over a twin of the base: own modules, own parameter objects, the base's very tensors.

    Only the LoRA weights take gradients, and the base's flags stay as they are. Raises ValueError for another
    backend than transformers, a base with an adapter, and targets that the base has not.
    """
    from peft import LoraConfig, get_peft_model

    if base.backend.name != "transformers":
        raise ValueError(
            f"{base.name} runs on {base.backend.name}; training needs backend='transformers', and every"
            " backend runs the adapter that comes of it"
        )
    own: Any = base.backend
    refuse_active_adapters(own.model)
    model = twin(own.model)
    _with_own_parameters(model)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  # peft multiplies it, nothing more
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    with seeded(seed), warnings.catch_warnings():
        # peft asks by a name that transformers is giving up; nothing that a user could change.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]


def _with_own_parameters(model: nn.Module) -> None:
    """Parameters that share the base's storage but have flags and gradients of their own; ties are kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
            setattr(module, name, made[id(parameter)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators at a seed, as peft and the Trainer want them, and back as the caller had them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def live(base: Model, trained: Any) -> Model:
    """The model in training as a `Model`, to be sampled from; it shares the weights that are trained."""
    own: Any = base.backend
    backend = TransformersBackend(trained.base_model.model, own.anatomy)
    return replace(base, name=f"{base.name}+training", backend=backend, notes=())


def weights_of(trained: Any) -> dict[str, Tensor]:
    """Copies of the LoRA weights, by peft's names, in their own precision."""
    from peft import get_peft_model_state_dict

    return {name: t.detach().clone() for name, t in get_peft_model_state_dict(trained).items()}


def put_weights(trained: Any, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless these are just the LoRA weights of the model, in their shapes."""
    from peft import set_peft_model_state_dict

    there = {name: tuple(t.shape) for name, t in weights_of(trained).items()}
    given = {name: tuple(t.shape) for name, t in weights.items()}
    if there != given:
        wrong = sorted(name for name in {*there, *given} if there.get(name) != given.get(name))
        raise ValueError(
            f"the weights are of another adapter: {wrong[0]} is {given.get(wrong[0], 'missing')}, not"
            f" {there.get(wrong[0], 'there')}; train with the same rank and targets"
        )
    set_peft_model_state_dict(trained, dict(weights))


@dataclass(frozen=True, eq=False)
class Earlier:
    """What training goes on from: an earlier round's model, its LoRA weights, and the number of the next."""

    model: Model
    weights: Mapping[str, Tensor]
    round_index: int


def earlier(base: Model, lora: Lora, weights: Mapping[str, Tensor], *, round_index: int) -> Earlier:
    """The model that `weights_of` was taken from, to be trained further; `round_index` counts from 0."""
    model = trainable(base, lora, seed=0)
    put_weights(model, weights)
    return Earlier(live(base, model), weights, round_index)
