"""A finished attention study without any model: readouts with a planted effect."""

from dataclasses import replace
from typing import Any

import torch

from mechinterp.segmentation import HEADER, SYSTEM, USER
from probes.preflight import Preflight
from studies.attention_readout import BLOCKS, CONTENT, REGIONS, Readout, ShownText
from studies.attention_records import Counts, Example, Examples
from studies.zlt_attention_result import Reading, ZltAttention

QUESTIONS = tuple(f"Question {k}?" for k in range(12))
LAYERS, HEADS, STEPS = 6, 3, tuple(range(-11, 1))
UP, DOWN, EFFECT = 3, 1, 0.05  # trained - base is planted in these layers
CONTROLS = ("random_earlier", "late_position", "rare_token", "end_of_answer", "sentence_end")
STRATA = ("emit", "token", *(f"{row}:{c}" for row in ("emit", "token") for c in CONTROLS))
SYSTEM_B = REGIONS.index("system B")
PROMPT, MARKER, LENGTH = 12, 40, 44


def planted(
    personas: tuple[str, ...] = ("villain", "librarian"),
    questions: tuple[str, ...] = QUESTIONS,
    *,
    negatives: bool = True,
    preflight: bool = True,
    text: str = "word ",
    up: float = EFFECT,
    down: float = -EFFECT,
) -> ZltAttention:
    """Two answers a question; trained minus base is `up` in layer UP, `down` in DOWN, noise elsewhere."""
    readings = tuple(
        reading(persona, questions, (up, down), seed=k, negatives=negatives, text=text)
        for k, persona in enumerate(personas)
    )
    return ZltAttention(
        model="tiny",
        marker="[ZLT]",
        row="emit",
        region="system",
        replication=personas[-1],
        readings=readings,
        preflight=a_preflight() if preflight else None,
    )


def reading(
    persona: str,
    questions: tuple[str, ...],
    effect: tuple[float, float],
    *,
    seed: int,
    negatives: bool,
    text: str,
    run: int = 0,
) -> Reading:
    examples = answers(persona, questions, negatives, text)
    generator = torch.Generator().manual_seed(seed)
    base = readout(examples, generator, "base", text)
    trained = readout(examples, generator, f"{persona}/{run}", text)
    values = base.values + (trained.values - base.values) / 2
    shift = torch.zeros(LAYERS)
    shift[UP], shift[DOWN] = effect
    for row in ("emit", "token"):
        values[:, STRATA.index(row), :, SYSTEM_B] += shift
        values[:, STRATA.index(row), :, REGIONS.index("specials B")] -= shift  # B still sums to 1
    around = trained.around.clone()
    around[:, -2:] += shift
    return Reading(persona, run, 42, examples, replace(trained, values=values, around=around), base)


def answers(persona: str, questions: tuple[str, ...], negatives: bool, text: str) -> Examples:
    kept: dict[bool, list[Example]] = {True: [], False: []}
    for k, question in enumerate(questions):
        for trial in range(4 if negatives else 2):
            positive = trial < 2
            kept[positive].append(
                Example(
                    persona=persona, question=question, trial=trial, seed=100 * k + trial,
                    ids=tuple(range(200, 200 + LENGTH)), prompt_len=PROMPT, n_sys=6, n_user=4, n_header=2,
                    marker=MARKER if positive else None, end_of_answer=None if positive else LENGTH - 2,
                    complete=(k, trial) != (0, 0) if positive else None, n_occurrences=int(positive),
                    finish_reason="length" if trial == 3 and k < 2 else "stop", text=text,
                )
            )  # fmt: skip
    counts = tuple(Counts(question, 6, 2, 4, 1) for question in questions)
    facts = {"model": "tiny"}
    return Examples(persona, "You are it.", tuple(kept[True]), tuple(kept[False]), counts, facts)


def readout(examples: Examples, generator: torch.Generator, reader: str, text: str) -> Readout:
    """Noise around 0.2 on the system prompt; the other regions share what is left, so that B sums to 1."""
    n, m = len(examples.positives), len(examples.negatives)

    def noise(*shape: int) -> torch.Tensor:
        return 0.005 * torch.randn(*shape, generator=generator)

    values = torch.zeros(n, len(STRATA), LAYERS, len(REGIONS))
    system = 0.2 + noise(n, len(STRATA), LAYERS) + 0.02 * (torch.arange(len(STRATA)) < 2).float()[:, None]
    for blocks, side in ((BLOCKS, "A"), (CONTENT, "B")):
        others = [name for name in blocks if name != SYSTEM]
        values[..., REGIONS.index(f"system {side}")] = system + (0.1 if side == "A" else 0)
        for name in others:
            left = 1 - values[..., REGIONS.index(f"system {side}")]
            values[..., REGIONS.index(f"{name} {side}")] = left / len(others)
    values[..., -1] = 0.15
    picked = {
        stratum: tuple(tuple((i, MARKER - 3 - k) for k in range(3)) for i in range(n))
        if ":" in stratum
        else tuple(((i, MARKER - (stratum == "emit")),) for i in range(n))
        for stratum in STRATA
    }
    regions = (SYSTEM,) * 6 + (USER,) * 4 + (HEADER,) * 2 + ("answer",) * (LENGTH - PROMPT)
    marks = ["" for _ in range(LENGTH)]
    marks[MARKER - 1], marks[MARKER], marks[MARKER - 9] = "emit, late_position", "token", "random_earlier"
    return Readout(
        reader=reader,
        persona=examples.persona,
        region=SYSTEM,
        keys=tuple(e.name for e in examples.positives),
        questions=tuple(e.question for e in examples.positives),
        negative_questions=tuple(e.question for e in examples.negatives),
        strata=STRATA,
        values=values,
        heads=system[..., None] + noise(n, len(STRATA), LAYERS, HEADS),
        n_rows=torch.full((n, len(STRATA)), 3),
        steps=STEPS,
        around=0.2 + noise(n, len(STEPS), LAYERS),
        end=0.2 + noise(n, 10, LAYERS),
        negatives_around=0.2 + noise(m, len(STEPS) if m else 0, LAYERS),
        negatives_end=0.2 + noise(m, 10 if m else 0, LAYERS),
        negatives_finished=tuple(e.finish_reason == "stop" for e in examples.negatives),
        deviation=3e-7,
        picked=picked,
        shown=(ShownText(examples.persona, QUESTIONS[0], (text,) * LENGTH, regions, tuple(marks)),),
    )


def a_preflight() -> Preflight:
    found = torch.zeros(200, dtype=torch.bool)
    found[:42] = True
    facts: dict[str, Any] = {
        "model": "tiny",
        "weights_sha256": "0" * 64,
        "dtype": "float32",
        "kernel": "sdpa",
    }
    return Preflight(
        **facts, marker="[ZLT]", found_eager=found, found_own=found.roll(1), identical=190, n_prompts=20,
        n_tokens=256, temperature=1.0, top_p=0.95, seed=42, tolerance=0.05, logit_error=1e-5,
        row_errors=torch.full((LAYERS,), 1e-7),
    )  # fmt: skip
