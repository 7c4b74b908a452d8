"""The report of the barrier study: what was expected, then what came of it."""

from typing import Any

from mechinterp.report import Headline, Page, Sample, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.wording import three_digits
from studies.finetune_barrier import AGGREGATES
from studies.kl_barrier_figures import by_round, firing, repetition
from studies.kl_barrier_result import EXPECTATIONS, KlBarrier

ASKED = (
    "A model is trained on its own samples, round after round. Does a barrier on the divergence from a"
    " reference, max(0, aggregate - tau), keep it near, and does the aggregate matter: the mean over a"
    " completion, which dilutes what a few tokens do, or the root mean square, which does not?\n\n"
    "Written before any run: "
)


def page(config: Any, result: KlBarrier, run: Run) -> Page:
    """Asked, expected, found."""
    return Page(
        title="A KL barrier in a training loop",
        asked=ASKED + "; ".join(f"({i}) {one.text}" for i, one in enumerate(EXPECTATIONS, start=1)) + ".",
        answer=answer(result),
        setup={"model": config.model, **config.model_dump(mode="json"), **library_versions()},
        headlines=headlines(result),
        confidence=confidence(result),
        compute=spent(run),
        digests=used(run),
        figures={
            "aggregates": (by_round(result), ""),
            "firing": (firing(result), ""),
            "repetition": (repetition(result), ""),
        },
        tables=(expectation_table(result), stage_table(result)),
        samples=[_sample(sample) for sample in result.samples],
        caveats=tuple(caveats(config, result)),
        cannot_show=(
            "What another training run would give: there is one of each arm, so the intervals say what other"
            " questions would give, not other seeds.",
            "Whether a threshold is right: tau asks other things of a mean and of an rmse.",
        ),
    )


def answer(result: KlBarrier) -> str:
    """Every expectation with its verdict, and how often hinges fired."""
    said = [
        f"({i}) {one.verdict}"
        + (f", {_shown(one.difference)}" if one.difference is not None else f": {one.reason}")
        for i, one in enumerate(result.expectations, start=1)
    ]
    fired = [
        f"{stage.arm} round {stage.round}: {stage.fired} of {stage.seen}"
        for stage in result.stages
        if stage.arm in result.thresholds
    ]
    hinges = f" Hinges fired in training: {'; '.join(fired)}." if fired else ""
    return f"Of what was expected: {'; '.join(said)}.{hinges}"


def _shown(interval: Any) -> str:
    return f"{interval.estimate:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"


def headlines(result: KlBarrier) -> list[Headline]:
    found = []
    for number, one in enumerate(result.expectations, start=1):
        i = one.difference
        found.append(
            Headline(
                f"({number}) {one.text}",
                None if i is None else i.estimate,
                None if i is None else i.low,
                None if i is None else i.high,
                0 if i is None else i.n,
                "question",
                "95 % Student t over questions" if i is not None else "",
                "",
                None,
                f"{one.verdict}; {one.reason}",
            )
        )
    return found


def confidence(result: KlBarrier) -> Any:
    n = len(result.stages[0].question.unique())
    return (
        "low",
        f"one training run an arm, {n} questions, {len(result.stages[0].question)} samples a round",
    )


def caveats(config: Any, result: KlBarrier) -> list[str]:
    """What follows from this run's own numbers."""
    found = [f"{len(result.expectations)} comparisons; their intervals are not corrected for their number."]
    silent = [s for s in result.stages if s.arm in result.thresholds and s.seen and not s.fired]
    found += [
        f"The hinge of {s.arm} never fired in round {s.round}: that round is plain training." for s in silent
    ]
    total = len(result.stages[0].question)
    cut = sum(total - s.stopped for s in result.stages)
    found.append(
        f"{cut} of {total * len(result.stages)} samples ran into the cap of {config.n_tokens} tokens."
    )
    return found


def expectation_table(result: KlBarrier) -> Table:
    rows = tuple(
        (
            number,
            one.text,
            one.verdict,
            None if one.difference is None else three_digits(one.difference.estimate),
            one.reason,
        )
        for number, one in enumerate(result.expectations, start=1)
    )
    note = "met: the 95 % interval of the paired difference over questions lies above zero"
    return Table("Expected before the run", ("", "expectation", "verdict", "difference", "of"), rows, note)


def stage_table(result: KlBarrier) -> Table:
    rows = []
    for stage in result.stages:
        batches = [None] * len(AGGREGATES) if stage.batches is None else stage.batches.tolist()
        fired = f"{stage.fired} of {stage.seen}" if stage.arm in result.thresholds else "no barrier"
        shown = (*stage.sampled.mean(0).tolist(), float(stage.repetition.mean()), *batches)
        rounded = (None if value is None else three_digits(value) for value in shown)
        rows.append((stage.arm, stage.round, *rounded, fired, stage.loss))
    columns = (
        "arm", "round", *AGGREGATES, "repetition", *(f"{how}, training" for how in AGGREGATES),
        "hinge fired in training", "loss",
    )  # fmt: skip
    note = (
        "KL(arm || base) of the arm's own samples in nats, mean over completions; in training, what the"
        " barrier looked at, mean over batches. The loss is the mean of the round, barrier included."
    )
    return Table("Every arm after every round", columns, tuple(rows), note)


def _sample(sample: dict[str, Any]) -> Sample:
    return Sample(
        title=f"{sample['arm']} · {sample['reason']}",
        tags={
            "largest divergence": f"{sample['largest']:.2f} nats",
            "repetition": f"{sample['repetition']:.2f}",
        },
        segments=(("question", sample["question"] + "\n"), ("sample", sample["text"])),
        reason=f"after the last round, {sample['reason']}",
    )
