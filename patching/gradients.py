"""Attribution patching: what every patch would do, to first order, and how far that is from what some do.

effect ~ (source row - target row) . d metric / d row, taken on the target's run: one pass forward and one
back for a whole grid. Between different prompts the first order can be far off, so every result carries the
exact effect of a random sample of its cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp import figures
from mechinterp.alike import check_alike
from mechinterp.gradients import gradients
from mechinterp.interventions import Apply
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import WRITABLE, Site, SiteName, as_index
from mechinterp.where import At
from patching.cases import Case, check_cases, one_case
from patching.cells import Cell, Edit, untouched
from patching.donors import FromRun, Values
from patching.metrics import Metric
from patching.residual import layer_sets, union
from patching.sweep import sweep_cells

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Attribution(Result):
    """The approximate effect of each cell on a metric, and the exact one of a sample of them.

    Cells are layer by head by column, where a site without heads has one; `sampled` counts through them in
    that order. `rank_correlation` (Spearman) and `worst_error` (in units of the metric) are over the sample,
    NaN where it is too small or does not vary. `steps` 1 is the gradient at the target's own rows.
    """

    donor: str
    target: str
    target_sha256: str
    site: str
    metric: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    columns: tuple[str, ...]
    effects: Float[Tensor, "layer head column"]
    baseline: float
    donor_value: float
    sampled: Int[Tensor, "sample"]
    exact: Float[Tensor, "sample"]
    rank_correlation: float
    worst_error: float
    engine: str
    steps: int
    seed: int

    @property
    def approximate(self) -> Float[Tensor, "sample"]:
        """The approximate effects of the sampled cells, in their order."""
        return self.effects.flatten()[self.sampled]

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a cell; `exact` is NaN where it was not computed."""
        import pandas as pd

        axes = [self.layers, self.heads or [None], self.columns]
        table = pd.MultiIndex.from_product(axes, names=["layer", "head", "column"]).to_frame(index=False)
        table["effect"] = self.effects.flatten().tolist()
        exact = torch.full((self.effects.numel(),), torch.nan)
        exact[self.sampled] = self.exact
        table["exact"] = exact.tolist()
        return table

    def figure(self, column: str | None = None) -> "go.Figure":
        """Layers by columns; of heads, layers by heads at one column, the first by default."""
        import pandas as pd

        if column is not None and column not in self.columns:
            raise KeyError(f"there is no column {column!r}; there are {', '.join(self.columns)}")
        at = 0 if column is None else self.columns.index(column)
        cells = self.effects[:, :, at] if self.heads else self.effects[:, 0]
        across = [f"head {head}" for head in self.heads] or list(self.columns)
        where = f" at {self.columns[at]}" if self.heads else ""
        return figures.heatmap(
            pd.DataFrame(cells.tolist(), index=list(self.layers), columns=across),
            title=f"Attribution of {self.metric} to {self.site}{where}", subtitle=self._subtitle(),
            x_title="", y_title="layer", colour_title=f"approximate change of {self.metric}", center=0.0,
        )  # fmt: skip

    def agreement(self) -> "go.Figure":
        """Exact against approximate effects of the sampled cells."""
        import pandas as pd

        table = pd.DataFrame({"approximate": self.approximate.tolist(), "exact": self.exact.tolist()})
        return figures.scatter(
            table, "approximate", "exact", subtitle=self._subtitle(),
            title=f"Attribution against exact patching of {self.site}",
        )  # fmt: skip

    def _subtitle(self) -> str:
        said = [
            f"an approximation: Spearman {self.rank_correlation:.2f} and worst error {self.worst_error:.2g}"
            f" (Δ{self.metric}) on {len(self.sampled)} exact cells",
            f"{self.steps} gradient step{'' if self.steps == 1 else 's'}",
        ]
        return figures.caption(
            f"{self.donor} → {self.target}", n=1, unit="text", seeds=(self.seed,), band="none", more=said
        )


def attribution_patching(
    source: Model,
    target: Model,
    tokens: Int[Tensor, "1 position"],
    metric: Metric,
    *,
    positions: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    source_tokens: Int[Tensor, "1 position"] | None = None,
    alignment: Mapping[int, int] | None = None,
    site: SiteName = "resid_post",
    layers: Sequence[int] | None = None,
    steps: int = 1,
    n_exact: int = 32,
    seed: int = 0,
) -> Attribution:
    """What patching the source's rows into the target would do to a metric, for every cell at once.

    positions, source_tokens, alignment, site, layers: as in `patch_residual`; under site="z" every head is a
    cell of its own. steps: with more than one, the gradients of a layer are averaged along the straight path
    on which all its rows go from the target's to the source's (integrated gradients); the effects of a layer
    then add up to that of patching it whole, at `steps` rows of a batch a layer. n_exact: cells that are also
    patched, drawn from `seed`. Raises ValueError or IndexError before any compute.
    """
    check_alike(source, target)
    case = _case(tokens, metric, positions, source_tokens, alignment)
    sites = [Site(site, part[0]) for part in layer_sets(target, layers)]
    for one in sites:
        target.check_site(one)
    _check(site, steps, n_exact)
    given, donor_value = FromRun(source).values(target, case, sites, union(case))
    slopes = _at_the_target(target, case, sites) if steps == 1 else None
    effects = []
    for one in sites:
        own, slope = slopes[one] if slopes else _along_the_path(target, case, one, given[one], steps)
        effects.append(_by_column(case, (given[one].to(own) - own) * slope, per_head=site == "z"))
    found = torch.stack(effects).cpu()
    drawn = torch.randperm(found.numel(), generator=torch.Generator().manual_seed(seed))
    sampled = drawn[:n_exact].sort().values
    run = untouched(target, case.tokens, case.metrics)
    swept = sweep_cells(run, [_cell(int(i), found.shape, case, sites, given) for i in sampled], case.metrics)
    exact = swept.values[:, 0] - swept.baseline[0]
    return Attribution(
        donor=source.name,
        target=target.name,
        target_sha256=target.weights_sha256,
        site=site,
        metric=metric.name,
        layers=tuple(one.layer for one in sites),
        heads=tuple(range(target.dims.n_heads)) if site == "z" else (),
        columns=tuple(case.places),
        effects=found,
        baseline=float(swept.baseline[0]),
        donor_value=float(donor_value[0]),
        sampled=sampled,
        exact=exact,
        rank_correlation=_spearman(found.flatten()[sampled], exact),
        worst_error=float((found.flatten()[sampled] - exact).abs().max()),
        engine=swept.engine,
        steps=steps,
        seed=seed,
    )


def _case(
    tokens: Tensor,
    metric: Metric,
    positions: Sequence[int] | Mapping[str, Sequence[int]] | None,
    source_tokens: Tensor | None,
    alignment: Mapping[int, int] | None,
) -> Case:
    if not isinstance(metric, Metric):
        raise TypeError(
            f"attribution has one metric, such as patching.log_prob(token, at=row); not {metric!r}"
        )
    case = one_case(tokens, (metric,), positions, source_tokens, alignment)
    check_cases([case])
    if not case.places:
        raise ValueError("positions is empty; name at least one position")
    return case


def _check(site: str, steps: int, n_exact: int) -> None:
    if site not in WRITABLE:
        raise ValueError(f"{site} cannot be patched; patch one of {', '.join(WRITABLE)}")
    if as_index(steps, "steps") < 1:
        raise ValueError(f"steps counts gradients along the path, 1 or more, not {steps}")
    if as_index(n_exact, "n_exact") < 1:
        raise ValueError(f"an approximation comes with exact cells: n_exact is 1 or more, not {n_exact}")


# gradients --------------------------------------------------------------------------------------------------


Slope = tuple[Float[Tensor, "position *shape"], Float[Tensor, "position *shape"]]


def _at_the_target(target: Model, case: Case, sites: Sequence[Site]) -> dict[Site, Slope]:
    """Own rows and the metric's gradient there, of all layers in one pass."""
    metric, at = case.metrics[0], union(case)
    found = gradients(
        target,
        case.tokens[None],
        sites,
        lambda logits: metric.read(logits[:, 0]).sum(),
        logits_at=[metric.at],
    )
    return {site: (found.values[site][0, at].float(), found[site][0, at].float()) for site in sites}


def _along_the_path(target: Model, case: Case, site: Site, given: Tensor, steps: int) -> Slope:
    """Own rows, and the mean gradient at the midpoints of `steps` pieces of the path to the given ones."""
    metric, at = case.metrics[0], union(case)
    seen = target.forward(case.tokens[None], capture=[site], positions=at, stop_after=site.layer)
    own = seen[site][0].float()
    share = (torch.arange(steps, device=own.device) + 0.5) / steps
    moved = own + einsum(share, given.to(own) - own, "step, position ... -> step position ...")
    edit = Apply(site=site, where=At(tuple(at)), function=lambda x: moved.to(x).reshape(x.shape))
    found = gradients(
        target, case.tokens.expand(steps, -1), [site], lambda logits: metric.read(logits[:, 0]).sum(),
        logits_at=[metric.at], interventions=[edit],
    )  # fmt: skip
    return own, found[site][:, at].float().mean(0)


def _by_column(
    case: Case, parts: Float[Tensor, "position *shape"], *, per_head: bool
) -> Float[Tensor, "head column"]:
    """Sums over the positions of each place and the width of the site."""
    rows = parts if per_head else rearrange(parts, "position d_model -> position 1 d_model")
    by_head = rows.sum(-1)
    index = {position: i for i, position in enumerate(union(case))}
    sums = [by_head[[index[p] for p in positions]].sum(0) for positions in case.places.values()]
    return torch.stack(sums, -1)


# the exact sample -------------------------------------------------------------------------------------------


def _cell(number: int, shape: torch.Size, case: Case, sites: Sequence[Site], given: Values) -> Cell:
    """The cell that a number counts to, layer by head by column."""
    layer, rest = divmod(number, shape[1] * shape[2])
    head, column = divmod(rest, shape[2])
    index = {position: i for i, position in enumerate(union(case))}
    site, positions = sites[layer], tuple(case.places.values())[column]
    rows = given[site][[index[position] for position in positions]]
    if site.name == "z":
        return (Edit(site, positions, rows[:, head], head),)
    return (Edit(site, positions, rows),)


def _spearman(approximate: Float[Tensor, "sample"], exact: Float[Tensor, "sample"]) -> float:
    """Rank correlation; NaN where there are fewer than three cells or one side does not vary."""
    from scipy import stats

    if len(exact) < 3 or bool((exact == exact[0]).all()) or bool((approximate == approximate[0]).all()):
        return float("nan")
    correlation: Any = stats.spearmanr(approximate.numpy(), exact.numpy())
    return float(correlation.statistic)
