"""The records of a divergence study in one directory: whatever files are there, read, checked and compared.

The directory holds `js_divergence` and `single_token_100_persona` as published, or their files themselves.
Every comparison that findings and figures need is made once, here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mechinterp.files import file_sha256, slug
from studies.divergence_formats import (
    AnalysisResults,
    CosineLeakage,
    Summary,
    read_analysis,
    read_cosine_leakage,
    read_summary,
)
from studies.divergence_records import (
    Cosines,
    DivergenceMatrices,
    read_cosines,
    read_divergence_matrices,
    read_generations,
)
from studies.marker_records import MarkerEval, read_marker_eval

FOLDERS = ("js_divergence", "single_token_100_persona")
MATRICES, ANALYSIS, ANSWERS = "divergence_matrices.json", "analysis_results.json", "generations.json"
SEVERAL = "raw_completions.json"  # what the answers are called where a question has several a persona
WIDE, RATES, SUMMARY = "cosine_leakage_correlation.json", "{label}/marker_eval.json", "{label}/summary.json"
COSINES = "cosine_*.json"
COMMITS = {"c730053", "9ce8a1e"}  # which the metadata of the published matrices and analysis name
SOURCES = ("villain", "comedian", "assistant", "software_engineer", "kindergarten_teacher")
CORE = "original"  # the category of the core personas among the wide set
WIDE_SET = 111  # personas of the published study that the cosines of the wide file are centred on


@dataclass(frozen=True, eq=False)
class Records:
    """What a directory holds; `digests` are of the files read, `missing` the names of those not there."""

    digests: Mapping[str, str]
    missing: tuple[str, ...]
    matrices: DivergenceMatrices | None
    analysis: AnalysisResults | None
    cosines: Cosines | None
    answers: Mapping[str, Mapping[str, tuple[str, ...]]] | None
    wide: Mapping[int, CosineLeakage]
    rates: Mapping[str, MarkerEval]
    summaries: Mapping[str, Summary]
    published: bool  # the files are those of the published study

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose markers were trained, in the order of the published pairs."""
        stored = self.analysis.leakage_comparison if self.analysis else None
        named = [pair.source for pair in stored.directed_pairs] if stored else []
        detail = [name for each in self.wide.values() for name in each.detail]
        return tuple(dict.fromkeys([*named, *detail, *self.rates]))

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that any file has a cosine or a correlation of."""
        found = {*self.wide, *(self.cosines.matrices if self.cosines else ())}
        if self.analysis is not None:
            redundancy, leaks = self.analysis.redundancy, self.analysis.leakage_comparison
            names = [*(redundancy.layers if redundancy else ()), *(leaks.cosine_matched if leaks else ())]
            found |= {int(name.removeprefix("layer_")) for name in names}
        return tuple(sorted(found))

    @property
    def personas(self) -> tuple[str, ...]:
        """The personas of the matrices; without them those whose category is the core set, or all."""
        if self.matrices is not None:
            return self.matrices.personas
        if self.cosines is not None:
            return self.cosines.personas
        kinds = {name: rate.category for each in self.rates.values() for name, rate in each.rates.items()}
        core = tuple(name for name, kind in kinds.items() if kind == CORE)
        return core or tuple(kinds)

    @property
    def model(self) -> str:
        """As the matrices name it."""
        about = self.matrices.about if self.matrices else {}
        return str(about.get("model", "model not named in the records"))

    def asked(self) -> tuple[str, ...]:
        """The question of each response, in the words of the answers where matrices and answers agree."""
        held = self.matrices
        if held is None or not held.keys:
            return ()
        texts = [tuple(questions) for questions in (self.answers or {}).values()]
        alike = len(set(texts)) == 1 and len(texts[0]) == held.n_questions
        if "questions" in held.about or not alike:
            return held.questions
        return tuple(texts[0][key % held.n_questions] for key in held.keys)

    def wide_rates(self) -> dict[tuple[str, str], float]:
        """(source, target) -> leakage of every pair that the wide file or the counted rates hold."""
        found = {
            (source, row.persona): row.leakage_rate
            for each in list(self.wide.values())[:1]
            for source, rows in each.detail.items()
            for row in rows
        }
        for source, each in self.rates.items():
            found |= each.leakage(source)
        return found

    def core_rates(self) -> dict[tuple[str, str], float]:
        """The pairs within the matrices' personas, in published order; counted rates before stored ones."""
        stored = self.analysis.leakage_comparison if self.analysis else None
        typed = {(p.source, p.target): p.leakage_rate for p in stored.directed_pairs} if stored else {}
        counted = self.wide_rates()
        known = set(self.personas)
        within = {pair: rate for pair, rate in counted.items() if known.issuperset(pair)}
        order = typed or {(s, t): 0.0 for s in self.sources for t in self.personas if (s, t) in within}
        return {pair: within.get(pair, typed.get(pair, 0.0)) for pair in order}

    def wide_cosines(self, layer: int) -> dict[tuple[str, str], float]:
        """(source, target) -> cosine centred on the wide set."""
        detail = self.wide[layer].detail if layer in self.wide else {}
        return {(source, row.persona): row.cosine_sim for source, rows in detail.items() for row in rows}


def read_records(directory: Path | str) -> Records:
    """Everything known in `directory`; a ValueError names the file and field of what is no such record.

    Raises FileNotFoundError where nothing is.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory; give the one that holds the records")
    found = _present(root)
    if not found:
        raise FileNotFoundError(
            f"{root} holds no divergence records; give a directory with js_divergence and"
            f" single_token_100_persona, or with {MATRICES} or {ANALYSIS} in it"
        )
    summaries = _by_source(found, "summary.json", read_summary, {})
    called = {slug(name): name for name in summaries}
    rates = _by_source(found, "marker_eval.json", read_marker_eval, called)
    answers = _single(found, ANSWERS, read_generations) or _single(found, SEVERAL, read_generations)
    records = Records(
        digests={name: file_sha256(path) for name, path in sorted(found.items())},
        missing=(),
        matrices=_single(found, MATRICES, read_divergence_matrices),
        analysis=_single(found, ANALYSIS, read_analysis),
        cosines=_cosines([path for name, path in found.items() if _is_cosine(name)]),
        answers=answers,
        wide=_single(found, WIDE, read_cosine_leakage) or {},
        rates=rates,
        summaries=summaries,
        published=False,
    )
    _check_personas(records)
    return replace(records, missing=_missing(records), published=_is_published(records))


_PER_SOURCE = ("marker_eval.json", "summary.json")


def _present(root: Path) -> dict[str, Path]:
    """Files by the name that they have below either folder."""
    found: dict[str, Path] = {}
    for folder in (*(root / name for name in FOLDERS), root):
        names = [MATRICES, ANALYSIS, ANSWERS, SEVERAL, WIDE]
        paths = [folder / name for name in names if (folder / name).is_file()]
        paths += sorted(path for path in folder.glob(COSINES) if path.name != WIDE)
        paths += sorted(path for name in _PER_SOURCE for path in folder.glob(f"*/{name}"))
        for path in paths:
            found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def _is_cosine(name: str) -> bool:
    return name.startswith("cosine_") and name != WIDE


def _cosines(paths: Sequence[Path]) -> Cosines | None:
    """The layers of all files over the personas of the first; the published wide set has files of its own."""
    held = [read_cosines(path) for path in paths]
    alike = [each for each in held if each.personas == held[0].personas]
    layers = {n: matrix for each in reversed(alike) for n, matrix in each.matrices.items()}
    return Cosines(held[0].personas, dict(sorted(layers.items()))) if held else None


def _by_source(found: Mapping[str, Path], name: str, read: Any, called: Mapping[str, str]) -> dict[str, Any]:
    """{source: record}: the folder is the source, as `called` or as the file names it where it is that name
    made safe; a file that names another is refused.
    """
    held = {}
    for file, path in found.items():
        folder, _, last = file.rpartition("/")
        if last != name:
            continue
        each = read(path)
        if each.source not in (None, folder) and slug(each.source) != folder:
            raise ValueError(f"{path} is of {each.source!r}; keep each source in a folder of its name")
        held[each.source or called.get(folder, folder)] = each
    order = {label: place for place, label in enumerate(SOURCES)}
    return {label: held[label] for label in sorted(held, key=lambda s: (order.get(s, len(order)), s))}


def _single(found: Mapping[str, Path], name: str, read: Any) -> Any:
    return read(found[name]) if name in found else None


def _check_personas(records: Records) -> None:
    """Matrices and cosines are over the same personas in the same order."""
    if records.matrices is None or records.cosines is None:
        return
    if records.matrices.personas != records.cosines.personas:
        raise ValueError(
            f"the cosines are of {', '.join(records.cosines.personas)} and the divergences of"
            f" {', '.join(records.matrices.personas)}; keep records of one study together"
        )


def _is_published(records: Records) -> bool:
    """By the commits that the files name; the wide files name none, but their size and sources are known."""
    named = {records.matrices.about.get("git_commit")} if records.matrices else set()
    named |= {records.analysis.extra.get("git_commit")} if records.analysis else set()
    if named:
        return named <= COMMITS
    return set(records.sources) == set(SOURCES) and len({t for _, t in records.wide_rates()}) == WIDE_SET


def _missing(records: Records) -> tuple[str, ...]:
    due = [MATRICES, ANALYSIS, ANSWERS, WIDE]
    due += [kind.format(label=source) for source in records.sources for kind in (RATES, SUMMARY)]
    there = {*records.digests, *((ANSWERS,) if SEVERAL in records.digests else ())}
    absent = [name for name in due if name not in there]
    return (*absent, *([] if records.cosines else [COSINES]))
