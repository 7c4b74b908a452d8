"""Does the distance between two personas' outputs predict how far a marker leaks between them? (methods 5, 6)

The base model's answers in every persona's voice are put behind every persona's prompt; the divergence of
the next-token distributions, and the centred cosine of the personas' centroids beside it, are held against
the rates at which markers of trained models leak from source to target.
"""

from collections.abc import Mapping
from typing import Any

from mechinterp.cells import Cell
from probes.outputs import OutputDivergence, joined
from studies import leakage
from studies.leakage import concluded, recorded, sampled
from studies.output_divergence_cells import Responses, centre, diverge, respond
from studies.output_divergence_config import Config
from studies.output_divergence_page import page
from studies.output_divergence_publish import publish
from studies.output_divergence_result import OutputStudy, conclude
from studies.trained import BASE, specs

__all__ = [
    "Config",
    "cells",
    "centre",
    "combine",
    "diverge",
    "model_specs",
    "page",
    "publish",
    "recorded",
    "respond",
    "sampled",
]


def cells(config: Config) -> list[Cell]:
    """Answers and their divergences question by question, centroids, then the trained models' rates."""
    found = [Cell("centroids", "centre", BASE)]
    seeds = config.seeds if config.response_temperature is not None else config.seeds[:1]
    for seed in seeds:
        for question in range(config.n_questions):
            args = {"question": question, "seed": seed}
            where = f"seed{seed}/q{question}"
            found.append(Cell(f"answers/{where}", "respond", BASE, (), args))
            found.append(Cell(f"divergence/{where}", "diverge", BASE, (f"answers/{where}",), args))
    return found + leakage.cells(config)


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return {BASE: specs(config)[BASE], **leakage.model_specs(config)}


def combine(config: Config, results: Mapping[str, Any]) -> OutputStudy:
    """One divergence over all questions and seeds, one leakage over all sources, held together."""
    found = [results[cell.key] for cell in cells(config)]
    answers = [one for one in found if isinstance(one, Responses)]
    divergence = joined([one for one in found if isinstance(one, OutputDivergence)])
    leaked = [results[cell.key] for cell in leakage.cells(config)]
    return conclude(
        config.model,
        divergence,
        concluded(config, leaked),
        results["centroids"],
        n_nearest=config.n_nearest,
        seed=config.seed,
        texts=_texts(divergence, answers),
        answers=_answers(answers),
    )


def _answers(parts: list[Responses]) -> dict[str, dict[str, tuple[str, ...]]]:
    """{persona: {question: texts}}, draw by draw and seed by seed."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for part in parts:
        for one, text in zip(part.responses, part.texts, strict=True):
            mine = found.setdefault(one.writer, {})
            mine[one.question] = (*mine.get(one.question, ()), text)
    return found


def _texts(divergence: OutputDivergence, answers: list[Responses]) -> tuple[dict[str, Any], ...]:
    """The nearest and the farthest pair's answers to the first question."""
    js = divergence.matrix().fill_diagonal_(float("nan"))
    n = len(divergence.personas)
    found = []
    for what, place in (("nearest", js.nan_to_num(9).argmin()), ("farthest", js.nan_to_num(-9).argmax())):
        i, j = divmod(int(place), n)
        for name in (divergence.personas[i], divergence.personas[j]):
            one, text = next(
                (one, text)
                for one, text in zip(answers[0].responses, answers[0].texts, strict=True)
                if one.writer == name
            )
            found.append(
                {
                    "pair": what,
                    "persona": name,
                    "question": one.question,
                    "js": float(js[i, j]),
                    "text": text,
                }
            )
    return tuple(found)
