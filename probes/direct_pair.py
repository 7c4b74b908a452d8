"""Direct logit attribution of two models on the same ids: trained, base and the change between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.alike import check_alike
from mechinterp.model import Model
from mechinterp.results import Result
from probes import direct_figures
from probes.direct import Attribution, attribution
from probes.direct_read import Contributions

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class AttributionComparison(Result):
    """Two models at the same rows of the same ids. Raises ValueError where they were not asked the same."""

    trained: Attribution
    base: Attribution

    def __post_init__(self):
        for name in ("row_names", "positions", "targets", "competitors"):
            one, other = getattr(self.trained, name), getattr(self.base, name)
            if one != other:
                raise ValueError(
                    f"the two attributions have other {name}: {one} and {other}; ask for the same"
                )
        if not torch.equal(self.trained.tokens, self.base.tokens):
            raise ValueError("the two attributions are of other ids; give both models the same tokens")
        shapes = [tuple(each.values.heads.shape) for each in (self.trained, self.base)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the two models have other layers or heads: {shapes[0][1:]} and {shapes[1][1:]}"
            )

    @property
    def change(self) -> Attribution:
        """Trained minus base: its parts sum to the change of the difference."""
        pairs = {
            field.name: (getattr(self.trained.values, field.name), getattr(self.base.values, field.name))
            for field in fields(Contributions)
        }
        errors = ("sum_error", "head_error")
        values = {name: a + b if name in errors else a - b for name, (a, b) in pairs.items()}
        name = f"{self.trained.model} − {self.base.model}"
        both = f"{self.trained.weights_sha256} − {self.base.weights_sha256}"
        return replace(self.trained, model=name, weights_sha256=both, values=Contributions(**values))

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a model (trained, base, change), row and part."""
        return _stacked({name: each.to_dataframe() for name, each in self._readers().items()})

    def heads_to_dataframe(self) -> "pd.DataFrame":
        """One line a model (trained, base, change), row, layer and head."""
        return _stacked({name: each.heads_to_dataframe() for name, each in self._readers().items()})

    def figure(self, row: str | None = None) -> "go.Figure":
        """attn_out and mlp_out of trained, base and their change by layer."""
        return direct_figures.by_layer({name: each.shown(row) for name, each in self._readers().items()})

    def heads_figure(self, row: str | None = None) -> "go.Figure":
        """The change of each head as a cell, layer by head."""
        return self.change.heads_figure(row)

    def _readers(self) -> dict[str, Attribution]:
        return {"trained": self.trained, "base": self.base, "change": self.change}


def compare_attributions(
    trained: Model,
    base: Model,
    tokens: Int[Tensor, "1 position"] | Int[Tensor, "position"],
    *,
    rows: Mapping[str, int] | Sequence[int],
    target: int,
    competitor: int,
) -> AttributionComparison:
    """Both models at the same rows of the same ids; what is raised is as in `attribution`.

    For many texts give `AttributionComparison` the `attributions` of each model.
    """
    check_alike(trained, base)
    asked = {"rows": rows, "target": target, "competitor": competitor}
    return AttributionComparison(attribution(trained, tokens, **asked), attribution(base, tokens, **asked))


def _stacked(tables: "dict[str, pd.DataFrame]") -> "pd.DataFrame":
    import pandas as pd

    return pd.concat([table.assign(model=name) for name, table in tables.items()], ignore_index=True)
