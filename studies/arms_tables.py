"""Headlines and tables of a three-arm analysis: what its audit and the study itself both show."""

import math

from mechinterp.report import Headline, Table
from mechinterp.wording import finite
from studies.arms_analysis import FROM_FIRST, ArmsAnalysis
from studies.arms_effects import ALIKE, PERCENTAGE_POINTS
from studies.arms_records import ORIGINAL, interval


def headlines(one: ArmsAnalysis) -> list[Headline]:
    """Leakage of every source at the last checkpoint, rho within and between sources, breadth."""
    rows: list[Headline] = []
    for source in one.trajectories.sources:
        point = one.trajectories.at(one.arm, source, one.percent, adapter=one.adapter)
        if point is not None:
            rate = interval(point.assistant_rate)
            bounds = (rate.low, rate.high) if rate.n else (None, None)
            rows.append(
                Headline(
                    f"{source} to assistant, arm {one.arm} at {one.percent} %", rate.estimate, *bounds,
                    rate.n or 1, "answer" if rate.n else "rate", "Wilson 95 %" * bool(rate.n), "", None,
                    rate.note,
                )
            )  # fmt: skip
    for trend in one.trends:
        said = f"layer {trend.layer}: mean rho within sources, from {_start(trend.start)}"
        test = f"sign test over sources ({trend.n_negative} of {trend.n_sources} negative)"
        rows.append(
            Headline(said, trend.mean, None, None, trend.n_sources, "source", "", test, finite(trend.p))
        )
    for predictor in one.predictors:
        found = predictor.association
        rows.append(
            Headline(
                f"{predictor.name}: rho with leakage over sources", finite(found.estimate), None, None,
                found.n, "source", "", found.p_method if math.isfinite(found.p) else "", finite(found.p),
                predictor.note if math.isfinite(found.p) else found.method,
            )
        )  # fmt: skip
    return rows


def verdict(one: ArmsAnalysis) -> list[str]:
    """What it comes to, in words made of its numbers."""
    said, n = [], len(one.trajectories.sources)
    for trend in one.trends:
        if trend.start == FROM_FIRST:
            p = f", sign test p = {trend.p:.3f}" if math.isfinite(trend.p) else ""
            said.append(
                f"At layer {trend.layer} the rho of cosine and leakage is negative within {trend.n_negative}"
                f" of {trend.n_sources} sources{p}."
            )
    if one.beside:
        count = sum(b.alike for b in one.beside)
        said.append(f"Bystanders leak like the assistant in {count} of {len(one.beside)} sources.")
    smallest = 2 / math.factorial(n) if n > 2 else math.nan
    if math.isfinite(smallest):
        said.append(f"With {n} sources no test between them can reach p < {smallest:.2g}.")
    return said


def effect_table(one: ArmsAnalysis) -> list[Table]:
    """Every change from 0 % and from the first checkpoint."""
    rows = tuple(
        (e.source, e.measure, f"{e.start} %", f"{e.end} %", f"{e.before:.3f}", f"{e.after:.3f}",
         f"{e.change:+.3f}")
        for e in one.effects
    )  # fmt: skip
    columns = ("source", "measure", "from", "to", "before", "after", "change")
    title = f"Arm {one.arm}{with_adapter(one.adapter)}: changes over training"
    return [Table(title, columns, rows, "one run a line unless seeds say otherwise")] * bool(rows)


def within_table(one: ArmsAnalysis) -> list[Table]:
    """Cosine and assistant leakage over each source's checkpoints, from 0 % and from the first after it."""
    rows = tuple(
        (w.source, w.layer, _start(w.start), _signed(w.association.estimate), _p(w.association.p),
         w.association.n, "all" if w.seed is None else f"run {w.run}, seed {w.seed}",
         "; ".join(part for part in (w.association.method, w.association.p_method) if part))
        for w in one.within
    )  # fmt: skip
    columns = ("source", "layer", "from", "rho", "p", "checkpoints", "runs", "how")
    title = f"Arm {one.arm}{with_adapter(one.adapter)}: cosine and leakage within each source"
    note = "p counts every ordering of the checkpoints as alike, which those of one training are not"
    return [Table(title, columns, rows, note)] * bool(rows)


def between_table(one: ArmsAnalysis) -> list[Table]:
    """Over sources: signs, correlations at the last checkpoint, what all checkpoints together give, ICC."""
    every = one.to_dataframe().to_dict("records")
    held = [row for row in every if not row["figure"].startswith("within ")]
    rows = tuple(
        (row["figure"], "" if row["layer"] != row["layer"] else int(row["layer"]), _signed(row["estimate"]),
         _p(row["p"]), f"{row['n']} {row['unit']}s", row["note"])
        for row in held
    )  # fmt: skip
    columns = ("figure", "layer", "estimate", "p", "n", "what it is")
    title = f"Arm {one.arm}{with_adapter(one.adapter)}: over sources, at {one.percent} %"
    return [Table(title, columns, rows)] * bool(rows)


def beside_table(one: ArmsAnalysis) -> list[Table]:
    """Whether the marker goes to the assistant or to everyone, at the last checkpoint."""
    rows = tuple(
        (b.source, f"{b.assistant:.3f}", f"{b.bystander_mean:.3f}", f"{b.lowest:.3f}", f"{b.highest:.3f}",
         b.n_bystanders, f"{b.difference:+.1f}", "yes" if b.alike else "no")
        for b in one.beside
    )  # fmt: skip
    columns = ("source", "assistant", "bystander mean", "lowest", "highest", "bystanders", "difference, pp",
               "alike")  # fmt: skip
    title = f"Arm {one.arm}{with_adapter(one.adapter)}: the assistant beside bystanders, at {one.percent} %"
    note = f"alike: within {PERCENTAGE_POINTS * ALIKE:g} percentage points"
    return [Table(title, columns, rows, note)] * bool(rows)


def kept_table(one: ArmsAnalysis) -> list[Table]:
    """What each arm kept."""
    rows = tuple(
        (r.source, r.arm, r.adapter, r.pattern, "not measured" if math.isnan(r.before) else f"{r.before:.3f}",
         f"{r.first_rate:.3f}", f"{r.last_rate:.3f}", "" if r.gone_at is None else f"{r.gone_at} %")
        for r in one.retention
    )  # fmt: skip
    columns = ("source", "arm", "adapter", "label", "at 0 %", "first", "last", "gone at")
    return [Table("The source's own rate in every arm", columns, rows)]


def with_adapter(adapter: str) -> str:
    """Which adapter an arm started from, where it is not the one that was given."""
    return "" if adapter == ORIGINAL else f", {adapter} adapter"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "not defined"


def _p(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def _start(start: str) -> str:
    return f"the {start}" if start == FROM_FIRST else start
