"""Where the sites of each architecture family are, one table row a family.

A row is found by the config's `model_type`, never by a model's name, and `verify` proves it at load. To
support another family, write its row (paths are relative to a decoder layer) and pass it to `load(...,
anatomy=ROW)`.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import attrgetter
from typing import Any, Literal

from torch import nn

from mechinterp.backends.protocol import Dims

Fused = Literal["heads_in_thirds", "thirds_of_heads"]


@dataclass(frozen=True)
class Anatomy:
    """The paths of one family. `attn_out` and `mlp_out` name the module whose output is added to the stream.

    `qkv` is the three projections, or one fused projection with its layout: `thirds_of_heads` is all q, then
    all k, then all v; `heads_in_thirds` is q, k, v of head 0, then of head 1, ... `residual_scale` names the
    config entry by which both outputs are multiplied before they are added; `parallel` the one that, when
    true, makes attention and MLP read the same stream.
    """

    layers: str = "model.layers"
    attention: str = "self_attn"
    attn_proj: str = "self_attn.o_proj"
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    fused: Fused | None = None
    rotary: bool = True
    tapped: bool = True
    final_norm: str = "model.norm"
    parallel: str | None = None
    residual_scale: str | None = None
    logit_scale: str | None = None
    softcap: str | None = None
    text_config: str | None = None


LLAMA = Anatomy()
POST_NORM = replace(LLAMA, attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm")
GEMMA2 = replace(POST_NORM, softcap="final_logit_softcapping")
GPT2 = Anatomy(
    layers="transformer.h",
    attention="attn",
    attn_proj="attn.c_proj",
    attn_out="attn",
    qkv=("attn.c_attn",),
    fused="thirds_of_heads",
    rotary=False,
    final_norm="transformer.ln_f",
)
GPT_NEOX = Anatomy(
    layers="gpt_neox.layers",
    attention="attention",
    attn_proj="attention.dense",
    attn_out="attention",
    qkv=("attention.query_key_value",),
    fused="heads_in_thirds",
    final_norm="gpt_neox.final_layer_norm",
    parallel="use_parallel_residual",
)
PHI3 = replace(LLAMA, qkv=("self_attn.qkv_proj",), fused="thirds_of_heads")
GRANITE = replace(LLAMA, residual_scale="residual_multiplier", logit_scale="logits_scaling")
BLOOM = Anatomy(  # attention and MLP add the stream inside themselves: the addends are their last projections
    layers="transformer.h",
    attention="self_attention",
    attn_proj="self_attention.dense",
    attn_out="self_attention.dense",
    mlp_out="mlp.dense_4h_to_h",
    qkv=("self_attention.query_key_value",),
    fused="heads_in_thirds",
    rotary=False,
    tapped=False,
    final_norm="transformer.ln_f",
)
GEMMA3_VISION = replace(
    GEMMA2,
    layers="model.language_model.layers",
    final_norm="model.language_model.norm",
    text_config="text_config",
)

FAMILIES: dict[str, Anatomy] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "gemma3": GEMMA3_VISION,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "phi3": PHI3,
    "olmo2": POST_NORM,
    "granite": GRANITE,
    "bloom": BLOOM,
}


def anatomy_of(config: Any) -> Anatomy:
    """The row of a config's family. Raises ValueError for an unknown one, naming the nearest known."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{config.model_type} is an encoder-decoder; only decoder-only causal models are supported"
        )
    row = FAMILIES.get(config.model_type)
    if row is None:
        close = get_close_matches(config.model_type, FAMILIES, n=1, cutoff=0.4)
        like = f"{close[0]!r} is the nearest" if close else f"known are {', '.join(FAMILIES)}"
        raise ValueError(
            f"there is no anatomy for the architecture {config.model_type!r} ({like}); write its row after"
            " mechinterp/backends/anatomy.py and pass it as anatomy=: it is verified like ours"
        )
    return row


def is_parallel(anatomy: Anatomy, config: Any) -> bool:
    return anatomy.parallel is not None and bool(getattr(config, anatomy.parallel))


def readable(anatomy: Anatomy, config: Any) -> tuple[str, ...]:
    """The sites that the family has: parallel blocks have no resid_mid, models without rotation no q_rot."""
    names = [
        "resid_pre",
        "q",
        "k",
        "v",
        "q_rot",
        "k_rot",
        "pattern",
        "z",
        "attn_out",
        "resid_mid",
        "mlp_out",
        "resid_post",
    ]
    if is_parallel(anatomy, config):
        names.remove("resid_mid")
    if not anatomy.rotary:
        names = [name for name in names if name not in ("q_rot", "k_rot")]
    return tuple(names)


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; a row that names none is refused with the path."""
    try:
        return attrgetter(path)(root)
    except AttributeError as error:
        raise ValueError(
            f"{type(root).__name__} has no module {path!r}; the anatomy row names the wrong path"
        ) from error


def config_of(model: nn.Module, anatomy: Anatomy) -> Any:
    config: Any = model.config
    return getattr(config, anatomy.text_config) if anatomy.text_config else config


def dims_of(model: nn.Module, anatomy: Anatomy) -> Dims:
    """Sizes from the weights where the config leaves them to be guessed (Gemma's head size, padded
    vocabularies).
    """
    config = config_of(model, anatomy)
    layers = module_at(model, anatomy.layers)
    n_heads = config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", None) or n_heads
    z_width = projection_width(module_at(layers[0], anatomy.attn_proj))  # pyright: ignore[reportIndexIssue]
    head: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return Dims(
        n_layers=len(layers),  # pyright: ignore[reportArgumentType]
        n_heads=n_heads,
        n_kv_heads=n_kv,
        d_model=config.hidden_size,
        d_head=z_width // n_heads,
        d_vocab=head.weight.shape[0],
        n_ctx=getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None),
        windows=windows_of(config, len(layers)),  # pyright: ignore[reportArgumentType]
    )


def windows_of(config: Any, n_layers: int) -> tuple[int | None, ...]:
    """How many keys each layer's queries see, by a Hugging Face config; () where no layer has a window."""
    size = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    if size is None or "sliding_attention" not in kinds:
        return ()
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def projection_width(module: nn.Module) -> int:
    """The input width of a projection, which transformers' Conv1D stores transposed."""
    weight: Any = module.weight
    return weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]
