"""The nnsight backend: one trace a pass, sites visited in the order in which the model reaches them.

nnsight rewrites the forward of every module that it wraps, for good, so it gets a twin. The body of a trace
runs in a greenlet of the same thread while the model waits, so the recorder sees the model's own tensors.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from einops import rearrange
from torch import Tensor, nn

from mechinterp.backends import hf, masks
from mechinterp.backends.anatomy import Anatomy, anatomy_of, config_of, dims_of, module_at, readable
from mechinterp.backends.hf import chosen_rows, first, split_qkv, with_first
from mechinterp.backends.protocol import BackendName, Dims, Outcome, Pass, Recorder, gather_slots
from mechinterp.backends.readout import ReadsOut
from mechinterp.backends.twin import twin
from mechinterp.sites import Site


class NNsightBackend:
    """Runs a twin of `hf_model` under nnsight; the model that was passed keeps its own modules."""

    name: BackendName = "nnsight"

    def __init__(self, hf_model: nn.Module, anatomy: Anatomy):
        self.hf_model = hf_model
        self._attach(twin(hf_model), anatomy)

    def _attach(self, model: nn.Module, anatomy: Anatomy, edits: Any = None) -> None:
        """`edits` is an nnsight object whose stored edits take part in every pass, as in its own traces."""
        self.model, self.anatomy = model, anatomy
        self.config = config_of(model, anatomy)
        self.dims = dims_of(model, anatomy)
        self.sites = readable(anatomy, self.config)
        embedding: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        self.device: torch.device = embedding.weight.device
        self.dtype: torch.dtype = embedding.weight.dtype
        self.readout: ReadsOut = hf.readout_of(model, anatomy, self.dtype)
        self._accepts = hf.accepted(type(model).forward)
        self._edits = edits
        self._root = nnsight.NNsight(model)
        self._route = route_of(self._root, model, anatomy)

    def forward(self, request: Pass, recorder: Recorder) -> Outcome:
        kwargs = hf.arguments(request, self._accepts, self.dims.n_layers)
        logits: list[Tensor] = []
        if self._edits is not None:
            self._root._edits = self._edits._edits
        with ExitStack() as stack:
            stack.enter_context(hf.evaluating(self.model))
            attentions = {i: module_at(layer, self.anatomy.attention) for i, layer in self._numbered()}
            stack.enter_context(hf.tapped(attentions, self.anatomy, self.config, request, recorder))
            kernel = self.config._attn_implementation
            stack.enter_context(masks.forbidding(attentions, kernel, request))
            with self._root.trace(**kwargs) as tracer:
                self._route.follow(request, recorder)
                if not request.wants_logits:
                    tracer.stop()  # pyright: ignore[reportAttributeAccessIssue]
                logits.append(self._route.logits(tracer, request))
        return Outcome(logits[0] if logits else None, hf.cache_of(kwargs, request))

    def _numbered(self) -> Any:
        return enumerate(module_at(self.model, self.anatomy.layers))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Route:
    """The body of a trace: goes along with the model from site to site, in the model's own order.

    It holds nnsight's envoys and plain data and names functions, no modules, so that it can be sent to where
    the model is.
    """

    anatomy: Anatomy
    dims: Dims
    scale: float
    layers: Any
    head: Any

    def follow(self, request: Pass, recorder: Recorder) -> None:
        """Visits every site, and waits for the last layer that must run where no logits are asked for."""
        last = self.dims.n_layers - 1 if request.stop_after is None else request.stop_after
        for site in sorted(recorder.sites, key=self._reached):
            if site.layer <= last:
                self._visit(site, request, recorder)
        if not request.wants_logits:
            _ = self.layers[last].output

    def logits(self, tracer: Any, request: Pass) -> Tensor:
        """The logits at the asked slots."""
        if request.logit_slots is not None:
            self.head.input = gather_slots(self.head.input, request.logit_slots)
        return tracer.result.logits

    def _reached(self, site: Site) -> tuple[int, int, Site]:
        """Rows that an eager family returns from its attention come after its output projection."""
        late = {"pattern": 1, "mlp_out": 2, "resid_post": 3} if not self.anatomy.tapped else {}
        return site.layer, late.get(site.name, 0), site

    def _visit(self, site: Site, request: Pass, recorder: Recorder) -> None:
        layer, anatomy = self.layers[site.layer], self.anatomy
        match site.name:
            case "resid_pre":
                x = layer.input
                visited = recorder.visit(site, x)
                if visited is not x:
                    layer.input = visited
            case "resid_post":
                self._visit_output(layer, site, recorder, 1.0)
            case "attn_out" | "mlp_out":
                path = anatomy.attn_out if site.name == "attn_out" else anatomy.mlp_out
                self._visit_output(layer.get(path), site, recorder, self.scale)
            case "z":
                projection = layer.get(anatomy.attn_proj)
                heads = rearrange(
                    projection.input, "batch slot (head d) -> batch slot head d", head=self.dims.n_heads
                )
                visited = recorder.visit(site, heads)
                if visited is not heads:
                    projection.input = rearrange(visited, "batch slot head d -> batch slot (head d)")
            case "q" | "k" | "v":
                path = anatomy.qkv[0 if anatomy.fused else "qkv".index(site.name)]
                x = layer.get(path).output
                recorder.visit(
                    site, split_qkv(anatomy, site.name, x, self.dims.n_heads, self.dims.n_kv_heads)
                )
            case "pattern" if not anatomy.tapped:
                weights = layer.get(anatomy.attention).output[1]
                recorder.put(site, [chosen_rows(weights, request)])

    def _visit_output(self, module: Any, site: Site, recorder: Recorder, scale: float) -> None:
        """Hands over what the module adds to the stream: its output, times a residual multiplier."""
        output = module.output
        x = first(output)
        added = x if scale == 1.0 else x * scale
        visited = recorder.visit(site, added)
        if visited is not added:
            module.output = with_first(output, visited if scale == 1.0 else visited / scale)


def route_of(root: Any, model: Any, anatomy: Anatomy) -> Route:
    """The route through `model`, whose nnsight object is `root`."""
    head: Any = root.get(_path_of(model, model.get_output_embeddings()))
    scale = hf.residual_scale(model, anatomy)
    return Route(anatomy, dims_of(model, anatomy), scale, root.get(anatomy.layers), head)


def ready_made(model: Any) -> NNsightBackend:
    """A backend around an nnsight model that the user built: its modules run, with the edits stored on it.

    Raises TypeError for a wrapper of anything but a causal model, ValueError for one without weights yet.
    """
    module = model._module
    if not hasattr(module, "get_output_embeddings") or not hasattr(module, "config"):
        raise TypeError(
            f"the nnsight model wraps {type(module).__name__}; wrap a Hugging Face causal language model"
        )
    if any(parameter.is_meta for parameter in module.parameters()):
        raise ValueError("the nnsight model holds no weights yet; build it with dispatch=True")
    made = NNsightBackend.__new__(NNsightBackend)
    made._attach(module, anatomy_of(module.config), edits=model)
    return made


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
