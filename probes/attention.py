"""Where chosen rows of a model look: attention by region, per layer and head (methods 9.4).

Rows are read under the model's own kernel and summed over regions at once. A segmentation is a partition, so
fractions of a row sum to 1; what rounding leaves of that is reported, and nothing is renormalised unasked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp import figures
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.rows import one_text
from mechinterp.segmentation import Segmentation
from mechinterp.theme import INK, numbers
from probes.attention_batch import fractions_of
from probes.markers import Occurrence

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SINK = "position 0"


@dataclass(frozen=True, eq=False)
class AttentionFractions(Result):
    """Named rows of one text: the share of each row's attention that goes to each region.

    `sink` is the attention to position 0, whichever region that is in. `n_keys` counts the positions of a
    region that a row can see under the causal mask. Where `outside_window`, a region has such positions and
    none within a sliding layer's window: the fraction holds 0 and the tables say NaN. `deviation` is how far
    the regions of a row and head are from 1 at worst, before any renormalising.
    """

    model: str
    weights_sha256: str
    kernel: str
    dtype: str
    tokens: Int[Tensor, "position"]
    row_names: tuple[str, ...]
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    regions: tuple[str, ...]
    fractions: Float[Tensor, "row layer head region"]
    sink: Float[Tensor, "row layer head"]
    n_keys: Int[Tensor, "row region"]
    outside_window: Bool[Tensor, "row layer region"]
    sink_outside_window: Bool[Tensor, "row layer"]
    deviation: float
    renormalised_to_one: bool = False

    def renormalised(self) -> "AttentionFractions":
        """The same with every row and head divided by its sum, the sink by the same one."""
        total = self.fractions.sum(-1, keepdim=True)
        return replace(
            self, fractions=self.fractions / total, sink=self.sink / total[..., 0], renormalised_to_one=True
        )

    def row(self, name: str) -> int:
        """Where a named row stands; KeyError with the names there are."""
        if name not in self.row_names:
            raise KeyError(f"there is no row {name!r}; the rows are {', '.join(self.row_names)}")
        return self.row_names.index(name)

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a row, layer and region: the mean over heads, beside that of the sink."""
        fraction = self._flagged(self.fractions)
        return self._table(fraction.mean(2, keepdim=True), self._flagged_sink().mean(2, keepdim=True), None)

    def heads_to_dataframe(self) -> "pd.DataFrame":
        """One line a row, layer, head and region."""
        heads = list(range(self.fractions.shape[2]))
        return self._table(self._flagged(self.fractions), self._flagged_sink(), heads)

    def figure(self, row: str | None = None) -> "go.Figure":
        """Head means by layer of one row (the first by default): a line a region, the sink dashed."""
        name = self.row_names[0] if row is None else row
        at = self.row(name)
        table = self.to_dataframe().query("row == @name and n_keys > 0")
        said = [
            f"row {name} = position {self.positions[at]}",
            f"regions sum to 1 within {self.deviation:.1e}",
        ]
        n_flagged = int(self.outside_window[at].sum())
        if n_flagged:
            said.append(f"{n_flagged} region and layer pairs lie outside a sliding window and are left out")
        subtitle = figures.caption(
            self.model, n=self.fractions.shape[2], unit="head", seeds=(), band="none", more=said
        )
        figure = figures.per_layer(
            table, "fraction", by="region", subtitle=subtitle, title=f"Attention of row {name} by region",
            y_title="fraction of attention, mean over heads",
        )  # fmt: skip
        figure.add_scatter(
            x=list(self.layers), y=numbers(self._flagged_sink()[at].mean(1).tolist()),
            name=f"sink ({SINK}; in a region too)", mode="lines", line={"color": INK, "dash": "dash"},
        )  # fmt: skip
        figure.update_layout(showlegend=True)
        return figure

    def _flagged(self, fractions: Float[Tensor, "row layer head region"]) -> Tensor:
        return fractions.masked_fill(self.outside_window[:, :, None], torch.nan)

    def _flagged_sink(self) -> Float[Tensor, "row layer head"]:
        return self.sink.masked_fill(self.sink_outside_window[..., None], torch.nan)

    def _table(
        self,
        fractions: Float[Tensor, "row layer head region"],
        sink: Float[Tensor, "row layer head"],
        heads: list[int] | None,
    ) -> "pd.DataFrame":
        import pandas as pd

        shape = fractions.shape
        table = pd.MultiIndex.from_product(
            [self.row_names, self.layers, heads or ["mean"], self.regions],
            names=["row", "layer", "head", "region"],
        ).to_frame(index=False)
        row = torch.arange(shape[0])[:, None, None, None].expand(shape).flatten()
        table.insert(1, "position", [self.positions[i] for i in row.tolist()])
        table["fraction"] = fractions.flatten().tolist()
        table["outside_window"] = self.outside_window[:, :, None].expand(shape).flatten().tolist()
        table["n_keys"] = self.n_keys[:, None, None].expand(shape).flatten().tolist()
        table["sink"] = sink[..., None].expand(shape).flatten().tolist()
        return table


def marker_rows(occurrence: Occurrence, read: Literal["emit", "token", "both"] = "emit") -> dict[str, int]:
    """The rows of a marker by name: `emit` decided its first token, `token` has read that token already."""
    rows = {"emit": occurrence.emit, "token": occurrence.token}
    if read == "both":
        return rows
    if read not in rows:
        raise ValueError(f"read is 'emit', 'token' or 'both', not {read!r}")
    return {read: rows[read]}


def attention_fractions(
    model: Model,
    tokens: Int[Tensor, "1 position"] | Int[Tensor, "position"],
    segmentation: Segmentation,
    *,
    rows: Mapping[str, int] | Sequence[int],
    layers: Sequence[int] | None = None,
) -> AttentionFractions:
    """Per layer, head and region, the attention of chosen rows of one text, in fp32.

    segmentation: of all the tokens; `prompt.segmentation.extended(n, "answer")` is A of methods 9.4,
    `.content_only()` of it is B, and `.with_region(...)` adds one. rows: positions by name (`marker_rows`
    names a marker's), or positions alone, which are then named by their numbers; -1 is the last.
    Raises ValueError, TypeError or IndexError before any compute.
    """
    ids = one_text(tokens, many="fractions_of")
    named = dict(rows) if isinstance(rows, Mapping) else {str(row): row for row in rows}
    found = fractions_of(model, [ids], [[segmentation]], [list(named.values())], layers=layers)[0]
    positions = tuple(len(ids) - 1 if row == -1 else int(row) for row in named.values())
    read = tuple(range(model.dims.n_layers)) if layers is None else tuple(sorted(layers))
    windows = [model.dims.windows[layer] if model.dims.windows else None for layer in read]
    newest = _newest(segmentation, positions)
    oldest = torch.tensor([[0 if w is None else row - w + 1 for w in windows] for row in positions])
    counted = segmentation.one_hot().cpu().cumsum(0)[list(positions)].long()
    return AttentionFractions(
        model=model.name,
        weights_sha256=model.weights_sha256,
        kernel=str(model.source.get("attention")),
        dtype=str(model.backend.dtype).removeprefix("torch."),
        tokens=ids.cpu(),
        row_names=tuple(named),
        positions=positions,
        layers=read,
        regions=segmentation.names,
        fractions=found.values[0],
        sink=found.sink,
        n_keys=counted,
        outside_window=(counted > 0)[:, None] & (newest[:, None] < oldest[..., None]),
        sink_outside_window=oldest > 0,
        deviation=found.deviations[0],
    )


def _newest(segmentation: Segmentation, rows: tuple[int, ...]) -> Int[Tensor, "row region"]:
    """The last position of each region that each row can see under the causal mask; -1 where none."""
    region = segmentation.region.cpu()
    found = torch.full((len(rows), len(segmentation.names)), -1)
    for i, row in enumerate(rows):
        for j in range(len(segmentation.names)):
            at = (region[: row + 1] == j).nonzero()
            found[i, j] = int(at[-1]) if len(at) else -1
    return found
