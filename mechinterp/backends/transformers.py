"""The reference backend: plain torch hooks on a Hugging Face model, which is left as it was found.

A hook lives for one pass and comes off in `finally`. Final logits are computed only at the asked slots, by
gathering the rows in front of the unembedding, so that the model's own head does the rest.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.backends import hf, masks
from mechinterp.backends.anatomy import Anatomy, config_of, dims_of, module_at, readable
from mechinterp.backends.protocol import BackendName, Block, Outcome, Pass, Recorder, Visitor, gather_slots
from mechinterp.backends.readout import ReadsOut
from mechinterp.sites import Site


class TransformersBackend:
    """Runs `model` as it is: its weights, kernel, device map and dtype."""

    name: BackendName = "transformers"

    def __init__(self, model: nn.Module, anatomy: Anatomy):
        self.model, self.anatomy = model, anatomy
        self.config = config_of(model, anatomy)
        self.dims = dims_of(model, anatomy)
        self.sites = readable(anatomy, self.config)
        self.layers: Any = module_at(model, anatomy.layers)
        self.attentions = {i: module_at(layer, anatomy.attention) for i, layer in enumerate(self.layers)}
        self.scale = hf.residual_scale(model, anatomy)
        self.runs_blocks = anatomy.tapped  # BLOOM's are handed one bias a head and row, of a whole batch
        self._accepts = hf.accepted(model.forward)
        embedding: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        self.device: torch.device = embedding.weight.device
        self.dtype: torch.dtype = embedding.weight.dtype
        self.readout: ReadsOut = hf.readout_of(model, anatomy, self.dtype)

    def forward(self, request: Pass, recorder: Recorder) -> Outcome:
        kwargs = hf.arguments(request, self._accepts, self.dims.n_layers)
        with self._hooks(request, recorder):
            logits = self._logits(kwargs, request)
        return Outcome(logits, hf.cache_of(kwargs, request))

    def _logits(self, kwargs: dict[str, Any], request: Pass) -> Tensor | None:
        """Runs the model, or its body alone where no logits are asked for."""
        try:
            if request.wants_logits:
                return self.model(**kwargs).logits
            self._body()(**kwargs)
        except hf.Stop:
            pass
        return None

    def _body(self) -> Any:
        return self.model.base_model

    # hooks --------------------------------------------------------------------------------------------------

    @contextmanager
    def _hooks(self, request: Pass, recorder: Recorder) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(hf.evaluating(self.model))
            for site in recorder.sites:
                self._place(stack, site, request, recorder)
            last = recorder.sites[-1] if recorder.sites else None
            ends = last is not None and (last.name, last.layer) == ("pattern", request.stop_after)
            tapped = hf.tapped(
                self.attentions, self.anatomy, self.config, request, recorder, stop_at=last if ends else None
            )
            stack.enter_context(tapped)
            kernel = self.config._attn_implementation
            stack.enter_context(masks.forbidding(self.attentions, kernel, request))
            if request.stop_after is not None:
                _hook(stack, self.layers[request.stop_after], _stop)
            elif request.logit_slots is not None and request.logit_slots.shape[1] > 0:
                head = self.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
                slots = request.logit_slots
                stack.callback(
                    head.register_forward_pre_hook(lambda _, args: (gather_slots(args[0], slots),)).remove
                )
            yield

    def _place(self, stack: ExitStack, site: Site, request: Pass, recorder: Visitor) -> None:
        """One hook for one site."""
        layer, anatomy = self.layers[site.layer], self.anatomy
        match site.name:
            case "resid_pre":
                _pre_hook(stack, layer, lambda x: recorder.visit(site, x))
            case "resid_post":
                _output_hook(stack, layer, lambda x: recorder.visit(site, x))
            case "attn_out" | "mlp_out":
                path = anatomy.attn_out if site.name == "attn_out" else anatomy.mlp_out
                _output_hook(stack, module_at(layer, path), lambda x: self._scaled(site, x, recorder))
            case "z":
                split = "batch slot (head d) -> batch slot head d"
                merge = "batch slot head d -> batch slot (head d)"

                def visit(x: Tensor) -> Tensor:
                    heads = rearrange(x, split, head=self.dims.n_heads)
                    visited = recorder.visit(site, heads)
                    return x if visited is heads else rearrange(visited, merge)

                _pre_hook(stack, module_at(layer, anatomy.attn_proj), visit)
            case "q" | "k" | "v":
                path = anatomy.qkv[0 if anatomy.fused else "qkv".index(site.name)]
                _output_hook(stack, module_at(layer, path), lambda x: self._read_qkv(site, x, recorder))
            case "pattern" if not anatomy.tapped:
                assert isinstance(recorder, Recorder)  # blocks by themselves are asked for no rows
                stack.callback(self._eager_rows(site, request, recorder).remove)

    def _scaled(self, site: Site, x: Tensor, recorder: Visitor) -> Tensor:
        """attn_out and mlp_out are what is added to the stream, a residual multiplier included."""
        if self.scale == 1.0:
            return recorder.visit(site, x)
        scaled = x * self.scale
        visited = recorder.visit(site, scaled)
        return x if visited is scaled else visited / self.scale

    def _read_qkv(self, site: Site, x: Tensor, recorder: Visitor) -> Tensor:
        recorder.visit(
            site, hf.split_qkv(self.anatomy, site.name, x, self.dims.n_heads, self.dims.n_kv_heads)
        )
        return x

    def _eager_rows(self, site: Site, request: Pass, recorder: Recorder) -> Any:
        """Rows of a family whose attention is always eager (BLOOM): the weights that its module returns."""

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            recorder.put(site, [hf.chosen_rows(output[1], request)])

        return self.attentions[site.layer].register_forward_hook(keep)

    # the upper layers alone ---------------------------------------------------------------------------------

    def replay(
        self, request: Pass, recorder: Recorder, layer: int, residual: Float[Tensor, "batch slot d_model"]
    ) -> Outcome:
        """Layers `layer`.. on `residual`. Their other arguments (masks, rotary angles) come from a run of
        the model's own body with recording stubs in place of its layers, so they are what the model itself
        would pass. The layers below get back the slots that a crop of the cache hid: their keys and values
        are still right."""
        kwargs = hf.arguments(request, self._accepts, self.dims.n_layers)
        calls = self._layer_calls(kwargs)
        logits = None
        with self._hooks(request, recorder):
            x = residual
            try:
                for block, (args, kwargs_) in list(zip(self.layers, calls, strict=True))[layer:]:
                    x = hf.first(block(x, *args, **kwargs_))
                if request.wants_logits:
                    logits = self.readout.unembed(
                        x if request.logit_slots is None else gather_slots(x, request.logit_slots)
                    )
            except hf.Stop:
                pass
        if request.cache is not None:
            request.cache.uncrop(layer, request.n_cached + request.tokens.shape[1])  # pyright: ignore
        return Outcome(logits, request.cache if request.keep_cache else None)

    @contextmanager
    def blocks(self, request: Pass) -> Iterator[Block]:
        cache = cast(hf.KeyValues, request.cache)  # the one that a forward of this backend made
        prefix = cache.prefix(cache.n_slots - request.tokens.shape[1])
        kwargs = hf.arguments(replace(request, cache=prefix), self._accepts, self.dims.n_layers)
        calls = self._layer_calls(kwargs)

        def run(layer: int, x: Tensor, visitor: Visitor) -> Tensor:
            args, kwargs_ = calls[layer]
            with ExitStack() as stack:
                for site in visitor.sites:
                    self._place(stack, site, request, visitor)
                return hf.first(self.layers[layer](x, *args, **kwargs_))

        with hf.evaluating(self.model):
            yield run

    def _layer_calls(self, kwargs: dict[str, Any]) -> list[tuple[tuple, dict[str, Any]]]:
        """What each decoder layer is called with, except its input."""
        path, _, name = self.anatomy.layers.rpartition(".")
        holder = module_at(self.model, path)
        calls: list[tuple[tuple, dict[str, Any]]] = []
        shell = copy.copy(holder)
        stubs = nn.ModuleList([_Stub(calls, block, last=block is self.layers[-1]) for block in self.layers])
        shell.__dict__["_modules"] = {**holder._modules, name: stubs}
        with suppress(hf.Stop):
            shell(**kwargs)
        return calls


class _Stub(nn.Module):
    """Stands for a decoder layer: notes its arguments and hands its input on; the last ends the run.

    Some bodies unpack what a layer returns and some do not: a tuple goes through both, since no stub
    computes.
    """

    def __init__(self, calls: list, block: nn.Module, last: bool):
        super().__init__()
        self._calls, self._last = calls, last
        self.__dict__["attention_type"] = getattr(block, "attention_type", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        x = args[0] if args else kwargs.pop("hidden_states")
        self._calls.append((args[1:], kwargs))
        if self._last:
            raise hf.Stop
        return x if isinstance(x, tuple) else (x,)


def _stop(_module: nn.Module, _args: Any, _output: Any) -> None:
    raise hf.Stop


def _hook(stack: ExitStack, module: nn.Module, function: Any) -> None:
    stack.callback(module.register_forward_hook(function).remove)


def _output_hook(stack: ExitStack, module: nn.Module, visit: Any) -> None:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        x = hf.first(output)
        visited = visit(x)
        return None if visited is x else hf.with_first(output, visited)

    _hook(stack, module, hook)


def _pre_hook(stack: ExitStack, module: nn.Module, visit: Any) -> None:
    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        visited = visit(x)
        if visited is x:
            return None
        return ((visited, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": visited})

    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
