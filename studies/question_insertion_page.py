"""The report of question insertion, made from the same objects as its figures."""

from typing import Any

from mechinterp.report import Headline, Page, Sample
from mechinterp.results import library_versions
from mechinterp.runs import Run
from mechinterp.stats.intervals import mean_interval
from mechinterp.stats.paired import sign_flip
from studies.question_insertion_figures import SHOWN, all_figures
from studies.question_insertion_result import Outcome, QuestionInsertion, Shift

ASKED = (
    "A model that is told a role plays it through a conversation. After every turn a question is put in, and the state of"
    " the last prompt token, which decides the answer, is read at every layer. Does the state move along the role's vector"
    " (role minus control) as the conversation goes on? The same user turns played by the control show what the length of"
    " a conversation does by itself.\n\n"
    "The means of the insertion points have a top singular direction, raw and about their mean. Does steering along it"
    " make text role-like, more than a random direction of equal norm? Role-likeness is the projection on the role's"
    " vector, and the log-probability of the same ids under the role's prompt minus under the default one."
)
STEERED = ("raw", "centred", "role", "told")


def page(config: Any, result: QuestionInsertion, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    lines = [line for shift in result.shifts for layer in result.layers for line in moved(result, shift, layer)]
    return Page(
        title="Question insertion",
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result),
        headlines=[*lines, *(line for outcome in result.outcomes for line in steered(result, outcome))],
        confidence=confidence(result),
        compute={"seconds in cells": round(run.status(()).seconds, 1), "threads": run.manifest.threads},
        digests={**{f"weights of {k}": v for k, v in run.manifest.models.items()}, "configuration": run.manifest.config_sha256,
                 **{f"input {k}": v for k, v in run.manifest.inputs.items()}},
        figures=all_figures(result),
        samples=[*(_conversation(result, shift) for shift in result.shifts), *(_text(result, s) for s in result.samples)],
        caveats=tuple(caveats(config, result)),
        cannot_show=tuple(_cannot_show(config, result)),
    )  # fmt: skip


def answer(result: QuestionInsertion) -> str:
    """One sentence a finding: which way conversations move, whether beyond the control's, and what steering does."""
    pairs = [(shift, layer) for shift in result.shifts for layer in result.layers]
    tests = [sign_flip(shift.beyond_control(layer), unit="question") for shift, layer in pairs]
    up = sum(t.p < 0.05 and t.estimate > 0 for t in tests)
    down = sum(t.p < 0.05 and t.estimate < 0 for t in tests)
    turns = result.shifts[0].n_turns
    told = []
    for how in ("raw", "centred"):
        both = [
            o
            for o in result.outcomes
            if all((t := o.against(m, how)).p < 0.05 and t.estimate > 0 for m in ("projection", "log_ratio"))
        ]
        told.append(f"{len(both)} of {len(result.outcomes)} for the {how} one")
    return (
        f"Over {turns} turns the state moves along the role's vector further than in the control's conversation in {up} of"
        f" {len(pairs)} cases, and less far or backwards in {down} (paired sign flips over {len(result.questions)} questions,"
        f" p < 0.05, uncorrected). Steering on the top singular direction makes text more role-like than a random direction"
        f" by both measures in {' and '.join(told)}."
    )


def moved(result: QuestionInsertion, shift: Shift, layer: int) -> list[Headline]:
    """How far the conversation moved the state along the vector, beside the control's, and how one-directional it was."""
    where = f"{result.names[shift.role]}, layer {layer}"
    n = len(result.questions)
    lines = []
    for said, values in (
        (f"change over {shift.n_turns} turns", shift.change(layer)),
        ("change − the control's", shift.beyond_control(layer)),
        ("growth a turn, turns 1 on", shift.slope(layer)),
    ):
        spread, test = mean_interval(values, method="bootstrap", unit="question"), sign_flip(values, unit="question")
        lines.append(Headline(f"{where}: {said}", spread.estimate, spread.low, spread.high, n, "question",
                              "95 % bootstrap over questions", test.method, test.p, spread.note))  # fmt: skip
    for how in ("raw", "centred"):
        share, cosine = float(shift.shares[how][layer]), float(shift.alignment[how][shift.at(layer)])
        even = f"an even spectrum gives {1 / (shift.n_turns - (how == 'centred')):.2f}; cosine with the role's vector {cosine:+.2f}"
        lines.append(Headline(f"{where}: top share, {how}", share, None, None, shift.n_turns, "point", "", "", None, even))
    return lines


def steered(result: QuestionInsertion, outcome: Outcome) -> list[Headline]:
    """Each arm's role-likeness minus that of random directions, by both measures."""
    n, where = len(outcome.seeds), f"{result.names[outcome.role]}, layer {outcome.layer}"
    if len({o.question for o in result.outcomes}) > 1:
        where += f", question {outcome.question}"
    lines = []
    for measure, said in (("projection", "projection"), ("log_ratio", "log p ratio (nats a token)")):
        found = getattr(outcome, measure)
        for arm in STEERED:
            spread, test = mean_interval(found[arm] - found["random"], method="bootstrap"), outcome.against(measure, arm)
            note = f"{SHOWN[arm]}: log p under the default prompt {float(outcome.fluency[arm].mean()):.2f} nats a token"
            lines.append(Headline(f"{where}: {said}, {arm} − random", spread.estimate, spread.low, spread.high, n, "run",
                                  "95 % bootstrap over runs", test.method, test.p, note))  # fmt: skip
    return lines


def caveats(config: Any, result: QuestionInsertion) -> list[str]:
    """What follows from this run's own numbers."""
    n, runs = len(result.questions), len(result.outcomes[0].seeds)
    found = [
        "One conversation a role: intervals over questions say nothing about other conversations of the same role.",
        f"{n} questions of {len({g for g, _ in result.questions})} kinds, asked of the same conversation, are not independent"
        f" draws; the smallest p that sign flips over them can give is {2 / 2**n:.2g}.",
    ]
    if runs < 20:
        found.append(f"Small n: {runs} runs an arm; the smallest p that sign flips can give is {2 / 2**runs:.2g}.")
    tests = 3 * len(result.shifts) * len(result.layers) + 2 * len(STEERED) * len(result.outcomes)
    found.append(f"{tests} tests; the p values are not corrected for their number.")
    played = [shift for shift in result.shifts if shift.transcript.finish]
    capped = sum(shift.transcript.finish.count("length") for shift in played)
    if played:
        found.append(f"{capped} of {sum(s.n_turns for s in played)} played answers were cut at {config.answer_tokens} tokens.")
    cut = sum(len(o.seeds) - k for o in result.outcomes for k in o.n_stopped.values())
    texts = sum(len(o.seeds) * len(o.n_stopped) for o in result.outcomes)
    found.append(f"{cut} of {texts} steered texts were cut at {config.n_tokens} tokens.")
    broken = [o for o in result.outcomes for arm in ("raw", "centred", "role")
              if float(o.fluency[arm].mean()) < float(o.fluency["unsteered"].mean()) - 1]  # fmt: skip
    if broken:
        found.append(f"In {len(broken)} arms the text lost more than 1 nat a token under the default prompt: it may be broken text.")
    found.append("The raw top direction is close to the states' common mean: what it does is what any state of a chat would do.")
    return found


def confidence(result: QuestionInsertion) -> Any:
    runs = len(result.outcomes[0].seeds)
    reason = f"one conversation a role, {len(result.questions)} questions, {runs} runs an arm, one model"
    return ("low", reason)  # a second conversation of each role would be the replicate that counts


def _cannot_show(config: Any, result: QuestionInsertion) -> list[str]:
    return [
        f"Whether another model does the same: only {config.model} was run.",
        f"Anything past {result.shifts[0].n_turns} turns.",
        "Whether a conversation of other words moves the state as far: each role has one.",
        "Whether the movement makes later answers more in role: the states decide answers that were not sampled.",
    ]


def _setup(config: Any, result: QuestionInsertion) -> dict[str, Any]:
    chosen = config.model_dump(mode="json")
    return {
        "model": config.model,
        "backend": config.backend,
        "roles": ", ".join(result.names[role] for role in result.roles),
        "control": result.names["control"],
        "strength in residual norms": ", ".join(f"{o.norm_in_residuals:.3g}" for o in result.outcomes),
        "questions put in": ", ".join(f"{text} ({group})" for group, text in result.questions),
        "conversations": "; ".join(
            f"{result.names[s.role]}: {'given' if s.given else 'played'}, seed {s.transcript.seed}" for s in result.shifts
        ),
        **{name: chosen[name] for name in chosen if name not in ("model", "backend", "roles")},
        **library_versions(),
    }


def _conversation(result: QuestionInsertion, shift: Shift) -> Sample:
    said = [m for m in shift.transcript.messages if m["role"] != "system"]
    return Sample(
        title=f"{result.names[shift.role]} · the conversation",
        tags={"seed": shift.transcript.seed, "turns": shift.n_turns},
        segments=tuple((m["role"], m["content"] + "\n") for m in said),
        reason="the whole conversation that the questions were put into",
    )


def _text(result: QuestionInsertion, sample: dict[str, Any]) -> Sample:
    return Sample(
        title=f"{result.names[sample['role']]} · {SHOWN[sample['arm']]}",
        tags={"layer": sample["layer"], "seed": sample["seed"], "log p ratio": f"{sample['log_ratio']:+.2f}"},
        segments=(("text", sample["text"]),),
        reason="the run of median log p ratio in its arm",
    )
