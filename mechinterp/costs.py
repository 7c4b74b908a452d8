"""What passes of a model cost, from its configuration alone: matrix products, bytes, memory by part.

Sizes are read from the architecture's own modules on torch's meta device, which holds no weights. Adapters
are left out: at the ranks that studies use they are one to three per cent of the matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mechinterp.backends.anatomy import anatomy_of, dims_of, module_at
from mechinterp.backends.protocol import Dims
from mechinterp.passes import Held, LayerCall, Passes
from mechinterp.sites import Site, SiteName


@dataclass(frozen=True)
class Device:
    """Dense bf16 matrix products a second, bytes a second and bytes of memory, as its maker gives them."""

    name: str
    flops: float
    bandwidth: float
    memory: float


DEVICES = {
    device.name: device
    for device in (
        Device("h200", 989e12, 4.8e12, 141e9),
        Device("h100", 989e12, 3.35e12, 80e9),
        Device("a100", 312e12, 2.04e12, 80e9),
        Device("l40s", 362e12, 0.864e12, 48e9),
        Device("rtx4090", 165e12, 1.01e12, 24e9),
    )
}


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment. `weights` are one model's; `logits` are held once as they come and twice
    in fp32, for probabilities and their gradient or order; `work` is what one block holds while it runs, or
    what training keeps for its backward pass.
    """

    weights: int
    cache: int = 0
    captures: int = 0
    logits: int = 0
    work: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.captures + self.logits + self.work


@dataclass(frozen=True, eq=False)
class Costs:
    """The sizes of an architecture that decide what its passes cost.

    `layer_weights` and `head_weights` are the entries of the matrices of one layer (on average) and of the
    unembedding; `d_mlp` is the width of the MLP; `itemsize` bytes hold one entry.
    """

    name: str
    dims: Dims
    n_parameters: int
    layer_weights: float
    head_weights: int
    d_mlp: int
    itemsize: int

    @staticmethod
    def of(config: Any, name: str, dtype: torch.dtype) -> Costs:
        """Of a transformers configuration. Raises ValueError for an architecture that no row describes."""
        from transformers import AutoModelForCausalLM

        anatomy = anatomy_of(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        layers: Any = module_at(model, anatomy.layers)
        head: Any = model.get_output_embeddings()
        return Costs(
            name=name,
            dims=dims_of(model, anatomy),
            n_parameters=sum(p.numel() for p in model.parameters()),
            layer_weights=sum(_matrices(layer) for layer in layers) / len(layers),
            head_weights=head.weight.numel(),
            d_mlp=max(max(p.shape) for p in layers[0].parameters() if p.ndim == 2),
            itemsize=dtype.itemsize,
        )

    # matrix products ----------------------------------------------------------------------------------------

    def flops(self, passes: Passes) -> float:
        """Of all matrix products, two for a multiplication and an addition, as torch's own counter counts.

        Training a LoRA adapter adds the backward pass to the activations; frozen weights take no gradient.
        """
        layers = sum(n * self.layer_flops(call) for call, n in passes.layer_calls.items())
        heads = sum(n * rows * self._head_flops(trained) for (rows, trained), n in passes.head_calls.items())
        return layers + heads

    def layer_flops(self, call: LayerCall) -> float:
        d = self.dims
        linear = 2 * self.layer_weights * call.rows
        attention = 4 * d.n_heads * d.d_head * call.rows * call.keys
        return 2 * linear + 3 * attention if call.trained else linear + attention

    def _head_flops(self, trained: bool) -> float:
        return (2 if trained else 1) * 2 * self.head_weights

    def seconds(self, passes: Passes, device: Device, utilisation: float) -> float:
        """Each call takes what its matrix products or the bytes that it moves take, whichever is more."""

        def least(flops: float, moved: float) -> float:
            return max(flops / device.flops, moved / device.bandwidth) / utilisation

        total = 0.0
        for call, n in passes.layer_calls.items():
            moved = self.itemsize * (self.layer_weights * (2 if call.trained else 1))
            moved += self.slot_bytes / self.dims.n_layers * call.n_batch * call.keys
            total += n * least(self.layer_flops(call), moved)
        for (rows, trained), n in passes.head_calls.items():
            total += n * least(rows * self._head_flops(trained), self.itemsize * self.head_weights)
        return total

    # memory -------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> int:
        """Bytes of one model's weights."""
        return self.n_parameters * self.itemsize

    @property
    def slot_bytes(self) -> int:
        """Bytes of the keys and values of one token, all layers together."""
        d = self.dims
        return 2 * d.n_layers * d.n_kv_heads * d.d_head * self.itemsize

    def memory(self, passes: Passes) -> Memory:
        """The fullest moment among those that were seen."""
        return max(
            (self._at(held) for held in passes.moments), key=lambda m: m.total, default=Memory(self.weights)
        )

    def _at(self, held: Held) -> Memory:
        captures = sum(n * self._site_bytes(name) for name, n in held.captured)
        logits = held.logit_rows * self.dims.d_vocab
        return Memory(
            weights=self.weights,
            cache=held.cache_slots * self.slot_bytes,
            captures=captures,
            logits=logits * (self.itemsize + 2 * torch.float32.itemsize),
            work=self._work(held),
        )

    def _site_bytes(self, name: SiteName) -> int:
        """Of one row of a site; of one weight of `pattern`, which is kept in fp32."""
        if name == "pattern":
            return torch.float32.itemsize
        return math.prod(self.dims.shape(Site(name, 0))) * self.itemsize

    def _work(self, held: Held) -> int:
        """What a block makes of its rows; with a backward pass to come, what all of them keep."""
        d = self.dims
        heads = (d.n_heads + 2 * d.n_kv_heads) * d.d_head
        if held.trained:
            kept = 8 * d.d_model + 2 * heads + d.n_heads * d.d_head + 4 * self.d_mlp
            return int(held.rows * d.n_layers * kept * self.itemsize)
        return int(held.rows * (2 * d.d_model + max(2 * heads, 3 * self.d_mlp)) * self.itemsize)


def _matrices(layer: nn.Module) -> int:
    """The entries of a layer's matrices; norms and biases are vectors."""
    return sum(p.numel() for p in layer.parameters() if p.ndim == 2)
