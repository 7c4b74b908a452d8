"""PatchGrid: what every metric read in every cell of every case, beside the run without and the donor's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.stats.clustered import ClusteredMean, clustered_mean
from mechinterp.stats.multiplicity import MaxT, max_t
from patching.cases import Case
from patching.sweep import Swept

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LEAST = 0.5  # nats between source and target below which a recovered fraction means nothing (methods 12.3)
Quantity = Literal["effect", "recovered"]


@dataclass(frozen=True, eq=False)
class PatchGrid(Result):
    """Cells are sets of layers by columns: positions, named places or heads.

    `baseline` is the target's untouched run; `donor_values` what was read in the run that gave the rows, NaN
    where they came from no run. `null_values` are the same maps under placebos of the same size. `engine`
    says how cells were computed; `minimum` is the least number of token-layers that any exact engine runs.
    """

    donor: str
    target: str
    target_sha256: str
    site: str
    layers: tuple[tuple[int, ...], ...]
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Float[Tensor, "case layer column metric"]
    baseline: Float[Tensor, "case metric"]
    donor_values: Float[Tensor, "case metric"]
    nulls: tuple[str, ...]
    null_values: Float[Tensor, "null case layer column metric"]
    cases: tuple[str, ...]
    clusters: tuple[str, ...] | None
    labels: tuple[str, ...]
    engine: str
    token_layers: int
    seed: int

    @staticmethod
    def of(
        donor: str,
        target: Model,
        cases: Sequence[Case],
        site: str,
        sets: tuple[tuple[int, ...], ...],
        columns: tuple[str, ...],
        swept: Sequence[Swept],
        donor_values: Float[Tensor, "case metric"],
        nulls: tuple[str, ...],
        seed: int,
    ) -> "PatchGrid":
        """The grid of finished sweeps, whose cells are the maps of all nulls after the patch's own."""
        shape = (len(swept), 1 + len(nulls), len(sets), len(columns), swept[0].baseline.shape[0])
        values = torch.stack([one.values for one in swept]).reshape(shape)
        clusters = tuple(str(case.cluster) for case in cases)
        return PatchGrid(
            donor=donor,
            target=target.name,
            target_sha256=target.weights_sha256,
            site=site,
            layers=sets,
            columns=columns,
            metrics=tuple(metric.name for metric in cases[0].metrics),
            values=values[:, 0],
            baseline=torch.stack([one.baseline for one in swept]),
            donor_values=donor_values,
            nulls=nulls,
            null_values=values[:, 1:].transpose(0, 1).contiguous(),
            cases=tuple(case.name or str(number) for number, case in enumerate(cases)),
            clusters=None if any(case.cluster is None for case in cases) else clusters,
            labels=_labels(target, cases, columns),
            engine="; ".join(sorted({one.engine for one in swept})),
            token_layers=sum(one.token_layers for one in swept),
            seed=seed,
        )

    # quantities ---------------------------------------------------------------------------------------------

    def metric(self, name: str | None = None) -> int:
        """Where a metric stands, the first by default; KeyError with the names there are."""
        if name is None:
            return 0
        if name not in self.metrics:
            raise KeyError(f"there is no metric {name!r}; the grid has {', '.join(self.metrics)}")
        return self.metrics.index(name)

    def effects(
        self, metric: str | None = None, *, null: str | None = None
    ) -> Float[Tensor, "case layer column"]:
        """Patched minus untouched, in the metric's units; of a null's map where one is named."""
        at = self.metric(metric)
        values = self.values if null is None else self.null_values[self._null(null)]
        return values[..., at] - self.baseline[:, at, None, None]

    def recovered(
        self, metric: str | None = None, *, null: str | None = None, least: float = LEAST
    ) -> Float[Tensor, "case layer column"]:
        """Effect as a fraction of donor minus target: 0 nothing, 1 everything.

        NaN in the cases where the two differ by less than `least`; `n_undefined` counts them.
        """
        effects = self.effects(metric, null=null)
        return effects / torch.where(self._apart(metric, least), self._gap(metric), torch.nan)[:, None, None]

    def n_undefined(self, metric: str | None = None, *, least: float = LEAST) -> int:
        """In how many cases donor and target hardly differ, or the rows came from no run."""
        return int((~self._apart(metric, least)).sum())

    def _gap(self, metric: str | None) -> Float[Tensor, "case"]:
        at = self.metric(metric)
        return self.donor_values[:, at] - self.baseline[:, at]

    def _apart(self, metric: str | None, least: float) -> Tensor:
        return self._gap(metric).abs() >= least

    def _null(self, name: str) -> int:
        if name not in self.nulls:
            raise KeyError(f"there is no null {name!r}; the grid was swept with {list(self.nulls)}")
        return self.nulls.index(name)

    def quantity(
        self, of: Quantity, metric: str | None = None, null: str | None = None
    ) -> Float[np.ndarray, "case cell"]:
        """Effects or recovered fractions with one column a cell, layer sets first."""
        found = self.effects(metric, null=null) if of == "effect" else self.recovered(metric, null=null)
        return found.flatten(1).double().numpy()

    # inference ----------------------------------------------------------------------------------------------

    @property
    def unit(self) -> str:
        return "case" if self.clusters is None else "cluster"

    def mean(self, of: Quantity = "effect", metric: str | None = None) -> ClusteredMean:
        """The mean of each cell over cases, with bounds over the units that cases belong to."""
        return clustered_mean(self.quantity(of, metric), self.clusters, unit=self.unit)

    def test(self, of: Quantity = "effect", metric: str | None = None, *, against: str | None = None) -> MaxT:
        """Sign-flip max-T over all cells; against a null's map where one is named, paired."""
        values = self.quantity(of, metric)
        if against is not None:
            values = values - self.quantity(of, metric, against)
        return max_t(values, self.clusters, unit=self.unit, seed=self.seed)

    # tables and figures -------------------------------------------------------------------------------------

    def layer_name(self, index: int) -> str:
        """A set of layers as it is written on an axis: `4`, or `4–9`."""
        part = self.layers[index]
        return str(part[0]) if len(part) == 1 else f"{min(part)}–{max(part)}"

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a case, set of layers, column and metric, nulls beside the patch."""
        import pandas as pd

        parts = []
        for null, values in ((None, self.values), *zip(self.nulls, self.null_values, strict=True)):
            axes = [self.cases, range(len(self.layers)), self.columns, self.metrics]
            table = pd.MultiIndex.from_product(axes, names=["case", "layers", "column", "metric"])
            table = table.to_frame(index=False)
            table["layers"] = [self.layer_name(i) for i in table["layers"]]
            table["patch"] = null or self.donor
            table["value"] = values.flatten().tolist()
            table["baseline"] = self.baseline[:, None, None].expand(values.shape).flatten().tolist()
            table["donor_value"] = self.donor_values[:, None, None].expand(values.shape).flatten().tolist()
            parts.append(table)
        return pd.concat(parts, ignore_index=True)

    def figure(self, of: Quantity = "effect", metric: str | None = None) -> "go.Figure":
        """Layers by columns, mean over cases, with the map of each null beside it on the same scale."""
        from patching.grid_figures import maps

        return maps(self, of, metric)

    def profile(self, of: Quantity = "effect", metric: str | None = None) -> "go.Figure":
        """The columns as lines over layers, with bands; for grids of a few places and single layers."""
        from patching.grid_figures import profile

        return profile(self, of, metric)


def _labels(target: Model, cases: Sequence[Case], columns: tuple[str, ...]) -> tuple[str, ...]:
    """Columns as they are drawn: with their token, where they are the positions of a single text."""
    if len(cases) > 1 or target.tokenizer is None or not set(columns) <= set(cases[0].places):
        return columns
    places, ids = cases[0].places, cases[0].tokens
    return tuple(
        f"{name} {target.decode(ids[list(places[name])])!r}" if len(places[name]) == 1 else name
        for name in columns
    )
