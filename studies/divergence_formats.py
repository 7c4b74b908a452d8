"""The published analyses: of output divergence, and of cosine against leakage (methods 13).

Field names are the keys of the files; keys that are not named here are kept in `extra` and written again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechinterp.json_io import read_json, write_json
from studies.attention_formats_codec import decode_record, encode_record, read_record

AGGREGATE, CATEGORIES, DETAIL = "_aggregate", "_per_category", "_per_source_detail"


@dataclass(frozen=True)
class PairSpread:
    """JS over unordered pairs against the published bars."""

    n_pairs: int
    js_mean: float
    js_std: float
    js_min: float
    js_max: float
    js_ratio: float
    pass_std: bool
    pass_ratio: bool
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Correlated:
    """Rank and linear correlation with the p that takes every pair as independent."""

    spearman_rho: float
    spearman_p: float
    pearson_r: float
    pearson_p: float
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layered:
    """JS against the cosine of each layer ("layer_20")."""

    layers: Mapping[str, Correlated]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DirectedPair:
    """How much a source leaked into a target, and their JS."""

    source: str
    target: str
    leakage_rate: float
    js_value: float
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeakageComparison:
    """JS and, by layer, the cosine against leakage over directed pairs."""

    n_pairs: int
    js_leakage_spearman_rho: float
    js_leakage_spearman_p: float
    js_leakage_pearson_r: float
    js_leakage_pearson_p: float
    directed_pairs: tuple[DirectedPair, ...]
    cosine_matched: Mapping[str, Correlated]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AsymmetricPair:
    """Both directions of KL and of leakage between two sources."""

    persona_a: str
    persona_b: str
    kl_a_to_b: float
    kl_b_to_a: float
    kl_asym: float
    leak_a_to_b: float
    leak_b_to_a: float
    leak_asym: float
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AsymmetryFound:
    """Asymmetry of KL against asymmetry of leakage."""

    n_pairs: int
    spearman_rho: float
    spearman_p: float
    pairs: tuple[AsymmetricPair, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QuestionSpread:
    """JS over the responses and pairs of one question."""

    question: str
    js_mean: float
    js_std: float
    js_min: float
    js_max: float
    n_values: int
    uninformative: bool
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QuestionSpreads:
    """Every question."""

    questions: tuple[QuestionSpread, ...]
    n_uninformative: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnalysisResults:
    """`analysis_results.json`; a part that was not computed is missing."""

    discrimination: PairSpread | None = None
    redundancy: Layered | None = None
    leakage_comparison: LeakageComparison | None = None
    kl_asymmetry: AsymmetryFound | None = None
    per_question: QuestionSpreads | None = None
    metadata: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """`summary.json` of one source: its own rate and those of all other personas."""

    source: str
    source_marker: float
    max_bystander: float
    mean_bystander: float
    n_personas: int
    wall_minutes: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RankedCorrelation:
    """Rank correlation over the pairs of one category of targets; the linear one may be missing."""

    spearman_rho: float
    spearman_p: float
    n_pairs: int
    pearson_r: float | None = None
    pearson_p: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CosineTarget:
    """The cosine (four decimals in the public file) and the leakage of one source into one persona."""

    persona: str
    cosine_sim: float
    leakage_rate: float
    category: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CosineLeakage:
    """One layer of `cosine_leakage_correlation.json`."""

    sources: Mapping[str, RankedCorrelation]
    aggregate: RankedCorrelation | None
    categories: Mapping[str, RankedCorrelation]
    detail: Mapping[str, tuple[CosineTarget, ...]]


def read_analysis(path: Path | str) -> AnalysisResults:
    """`analysis_results.json`; a ValueError names the file and the field."""
    return read_record(AnalysisResults, path)


def write_analysis(path: Path | str, found: AnalysisResults) -> None:
    """In the published schema."""
    write_json(Path(path), encode_record(found))


def read_summary(path: Path | str) -> Summary:
    """`summary.json`; a ValueError names the file and the field."""
    return read_record(Summary, path)


def write_summary(path: Path | str, found: Summary) -> None:
    """In the published schema."""
    write_json(Path(path), encode_record(found))


def read_cosine_leakage(path: Path | str) -> dict[int, CosineLeakage]:
    """`cosine_leakage_correlation.json` by layer; a bare NaN, which one public file has, is read as NaN.

    Raises ValueError with the file and the field.
    """
    document = read_json(Path(path))
    try:
        if not isinstance(document, dict) or not document:
            raise ValueError('$ holds no layers; write an object with "layer20" and so on')
        return {_layer(name): _of_layer(held, f"$.{name}") for name, held in document.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_cosine_leakage(path: Path | str, found: Mapping[int, CosineLeakage]) -> None:
    """In the published schema; what is not finite is null."""
    document = {}
    for layer, each in found.items():
        held: dict[str, Any] = {name: encode_record(one) for name, one in each.sources.items()}
        held |= {AGGREGATE: encode_record(each.aggregate)} if each.aggregate else {}
        held[CATEGORIES] = {name: encode_record(one) for name, one in each.categories.items()}
        held[DETAIL] = {name: [encode_record(one) for one in rows] for name, rows in each.detail.items()}
        document[f"layer{layer}"] = held
    write_json(Path(path), document)


def _layer(name: str) -> int:
    number = name.removeprefix("layer").removeprefix("_")
    if not name.startswith("layer") or not number.isdecimal():
        raise ValueError(f"$ has the key {name!r}; write layers as layer20")
    return int(number)


def _of_layer(held: Any, where: str) -> CosineLeakage:
    if not isinstance(held, dict) or not isinstance(held.get(DETAIL, {}), dict):
        raise ValueError(f"{where} must be an object, and so must its {DETAIL}")

    def ranked(value: Any, name: str) -> RankedCorrelation:
        return decode_record(RankedCorrelation, value, f"{where}.{name}")

    detail = {}
    for source, rows in held.get(DETAIL, {}).items():
        place = f"{where}.{DETAIL}.{source}"
        if not isinstance(rows, list):
            raise ValueError(f"{place} must be a list of personas")
        detail[source] = tuple(
            decode_record(CosineTarget, row, f"{place}[{i}]") for i, row in enumerate(rows)
        )
    return CosineLeakage(
        {name: ranked(each, name) for name, each in held.items() if not name.startswith("_")},
        ranked(held[AGGREGATE], AGGREGATE) if AGGREGATE in held else None,
        {name: ranked(each, name) for name, each in held.get(CATEGORIES, {}).items()},
        detail,
    )
