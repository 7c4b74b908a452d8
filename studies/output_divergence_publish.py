"""A run of the divergence study as the published files (methods 13): `mechinterp audit` reads them back.

Matrices are means over all responses, as published. Rates are pooled over training runs and seeds, as in the
result. The matrices of cosines are centred on the study's own personas, the wide file on the widest set.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mechinterp.results import metadata
from probes.outputs import OutputDivergence
from studies import leakage_publish
from studies.divergence_export import analysis_results, cosine_leakage
from studies.divergence_formats import CosineLeakage, write_analysis, write_cosine_leakage
from studies.divergence_records import (
    Cosines,
    pairs_differ,
    write_cosine_layers,
    write_divergence_matrices,
    write_generations,
)
from studies.output_divergence_config import Config
from studies.output_divergence_result import COSINE, OutputStudy
from studies.targets import targets


def publish(config: Config, result: OutputStudy, folder: Path) -> None:
    """Matrices, analyses, answers and cosines into `folder`, and the rates of each source below it.

    Personas whose pairs cannot be told apart as A__B have no published form: then nothing is written.
    """
    if not pairs_differ(result.divergence.personas):
        return
    folder.mkdir(parents=True, exist_ok=True)
    told = {"seeds": list(result.leakage.seeds), "marker": result.marker}
    write_divergence_matrices(
        folder / "divergence_matrices.json", numbered(result.divergence), about={"seeds": told["seeds"]}
    )
    own, widest = result.sets[0], result.sets[-1]
    analysis = analysis_results(
        discrimination=result.discrimination,
        per_question=result.per_question,
        redundancy=result.redundancy[own],
        comparison=result.comparisons[own],
        cosines={result.layer: COSINE},
        asymmetry=result.asymmetry,
    )
    about = {**metadata("mechinterp.divergence_analysis"), **told, "model": result.model, "centring": own}
    write_analysis(folder / "analysis_results.json", replace(analysis, metadata=about))
    if result.answers:
        several = any(len(texts) > 1 for asked in result.answers.values() for texts in asked.values())
        name = "raw_completions.json" if several else "generations.json"
        write_generations(folder / name, result.answers)
    matrices = dict(zip(result.layers, result.cosines[own], strict=True))
    write_cosine_layers(folder, Cosines(result.divergence.personas, matrices))
    write_cosine_leakage(folder / "cosine_leakage_correlation.json", _wide(config, result, widest))
    leakage_publish.publish(config, result.leakage, folder)


def numbered(found: OutputDivergence) -> OutputDivergence:
    """Draws of one persona and question numbered on over the seeds, so that each has a key of its own."""
    seen: Counter[tuple[str, str]] = Counter()
    draws = []
    for pair in zip(found.writers, found.questions, strict=True):
        draws.append(seen[pair])
        seen[pair] += 1
    return replace(found, draws=tuple(draws))


def _wide(config: Config, result: OutputStudy, centring: str) -> dict[int, CosineLeakage]:
    """Every layer's cosine against leakage, over the directed pairs of the study."""
    rates = {(s, t): result.leakage.rate(s, t).estimate for s, t in result.leakage.pairs()}
    kinds = {name: persona.category for name, persona in targets(config).items()}
    place = {name: i for i, name in enumerate(result.divergence.personas)}
    return {
        layer: cosine_leakage({(s, t): float(matrix[place[s], place[t]]) for s, t in rates}, rates, kinds)
        for layer, matrix in zip(result.layers, result.cosines[centring], strict=True)
    }
