"""Every comparison of the divergence audit, made once from the records: what findings and figures read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechinterp.stats.sources import SourceAssociation, by_source
from probes.outputs import SELECTIONS
from studies.audit_divergence_records import Records
from studies.divergence_formats import AnalysisResults
from studies.predictors import Comparison, Pairs, compare, directed_pairs
from studies.predictors_asymmetry import Asymmetry, asymmetry
from studies.predictors_matrices import (
    Discrimination,
    PerQuestion,
    Redundancy,
    discrimination,
    per_question,
    redundancy,
)

SEED = 0
JS, FORWARD, BACKWARD = "JS", "KL(source‖target)", "KL(target‖source)"
FEWEST = 4  # directed pairs that are compared


@dataclass(frozen=True, eq=False)
class Analysed:
    """Records with their analyses; None or empty where the files do not allow one."""

    records: Records
    layer: int | None  # of the cosine that is held against JS
    own: Comparison | None  # JS against the cosine centred on the study's own personas
    wide: Comparison | None  # the same pairs, the cosine centred on the wide set
    by_layer: Mapping[str, Mapping[int, SourceAssociation]]  # centring -> layer, on the same pairs
    all_pairs: Mapping[int, SourceAssociation]  # the wide cosine on all pairs of the wide file
    discrimination: Discrimination | None
    redundancy: Redundancy | None
    asymmetry: Asymmetry | None
    per_question: PerQuestion | None

    @property
    def main(self) -> Comparison | None:
        """The comparison that holds the divergences."""
        return self.own or self.wide

    def name(self, centring: str) -> str:
        """How the cosine of the chosen layer is called."""
        return cosine_name(self.layer, centring)


def cosine_name(layer: int | None, centring: str) -> str:
    """A cosine as predictor."""
    return f"cosine L{layer}, {centring}"


def own_set(records: Records) -> str:
    """The centring on the personas of the matrices."""
    return f"centred on the {len(records.personas)}"


def wide_set(records: Records) -> str:
    """The centring of the wide file."""
    name = f"centred on the {len({name for pair in records.wide_rates() for name in pair})}"
    return f"{name} of the wide file" if name == own_set(records) else name


def analyse(records: Records) -> Analysed:
    """All analyses that the records allow, seed 0 throughout."""
    rates, every = records.core_rates(), records.wide_rates()
    columns = _columns(records, rates)
    own, wide = columns.values()
    layer = _layer(list(own), list(wide), records.analysis)
    pairs = _divergences(records, rates)
    against = [
        _against(pairs, layer, centring, held, centring == own_set(records))
        for centring, held in columns.items()
    ]
    apart, like, unlike, spread = _of_matrices(records, rates)
    return Analysed(
        records=records,
        layer=layer,
        own=against[0],
        wide=against[1],
        by_layer={
            centring: {n: _associated(rates, column) for n, column in held.items()}
            for centring, held in columns.items()
        },
        all_pairs={n: _associated(*_whole(every, records.wide_cosines(n))) for n in records.wide},
        discrimination=apart,
        redundancy=like,
        asymmetry=unlike,
        per_question=spread,
    )


def _columns(
    records: Records, rates: Mapping[tuple[str, str], float]
) -> dict[str, dict[int, tuple[float, ...]]]:
    """Cosines of the directed pairs by centring and layer; empty where there are too few pairs."""
    own: dict[int, tuple[float, ...]] = {}
    wide: dict[int, tuple[float, ...]] = {}
    if len(rates) >= FEWEST:
        if records.cosines is not None:
            named = {str(n): matrix for n, matrix in records.cosines.matrices.items()}
            found = directed_pairs(rates, named, records.personas).predictors
            own = {int(n): column for n, column in found.items()}
        for n in records.wide:
            held = records.wide_cosines(n)
            if rates.keys() <= held.keys():
                wide[n] = tuple(held[pair] for pair in rates)
    return {own_set(records): own, wide_set(records): wide}


def _layer(own: Sequence[int], wide: Sequence[int], stored: AnalysisResults | None) -> int | None:
    """One that both centrings have: the published analyses keep the matrix of one alone.

    Of several, the one whose cosine an analysis held against JS, where it held one alone, as ours do.
    """
    shared = sorted(set(own) & set(wide)) or sorted(own) or sorted(wide)
    compared = stored and stored.leakage_comparison and list(stored.leakage_comparison.cosine_matched)
    chosen = int(compared[0].removeprefix("layer_")) if compared and len(compared) == 1 else None
    if chosen in shared:
        return chosen
    return shared[-1] if shared else None


def _divergences(records: Records, rates: Mapping[tuple[str, str], float]) -> Pairs | None:
    """The pairs with every divergence between them; JS alone where only the analysis is here."""
    held, stored = records.matrices, records.analysis and records.analysis.leakage_comparison
    if len(rates) < FEWEST:
        return None
    if held is not None:
        matrices = {JS: held.js, FORWARD: held.kl, BACKWARD: held.kl.T}
        if len(held.keys):
            chosen = {selection_name(s): held.selected(s) for s in SELECTIONS if s != "all"}
            matrices |= {name: m for name, m in chosen.items() if np.isfinite(m).all()}
        return directed_pairs(rates, matrices, held.personas, model=records.model)
    if stored is not None:
        typed = {(p.source, p.target): p.js_value for p in stored.directed_pairs}
        sources, targets = (tuple(pair[i] for pair in rates) for i in (0, 1))
        js = {JS: tuple(typed[pair] for pair in rates)}
        return Pairs(sources, targets, tuple(rates.values()), js, records.model)
    return None


def selection_name(selection: str) -> str:
    """JS as predictor, from a choice of whose responses count."""
    return JS if selection == "all" else f"JS, {selection} responses"


def _against(
    pairs: Pairs | None,
    layer: int | None,
    centring: str,
    columns: Mapping[int, tuple[float, ...]],
    whole: bool,
) -> Comparison | None:
    """JS against one cosine; `whole` keeps the other divergences beside them."""
    if pairs is None or layer is None or layer not in columns:
        return None
    name = cosine_name(layer, centring)
    kept = dict(pairs.predictors) if whole else {JS: pairs.predictors[JS]}
    both = Pairs(pairs.sources, pairs.targets, pairs.leakage, kept | {name: columns[layer]}, pairs.model)
    return compare(both, first=JS, second=name, seed=SEED)


def _whole(
    rates: Mapping[tuple[str, str], float], cosines: Mapping[tuple[str, str], float]
) -> tuple[dict[tuple[str, str], float], tuple[float, ...]]:
    return {pair: rates[pair] for pair in cosines}, tuple(cosines.values())


def _associated(rates: Mapping[tuple[str, str], float], column: Sequence[float]) -> SourceAssociation:
    sources, targets = [s for s, _ in rates], [t for _, t in rates]
    return by_source(np.array(column), np.array(list(rates.values())), sources, targets, seed=SEED)


def _of_matrices(
    records: Records, rates: Mapping[tuple[str, str], float]
) -> tuple[Discrimination | None, Redundancy | None, Asymmetry | None, PerQuestion | None]:
    held, told = records.matrices, records.model
    if held is None:
        return None, None, None, None
    names, asked = held.personas, records.asked()
    values = held.per_response if held.keys else None
    apart = discrimination(held.js, names, per_response=values, questions=asked, model=told, seed=SEED)
    like = unlike = None
    if records.cosines is not None:
        about = own_set(records).removeprefix("centred on ")
        like = redundancy(held.js, records.cosines.matrices, names, centring=about, model=told, seed=SEED)
    sources = [s for s in records.sources if s in names]
    if len(sources) > 1 and all((a, b) in rates for a in sources for b in sources if a != b):
        unlike = asymmetry(held.kl, names, rates, sources, model=told, seed=SEED)
    return apart, like, unlike, None if values is None else per_question(values, asked, model=told)
