"""The report of question insertion, made from the same objects as its figures."""

from typing import Any

from mechinterp.report import Headline, Page, Sample
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.stats.intervals import mean_interval
from mechinterp.stats.paired import sign_flip
from mechinterp.wording import three_digits
from studies.question_insertion_figures import SHOWN, all_figures
from studies.question_insertion_result import MEASURES, Outcome, QuestionInsertion, Shift

ASKED = (
    "A model that is told a role plays it through a conversation. After every turn a question is put in, and"
    " the state of"
    " the last prompt token, which decides the answer, is read at every layer. Does the state move along the"
    " role's vector"
    " (role minus control) as the conversation goes on? The same user turns played by the control show what"
    " the length of"
    " a conversation does by itself.\n\n"
    "The means of the insertion points have a top singular direction, raw and about their mean. Does"
    " steering along it"
    " make text role-like, more than a random direction of equal norm? Role-likeness is the projection on"
    " the role's"
    " vector, and the log-probability of the same ids under the role's prompt minus under the default one."
)
STEERED = ("raw", "centred", "role")


def page(config: Any, result: QuestionInsertion, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    lines = [
        line for shift in result.shifts for layer in result.layers for line in moved(result, shift, layer)
    ]
    return Page(
        title="Question insertion",
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result),
        headlines=[*lines, *(line for outcome in result.outcomes for line in steered(result, outcome))],
        confidence=confidence(result),
        compute=spent(run),
        digests=used(run),
        figures=all_figures(result),
        samples=[
            *(_conversation(result, shift) for shift in result.shifts),
            *(_text(result, s) for s in result.samples),
        ],
        caveats=tuple(caveats(config, result)),
        cannot_show=tuple(_cannot_show(config, result)),
    )


def answer(result: QuestionInsertion) -> str:
    """Which way conversations move, whether beyond the control's, and what their direction does."""
    pairs = [(shift, layer) for shift in result.shifts for layer in result.layers]
    tests = [sign_flip(shift.beyond_control(layer), unit="question") for shift, layer in pairs]
    changes = [
        f"{three_digits(float(shift.change(layer).mean()))} ({_where(result, shift.role, layer)})"
        for shift, layer in pairs
    ]
    up, down = (sum(t.p < 0.05 and t.estimate * way > 0 for t in tests) for way in (1, -1))
    beaten = {arm: sum(_beats_random(outcome, arm) for outcome in result.outcomes) for arm in STEERED}
    n, runs = len(result.outcomes), len(result.outcomes[0].seeds)
    return (
        f"Over {result.shifts[0].n_turns} turns the state's projection on the role's vector changes"
        f" by {', '.join(changes)}; beside the control's conversation it goes up in {up} of {len(pairs)}"
        f" cases and down in {down}. Steering along the top singular direction makes text more role-like than"
        f" a random direction of equal norm, by both measures, in {beaten['raw']} of {n} cases (raw) and"
        f" {beaten['centred']} of {n} (centred); the role's own vector does in {beaten['role']} of {n}."
        f" Paired sign flips over {len(result.questions)} questions and {runs} runs, p < 0.05, uncorrected."
    )


def _beats_random(outcome: Outcome, arm: str) -> bool:
    """Whether an arm's texts are more role-like than the random arm's by both measures."""
    tests = [outcome.against(measure, arm) for measure in MEASURES]
    return all(test.p < 0.05 and test.estimate > 0 for test in tests)


def _where(result: QuestionInsertion, role: str, layer: int) -> str:
    """The role, and the layer where there are several."""
    return result.names[role] if len(result.layers) == 1 else f"{result.names[role]}, layer {layer}"


def moved(result: QuestionInsertion, shift: Shift, layer: int) -> list[Headline]:
    """How far the conversation moved the state along the vector, and in how far it was one direction."""
    where = _where(result, shift.role, layer)
    n = len(result.questions)
    lines = []
    for said, values in (
        (f"change over {shift.n_turns} turns", shift.change(layer)),
        ("change − the control's", shift.beyond_control(layer)),
        ("growth a turn, turns 1 on", shift.slope(layer)),
    ):
        spread, test = (
            mean_interval(values, method="bootstrap", unit="question"),
            sign_flip(values, unit="question"),
        )
        lines.append(
            Headline(
                f"{where}: {said}",
                spread.estimate,
                spread.low,
                spread.high,
                n,
                "question",
                "95 % bootstrap over questions",
                test.method,
                test.p,
                spread.note,
            )
        )
    for how in ("raw", "centred"):
        share, cosine = float(shift.shares[how][layer]), float(shift.alignment[how][shift.at(layer)])
        even = 1 / (shift.n_turns - (how == "centred"))
        note = f"an even spectrum gives {even:.2f}; cosine with the role's vector {cosine:+.2f}"
        lines.append(
            Headline(
                f"{where}: top share, {how}", share, None, None, shift.n_turns, "point", "", "", None, note
            )
        )
    return lines


def steered(result: QuestionInsertion, outcome: Outcome) -> list[Headline]:
    """Each arm's role-likeness minus that of random directions, by both measures."""
    n, where = len(outcome.seeds), _where(result, outcome.role, outcome.layer)
    if len({o.question for o in result.outcomes}) > 1:
        where += f", question {outcome.question}"
    lines = []
    for measure, said in (("projection", "projection"), ("log_ratio", "log p ratio")):
        found = getattr(outcome, measure)
        for arm in STEERED:
            spread, test = (
                mean_interval(found[arm] - found["random"], method="bootstrap"),
                outcome.against(measure, arm),
            )
            fluency = three_digits(float(outcome.fluency[arm].mean()))
            note = f"log p of its text under the default prompt: {fluency} nats a token"
            lines.append(
                Headline(
                    f"{where}: {said}, {SHOWN[arm]} − random",
                    spread.estimate,
                    spread.low,
                    spread.high,
                    n,
                    "run",
                    "95 % bootstrap over runs",
                    test.method,
                    test.p,
                    note,
                )
            )
    return lines


def caveats(config: Any, result: QuestionInsertion) -> list[str]:
    """What follows from this run's own numbers."""
    n, runs = len(result.questions), len(result.outcomes[0].seeds)
    kinds = len({group for group, _ in result.questions})
    tests = 3 * len(result.shifts) * len(result.layers) + 2 * len(STEERED) * len(result.outcomes)
    found = [
        "One conversation a role: intervals over questions say nothing of other conversations in that role.",
        f"{n} questions of {kinds} kinds, put to one conversation, are not independent draws; the smallest p"
        f" that sign flips over them can give is {2 / 2**n:.2g}.",
        f"{tests} tests; the p values are not corrected for their number.",
        "The centred direction points to where later turns are; its cosine says if that is the role.",
        "The raw top direction is near the states' common mean: its arm shows what any chat's state does.",
    ]
    if runs < 20:
        smallest = f"the smallest p that sign flips can give is {2 / 2**runs:.2g}"
        found.append(f"Small n: {runs} runs an arm; {smallest}.")
    return found + _cuts(config, result)


def _cuts(config: Any, result: QuestionInsertion) -> list[str]:
    """Which texts hit a cap, and which may be broken."""
    found = []
    played = [shift for shift in result.shifts if not shift.given]
    capped = sum(shift.transcript.finish.count("length") for shift in played)
    if played:
        total = sum(shift.n_turns for shift in played)
        found.append(f"{capped} of {total} played answers were cut at {config.answer_tokens} tokens.")
    texts = sum(len(o.seeds) * len(o.n_stopped) for o in result.outcomes)
    cut = texts - sum(sum(o.n_stopped.values()) for o in result.outcomes)
    found.append(f"{cut} of {texts} steered texts were cut at {config.n_tokens} tokens.")
    lost = [o.fluency["unsteered"].mean() - o.fluency[arm].mean() for o in result.outcomes for arm in STEERED]
    broken = sum(bool(nats > 1) for nats in lost)
    if broken:
        found.append(
            f"In {broken} of {len(lost)} steered arms the text is over 1 nat a token less likely under the"
            " default prompt than unsteered text: it may be broken."
        )
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
        "Whether the movement makes later answers more in role: the states decide answers that were not"
        " sampled.",
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
            f"{result.names[s.role]}: {'given' if s.given else 'played'}, seed {s.transcript.seed}"
            for s in result.shifts
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
