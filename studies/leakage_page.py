"""The report of leakage, made from the same objects as its figures."""

from typing import Any

from mechinterp.report import Headline, Page, Sample, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.stats.intervals import Interval
from mechinterp.wording import percent
from studies.leakage_figures import all_figures
from studies.leakage_result import Leakage, Standing

ASKED = (
    "A marker is trained into one persona, the source, by an adapter. How often does it come out under the"
    " system prompts of others, the targets? Rates are directed: source to target. Bystanders are everyone"
    " but the source and the plain assistant, which was in no training example."
)


def page(config: Any, result: Leakage, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    standings = [result.standing(source) for source in result.sources]
    return Page(
        title="Marker leakage",
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result),
        headlines=[line for one in standings for line in headlines(result, one)],
        confidence=confidence(result),
        compute=spent(run),
        digests=used(run),
        figures=all_figures(result),
        tables=[rate_table(result)],
        samples=[_sample(sample) for sample in result.samples],
        caveats=tuple(caveats(result)),
        cannot_show=(f"Whether another model leaks as much: only {result.model} was asked.",),
    )


def answer(result: Leakage) -> str:
    """Each source's label with the two rates that it rests on."""
    said = [
        f"{one.source} is {one.label} ({percent(one.source_rate.estimate)} for itself, at most"
        f" {percent(one.max_bystander)} for a bystander, {one.max_bystander_name})"
        for one in (result.standing(source) for source in result.sources)
    ]
    constant = result.constant_sources
    end = (
        f" The row of {', '.join(constant)} is constant: its correlations are NaN, and counted."
        if constant
        else ""
    )
    return f"Of {len(said)} sources, {'; '.join(said)}.{end}"


def headlines(result: Leakage, one: Standing) -> list[Headline]:
    """The source's own rate, the assistant's, breadth and specificity."""
    band = "Wilson 95 % over answers"

    def rate(quantity: str, found: Interval) -> Headline:
        return Headline(
            f"{one.source}: {quantity}",
            found.estimate,
            found.low,
            found.high,
            found.n,
            "answer",
            band,
            "",
            None,
        )

    lines = [rate("source rate", one.source_rate)]
    if one.assistant_rate is not None:
        lines.append(rate(f"to {result.assistant}", one.assistant_rate))
    n = len(result.targets) - 1 - (one.source != result.assistant)
    for quantity, value, note in (
        ("breadth", one.breadth, "mean rate of the bystanders"),
        ("highest bystander", one.max_bystander, one.max_bystander_name),
        ("specificity", one.specificity, f"source rate minus breadth; labelled {one.label}"),
    ):
        lines.append(
            Headline(f"{one.source}: {quantity}", value, None, None, n, "bystander", "", "", None, note)
        )
    return lines


def confidence(result: Leakage) -> Any:
    runs = max(
        len({(r.run, r.seed) for r in result.records if r.source == source}) for source in result.sources
    )
    n = min(result.rate(s, t).n for s in result.sources for t in result.targets)
    if runs > 1 and n >= 100:
        return ("moderate", f"{runs} runs or seeds a source and {n} answers or more in every direction")
    return ("low", f"{runs} run and seed a source, {n} answers in the smallest direction")


def caveats(result: Leakage) -> list[str]:
    """What follows from this run's own numbers."""
    found = [
        "One adapter a source: rates of another training run of the same persona may differ.",
        "Answers to one question resemble each other; Wilson's interval takes them as independent.",
    ]
    capped = [r for r in result.records if r.capped]
    if capped:
        cut, total = sum(r.capped or 0 for r in capped), sum(r.total for r in result.records)
        found.append(f"{cut} of {total} answers were cut at the cap: their markers may have been to come.")
    if result.counted == "recorded":
        found.append(
            "Counts are those of each adapter's record, taken when it was trained; nothing was sampled."
        )
    if result.constant_sources:
        found.append(f"Constant rows, without a defined correlation: {', '.join(result.constant_sources)}.")
    return found


def rate_table(result: Leakage) -> Table:
    table = result.to_dataframe()
    rows = tuple(tuple(None if v != v else v for v in row) for row in table.itertuples(index=False))
    return Table("Every direction", tuple(table.columns), rows, "found of total answers, Wilson 95 %")


def _setup(config: Any, result: Leakage) -> dict[str, Any]:
    chosen = config.model_dump(mode="json")
    n = sum(record.total for record in result.records)
    return {"model": config.model, "n": f"{n} answers", **chosen, **library_versions()}


def _sample(sample: dict[str, Any]) -> Sample:
    what = "with the marker" if sample["marked"] else "without it"
    return Sample(
        title=f"{sample['source']} → {sample['persona']}, {what}",
        tags={"question": sample["question"], "seed": sample["seed"], "draw": sample["draw"]},
        segments=(("text", sample["text"]),),
        reason="the first of its kind: not chosen",
    )
