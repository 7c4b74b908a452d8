"""Collecting answers with the marker and without: one question of one persona is one cell.

What a cell returns depends on the model, the prompt and the seed, not on how trials are batched: each trial
draws with a generator of its own, and trials past the one that filled the last quota are dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

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
    prompt = model.chat(question, system=system, system_role=settings.system_role)
    kept: dict[bool, list[Example]] = {True: [], False: []}
    quota = {True: settings.n_positives, False: settings.n_negatives}
    seen: list[Detection] = []
    n_cut = 0
    for example, found in _trials(model, prompt, persona, question, settings):
        seen.append(found)
        n_cut += example.finish_reason == "length"
        usable = example.positive or example.end_of_answer is not None
        if usable and len(kept[example.positive]) < quota[example.positive]:
            kept[example.positive].append(example)
        if all(len(kept[kind]) == quota[kind] for kind in kept):
            break
    n = sum(bool(found.occurrences) for found in seen)
    counts = Counts(question, len(seen), n, len(seen) - n, n_cut)
    metadata = {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "template_sha256": prompt.template_sha256,
        "prompt_warnings": list(prompt.warnings),
        "settings": asdict(settings),
        "tallies": [asdict(tally(persona, question, seen))],
    }
    return Examples(persona, system, tuple(kept[True]), tuple(kept[False]), (counts,), metadata)


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


def _trials(
    model: Model, prompt: Prompt, persona: str, question: str, settings: Collecting
) -> Iterator[tuple[Example, Detection]]:
    """Every trial in order, sampled a batch at a time when it is asked for."""
    ids = prompt.tokens[0]
    n_sys, n_user, n_header = (_n(prompt, names) for names in ((SYSTEM, SYSTEM_DEFAULT), (USER,), (HEADER,)))
    stops = stop_ids(model)
    for start in range(0, settings.n_trials, settings.batch_size):
        trials = range(start, min(start + settings.batch_size, settings.n_trials))
        names = [f"{persona}|{question}|{trial}" for trial in trials]
        run = sample(
            model,
            [ids] * len(trials),
            [Phase(settings.max_tokens)],
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            names=names,
            stop=stops,
        )
        for row, (trial, name) in enumerate(zip(trials, names, strict=True)):
            tokens = run.tokens[row, : int(run.lengths[row])]
            found = detect(model.tokenizer, tokens, settings.marker, after=len(ids))
            mark = found.occurrences[0] if found.occurrences else None
            yield (
                Example(
                    persona=persona,
                    question=question,
                    trial=trial,
                    seed=cell_seed(settings.seed, name, 0),  # what `sample` seeds the row's generator with
                    ids=tuple(tokens.tolist()),
                    prompt_len=len(ids),
                    n_sys=n_sys,
                    n_user=n_user,
                    n_header=n_header,
                    marker=None if mark is None else mark.token,
                    end_of_answer=end_of_answer(model, tokens.tolist(), len(ids), stops),
                    complete=None if mark is None else mark.complete,
                    n_occurrences=len(found.occurrences),
                    finish_reason=run.finish_reason[row],
                    text=model.decode(tokens[len(ids) :]),
                    layout=prompt_layout(prompt),
                ),
                found,
            )


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
