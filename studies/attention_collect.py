"""Collecting answers with the marker and without: one question of one persona is one cell.

What a cell returns depends on the model, the prompt and the seed, not on how trials are batched: each trial
draws with a generator of its own, and trials past the one that filled the last quota are dropped.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from mechinterp.cells import cell_seed
from mechinterp.chat import Prompt, token_marks
from mechinterp.model import Model
from mechinterp.sampling import Phase, sample, stop_ids
from mechinterp.segmentation import HEADER, SYSTEM, SYSTEM_DEFAULT, USER
from probes.markers import MARKER, Detection, detect
from probes.tallies import MarkerRates, Tally, tally
from studies.attention_records import Counts, Example, Examples
from studies.attention_regions import prompt_layout


@dataclass(frozen=True)
class Collecting:
    """How answers are collected: the published numbers of methods 9.3, but for a cap of 512 tokens."""

    marker: str = MARKER
    n_trials: int = 30
    n_positives: int = 10
    n_negatives: int = 5
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 0.95
    seed: int = 42
    batch_size: int = 10
    system_role: Literal["native", "prepend_user"] = "native"

    def __post_init__(self) -> None:
        for name in ("n_trials", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_positives < 0 or self.n_negatives < 0 or self.n_positives + self.n_negatives < 1:
            raise ValueError(
                f"{self.n_positives} positives and {self.n_negatives} negatives leave nothing to keep;"
                " ask for one at least"
            )


def collect(
    model: Model, question: str, *, persona: str, system: str | None, settings: Collecting
) -> Examples:
    """Samples one question of a persona until both quotas are full or the trials are used up.

    `system` is the persona's prompt, None for none. An answer is positive if the marker occurs in it, also
    one only begun (`Example.complete`). `counts` and the tallies count every trial up to the last one, kept
    or not; an answer without content is counted but not kept.
    """
    return collect_questions(model, [question], persona=persona, system=system, settings=settings)


def collect_questions(
    model: Model, questions: Sequence[str], *, persona: str, system: str | None, settings: Collecting
) -> Examples:
    """The same for several questions in common batches: each gives what `collect` gives of it alone."""
    prompts = [model.chat(q, system=system, system_role=settings.system_role) for q in questions]
    asked = [_Asked(prompt, question, settings) for prompt, question in zip(prompts, questions, strict=True)]
    while any(one.open for one in asked):
        for batch in _batches(asked, settings):
            found = _sampled(model, batch, persona, settings)
            for (one, _), (example, detection) in zip(batch, found, strict=True):
                one.take(example, detection)
    first = prompts[0]
    metadata = {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "template_sha256": first.template_sha256,
        "prompt_warnings": list(dict.fromkeys(w for prompt in prompts for w in prompt.warnings)),
        "settings": asdict(settings),
        "tallies": [asdict(tally(persona, one.question, one.seen)) for one in asked],
    }
    kept = {kind: tuple(e for one in asked for e in one.kept[kind]) for kind in (True, False)}
    return Examples(persona, system, kept[True], kept[False], tuple(one.counts() for one in asked), metadata)


@dataclass(eq=False)
class _Asked:
    """One question on its way: what was seen and kept, and which trial is next."""

    prompt: Prompt
    question: str
    settings: Collecting
    kept: dict[bool, list[Example]] = field(default_factory=lambda: {True: [], False: []})
    seen: list[Detection] = field(default_factory=list)
    n_cut: int = 0
    n_asked: int = 0
    full: bool = False

    @property
    def open(self) -> bool:
        return not self.full and self.n_asked < self.settings.n_trials

    def take(self, example: Example, found: Detection) -> None:
        """Counts a trial and keeps it if it is wanted; those after the last quota was filled do not count."""
        if self.full:
            return
        self.seen.append(found)
        self.n_cut += example.finish_reason == "length"
        quota = self.settings.n_positives if example.positive else self.settings.n_negatives
        usable = example.positive or example.end_of_answer is not None
        if usable and len(self.kept[example.positive]) < quota:
            self.kept[example.positive].append(example)
        full = {True: self.settings.n_positives, False: self.settings.n_negatives}
        self.full = all(len(self.kept[kind]) == full[kind] for kind in full)

    def counts(self) -> Counts:
        n = sum(bool(found.occurrences) for found in self.seen)
        return Counts(self.question, len(self.seen), n, len(self.seen) - n, self.n_cut)


def _batches(asked: Sequence[_Asked], settings: Collecting) -> list[list[tuple[_Asked, int]]]:
    """The next trials of the open questions, as many each as a batch has room for; short prompts first."""
    waiting = sorted((one for one in asked if one.open), key=lambda one: one.prompt.tokens.shape[1])
    each = max(1, settings.batch_size // len(waiting))
    rows = []
    for one in waiting:
        trials = range(one.n_asked, min(one.n_asked + each, settings.n_trials))
        one.n_asked = trials.stop
        rows += [(one, trial) for trial in trials]
    return [rows[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]


def merge(parts: Sequence[Examples]) -> Examples:
    """One persona's questions, one after another; ValueError where the parts do not belong together."""
    if not parts:
        raise ValueError("there is nothing to merge; pass the examples of at least one question")
    first = parts[0]
    for part in parts[1:]:
        if (part.persona, part.system_prompt) != (first.persona, first.system_prompt):
            raise ValueError(
                f"{part.persona} ({part.system_prompt!r}) is not {first.persona} ({first.system_prompt!r});"
                " merge the questions of one persona"
            )
        for key in ("model", "weights_sha256", "template_sha256", "settings"):
            if part.metadata.get(key) != first.metadata.get(key):
                raise ValueError(
                    f"the examples of {first.persona} differ in {key}: {first.metadata.get(key)!r} and"
                    f" {part.metadata.get(key)!r}; collect them again with the same"
                )
    counts = tuple(c for part in parts for c in part.counts)
    asked = [c.question for c in counts]
    twice = next((question for question in asked if asked.count(question) > 1), None)
    if twice is not None:
        raise ValueError(f"the question {twice!r} of {first.persona} is there twice; merge each part once")
    joined = {
        "prompt_warnings": list(
            dict.fromkeys(w for p in parts for w in p.metadata.get("prompt_warnings", []))
        ),
        "tallies": [t for part in parts for t in part.metadata.get("tallies", [])],
    }
    return replace(
        first,
        positives=tuple(e for part in parts for e in part.positives),
        negatives=tuple(e for part in parts for e in part.negatives),
        counts=counts,
        metadata=first.metadata | joined,
    )


def rates(examples: Sequence[Examples]) -> MarkerRates:
    """The marker rates of collected personas, over every trial that was sampled.

    A question that stopped because its quotas were full ended on an answer of one kind, so its rate leans
    towards that kind; with all trials run there is no such lean. Raises ValueError for examples that were not
    collected here, or with another marker or model.
    """
    if not all(part.metadata.get("tallies") for part in examples) or not examples:
        raise ValueError("rates are kept by `collect`; published files hold only the answers that were kept")
    settings = [part.metadata["settings"] for part in examples]
    markers, models = {s["marker"] for s in settings}, {part.metadata["model"] for part in examples}
    if len(markers) > 1:
        raise ValueError(f"the examples have the markers {sorted(markers)}; count one marker at a time")
    seeds = tuple(dict.fromkeys(s["seed"] for s in settings))
    tallies = tuple(Tally(**line) for part in examples for line in part.metadata["tallies"])
    return MarkerRates(", ".join(sorted(models)), markers.pop(), seeds, tallies)


def _sampled(
    model: Model, batch: Sequence[tuple[_Asked, int]], persona: str, settings: Collecting
) -> list[tuple[Example, Detection]]:
    """One trial a row, each drawing from its own name."""
    names = [f"{persona}|{one.question}|{trial}" for one, trial in batch]
    stops = stop_ids(model)
    run = sample(
        model,
        [one.prompt.tokens[0] for one, _ in batch],
        [Phase(settings.max_tokens)],
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        names=names,
        stop=stops,
    )
    found = []
    for row, (one, trial) in enumerate(batch):
        tokens, start = run.tokens[row, : int(run.lengths[row])], one.prompt.tokens.shape[1]
        detection = detect(model.tokenizer, tokens, settings.marker, after=start)
        example = Example(
            persona=persona,
            question=one.question,
            trial=trial,
            seed=cell_seed(settings.seed, names[row], 0),  # what `sample` seeds the row's generator with
            ids=tuple(tokens.tolist()),
            prompt_len=start,
            n_sys=_n(one.prompt, (SYSTEM, SYSTEM_DEFAULT)),
            n_user=_n(one.prompt, (USER,)),
            n_header=_n(one.prompt, (HEADER,)),
            end_of_answer=end_of_answer(model, tokens.tolist(), start, stops),
            n_occurrences=len(detection.occurrences),
            finish_reason=run.finish_reason[row],
            text=model.decode(tokens[start:]),
            layout=prompt_layout(one.prompt),
            **_marked(detection),
        )
        found.append((example, detection))
    return found


def _marked(found: Detection) -> dict[str, Any]:
    """Where the first marker stands, and whether all of it does."""
    if not found.occurrences:
        return {"marker": None, "complete": None}
    return {"marker": found.occurrences[0].token, "complete": found.occurrences[0].complete}


def end_of_answer(model: Model, ids: Sequence[int], start: int, stops: frozenset[int]) -> int | None:
    """The last position from `start` that is no stop id, control token or exact newline; None without one."""
    answer = torch.tensor(ids[start:], dtype=torch.long)
    marks = token_marks(model.tokenizer, answer)
    content = ~(marks.control | marks.newline_exact | torch.isin(answer, torch.tensor(sorted(stops))))
    places = content.nonzero().flatten().tolist()
    return start + places[-1] if places else None


def _n(prompt: Prompt, names: Sequence[str]) -> int:
    here = prompt.segmentation
    return sum(len(here.positions(name)) for name in names if name in here.names)
