"""Translators of a tuned lens: an affine map a layer, from its states into those that the head reads.

A file is safetensors with `weight` [layer d_model d_model] and `bias` [layer d_model], in any float dtype,
and optionally `model` in its header (what they were fitted to). After layer L a state h becomes
`weight[L] h + bias[L]`. The last layer's states are what the model itself unembeds: its map is the identity.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mechinterp.files import file_sha256, write_bytes
from mechinterp.model import Model
from probes.torch_files import load_tensors, mapping_of, tensor_of

LENS_TYPE = "linear_tuned_lens"


@dataclass(frozen=True, eq=False)
class Translators:
    """One affine map for each layer's output, in fp32; `name` says where they come from, on every figure.

    Raises ValueError for shapes that do not fit, numbers that are not finite, or a last map that changes what
    it is given.
    """

    name: str
    weight: Float[Tensor, "layer d_out d_in"]
    bias: Float[Tensor, "layer d_out"]
    model: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        weight, bias = self.weight, self.bias
        if weight.ndim != 3 or weight.shape[1] != weight.shape[2] or bias.shape != weight.shape[:2]:
            raise ValueError(
                f"translators {self.name} must be weight [layer d_model d_model] and bias [layer d_model],"
                f" not {list(weight.shape)} and {list(bias.shape)}"
            )
        if weight.dtype != torch.float32 or bias.dtype != torch.float32:
            raise ValueError(f"translators {self.name} are {weight.dtype}; pass .float() of them")
        if not bool(weight.isfinite().all() & bias.isfinite().all()):
            raise ValueError(f"translators {self.name} hold NaN or infinity; fit or fetch them again")
        if not torch.equal(weight[-1], torch.eye(len(weight[-1]))) or bool(bias[-1].any()):
            raise ValueError(
                f"translators {self.name} change the states after the last layer, {len(weight) - 1}, which"
                " the model unembeds as they are; make its weight the identity and its bias zero"
            )

    def check_for(self, model: Model) -> None:
        """Raises ValueError unless there is one of the right size for each layer of the model."""
        found, wanted = self.weight.shape[:2], (model.dims.n_layers, model.dims.d_model)
        if tuple(found) != wanted:
            raise ValueError(
                f"translators {self.name} are for {found[0]} layers of d_model {found[1]};"
                f" {model.name} has {wanted[0]} of {wanted[1]}"
            )

    def apply(
        self, states: Float[Tensor, "layer text row d_model"]
    ) -> Float[Tensor, "layer text row d_model"]:
        """The states of every layer, translated, in fp32."""
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        moved = einsum(
            states.float(), weight, "layer text row d_in, layer d_out d_in -> layer text row d_out"
        )
        return moved + rearrange(bias, "layer d_out -> layer 1 1 d_out")


def save_translators(translators: Translators, path: Path | str) -> Path:
    """Write them in the layout of this file, at once or not at all."""
    path = Path(path)
    header = {} if translators.model is None else {"model": translators.model}
    tensors = {"weight": translators.weight.contiguous(), "bias": translators.bias.contiguous()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, metadata=header))
    return path


def load_translators(path: Path | str) -> Translators:
    """Translators from a safetensors file; raises ValueError naming the file where it holds anything else."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            names, model = set(file.keys()), (file.metadata() or {}).get("model")
            if names != {"weight", "bias"}:
                raise ValueError(
                    f"{path} holds the tensors {', '.join(sorted(names)) or 'none'}; translators are weight"
                    " [layer d_model d_model] and bias [layer d_model]"
                )
            weight, bias = (tensor_of(path, file.get_tensor(name), axes)
                            for name, axes in (("weight", 3), ("bias", 2)))  # fmt: skip
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    return Translators(path.name, weight, bias, model, file_sha256(path))


def read_tuned_lens(folder: Path | str) -> Translators:
    """Translators from a folder of the tuned-lens library: config.json and params.pt, opened as tensors only.

    Its translator i acts on the stream that enters block i, as `h + W h + b`; so ours after layer L is its
    L + 1, and the first of its translators, which is for the embedding, has no place here.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    path = folder / "params.pt"
    kind = config.get("lens_type", LENS_TYPE)
    if kind != LENS_TYPE:
        raise ValueError(f"{folder} holds a lens of type {kind!r}; only {LENS_TYPE!r} is read")
    n_layers, d_model = config["num_hidden_layers"], config["d_model"]
    wanted = [
        f"{i}.{part}" for i in range(n_layers) for part in ("weight", "bias")[: 1 + config.get("bias", True)]
    ]
    params = mapping_of(path, load_tensors(path), *wanted)
    if set(params) != set(wanted):
        extra = sorted(map(str, set(params) - set(wanted)))[0]
        raise ValueError(
            f"{path} holds {extra!r} beside one affine map a layer, so it is no linear tuned lens"
        )
    weight = torch.eye(d_model).repeat(n_layers, 1, 1)
    bias = torch.zeros(n_layers, d_model)
    for layer in range(n_layers - 1):
        found = tensor_of(path, params[f"{layer + 1}.weight"], 2)
        if found.shape != (d_model, d_model):
            raise ValueError(f"{path}: {layer + 1}.weight is {list(found.shape)} and d_model is {d_model}")
        weight[layer] += found
        if config.get("bias", True):
            bias[layer] = tensor_of(path, params[f"{layer + 1}.bias"], 1)
    model = config.get("base_model_name_or_path")
    return Translators(folder.name, weight, bias, model, file_sha256(path))
