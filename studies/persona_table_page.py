"""The report of the table of personas, made from the same objects as its figures."""

import math
from typing import Any

from mechinterp.report import Headline, Page, Table
from mechinterp.results import library_versions
from mechinterp.runs import Run, spent, used
from mechinterp.wording import p_value, three_digits
from studies.output_divergence_result import JS
from studies.persona_table_figures import SAID, all_figures, main_columns
from studies.persona_table_result import COUPLINGS, PersonaTable

ASKED = (
    "Each study says something of every persona whose marker was trained: prefix completion how much the"
    " prompt and how much the answer's content bring the marker out, attention whether the deciding row looks"
    " at the system prompt by training, leakage how far the marker spreads, divergence how near the persona"
    " lies to others in the base model.\n\n"
    "Do these go together over personas? Finished runs are read again and joined, one row a persona. A"
    " persona is the unit, and there are few: nothing is correlated over fewer than four."
)


def page(config: Any, result: PersonaTable, run: Run) -> Page:
    """Asked, answered, shown, and what must be said against it."""
    return Page(
        title="Personas over the studies",
        asked=ASKED,
        answer=answer(result),
        setup={"model": result.model, "n": f"{len(result.personas)} personas",
               **config.model_dump(mode="json"), **library_versions()},
        headlines=headlines(result),
        confidence=("low", f"{len(result.personas)} personas of one base model; nothing was varied"),
        compute=spent(run),
        digests=used(run),
        figures=all_figures(result),
        tables=[row_table(result), *study_tables(result), missing_table(result), together_table(result)],
        caveats=tuple(caveats(result)),
        cannot_show=(
            "Whether one of these brings another about: all are measured, none is moved.",
            "Whether other personas, or another base model, behave alike.",
        ),
    )  # fmt: skip


LARGEST = 5  # associations in the short answer; a table has them all


def answer(result: PersonaTable) -> str:
    """How many personas and values, and the strongest of the associations with what that is worth."""
    told = (
        f"{len(result.personas)} personas over {len(result.studies)} studies ({', '.join(result.studies)})."
    )
    lacking = sum(len(held) for held in result.missing().values())
    said = [told]
    if lacking:
        said.append(f"{lacking} of {len(result.entries)} values are not there; a table says why.")
    defined = [one for one in result.together if not math.isnan(one.rho.estimate)]
    if not result.together:
        return " ".join([*said, f"No two studies share {result.fewest} personas: the table only."])
    below = sum(one.rho.p < 0.05 for one in defined)
    said.append(
        f"{len(defined)} pairs of columns have a rho, {below} of them p < 0.05 by itself;"
        f" {three_digits(0.05 * len(defined))} would at random."
    )
    if defined:
        one = max(defined, key=lambda each: abs(each.rho.estimate))
        said.append(
            f"Largest, chosen among these: {one.x} and {one.y}, rho {three_digits(one.rho.estimate)} over"
            f" {one.rho.n} personas ({p_value(one.rho.p)}, {one.rho.p_method})."
        )
    return " ".join(said)


def headlines(result: PersonaTable) -> list[Headline]:
    """The largest associations over personas, then coupling against nearness over pairs."""
    defined = [one for one in result.together if not math.isnan(one.rho.estimate)]
    largest = sorted(defined, key=lambda one: -abs(one.rho.estimate))[:LARGEST]
    found = [
        Headline(
            f"{one.x} and {one.y}: rho", one.rho.estimate, None, None, one.rho.n, "persona", "",
            one.rho.p_method, one.rho.p, f"among the largest of {len(defined)}; not corrected",
        )
        for one in largest
    ]  # fmt: skip
    for what in COUPLINGS:
        if what not in result.coupling:
            continue
        for name, one in result.coupling[what].spearman.items():
            pooled = one.pooled
            inner = "not defined" if math.isnan(one.mean_within) else three_digits(one.mean_within)
            note = f"naive: pairs share sources; mean within {inner}"
            found.append(
                Headline(f"coupling by {what} and {name}: pooled rho", pooled.estimate, None, None, pooled.n,
                         "pair", "", pooled.p_method, pooled.p, note)
            )  # fmt: skip
    return found


def caveats(result: PersonaTable) -> list[str]:
    """What follows from this table's own numbers."""
    found = [
        "A persona stands for its first training run, and in the attention study for its first generation"
        " seed.",
        "The window of attention was found on the same answers as the contrast in it.",
    ]
    if result.together:
        found.append(f"{len(result.together)} associations; the p values are not corrected for their number.")
    lacking = {column: held for column, held in result.missing().items() if held}
    if lacking:
        found.append(f"{len(lacking)} columns lack values: each rho says of how many personas it is.")
    for what, held in result.coupling.items():
        one = held.spearman[JS]
        found.append(f"{SAID[what]}: {one.n_pairs} pairs are {one.n_sources} clusters.")
    return found


def row_table(result: PersonaTable) -> Table:
    """The main columns of all studies, one row a persona."""
    note = (
        "an empty field has its reason in a table below; bounds and all other columns are in those of a study"
    )
    frame = result.to_dataframe()
    columns = ["persona", *main_columns(result), *(["label"] if "label" in frame else [])]
    return _rows("One row a persona", frame, columns, note)


def study_tables(result: PersonaTable) -> list[Table]:
    """Every column of each study with its 95 % bounds."""
    frame, found = result.to_dataframe(), []
    for study in result.studies:
        mine = tuple(dict.fromkeys(e.column for e in result.entries if e.study == study))
        bounds = {column: [f"{column}, low", f"{column}, high"] for column in mine}
        columns = [name for c in mine for name in (c, *bounds[c]) if name in frame]
        found.append(_rows(f"Every column of {study}", frame, ["persona", *columns], "bounds are 95 %"))
    return found


def _rows(title: str, frame: Any, columns: list[str], note: str) -> Table:
    rows = tuple(
        tuple(None if isinstance(v, float) and math.isnan(v) else v for v in row)
        for row in frame[columns].itertuples(index=False, name=None)
    )
    return Table(title, tuple(columns), rows, note)


def missing_table(result: PersonaTable) -> Table:
    """What is not there, and why."""
    rows = []
    for column, held in result.missing().items():
        for why in dict.fromkeys(held.values()):
            who = [persona for persona, reason in held.items() if reason == why]
            rows.append((column, f"{len(who)} of {len(result.personas)}", ", ".join(who), why))
    return Table("Values that are not there", ("column", "personas", "which", "why"), tuple(rows))


def together_table(result: PersonaTable) -> Table:
    """Every rank correlation over personas."""
    rows = tuple(
        (t.x, t.y, *(None if v != v else v for v in (t.rho.estimate, t.rho.p)), t.rho.n, t.rho.p_method,
         ", ".join(t.personas))
        for t in result.together
    )  # fmt: skip
    columns = ("column", "and", "rho", "p", "n personas", "test", "personas")
    return Table(f"Columns of two studies that {result.fewest} personas or more have", columns, rows)
