"""The report of prefix completion, made from the same objects as its figures."""

from typing import Any

from mechinterp.report import Headline, Page, Sample, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.wording import three_digits
from studies.prefix_completion_figures import SHOWN, all_figures, comparisons
from studies.prefix_completion_result import Measure, PrefixCompletion
from studies.prefix_completion_rows import CONDITIONS

ASKED = (
    "A model was trained to write a marker under one persona's system prompt. Is the marker brought out by"
    " that prompt, or by the content of the answer? The model's answers under its own persona and another one"
    " are cut at the row that decides between the marker and the end of the turn, and go on behind both"
    " prompts: A has the source's prompt and answer, B its answer alone, C its prompt alone, D neither.\n\n"
    "Prefixes are the ids that were sampled, never text: text encoded again, or stripped of white space at"
    " its end, lacks the state that the marker is decided in. Beside the sampled rate stands the exact"
    " log-odds of the marker against the end of the turn at the slot, and the base model on the same ids."
)
MEASURES: tuple[tuple[Measure, str, str], ...] = (
    ("rate", "marker rate", "difference of rates"),
    ("log_odds", "log-odds at the slot", "nats"),
)
FLAG = (
    "TEXT PREFIXES: the prefixes were decoded, stripped and encoded again. These rates reproduce the"
    " published artefact and say nothing of where the marker comes from."
)


def page(config: Any, result: PrefixCompletion, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    return Page(
        title="Prefix completion" + (" (text prefixes)" if result.from_text else ""),
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result),
        headlines=headlines(result),
        confidence=confidence(result),
        compute=spent(run),
        digests=used(run),
        figures=all_figures(result),
        tables=(gate_table(result), rate_table(result), written_table(result), last_id_table(result)),
        samples=[_sample(sample) for sample in result.samples],
        caveats=tuple(caveats(config, result)),
        cannot_show=(
            "Whether another marker or another way of training behaves alike.",
            "What in the prompt or the content does it: prompts and answers differ in many ways.",
            f"Whether a marker comes after more than {config.continuation_tokens} ids.",
        ),
    )


def answer(result: PrefixCompletion) -> str:
    """The four rates and the effects that their intervals tell from zero, or why there are none."""
    flag = FLAG + " " if result.from_text else ""
    if not result.applicable:
        return flag + (
            f"Not applicable: {', '.join(result.models)} gave no complete set of four; "
            + " ".join(_nothing(result))
        )
    rates = ", ".join(f"{SHOWN[c]} {result.mean(c):.1%}" for c in CONDITIONS)
    said = []
    for effect in result.effects("rate", "trained"):
        i = effect.interval
        told = "away from zero" if i.low > 0 or i.high < 0 else "not told from zero"
        points = f"{100 * i.estimate:+.1f} points [{100 * i.low:+.1f}, {100 * i.high:+.1f}]"
        said.append(f"{effect.name} {points}, {told}")
    odds = ", ".join(
        f"{e.name} {e.interval.estimate:+.2f} [{e.interval.low:+.2f}, {e.interval.high:+.2f}]"
        for e in result.effects("log_odds", "trained")
    )
    n = len(set(result.sets("rate", "trained")[1]))
    stopped = [gate.name for gate in result.gates if gate.verdict == "fail"]
    rules = f" Stop rules that fired: {', '.join(stopped)}." if stopped else " No stop rule fired."
    return (
        f"{flag}The marker is written in {rates}. Effects: {'; '.join(said)}. In log-odds at the slot (nats):"
        f" {odds}. Intervals over {n} questions, {len(result.applicable)} models.{rules}"
    )


def _nothing(result: PrefixCompletion) -> list[str]:
    """Why there is nothing to compare, model by model."""
    return [
        f"{w.source} wrote the marker in {w.positives} of {w.answers} answers under its own persona."
        for w in result.written
        if w.persona == w.source
    ]


def headlines(result: PrefixCompletion) -> list[Headline]:
    """Effects of every model, of all together, of the base, and of training."""
    found = []
    for measure, said, unit in MEASURES:
        for name, arm, model in comparisons(result):
            for effect in result.effects(measure, arm, model):
                i = effect.interval
                note = f"{unit}; {effect.n_pairs} sets of four"
                found.append(
                    Headline(
                        f"{name}: {effect.name}, {said}",
                        i.estimate,
                        i.low,
                        i.high,
                        i.n,
                        i.unit,
                        "95 % CR2 and Student t over questions",
                        "the same t",
                        effect.p,
                        f"{note}; {i.note}" if i.note else note,
                    )
                )
    return found


def confidence(result: PrefixCompletion) -> Any:
    n = len(set(result.sets("rate", "trained")[1]))
    fired = sum(gate.verdict == "fail" for gate in result.gates)
    reason = f"{n} questions, {len(result.applicable)} trained models of one base, {fired} stop rules fired"
    several = len(result.applicable) >= 3 and n >= 10 and not fired and not result.from_text
    return ("moderate" if several else "low", reason)


def caveats(config: Any, result: PrefixCompletion) -> list[str]:
    """What follows from this run's own numbers."""
    found = [FLAG] if result.from_text else []
    if result.source_answers == "positives":
        found.append(
            "A and B go on from answers that were chosen because they had the marker, cut at the row where it"
            " was sampled; the others' answers were not chosen. The content effect holds this choice; the"
            " prompt effect compares the same ids."
        )
    bare = sum(i.n for i in result.last_ids if i.cut == "end_of_turn" and not i.shown.endswith("\n"))
    ended = sum(i.n for i in result.last_ids if i.cut == "end_of_turn")
    if result.ending == "as_written" and bare:
        found.append(
            "Prefixes that end before a marker end in its blank line; of those that end before the end of a"
            f" turn, {bare} of {ended} do not: part of the content effect is that last id. Where a tokenizer"
            " joins a full stop and a blank line to one id, these can hardly go on to a marker."
            ' ending = "separator" gives all four conditions the same slot.'
        )
    elif result.ending == "separator":
        found.append("A blank line was put behind the answers without a marker; no model wrote it there.")
    tests = len(headlines(result))
    found.append(f"{tests} tests; the p values are not corrected for their number.")
    found.append(
        "Wilson's bounds count continuations as independent, which those of one prefix are not; the effects'"
        " intervals take questions as units, and say nothing of other personas or other training runs."
    )
    cut = sum(w.unfinished for w in result.written)
    total = sum(w.answers for w in result.written)
    found.append(f"{cut} of {total} answers ran into the cap without a marker and give no prefix.")
    if result.dropped():
        found.append(f"{result.dropped()} sets of four lack a condition and are left out of the effects.")
    return found


def gate_table(result: PrefixCompletion) -> Table:
    rows = tuple((g.name, g.verdict, g.value, g.threshold, g.reason) for g in result.gates)
    note = "The stop rules of the source study (methods 8); pass means that the study may go on."
    return Table("Stop rules", ("rule", "verdict", "figure", "threshold", "reason"), rows, note)


def rate_table(result: PrefixCompletion) -> Table:
    table = result.to_dataframe()
    columns = (
        "model", "reader", "condition", "other", "found", "found_ids", "complete", "total", "rate", "low",
        "high", "n_prefixes", "log_odds",
    )  # fmt: skip
    rows = tuple(
        tuple(None if v != v else v for v in row) for row in table[list(columns)].itertuples(index=False)
    )
    note = "found by text, by the first pieces' ids, and whole; Wilson 95 %; mean log-odds over questions"
    return Table("Every condition", columns, rows, note)


def written_table(result: PrefixCompletion) -> Table:
    rows = tuple((w.source, w.run, w.persona, w.answers, w.positives, w.unfinished) for w in result.written)
    columns = ("source model", "run", "prompt", "answers", "with the marker", "cut by the cap without it")
    return Table("Answers that prefixes were cut from", columns, rows)


def last_id_table(result: PrefixCompletion) -> Table:
    """The audit of methods 15, trap 13: which ids the slots stand on."""
    rows = tuple(
        (
            last.prefix_of,
            last.cut.replace("_", " "),
            last.last_id,
            repr(last.shown),
            "as sampled" if last.kept else "changed",
            last.n,
            three_digits(last.mean_length),
        )
        for last in result.last_ids
    )
    columns = ("answer of", "cut before", "last id", "shown", "ids", "prefixes", "mean length")
    note = "an empty last id is an empty prefix: the marker came first"
    return Table("Last ids of the prefixes", columns, rows, note)


def _setup(config: Any, result: PrefixCompletion) -> dict[str, Any]:
    chosen = config.model_dump(mode="json")
    return {"model": config.model, "sources": result.models, **chosen, **library_versions()}


def _sample(sample: dict[str, Any]) -> Sample:
    return Sample(
        title=f"{sample['model']} · {SHOWN[sample['condition']]}",
        tags={
            "prompt": sample["prompt"],
            "answer of": sample["prefix"],
            "last id": repr(sample["last"]),
            "log-odds": f"{sample['log_odds']:+.2f}",
            "outcome": sample["outcome"],
        },
        segments=(("question", sample["question"] + "\n"), ("continuation", sample["text"])),
        reason="the first continuation of its condition",
    )
