"""The printed figures of the divergence study, as data: measure, condition, value, printed places.

"write-up" is what the source's text says, right or not; "reference" what its public files are known to give
(methods 4, 5.4, 5.5, 6, 16).
"""

from typing import Any

from studies.audit import Claim

LAYERS = ("layer 10", "layer 15", "layer 20", "layer 25")


def by_layer(measure: str, key: str, *values: float, digits: int, origin: Any = "write-up") -> list[Claim]:
    """One claim a layer: 10, 15, 20, 25."""
    pairs = zip(LAYERS, values, strict=True)
    return [Claim(measure, layer, {key: value}, digits, origin=origin) for layer, value in pairs]


def p_values(measure: str, *values: tuple[float, int]) -> list[Claim]:
    """One p a layer with its own places."""
    pairs = zip(LAYERS, values, strict=True)
    return [Claim(measure, layer, {"p": p}, digits) for layer, (p, digits) in pairs]


def known(measure: str, value: Any, digits: int | None = None) -> Claim:
    """What the public files are known to give."""
    return Claim(measure, "all", value, digits, origin="reference")


BEATS = "JS beats cosine"
CENTRED = "cosine against leakage, own centring"
ON_WIDE = "cosine against leakage, wide centring"
PRIOR = "cosine against leakage, all pairs"
LIKE = "JS against cosine"
PARTIAL, DELTA = "partial correlations, own centring", "delta R², own centring"
PARTIAL_WIDE, DELTA_WIDE = "partial correlations, wide centring", "delta R², wide centring"
PREDICTION = [
    Claim("JS against leakage", "all", {"rho": -0.746}, 3),
    Claim("JS against leakage", "all", {"p": 5.2e-10}, 11),
    *by_layer(CENTRED, "rho", 0.169, 0.520, 0.567, 0.557, digits=3),
    *p_values(CENTRED, (0.24, 2), (1.1e-4, 5), (1.7e-5, 6), (2.6e-5, 6)),
    *by_layer(LIKE, "rho", -0.246, -0.710, -0.735, -0.723, digits=3),
    *p_values(LIKE, (0.070, 3), (1.2e-9, 10), (1.6e-10, 11), (4.7e-10, 11)),
    Claim(PARTIAL, "all", {"JS|cosine": -0.605, "cosine|JS": 0.181}, 3),
    Claim(PARTIAL, "all", {"p of JS|cosine": 4.1e-6}, 7),
    Claim(PARTIAL, "all", {"p of cosine|JS": 0.21}, 2),
    Claim(DELTA, "all", {"add JS": 0.122, "add cosine": 0.041}, 3),
    Claim(DELTA, "all", {"cosine alone": 0.40, "JS alone": 0.48, "both": 0.52, "F of JS": 11.96,
                         "F of cosine": 4.07}, 2),
    Claim(DELTA, "all", {"p of JS": 1.2e-3}, 4),
    Claim(DELTA, "all", {"p of cosine": 0.049}, 3),
    *by_layer(PRIOR, "rho at the file's 4 decimals", 0.394, 0.588, 0.602, 0.608, digits=3),
    *[Claim(PRIOR, layer, {"pairs": 550}) for layer in LAYERS],
    Claim("KL asymmetry", "all", {"rho": 0.34, "p": 0.34}, 2),
    Claim("KL asymmetry", "all", {"pairs": 10}),
    Claim(BEATS, "all", {"under both centrings": True}),
]  # fmt: skip
MATRICES = [
    Claim("range of JS", "all", {"min": 0.005, "max": 0.052, "mean": 0.026, "std": 0.012}, 3),
    Claim("range of JS", "all", {"ratio": 10.7}, 1),
    Claim("published criteria", "all", {"std > 0.05": False, "ratio > 3": True}),
    Claim("extreme pairs", "all", {"nearest": "software_engineer–data_scientist",
                                   "farthest": "comedian–zelthari_scholar"}),
    Claim("averaging of JS", "all", {"matrix is the mean over": "pair"}),
    Claim("uninformative questions", "all", {"uninformative": 0}),
    Claim("personas of the wide set", "all", {"personas": 112}),
]  # fmt: skip
REFERENCE = [
    *by_layer(ON_WIDE, "rho", 0.574, 0.746, 0.763, 0.732, digits=3, origin="reference"),
    known(PARTIAL_WIDE, {"JS|cosine": -0.34, "cosine|JS": 0.41}, 2),
    known(PARTIAL_WIDE, {"p of JS|cosine": 0.016, "p of cosine|JS": 0.003}, 3),
    known(DELTA_WIDE, {"F of JS": 0.32, "p of JS": 0.57}, 2),
    known(DELTA_WIDE, {"F of cosine": 17.8}, 1),
    known(DELTA_WIDE, {"p of cosine": 1e-4}, 4),
    known(PARTIAL, {"JS|cosine": -0.6053, "cosine|JS": 0.1808, "p of cosine|JS": 0.2139}, 4),
    known(DELTA, {"JS alone": 0.4800, "cosine alone": 0.3996, "both": 0.5214, "add JS": 0.1218,
                  "add cosine": 0.0415, "p of cosine": 0.0494}, 4),
    known("range of JS", {"min": 0.0049, "max": 0.0522, "std": 0.0123}, 4),
    known("averaging of JS", {"matrix is the mean over": "all", "responses": 220}),
    known("averaging of JS", {"range as described": [0.0043, 0.0775]}, 4),
    known("JS by response selection", {"all": -0.746, "pair": -0.798, "source": -0.839, "target": -0.510}, 3),
    known("KL against leakage", {"KL(source‖target)": -0.768, "KL(target‖source)": -0.626}, 3),
    known("sources without a rho", {"sources": ["comedian"]}),
    known("personas of the wide set", {"personas": 111}),
    known(BEATS, {"at every layer, own centring": True,
                              "at every layer, wide centring": False}),
]  # fmt: skip
CLAIMS = (*PREDICTION, *MATRICES, *REFERENCE)
