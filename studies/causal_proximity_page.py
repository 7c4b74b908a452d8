"""The report of the three arms: every change from 0 %, what each merge did, and what one run cannot say."""

from typing import Any

from mechinterp.report import Headline, Page, Sample, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.wording import finite, percent
from studies.arms_analysis import FROM_ZERO, ArmsAnalysis
from studies.arms_figures import all_figures
from studies.arms_records import Point, interval
from studies.arms_tables import (
    beside_table,
    between_table,
    effect_table,
    headlines,
    kept_table,
    verdict,
    with_adapter,
    within_table,
)
from studies.causal_proximity_result import CausalProximity

ASKED = (
    "Does moving the assistant's representation towards a persona make that persona's marker leak to the"
    " assistant? The assistant is trained on answers in the source's voice, and at every checkpoint the"
    " centred cosine of source and assistant and the marker's rates are measured, on the merged model.\n\n"
    "Arm A: the source's marker adapter is merged first, then the training. Arm B: the training first, and at"
    " each of its checkpoints the marker on top. Arm C: as A, with answers in the assistant's own voice,"
    " which is training without convergence. 0 % is the model before any convergence training."
)


def page(config: Any, result: CausalProximity, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    first, *others = result.analyses
    figures = all_figures(first)
    for one in others:
        held = all_figures(one)
        name = f"{one.arm}-{one.adapter}".lower()
        figures |= {
            f"{figure}-{name}": held[figure] for figure in ("trajectories", "rates") if figure in held
        }
    return Page(
        title="Three arms: does proximity cause leakage?",
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result),
        headlines=[*_changes(first), *headlines(first)],
        confidence=_confidence(config),
        compute=spent(run),
        digests=used(run),
        figures=figures,
        tables=[
            *_tables(first), *kept_table(first), merge_table(result),
            *(table for one in others for table in _tables(one)),
        ],
        samples=_samples(result),
        caveats=tuple(caveats(config, result)),
        cannot_show=_cannot_show(config),
    )  # fmt: skip


def answer(result: CausalProximity) -> str:
    """In how many sources cosine and leakage rose in every arm; then what the analysis says of the first."""
    said = []
    for one in result.analyses:
        lines = [one.trajectories.line(one.arm, s, adapter=one.adapter) for s in one.trajectories.sources]
        held, layer = [line for line in lines if line], _middle(one)
        nearer = sum(line[-1].cosine(layer) > line[0].cosine(layer) for line in held)
        more = sum(line[-1].assistant_rate.rate > line[0].assistant_rate.rate for line in held)
        said.append(
            f"Arm {one.arm}{with_adapter(one.adapter)}: from 0 to 100 % the cosine of layer {layer} rose in"
            f" {nearer} of {len(held)} sources and leakage to the assistant in {more}"
            + (f" ({_told(held[0], layer)})" if len(held) == 1 else "")
        )
    return ". ".join([*said, *verdict(result.analyses[0])])


def _told(line: tuple[Point, ...], layer: int) -> str:
    start, end = line[0], line[-1]
    return (
        f"{start.source}: cosine {start.cosine(layer):.3f} to {end.cosine(layer):.3f}, leakage"
        f" {percent(start.assistant_rate.rate)} to {percent(end.assistant_rate.rate)}, own rate"
        f" {percent(start.source_rate.rate)} to {percent(end.source_rate.rate)}"
    )


def _tables(one: ArmsAnalysis) -> list[Table]:
    return [*effect_table(one), *within_table(one), *beside_table(one), *between_table(one)]


def merge_table(result: CausalProximity) -> Table:
    """Every merge with the source's marker on both sides."""
    rows = tuple(
        (key.partition("/")[2], one.adapter, f"{one.rank}, {one.alpha:g}, {'yes' if one.rslora else 'no'}",
         f"{one.scaling:.3g}", f"{one.delta_norm:.3g}", f"{one.before.found}/{one.before.total}",
         f"{one.after.found}/{one.after.total}", f"{one.kl:.1e}")
        for key, one in result.merges
    )  # fmt: skip
    columns = ("checkpoint", "adapter", "rank, alpha, rsLoRA", "scaling", "norm of the change",
               "marker before", "marker after", "KL, nats")  # fmt: skip
    note = (
        "The marker under the source's prompt on the first evaluation questions, adapter on and then merged,"
        " same draws; KL(merged || adapter on) at the end of the prompts. A larger fall than allowed stops"
        " the run."
    )
    return Table("Every merge, measured on both sides", columns, rows, note)


def caveats(config: Any, result: CausalProximity) -> list[str]:
    """What follows from this run's own numbers."""
    found = []
    for quality in result.trajectories.quality:
        which = f"The {quality.adapter} marker adapter of {quality.source}"
        if quality.pattern == "weak":
            found.append(
                f"{which} hardly writes the marker before any merge ({percent(quality.source_rate)} for its"
                " own source): arms A and C with it say nothing of leakage."
            )
        elif not quality.specific:
            found.append(
                f"{which} is {quality.pattern} before any merge: what reaches the assistant in arms A and C"
                " was there before."
            )
    gone = [r for r in result.analyses[0].retention if r.gone_at is not None]
    found += [
        f"Arm {r.arm}, {r.source} ({r.adapter} adapter): the source itself has lost the marker at {r.gone_at}"
        " %; leakage of 0 says nothing from there on."
        for r in gone
    ]
    total = len(result.trajectories.points[0].bystander_rates)
    found.append(
        f"The cosine is about the mean of these {total + 2} personas of the same model, so it moves when any"
        " of them does."
    )
    return found


def _changes(one: ArmsAnalysis) -> list[Headline]:
    """Leakage at 0 % and its change, the cosine's change at every layer."""
    rows = []
    for source in one.trajectories.sources:
        line = one.trajectories.line(one.arm, source, adapter=one.adapter)
        start = next((point for point in line if not point.percent), None)
        if start is None:
            continue
        rate = interval(start.assistant_rate)
        rows.append(
            Headline(f"{source} to assistant, arm {one.arm} at 0 %", rate.estimate, rate.low, rate.high,
                     rate.n, "answer", "Wilson 95 %", "", None)
        )  # fmt: skip
        for within in (w for w in one.within if (w.source, w.start, w.seed) == (source, FROM_ZERO, None)):
            found = within.association
            rows.append(
                Headline(f"{source}, layer {within.layer}: rho of cosine and leakage from 0 %",
                         finite(found.estimate), None, None,
                         found.n, "checkpoint", "", found.p_method, finite(found.p),
                         found.method)
            )  # fmt: skip
    return rows


def _setup(config: Any, result: CausalProximity) -> dict[str, Any]:
    n = len(result.checkpoints)
    asked = config.model_dump(mode="json")
    return {"model": result.model, "n": f"{n} checkpoints of {len(config.personas)} sources"} | {
        **{key: value for key, value in asked.items() if key != "model"}, **library_versions()
    }  # fmt: skip


def _samples(result: CausalProximity) -> list[Sample]:
    """Source and assistant at the first and last checkpoint of every arm."""
    found = []
    for key in dict.fromkeys((c.arm, c.source, c.adapter, c.run, c.seed) for c in result.checkpoints):
        mine = [c for c in result.checkpoints if (c.arm, c.source, c.adapter, c.run, c.seed) == key]
        for checkpoint in (mine[0], mine[-1]):
            for sample in checkpoint.measured.samples:
                where = f"arm {checkpoint.arm}, {checkpoint.source}, {checkpoint.percent} %"
                tags = {"prompt of": sample["persona"], "marker": "yes" if sample["marked"] else "no"}
                segments = (("question", sample["question"] + "\n"), ("answer", sample["text"]))
                kind = "with" if sample["marked"] else "without"
                reason = f"the first answer {kind} the marker under this prompt"
                found.append(Sample(f"{where} · {sample['persona']}", tags, segments, reason))
    return found


def _confidence(config: Any) -> Any:
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "one training run of each"
    return ("low", f"{len(config.personas)} sources, {seeds}, {config.n_questions} questions")


def _cannot_show(config: Any) -> tuple[str, ...]:
    said = ["Whether proximity causes leakage: training moves much else besides the cosine."]
    if len(config.seeds) < 2:
        said.append("Whether another training run gives the same: there is one seed.")
    if len(config.personas) < 4:
        said.append(f"Whether other sources give the same: there are {len(config.personas)}.")
    return tuple(said)


def _middle(one: ArmsAnalysis) -> int:
    layers = one.trajectories.layers
    return layers[len(layers) // 2]
