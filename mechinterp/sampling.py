"""Sampling in phases, on ids: steer, let go, and watch every token in the same pass.

The loop is our own, over cached passes, so that what happens to the keys and values between two phases is a
named choice: `cache="fresh"` discards what the steered phase wrote and goes on from a natural pass over the
same ids, `cache="carry"` keeps it. The choice belongs to the phase that is entered.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp import drawing
from mechinterp.activations import with_parts
from mechinterp.batches import shrinking
from mechinterp.divergence import kl
from mechinterp.interventions import Intervention
from mechinterp.model import Model
from mechinterp.sample_checks import check_phase, check_sampling, check_watch, rows_of_prompts
from mechinterp.samples import Phase, Samples, Telemetry, Watch, joined
from mechinterp.sites import as_index


def stop_ids(model: Model) -> frozenset[int]:
    """The ids that end a turn or a text and that the model can sample."""
    return frozenset(i for i in model.eos_ids if 0 <= i < model.dims.d_vocab)


@torch.no_grad()
def sample(
    model: Model,
    prompts: Int[Tensor, "row position"] | Sequence[Int[Tensor, "position"]],
    phases: Sequence[Phase],
    *,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    names: Sequence[str] | None = None,
    stop: frozenset[int] | None = None,
    watch: Watch | None = None,
    batch_size: int | None = None,
) -> Samples:
    """Samples every row through the phases.

    prompts: ids, one row each, of any lengths. Temperature None is greedy. A row's draws come from (seed,
    its name) alone: rows of one name draw alike, which pairs them; names default to the row numbers. `stop`
    None is `stop_ids(model)`: a row ends where one is sampled, unless the phase suppresses it. A batch that
    does not fit in memory is halved and goes on; `Samples.batches` says so.
    Raises ValueError or TypeError before any compute where a request cannot be met.
    """
    rows = rows_of_prompts(prompts)
    check_sampling(model, rows, phases, temperature, top_p)
    for phase in phases:
        check_phase(model, phase, rows, sum(p.n_tokens for p in phases))
    if watch is not None:
        check_watch(model, watch)
    if batch_size is not None and as_index(batch_size, "batch_size") < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}; leave it out for one batch")
    labels = [str(i) for i in range(len(rows))] if names is None else list(names)
    if len(labels) != len(rows):
        raise ValueError(f"{len(rows)} rows need as many names; got {len(labels)}")
    ids = stop_ids(model) if stop is None else stop
    plan = _Plan(model, tuple(phases), temperature, top_p, seed, ids, watch)

    def run(chosen: range) -> Samples:
        return _run.get()(Batch(plan, [rows[i] for i in chosen], [labels[i] for i in chosen], chosen))

    done = list(shrinking(len(rows), batch_size or len(rows), run))
    return joined([part for _, part in done], tuple(len(chosen) for chosen, _ in done))


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is asked of every batch."""

    model: Model
    phases: tuple[Phase, ...]
    temperature: float | None
    top_p: float
    seed: int
    stop: frozenset[int]
    watch: Watch | None


@contextmanager
def instead(run: "Callable[[Batch], Samples]") -> Iterator[None]:
    """Batches are run so meanwhile: a plan counts the passes of one without making them."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


@dataclass(eq=False)
class Batch:
    """One batch of rows on its way through the phases."""

    plan: _Plan
    rows: list[Tensor]
    names: list[str]
    chosen: range
    notes: list[dict[str, Tensor]] = field(default_factory=list)

    def run(self) -> Samples:
        from mechinterp.stream import Stream

        plan = self.plan
        n_total = sum(p.n_tokens for p in plan.phases)
        uniform = drawing.uniforms(plan.seed, self.names, n_total) if plan.temperature else None
        stream = Stream.start(plan.model, self.rows)
        beside = Stream.start(plan.model, self.rows) if plan.watch is not None and plan.watch.kl else None
        done = torch.zeros(len(self.rows), dtype=torch.bool)
        generated, real, phase_of = [], [], []
        filler = torch.tensor(0)  # what a finished row goes on with; `real` is False there
        for number, phase in enumerate(plan.phases):
            if done.all():
                break
            edits = tuple(rows_of(i, self.chosen) for i in phase.interventions if _acts(i))
            stream.enter(edits, phase.cache)
            for _ in range(phase.n_tokens):
                if done.all():
                    break
                logits, seen = stream.step(plan.watch)
                self._note(logits, seen, None if stream.is_natural else beside)
                token = self._choose(logits, phase, uniform, len(generated))
                real.append(~done)
                token = torch.where(done, filler, token)
                done = done | (torch.isin(token, torch.tensor(sorted(plan.stop))) & ~done)
                generated.append(token)
                phase_of.append(number)
                stream.push(token)
                if beside is not None:
                    beside.push(token)
        return self._samples(generated, real, phase_of, done)

    def _choose(self, logits: Tensor, phase: Phase, uniform: Tensor | None, index: int) -> Tensor:
        if phase.suppress:
            logits = logits.clone()
            logits[:, sorted(phase.suppress)] = -torch.inf
        drawn = torch.empty(0) if uniform is None else uniform[:, index]
        return drawing.draw(logits, drawn, self.plan.temperature, self.plan.top_p).cpu()

    def _note(self, logits: Tensor, seen: Any, beside: Any) -> None:
        """Telemetry of one token, from the pass that decided it."""
        watch = self.plan.watch
        if watch is None:
            return
        log_p = logits.float().log_softmax(-1)
        unit = torch.nn.functional.normalize(watch.directions.float(), dim=-1).to(logits.device)
        natural = torch.stack([seen.natural[site] for site in with_parts((watch.site,))]).sum(0)
        after, before = (x[:, -1].float().to(logits.device) for x in (seen.values[watch.site], natural))
        note = {
            "projections": after @ unit.T,
            "natural": before @ unit.T,
            "norms": after.norm(dim=-1),
            "entropy": -(log_p.exp() * log_p).nansum(-1),
        }
        if watch.kl:
            reference = logits if beside is None else beside.step(None)[0]  # a natural state is its own
            note["kl"] = kl(logits, reference)
        for site in watch.capture:
            note[f"captured {site}"] = seen.values[site][:, -1]
        self.notes.append({name: value.cpu() for name, value in note.items()})

    def _samples(
        self, generated: list[Tensor], real: list[Tensor], phase_of: list[int], done: Tensor
    ) -> Samples:
        n = len(self.rows)
        answer = torch.stack(generated, 1) if generated else torch.empty(n, 0, dtype=torch.long)
        mask = torch.stack(real, 1) if real else torch.empty(n, 0, dtype=torch.bool)
        prompt_lengths = torch.tensor([len(row) for row in self.rows])
        lengths = prompt_lengths + mask.sum(1)
        tokens = torch.zeros(n, int(lengths.max()), dtype=torch.long)
        for i, row in enumerate(self.rows):
            tokens[i, : len(row)] = row
            tokens[i, len(row) : lengths[i]] = answer[i][mask[i]]
        return Samples(
            tokens=tokens,
            lengths=lengths,
            prompt_lengths=prompt_lengths,
            generated=answer,
            real=mask,
            phase=torch.tensor(phase_of, dtype=torch.long),
            finish_reason=tuple("stop" if d else "length" for d in done.tolist()),
            names=tuple(self.names),
            telemetry=self._telemetry(n),
            batches=(),
        )

    def _telemetry(self, n: int) -> Telemetry | None:
        watch = self.plan.watch
        if watch is None:
            return None

        def over(name: str, *shape: int) -> Tensor:
            return (
                torch.stack([note[name] for note in self.notes], 1)
                if self.notes
                else torch.empty(n, 0, *shape)
            )

        k = len(watch.directions)
        return Telemetry(
            projections=over("projections", k),
            natural=over("natural", k),
            norms=over("norms"),
            entropy=over("entropy"),
            kl=over("kl") if watch.kl else None,
            captured={s: over(f"captured {s}", *self.plan.model.dims.shape(s)) for s in watch.capture},
        )


_run: "ContextVar[Callable[[Batch], Samples]]" = ContextVar("run", default=Batch.run)


def _acts(intervention: Intervention) -> bool:
    """Strength 0 is no intervention, bit for bit: it must not change which path the keys and values take."""
    return bool((torch.as_tensor(intervention.strength) != 0).any())


def rows_of(intervention: Intervention, rows: range) -> Intervention:
    """The intervention for some rows of a larger batch: what it holds for each row is cut to those rows."""
    from dataclasses import fields, replace

    if rows.start == 0 and intervention.batch_rows is None and not isinstance(intervention.strength, Tensor):
        shared = all(t.ndim == _dims(intervention) for t in intervention.tensors())
        if shared:
            return intervention
    changed: dict[str, Any] = {}
    for part in fields(intervention):
        value = getattr(intervention, part.name)
        per_row = isinstance(value, Tensor) and (part.name == "strength" or value.ndim > _dims(intervention))
        if per_row:
            changed[part.name] = value[rows.start : rows.stop]
    if intervention.batch_rows is not None:
        changed["batch_rows"] = tuple(r - rows.start for r in intervention.batch_rows if r in rows)
    return replace(intervention, **changed)


def _dims(intervention: Intervention) -> int:
    return 2 if intervention.site.name == "z" else 1
