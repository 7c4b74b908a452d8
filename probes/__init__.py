"""Read a model: from (Model, tokens) to a Result. Names are loaded when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "contrast": ("ContrastVectors", "contrast_vectors"),
    "roles": ("RoleVectors", "role_vectors"),
    "readings": ("LastToken", "MeanOver"),
    "centering": (
        "Centroids",
        "CosineMatrices",
        "OnSet",
        "OnVector",
        "Uncentered",
        "centered_cosine",
        "centroids",
    ),
    "vectors": ("Passport", "Vectors", "load_vectors", "save_vectors"),
    "vector_formats": ("read_vectors",),
    "attention": ("AttentionFractions", "attention_fractions", "marker_rows"),
    "attention_batch": ("Fractions", "fractions_of"),
    "direct": ("Attribution", "attribution", "attributions"),
    "direct_pair": ("AttributionComparison", "compare_attributions"),
    "direct_read": ("Contributions",),
    "lens": ("LogitLens", "logit_lens"),
    "lens_batch": ("lens_values",),
    "lens_pair": ("LensComparison", "compare_lenses"),
    "lens_read": ("LensValues",),
    "translators": ("Translators", "load_translators", "read_tuned_lens", "save_translators"),
    "outputs": ("OutputDivergence", "output_divergence"),
    "responses": ("Response", "tokenised"),
    "preflight": ("Preflight", "compare_with_eager"),
    "tallies": ("MarkerRates", "marker_rates"),
    "linear": ("LinearProbes", "activations_at", "linear_probes"),
    "markers": ("Detection", "Occurrence", "detect", "find_marker"),
    "persist": ("Release", "Trial", "persistence", "release"),
    "strength": ("Calibration", "EqualKL", "Raw", "ResidualNorms", "Unit", "calibrate"),
}
_OWNER = {name: module for module, names in _HOME.items() for name in names}
__all__ = list(_OWNER)

if TYPE_CHECKING:
    from probes.attention import AttentionFractions as AttentionFractions
    from probes.attention import attention_fractions as attention_fractions
    from probes.attention import marker_rows as marker_rows
    from probes.attention_batch import Fractions as Fractions
    from probes.attention_batch import fractions_of as fractions_of
    from probes.centering import Centroids as Centroids
    from probes.centering import CosineMatrices as CosineMatrices
    from probes.centering import OnSet as OnSet
    from probes.centering import OnVector as OnVector
    from probes.centering import Uncentered as Uncentered
    from probes.centering import centered_cosine as centered_cosine
    from probes.centering import centroids as centroids
    from probes.contrast import ContrastVectors as ContrastVectors
    from probes.contrast import contrast_vectors as contrast_vectors
    from probes.direct import Attribution as Attribution
    from probes.direct import attribution as attribution
    from probes.direct import attributions as attributions
    from probes.direct_pair import AttributionComparison as AttributionComparison
    from probes.direct_pair import compare_attributions as compare_attributions
    from probes.direct_read import Contributions as Contributions
    from probes.lens import LogitLens as LogitLens
    from probes.lens import logit_lens as logit_lens
    from probes.lens_batch import lens_values as lens_values
    from probes.lens_pair import LensComparison as LensComparison
    from probes.lens_pair import compare_lenses as compare_lenses
    from probes.lens_read import LensValues as LensValues
    from probes.linear import LinearProbes as LinearProbes
    from probes.linear import activations_at as activations_at
    from probes.linear import linear_probes as linear_probes
    from probes.markers import Detection as Detection
    from probes.markers import Occurrence as Occurrence
    from probes.markers import detect as detect
    from probes.markers import find_marker as find_marker
    from probes.outputs import OutputDivergence as OutputDivergence
    from probes.outputs import output_divergence as output_divergence
    from probes.persist import Release as Release
    from probes.persist import Trial as Trial
    from probes.persist import persistence as persistence
    from probes.persist import release as release
    from probes.preflight import Preflight as Preflight
    from probes.preflight import compare_with_eager as compare_with_eager
    from probes.readings import LastToken as LastToken
    from probes.readings import MeanOver as MeanOver
    from probes.responses import Response as Response
    from probes.responses import tokenised as tokenised
    from probes.roles import RoleVectors as RoleVectors
    from probes.roles import role_vectors as role_vectors
    from probes.strength import Calibration as Calibration
    from probes.strength import EqualKL as EqualKL
    from probes.strength import Raw as Raw
    from probes.strength import ResidualNorms as ResidualNorms
    from probes.strength import Unit as Unit
    from probes.strength import calibrate as calibrate
    from probes.tallies import MarkerRates as MarkerRates
    from probes.tallies import marker_rates as marker_rates
    from probes.translators import Translators as Translators
    from probes.translators import load_translators as load_translators
    from probes.translators import read_tuned_lens as read_tuned_lens
    from probes.translators import save_translators as save_translators
    from probes.vector_formats import read_vectors as read_vectors
    from probes.vectors import Passport as Passport
    from probes.vectors import Vectors as Vectors
    from probes.vectors import load_vectors as load_vectors
    from probes.vectors import save_vectors as save_vectors


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"probes has no {name!r}; it has {', '.join(sorted(_OWNER))}")
    return getattr(importlib.import_module(f"probes.{_OWNER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
