"""The report of the divergence study, made from the same objects as its figures."""

from typing import Any

from mechinterp.report import Headline, Page, Sample, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.stats.sources import SourceAssociation
from mechinterp.wording import p_value, three_digits
from studies.output_divergence_figures import all_figures
from studies.output_divergence_result import COSINE, JS, OutputStudy

ASKED = (
    "A marker trained into one persona leaks to others. Can one tell from the base model alone to whom? Its"
    " answers in every persona's voice are put, token by token, behind every persona's prompt, and the"
    " Jensen-Shannon divergence of the next-token distributions is averaged. Beside it stands the cosine of"
    " the personas' centroids, centred on two reference sets, for the set is part of the definition.\n\n"
    "Pairs of one source share that source: the pooled figure counts them as independent and is labelled"
    " naive. Within sources, between sources and without each source stand beside it."
)


def page(config: Any, result: OutputStudy, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    return Page(
        title="Output divergence and leakage",
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result),
        headlines=headlines(result),
        confidence=confidence(result),
        compute=spent(run),
        digests=used(run),
        figures=all_figures(result),
        tables=[criteria_table(result), comparison_table(result), seed_table(result), *source_tables(result)],
        samples=[_sample(text) for text in result.texts],
        caveats=tuple(caveats(result)),
        cannot_show=(
            f"Whether another model's personas lie alike: only {result.model} was read.",
            "Whether distance causes leakage: both are measured, neither is moved.",
        ),
    )


def answer(result: OutputStudy) -> str:
    """JS and both cosines at every level, in a few sentences."""
    first = result.comparisons[result.sets[0]]
    js = first.spearman[JS]
    said = [
        f"JS against leakage over {js.n_pairs} directed pairs of {js.n_sources} sources: rho"
        f" {_signed(js.pooled.estimate)} pooled (naive), {_signed(js.mean_within)} on average within a source"
        f" ({p_value(js.within_p)}), {_signed(js.low)} to {_signed(js.high)} without one source each."
    ]
    for name, found in result.comparisons.items():
        one = found.spearman[COSINE]
        beyond = {each.predictor: each for each in found.beyond}
        partial = f"; JS given it {_signed(beyond[JS].partial.estimate)}" if JS in beyond else ""
        said.append(
            f"Cosine of layer {result.layer} centred on {name}: {_signed(one.pooled.estimate)} pooled,"
            f" {_signed(one.mean_within)} within{partial}."
        )
    if js.constant:
        said.append(f"Constant, without a rho within: {', '.join(js.constant)}.")
    return " ".join(said)


def _signed(value: float) -> str:
    return "not defined" if value != value else f"{'+' if value > 0 else ''}{three_digits(value)}"


def headlines(result: OutputStudy) -> list[Headline]:
    """Every predictor pooled, within and between sources; then what each adds to the other."""
    lines: list[Headline] = []
    first = result.comparisons[result.sets[0]]
    for name, one in first.spearman.items():
        if name != COSINE:
            lines += _levels(name, one)
    for name, found in result.comparisons.items():
        lines += _levels(f"cosine, layer {result.layer}, centred on {name}", found.spearman[COSINE])
    for name, found in result.comparisons.items():
        for one in found.beyond:
            lines.append(
                Headline(
                    f"centred on {name}: {one.predictor} given {one.given}, partial rho",
                    one.partial.estimate,
                    None,
                    None,
                    one.partial.n,
                    "pair",
                    "",
                    one.partial.p_method,
                    one.partial.p,
                    f"naive; delta R² {three_digits(one.added.delta_r2)}",
                )  # fmt: skip
            )
    return lines


def _levels(name: str, one: SourceAssociation) -> list[Headline]:
    """One predictor pooled, within, between sources, and whole sources exchanged."""

    def line(what: str, value: float, n: int, unit: str, test: str, p: float, note: str = "") -> Headline:
        return Headline(f"{name}: {what}", value, None, None, n, unit, "", test, p, note)

    left = f"without a rho, constant: {', '.join(one.constant)}" if one.constant else ""
    pooled, between, naive = one.pooled, one.between, "naive: pairs of one source are not independent"
    whole = "the same rho against whole sources exchanged"
    return [
        line("pooled rho", pooled.estimate, one.n_pairs, "pair", pooled.p_method, pooled.p, naive),
        line(
            "pooled rho, by blocks", pooled.estimate, one.n_sources, "source", one.block_method,
            one.block_p, whole,
        ),
        line(
            "mean rho within", one.mean_within, one.n_sources - one.n_constant, "source", one.within_method,
            one.within_p, left,
        ),
        line("between sources", between.estimate, between.n, "source", between.p_method, between.p),
    ]  # fmt: skip


def confidence(result: OutputStudy) -> Any:
    one = result.comparisons[result.sets[0]].spearman[JS]
    n = len(set(result.divergence.questions))
    return ("low", f"{one.n_sources} sources, {n} questions, {len(result.leakage.seeds)} seed, one model")


def caveats(result: OutputStudy) -> list[str]:
    """What follows from this run's own numbers."""
    one = result.comparisons[result.sets[0]].spearman[JS]
    labels = {s: result.leakage.standing(s).label for s in result.leakage.sources}
    unspecific = [f"{s} ({label})" for s, label in labels.items() if label not in ("specific", "narrow")]
    found = [
        f"{one.n_pairs} pairs are {one.n_sources} clusters: no p over whole sources can be very small.",
        "Where targets differ in how easily anyone's marker reaches them, the p within sources is too small;"
        " that over blocks of whole sources holds.",
        f"Layer {result.layer} stands against JS because it is the middle one; the best layer of the bars is"
        " selected by its result.",
    ]
    if one.constant:
        found.append(
            f"{one.n_constant} of {one.n_sources} sources leak alike to everyone: {', '.join(one.constant)}."
        )
    if unspecific:
        found.append(f"Adapters that are not specific: {', '.join(unspecific)}.")
    if result.divergence.skipped:
        found.append(f"{result.divergence.skipped} answers were too short and left out.")
    if result.leakage.counted == "recorded":
        n = result.leakage.rate(result.leakage.sources[0], result.leakage.targets[0]).n
        found.append(
            f"Leakage is that of the adapters' records ({n} answers a direction), not sampled in this run."
        )
    return found


def criteria_table(result: OutputStudy) -> Table:
    """Every criterion with its value, bar and verdict."""
    held = [*result.discrimination.criteria, *result.per_question.criteria]
    for one in result.redundancy.values():
        held += list(one.criteria)
    rows = tuple((c.name, c.value, c.sense, c.threshold, _verdict(c.passed), c.decision) for c in held)
    return Table(
        "Criteria", ("criterion", "value", "sense", "threshold", "verdict", "what was done"), rows,
        "set before; the study goes on whatever they say, and says so",
    )  # fmt: skip


def _verdict(passed: bool | None) -> str:
    return "not defined" if passed is None else "met" if passed else "not met"


def comparison_table(result: OutputStudy) -> Table:
    """Every association under every centring set."""
    table = result.to_dataframe()[["centring", "predictor", "figure", "estimate", "p", "n", "unit", "note"]]
    rows = tuple(tuple(None if v != v else v for v in row) for row in table.itertuples(index=False))
    return Table("All associations with leakage", tuple(table.columns), rows, "naive figures are labelled so")


def seed_table(result: OutputStudy) -> Table:
    """Pooled rho with the rates of each seed alone."""
    seeds = [str(seed) for seed in result.leakage.seeds]
    rows = []
    for name, held in result.by_seed.items():
        signs = {held[seed] > 0 for seed in seeds}
        same = "one seed" if len(seeds) == 1 else "same sign" if len(signs) == 1 else "signs differ"
        rows.append((name, *(held[seed] for seed in seeds), same))
    return Table(
        "Pooled rho by seed of the rates", ("predictor", *seeds, "replicated"), tuple(rows),
        "replicated needs the same sign in every seed",
    )  # fmt: skip


def source_tables(result: OutputStudy) -> list[Table]:
    """What each source's adapter and the base model say of its leakage to the assistant, over sources."""
    one = result.specificity
    said = f"held out of the bystanders: {', '.join(one.held_out)}; the unit is the source"
    lines = one.to_dataframe()
    rows = tuple(tuple(row) for row in lines.itertuples(index=False))
    tables = [Table("Leakage to the assistant by source", tuple(lines.columns), rows, said)]
    held = [
        (name, "rho", a.estimate, a.p, a.n, a.p_method, *one.without[name])
        for name, a in one.spearman.items()
    ]
    held += [
        (name, "partial rho", a.estimate, a.p, a.n, a.p_method, None, None) for name, a in one.partial.items()
    ]
    columns = ("predictor", "figure", "estimate", "p", "n sources", "test", "lowest without one", "highest")
    clean = tuple(tuple(None if v != v else v for v in row) for row in held)
    return [*tables, Table("Specificity, cosine and JS over sources", columns, clean, one.note)]


def _setup(config: Any, result: OutputStudy) -> dict[str, Any]:
    chosen = config.model_dump(mode="json")
    n = f"{len(result.divergence.writers)} answers, {len(result.leakage.pairs())} pairs"
    batches = ", ".join(map(str, result.divergence.batch_sizes))
    return {"model": config.model, "n": n, "prompts a pass": batches, **chosen, **library_versions()}


def _sample(text: dict[str, Any]) -> Sample:
    return Sample(
        title=f"{text['pair']} pair: {text['persona']}",
        tags={"question": text["question"], "JS of the pair": three_digits(text["js"])},
        segments=(("text", text["text"]),),
        reason="the pair with the lowest or highest JS, on the first question",
    )
