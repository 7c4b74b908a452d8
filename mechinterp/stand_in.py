"""A narrow random model in a large one's place: its layers, heads and tokenizer, so that a study makes the
very passes that it would make on the large one, in seconds and without weights.

What it says is dictated, since how long answers are decides what a study costs: sentences up to the last
token that is allowed, with a trained model's marker before the end in every other row. So a sampled token
needs no pass at all, only its count.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechinterp import sampling
from mechinterp.backends import hf
from mechinterp.backends.protocol import Outcome, Pass, Recorder
from mechinterp.loading import wrap
from mechinterp.model import Model
from mechinterp.passes import Counting, LayerCall
from mechinterp.samples import Phase, Telemetry

D_HEAD = 8
D_MODEL = ("hidden_size", "n_embd")
D_MLP = ("intermediate_size", "n_inner")
SENTENCE = " The sea is wide and the wind is old."


def narrowed(config: Any, n_vocab: int) -> Any:
    """A configuration of the same architecture with as many layers and heads, each as narrow as can be."""
    small = copy.deepcopy(config)
    heads = small.num_attention_heads
    for names, size in ((D_MODEL, heads * D_HEAD), (D_MLP, 2 * heads * D_HEAD)):
        for name in names:
            if getattr(small, name, None) is not None:
                setattr(small, name, size)
    if getattr(small, "head_dim", None) is not None:
        small.head_dim = D_HEAD
    small.vocab_size, small.dtype = n_vocab, torch.float32
    if getattr(small, "pad_token_id", None) is not None:
        small.pad_token_id = 0
    for rope in _dictionaries(getattr(small, "rope_parameters", None)):
        for name in ("short_factor", "long_factor"):
            if name in rope:
                rope[name] = rope[name][: D_HEAD // 2]
    return small


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dictionaries(inner)


def stand_in(config: Any, tokenizer: Any, name: str, seed: int = 0) -> Model:
    """The narrow model under the large one's name."""
    from transformers import AutoModelForCausalLM

    n_vocab = max(tokenizer.get_vocab().values()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf_model = AutoModelForCausalLM.from_config(narrowed(config, n_vocab)).eval().requires_grad_(False)
    return wrap(hf_model, tokenizer, name=name, verify=False)


@contextmanager
def dictated(counting: Counting, marker: str | None) -> Iterator[None]:
    """Whatever is sampled meanwhile is dictated, and its passes are counted without being run."""
    with sampling.instead(lambda batch: _Dictated.of(batch, counting, marker).run()):
        yield


@dataclass(eq=False)
class _Dictated(sampling.Batch):
    """A batch of sampling, token by token as ever, that is told what to say: its passes have no numbers."""

    said: Tensor = field(default_factory=lambda: torch.empty(0))

    @staticmethod
    def of(batch: sampling.Batch, counting: Counting, marker: str | None) -> _Dictated:
        plan, n_total = batch.plan, sum(phase.n_tokens for phase in batch.plan.phases)
        said = torch.stack([_script(plan, row, n_total, marker) for row in batch.chosen])
        model = replace(plan.model, backend=_Uncomputed(plan.model.backend, counting))
        return _Dictated(replace(plan, model=model), batch.rows, batch.names, batch.chosen, said=said)

    def _choose(self, logits: Tensor, phase: Phase, uniform: Tensor | None, index: int) -> Tensor:
        return self.said[:, index]

    def _note(self, logits: Tensor, seen: Any, beside: Any) -> None:
        """The pass that would be compared with."""
        if beside is not None:
            beside.step(None)

    def _telemetry(self, n: int) -> Telemetry | None:
        """Numbers of the right shapes."""
        watch, n_tokens = self.plan.watch, self.said.shape[1]
        if watch is None:
            return None
        k, dims = len(watch.directions), self.plan.model.dims
        return Telemetry(
            projections=torch.randn(n, n_tokens, k),
            natural=torch.randn(n, n_tokens, k),
            norms=torch.rand(n, n_tokens) + 1,
            entropy=torch.rand(n, n_tokens),
            kl=torch.rand(n, n_tokens) if watch.kl else None,
            captured={site: torch.randn(n, n_tokens, *dims.shape(site)) for site in watch.capture},
        )


def _script(plan: Any, row: int, n: int, marker: str | None) -> Tensor:
    """Sentences, in every other row the marker, and a stop where the last phase may sample one."""
    tokenizer, last = plan.model.tokenizer, plan.phases[-1]
    stops = sorted(plan.stop - last.suppress)
    end = "." if marker is None or row % 2 else ".\n\n" + marker
    ids = [*_ids(tokenizer, end), *stops[:1]]
    end, words = ids if len(ids) < n else stops[:1], _ids(tokenizer, SENTENCE)
    return torch.tensor([*(words * n)[: n - len(end)], *end][:n])


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class _Uncomputed:
    """A backend whose passes are counted and give nothing but shapes; for sampling alone."""

    def __init__(self, backend: Any, counting: Counting):
        self.counting = counting
        self.name, self.sites, self.dims = backend.name, backend.sites, backend.dims
        self.device, self.dtype, self.readout = backend.device, backend.dtype, backend.readout
        self.model = backend.model  # whose turn it is

    def forward(self, request: Pass, recorder: Recorder) -> Outcome:
        return self._run(request, recorder, 0)

    def replay(self, request: Pass, recorder: Recorder, layer: int, residual: Tensor) -> Outcome:
        return self._run(request, recorder, layer)

    def _run(self, request: Pass, recorder: Recorder, first: int) -> Outcome:
        n_batch, n_slots = request.tokens.shape
        cache: Any = request.cache or hf.KeyValues([hf.GrowingLayer()])
        cache.layers[0].update(*[torch.zeros(n_batch, 1, n_slots, 1)] * 2)
        keys = cache.n_slots
        call = LayerCall(n_batch * n_slots, n_batch, keys, False)
        self.counting.ran(call, range(first, self.dims.n_layers), cache)
        for index, edit in enumerate(request.interventions):
            recorder.applied[index] = int(edit.mask(request.rows).sum())
        for kept, n in ((recorder.values, 1), (recorder.natural, n_slots)):
            for site in request.capture if kept is recorder.values else request.natural:
                kept[site] = torch.zeros(n_batch, n, *self.dims.shape(site))
        logits = None
        if request.wants_logits:
            self.counting.decided(n_batch)
            logits = torch.arange(2.0).expand(n_batch, 1, 2)  # nobody chooses by them
        return Outcome(logits, cache)
