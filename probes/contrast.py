"""Contrast vectors: the direction from one set of prompts to another, at every layer (methods 10.1).

Sets of one size are taken as pairs by their order (the same questions under two system prompts) where that
matters: for the PCA and for the split halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from mechinterp.chat import Prompt
from mechinterp.directions import NormNull, mean_difference, pca_of_differences
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import SiteName
from probes.readings import (
    LAST,
    LastToken,
    MeanOver,
    Position,
    Source,
    column,
    passport_of,
    positions_of,
    read,
    several,
)
from probes.reliability import derived_generator, norm_null, percentile, small, split_half
from probes.vectors import Vectors

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["ContrastVectors", "LastToken", "MeanOver", "Position", "contrast_vectors", "positions_of"]

Method = Literal["mean_difference", "pca_of_differences"]


@dataclass(frozen=True, eq=False)
class ContrastVectors(Result):
    """One direction a layer; `vectors[22]` is [d_model].

    `norm`, `splits`, `null` and `p` are of the mean difference, also where `values` are unit directions.
    `splits` and `null` have no rows and `p` is NaN where there are too few prompts (see `notes`). For pairs
    the null is conservative: it takes all prompts for exchangeable, so the questions' own variance is in it.
    """

    layers: tuple[int, ...]
    values: Float[Tensor, "layer d_model"]
    positive: Float[Tensor, "prompt layer d_model"]
    negative: Float[Tensor, "prompt_ layer d_model"]
    norm: Float[Tensor, "layer"]
    residual_norm: Float[Tensor, "layer"]  # mean norm of the activations read: the unit of relative norms
    splits: Float[Tensor, "split layer"]  # cosine between two random halves
    null: Float[Tensor, "permutation layer"]  # norms with shuffled labels
    p: Float[Tensor, "layer"]
    method: str
    seed: int
    source: Source
    notes: tuple[str, ...]

    def __getitem__(self, layer: int) -> Float[Tensor, "d_model"]:
        return self.values[column(self.layers, layer)]

    @property
    def split_half(self) -> Float[Tensor, "layer"]:
        """Mean cosine over the splits; NaN where there are none."""
        return self.splits.mean(0)

    @property
    def null_percentile(self) -> Float[Tensor, "layer"]:
        """The share of shuffled labels that give a smaller norm, in percent; NaN without a null."""
        return percentile(NormNull(self.norm, self.null, self.p))

    def vectors(self, name: str) -> Vectors:
        """The directions under a name, with the passport that they travel with as one safetensors file."""
        passport = passport_of(
            self.source,
            method=self.method,
            reference="the negative prompts",
            n_target=len(self.positive),
            n_reference=len(self.negative),
            split_half=self.split_half[None],
            null_percentile=self.null_percentile[None],
        )
        return Vectors((name,), self.layers, self.values[None], passport)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: norm, relative_norm (in mean residual norms), split_half, null_percentile, p."""
        import pandas as pd

        columns = {
            "norm": self.norm,
            "relative_norm": self.norm / self.residual_norm,
            "split_half": self.split_half,
            "null_percentile": self.null_percentile,
            "p": self.p,
        }
        return pd.DataFrame({"layer": self.layers} | {name: x.tolist() for name, x in columns.items()})

    def figure(self) -> go.Figure:
        """The norm in residual norms beside its null, and the split-half cosine, over the layers."""
        import pandas as pd

        from mechinterp.figures import caption, per_layer

        drawn = {
            "norm / residual norm": (self.norm / self.residual_norm)[None],
            "norm, labels shuffled": self.null / self.residual_norm,
            "split-half cosine": self.splits,
        }
        lines = [
            {"layer": layer, "measure": name, "value": float(rows[:, k].mean()), **_spread(rows[:, k])}
            for name, rows in drawn.items()
            if len(rows)
            for k, layer in enumerate(self.layers)
        ]
        n, m = len(self.positive), len(self.negative)
        subtitle = caption(
            self.source.model,
            n=n + m,
            unit="prompt",
            seeds=[self.seed],
            band=f"central 90 % of {len(self.splits)} splits and of {len(self.null)} shuffles",
            more=[f"{n} against {m}", f"{self.source.site}, {self.source.pooling}", *self.notes],
        )
        title = f"Contrast by layer ({self.method.replace('_', ' ')})"
        return per_layer(
            pd.DataFrame(lines),
            "value",
            by="measure",
            low="low",
            high="high",
            subtitle=subtitle,
            title=title,
            y_title="ratio or cosine",
        )


def contrast_vectors(
    model: Model,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    *,
    site: SiteName = "resid_post",
    layers: Sequence[int] | None = None,
    position: Position = LAST,
    method: Method = "mean_difference",
    seed: int = 0,
) -> ContrastVectors:
    """The direction from the negative prompts to the positive ones at every layer, in one pass over each.

    mean_difference is mean(positive) - mean(negative); pca_of_differences is a unit direction, signed as
    it is, and needs prompts paired by their order. Raises ValueError for empty sets and a contrast of zero.
    """
    _check_method(method, len(several("positive", positive)), len(several("negative", negative)))
    sets = {"positive": positive, "negative": negative}
    reading = read(model, sets, site=site, layers=layers, position=position)
    a, b = reading.sets()
    null = norm_null(a, b, derived_generator(seed, "permutation"))
    splits = split_half((a, b), lambda means: means[:1] - means[1:], derived_generator(seed, "split-half"))
    return ContrastVectors(
        layers=reading.layers,
        values=mean_difference(a, b) if method == "mean_difference" else pca_of_differences(a - b),
        positive=a,
        negative=b,
        norm=null.observed,
        residual_norm=reading.values.norm(dim=-1).mean(0),
        splits=splits[:, 0],
        null=null.null,
        p=null.p,
        method=method,
        seed=seed,
        source=reading.source,
        notes=(*reading.notes, *small((len(a), len(b)))),
    )


def _check_method(method: str, n: int, m: int) -> None:
    if method not in ("mean_difference", "pca_of_differences"):
        raise ValueError(f"method is 'mean_difference' or 'pca_of_differences', not {method!r}")
    if method == "pca_of_differences" and n != m:
        raise ValueError(
            f"pca_of_differences needs prompts in pairs, not {n} and {m};"
            " give as many of each, or use mean_difference"
        )


def _spread(draws: Float[Tensor, "draw"]) -> dict[str, float]:
    """The central 90 % of some draws; nothing for a single value."""
    if len(draws) < 2:
        return {"low": float("nan"), "high": float("nan")}
    return {"low": float(draws.quantile(0.05)), "high": float(draws.quantile(0.95))}
