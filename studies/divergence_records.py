"""Files of the divergence study (methods 13): matrices with their values per response, answers, cosines.

A response's key is k = generator * questions + question, where generators are the personas that wrote, in
order, and once again for every further draw.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechinterp.json_io import read_json, write_json
from mechinterp.results import metadata
from probes.outputs import SELECTIONS, OutputDivergence, Selection
from studies.attention_formats_codec import Table, decode_record, encode_record

MATRICES = ("js_matrix", "kl_matrix", "kl_sym_matrix", "kl_asym_matrix")
Matrix = Float[np.ndarray, "persona persona"]


@dataclass(frozen=True, eq=False)
class _File:
    """`divergence_matrices.json` under its own keys."""

    js_matrix: Table
    kl_matrix: Table
    kl_sym_matrix: Table
    kl_asym_matrix: Table
    persona_names: tuple[str, ...]
    per_prompt_js: Mapping[str, Mapping[str, float]]
    n_prompts: int
    metadata: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DivergenceMatrices:
    """JS and KL between personas, kl[i, j] = KL(i || j), and the JS of each response behind the means."""

    personas: tuple[str, ...]
    js: Matrix
    kl: Matrix
    kl_sym: Matrix
    kl_asym: Matrix
    keys: tuple[int, ...]
    per_response: Float[np.ndarray, "response persona persona"]
    about: Mapping[str, Any]

    @property
    def n_questions(self) -> int:
        """How many questions the keys run over."""
        named = self.about.get("n_questions")
        if isinstance(named, int) and named > 0:
            return named
        whole, rest = divmod(len(self.keys), len(self.personas))
        if rest or not whole:
            raise ValueError(
                f"{len(self.keys)} responses of {len(self.personas)} personas are no whole number of"
                " questions; write metadata.n_questions"
            )
        return whole

    @property
    def questions(self) -> tuple[str, ...]:
        """The question of each response, by its text where the file holds it and else by its number."""
        names = self.about.get("questions") or [f"question {i}" for i in range(self.n_questions)]
        return tuple(names[key % self.n_questions] for key in self.keys)

    @property
    def writers(self) -> tuple[str, ...]:
        """Who wrote each response."""
        names = self.about.get("response_personas") or self.personas
        return tuple(names[key // self.n_questions % len(names)] for key in self.keys)

    def selected(self, responses: Selection) -> Matrix:
        """JS over all responses, or those of both members of a pair, of the first or of the second alone.

        NaN where a persona wrote none; the choices are those of `OutputDivergence.matrix`.
        """
        if responses not in SELECTIONS:
            raise ValueError(f"responses must be one of {', '.join(SELECTIONS)}, not {responses!r}")
        if responses == "all":
            return self.per_response.mean(0)
        wrote = [np.array([writer == name for writer in self.writers]) for name in self.personas]
        empty = np.full(len(self.personas), np.nan)
        source = np.stack([
            self.per_response[mine, i].mean(0) if mine.any() else empty for i, mine in enumerate(wrote)
        ])  # fmt: skip
        return {"source": source, "target": source.T, "pair": (source + source.T) / 2}[responses]


def read_divergence_matrices(path: Path | str) -> DivergenceMatrices:
    """`divergence_matrices.json`; a ValueError names the file and the field."""
    document = read_json(Path(path))
    try:
        held = decode_record(_File, document, "$")
        return _matrices(held)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_divergence_matrices(
    path: Path | str, found: OutputDivergence, *, about: Mapping[str, Any] | None = None
) -> None:
    """In the published schema; `about` adds to its metadata. Means are over all responses, as published."""
    writers = [name for name in found.personas if name in found.writers]
    writers += [name for name in dict.fromkeys(found.writers) if name not in writers]
    questions = list(dict.fromkeys(found.questions))
    draws = sorted(set(found.draws))
    pairs = _pair_keys(found.personas)
    values = {}
    rows = zip(found.writers, found.questions, found.draws, found.js.double(), strict=True)
    for writer, question, draw, js in rows:
        generator = draws.index(draw) * len(writers) + writers.index(writer)
        key = generator * len(questions) + questions.index(question)
        if key in values:
            raise ValueError(f"{writer} has two answers to {question!r} with draw {draw}; number them apart")
        values[key] = {name: float(js[i, j]) for name, (i, j) in pairs.items()}
    js, kl = (found.matrix(measure).double().numpy() for measure in ("js", "kl"))
    told = metadata("mechinterp.divergence_matrices", 1) | {
        "model": found.model, "n_personas": len(found.personas), "n_questions": len(questions),
        "n_response_personas": len(writers), "response_personas": writers, "questions": questions,
        "n_draws": len(draws), "include_turn_end": found.include_turn_end, "skipped": found.skipped,
        **(about or {}),
    }  # fmt: skip
    file = _File(
        js, kl, (kl + kl.T) / 2, np.abs(kl - kl.T), tuple(found.personas),
        {str(key): values[key] for key in sorted(values)}, len(values), told,
    )  # fmt: skip
    write_json(Path(path), encode_record(file))


def _matrices(held: _File) -> DivergenceMatrices:
    n, pairs = len(held.persona_names), _pair_keys(held.persona_names)
    for name in MATRICES:
        shape = getattr(held, name).shape
        if shape != (n, n):
            raise ValueError(f"$.{name} is {shape} for {n} persona_names; write one row and column each")
    if len(held.per_prompt_js) != held.n_prompts:
        raise ValueError(f"$.n_prompts is {held.n_prompts} and per_prompt_js has {len(held.per_prompt_js)}")
    wrong = next((key for key in held.per_prompt_js if not key.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"$.per_prompt_js has the key {wrong!r}; write generator * questions + question")
    keys = sorted(map(int, held.per_prompt_js))
    values = np.zeros((len(keys), n, n))
    for row, key in enumerate(keys):
        found = held.per_prompt_js[str(key)]
        odd = next(iter(found.keys() ^ pairs.keys()), None)
        if odd is not None:
            said = "lacks the pair" if odd in pairs else "has the unknown pair"
            raise ValueError(f"$.per_prompt_js.{key} {said} {odd!r}")
        for name, (i, j) in pairs.items():
            values[row, i, j] = values[row, j, i] = found[name]
    return DivergenceMatrices(
        held.persona_names, held.js_matrix, held.kl_matrix, held.kl_sym_matrix, held.kl_asym_matrix,
        tuple(keys), values, held.metadata or {},
    )  # fmt: skip


def _pair_keys(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    if not pairs_differ(names):
        raise ValueError("two pairs of personas are written alike as A__B; rename a persona with '__' in it")
    return {f"{a}__{b}": (i, i + 1 + j) for i, a in enumerate(names) for j, b in enumerate(names[i + 1 :])}


def pairs_differ(names: Sequence[str]) -> bool:
    """Whether every pair of personas is written differently as A__B, which the published files need."""
    written = [f"{a}__{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    return len(set(written)) == len(written)


# answers ----------------------------------------------------------------------------------------------------


def read_generations(path: Path | str) -> dict[str, dict[str, tuple[str, ...]]]:
    """`generations.json` or `raw_completions.json`, {persona: {question: [text]}}; ValueError says where."""
    document = read_json(Path(path))
    if not isinstance(document, dict):
        raise ValueError(f"{path}: $ must be an object of personas")
    for persona, answers in document.items():
        if not isinstance(answers, dict):
            raise ValueError(f"{path}: $.{persona} must be an object of questions")
        for question, texts in answers.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{path}: $.{persona}.{question} must be a list of texts")
    return {p: {q: tuple(texts) for q, texts in answers.items()} for p, answers in document.items()}


def write_generations(path: Path | str, texts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """{persona: {question: [text]}}: one text each is `generations.json`, several `raw_completions.json`."""
    write_json(Path(path), {p: {q: list(t) for q, t in answers.items()} for p, answers in texts.items()})


# cosines ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cosines:
    """Cosine matrices by layer; what they were centred on is not in the published files."""

    personas: tuple[str, ...]
    matrices: Mapping[int, Matrix]


def read_cosines(path: Path | str) -> Cosines:
    """{"cosine_matrix_l20", ..., "persona_names"}, or {"matrix", "persona_names"} with layer20 in the name.

    Raises ValueError with the file and what it lacks.
    """
    document = read_json(Path(path))
    try:
        if not isinstance(document, dict):
            raise ValueError("$ must be an object with persona_names and a matrix")
        found = {re.fullmatch(r"cosine_matrix_l(?:ayer)?_?(\d+)", name): name for name in document}
        layers = {int(match[1]): document[name] for match, name in found.items() if match}
        if "matrix" in document:
            place = re.search(r"l(?:ayer)?_?(\d+)", Path(path).stem)
            if place is None:
                raise ValueError("the file name does not say the layer; call it cosine_matrix_layer20.json")
            layers[int(place[1])] = document["matrix"]
        names = document.get("persona_names")
        held = {f"layer_{n}": {"persona_names": names, "matrix": matrix} for n, matrix in layers.items()}
        return cosines_by_layer(held, "$")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_cosines(path: Path | str, found: Cosines) -> None:
    """As {"cosine_matrix_l20", ..., "persona_names"}."""
    matrices = {f"cosine_matrix_l{layer}": matrix for layer, matrix in sorted(found.matrices.items())}
    write_json(Path(path), {**matrices, "persona_names": list(found.personas)})


def write_cosine_layers(folder: Path | str, found: Cosines) -> None:
    """Each layer in a `cosine_matrix_layer{L}.json` of its own, {"persona_names", "matrix"}."""
    for layer, matrix in found.matrices.items():
        held = {"persona_names": list(found.personas), "matrix": matrix}
        write_json(Path(folder) / f"cosine_matrix_layer{layer}.json", held)


@dataclass(frozen=True, eq=False)
class _Layer:
    persona_names: tuple[str, ...]
    matrix: Table
    extra: Mapping[str, Any] = field(default_factory=dict)


def cosines_by_layer(held: Mapping[str, Any], where: str) -> Cosines:
    """{"layer_20": {"persona_names", "matrix"}} as the checkpoints of the three-arm test have them."""
    if not isinstance(held, dict) or not held:
        raise ValueError(f"{where} holds no cosine matrix; write cosine_matrix_l20 or layer_20")
    names: tuple[str, ...] | None = None
    matrices = {}
    for key, value in held.items():
        match = re.fullmatch(r"layer_?(\d+)", key)
        if match is None:
            raise ValueError(f"{where} has the key {key!r}; write layers as layer_20")
        layer = decode_record(_Layer, value, f"{where}.{key}")
        n = len(layer.persona_names)
        if layer.matrix.shape != (n, n):
            raise ValueError(f"{where}.{key}.matrix is {layer.matrix.shape} for {n} persona_names")
        if names is not None and layer.persona_names != names:
            raise ValueError(f"{where}.{key} has other persona_names than the layer before it")
        names, matrices[int(match[1])] = layer.persona_names, layer.matrix
    return Cosines(names or (), dict(sorted(matrices.items())))


def cosines_document(found: Cosines) -> dict[str, Any]:
    """The inverse of `cosines_by_layer`."""
    names = list(found.personas)
    return {f"layer_{layer}": {"persona_names": names, "matrix": m} for layer, m in found.matrices.items()}
