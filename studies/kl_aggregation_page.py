"""The report of the aggregation study: both students by position, ratios, and the published figures."""

from typing import Any

import torch

from mechinterp.divergence import Aggregate
from mechinterp.report import Headline, Page, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from studies.kl_aggregation_figures import by_position, by_ratio
from studies.kl_aggregation_result import AGGREGATES, CASES, KlAggregation

ASKED = (
    "A modified model drifts from its reference in two ways. A coherent trait moves a little mass at every"
    " position; a collapse, such as a token loop, is far off at a few positions and nowhere else. A penalty"
    " on one number for the whole completion should see the second.\n\n"
    "Which aggregate of the divergence per position, KL(student || reference), tells the two apart, and which"
    " lets a hinge max(0, aggregate - tau) fire on the loop? The distributions are synthetic: no model runs."
)
PUBLISHED: dict[Aggregate, tuple[float, float, float]] = {  # trait, loop, ratio (methods 11)
    "mean": (0.018, 0.379, 20.6),
    "rmse": (0.026, 1.527, 57.7),
    "p95": (0.049, 3.777, 77.0),
    "max": (0.095, 8.081, 85.4),
}


def page(config: Any, result: KlAggregation, run: Run) -> Page:
    return Page(
        title="Aggregates of the divergence per position",
        asked=ASKED,
        answer=answer(result),
        setup={"model": "none", **config.model_dump(mode="json"), **library_versions()},
        headlines=headlines(result),
        confidence=("high", "arithmetic on distributions that are made here; it says nothing of any model"),
        compute=spent(run),
        digests=used(run),
        figures={"positions": (by_position(result), ""), "ratios": (by_ratio(result), "")},
        tables=(published_table(config, result), firing_table(result)),
        caveats=(
            "A threshold is not comparable across aggregates: the same tau asks other things of each.",
            "p95 and max have a gradient at one or two positions, mean and rmse at all that diverge.",
            "p95 sees a loop only where it fills more than a twentieth of the completion.",
        ),
        cannot_show=("How real collapses look: how many positions they take, and how far off these are.",),
    )


def answer(result: KlAggregation) -> str:
    """Ratios of the first draw, and on which aggregates each threshold fires."""
    ratios = ", ".join(f"{how} {float(result.ratios(how)[0]):.1f}" for how in AGGREGATES)
    said = [f"In the draw of seed {result.seed} the loop lies above the trait by a factor of: {ratios}."]
    every = torch.stack([result.ratios(how) for how in AGGREGATES])
    growing = int((every.diff(dim=0) > 0).all(0).sum())
    lowest = int((every.argmin(0) == 0).sum())
    said.append(
        f"Over {every.shape[1]} draws the mean's ratio is the lowest in {lowest}; all four grow in this order"
        f" in {growing}."
    )
    for tau in result.thresholds:
        fired = [how for how in AGGREGATES if result.value(1, how) > tau]
        silent = [how for how in AGGREGATES if how not in fired]
        said.append(
            f"With tau = {tau:g} the hinge fires on the loop under {', '.join(fired) or 'no aggregate'}"
            + (f" and not under {', '.join(silent)}." if silent else ".")
        )
    false = [how for tau in result.thresholds for how in AGGREGATES if result.value(0, how) > tau]
    said.append("It fires on the trait under " + (", ".join(dict.fromkeys(false)) or "no aggregate") + ".")
    return " ".join(said)


def headlines(result: KlAggregation) -> list[Headline]:
    """The ratio of every aggregate in the first draw, then how often each hinge fires on the loop."""
    found = []
    for how in AGGREGATES:
        ratios = result.ratios(how)
        found.append(
            Headline(
                f"{how}: incoherent loop over coherent trait",
                float(ratios[0]),
                float(ratios.min()),
                float(ratios.max()),
                len(ratios),
                "draw",
                "lowest and highest over all draws",
                "",
                None,
                f"the estimate is the draw of seed {result.seed}",
            )
        )
    for tau in result.thresholds:
        for how in AGGREGATES:
            rate = result.fires(1, how, tau)
            said = f"{how}, tau = {tau:g}: draws in which the hinge fires on the loop"
            low, high = rate.low, rate.high
            found.append(Headline(said, rate.estimate, low, high, rate.n, "draw", "95 % Wilson", "", None))
    return found


def published_table(config: Any, result: KlAggregation) -> Table:
    """The figures of the source beside ours; no verdict where another construction was asked for."""
    comparable, rows = as_published(config), []
    for how in AGGREGATES:
        printed = PUBLISHED[how]
        here = (result.value(0, how), result.value(1, how), float(result.ratios(how)[0]))
        shown = tuple(f"{x:.{places}f}" for x, places in zip(here, (3, 3, 1), strict=True))
        agrees = shown == tuple(f"{x:.{places}f}" for x, places in zip(printed, (3, 3, 1), strict=True))
        verdict = ("yes" if agrees else "no") if comparable else "another construction"
        rows.append((how, *shown, *printed, verdict))
    columns = ("aggregate", "trait", "loop", "ratio", "published trait", "published loop", "published ratio")
    note = f"nats; the draw of seed {result.seed}"
    return Table("Reproduction", (*columns, "agrees to its digits"), tuple(rows), note)


def as_published(config: Any) -> bool:
    """Whether the first draw is the published construction."""
    free = ("thresholds", "n_draws")
    fields = type(config).model_fields.items()
    return all(getattr(config, name) == field.default for name, field in fields if name not in free)


def firing_table(result: KlAggregation) -> Table:
    """In how many draws each hinge fires, and at how many positions each aggregate has a gradient."""
    rows = []
    for place, case in enumerate(CASES):
        for how in AGGREGATES:
            fired = [result.fires(place, how, tau) for tau in result.thresholds]
            rates = [f"{round(rate.estimate * rate.n)} of {rate.n}" for rate in fired]
            rows.append((case, how, result.with_gradient(place, how), *rates))
    columns = ("case", "aggregate", "positions with a gradient", *(f"tau = {t:g}" for t in result.thresholds))
    return Table("How often the hinge fires", columns, tuple(rows), "draws with a barrier above zero")
