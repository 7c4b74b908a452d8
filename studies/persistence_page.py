"""The report of the persistence study, made from the same objects as its figures."""

from typing import Any

from mechinterp.report import Headline, Page, Sample
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.stats.paired import sign_flip
from studies.persistence_figures import COHERENT, all_figures
from studies.persistence_result import Outcome, Persistence, over_runs

ASKED = (
    "A role's vector is added to the residual stream while a number of tokens is generated; then the"
    " steering stops and the model goes on freely. Does the persona stay, and for how long? The measure is"
    " the projection of the stream on the role's vector at the row that decides each free token. The floor"
    " is the same prompt never steered, the ceiling the same question to a model that is told the role;"
    " normalised persistence is 0 at the floor and 1 at the ceiling. A random direction of equal norm and"
    " another role's vector show what any push of that size would do."
)


def page(config: Any, result: Persistence, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    steered = [c for o in result.outcomes for arm, c in o.curves.items() if arm in ("steered", "random")]
    return Page(
        title="Persistence of a steered persona",
        asked=ASKED,
        answer=answer(result),
        setup=_setup(config, result, run),
        headlines=[line for outcome in result.outcomes for line in headlines(result, outcome)],
        confidence=confidence(result),
        compute=spent(
            run,
            {
                "generated tokens, steered and random arms": sum(int(c.isfinite().sum()) for c in steered),
            },
        ),
        digests=used(run),
        figures=all_figures(result),
        samples=[_shown(result, sample) for sample in result.samples],
        caveats=tuple(caveats(config, result)),
        cannot_show=tuple(_cannot_show(config, result)),
    )


def answer(result: Persistence) -> str:
    """One sentence a finding: how much of the way to the ceiling stays, and against which arms it holds."""
    kept = [(o, o.interval("steered"), o.against("floor"), o.against("random")) for o in result.outcomes]
    above = [o for o, _, floor, _ in kept if floor.p < 0.05 and floor.estimate > 0]
    beyond = [o for o, _, _, random in kept if random.p < 0.05 and random.estimate > 0]
    defined = [found.estimate for _, found, _, _ in kept if found.estimate == found.estimate]
    share = (
        f"{min(defined):.2f} to {max(defined):.2f}"
        if len(defined) > 1
        else "".join(f"{d:.2f}" for d in defined)
    )
    start = (
        f"After the release the steered text keeps {share} of the way from floor to ceiling. "
        if defined
        else ""
    )
    return (
        f"{start}It stays above the unsteered floor in {len(above)} of {len(kept)} conditions, and above a"
        f" random direction of equal norm in {len(beyond)} of {len(kept)} (paired sign flips over"
        f" {len(result.seeds)} runs each, p < 0.05, uncorrected)."
    )


def headlines(result: Persistence, outcome: Outcome) -> list[Headline]:
    """Persistence, how much of it a random direction does not give, half-life, and coherence."""
    where = _where(result, outcome)
    why = "" if outcome.ceiling > outcome.floor else "being told the role does not raise the projection here"
    kept, floor = outcome.interval("steered"), outcome.against("floor")
    ours, random = (outcome.persistence[arm] for arm in ("steered", "random"))
    more, test = over_runs(ours - random, "bootstrap"), sign_flip(ours - random)
    above, beyond = f"above the floor: {floor.method}", f"paired: {test.method}"
    lines = [
        _line(f"{where}: persistence", kept.estimate, kept, kept.n, above, floor.p, why or kept.note),
        _line(
            f"{where}: persistence beyond a random push",
            test.estimate,
            more,
            more.n,
            beyond,
            test.p,
            why or more.note,
        ),
    ]
    half = outcome.half_life
    excess = "excess over the floor, sign flips"
    lines.append(
        _line(f"{where}: half-life (tokens)", half.estimate, half, half.n, excess, half.p_excess, half.reason)
    )
    if outcome.coherence.get("steered"):
        kl = over_runs(outcome.coherence["steered"]["p95"], "bootstrap")
        frontier = f"{COHERENT:g} nat is the coherence frontier"
        lines.append(
            _line(f"{where}: p95 KL while steered (nats)", kl.estimate, kl, kl.n, "", None, frontier)
        )
    return lines


def _line(
    quantity: str, estimate: float, bounds: Any, n: int, test: str, p: float | None, note: str
) -> Headline:
    return Headline(
        quantity, estimate, bounds.low, bounds.high, n, "run", "95 % bootstrap over runs", test, p, note
    )


def _where(result: Persistence, outcome: Outcome) -> str:
    """The role, and of the rest what differs between conditions."""
    said = {
        "layer": lambda o: f"layer {o.condition.layer}",
        "strength": lambda o: f"{o.strength_in_norms:.2g} norms",
        "cache": lambda o: f"{o.condition.cache} cache",
        "question": lambda o: f"question {o.condition.question}",
    }
    varying = [
        say for name, say in said.items() if len({getattr(o.condition, name) for o in result.outcomes}) > 1
    ]
    return ", ".join([result.names[outcome.condition.role], *(say(outcome) for say in varying)])


def caveats(config: Any, result: Persistence) -> list[str]:
    """What follows from this run's own numbers."""
    found = []
    n = len(result.seeds)
    if n < 20:
        found.append(f"Small n: {n} runs an arm; the smallest p that sign flips can give is {2 / 2**n:.2g}.")
    if config.n_questions == 1:
        found.append(
            "One question: runs differ by their draws alone, so nothing is said about other questions."
        )
    found.append(
        f"{len(result.outcomes)} conditions with two tests each; their p values are not corrected for number."
    )
    broken = [
        o
        for o in result.outcomes
        if o.coherence and float(o.coherence["steered"]["p95"].nanmean()) > COHERENT
    ]
    if broken:
        found.append(
            f"In {len(broken)} of {len(result.outcomes)} conditions the steered text lies beyond the"
            f" coherence frontier (p95 KL above {COHERENT:g} nat): what persists there may be broken text."
        )
    missed = [o.calibration for o in result.outcomes if o.calibration and not o.calibration.converged]
    if missed:
        reached = ", ".join(f"{c.reached:.2g} instead of {c.asked:g}" for c in missed)
        found.append(f"Calibration did not reach the asked KL in {len(missed)} conditions (nats: {reached}).")
    undefined = [result.names[o.condition.role] for o in result.outcomes if not o.ceiling > o.floor]
    if undefined:
        found.append(
            f"Persistence is undefined for {', '.join(undefined)}: the ceiling is not above the floor."
        )
    stopped = sum(o.n_stopped["steered"] for o in result.outcomes)
    capped = len(result.outcomes) * n - stopped
    found.append(
        f"{capped} of {capped + stopped} steered runs hit the cap of {config.n_free} free tokens;"
        f" {stopped} ended of themselves."
    )
    if config.suppress != "neither":
        found.append(
            f"End-of-turn ids were suppressed ({config.suppress}): a text forced on is another text."
        )
    found.append("Bands in the curves are pointwise; that a curve leaves a band somewhere is no test.")
    return found


def confidence(result: Persistence) -> Any:
    n, questions = len(result.seeds), len({o.condition.question for o in result.outcomes})
    if n < 20 or questions < 3:
        return (
            "low",
            f"{n} runs an arm on {questions} question{'s' * (questions > 1)}, one model, one set of seeds",
        )
    return ("moderate", f"{n} runs an arm on {questions} questions, one model")


def _cannot_show(config: Any, result: Persistence) -> list[str]:
    return [
        f"Whether another model does the same: only {config.model} was run.",
        f"Whether another layer persists longer: layers {', '.join(map(str, config.layers))} were steered.",
        f"Persistence past {config.n_free} free tokens, and half-lives much longer than that.",
        f"Differences between roles: {len(result.roles)} roles are too few to generalise over roles.",
    ]


def _setup(config: Any, result: Persistence, run: Run) -> dict[str, Any]:
    chosen = config.model_dump(mode="json")
    return {
        "model": config.model,
        "backend": config.backend,
        "roles": ", ".join(result.names[role] for role in result.roles),
        "steered site": f"{result.site} of layers {', '.join(map(str, config.layers))}",
        "coefficients": ", ".join(f"{o.coefficient:.3g}" for o in result.outcomes),
        "strength in residual norms": ", ".join(f"{o.strength_in_norms:.3g}" for o in result.outcomes),
        "seeds": ", ".join(map(str, result.seeds)),
        **{name: chosen[name] for name in chosen if name not in ("model", "backend", "roles", "seed")},
        **library_versions(),
    }


def _shown(result: Persistence, sample: dict[str, Any]) -> Sample:
    value = sample["persistence"]
    return Sample(
        title=f"{result.names[sample['role']]} · {sample['arm']}",
        tags={
            "condition": sample["condition"],
            "seed": sample["seed"],
            **({} if value is None else {"persistence": f"{value:.2f}"}),
        },
        segments=(
            ("steered" if sample["arm"] == "steered" else "unsteered", sample["steered_text"]),
            ("free", sample["free_text"]),
        ),
        reason=sample["reason"],
    )
