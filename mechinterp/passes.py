"""Counting passes: which layers ran on how many rows, over how many keys, and what was held meanwhile.

The counts are of calls of the model's own modules, so that whatever runs them is counted: probes, sampling,
patching block by block, training.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from mechinterp.backends.anatomy import module_at
from mechinterp.backends.protocol import Dims
from mechinterp.sites import Site, SiteName


class LayerCall(NamedTuple):
    """One call of one layer: `rows` new tokens in all, of `n_batch` sequences of `keys` slots each."""

    rows: int
    n_batch: int
    keys: int
    trained: bool


class Held(NamedTuple):
    """What is in memory at a moment: cached slots of all sequences, entries of each captured site (in rows of
    the site; of pattern, in weights), rows of logits, and rows that a block works on.
    """

    cache_slots: int
    captured: tuple[tuple[SiteName, int], ...]
    logit_rows: int
    rows: int
    trained: bool


@dataclass(eq=False)
class Passes:
    """Counts of what ran. `forwards` are runs of the first layer, `tokens` the rows that went into it,
    padding included, and `prompts` the sequences that had no cache there. Passes over the upper layers alone
    are in the layer calls. What ran `in_training` is counted in `training`.
    """

    forwards: int = 0
    prompts: int = 0
    tokens: int = 0
    layer_calls: Counter[LayerCall] = field(default_factory=Counter)
    head_calls: Counter[tuple[int, bool]] = field(default_factory=Counter)
    moments: set[Held] = field(default_factory=set)
    training: Passes | None = None


_open: list[Counting] = []


def noted(values: dict[Site, Tensor]) -> None:
    """A pass of `Model.run` is over and holds these activations; whoever counts is told."""
    for one in _open:
        one.finished(values)


@contextmanager
def in_training() -> Iterator[None]:
    """What runs meanwhile is counted as training, apart: a plan counts few of its steps."""
    aside = [(one, one.passes) for one in _open]
    for one, passes in aside:
        one.passes = passes.training = passes.training or Passes()
    try:
        yield
    finally:
        for one, passes in aside:
            one.passes = passes


@contextmanager
def counted(model: Any, passes: Passes | None = None) -> Iterator[Counting]:
    """Counts every pass of a model's architecture while it is open: of its twins, adapters and others too."""
    layers = model.backend.layers
    counting = Counting(model.dims, model.backend.anatomy.attention, type(layers[0]), passes or Passes())
    handle = register_module_forward_hook(counting.after, with_kwargs=True)
    _open.append(counting)
    try:
        yield counting
    finally:
        _open.remove(counting)
        handle.remove()


@dataclass(eq=False)
class Counting:
    """Listens to modules; `caches` are those that are still held by somebody."""

    dims: Dims
    attention: str
    layer: type
    passes: Passes
    caches: weakref.WeakSet = field(default_factory=weakref.WeakSet)
    rows: int = 0
    logit_rows: int = 0
    trained: bool = False

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Of every module that ran."""
        n_vocab = self.dims.d_vocab
        if type(module) is self.layer:
            self._layer(module, args, kwargs, output)
        elif isinstance(module, nn.Linear) and module.out_features == n_vocab:
            self.decided(output.numel() // n_vocab, output.requires_grad)

    def decided(self, rows: int, trained: bool = False) -> None:
        """Logits were made of these rows."""
        self.logit_rows = rows
        self.passes.head_calls[rows, trained] += 1
        self.moment()

    def ran(self, call: LayerCall, layers: range, cache: Any = None) -> None:
        """These layers ran, each so."""
        self.trained = call.trained
        self.passes.layer_calls[call] += len(layers)
        if cache is not None:
            self.caches.add(cache)
        if layers.start == 0:
            self.logit_rows, self.rows = 0, call.rows
            self.passes.forwards += 1
            self.passes.tokens += call.rows
            self.passes.prompts += call.n_batch * (call.keys * call.n_batch == call.rows)
        if layers.stop == self.dims.n_layers:
            self.moment()

    def _layer(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        out = output[0] if isinstance(output, tuple) else output
        n_batch, n_slots = x.shape[:2]
        index = getattr(module_at(module, self.attention), "layer_idx", 0) or 0
        cache = next((one for one in (*args, *kwargs.values()) if hasattr(one, "get_seq_length")), None)
        keys = n_slots if cache is None else max(n_slots, int(cache.get_seq_length(index)))
        call = LayerCall(n_batch * n_slots, n_batch, keys, bool(out.requires_grad))
        self.ran(call, range(index, index + 1), cache)

    def finished(self, values: dict[Site, Tensor]) -> None:
        """A pass that holds these activations is over."""
        captured: Counter[SiteName] = Counter()
        for site, value in values.items():
            one = 1 if site.name == "pattern" else math.prod(self.dims.shape(site))
            captured[site.name] += value.numel() // one
        self.moment(tuple(sorted(captured.items())))

    def moment(self, captured: tuple[tuple[SiteName, int], ...] = ()) -> None:
        slots = sum(map(_slots, self.caches))
        self.passes.moments.add(Held(slots, captured, self.logit_rows, self.rows, self.trained))


def _slots(cache: Any) -> int:
    """The slots that a cache has room for, over its sequences; nothing where it reads another's."""
    keys = getattr(cache.layers[-1], "keys", None) if cache.layers else None
    return 0 if keys is None or keys._is_view() else keys.shape[0] * keys.shape[2]
