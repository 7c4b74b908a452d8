"""What must be said against a run of the attention study: from its own numbers, and of its design."""

import math
from typing import Any

import numpy as np

from mechinterp.report import Level
from mechinterp.stats.bootstrap import complete_rows
from mechinterp.wording import three_digits
from studies.zlt_attention_figures import ALPHA, control_name, difference_tested
from studies.zlt_attention_maps import named
from studies.zlt_attention_result import Reading, ZltAttention, controls_of

PARTITION = 5e-3  # methods 9.4: what the published sums were relaxed to
FEW = 10  # questions


def caveats(config: Any, result: ZltAttention) -> list[str]:
    """What follows from this run's own numbers."""
    found = [line for reading in result.readings for line in _of_reading(config, result, reading)]
    personas = len(result.personas)
    if personas > 1:
        found.append(
            f"{personas} personas are tested one by one; p values are not corrected for their number."
        )
    once = [p for p in result.personas if sum(r.persona == p for r in result.readings) == 1]
    if once:
        found.append(
            f"One training run and one generation seed of {_listed(once)}: agreement is of split halves of"
            " the questions, which is no replication."
        )
    worst = max(max(r.trained.deviation, r.base.deviation) for r in result.readings)
    over = f", more than {PARTITION:g}: fractions are not to be trusted" if worst > PARTITION else ""
    found.append(
        f"The regions of a row and head sum to 1 within {worst:.1e}{over}; nothing was renormalised."
    )
    return [*found, *_preflight(result)]


def _of_reading(config: Any, result: ZltAttention, reading: Reading) -> list[str]:
    """One text set: its units, its caps, and what was left out."""
    who, found = named(result, reading), []
    tested, _ = difference_tested(result, reading)
    if tested.n < FEW:
        found.append(f"{who}: {tested.n} questions ({tested.n_examples} examples) are few. {_reach(tested)}")
    counts = reading.examples.counts
    trials = sum(c.trials for c in counts)
    if any(c.cut is None for c in counts):
        found.append(f"{who}: how many of {trials} trials ran into the cap is not known.")
    elif cut := sum(c.cut or 0 for c in counts):
        found.append(f"{who}: {cut} of {trials} trials ran into the cap of {config.max_tokens} tokens.")
    partly = sum(e.complete is False for e in reading.examples.positives)
    if partly:
        n = len(reading.examples.positives)
        found.append(f"{who}: {partly} of {n} markers are incomplete, begun and not finished.")
    unfinished = reading.trained.negatives_finished.count(False)
    if unfinished:
        n = len(reading.trained.negatives_finished)
        found.append(
            f"{who}: {unfinished} of {n} answers without the marker were cut; C4 and our gate F leave"
            " them out."
        )
    elif not reading.trained.negatives_finished:
        found.append(f"{who}: no answers without the marker, so C4 and gate F do not apply.")
    return found + _skipped(result, reading, who)


def _reach(tested: Any) -> str:
    """What so few units can show."""
    if not math.isfinite(tested.smallest_p) or tested.n < 3:
        return "Three questions are needed for a test or an interval, so there is none."
    least = f"The smallest p that sign flips can give is {tested.smallest_p:.2g}"
    return f"{least}{', so none can be below 5 %' if tested.smallest_p >= ALPHA else ''}."


def _skipped(result: ZltAttention, reading: Reading, who: str) -> list[str]:
    """Controls that some examples have no rows for."""
    said = []
    for control in controls_of(reading.trained, result.row):
        values = reading.delta("trained", result.row, control)
        missing = int((~complete_rows(values)).sum())
        if missing:
            said.append(f"{control_name(control)} {missing}")
    total = len(reading.trained.keys)
    return [f"{who}: examples without rows of a control, of {total}: {', '.join(said)}."] if said else []


def _preflight(result: ZltAttention) -> list[str]:
    found = result.preflight
    if found is None:
        return [
            "No preflight was run: whether the attention kernel changes the marker's rate is not known here."
        ]
    verdict = "within" if found.passed else "beyond"
    weak = ", hardly more than one standard error" if found.tolerance < 2 * found.se else ""
    return [
        f"Preflight: marker rates of {found.kernel} and eager differ by {three_digits(found.delta)} (standard"
        f" error {three_digits(found.se)}, {len(found.found_own)} completions each), {verdict} the tolerance"
        f" of {found.tolerance:g}{weak}."
    ]


def confidence(result: ZltAttention) -> tuple[Level, str]:
    """Moderate only where every persona has enough questions and was trained more than once."""
    fewest = min(len(set(reading.questions)) for reading in result.readings)
    examples = [len(reading.trained.keys) for reading in result.readings]
    runs = min(len({r.run for r in result.readings if r.persona == p}) for p in result.personas)
    reason = (
        f"{fewest} or more questions and {min(examples)} or more answers a text set,"
        f" {runs} training run{'s' * (runs > 1)} a persona, {len(result.personas)}"
        f" persona{'s' * (len(result.personas) > 1)}, one model"
    )
    return ("low" if fewest < FEW or runs < 2 else "moderate", reason)


def cannot_show(config: Any, result: ZltAttention) -> list[str]:
    """What no run like this can."""
    few = [
        named(result, reading)
        for reading in result.readings
        if not np.isfinite(difference_tested(result, reading)[0].p_max_t).any()
    ]
    found = (
        [f"Any difference of trained and base for {_listed(few)}: too few questions to test."] if few else []
    )
    return [
        *found,
        f"Whether another model does the same: only {config.model} and what was trained from it were read.",
        "Whether attention causes the marker: weights say where a row looks, not what is used of it.",
        "Heads that do opposite things: contrasts are means over heads.",
        f"Other regions than {result.region}: gates and tests are of that one.",
        "What training does to texts that the trained model did not write: both models read its answers.",
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)
