"""The transformer-lens backends: HookedTransformer (3.9) and TransformerBridge (3.9 and 4.x).

Both are objects with `cfg`, named hook points and a forward. HookedTransformer re-lays the weights and owns
a second copy; the bridge rewrites the modules it is given, so it gets a twin. Nothing is folded or centred.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mechinterp.backends import hf, masks
from mechinterp.backends.anatomy import Anatomy, anatomy_of, config_of, dims_of, readable, windows_of
from mechinterp.backends.hooked_cache import HookedKeyValues
from mechinterp.backends.hooked_config import CONVERTERS, hooked_config
from mechinterp.backends.protocol import BackendName, Dims, Outcome, Pass, Recorder, gather_slots
from mechinterp.backends.readout import HookedReadOut, ReadsOut
from mechinterp.backends.twin import twin
from mechinterp.backends.verify import TOLERANCE
from mechinterp.sites import NAMES, Site
from mechinterp.where import Rows

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "q_rot": "attn.hook_rot_q",
    "k_rot": "attn.hook_rot_k",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}


class _Stop(Exception):
    """The last layer that was asked for is done."""


class LensBackend:
    """Runs a HookedTransformer (`anatomy` is None) or a TransformerBridge, called as its model is."""

    def __init__(
        self, name: BackendName, model: Any, dims: Dims, sites: tuple[str, ...], anatomy: Anatomy | None
    ):
        self.name: BackendName = name
        self.hf_model: nn.Module | None = None
        self.model, self.dims, self.anatomy = model, dims, anatomy
        self.device: torch.device = model.embed.weight.device if anatomy else model.embed.W_E.device
        self.dtype: torch.dtype = model.cfg.dtype
        self.readout: ReadsOut = (
            HookedReadOut(model)
            if anatomy is None
            else hf.readout_of(model.original_model, anatomy, self.dtype)
        )
        self._accepts = hf.accepted(type(model.original_model).forward) if anatomy else set()
        self.rotary = anatomy is not None and anatomy.rotary
        self.sites = _that_fire(self, sites)

    def forward(self, request: Pass, recorder: Recorder) -> Outcome:
        kwargs, cache = self._arguments(request)
        last = self.dims.n_layers - 1 if request.stop_after is None else request.stop_after
        logits = None
        with ExitStack() as stack:
            stack.enter_context(hf.evaluating(self.model))
            hooks = [self._hook(site, request, recorder) for site in recorder.sites]
            hooks += masks.score_hooks(request, known="pattern" in self.sites)
            stack.enter_context(self.model.hooks(fwd_hooks=hooks))
            if not request.wants_logits:
                stack.callback(self.model.blocks[last].register_forward_hook(_stop).remove)
            elif request.logit_slots is not None:
                slots = request.logit_slots
                gather = self.model.unembed.register_forward_pre_hook(
                    lambda _, args: (gather_slots(args[0], slots),)
                )
                stack.callback(gather.remove)
            try:
                logits = self.model(request.tokens, return_type="logits", **kwargs)
            except _Stop:
                logits = None
        return Outcome(logits, cache)

    def _arguments(self, request: Pass) -> tuple[dict[str, Any], Any]:
        """What the model is called with besides the ids, and the cache to hand on."""
        if self.anatomy is not None:
            kwargs = hf.arguments(request, self._accepts, self.dims.n_layers)
            del kwargs["input_ids"]
            return kwargs, hf.cache_of(kwargs, request)
        mask = request.key_mask()
        n = request.tokens.shape[1]
        # always explicit: without one, HookedTransformer takes every pad id in a text for padding
        new = torch.ones_like(request.tokens) if mask is None else mask[:, -n:].long()
        cache: Any = request.cache
        if cache is None and request.keep_cache:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as KeyValueCache

            cache = HookedKeyValues(
                KeyValueCache.init_cache(self.model.cfg, self.device, len(request.tokens))
            )
        return {"attention_mask": new, "past_kv_cache": None if cache is None else cache.entries}, cache

    def _hook(self, site: Site, request: Pass, recorder: Recorder) -> tuple[str, Callable]:
        """A hook point and what is done there.

        A bridge with a residual multiplier shows copies of the outputs, which lie on no path to the logits: a
        live pass takes the outputs themselves.
        """
        n, name, scale = request.tokens.shape[1], HOOKS[site.name], 1.0
        if request.live and self.anatomy is not None and site.name in ("attn_out", "mlp_out"):
            scale = hf.residual_scale(self.model.original_model, self.anatomy)
            name = name if scale == 1.0 else f"{site.name.removesuffix('_out')}.hook_out"

        def hook(x: Tensor, hook: Any) -> Tensor | None:
            del hook  # named so because transformer-lens passes it by keyword
            match site.name:
                case "pattern":
                    recorder.put(site, [hf.chosen_rows(x, request)])
                    return None
                case "k_rot":
                    recorder.visit(site, x[:, -n:])  # HookedTransformer rotates the cached keys anew
                    return None
            added = x if scale == 1.0 else x * scale
            visited = recorder.visit(site, added)
            return None if visited is added else visited / scale if scale != 1.0 else visited

        return f"blocks.{site.layer}.{name}", hook


def hooked_transformer(hf_model: nn.Module, anatomy: Anatomy) -> LensBackend:
    """A HookedTransformer with weights of its own, equal to `hf_model`'s logits or refused with the error.

    Raises ImportError under transformer-lens 4 and ValueError for a family that it does not compute.
    """
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        remedy = "use transformer_bridge or install transformer-lens<4"
        raise ImportError(f"transformer-lens 4 has no HookedTransformer; {remedy}") from error
    from transformer_lens.pretrained import weight_conversions

    config = config_of(hf_model, anatomy)
    embedding: Any = hf_model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    dims, device, dtype = dims_of(hf_model, anatomy), embedding.weight.device, embedding.weight.dtype
    cfg = HookedTransformerConfig.from_dict(hooked_config(config, dims, device, dtype))
    with torch.no_grad():
        weights = getattr(weight_conversions, CONVERTERS[config.model_type][1])(hf_model, cfg)
        model = HookedTransformer(cfg, None, move_to_device=False)
        if (
            cfg.positional_embedding_type == "alibi"
        ):  # never read, but transformer-lens warns where it is not there
            weights["pos_embed.W_pos"] = torch.zeros_like(model.pos_embed.W_pos)
        model.load_and_process_state_dict(
            weights,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
            refactor_factored_attn_matrices=False,
        )
        model.move_model_modules_to_device()
    model.eval().requires_grad_(False)
    made = LensBackend("hooked_transformer", model, dims, readable(anatomy, config), None)
    return _checked(made, hf_model)


def bridge(hf_model: nn.Module, anatomy: Anatomy) -> LensBackend:
    """A TransformerBridge over a twin of `hf_model`, equal to its logits or refused with the error."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    copied: Any = twin(hf_model)
    copied.set_attn_implementation("eager")  # the twin's own config; scores and patterns exist nowhere else
    model = build_bridge_from_module(copied, type(hf_model).__name__, hf_config=copied.config)
    made = _bridged(model.eval(), anatomy)
    made.hf_model = hf_model
    return _checked(made, hf_model)


def ready_made(model: Any) -> LensBackend:
    """A backend around a HookedTransformer or TransformerBridge of the user's, processed weights included.

    Hooks are added for the length of a pass; those that the user put there stay and take part.
    """
    kind = type(model).__name__
    if kind == "TransformerBridge":
        return _bridged(model, anatomy_of(model.original_model.config))
    if kind != "HookedTransformer":
        raise TypeError(f"{kind} is not supported; pass a HookedTransformer or a TransformerBridge")
    cfg = model.cfg
    n_kv = cfg.n_heads if cfg.ungroup_grouped_query_attention else cfg.n_key_value_heads or cfg.n_heads
    windows: tuple[int | None, ...] = ()
    if cfg.use_local_attn:
        windows = tuple(cfg.window_size if kind == "local" else None for kind in cfg.attn_types)
    dims = Dims(cfg.n_layers, cfg.n_heads, n_kv, cfg.d_model, cfg.d_head, cfg.d_vocab, cfg.n_ctx, windows)
    names = tuple(name for name in NAMES if name != "resid_mid" or not cfg.parallel_attn_mlp)
    return LensBackend("hooked_transformer", model, dims, names, None)


def _bridged(model: Any, anatomy: Anatomy) -> LensBackend:
    original = model.original_model
    sites = readable(anatomy, config_of(original, anatomy))
    return LensBackend("transformer_bridge", model, _bridge_dims(model, anatomy), sites, anatomy)


def _bridge_dims(model: Any, anatomy: Anatomy) -> Dims:
    cfg = model.cfg
    config = config_of(model.original_model, anatomy)
    n_ctx = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    n_kv = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    windows = windows_of(config, cfg.n_layers)
    return Dims(cfg.n_layers, cfg.n_heads, n_kv, cfg.d_model, cfg.d_head, cfg.d_vocab, n_ctx, windows)


@torch.no_grad()
def _that_fire(backend: LensBackend, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the names whose hook point the model passes; some exist and are never called."""
    fired: set[str] = set()
    known = backend.model.hook_dict
    hooks = [
        (f"blocks.0.{hook}", lambda x, hook, name=name: fired.add(name))
        for name, hook in HOOKS.items()
        if name in names and f"blocks.0.{hook}" in known
    ]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=backend.device)
    with hf.evaluating(backend.model), backend.model.hooks(fwd_hooks=hooks):
        backend.model(tokens, return_type=None, attention_mask=torch.ones_like(tokens))
    if {"resid_pre", "attn_out"} <= fired:
        fired.add("resid_mid")  # their sum; no hook point is read for it
    return tuple(name for name in names if name in fired)


@torch.no_grad()
def _checked(backend: LensBackend, hf_model: Any) -> LensBackend:
    """The backend, if its logits are the model's own: no identity shows a wrong activation function."""
    n = min(32, backend.dims.n_ctx or 32)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(backend.dims.d_vocab, (2, n), generator=generator).to(backend.device)
    position = torch.arange(n, device=backend.device).expand_as(tokens)
    request = Pass(
        tokens, Rows(position, position - (n - 1), torch.ones_like(position, dtype=torch.bool)), None
    )
    with hf.evaluating(hf_model):
        expected = hf_model(tokens).logits.float()
    found = backend.forward(request, Recorder(request)).logits
    assert found is not None  # no stop_after was asked for
    error, allowed = float((found.float() - expected).norm() / expected.norm()), TOLERANCE[backend.dtype]
    if not error <= allowed:
        raise ValueError(
            f"{backend.name} gives other logits than {type(hf_model).__name__} itself:"
            f" relative error {error:.2g}, allowed {allowed:.0e}; use transformers or nnsight"
        )
    return backend


def _stop(_module: nn.Module, _args: Any, _output: Any) -> None:
    raise _Stop
