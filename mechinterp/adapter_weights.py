"""An adapter's tensors are put into a model, and each LoRA layer is run to see what it adds there.

Every tensor of the file must arrive bit for bit, none may be missing or left over, and what a layer adds must
be the `scaling * B A x` of its config.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechinterp.adapter_config import AdapterConfig
from mechinterp.backends.twin import twin
from mechinterp.backends.verify import TOLERANCE as VERIFY_TOLERANCE

NAME = "default"  # peft's name for the only adapter of a model
WEIGHTS = "adapter_model.safetensors"
# TF32 products are off by 1e-3, a wrong scaling by 0.3 or more (rsLoRA or not at rank 2).
TOLERANCE = 1e-2


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by the path of the module that each stands for."""
    from peft.tuners.lora.layer import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (path / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{path} has no {WEIGHTS}; save the adapter again with peft's save_pretrained"
        )
    try:
        tensors = load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is damaged ({error}); fetch or save it again") from error
    bad = [
        name
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() or not tensor.isfinite().all()
    ]
    if bad:
        raise ValueError(
            f"{path / WEIGHTS} holds NaN, infinity or integers in {bad[0]}; train or save it again"
        )
    return tensors


def inject(base: nn.Module, config: AdapterConfig, path: Path) -> nn.Module:
    """A twin with empty LoRA layers where the config wants them, and copies of the modules trained whole."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora.layer import Linear
    from peft.utils import ModulesToSaveWrapper

    model = twin(base)
    trainable = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    try:
        # On the meta device: no values are drawn, so the caller's random numbers stay as they are.
        inject_adapter_in_model(config.for_peft(), model, NAME, low_cpu_mem_usage=True)
    except ValueError as error:
        raise ValueError(f"{path} does not fit {type(base).__name__}: {error}") from error
    finally:
        for parameter, flag in trainable:  # peft freezes the tensors that it finds, and these are the base's
            parameter.requires_grad_(flag)
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[NAME].requires_grad_(False))
    for name, layer in lora_layers(model).items():
        if type(layer) is not Linear:
            raise ValueError(
                f"{path} targets {name}, a {type(layer.base_layer).__name__}; only linear layers are"
                " supported: merge the adapter (merge_and_unload) and load the merged model"
            )
    if missed := config.unmatched(lora_layers(model)):
        raise ValueError(
            f"{path} targets {', '.join(missed)}, which {type(base).__name__} has not; give it the base"
            " that it was trained on"
        )
    return model.eval()


@dataclass(frozen=True, eq=False)
class _Slot:
    """Where a tensor of the file goes."""

    module: nn.Module
    attribute: str
    lora: bool

    @property
    def value(self) -> Tensor:
        return getattr(self.module, self.attribute)

    def put(self, tensor: Tensor, device: torch.device) -> None:
        """As a parameter of its own; LoRA runs in fp32 at least, other modules in the model's dtype."""
        dtype = torch.promote_types(tensor.dtype, torch.float32) if self.lora else self.value.dtype
        placed = nn.Parameter(tensor.to(device, dtype), requires_grad=False)
        if self.attribute in self.module._buffers:
            self.module._buffers[self.attribute] = placed.data
        else:
            setattr(self.module, self.attribute, placed)


def _slots(model: nn.Module, base: nn.Module) -> dict[str, _Slot]:
    """Every tensor that the adapter must bring, by its name in the file without peft's prefix."""
    slots: dict[str, _Slot] = {}
    for name, layer in lora_layers(model).items():
        for part in ("lora_A", "lora_B"):
            slots[f"{name}.{part}.weight"] = _Slot(getattr(layer, part)[NAME], "weight", True)
    shared = {id(tensor) for tensor in (*base.parameters(), *base.buffers())}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in shared and ".lora_" not in name:
            path, _, attribute = name.rpartition(".")
            slots[name] = _Slot(model.get_submodule(path), attribute, False)
    return slots


def place(model: nn.Module, base: nn.Module, tensors: dict[str, Tensor], path: Path) -> list[str]:
    """Puts every tensor where it belongs and reads it back; the notes say what was rounded.

    Raises ValueError for a tensor that is missing, left over, of another size, or not there when read back.
    """
    slots = _slots(model, base)
    given = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
    own = base.state_dict()
    for key in sorted(given.keys() - slots.keys()):
        _check_copy_of_base(key, given.pop(key), own, path)
    if missing := sorted(slots.keys() - given.keys()):
        raise ValueError(
            f"{path / WEIGHTS} lacks {len(missing)} of the {len(slots)} tensors that its config asks for,"
            f" {missing[0]} among them; save the adapter again, or correct its config"
        )
    rounded = 0
    for key, slot in slots.items():
        tensor = given[key]
        if tensor.shape != slot.value.shape:
            raise ValueError(
                f"{key} of {path} has shape {list(tensor.shape)}, but its config and this base ask for"
                f" {list(slot.value.shape)}; the adapter is for another base, or its config is not its own"
            )
        holder = model.get_submodule(key.partition(".lora_")[0]) if slot.lora else slot.module
        slot.put(tensor, holder.base_layer.weight.device if slot.lora else slot.value.device)  # pyright: ignore
        landed = torch.equal(slot.value.to(tensor.dtype).cpu(), tensor)
        if slot.lora and not landed:
            raise ValueError(f"{key} of {path} did not arrive in the model bit for bit; load it in float32")
        rounded += not landed
    return [f"{rounded} tensors of modules_to_save were rounded to the base's dtype"] if rounded else []


def _check_copy_of_base(key: str, tensor: Tensor, own: dict[str, Tensor], path: Path) -> None:
    """peft may store embeddings beside the adapter: allowed where they are the base's own."""
    mine = own.get(key.replace(".base_layer.", "."))
    if mine is None:
        raise ValueError(
            f"{path / WEIGHTS} holds {key}, which its config does not ask for and this base has no place for;"
            " the adapter is for another base, or its config is not its own"
        )
    if mine.shape != tensor.shape:
        raise ValueError(
            f"{path} brings its own {key} of shape {list(tensor.shape)} where the base has"
            f" {list(mine.shape)} (were tokens added?); merge it into its resized base (merge_and_unload) and"
            " load the merged model"
        )
    if not torch.equal(mine.to(tensor.dtype).cpu(), tensor):
        raise ValueError(
            f"{path} brings its own values for {key}, which its config does not name as trained; merge it"
            " where it was trained (merge_and_unload) and load the merged model"
        )


@torch.no_grad()
def proven(name: str, layer: Any, config: AdapterConfig) -> float:
    """The norm of scaling * B A, once the layer was seen to add scaling * B A x to its base's output."""
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    weight = layer.base_layer.weight
    scaling = config.scaling_of(name)
    x = torch.randn(2, a.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    silent = layer.base_layer.register_forward_hook(
        lambda _, __, output: torch.zeros_like(output, dtype=a.dtype)
    )
    try:
        added = layer(x)
    finally:
        silent.remove()
    expected = scaling * (x.to(a.dtype) @ a.T @ b.T)
    error = float((added - expected).norm() / expected.norm().clamp_min(torch.finfo(a.dtype).tiny))
    if not error <= TOLERANCE:
        raise ValueError(
            f"the adapter at {name} does not add {scaling:.4g} B A x as its config says (rank"
            f" {config.rank_of(name)}, alpha {config.alpha_of(name)}, rsLoRA {config.rslora}): relative error"
            f" {error:.2g}; report this with the versions of peft and torch"
        )
    return abs(scaling) * float(((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt())


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """The same without LoRA layers: the weights they changed are W + scaling * B A, the rest stays shared."""
    plain = twin(model)
    for name, layer in lora_layers(model).items():
        module: Any = twin(layer.base_layer)
        weight = module.weight
        delta = layer.get_delta_weight(NAME)
        module.weight = nn.Parameter((weight.to(delta.dtype) + delta).to(weight.dtype), requires_grad=False)
        plain.set_submodule(name, module)
    del plain.peft_config
    _check_merged(plain, model)
    return plain


def _check_merged(plain: nn.Module, model: nn.Module) -> None:
    """Raises ValueError unless the merged model and the one with LoRA layers agree on three tokens."""
    embedding: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    tokens = torch.tensor([[3, 1, 2]], device=embedding.weight.device) % len(embedding.weight)
    merged, attached = (each(input_ids=tokens).logits.double() for each in (plain, model))
    error, allowed = (
        float((merged - attached).norm() / attached.norm()),
        VERIFY_TOLERANCE[embedding.weight.dtype],
    )
    if not error <= allowed:
        raise ValueError(
            f"the merged model's logits differ from the adapter's by {error:.2g}, allowed {allowed:.0e};"
            " load it in float32, or on the transformers or nnsight backend"
        )
