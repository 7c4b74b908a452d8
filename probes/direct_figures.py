"""An attribution drawn: attention and MLP by layer as lines, heads as cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from mechinterp import figures
from mechinterp.stats.clustered import ClusteredMean, clustered_mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

FROZEN = "final norm frozen at its full value; what a part changes in later ones is not counted"


@dataclass(frozen=True, eq=False)
class Shown:
    """What a figure draws of some rows: means over them, in units of their clusters."""

    model: str
    what: str
    attn_out: Float[Tensor, "row layer"]
    mlp_out: Float[Tensor, "row layer"]
    heads: Float[Tensor, "row layer head"]
    rest: Float[Tensor, "row"]
    difference: Float[Tensor, "row"]
    clusters: tuple[str, ...]


def by_layer(shown: dict[str, Shown]) -> "go.Figure":
    """A line for attn_out and mlp_out of each name, with 95 % bands where there are three clusters."""
    import pandas as pd

    tables = []
    for name, each in shown.items():
        for part, values in (("attn_out", each.attn_out), ("mlp_out", each.mlp_out)):
            table = _mean(values, each.clusters).curve().to_dataframe("layer", "contribution")
            tables.append(table.assign(part=f"{part}, {name}" if name else part))
    last = list(shown.values())[-1]  # of two models the change, whose name is both
    total = [_said(name, each.difference) for name, each in shown.items()]
    rest = [_said(name, each.rest) for name, each in shown.items()]
    more = [f"difference: {', '.join(total)}", f"embedding and biases: {', '.join(rest)}"]
    return figures.per_layer(
        pd.concat(tables, ignore_index=True), "contribution", by="part", low="low", high="high",
        subtitle=_subtitle(last, more),
        title=f"Direct attribution of the logit difference, {last.what}",
        y_title="contribution (logits)",
    )  # fmt: skip


def by_head(shown: Shown) -> "go.Figure":
    """The mean contribution of each head, layers down and heads across."""
    import pandas as pd

    matrix = pd.DataFrame(shown.heads.double().mean(0).numpy())
    return figures.heatmap(
        matrix, subtitle=_subtitle(shown, []), title=f"Direct attribution by head, {shown.what}",
        x_title="head", y_title="layer", colour_title="contribution (logits)", center=0.0,
    )  # fmt: skip


def _said(name: str, values: Float[Tensor, "row"]) -> str:
    return f"{name} {float(values.mean()):+.3g}".strip()


def _mean(values: Float[Tensor, "row layer"], clusters: Sequence[str]) -> ClusteredMean:
    alone = len(set(clusters)) == len(clusters)
    return clustered_mean(values.double().numpy(), None if alone else list(clusters))


def _subtitle(shown: Shown, more: list[str]) -> str:
    n = len(set(shown.clusters))
    unit = "text" if n == len(shown.clusters) else "cluster"
    band = "none" if n < 3 else "95 % CI of the mean (CR2, Student t)"
    return figures.caption(shown.model, n=n, unit=unit, seeds=(), band=band, more=[*more, FROZEN])
