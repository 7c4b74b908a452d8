"""What a model would say if it stopped after each layer: the logit lens at chosen rows (methods 12.1).

After layer L a row's state goes through the model's own final norm, unembedding, scale and soft-capping.
The entry after the last layer is held to the model's own logits, and nothing is returned where it differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.rows import one_text
from probes import lens_figures
from probes.lens_batch import checked, through
from probes.lens_read import Asked, LensValues, Targets, ask, first_layer, tensors_of
from probes.translators import Translators

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

PLAIN = "logit lens"


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """Named rows of one text: what the lens says of each target after every layer, in fp32.

    `rank` counts the tokens with a strictly larger logit (0 is the argmax) and `ties` the others with exactly
    the same one. A group of tokens has their summed probability, and the rank and ties of its best member.
    `difference` is the logit of each pair's target minus its competitor's; `entropy` is in nats. `gate_error`
    is how far the last entry is from the model's own logits, relative to the largest of them.
    """

    model: str
    weights_sha256: str
    dtype: str
    method: str
    tokens: Int[Tensor, "position"]
    row_names: tuple[str, ...]
    positions: tuple[int, ...]
    targets: tuple[str, ...]
    target_ids: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str, str], ...]
    log_prob: Float[Tensor, "row layer target"]
    rank: Int[Tensor, "row layer target"]
    ties: Int[Tensor, "row layer target"]
    difference: Float[Tensor, "row layer pair"]
    entropy: Float[Tensor, "row layer"]
    top_ids: Int[Tensor, "row layer top"]
    top_log_probs: Float[Tensor, "row layer top"]
    gate_error: float

    def row(self, name: str) -> int:
        """Where a named row stands; KeyError with the names there are."""
        if name not in self.row_names:
            raise KeyError(f"there is no row {name!r}; the rows are {', '.join(self.row_names)}")
        return self.row_names.index(name)

    def first_layer_ranked(self, at_most: int = 10) -> Float[Tensor, "row target"]:
        """The first layer after which a target's rank is so low; NaN where there is none."""
        return first_layer(self.rank <= at_most)

    def first_layer_preferred(self) -> Float[Tensor, "row pair"]:
        """The first layer after which a target's logit is above its competitor's; NaN where there is none."""
        return first_layer(self.difference > 0)

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a row, layer and target: log_prob, rank, ties, and the entropy of the row and layer."""
        table = self._table("target", list(self.targets))
        for name in ("log_prob", "rank", "ties"):
            table[name] = getattr(self, name).flatten().tolist()
        table["entropy"] = self.entropy[..., None].expand_as(self.log_prob).flatten().tolist()
        return table

    def pairs_to_dataframe(self) -> "pd.DataFrame":
        """One line a row, layer and pair: its logit difference."""
        table = self._table("pair", [lens_figures.minus(*pair) for pair in self.pairs])
        table["difference"] = self.difference.flatten().tolist()
        return table

    def top_to_dataframe(self) -> "pd.DataFrame":
        """One line a row, layer and place among the most probable tokens: its id and log-probability."""
        table = self._table("place", list(range(self.top_ids.shape[-1])))
        table["id"] = self.top_ids.flatten().tolist()
        table["log_prob"] = self.top_log_probs.flatten().tolist()
        return table

    def figure(self, row: str | None = None, y: lens_figures.Measure = "log_prob") -> "go.Figure":
        """One measure by layer of one row (the first by default): a line a target, or a pair."""
        name = self.row_names[0] if row is None else row
        at = self.row(name)
        table = (self.pairs_to_dataframe() if y == "difference" else self.to_dataframe()).query(
            "row == @name"
        )
        by = {"difference": "pair", "entropy": None}.get(y, "target")
        said = lens_figures.said(name, self.positions[at], self.method, self.gate_error)
        return lens_figures.by_layer(table, y, by, self.model, f"row {name}", said)

    def _table(self, last: str, names: list) -> "pd.DataFrame":
        import pandas as pd

        n_layers = self.entropy.shape[1]
        table = pd.MultiIndex.from_product(
            [self.row_names, range(n_layers), names], names=["row", "layer", last]
        ).to_frame(index=False)
        at = dict(zip(self.row_names, self.positions, strict=True))
        table.insert(1, "position", [at[row] for row in table["row"]])
        return table


def logit_lens(
    model: Model,
    tokens: Int[Tensor, "1 position"] | Int[Tensor, "position"],
    *,
    rows: Mapping[str, int] | Sequence[int],
    targets: Targets,
    pairs: Sequence[tuple[str, str]] = (),
    top_k: int = 0,
    translators: Translators | None = None,
) -> LogitLens:
    """The lens after every layer at chosen rows of one text; `lens_values` reads many texts.

    rows: positions by name, or positions alone, which are then named by their numbers; -1 is the last; a row
    scores the token that follows it. targets: token ids by name, one or a group, or ids alone, named by their
    numbers. pairs: names of a target and its competitor, whose logit difference is asked. top_k: how many of
    the most probable tokens are kept. Raises TypeError, ValueError, KeyError or IndexError before any compute
    for what cannot be met, and ValueError where the last entry is not the model's own logits.
    """
    ids = one_text(tokens, many="lens_values")
    named = dict(rows) if isinstance(rows, Mapping) else {str(row): row for row in rows}
    asked = ask(model, targets, pairs, top_k)
    texts = checked(model, [ids], [list(named.values())])
    values = through((model,), texts, asked, translators)[0]
    return as_result(model, ids, tuple(named), texts[0].rows, asked, translators, values)


def as_result(
    model: Model,
    ids: Int[Tensor, "position"],
    names: tuple[str, ...],
    positions: tuple[int, ...],
    asked: Asked,
    translators: Translators | None,
    values: LensValues,
) -> LogitLens:
    """The values of one text with what was asked."""
    return LogitLens(
        model=model.name,
        weights_sha256=model.weights_sha256,
        dtype=str(model.backend.dtype).removeprefix("torch."),
        method=PLAIN if translators is None else f"translators {translators.name}",
        tokens=ids.cpu(),
        row_names=names,
        positions=positions,
        targets=asked.names,
        target_ids=asked.ids,
        pairs=tuple((asked.names[target], asked.names[competitor]) for target, competitor in asked.pairs),
        **{name: value[0] for name, value in tensors_of(values).items()},
        gate_error=values.gate_error,
    )
