"""Persona centroids, and their cosines about a reference that is always written out (methods 4).

The reference set is part of what is measured: about another set's mean the same personas give other cosines,
and other conclusions. So `center_on` has no default, and every result says what was subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.chat import Prompt
from mechinterp.digests import tensors_sha256
from mechinterp.directions import cosine_matrix
from mechinterp.json_io import canonical_sha256
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import SiteName
from probes.readings import LAST, Position, Source, column, passport_of, read, row
from probes.vectors import Passport, Vectors

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class OnSet:
    """About the mean of these personas; None stands for all that there are. `name` is for figures."""

    names: tuple[str, ...] | None = None
    name: str | None = None


@dataclass(frozen=True, eq=False)
class OnVector:
    """About a given vector a layer, such as the mean of another set of personas."""

    vector: Float[Tensor, "layer d_model"]
    name: str


@dataclass(frozen=True)
class Uncentered:
    """About the origin."""


CenterOn = OnSet | OnVector | Uncentered


@dataclass(frozen=True)
class Reference:
    """What was subtracted: its name, which personas it is the mean of, and the digest of its numbers."""

    name: str
    size: int  # 0 where it is no mean of personas at hand
    personas: tuple[str, ...]
    sha256: str | None


@dataclass(frozen=True, eq=False)
class Centroids(Result):
    """The mean activation of every persona and layer; `centroids["villain", 20]` is [d_model]."""

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "persona layer d_model"]
    per_prompt: Float[Tensor, "prompt layer d_model"]  # row i is of persona `owner[i]`
    owner: Int[Tensor, "prompt"]
    source: Source
    notes: tuple[str, ...]

    def __getitem__(self, key: tuple[str, int]) -> Float[Tensor, "d_model"]:
        name, layer = key
        return self.values[row(self.names, name), column(self.layers, layer)]

    def prompts_of(self, name: str) -> Float[Tensor, "n layer d_model"]:
        """The activations of one persona's prompts, in their order."""
        return self.per_prompt[self.owner == row(self.names, name)]

    def vectors(self) -> Vectors:
        """The centroids with the passport that they travel with."""
        counts = {len(self.prompts_of(name)) for name in self.names}
        n = counts.pop() if len(counts) == 1 else None  # a passport holds one number for all personas
        passport = passport_of(self.source, method="centroid", reference=None, n_target=n, n_reference=None)
        return Vectors(self.names, self.layers, self.values, passport)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for every persona and layer: n, norm, and spread (mean distance of its prompts to it)."""
        import pandas as pd

        spread = (self.per_prompt - self.values[self.owner]).norm(dim=-1)
        return pd.DataFrame(
            {
                "persona": name,
                "layer": layer,
                "n": int((self.owner == p).sum()),
                "norm": float(self.values[p, k].norm()),
                "spread": float(spread[self.owner == p, k].mean()),
            }
            for p, name in enumerate(self.names)
            for k, layer in enumerate(self.layers)
        )

    def figure(self) -> go.Figure:
        """The norm of every centroid over the layers."""
        from mechinterp.figures import caption, per_layer

        more = [f"{self.source.site}, {self.source.pooling}", *self.notes]
        subtitle = caption(
            self.source.model, n=len(self.per_prompt), unit="prompt", seeds=[], band="none", more=more
        )
        frame = self.to_dataframe()
        return per_layer(frame, "norm", by="persona", subtitle=subtitle, title="Centroids: norm by layer")


@dataclass(frozen=True, eq=False)
class CosineMatrices(Result):
    """Cosines of all pairs of personas about `reference`; `cosines[20]` is [persona persona]."""

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "layer persona persona"]
    reference: Reference
    passport: Passport  # of the centroids
    notes: tuple[str, ...]

    def __getitem__(self, layer: int) -> Float[Tensor, "persona persona"]:
        return self.values[column(self.layers, layer)]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for every layer and unordered pair: persona, other, cosine, reference."""
        import pandas as pd

        pairs = torch.triu_indices(len(self.names), len(self.names), offset=1).tolist()
        one, other = ([self.names[i] for i in side] for side in pairs)
        return pd.concat(
            [
                pd.DataFrame(
                    {
                        "layer": layer,
                        "persona": one,
                        "other": other,
                        "cosine": matrix[pairs[0], pairs[1]].tolist(),
                        "reference": self.reference.name,
                    }
                )
                for layer, matrix in zip(self.layers, self.values, strict=True)
            ],
            ignore_index=True,
        )

    def figure(self, layer: int | None = None) -> go.Figure:
        """The matrix of one layer (the middle one of those read, unless asked) as a heat map."""
        import pandas as pd

        from mechinterp.figures import caption, heatmap

        layer = self.layers[len(self.layers) // 2] if layer is None else layer
        names = list(self.names)
        frame = pd.DataFrame(self[layer].numpy(), index=names, columns=names)
        passport = self.passport
        subtitle = caption(
            passport.model or "unknown model",
            n=len(names),
            unit="persona",
            seeds=[],
            band="none",
            more=[f"about {self.reference.name}", f"{passport.site} of layer {layer}", *self.notes],
        )
        return heatmap(
            frame,
            subtitle=subtitle,
            title=f"Cosine between persona centroids, layer {layer}",
            x_title="",
            y_title="",
            colour_title="cosine",
            center=0.0,
        )


def centroids(
    model: Model,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    layers: Sequence[int] | None = None,
    position: Position = LAST,
    site: SiteName = "resid_post",
) -> Centroids:
    """The mean over each persona's prompts at every layer asked (all by default), in the mapping's order.

    Raises ValueError for a persona without prompts. Personas may have unequal numbers of them (see `notes`).
    """
    reading = read(model, prompts, site=site, layers=layers, position=position)
    sets = reading.sets()
    counts = sorted({len(rows) for rows in sets})
    uneven = f"the personas have between {counts[0]} and {counts[-1]} prompts"
    return Centroids(
        names=reading.names,
        layers=reading.layers,
        values=torch.stack([rows.mean(0) for rows in sets]),
        per_prompt=reading.values,
        owner=reading.owner,
        source=reading.source,
        notes=(*reading.notes, *([uneven] if len(counts) > 1 else [])),
    )


def centered_cosine(centroids: Centroids | Vectors, *, center_on: CenterOn) -> CosineMatrices:
    """cos(c_i - r, c_j - r) for all pairs of personas at every layer, r being the reference (methods 4).

    Takes the centroids of a file too (`Vectors`). Raises ValueError for fewer than two personas and for a
    reference that does not fit them. A persona that equals the reference has cosines NaN; `notes` names it.
    """
    of = centroids.vectors() if isinstance(centroids, Centroids) else centroids
    if len(of.names) < 2:
        raise ValueError(f"cosines need two personas or more, not {len(of.names)}")
    center, reference = _reference(of, center_on)
    values = cosine_matrix(of.values, center_on=center)
    notes = []
    if set(reference.personas) == set(of.names):
        notes.append(
            f"{len(of.names)} points about their own mean have cosines of"
            f" {-1 / (len(of.names) - 1):.2f} on average, whatever they are"
        )
    lost = values.diagonal(dim1=1, dim2=2).isnan().any(0)
    notes += [
        f"{name} equals the reference, so its cosines are NaN"
        for name, at in zip(of.names, lost, strict=True)
        if at
    ]
    return CosineMatrices(of.names, of.layers, values, reference, of.passport, tuple(notes))


def _reference(of: Vectors, center_on: CenterOn) -> tuple[Float[Tensor, "layer d_model"] | None, Reference]:
    if isinstance(center_on, Uncentered):
        return None, Reference("the origin (not centred)", 0, (), None)
    if isinstance(center_on, OnVector):
        center = center_on.vector
        if center.shape != of.values.shape[1:]:
            raise ValueError(
                f"the reference {center_on.name!r} has shape {list(center.shape)} and the centroids"
                f" {list(of.values.shape[1:])} [layer d_model]; give one vector for each of their layers"
            )
        if not center.isfinite().all():
            raise ValueError(f"the reference {center_on.name!r} holds NaN or infinity; find what made it")
        return center, Reference(center_on.name, 0, (), tensors_sha256({"reference": center.float()}))
    if not isinstance(center_on, OnSet):
        raise TypeError(
            f"center_on is OnSet(names), OnVector(vector, name) or Uncentered(), not {center_on!r}"
        )
    names = of.names if center_on.names is None else tuple(center_on.names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a reference set needs at least one persona, each once, not {names}")
    members = {name: of.values[row(of.names, name)].float() for name in names}
    called = center_on.name or (
        f"the mean of all {len(names)} personas"
        if set(names) == set(of.names)
        else names[0]
        if len(names) == 1
        else f"the mean of {len(names)} of {len(of.names)} personas"
    )
    digest = canonical_sha256({name: tensors_sha256({"centroid": x}) for name, x in members.items()})
    return torch.stack(list(members.values())).mean(0), Reference(called, len(names), names, digest)
