"""The report of steering towards a source, made from the same objects as its figures."""

from typing import Any

from mechinterp.report import Headline, Page, Sample, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.stats.intervals import Interval
from mechinterp.stats.paired import SignFlip
from mechinterp.wording import p_value, three_digits
from studies.steering_proximity_cells import OTHER, RANDOM, SOURCE
from studies.steering_proximity_figures import all_figures
from studies.steering_proximity_result import Steered, SteeringProximity

ASKED = (
    "Training that moves the assistant's representation towards a source persona is said to raise leakage of"
    " the source's marker. Steering moves it without training: a vector along the line from the assistant's"
    " centroid to the source's is added, as long as the requested cosine asks for, and the centroid is read"
    " again under the edit. Does the marker come out more under the assistant's prompt, more than with random"
    " vectors and vectors to another persona of equal norm, and at what damage?"
)


def page(config: Any, result: SteeringProximity, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    return Page(
        title="Steering towards a source",
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result),
        headlines=[line for one in result.sources for line in headlines(one)],
        confidence=("low", f"{len(result.sources[0].questions)} questions, one trained model a source"),
        compute=spent(run),
        digests=used(run),
        figures=all_figures(result),
        tables=[dose_table(result)],
        samples=[_sample(one, dose) for one in result.sources for dose in (min, max)],
        caveats=tuple(caveats(result)),
        cannot_show=(
            "Whether training that moves the cosine as far would leak as much: nothing was trained here.",
            f"Whether another model does the same: only {result.model} was steered.",
        ),
    )


def answer(result: SteeringProximity) -> str:
    """Each source's slope beside its controls, and what the largest dose does."""
    said = []
    for one in result.sources:
        slope, test = one.slope(SOURCE)
        beyond, held = one.beyond()
        most = max(one.line.doses)
        said.append(
            f"{one.source}: from cosine {three_digits(one.line.natural)} to"
            f" {three_digits(one.cosine(SOURCE, most))}, leakage to the assistant goes from"
            f" {three_digits(one.rate(SOURCE, 0.0, 'assistant').estimate)} to"
            f" {three_digits(one.rate(SOURCE, most, 'assistant').estimate)}; slope over the whole way"
            f" {three_digits(slope.estimate)} [{three_digits(slope.low)}, {three_digits(slope.high)}]"
            f" ({p_value(test.p)}), {three_digits(beyond.estimate)} beyond random vectors"
            f" ({p_value(held.p)}); p95 of KL at the largest dose"
            f" {three_digits(one.at(SOURCE, most).damage['p95'])} nats."
        )
    return " ".join(said)


def headlines(one: Steered) -> list[Headline]:
    """Slopes in every direction and role, and the differences from both controls."""

    def line(quantity: str, found: tuple[Interval, SignFlip], note: str = "") -> Headline:
        spread, test = found
        return Headline(
            f"{one.source}: {quantity}", spread.estimate, spread.low, spread.high, spread.n, "question",
            "95 % bootstrap over questions", test.method, test.p, note or spread.note,
        )  # fmt: skip

    whole = "rate a whole way from assistant to source"
    lines = [line(f"slope, {direction}", one.slope(direction), whole) for direction in one.directions]
    lines += [line(f"slope, {SOURCE} − {c}", one.beyond(c)) for c in (RANDOM, OTHER) if c in one.directions]
    lines.append(line("slope of the source's own rate", one.slope(SOURCE, "source"), "must not fall"))
    lines.append(line("slope of the bystanders' rate", one.slope(SOURCE, "bystander")))
    return lines


def caveats(result: SteeringProximity) -> list[str]:
    """What follows from this run's own numbers."""
    found = ["Least-squares slopes are over doses; a response that bends is not told by them."]
    for one in result.sources:
        worst = max(
            abs(one.cosine(SOURCE, d) - r)
            for d, r in zip(one.line.doses, one.line.requested, strict=True)
            if r is not None
        )
        found.append(
            f"{one.source}: requested and re-extracted cosines differ by at most {three_digits(worst)} at"
            f" layer {one.line.layer}; at the last layer the largest dose leaves"
            f" {three_digits(float(one.at(SOURCE, max(one.line.doses)).cosine[-1]))}."
        )
        if one.rate(SOURCE, max(one.line.doses), "source").high < one.rate(SOURCE, 0.0, "source").low:
            found.append(
                f"{one.source}: its own rate falls at the largest dose, so the marker itself is damaged."
            )
        n = len(one.questions)
        if n < 10:
            found.append(
                f"Small n: {n} questions; the smallest p that sign flips can give is {2 / 2**n:.2g}."
            )
    return list(dict.fromkeys(found))


def dose_table(result: SteeringProximity) -> Table:
    table = result.to_dataframe()
    rows = tuple(tuple(None if v != v else v for v in row) for row in table.itertuples(index=False))
    return Table("Every dose", tuple(table.columns), rows, "rates are found of total answers; KL in nats")


def _setup(config: Any, result: SteeringProximity) -> dict[str, Any]:
    chosen = config.model_dump(mode="json")
    n = sum(count.total for one in result.sources for dosed in one.dosed for count in dosed.counts)
    return {"model": config.model, "n": f"{n} answers", **chosen, **library_versions()}


def _sample(one: Steered, which: Any) -> Sample:
    dose = which(one.line.doses)
    told = next(s for s in one.at(SOURCE, dose).samples if s["role"] == "assistant")
    return Sample(
        title=f"{one.source} · assistant's prompt at dose {dose:g}",
        tags={"question": told["question"], "cosine": three_digits(one.cosine(SOURCE, dose))},
        segments=(("text", told["text"]),),
        reason="the first answer at this dose: not chosen",
    )
