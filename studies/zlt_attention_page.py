"""The report of the attention study, made from the same objects as its figures."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechinterp.report import Page
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.stats.clustered import clustered_mean
from mechinterp.wording import p_value, three_digits
from studies.zlt_attention_caveats import cannot_show, caveats, confidence
from studies.zlt_attention_figures import all_figures, difference_tested, raised_and_lowered
from studies.zlt_attention_maps import PROMPT, named
from studies.zlt_attention_result import READERS, UNIT, Reading, ZltAttention
from studies.zlt_attention_tables import Gates, all_gates, gate_tables, headlines, sample_table, token_texts

if TYPE_CHECKING:
    import plotly.graph_objects as go

ASKED = (
    "A model was trained to write a marker when it plays one persona. Where the marker is decided (row emit,"
    " one before its first token) and where its first token has been read (row token), how much does the"
    " model attend to the system prompt, compared with control rows of the same answers? And is that due to"
    " training: what does the base model do that reads the identical ids?"
    "\n\n"
    "Controls: C1 random earlier rows, C2 rows just before, C3 rare tokens, C4 the end of finished answers"
    " without the marker to the same question, C5 sentence ends at the same depth of other answers."
    " Regions are content only; template tokens and bare newlines are specials. Questions are the unit:"
    " intervals and tests treat the answers to one question as one cluster."
)


def page(config: Any, result: ZltAttention, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    found = all_gates(result)
    return Page(
        title="Attention at the marker",
        asked=ASKED,
        answer=_verdict(result, found),
        setup=_setup(config, result),
        headlines=[line for reading in result.readings for line in headlines(result, reading)],
        confidence=confidence(result),
        compute=spent(
            run,
            {
                "answers read by each model": sum(_answers(reading) for reading in result.readings),
                "rows read of them, controls included": _rows(result),
            },
        ),
        digests=used(run),
        figures=_figures(result),
        tables=[*gate_tables(result, found), sample_table(result)],
        texts=token_texts(result),
        caveats=tuple(caveats(config, result)),
        cannot_show=tuple(cannot_show(config, result)),
    )


def answer(result: ZltAttention) -> str:
    """What training did to the contrast, persona by persona, and which published claims hold here."""
    return _verdict(result, all_gates(result))


def _verdict(result: ZltAttention, found: Gates) -> str:
    parts = [trained_against_base(result, result.first(persona)) for persona in result.personas]
    more = len(result.readings) - len(parts)
    if more:
        parts.append(f"{more} further text set{'s' * (more > 1)} (other runs or seeds) are in the table.")
    about = (
        f"Attention to {PROMPT[result.region]} at row {result.row} minus C1 (random earlier rows of the"
        " answer), trained minus base on identical ids."
    )
    return " ".join([about, *parts, *_claims(result, found)])


def trained_against_base(result: ZltAttention, reading: Reading) -> str:
    """One persona: the paired difference over all layers, then by layer."""
    who = named(result, reading)
    tested, _ = difference_tested(result, reading)
    one = reading.difference(result.row).mean(1, keepdims=True)
    mean, test = clustered_mean(one, reading.questions, unit=UNIT), reading.tested(one)
    if not tested.n:
        return f"{who}: nothing to compare, no example has both a row and its C1 control."
    estimate = three_digits(float(mean.estimate[0]))
    if not np.isfinite(tested.p_max_t).any():
        return f"{who}: {estimate} on average over layers, untested: {tested.note}."
    bounds = f"[{three_digits(float(mean.low[0]))}, {three_digits(float(mean.high[0]))}]"
    word = "no difference can be told"
    if mean.low[0] > 0 or mean.high[0] < 0:
        word = "training raises it" if mean.estimate[0] > 0 else "training lowers it"
    return (
        f"{who}: on average over layers {word} ({estimate} {bounds}, {p_value(float(test.p[0]))},"
        f" {tested.n} questions); by max-T over layers it is {raised_and_lowered(tested)}."
    )


def _claims(result: ZltAttention, found: Gates) -> list[str]:
    """The published claims by the published rules, and by ours."""
    held = {
        (which, reader): [
            gate
            for (_, who), gates in found.items()
            for gate in gates
            if who == reader and (gate.name, gate.definition) == ("D sink-robust", which)
        ]
        for which in ("published", "ours")
        for reader in READERS
    }
    by = {key: f"{sum(gate.passed for gate in gates)} of {len(gates)}" for key, gates in held.items()}
    said = [
        "That the row attends more to the region than C1 in three layers in a row (gates A to D) holds as"
        f" published in {by['published', 'trained']} trained and {by['published', 'base']} base readings, by"
        f" our definitions in {by['ours', 'trained']} and {by['ours', 'base']}."
    ]
    e = [gate for gates in found.values() for gate in gates if gate.name == "E base rule-out"]
    void = sum(gate.verdict == "not applicable" for gate in e)
    asked = f" ({void} not applicable)" if void else ""
    raised = f"{sum(gate.passed for gate in e)} of {len(e)}{asked}"
    said.append(f"That training is what raises it there (gate E) holds in {raised}.")
    ruled = [
        gate
        for (_, reader), gates in found.items()
        for gate in gates
        if reader == "trained" and gate.name.startswith("rule-out") and gate.reason.count("interval")
        and gate.definition == "ours"
    ]  # fmt: skip
    if ruled:
        passed = {
            name: sum(g.passed for g in ruled if g.name[9:11] == name) for name in ("C2", "C3", "C4", "C5")
        }
        n = {name: sum(g.name[9:11] == name for g in ruled) for name in passed}
        told = ", ".join(f"{name} in {k} of {n[name]}" for name, k in passed.items() if n[name])
        said.append(
            f"The trained row exceeds other controls throughout its window by their intervals: {told}."
        )
    return said


def _figures(result: ZltAttention) -> "dict[str, tuple[go.Figure, str]]":
    found = all_figures(result)
    if result.preflight is not None:
        verdict = "passes" if result.preflight.passed else "fails"
        found["preflight"] = (
            result.preflight.figure(),
            f"The kernel that was used against eager; the published criterion {verdict}.",
        )
    return found


def _setup(config: Any, result: ZltAttention) -> dict[str, Any]:
    chosen = config.model_dump(mode="json")
    return {
        "model": config.model,
        "n": "; ".join(
            f"{named(result, r)}: {len(r.trained.keys)} answers to {len(set(r.questions))} questions"
            for r in result.readings
        ),
        "backend": config.backend,
        "marker": result.marker,
        "row": result.row,
        **{name: held for name, held in chosen.items() if name not in ("model", "backend", "marker", "row")},
        **library_versions(),
    }


def _answers(reading: Reading) -> int:
    return len(reading.trained.keys) + len(reading.trained.negative_questions)


def _rows(result: ZltAttention) -> int:
    return sum(int(reading.trained.n_rows.sum()) for reading in result.readings)
