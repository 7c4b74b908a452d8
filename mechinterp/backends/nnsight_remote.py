"""nnsight's remote execution: the model runs on an NDIF server, the sites and edits travel there as they are.

No weights are here: the modules are on torch's meta device, for their names and sizes. One request is one
pass without a cache; what is asked of a recorder is done over there, and only what it kept comes back.
"""

from __future__ import annotations

from typing import Any, Literal

import nnsight
import torch
from httpx import HTTPError
from nnsight.intervention.backends.remote import RemoteError
from torch import Tensor
from websocket import WebSocketException

from mechinterp.backends import hf
from mechinterp.backends.anatomy import anatomy_of, dims_of, readable
from mechinterp.backends.nnsight import route_of
from mechinterp.backends.protocol import BackendName, Outcome, Pass, Recorder

ATTENTION = ("pattern", "q_rot", "k_rot")  # made by a function registered in this process
WAYS_OUT = (
    "check the address (NDIF_HOST) and the key (NDIF_API_KEY), or load the model here without remote=True;"
    " the pass was not run, and what was computed before is as it was"
)
Where = Literal[True, "local"]  # "local" sends a request to nowhere: packed, unpacked and run here


class RemoteBackend:
    """Runs passes of a model that is elsewhere. `model` is nnsight's object, without weights."""

    name: BackendName = "nnsight"

    def __init__(self, model: Any, remote: Where = True):
        import mechinterp

        nnsight.ndif.register(mechinterp)  # the server has no copy of ours: what a pass uses goes along
        module = model._module
        self.root, self.remote = model, remote
        self.anatomy = anatomy_of(module.config)
        self.dims = dims_of(module, self.anatomy)
        self.sites = tuple(s for s in readable(self.anatomy, module.config) if s not in ATTENTION)
        self.device, self.dtype = torch.device("cpu"), module.dtype
        self.readout: Any = _Elsewhere()
        self._accepts = hf.accepted(type(module).forward)
        self._route = route_of(model, module, self.anatomy)

    def forward(self, request: Pass, recorder: Recorder) -> Outcome:
        """Raises ValueError for what one request cannot do, ConnectionError where nobody answers."""
        _refuse(request)
        given = hf.arguments(request, self._accepts, self.dims.n_layers)
        try:
            logits, kept = self._sent(given, request, recorder)
        except (OSError, RemoteError, WebSocketException, HTTPError) as error:
            said = (str(error).splitlines() or [""])[0]
            raise ConnectionError(
                f"the remote pass failed ({type(error).__name__}: {said}); {WAYS_OUT}"
            ) from error
        for name, value in kept.items():
            setattr(recorder, name, value)
        return Outcome(logits, None)

    def _sent(
        self, given: dict[str, Any], request: Pass, recorder: Recorder
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """The trace. What its body names is packed with it: plain data and nnsight's own objects."""
        root, route, remote, logits = self.root, self._route, self.remote, None
        with root.trace(**given, remote=remote) as tracer:
            route.follow(request, recorder)
            kept = nnsight.save(recorder.kept())
            if request.wants_logits:
                logits = nnsight.save(route.logits(tracer, request))
            else:
                tracer.stop()
        return logits, kept


def weightless(path: str, revision: str | None) -> Any:
    """nnsight's object for a model that is elsewhere: its modules without weights, and its tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    return nnsight.TransformersModel(path, revision=revision, task="text-generation", tokenizer=tokenizer)


def _refuse(request: Pass) -> None:
    """Raises ValueError for a pass that is more than one request."""
    what = {
        "a cache (sampling, patching over a prefix)": request.keep_cache or request.cache is not None,
        "a knock-out": bool(request.forbidden),
        "gradients": request.live,
    }
    for name, asked in what.items():
        if asked:
            raise ValueError(
                f"{name} is not sent to a remote model: one request is one pass; load it here without"
                " remote=True"
            )


class _Elsewhere:
    """The head of a model whose weights are not here."""

    logit_cap = None

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"{name} needs weights, and those of a remote model are not here; load it without remote=True"
        )
