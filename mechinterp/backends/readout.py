"""What a model makes of its last stream, and what each head adds to the stream: both linear but for the norm.

Projections are asked what they do to a vector rather than for their weights, so adapters and quantised layers
are read as they run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechinterp.backends.modes import evaluating

OLMO = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")  # transformer-lens keeps ln1's name and norms behind it


class ReadsOut(Protocol):
    """The head of a model and the output projections of its attention. All that is returned is fp32.

    `logit_cap` is where the family caps its logits, `cap * tanh(logits / cap)`; None where it does not.
    """

    @property
    def logit_cap(self) -> float | None: ...

    def unembed(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
        """Final norm, unembedding, scale and soft-capping: the logits of a residual stream after the last
        layer.
        """
        ...

    def final_norm(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The stream after the last layer as the unembedding gets it."""
        ...

    def unembedding(
        self, tokens: Sequence[int] | Int[Tensor, "token"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token"]]:
        """Rows W and biases b, the logit scale included: `W @ final_norm(residual) + b` are these tokens'
        logits before soft-capping.
        """
        ...

    def head_outputs(
        self, layer: int, z: Float[Tensor, "*rows head d_head"]
    ) -> Float[Tensor, "*rows head d_model"]:
        """What each head adds, `z_h W_O[h]`, a residual multiplier included, before any norm of attn_out."""
        ...

    def output_bias(self, layer: int) -> Float[Tensor, "d_model"]:
        """What the attention adds without any head, on the same terms as `head_outputs`."""
        ...

    def attention_norm(
        self, layer: int, output: Float[Tensor, "*rows d_model"]
    ) -> Float[Tensor, "*rows d_model"]:
        """attn_out of a sum of heads and bias: a norm in some families (Gemma-2, OLMo-2), nothing in most."""
        ...


@dataclass(frozen=True, eq=False)
class ModuleReadOut:
    """Of Hugging Face modules. `attention_norms` is empty where attention is added as it is projected."""

    norm: nn.Module
    head: Any
    projections: tuple[Any, ...]
    attention_norms: tuple[Any, ...]
    z_width: int
    dtype: torch.dtype
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None

    def unembed(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
        """Final norm, unembedding, logit scale and soft-capping, as the model itself would apply them."""
        return self.logits(self.head(self._normed(residual).to(self.head.weight.device)))

    def logits(self, unembedded: Float[Tensor, "*rows d_vocab"]) -> Float[Tensor, "*rows d_vocab"]:
        """The model's logits from the output of its unembedding."""
        logits = unembedded if self.logit_scale == 1.0 else unembedded / self.logit_scale
        return soft_capped(logits, self.logit_cap)

    def final_norm(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return self._normed(residual).float()

    def _normed(self, residual: Tensor) -> Tensor:
        weight = next(self.norm.parameters(), self.head.weight)  # OLMo's norm has no parameters
        return self.norm(residual.to(weight.device, weight.dtype))

    def unembedding(
        self, tokens: Sequence[int] | Int[Tensor, "token"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token"]]:
        weight, bias = rows_of(bare(self.head), indices(tokens), self.dtype)
        return weight / self.logit_scale, bias / self.logit_scale

    def head_outputs(
        self, layer: int, z: Float[Tensor, "*rows head d_head"]
    ) -> Float[Tensor, "*rows head d_model"]:
        alone = rearrange(one_at_a_time(z), "... one head d -> ... one (head d)")
        return self._projected(layer, alone) * self.residual_scale - self.output_bias(layer)

    def output_bias(self, layer: int) -> Float[Tensor, "d_model"]:
        return self._projected(layer, torch.zeros(self.z_width)) * self.residual_scale

    def attention_norm(
        self, layer: int, output: Float[Tensor, "*rows d_model"]
    ) -> Float[Tensor, "*rows d_model"]:
        if not self.attention_norms:
            return output.float()
        norm = self.attention_norms[layer]
        return norm(output.to(device_of(norm, output.device), self.dtype)).float()

    def _projected(self, layer: int, flat: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows d_model"]:
        projection = bare(self.projections[layer])
        with evaluating(projection):  # an adapter's dropout is for training
            return projection(flat.to(device_of(projection, flat.device), self.dtype)).float()


@dataclass(frozen=True, eq=False)
class HookedReadOut:
    """Of a HookedTransformer, whose weights are its own and plain tensors."""

    model: Any

    @property
    def logit_cap(self) -> float | None:
        cap = float(self.model.cfg.output_logits_soft_cap)
        return cap if cap > 0 else None

    def unembed(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
        """Final norm, unembedding and soft-capping, as the model itself would apply them."""
        cfg = self.model.cfg
        x = residual.to(self.model.unembed.W_U.device, cfg.dtype).reshape(1, -1, cfg.d_model)
        logits = self.model.unembed(self.model.ln_final(x))
        return soft_capped(logits.reshape(*residual.shape[:-1], -1), self.logit_cap)

    def final_norm(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return self._normed(self.model.ln_final, residual, self.model.unembed.W_U.device)

    def unembedding(
        self, tokens: Sequence[int] | Int[Tensor, "token"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token"]]:
        unembed, wanted = self.model.unembed, indices(tokens)
        weight = rearrange(unembed.W_U[:, wanted], "d_model token -> token d_model")
        return weight.detach().float(), unembed.b_U[wanted].detach().float()

    def head_outputs(
        self, layer: int, z: Float[Tensor, "*rows head d_head"]
    ) -> Float[Tensor, "*rows head d_model"]:
        weight = self.model.blocks[layer].attn.W_O.detach().float()
        return einsum(z.to(weight), weight, "... head d, head d d_model -> ... head d_model")

    def output_bias(self, layer: int) -> Float[Tensor, "d_model"]:
        return self.model.blocks[layer].attn.b_O.detach().float()

    def attention_norm(
        self, layer: int, output: Float[Tensor, "*rows d_model"]
    ) -> Float[Tensor, "*rows d_model"]:
        block, cfg = self.model.blocks[layer], self.model.cfg
        if cfg.use_normalization_before_and_after:
            return self._normed(block.ln1_post, output, block.attn.b_O.device)
        if cfg.original_architecture in OLMO:
            return self._normed(block.ln1, output, block.attn.b_O.device)
        return output.float()

    def _normed(self, norm: Any, x: Tensor, device: torch.device) -> Tensor:
        """transformer-lens's norms want a batch axis and a position axis."""
        flat = x.to(device, self.model.cfg.dtype).reshape(1, -1, x.shape[-1])
        return norm(flat).reshape(x.shape).float()


def one_at_a_time(z: Float[Tensor, "*rows head d_head"]) -> Float[Tensor, "*rows one head d_head"]:
    """For each head, z with every other head at zero."""
    only = torch.eye(z.shape[-2], dtype=z.dtype, device=z.device)
    return einsum(z, only, "... head d, one head -> ... one head d")


def rows_of(
    head: Any, tokens: Int[Tensor, "token"], dtype: torch.dtype
) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token"]]:
    """Rows and biases of an unembedding in fp32; of a kind that is not known here, by its gradient."""
    if hasattr(head, "lora_A"):
        weight, bias = rows_of(head.base_layer, tokens, dtype)
        for name in head.active_adapters:
            b = head.lora_B[name].weight[tokens].detach().float()
            weight = weight + head.scaling[name] * (b @ head.lora_A[name].weight.detach().float())
        return weight, bias
    if type(head) is nn.Linear:
        weight = head.weight[tokens].detach().float()
        none = weight.new_zeros(len(tokens))
        return weight, none if head.bias is None else head.bias[tokens].detach().float()
    with torch.enable_grad():
        x = torch.zeros(head.in_features, dtype=dtype, device=head.weight.device, requires_grad=True)
        logits = head(x)[tokens]
        rows = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in logits]
    return torch.stack(rows).float(), logits.detach().float()


def soft_capped(logits: Float[Tensor, "*rows"], cap: float | None) -> Float[Tensor, "*rows"]:
    """What a family with a cap does to its logits last."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def indices(tokens: Sequence[int] | Int[Tensor, "token"]) -> Int[Tensor, "token"]:
    return torch.as_tensor(tokens, dtype=torch.long).cpu()


def bare(module: Any) -> Any:
    """The library's own module inside transformer-lens's bridges, whose hooks are for passes alone."""
    inner = getattr(module, "original_component", None)
    return module if inner is None else bare(inner)


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    first = next(module.parameters(), None)
    return otherwise if first is None else first.device
