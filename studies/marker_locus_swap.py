"""What attention sees or how it looks: each model's stream into each model's attention (methods 12.11).

Training may change the stream that enters a block, or the block's own query and key weights. The attention
of a row to the system prompt is read with the stream of one model and the weights of the other, in all four
ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from mechinterp.interventions import Apply
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import Site, sites
from mechinterp.stats.clustered import ClusteredMean, clustered_mean
from mechinterp.where import At

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

WAYS = (("trained", "trained"), ("trained", "base"), ("base", "trained"), ("base", "base"))


@dataclass(frozen=True, eq=False)
class Swap(Result):
    """The share of a row's attention on a region, head mean, for each of WAYS (stream, weights).

    `stream_effect` and `weight_effect` are the main effects of the two by two, `interaction` what both do
    together beyond that; trained minus base is the sum of the two main effects.
    """

    questions: tuple[str, ...]
    region: str
    fraction: Float[Tensor, "example way layer"]

    @property
    def stream_effect(self) -> Float[Tensor, "example layer"]:
        tt, tb, bt, bb = self.fraction.unbind(1)
        return ((tt - bt) + (tb - bb)) / 2

    @property
    def weight_effect(self) -> Float[Tensor, "example layer"]:
        tt, tb, bt, bb = self.fraction.unbind(1)
        return ((tt - tb) + (bt - bb)) / 2

    @property
    def interaction(self) -> Float[Tensor, "example layer"]:
        tt, tb, bt, bb = self.fraction.unbind(1)
        return (tt - tb) - (bt - bb)

    def effects(self) -> dict[str, Float[np.ndarray, "example layer"]]:
        """The three contrasts by name."""
        found = {"stream": self.stream_effect, "weights": self.weight_effect, "interaction": self.interaction}
        return {name: values.double().numpy() for name, values in found.items()}

    def tested(self) -> dict[str, ClusteredMean]:
        """Each contrast by layer, questions as units."""
        return {
            name: clustered_mean(values, self.questions, unit="question")
            for name, values in self.effects().items()
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a layer and contrast."""
        import pandas as pd

        parts = [
            one.curve().to_dataframe("layer", "effect").assign(contrast=name)
            for name, one in self.tested().items()
        ]
        return pd.concat(parts, ignore_index=True)

    def figure(self) -> "go.Figure":
        """The three contrasts by layer."""
        from mechinterp.figures import caption, per_layer

        return per_layer(
            self.to_dataframe(), "effect", by="contrast", low="low", high="high",
            title=f"Attention to {self.region}: what it sees, or how it looks",
            y_title="change of the fraction, head mean",
            subtitle=caption("trained − base", n=len(set(self.questions)), unit="question", seeds=(),
                             band="95 % over questions"),
        )  # fmt: skip


@torch.no_grad()
def swapped(
    trained: Model,
    base: Model,
    texts: Sequence[Sequence[int]],
    rows: Sequence[int],
    regions: Sequence[Sequence[int]],
    *,
    questions: Sequence[str],
    region: str,
) -> Swap:
    """The row's attention to its text's region in the four ways, every layer in one pass a way."""
    found = []
    for ids, row, keys in zip(texts, rows, regions, strict=True):
        tokens = torch.tensor(ids)[None, : row + 1]
        streams = {name: _stream(model, tokens) for name, model in (("trained", trained), ("base", base))}
        models = {"trained": trained, "base": base}
        ways = [_fraction(models[weights], tokens, row, keys, streams[stream]) for stream, weights in WAYS]
        found.append(torch.stack(ways))
    return Swap(tuple(questions), region, torch.stack(found))


def _stream(model: Model, tokens: Tensor) -> Float[Tensor, "layer position d_model"]:
    layers = range(model.dims.n_layers)
    seen = model.forward(tokens, capture=sites("resid_pre", layers), logits_at=())
    return seen.stack("resid_pre")[:, 0]


def _fraction(
    model: Model,
    tokens: Tensor,
    row: int,
    keys: Sequence[int],
    stream: Float[Tensor, "layer position d_model"],
) -> Float[Tensor, "layer"]:
    """With every block's input replaced, each layer attends as it would to that stream alone."""
    layers, at = range(model.dims.n_layers), At(tuple(range(tokens.shape[1])))
    edits = [
        Apply(site=Site("resid_pre", layer), where=at, function=lambda _, layer=layer: stream[layer].float())
        for layer in layers
    ]
    seen = model.forward(
        tokens, capture=sites("pattern", layers), positions=[row], interventions=edits, logits_at=()
    )
    chosen = torch.zeros(tokens.shape[1])
    chosen[list(keys)] = 1.0
    pattern = seen.stack("pattern")[:, 0, :, 0].cpu()
    return reduce(einsum(pattern, chosen, "layer head key, key -> layer head"), "layer head -> layer", "mean")
