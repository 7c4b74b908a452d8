"""Direct logit attribution: which parts of a model write a logit difference, layer by layer and head by head.

The final norm is frozen at its full value, so what each part adds is exact and the parts sum to the
difference before soft-capping; what a part does by changing later ones is not in it (methods 12.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.rows import one_text
from mechinterp.sites import as_index
from mechinterp.stats.halves import HEADS_PER_LAYER, HeadSelection, select_heads
from probes import direct_figures
from probes.direct_read import Contributions, Text, contributions
from probes.lens_batch import checked

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Attribution(Result):
    """Rows of one text or of many: what each part adds to logit[target] - logit[competitor].

    `values` has a column a part, named in `parts`, and each row sums to `values.difference`. `tokens` are the
    ids up to each row, -1 behind it; `clusters` names the unit that each row belongs to.
    """

    model: str
    weights_sha256: str
    backend: str
    dtype: str
    row_names: tuple[str, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    competitors: tuple[int, ...]
    clusters: tuple[str, ...]
    tokens: Int[Tensor, "row position"]
    values: Contributions

    @property
    def parts(self) -> tuple[str, ...]:
        """The columns of `table`: embedding, attn_out and mlp_out of each layer, then the biases."""
        layers = range(self.values.attn_out.shape[1])
        blocks = [f"{part} {layer}" for layer in layers for part in ("attn_out", "mlp_out")]
        return ("embedding", *blocks, "norm_bias", "unembedding_bias")

    @property
    def table(self) -> Float[Tensor, "row part"]:
        """Every part of every row, in the order of `parts`; heads are parts of attn_out and not in it."""
        values = self.values
        both = torch.stack([values.attn_out, values.mlp_out], -1)
        blocks = rearrange(both, "row layer part -> row (layer part)")
        ends = torch.stack([values.norm_bias, values.unembedding_bias], -1)
        return torch.cat([values.embedding[:, None], blocks, ends], 1)

    def row(self, name: str) -> int:
        """Where a named row stands; KeyError with the names there are."""
        if name not in self.row_names:
            raise KeyError(f"there is no row {name!r}; the rows are {', '.join(self.row_names)}")
        return self.row_names.index(name)

    def select_heads(self, *, per_layer: int = HEADS_PER_LAYER, seed: int = 42) -> HeadSelection:
        """The strongest heads of each layer on one half of the clusters, and what the other half says."""
        return select_heads(
            self.values.heads.double().numpy(), self._labels(), per_layer=per_layer, seed=seed
        )

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a row and part; the contributions of a row sum to its `difference`."""
        import pandas as pd

        names = [part.split(" ") for part in self.parts]
        columns = {
            "part": [name[0] for name in names],
            "layer": pd.array([int(name[1]) if len(name) > 1 else None for name in names], dtype="Int64"),
        }
        lines = [
            pd.DataFrame(columns | {"contribution": values, "difference": total})
            for values, total in zip(self.table.tolist(), self.values.difference.tolist(), strict=True)
        ]
        return self._named(lines)

    def heads_to_dataframe(self) -> "pd.DataFrame":
        """One line a row, layer and head, the output bias as the head "bias": they sum to attn_out."""
        import pandas as pd

        values = torch.cat([self.values.heads, self.values.attn_bias[..., None]], -1)
        n_layers, n_heads = self.values.heads.shape[1:]
        index = pd.MultiIndex.from_product(
            [range(n_layers), [*range(n_heads), "bias"]], names=["layer", "head"]
        )
        lines = [index.to_frame(index=False).assign(contribution=x) for x in values.flatten(1).tolist()]
        return self._named(lines)

    def figure(self, row: str | None = None) -> "go.Figure":
        """attn_out and mlp_out by layer: of one row, or their mean over the texts where there are several."""
        return direct_figures.by_layer({"": self.shown(row)})

    def heads_figure(self, row: str | None = None) -> "go.Figure":
        """Each head as a cell, layer by head: of one row, or the mean over the texts."""
        return direct_figures.by_head(self.shown(row))

    def shown(self, row: str | None) -> direct_figures.Shown:
        """What a figure draws: a named row; else every row of many texts, or the first of one text."""
        several = len(set(self.clusters)) > 1
        name = self.row_names[0] if row is None and not several else row
        at = slice(None) if name is None else slice(self.row(name), self.row(name) + 1)
        values = self.values
        return direct_figures.Shown(
            model=self.model,
            what="mean over rows" if name is None else f"row {name} = position {self.positions[at][0]}",
            attn_out=values.attn_out[at],
            mlp_out=values.mlp_out[at],
            heads=values.heads[at],
            rest=(values.embedding + values.norm_bias + values.unembedding_bias)[at],
            difference=values.difference[at],
            clusters=self.clusters[at],
        )

    def _labels(self) -> list[str] | None:
        """Cluster labels, or None where every row is a unit of its own."""
        return None if len(set(self.clusters)) == len(self.clusters) else list(self.clusters)

    def _named(self, lines: "list[pd.DataFrame]") -> "pd.DataFrame":
        import pandas as pd

        named = zip(lines, self.row_names, self.positions, strict=True)
        table = pd.concat([line.assign(row=row, position=at) for line, row, at in named], ignore_index=True)
        return table.reindex(columns=["row", "position", *lines[0].columns])


def attribution(
    model: Model,
    tokens: Int[Tensor, "1 position"] | Int[Tensor, "position"],
    *,
    rows: Mapping[str, int] | Sequence[int],
    target: int,
    competitor: int,
) -> Attribution:
    """What each part of a model adds to logit[target] - logit[competitor] at chosen rows of one text.

    rows: positions by name, or positions alone, which are then named by their numbers; -1 is the last; a row
    scores the token that follows it. Raises TypeError, ValueError or IndexError before any compute for what
    cannot be met, and ValueError where the parts do not sum to the difference before soft-capping to 1e-3.
    """
    ids = one_text(tokens, many="attributions")
    named = dict(rows) if isinstance(rows, Mapping) else {str(row): row for row in rows}
    texts = [Text(text.ids, text.rows) for text in checked(model, [ids], [list(named.values())])]
    n = len(named)
    return _read(model, texts, tuple(named), [target] * n, [competitor] * n, ("text",) * n)


def attributions(
    model: Model,
    texts: Sequence[Sequence[int] | Int[Tensor, "_position"]],
    *,
    rows: Sequence[int],
    targets: Sequence[int],
    competitors: Sequence[int],
    clusters: Sequence[str] | None = None,
) -> Attribution:
    """One row of each of many texts, with tokens of its own; raises what `attribution` raises.

    clusters: the independent unit of each text, such as its question; without them each text is one.
    """
    n = len(texts)
    for name, given in (("rows", rows), ("targets", targets), ("competitors", competitors)):
        if len(given) != n:
            raise ValueError(f"{n} texts need one entry each in {name}, not {len(given)}")
    if clusters is not None and len(clusters) != n:
        raise ValueError(f"{n} texts need one cluster label each, not {len(clusters)}")
    names = tuple(str(i) for i in range(n))
    read = [Text(text.ids, text.rows) for text in checked(model, texts, [[row] for row in rows])]
    return _read(model, read, names, targets, competitors, names if clusters is None else tuple(clusters))


def _read(
    model: Model,
    texts: Sequence[Text],
    names: tuple[str, ...],
    targets: Sequence[int],
    competitors: Sequence[int],
    clusters: tuple[str, ...],
) -> Attribution:
    wanted = [as_index(token, "a target") for token in targets]
    others = [as_index(token, "a competitor") for token in competitors]
    for token, other in zip(wanted, others, strict=True):
        bad = [each for each in (token, other) if not 0 <= each < model.dims.d_vocab]
        if bad:
            raise ValueError(f"{model.name} has ids 0..{model.dims.d_vocab - 1}; there is no {bad[0]}")
        if token == other:
            raise ValueError(
                f"target and competitor are both {token}, whose difference is 0; give two tokens"
            )
    positions = tuple(row for text in texts for row in text.rows)
    tokens = torch.full((len(positions), max(positions) + 1), -1)
    owners = [text.ids for text in texts for _ in text.rows]
    for line, (ids, row) in enumerate(zip(owners, positions, strict=True)):
        tokens[line, : row + 1] = ids[: row + 1]
    return Attribution(
        model=model.name,
        weights_sha256=model.weights_sha256,
        backend=model.backend.name,
        dtype=str(model.backend.dtype).removeprefix("torch."),
        row_names=names,
        positions=positions,
        targets=tuple(wanted),
        competitors=tuple(others),
        clusters=clusters,
        tokens=tokens,
        values=contributions(model, texts, wanted, others),
    )
