"""What the backends over Hugging Face modules share: the arguments of a pass, its keys and values, its head.

Masks and position ids are always explicit where anything is padded; where nothing is, no mask is passed,
which keeps each kernel's causal fast path.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache as HFCache
from transformers.cache_utils import CacheLayerMixin

from mechinterp.backends import attention_rows
from mechinterp.backends.anatomy import Anatomy, config_of, module_at, projection_width
from mechinterp.backends.modes import evaluating as evaluating
from mechinterp.backends.protocol import Pass, Recorder, gather_slots
from mechinterp.backends.readout import ModuleReadOut, bare
from mechinterp.sites import Site

BLOCK = 64  # rows of attention made at a time where each is summed over regions: never T x T in memory


class Stop(Exception):
    """All that was asked for is there: the rest of the model need not run."""


class GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer in a buffer that doubles: a step writes one slot and copies nothing."""

    is_sliding = False
    is_croppable = True

    def __init__(self):
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[3])
        self.values = value_states.new_empty(*value_states.shape[:2], 0, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self._reserve(end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _reserve(self, n: int) -> None:
        if self.keys is None or n <= self.keys.shape[2]:
            return
        room = max(n + 64, min(2 * n, n + 1024))
        for name in ("keys", "values"):
            old = getattr(self, name)
            grown = old.new_empty(*old.shape[:2], room, old.shape[3])
            grown[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, grown)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def select(self, rows: Int[Tensor, "row"]) -> "GrowingLayer":
        chosen = GrowingLayer()
        if self.keys is not None and self.values is not None:
            chosen.lazy_initialization(self.keys, self.values)
            chosen.keys = self.keys[:, :, : self.length][rows.to(self.keys.device)]
            chosen.values = self.values[:, :, : self.length][rows.to(self.values.device)]
            chosen.length = self.length
        return chosen


class PrefixLayer(GrowingLayer):
    """The first slots of another layer: each update goes on from them and leaves no trace.

    Of its only row, for any number of rows; or of `rows`, taken where they are read.
    """

    def __init__(self, whole: GrowingLayer, n_slots: int, rows: Int[Tensor, "row"] | None = None):
        super().__init__()
        self.rows = rows
        if whole.keys is not None and whole.values is not None:
            self.lazy_initialization(whole.keys, whole.values)
            self.keys, self.values = whole.keys[:, :, :n_slots], whole.values[:, :, :n_slots]
        self.length = n_slots

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.length:
            return key_states, value_states
        assert self.keys is not None and self.values is not None  # the whole layer held this many
        if self.rows is None:
            keys, values = (old.expand(len(key_states), -1, -1, -1) for old in (self.keys, self.values))
        else:
            keys, values = (old[self.rows.to(old.device)] for old in (self.keys, self.values))
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


class KeyValues:
    """The cache of a Hugging Face model, whose layers keep every slot, so that any prefix can be replayed."""

    def __init__(self, layers: list[GrowingLayer]):
        self.layers = layers
        self.hf = HFCache(layers=[*layers])

    @property
    def n_slots(self) -> int:
        return self.layers[0].length

    def select(self, rows: Int[Tensor, "row"]) -> "KeyValues":
        return KeyValues([layer.select(rows) for layer in self.layers])

    def for_one_pass(self, rows: Int[Tensor, "row"]) -> "KeyValues":
        return KeyValues([PrefixLayer(layer, layer.length, rows) for layer in self.layers])

    def crop(self, n_slots: int) -> None:
        for layer in self.layers:
            layer.length = min(layer.length, n_slots)

    def prefix(self, n_slots: int) -> "KeyValues":
        """The first slots of a single row, read by any number of rows and written by none."""
        return KeyValues([PrefixLayer(layer, n_slots) for layer in self.layers])

    def uncrop(self, layer: int, n_slots: int) -> None:
        """Shows slots again that `crop` hid in the layers below `layer`; cropping erases nothing."""
        for below in self.layers[:layer]:
            below.length = n_slots


def accepted(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def arguments(request: Pass, model_accepts: set[str], n_layers: int) -> dict[str, Any]:
    """The keyword arguments of the model's forward for a pass, its cache included."""
    cache = cast(KeyValues | None, request.cache)  # the one that `cache_of` made
    if cache is None and request.keep_cache:
        cache = KeyValues([GrowingLayer() for _ in range(n_layers)])
    mask = request.key_mask()
    given = {
        "input_ids": request.tokens,
        "attention_mask": None if mask is None else mask.long(),
        "position_ids": request.rows.position.clamp_min(0),
        "past_key_values": None if cache is None else cache.hf,
        "use_cache": cache is not None,
    }
    return {name: value for name, value in given.items() if name in model_accepts}


def cache_of(kwargs: dict[str, Any], request: Pass) -> Any:
    """The cache to hand on, around the one that the pass filled."""
    if not request.keep_cache:
        return None
    if request.cache is not None:
        return request.cache
    return KeyValues(kwargs["past_key_values"].layers)


def readout_of(model: nn.Module, anatomy: Anatomy, dtype: torch.dtype) -> ModuleReadOut:
    """The final norm, the unembedding and the output projections of a model, where its row puts them."""
    config, layers = config_of(model, anatomy), cast(Any, module_at(model, anatomy.layers))
    projections = tuple(module_at(layer, anatomy.attn_proj) for layer in layers)
    as_projected = anatomy.attn_out in (anatomy.attention, anatomy.attn_proj)
    norms = () if as_projected else tuple(module_at(layer, anatomy.attn_out) for layer in layers)
    return ModuleReadOut(
        norm=module_at(model, anatomy.final_norm),
        head=model.get_output_embeddings(),  # pyright: ignore[reportCallIssue]
        projections=projections,
        attention_norms=norms,
        z_width=projection_width(bare(projections[0])),
        dtype=dtype,
        residual_scale=residual_scale(model, anatomy),
        logit_scale=float(getattr(config, anatomy.logit_scale)) if anatomy.logit_scale else 1.0,
        logit_cap=logit_cap(model, anatomy),
    )


def logit_cap(model: nn.Module, anatomy: Anatomy) -> float | None:
    """Where the family's soft-capping levels off; None where logits are left as they are."""
    cap = getattr(config_of(model, anatomy), anatomy.softcap) if anatomy.softcap else None
    return None if cap is None else float(cap)


def split_qkv(
    anatomy: Anatomy, name: str, x: Tensor, n_heads: int, n_kv: int
) -> Float[Tensor, "batch slot head d_head"]:
    """The q, k or v of a projection's output, with a head axis."""
    if anatomy.fused is None:
        return rearrange(x, "batch slot (head d) -> batch slot head d", head=n_heads if name == "q" else n_kv)
    if anatomy.fused == "heads_in_thirds":
        return rearrange(x, "batch slot (head third d) -> third batch slot head d", third=3, head=n_heads)[
            "qkv".index(name)
        ]
    d_head = x.shape[-1] // (n_heads + 2 * n_kv)
    q, k, v = x.split([n_heads * d_head, n_kv * d_head, n_kv * d_head], dim=-1)
    return rearrange({"q": q, "k": k, "v": v}[name], "batch slot (head d) -> batch slot head d", d=d_head)


def residual_scale(model: nn.Module, anatomy: Anatomy) -> float:
    """What both outputs of a block are multiplied by before they are added to the stream."""
    return (
        float(getattr(config_of(model, anatomy), anatomy.residual_scale)) if anatomy.residual_scale else 1.0
    )


def all_slots(request: Pass) -> Int[Tensor, "batch k"]:
    """The captured slots, or every slot of the chunk."""
    if request.slots is not None:
        return request.slots
    slots = torch.arange(request.tokens.shape[1], device=request.tokens.device)
    return slots.expand(len(request.tokens), -1)


@contextmanager
def tapped(
    attentions: dict[int, nn.Module],
    anatomy: Anatomy,
    config: Any,
    request: Pass,
    recorder: Recorder,
    *,
    stop_at: Site | None = None,
) -> Iterator[None]:
    """q_rot, k_rot and pattern of the asked layers, read where the model calls its attention kernel.

    Raises Stop, for the backend to catch, once the rows of `stop_at` are read.
    """
    layers = {site.layer for site in recorder.sites if site.name in ("q_rot", "k_rot", "pattern")}
    if not layers or not anatomy.tapped:
        yield
        return
    modules = {layer: attentions[layer] for layer in layers}
    reader = _attention_reader(request, recorder, stop_at)
    with attention_rows.reading(modules, reader, config._attn_implementation):
        yield


def _attention_reader(request: Pass, recorder: Recorder, stop_at: Site | None) -> attention_rows.Reader:
    n = request.tokens.shape[1]

    def read(call: attention_rows.AttentionCall) -> None:
        rotated = {Site("q_rot", call.layer): call.query, Site("k_rot", call.layer): call.key[:, :, -n:]}
        for site, states in rotated.items():
            if site in request.capture:
                recorder.visit(site, rearrange(states, "batch head slot d -> batch slot head d"))
        site = Site("pattern", call.layer)
        if site in request.capture:
            recorder.put(site, _blocks(call, request))
        if site == stop_at:
            raise Stop

    return read


def _blocks(call: attention_rows.AttentionCall, request: Pass) -> Iterator[Tensor]:
    """The asked rows of one layer; a block at a time where each is reduced before the next is made."""
    slots = all_slots(request).to(call.query.device)
    for block in slots.split(BLOCK if request.regions is not None else max(1, slots.shape[1]), dim=1):
        yield attention_rows.rows(call, block, request.pad_left)


def chosen_rows(
    pattern: Float[Tensor, "batch head slot key"], request: Pass
) -> Float[Tensor, "batch head k key"]:
    """The asked query rows, in fp32, of attention weights that a library computed itself."""
    weights = rearrange(pattern, "batch head slot key -> batch slot head key")
    chosen = gather_slots(weights, all_slots(request))
    return rearrange(chosen, "batch k head key -> batch head k key").float()


def first(output: Any) -> Tensor:
    """The tensor of a module's output: bare in transformers >= 5, the first of a tuple before and in
    attention.
    """
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    """An output like this one with another tensor in the first place."""
    return (value, *output[1:]) if isinstance(output, tuple) else value
