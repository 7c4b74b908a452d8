"""One row a persona over several studies, and which of their columns go together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechinterp.results import Result
from mechinterp.stats.association import Association, spearman
from studies.output_divergence_result import COSINE, JS, OutputStudy
from studies.persona_table_columns import DIVERGENCE, LEAKAGE, OF, PREFIX, Entry, sources_of
from studies.predictors import LEAST, Comparison, Pairs, compare
from studies.prefix_completion_result import PrefixCompletion, named

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

COUPLINGS = {"content": "B", "prompt": "C"}  # own prefix under the other's prompt; own prompt, other's prefix


@dataclass(frozen=True)
class Together:
    """Two columns of two studies over the personas that have both."""

    x: str
    y: str
    personas: tuple[str, ...]
    rho: Association


@dataclass(frozen=True, eq=False)
class PersonaTable(Result):
    """`entries` hold every column of every persona, also where there is no value.

    `together` are rank correlations of the main columns of two studies. `coupling` holds, by "prompt" and
    "content", the marker's rate in a source's mixed conditions against JS and cosine of both personas, a
    directed pair each; empty without a divergence run, or with too few pairs.
    """

    model: str
    marker: str
    studies: tuple[str, ...]
    personas: tuple[str, ...]
    entries: tuple[Entry, ...]
    fewest: int
    together: tuple[Together, ...]
    coupling: dict[str, Comparison]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.column for entry in self.entries))

    def of(self, column: str) -> dict[str, Entry]:
        """A column by persona; raises ValueError with the names there are."""
        found = {entry.persona: entry for entry in self.entries if entry.column == column}
        if not found:
            raise ValueError(f"there is no column {column!r}; there are {', '.join(self.columns)}")
        return found

    def missing(self) -> dict[str, dict[str, str]]:
        """Column -> persona -> why there is no value."""
        found: dict[str, dict[str, str]] = {}
        for entry in self.entries:
            if math.isnan(entry.value):
                found.setdefault(entry.column, {})[entry.persona] = entry.note
        return found

    @property
    def labels(self) -> dict[str, str]:
        """What each persona's adapter is called (methods 3), where a study has its rates."""
        held = [entry for entry in self.entries if entry.column == "breadth"]
        return {entry.persona: entry.note for entry in held if not math.isnan(entry.value)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a persona; bounds stand behind the columns that have them."""
        import pandas as pd

        lines = []
        bounded = {entry.column for entry in self.entries if not math.isnan(entry.low)}
        for persona in self.personas:
            line: dict[str, Any] = {"persona": persona}
            for column in self.columns:
                entry = self.of(column)[persona]
                line[column] = entry.value
                if column in bounded:
                    line |= {f"{column}, low": entry.low, f"{column}, high": entry.high}
            lines.append(line | ({"label": self.labels.get(persona)} if LEAKAGE in self.studies else {}))
        return pd.DataFrame(lines)

    def headline(self) -> str:
        from studies.persona_table_page import answer

        return answer(self)

    def figure(self) -> go.Figure:
        """Every main column of every persona."""
        from studies.persona_table_figures import overview

        return overview(self)


def conclude(results: Mapping[str, Any], *, fewest: int = 4) -> PersonaTable:
    """The table of these studies' results, by the study's name.

    Raises ValueError where two are of different base models or markers.
    """
    held = dict(results)
    if LEAKAGE not in held and DIVERGENCE in held:
        held[LEAKAGE] = held[DIVERGENCE].leakage
    held = {study: held[study] for study in OF if study in held}
    personas = tuple(dict.fromkeys(p for name, one in held.items() for p in sources_of(name, one)))
    entries = tuple(e for name, one in held.items() for p in personas for e in OF[name](one, p))
    return PersonaTable(
        model=_same(held, "model"),
        marker=_same(held, "marker"),
        studies=tuple(held),
        personas=personas,
        entries=entries,
        fewest=fewest,
        together=correlated(entries, personas, fewest),
        coupling=_couplings(held[PREFIX], held.get(DIVERGENCE)) if PREFIX in held else {},
    )


def _same(held: Mapping[str, Any], name: str) -> str:
    said = {study: getattr(one, name) for study, one in held.items()}
    if len(set(said.values())) > 1:
        told = ", ".join(f"{value} in {study}" for study, value in said.items())
        raise ValueError(f"the runs have different {name}s: {told}; join runs of one {name}")
    return next(iter(said.values()))


def correlated(entries: Sequence[Entry], personas: Sequence[str], fewest: int) -> tuple[Together, ...]:
    """Spearman's rho of every two main columns of different studies that `fewest` personas or more have."""
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for entry in entries:
        if entry.main:
            columns.setdefault((entry.study, entry.column), {})[entry.persona] = entry.value
    found = []
    for ((study, x), ours), ((other, y), theirs) in itertools.combinations(columns.items(), 2):
        both = tuple(p for p in personas if not math.isnan(ours[p] + theirs[p]))
        if study != other and len(both) >= fewest:
            values = (np.array([held[p] for p in both]) for held in (ours, theirs))
            found.append(Together(x, y, both, spearman(*values, unit="persona")))
    return tuple(found)


def _couplings(prefix: PrefixCompletion, study: OutputStudy | None) -> dict[str, Comparison]:
    """The mixed conditions of each source and other persona against how near the two lie."""
    if study is None:
        return {}
    names = list(study.divergence.personas)
    centring = study.sets[0]
    layer = study.cosines[centring][study.layers.index(study.layer)]
    matrices = {JS: study.divergence.matrix().numpy(), COSINE: layer}
    found = {}
    for what, condition in COUPLINGS.items():
        asked = dict.fromkeys((c.source, c.other) for c in prefix.counts if c.run == 0 and c.other)
        rates = {
            (s, o): prefix.rate(condition, model=named(s, 0), other=o).estimate  # type: ignore[arg-type]
            for s, o in asked
            if s in names and o in names and s != o
        }
        pairs = [pair for pair, rate in rates.items() if not math.isnan(rate)]
        places = [(names.index(s), names.index(str(o))) for s, o in pairs]
        if len(pairs) < LEAST:
            continue
        columns = {name: tuple(float(m[place]) for place in places) for name, m in matrices.items()}
        sources, targets = tuple(s for s, _ in pairs), tuple(str(o) for _, o in pairs)
        held = Pairs(sources, targets, tuple(rates[p] for p in pairs), columns, prefix.model, (prefix.seed,))
        found[what] = compare(held, first=JS, second=COSINE)
    return found
