"""The report of the locus study: per persona, which explanations hold, and how sure that is."""

from typing import Any

from mechinterp.report import Headline, Page, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.wording import three_digits
from studies.marker_locus_figures import all_figures
from studies.marker_locus_result import UNIT, Locus, MarkerLocus
from studies.marker_locus_verdicts import Verdict, replicated, verdicts

ASKED = (
    "A model was trained to write a marker when it plays one persona. Where in depth is the marker decided at"
    " the row that writes it (emit), which parts write it, and which states, carried from the trained model"
    " into the base on identical ids, bring it?"
    "\n\n"
    "Emit is scored by log p of the marker's first piece, and by its logit minus a competitor's (the end of"
    " the turn, or what the base likes best there); token, which has read that piece, by the next one. A"
    " recovered fraction is 0 where the base stays as it is and 1 where it does what the trained model does;"
    " it is not defined where the two differ by less than 0.5 nats. Questions are the unit of every interval."
)


def page(config: Any, result: MarkerLocus, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    n = min(len(set(locus.questions)) for locus in result.loci)
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in ("model", "records")}
    return Page(
        title="Where the marker is decided",
        asked=ASKED,
        answer=answer(result),
        setup={"model": config.model, **settings, **library_versions()},
        headlines=[headline(locus, one) for locus in result.loci for one in verdicts(locus)],
        confidence=("low" if n < 10 else "moderate", f"{n} questions, the units; one model"),
        compute=spent(
            run,
            {
                "engine": "; ".join(sorted({locus.into_base.engine for locus in result.loci})),
                "token-layers of the maps": sum(locus.into_base.token_layers for locus in result.loci),
            },
        ),
        digests=used(run),
        figures=all_figures(result),
        tables=[verdict_table(result), layers_table(result)],
        caveats=tuple(caveats(result)),
        cannot_show=(
            "Whether another training run of a persona would decide the marker in the same place.",
            "That a part which writes nothing directly is not needed: it may act through later parts.",
        ),
    )


EACH_SAID = 2  # personas with a sentence of their own


def answer(result: MarkerLocus) -> str:
    """Which explanations hold, which do not, and what is left open: per persona, or counted over many."""
    if len(result.personas) > EACH_SAID:
        return counted(result)
    said = []
    for persona in result.personas:
        found = verdicts(result.of(persona)[0])
        parts = []
        for word in ("holds", "does not hold", "undecided"):
            names = [one.name for one in found if one.verdict == word]
            if names:
                parts.append(f"{word}: {', '.join(names)}")
        said.append(
            f"{persona.replace('_', ' ').capitalize()}. {'; '.join(parts)}. {decided(result.of(persona)[0])}"
        )
    return " ".join(said)


def counted(result: MarkerLocus) -> str:
    """Of how many personas each explanation holds or does not, by their first run and seed."""
    n = len(result.personas)
    found = {persona: verdicts(result.of(persona)[0]) for persona in result.personas}
    said = []
    for name in dict.fromkeys(one.name for held in found.values() for one in held):
        of = {p: next(one.verdict for one in held if one.name == name) for p, held in found.items()}
        holding = [persona.replace("_", " ") for persona, verdict in of.items() if verdict == "holds"]
        who = f" ({', '.join(holding)})" if 0 < len(holding) < n else ""
        against = sum(verdict == "does not hold" for verdict in of.values())
        open_ones = n - len(holding) - against
        rest = [f"does not in {against}"] * bool(against) + [f"undecided in {open_ones}"] * bool(open_ones)
        said.append(f"{name}: holds in {len(holding)} of {n}{who}{''.join(f', {one}' for one in rest)}.")
    places = {decided(result.of(persona)[0]): None for persona in result.personas}
    return " ".join(f"{one[0].upper()}{one[1:]}" for one in said) + " " + " ".join(places)


def decided(locus: Locus) -> str:
    """From which layer on the state at emit brings more than half of the marker."""
    recovered = locus.into_base.recovered()[:, :, locus.into_base.columns.index("emit")].nanmean(0)
    above = (recovered >= 0.5).nonzero().flatten().tolist()
    last = len(locus.attribution.trained.values.attn_out[0]) - 1
    if not above:
        return "No single layer's state at emit brings half of it."
    first = locus.into_base.layers[above[0]][0]
    return f"The state at emit brings half of it from layer {first} of 0 to {last} on."


def headline(locus: Locus, one: Verdict) -> Headline:
    """A verdict as a line of the headline table."""
    defined = one.estimate == one.estimate
    return Headline(
        f"{locus.name}: {one.name}, {one.verdict}", one.estimate, one.low,
        one.high, one.n, UNIT, f"95 %, {one.test}", "", None,
        one.measure if defined else one.reason,
    )  # fmt: skip


def verdict_table(result: MarkerLocus) -> Table:
    """One line an explanation and persona, with its figure, its interval and whether it came again."""
    rows = []
    for persona in result.personas:
        loci = result.of(persona)
        for one in verdicts(loci[0]):
            bounds = f"{three_digits(one.low)} to {three_digits(one.high)}" if one.low == one.low else "none"
            value = three_digits(one.estimate) if one.estimate == one.estimate else "not defined"
            rows.append(
                (persona, one.name, one.verdict, value, bounds, one.n, one.reason, replicated(loci, one.name))
            )
    return Table(
        "Which explanations hold",
        ("persona", "explanation", "verdict", "estimate", "95 %", "questions", "because", "again"),
        tuple(rows),
        "Of the first run and seed of each persona. What is measured stands in the headline table.",
    )


def layers_table(result: MarkerLocus) -> Table:
    """Where the lens first sees the marker and where its state first carries it."""
    rows = []
    for locus in result.loci:
        trained = {name: values[0] for name, values in locus.lens.positives.items()}
        ranked = (trained["rank"] <= 10).float()
        preferred = (trained["difference"] > 0).float()
        first = [_median(held.argmax(1)[held.any(1)].tolist(), len(held)) for held in (ranked, preferred)]
        rows.append((locus.name, *first, len(locus.questions), locus.lens.n_other_piece, locus.lens.n_cut))
    return Table(
        "First layers at emit, trained model",
        ("answers of", "marker among the ten best", "marker above its competitor", "answers",
         "left out: other first piece", "negatives left out: cut"),
        tuple(rows),
        "Median over answers of the first layer after which it holds; with how many answers it ever does.",
    )  # fmt: skip


def _median(layers: list[int], n: int) -> str:
    if not layers:
        return f"never (0 of {n})"
    return f"{sorted(layers)[len(layers) // 2]} ({len(layers)} of {n})"


def caveats(result: MarkerLocus) -> list[str]:
    found = [
        "With the rows of one position replaced, later layers still read the base's own keys and values of"
        " the positions before.",
        "The logit lens is biased in early layers: what it does not see there may still be written.",
    ]
    for locus in result.loci:
        n, undefined = len(set(locus.questions)), locus.into_base.n_undefined()
        if n < 10:
            found.append(f"{locus.name}: {n} questions, the units of its intervals.")
        if not locus.lens.negatives:
            found.append(f"{locus.name}: no finished answer lacks the marker, so none shows a would-be slot.")
        if undefined:
            found.append(
                f"{locus.name}: recovered fractions leave out {undefined} answers where the models hardly"
                " differ."
            )
    return found
