"""A model behind one door: a backend, a tokenizer and a name. All that is asked of a model is checked here.

Nothing above this file knows which library runs. `resid_mid` is computed here, as `resid_pre + attn_out`, on
every backend; it is read, never written.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.activations import Activations, State, with_mid, with_parts
from mechinterp.backends.protocol import Backend, Dims, Pass, Recorder
from mechinterp.backends.turns import turn
from mechinterp.chat import Prompt, plain, render
from mechinterp.edit_checks import check
from mechinterp.interventions import Intervention
from mechinterp.knockout import Chunk, KnockOut, forbidden_keys
from mechinterp.memory import refuse_what_cannot_fit
from mechinterp.passes import noted
from mechinterp.rows import check_positions, is_integer, layout, slots_at
from mechinterp.sites import Site, as_index


@dataclass(frozen=True, eq=False)
class Model:
    """A backend, a tokenizer and a name; frozen: adapter on and off are two models over one set of weights.

    `source` records where the weights came from (for manifests); `weights_sha256` is their digest. `eos_ids`
    are all the ids that end a turn or a text.
    """

    name: str
    backend: Backend
    tokenizer: Any
    weights_sha256: str
    source: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()

    @property
    def dims(self) -> Dims:
        return self.backend.dims

    def __repr__(self) -> str:
        backend = self.backend
        return f"Model({self.name!r}, backend={backend.name!r}, {self.dims.n_layers} layers, {backend.dtype})"

    # prompts ------------------------------------------------------------------------------------------------

    def chat(
        self,
        question: str,
        *,
        system: str | None = None,
        system_role: Literal["native", "prepend_user"] = "native",
        chat: bool = True,
    ) -> Prompt:
        """One question as a prompt that ends where the answer begins; `chat=False` needs no template.

        `system=None` leaves the system message out (a template may then insert its own, which is labelled);
        `""` is an empty one. `system_role="prepend_user"` puts the text before the question, for models
        without a system role.
        """
        if not chat:
            if system is not None:
                raise ValueError(
                    "chat=False has no system message; put the text into the question, or leave system out"
                )
            return plain(self.tokenizer, question)
        head = [] if system is None else [{"role": "system", "content": system}]
        messages = [*head, {"role": "user", "content": question}]
        return render(self.tokenizer, messages, system_role=system_role)

    def decode(self, tokens: Int[Tensor, "position"] | Sequence[int]) -> str:
        """Ids as text, for showing; text is never made into ids again."""
        return self.tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False)

    # passes -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "batch position"],
        *,
        capture: Iterable[Site] = (),
        interventions: Sequence[Intervention] = (),
        positions: Sequence[int] | Int[Tensor, "batch k"] | None = None,
        logits_at: Sequence[int] | Int[Tensor, "batch k"] | None = None,
        stop_after: int | None = None,
        lengths: Sequence[int] | None = None,
        cache: State | None = None,
        keep_cache: bool = False,
        knockouts: Sequence[KnockOut] = (),
    ) -> Activations:
        """One pass over ids, exact and without gradients.

        tokens: [batch, position], right-padded where `lengths` are given; with `cache` they follow what it
        holds. positions, logits_at: absolute positions whose activations and logits are kept, the same in
        every row or [batch, k]; -1 is each row's last token; None is all; `logits_at=()` computes no logits.
        stop_after: the last layer to run; no logits then. `cache` is used up by the pass. knockouts: rows
        that may not attend to some keys, through the mask. Raises TypeError, ValueError or IndexError before
        any compute where the request cannot be met, and MemoryError where what it keeps cannot fit.
        """
        tokens = self.checked_tokens(tokens, cache)
        interventions = tuple(interventions)
        capture = tuple(dict.fromkeys(capture))
        for site in capture:
            self.check_site(site)
        self.check_interventions(interventions, len(tokens))
        _check_stop(stop_after, capture, interventions, logits_at, keep_cache or cache is not None)
        n_before = 0 if cache is None else cache.n_slots
        pad = None if cache is None else cache.pad_left
        rows, ends = layout(tokens, lengths, n_before, pad, None if cache is None else cache.prompt_lengths)
        check_positions(interventions, ends)
        offset = n_before - (torch.zeros_like(ends) if pad is None else pad)
        chunk = Chunk(rows, ends, pad, n_before)
        request = Pass(
            tokens=tokens,
            rows=rows,
            pad_left=pad,
            capture=with_parts(capture),
            slots=slots_at(positions, ends, offset, "positions"),
            interventions=interventions,
            logit_slots=slots_at(logits_at, ends, offset, "logits_at"),
            stop_after=None if stop_after is None else self._layer(stop_after),
            cache=None if cache is None else cache.cache,
            keep_cache=keep_cache or cache is not None,
            forbidden=forbidden_keys(tuple(knockouts), self.dims, chunk, self.name, stop_after),
        )
        state_lengths = ends if cache is None else cache.prompt_lengths
        if request.keep_cache and bool((ends - offset < tokens.shape[1]).any()):
            raise ValueError(
                "a cache cannot go on after right padding; sample() left-pads, or run each length apart"
            )
        refuse_what_cannot_fit(request, capture, self.backend)
        return self.run(request, state_lengths, capture)

    def run(
        self, request: Pass, prompt_lengths: Int[Tensor, "batch"], capture: tuple[Site, ...]
    ) -> Activations:
        """A pass that is already resolved: `sample` runs one a token; `forward` is the door for all else."""
        recorder = Recorder(request)
        n_before = request.n_cached
        with turn(self.backend):
            outcome = self.backend.forward(request, recorder)
        recorder.check()
        if outcome.logits is not None and outcome.logits.numel():
            _check_logits(outcome.logits, bool(request.interventions))
        state = None
        if outcome.cache is not None:
            state = State(outcome.cache, n_before + request.tokens.shape[1], request.pad_left, prompt_lengths)
        noted(recorder.values)
        values = with_mid(recorder.values, capture)
        logits = None if outcome.logits is None else outcome.logits.to(request.tokens.device)
        return Activations(request.tokens, logits, values, state, tuple(recorder.applied), recorder.natural)

    @torch.no_grad()
    def unembed(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
        """The logits of a stream after the last layer: final norm, unembedding, scale and soft-capping."""
        return self.backend.readout.unembed(residual)

    # checks -------------------------------------------------------------------------------------------------

    def check_interventions(self, interventions: Sequence[Intervention], n_batch: int) -> None:
        """Raises TypeError, ValueError or IndexError for edits that a batch of this size cannot take."""
        for intervention in interventions:
            if not isinstance(intervention, Intervention):
                raise TypeError(
                    f"{intervention!r} is no intervention; use Add, Replace, ProjectOut, Clamp, Rotate or"
                    " Apply"
                )
            self.check_site(intervention.site)
            check(intervention, self.dims.shape(intervention.site), n_batch)
        if len({id(i) for i in interventions}) < len(interventions):
            raise ValueError(
                "the same intervention is given twice; to apply it twice, make a second one or double its"
                " strength"
            )

    def check_site(self, site: Site) -> None:
        """Raises IndexError for a layer that is not there, ValueError for a site that the model has not."""
        if not isinstance(site, Site):
            raise TypeError(f"{site!r} is no site; write Site(name, layer)")
        n = self.dims.n_layers
        if not 0 <= site.layer < n:
            raise IndexError(f"{self.name} has layers 0..{n - 1}; there is no {site}")
        if site.name not in self.backend.sites:
            if site.name == "resid_mid":
                why = "it adds attention and MLP in parallel, so there is no stream between them"
            elif site.name in ("q_rot", "k_rot"):
                why = "it has no rotary embedding, or this backend does not show it"
            else:
                why = f"the {self.backend.name} backend does not show it for this architecture"
            raise ValueError(f"{self.name} has no {site.name}: {why}; it has {', '.join(self.backend.sites)}")

    def _layer(self, layer: int) -> int:
        index = as_index(layer, "stop_after")
        self.check_site(Site("resid_post", index))
        return index

    def checked_tokens(self, tokens: Tensor, cache: State | None) -> Int[Tensor, "batch position"]:
        """The ids where the model is. Raises TypeError or ValueError for what is no batch of its ids."""
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not is_integer(tokens):
            what = (
                f"{tokens.dtype} {tuple(tokens.shape)}"
                if isinstance(tokens, Tensor)
                else type(tokens).__name__
            )
            raise TypeError(f"tokens must be integer ids of shape [batch, position], not {what}")
        if not tokens.numel():
            raise ValueError("the prompt holds no tokens; give at least one id (a BOS alone is enough)")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.dims.d_vocab:
            raise ValueError(
                f"{self.name} has ids 0..{self.dims.d_vocab - 1}; the tokens hold {low if low < 0 else high}"
            )
        n = tokens.shape[1] + (0 if cache is None else cache.n_slots)
        if self.dims.n_ctx is not None and n > self.dims.n_ctx:
            raise ValueError(
                f"{self.name} has a context of {self.dims.n_ctx} positions; {n} were given:"
                " shorten the prompt"
            )
        if cache is not None and len(cache.prompt_lengths) != len(tokens):
            raise ValueError(f"the cache holds {len(cache.prompt_lengths)} rows, the tokens {len(tokens)}")
        if cache is not None and cache.cache.n_slots != cache.n_slots:
            raise ValueError(
                f"the cache of {cache.n_slots} positions was used up by a later pass and now"
                f" holds {cache.cache.n_slots}; go on from the newest state, and branch with"
                " state.select(rows) before a pass"
            )
        return tokens.to(self.backend.device, torch.long)


def _check_stop(
    stop_after: int | None,
    capture: tuple[Site, ...],
    interventions: tuple[Intervention, ...],
    logits_at: Sequence[int] | Tensor | None,
    keep_cache: bool,
) -> None:
    """Refuses what a pass that stops early cannot give."""
    if stop_after is None:
        return
    last = as_index(stop_after, "stop_after")
    late = [site for site in (*capture, *(i.site for i in interventions)) if site.layer > last]
    if late:
        raise ValueError(
            f"stop_after={last} ends the pass before {late[0]}; stop after layer {late[0].layer} or later"
        )
    if keep_cache:
        raise ValueError(
            f"a cache cannot go on from stop_after={last}: the layers above would miss their keys and values"
        )
    if logits_at is not None and len(logits_at):
        raise ValueError(f"stop_after={last} computes no logits; leave logits_at out")


def _check_logits(logits: Float[Tensor, "batch k d_vocab"], edited: bool) -> None:
    """Refuses logits from which every choice would be id 0: not finite, or all the same after an edit."""
    low, high = logits.aminmax(dim=-1)
    if not high.isfinite().all():  # the lowest may be -inf: some heads mask padded ids
        remedy = (
            "use a smaller strength"
            if edited
            else f"{logits.dtype} may be too narrow for it: load it in float32"
        )
        raise FloatingPointError(f"the {'edited ' * edited}model gives logits that are not finite; {remedy}")
    if edited and bool((low == high).any()):
        raise FloatingPointError(
            "the edited model gives the same logit to every token; use a smaller strength"
        )
