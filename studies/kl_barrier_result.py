"""What the barrier study found: divergences, hinges and repetition by arm and round; expectations met or not.

The expectations were written before any run, here; the unit of every comparison is the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, mean_interval
from studies.finetune_barrier import AGGREGATES

Verdict = Literal["met", "not met", "not applicable"]


@dataclass(frozen=True)
class Expectation:
    """`larger` lies above `smaller`: an arm, a round ("first" or "last") and a measure of its samples."""

    text: str
    larger: tuple[str, str, str]
    smaller: tuple[str, str, str]


EXPECTATIONS = (
    Expectation(
        "without a barrier the samples drift from the base, round by round",
        ("off", "last", "mean"), ("off", "first", "mean"),
    ),
    Expectation(
        "without a barrier the rmse's hinge would fire on more samples than the mean's",
        ("off", "last", "fires rmse"), ("off", "last", "fires mean"),
    ),
    Expectation(
        "the barrier on the mean holds the mean below that of no barrier",
        ("off", "last", "mean"), ("mean", "last", "mean"),
    ),
    Expectation(
        "the barrier on the rmse holds the rmse below that of no barrier",
        ("off", "last", "rmse"), ("rmse", "last", "rmse"),
    ),
    Expectation(
        "the barrier on the rmse holds the largest divergence lower than that on the mean does",
        ("mean", "last", "max"), ("rmse", "last", "max"),
    ),
    Expectation(
        "samples repeat themselves less under the barrier on the rmse than under none",
        ("off", "last", "repetition"), ("rmse", "last", "repetition"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """An expectation with its difference over questions; met where the 95 % interval lies above zero."""

    text: str
    verdict: Verdict
    difference: Interval | None
    reason: str


@dataclass(frozen=True, eq=False)
class Stage:
    """An arm after a round. Aggregates are of KL(arm || base), in the order of AGGREGATES.

    `sampled` is on its own samples; `batches` is the mean over the batches that it was trained on, where its
    barrier looked at them. `fired` counts the completions there whose hinge was above zero, of `seen`.
    """

    arm: str
    round: int
    sampled: Float[Tensor, "completion aggregate"]
    batches: Float[Tensor, "aggregate"] | None
    repetition: Float[Tensor, "completion"]
    question: Int[Tensor, "completion"]
    fired: int
    seen: int
    stopped: int
    loss: float | None


@dataclass(frozen=True, eq=False)
class KlBarrier(Result):
    """Every arm after every round, the base's own repetition, and what was expected."""

    model: str
    seed: int
    thresholds: dict[str, float]
    stages: tuple[Stage, ...]
    base_repetition: Float[Tensor, "completion"]
    expectations: tuple[Judged, ...]
    samples: tuple[dict[str, Any], ...]

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stage.arm for stage in self.stages))

    def stage(self, arm: str, when: int) -> Stage:
        return next(s for s in self.stages if (s.arm, s.round) == (arm, when))

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each arm and round: means over questions of every measure, with their bounds."""
        rows = []
        for stage in self.stages:
            row: dict[str, Any] = {"arm": stage.arm, "round": stage.round}
            for measure in (*AGGREGATES, "repetition", *(f"fires {kind}" for kind in self.thresholds)):
                found = over_questions(measured(stage, measure, self.thresholds), stage.question)
                row |= {measure: found.estimate, f"{measure} low": found.low, f"{measure} high": found.high}
            for place, how in enumerate(AGGREGATES):
                row[f"{how} in training"] = None if stage.batches is None else float(stage.batches[place])
            row |= {"fired": stage.fired, "seen": stage.seen, "loss": stage.loss}
            rows.append(row | {"completions": len(stage.sampled), "stopped": stage.stopped})
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        from studies.kl_barrier_figures import by_round

        return by_round(self)

    def headline(self) -> str:
        met = sum(one.verdict == "met" for one in self.expectations)
        return f"kl_barrier: {met} of {len(self.expectations)} expectations met, arms {', '.join(self.arms)}"


def measured(stage: Stage, measure: str, thresholds: dict[str, float]) -> Float[Tensor, "completion"]:
    """An aggregate, "repetition", or "fires mean": whether that hinge would be above zero; of the samples."""
    if measure == "repetition":
        return stage.repetition
    if measure.startswith("fires "):
        kind = measure.removeprefix("fires ")
        return (stage.sampled[:, _place(kind)] > thresholds[kind]).float()
    return stage.sampled[:, _place(measure)]


def _place(kind: str) -> int:
    return [str(how) for how in AGGREGATES].index(kind)


def over_questions(values: Float[Tensor, "completion"], question: Int[Tensor, "completion"]) -> Interval:
    """The mean over questions, each the mean of its completions, with Student's bounds."""
    means = [values[question == q].mean() for q in question.unique()]
    return mean_interval(torch.stack(means), method="t", unit="question")


def judge(stages: Sequence[Stage], thresholds: dict[str, float]) -> tuple[Judged, ...]:
    """Each expectation on paired differences: arms have the same questions and the same draws."""
    rounds = {"first": min(s.round for s in stages), "last": max(s.round for s in stages)}
    by_key = {(s.arm, s.round): s for s in stages}
    found = []
    for one in EXPECTATIONS:
        sides = (one.larger, one.smaller)
        missing = {arm for arm, _, _ in sides} - {s.arm for s in stages}
        missing |= {m.removeprefix("fires ") for _, _, m in sides if m.startswith("fires ")} - set(thresholds)
        if missing:
            reason = f"no arm {', '.join(sorted(missing))} was run"
            found.append(Judged(one.text, "not applicable", None, reason))
            continue
        larger, smaller = (measured(by_key[arm, rounds[when]], m, thresholds) for arm, when, m in sides)
        difference = over_questions(larger - smaller, stages[0].question)
        if difference.n < 3:
            found.append(Judged(one.text, "not applicable", difference, "fewer than 3 questions"))
            continue
        verdict: Verdict = "met" if difference.low > 0 else "not met"
        said = f"{' '.join(one.larger)} minus {' '.join(one.smaller)}"
        found.append(Judged(one.text, verdict, difference, said))
    return tuple(found)
