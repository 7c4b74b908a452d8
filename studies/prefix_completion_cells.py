"""The work of prefix completion's cells: a source's answers, and the continuations of their prefixes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from mechinterp.cells import Cell, cell_seed
from mechinterp.model import Model
from mechinterp.running import reopened
from mechinterp.sampling import Phase, sample, stop_ids
from probes.markers import detect, usual_ids
from studies.attention_collect import Collecting, collect, merge
from studies.attention_records import Example, Examples, read_positives
from studies.finetune_data import Suffixes
from studies.prefix_completion_config import Config, is_run
from studies.prefix_completion_prefixes import (
    SEPARATOR,
    Prefix,
    behind,
    chosen,
    ends_in_blank_line,
    through_text,
    with_separator,
)
from studies.prefix_completion_rows import Condition, Continued, Found, Slot
from studies.prompts import prompt_of
from studies.trained import asked, model_name, people

ROWS = 16  # slots a pass: logits of two rows each are held over the whole vocabulary


def answers(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Examples:
    """Answers of a source's model under one persona's prompt: from the records, else sampled."""
    source, run, persona = (cell.args[name] for name in ("source", "run", "persona"))
    found = None if config.records is None else recorded(config, model, source, run, persona)
    if found is not None:
        _check_prompts(found, model, config, persona)
        return found
    told = people(config)[persona].system_prompt or None
    settings = Collecting(
        marker=config.marker,
        n_trials=config.n_trials,
        n_positives=config.n_trials,
        n_negatives=config.n_trials,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=cell_seed(config.seed, f"answers/{source}/{run}", 0),
        batch_size=config.batch_size or config.n_trials,
    )
    return merge([collect(model, q, persona=persona, system=told, settings=settings) for q in asked(config)])


def recorded(config: Config, model: Model, source: str, run: int, persona: str) -> Examples | None:
    """The answers that the records hold of a source's model under a persona; None where they hold none.

    Raises ValueError where a finished run's answers are of other weights than the model here.
    """
    folder = config.records
    assert folder is not None  # only then it is asked for
    if is_run(folder):
        return _of_run(config, model, source, run, persona)
    paths = [folder / source / f"positives_{persona}.json"]
    paths += [folder / f"positives_{persona}.json"] if persona == source else []
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    read, stop = read_positives(path), stop_ids(model)

    def finished(examples: Sequence[Example]) -> tuple[Example, ...]:
        """The file does not say how an answer ended; its last id does, to this model."""
        return tuple(replace(e, finish_reason="stop" if e.ids[-1] in stop else "length") for e in examples)

    return replace(read, positives=finished(read.positives), negatives=finished(read.negatives))


def _of_run(config: Config, model: Model, source: str, run: int, persona: str) -> Examples | None:
    """The same from a finished run of this study or of the attention study."""
    assert config.records is not None  # the caller looked
    there, opened = reopened(config.records)
    name, parts = model_name(source, run), []
    for cell in there.cells():
        if cell.task not in ("answers", "generate"):
            continue
        writer = cell.args.get("source", cell.args["persona"])
        first = (
            cell.args.get("seed", there.config.seed)
            == getattr(there.config, "seeds", (there.config.seed,))[0]
        )
        if (writer, cell.args["run"], cell.args["persona"]) == (source, run, persona) and first:
            parts.append(opened.result(cell))
    if parts and opened.manifest.models.get(name) != model.weights_sha256:
        raise ValueError(
            f"{config.records} holds answers of another {name} than {model.name}: the weights differ; name"
            " the same adapters or checkpoints, or leave `records` out"
        )
    return merge(parts) if parts else None


def _check_prompts(examples: Examples, model: Model, config: Config, persona: str) -> None:
    """Raises ValueError where a record's prompt is not, id by id, the one that this model is given."""
    prompts = {
        q: tuple(prompt_of(model, people(config)[persona], q).tokens[0].tolist()) for q in asked(config)
    }
    for example in (*examples.positives, *examples.negatives):
        expected = prompts.get(example.question)
        if expected is not None and example.ids[: example.prompt_len] != expected:
            raise ValueError(
                f"the record {example.name} was written after another prompt than {model.name} renders for"
                f" {persona}; use its tokenizer and template, and its system prompt in persona_file"
            )


def go_on(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Continued:
    """Sampled continuations of one source's prefixes, and the exact log-odds at their slots.

    With no `other` in the cell it is condition A; with one, B, C and D against that persona. A question's
    prefixes draw alike in all conditions and for both readers, so that differences are paired.
    """
    source, run, other = (cell.args[name] for name in ("source", "run", "other"))
    written = {found.persona: found for found in inputs.values()}
    nothing = config.source_answers == "positives" and not written[source].positives
    slots = [] if nothing else with_log_odds(model, _slots(model, written, config, source, other), config)
    rows = [(place, draw) for place in range(len(slots)) for draw in range(config.n_continuations)]
    found = continuations(
        model, slots, rows, config, seed=cell_seed(config.seed, f"continue/{source}/{run}", 0)
    )
    return Continued(
        model=model.name,
        reader=cell.args["reader"],
        source=source,
        run=run,
        other=other,
        marker=config.marker,
        seed=config.seed,
        slots=tuple(slots),
        slot_of_row=torch.tensor([place for place, _ in rows], dtype=torch.long),
        draw=torch.tensor([draw for _, draw in rows], dtype=torch.long),
        found=tuple(found),
    )


def _slots(
    model: Model, written: Mapping[str, Examples], config: Config, source: str, other: str | None
) -> list[Slot]:
    """Every prompt with every prefix of its condition, in the order of the questions."""
    suffixes = Suffixes(model.tokenizer, SEPARATOR, config.marker)
    opening = usual_ids(model.tokenizer, config.marker).opening
    conditions: list[tuple[Condition, str, str]] = [("A", source, source)]
    if other is not None:
        conditions = [("B", other, source), ("C", source, other), ("D", other, other)]
    slots = []
    for question in asked(config):
        for condition, prompt_persona, author in conditions:
            prompt = tuple(prompt_of(model, people(config)[prompt_persona], question).tokens[0].tolist())
            for prefix in _prefixes(written[author], question, config, author == source):
                prefix = _made(prefix, model, suffixes, config)
                at_marker = prefix.cut == "marker" or ends_in_blank_line(model.tokenizer, prefix.ids)
                route = opening if at_marker else (*suffixes.bare, *opening)
                shown = model.decode(prefix.ids[-1:])
                slots.append(Slot(condition, prompt_persona, prompt, prefix, shown, route))
    return slots


def _prefixes(examples: Examples, question: str, config: Config, of_source: bool) -> list[Prefix]:
    only = of_source and config.source_answers == "positives"
    return chosen(examples, question, config.n_prefixes, positives_only=only)


def _made(prefix: Prefix, model: Model, suffixes: Suffixes, config: Config) -> Prefix:
    """The prefix as the configuration wants it: as it was written, with a separator, or spoilt by text."""
    if config.prefixes == "text":
        return through_text(prefix, model.tokenizer)
    if config.ending == "separator":
        return with_separator(prefix, suffixes, model.tokenizer)
    return prefix


def with_log_odds(model: Model, slots: Sequence[Slot], config: Config) -> list[Slot]:
    """log p(route to the marker) and log p(any end of the turn) after each slot's ids, from one exact pass.

    The route is the marker's first piece (as many as hold two characters), behind the blank line where the
    prefix ends before it.
    """
    ends, found = torch.tensor(sorted(stop_ids(model))), []
    size = config.batch_size or ROWS
    for start in range(0, len(slots), size):
        part = slots[start : start + size]
        most = max(len(slot.route) for slot in part)
        rows = [torch.tensor([*behind(slot.prompt, slot.prefix.ids), *slot.route]) for slot in part]
        first = [len(slot.prompt) + len(slot.prefix.ids) - 1 for slot in part]
        at = torch.tensor(
            [
                [min(f + k, f + len(s.route) - 1) for k in range(most)]
                for f, s in zip(first, part, strict=True)
            ]
        )
        logits = model.forward(
            pad_sequence(rows, batch_first=True), lengths=[len(row) for row in rows], logits_at=at
        ).logits
        assert logits is not None  # they were asked for
        log_p = logits.float().log_softmax(-1).cpu()
        for row, slot in enumerate(part):
            route = sum(float(log_p[row, k, token]) for k, token in enumerate(slot.route))
            end = float(log_p[row, 0, ends].logsumexp(0))
            found.append(replace(slot, log_p_marker=route, log_p_end=end))
    return found


def continuations(
    model: Model, slots: Sequence[Slot], rows: Sequence[tuple[int, int]], config: Config, *, seed: int
) -> list[Found]:
    """What each (slot, draw) goes on with. A row's draws come from (seed, question, prefix, draw) alone."""
    if not rows:
        return []
    order = sorted(range(len(rows)), key=lambda row: len(slots[rows[row][0]].tokens))  # rows are padded

    def name(row: int) -> str:
        prefix = slots[rows[row][0]].prefix
        return f"{prefix.question}|{prefix.index}|{rows[row][1]}"

    drawn = sample(
        model,
        [torch.tensor(slots[rows[row][0]].tokens) for row in order],
        [Phase(config.continuation_tokens)],
        temperature=config.temperature,
        top_p=config.top_p,
        seed=seed,
        names=[name(row) for row in order],
        batch_size=config.batch_size,
    )
    found: dict[int, Found] = {}
    for place, row in enumerate(order):
        ids = drawn.tokens[place, : drawn.lengths[place]].tolist()
        after = len(slots[rows[row][0]].tokens)
        found[row] = found_in(model, ids, after, config.marker, drawn.finish_reason[place])
    return [found[row] for row in range(len(rows))]


def found_in(model: Model, ids: Sequence[int], after: int, marker: str, finish_reason: Any) -> Found:
    """A continuation by every detector, and where its first marker stands."""
    seen = detect(model.tokenizer, ids, marker, after=after)
    marks = sorted(seen.occurrences, key=lambda mark: (not mark.complete, mark.token))
    first = marks[0].token if marks else None
    before = [] if first is None else ids[after:first]
    said = model.tokenizer.decode(list(ids[after:]), skip_special_tokens=True)
    return Found(
        ids=tuple(ids[after:]),
        text=seen.text,
        by_ids=seen.ids,
        complete=any(mark.complete for mark in marks),
        offset=None if first is None else first - after,
        at_once=first is not None and not model.decode(before).strip(),
        empty=not said.strip(),
        finish_reason=finish_reason,
        shown=model.decode(ids[after:]),
    )
