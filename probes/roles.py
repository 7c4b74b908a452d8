"""Role vectors: every role minus the control, or minus the mean of the other roles (methods 10.1).

A prompt that cannot be read raises; nothing is skipped, so a row belongs to the name that it is asked by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.chat import Prompt
from mechinterp.directions import NormNull
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import SiteName
from probes.readings import LAST, Position, Source, column, passport_of, read, row
from probes.reliability import derived_generator, norm_null, percentile, small, split_half
from probes.vectors import Vectors

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Against = Literal["control", "others"]


@dataclass(frozen=True, eq=False)
class RoleVectors(Result):
    """One direction for every role and layer; `vectors["villain", 22]` is [d_model].

    The control has a row too: exactly zero against itself, and against the others itself minus the mean of
    all roles. Where a number cannot be had (a zero row, too few prompts) it is NaN.
    """

    names: tuple[str, ...]
    control: str
    against: str
    layers: tuple[int, ...]
    values: Float[Tensor, "role layer d_model"]
    per_prompt: Float[Tensor, "prompt layer d_model"]  # the activations; row i is of role `owner[i]`
    owner: Int[Tensor, "prompt"]
    norm: Float[Tensor, "role layer"]
    residual_norm: Float[Tensor, "layer"]
    split_half: Float[Tensor, "role layer"]
    null_percentile: Float[Tensor, "role layer"]
    p: Float[Tensor, "role layer"]
    seed: int
    source: Source
    notes: tuple[str, ...]

    def __getitem__(self, key: tuple[str, int]) -> Float[Tensor, "d_model"]:
        name, layer = key
        return self.values[row(self.names, name), column(self.layers, layer)]

    @property
    def reference(self) -> str:
        """What was subtracted, in words."""
        return self.control if self.against == "control" else "the mean of the other roles"

    def prompts_of(self, name: str) -> Float[Tensor, "n layer d_model"]:
        """The activations of one role's prompts, in their order."""
        return self.per_prompt[self.owner == row(self.names, name)]

    def vectors(self) -> Vectors:
        """The roles' directions with their passport; the control, which is the reference, is left out."""
        kept = [k for k, name in enumerate(self.names) if name != self.control]
        counts = {len(self.prompts_of(name)) for name in self.names}
        n = counts.pop() if len(counts) == 1 else None  # a passport holds one number for all roles
        others = 1 if self.against == "control" else len(kept) - 1
        passport = passport_of(
            self.source,
            method="mean_difference",
            reference=self.reference,
            n_target=n,
            n_reference=None if n is None else n * others,
            split_half=self.split_half[kept],
            null_percentile=self.null_percentile[kept],
        )
        return Vectors(tuple(self.names[k] for k in kept), self.layers, self.values[kept], passport)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for every role and layer: n, norm, relative_norm, split_half, null_percentile, p."""
        import pandas as pd

        measures = {
            "norm": self.norm,
            "relative_norm": self.norm / self.residual_norm,
            "split_half": self.split_half,
            "null_percentile": self.null_percentile,
            "p": self.p,
        }
        return pd.DataFrame(
            {"role": name, "layer": layer, "n": int((self.owner == r).sum())}
            | {measure: float(table[r, k]) for measure, table in measures.items()}
            for r, name in enumerate(self.names)
            for k, layer in enumerate(self.layers)
        )

    def figure(self, measure: Literal["relative_norm", "split_half"] = "relative_norm") -> go.Figure:
        """One line a role over the layers: the norm in mean residual norms, or the split-half cosine."""
        from mechinterp.figures import caption, per_layer

        roles = len(self.names) - 1
        subtitle = caption(
            self.source.model,
            n=len(self.per_prompt),
            unit="prompt",
            seeds=[self.seed],
            band="none",
            more=[
                f"{roles} roles minus {self.reference}",
                f"{self.source.site}, {self.source.pooling}",
                *self.notes,
            ],
        )
        said = {"relative_norm": "norm / residual norm", "split_half": "split-half cosine"}
        if measure not in said:
            raise ValueError(f"measure is 'relative_norm' or 'split_half', not {measure!r}")
        title = f"Role vectors by layer: {said[measure]}"
        frame = self.to_dataframe().set_index("role").drop(index=self.control).reset_index()
        return per_layer(frame, measure, by="role", subtitle=subtitle, title=title, y_title=said[measure])


def role_vectors(
    model: Model,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    control: str,
    against: Against = "control",
    site: SiteName = "resid_post",
    layers: Sequence[int] | None = None,
    position: Position = LAST,
    seed: int = 0,
) -> RoleVectors:
    """mean(role) - mean(control), or mean(role) - the mean of the other roles' means, at every layer.

    The control is the default, not a role: it is never among the others. Raises ValueError for a control
    without prompts, too few roles, and a role that equals its reference at every layer, by its name.
    """
    _check_roles(list(prompts), control, against)
    reading = read(model, prompts, site=site, layers=layers, position=position)
    sets = reading.sets()
    index = reading.names.index(control)
    contrast = partial(_contrast, control=index, against=against)
    values = contrast(torch.stack([rows.mean(0) for rows in sets]))
    nulls = _nulls(reading.names, sets, index, against, seed)
    return RoleVectors(
        names=reading.names,
        control=control,
        against=against,
        layers=reading.layers,
        values=values,
        per_prompt=reading.values,
        owner=reading.owner,
        norm=values.norm(dim=-1),
        residual_norm=reading.values.norm(dim=-1).mean(0),
        split_half=split_half(sets, contrast, derived_generator(seed, "split-half")).mean(0),
        null_percentile=torch.stack([percentile(null) for null in nulls]),
        p=torch.stack([null.p for null in nulls]),
        seed=seed,
        source=reading.source,
        notes=(*reading.notes, *small([len(rows) for rows in sets])),
    )


def _check_roles(names: list[str], control: str, against: str) -> None:
    if against not in ("control", "others"):
        raise ValueError(f"against is 'control' or 'others', not {against!r}")
    if control not in names:
        raise ValueError(f"the control {control!r} has no prompts; the names are {', '.join(names)}")
    needed = 1 if against == "control" else 2
    if len(names) - 1 < needed:
        raise ValueError(
            f"against={against!r} needs {needed} or more roles beside the control, not {len(names) - 1}"
        )


def _contrast(
    means: Float[Tensor, "role layer d_model"], *, control: int, against: Against
) -> Float[Tensor, "role layer d_model"]:
    """Each row minus the control's row, or minus the mean of the other roles' rows."""
    if against == "control":
        return means - means[control]
    roles = torch.arange(len(means)) != control
    total = means[roles].sum(0)
    others = (total - means) / (int(roles.sum()) - 1)
    others[control] = total / roles.sum()
    return means - others


def _nulls(
    names: Sequence[str],
    sets: Sequence[Float[Tensor, "_n layer d_model"]],
    control: int,
    against: Against,
    seed: int,
) -> list[NormNull]:
    """The null of each role beside its reference's pooled prompts; NaN for the control against itself."""
    nulls = []
    for k, name in enumerate(names):
        others = {control} if against == "control" else set(range(len(sets))) - {control}
        reference = [sets[other] for other in sorted(others - {k})]
        if not reference:
            nothing = torch.full_like(sets[k][0, :, 0], torch.nan)
            nulls.append(NormNull(nothing, nothing[None][:0], nothing))
            continue
        try:
            nulls.append(
                norm_null(sets[k], torch.cat(reference), derived_generator(seed, f"permutation/{name}"))
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return nulls
