"""The lens on two models over the same ids: trained, base and their difference (methods 12.1).

Whether both read their states with the same final norm and unembedding is tried on drawn vectors and said in
the result; where they do not, the trained states are read through the base's head too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.alike import check_alike
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.rows import one_text
from probes import lens_figures
from probes.lens import LogitLens, as_result
from probes.lens_batch import checked, through
from probes.lens_read import GATE, Targets, ask, distance, head_logits
from probes.translators import Translators

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Heads = Literal["identical", "equal to rounding", "different"]
DRAWN = 4  # vectors through both heads; one that differs in any weight differs on each of them
SAID = {
    "identical": "final norm and unembedding of both are identical",
    "equal to rounding": "final norm and unembedding of both are equal to rounding",
    "different": "final norm or unembedding differ, so the trained states are shown through both",
}
OTHER_HEAD = "trained, base's head"


@dataclass(frozen=True, eq=False)
class LensComparison(Result):
    """What two models say at the same rows of the same ids, layer by layer.

    `heads` says whether their final norm and unembedding are the same, and `head_difference` by how much the
    logits of drawn vectors differ, relative to the largest. `through_base` holds the trained states read by
    the base's head where the two differ, else None; it has no logits to be held to, and its gate is NaN.
    """

    trained: LogitLens
    base: LogitLens
    through_base: LogitLens | None
    heads: Heads
    head_difference: float

    def log_prob_change(self) -> Float[Tensor, "row layer target"]:
        """Trained minus base."""
        return self.trained.log_prob - self.base.log_prob

    def rank_change(self) -> Int[Tensor, "row layer target"]:
        """Trained minus base: negative where training moved a target up."""
        return self.trained.rank - self.base.rank

    def difference_change(self) -> Float[Tensor, "row layer pair"]:
        """Trained minus base, of the logit difference of each pair."""
        return self.trained.difference - self.base.difference

    def entropy_change(self) -> Float[Tensor, "row layer"]:
        """Trained minus base, in nats."""
        return self.trained.entropy - self.base.entropy

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a reader (trained, base, trained through the base's head), row, layer and target."""
        return _stacked({name: lens.to_dataframe() for name, lens in self._readers().items()})

    def pairs_to_dataframe(self) -> "pd.DataFrame":
        """One line a reader, row, layer and pair."""
        return _stacked({name: lens.pairs_to_dataframe() for name, lens in self._readers().items()})

    def changes_to_dataframe(self) -> "pd.DataFrame":
        """One line a row, layer and target: trained minus base."""
        table, base = self.trained.to_dataframe(), self.base.to_dataframe()
        for name in ("log_prob", "rank", "entropy"):
            table[name] -= base[name]
        return table.drop(columns="ties")

    def figure(
        self, row: str | None = None, target: str | None = None, y: lens_figures.Measure = "log_prob"
    ) -> "go.Figure":
        """One measure of one row and target (the first by default) by layer: a line a reader.

        For y="difference", `target` is a pair as tables name it, "target − competitor".
        """
        name = self.trained.row_names[0] if row is None else row
        column = "pair" if y == "difference" else "target"
        table = self.pairs_to_dataframe() if y == "difference" else self.to_dataframe()
        names = list(dict.fromkeys(table[column]))
        chosen = names[0] if target is None and names else target
        if chosen not in names:
            raise KeyError(f"there is no {column} {chosen!r}; there are {', '.join(names) or 'none'}")
        table = table.query(f"row == @name and {column} == @chosen")
        what = f"row {name}" if y == "entropy" else f"{chosen} at row {name}"
        return lens_figures.by_layer(table, y, "reader", self._models(), what, self._said(name))

    def change_figure(self, row: str | None = None) -> "go.Figure":
        """Trained minus base in log-probability by layer: a line a target."""
        name = self.trained.row_names[0] if row is None else row
        table = self.changes_to_dataframe().query("row == @name")
        what = f"row {name}, trained minus base"
        return lens_figures.by_layer(table, "log_prob", "target", self._models(), what, self._said(name))

    def _readers(self) -> dict[str, LogitLens]:
        other = {} if self.through_base is None else {OTHER_HEAD: self.through_base}
        return {"trained": self.trained, "base": self.base, **other}

    def _models(self) -> str:
        return f"{self.trained.model} (trained), {self.base.model} (base)"

    def _said(self, row: str) -> list[str]:
        position = self.trained.positions[self.trained.row(row)]
        gate = max(self.trained.gate_error, self.base.gate_error)
        same = self.trained.weights_sha256 == self.base.weights_sha256
        told = "both have identical weights, so nothing can change" if same else SAID[self.heads]
        return [*lens_figures.said(row, position, self.trained.method, gate), told]


def compare_lenses(
    trained: Model,
    base: Model,
    tokens: Int[Tensor, "1 position"] | Int[Tensor, "position"],
    *,
    rows: Mapping[str, int] | Sequence[int],
    targets: Targets,
    pairs: Sequence[tuple[str, str]] = (),
    top_k: int = 0,
    translators: Translators | None = None,
) -> LensComparison:
    """Both models' lenses at the same rows of the same ids; what is asked, and raised, is as in `logit_lens`.

    Raises ValueError too for models of other sizes, in another dtype or with other tokenizers.
    """
    check_alike(trained, base)
    ids = one_text(tokens, many="lens_values")
    named = dict(rows) if isinstance(rows, Mapping) else {str(row): row for row in rows}
    asked = ask(trained, targets, pairs, top_k)
    texts = checked(trained, [ids], [list(named.values())])
    heads, apart = compare_heads(trained, base)
    readers = (trained, base) if heads == "different" else (trained,)
    values = [*through(readers, texts, asked, translators), *through((base,), texts, asked, translators)]
    models = (*(trained for _ in readers), base)
    lenses = [
        as_result(model, ids, tuple(named), texts[0].rows, asked, translators, value)
        for model, value in zip(models, values, strict=True)
    ]
    return LensComparison(lenses[0], lenses[-1], lenses[1] if len(lenses) == 3 else None, heads, apart)


@torch.no_grad()
def compare_heads(trained: Model, base: Model) -> tuple[Heads, float]:
    """Whether two models read a state alike: the same drawn vectors through both heads, and how far apart."""
    states = torch.randn(DRAWN, base.dims.d_model, generator=torch.Generator().manual_seed(0))
    one, other = (head_logits(model, states).cpu() for model in (trained, base))
    apart = distance(one, other)
    if apart == 0:
        return "identical", apart
    allowed = max(GATE[model.backend.dtype] for model in (trained, base))
    return ("equal to rounding" if apart <= allowed else "different"), apart


def _stacked(tables: "dict[str, pd.DataFrame]") -> "pd.DataFrame":
    import pandas as pd

    return pd.concat([table.assign(reader=name) for name, table in tables.items()], ignore_index=True)
