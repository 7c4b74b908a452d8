"""Linear probes: can a label be read off the activations of a layer by a hyperplane, on groups not seen?

An accuracy means something beside three others: what shuffled labels give, what the probe reaches on labels
that can only be remembered (Hewitt and Liang 2019), and what guessing the commonest label gives.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp import figures
from mechinterp.gather import gather
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import SiteName, sites
from mechinterp.stats.clustered import ClusteredMean, clustered_mean
from probes.linear_fit import control_accuracy, shuffled_accuracy, tested
from probes.linear_folds import codes, constant, grouped_folds, refuse_copies
from probes.reliability import derived_generator

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

OWN = "own"
ROUNDING = 1e-6  # accuracies of whole examples that are equal may differ by this


@dataclass(frozen=True, eq=False)
class LinearProbes(Result):
    """A probe a layer, tested on whole groups that it was not fitted to.

    `sets` are what was scored: "own" is what the probes were fitted on, the others carry activations of the
    same examples from elsewhere. `shuffled` are accuracies under labels without meaning, `control` those on
    labels that hang on a type alone (no draws where types do not repeat), `majority` that of the commonest
    label. `labels`, `groups` and `folds` are numbers; `classes` names the labels.
    """

    layers: tuple[int, ...]
    classes: tuple[str, ...]
    sets: tuple[str, ...]
    labels: Int[Tensor, "example"]
    groups: Int[Tensor, "example"]
    folds: Int[Tensor, "example"]
    correct: Bool[Tensor, "set example layer"]
    shuffled: Float[Tensor, "shuffle layer"]
    control: Float[Tensor, "draw layer"]
    majority: float
    inverse_regularisation: float
    seed: int
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> Float[Tensor, "set layer"]:
        """The share of examples classified right."""
        return self.correct.float().mean(1)

    @property
    def selectivity(self) -> Float[Tensor, "layer"]:
        """Accuracy minus that on the control task; NaN where there is none."""
        return self.accuracy[0] - self.control.mean(0)

    @property
    def p(self) -> Float[Tensor, "layer"]:
        """The share of shuffles that do as well at a layer, the true labels counted as one of them."""
        return self._p(self.shuffled)

    @property
    def p_any_layer(self) -> Float[Tensor, "layer"]:
        """The same against the best layer of each shuffle, which pays for having looked at all."""
        return self._p(self.shuffled.amax(1, keepdim=True))

    def interval(self, name: str = OWN) -> ClusteredMean:
        """The accuracy of one set at every layer with its 95 % interval; the units are groups."""
        if name not in self.sets:
            raise KeyError(f"there is no set {name!r}; the sets are {', '.join(self.sets)}")
        correct = self.correct[self.sets.index(name)].double().numpy()
        return clustered_mean(correct, self.groups.tolist(), unit="group")

    def drop(self, name: str) -> ClusteredMean:
        """How much accuracy is lost on another set, paired by example; the units are groups."""
        self.interval(name)  # raises for an unknown name
        lost = self.correct[0].double() - self.correct[self.sets.index(name)].double()
        return clustered_mean(lost.numpy(), self.groups.tolist(), unit="group")

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a set and layer; what concerns the fitted set alone is NaN in the others."""
        import pandas as pd

        tables = []
        for name in self.sets:
            found = self.interval(name)
            columns = {"accuracy": found.estimate, "low": found.low, "high": found.high}
            if name == OWN:
                controls = {"shuffled": self.shuffled.mean(0), "p": self.p, "p_any_layer": self.p_any_layer}
                controls |= {"control": self.control.mean(0), "selectivity": self.selectivity}
                columns |= {key: values.double().numpy() for key, values in controls.items()}
            tables.append(pd.DataFrame({"set": name, "layer": self.layers} | columns))
        return pd.concat(tables, ignore_index=True).assign(majority=self.majority)

    def figure(self) -> "go.Figure":
        """Accuracy by layer of every set, beside shuffled labels and the control task."""
        import pandas as pd

        table = self.to_dataframe().reindex(columns=["set", "layer", "accuracy", "low", "high"])
        for name, draws in (("labels shuffled", self.shuffled), ("control task", self.control)):
            if len(draws):
                low, high = draws.quantile(0.05, dim=0), draws.quantile(0.95, dim=0)
                columns = {"accuracy": draws.mean(0), "low": low, "high": high}
                line = {key: values.tolist() for key, values in columns.items()}
                table = pd.concat([table, pd.DataFrame({"set": name, "layer": self.layers} | line)])
        n = len(set(self.groups.tolist()))
        subtitle = figures.caption(
            f"linear probes of {' / '.join(self.classes)}", n=n, unit="group", seeds=[self.seed],
            band="95 % CI over groups (CR2, Student t); central 90 % of shuffles and control draws",
            more=[f"{len(self.labels)} examples", f"commonest label {self.majority:.2f}", *self.notes],
        )  # fmt: skip
        return figures.per_layer(
            table, "accuracy", by="set", low="low", high="high", subtitle=subtitle,
            title="Accuracy of linear probes on held-out groups",
        )  # fmt: skip

    def _p(self, null: Float[Tensor, "shuffle _layer"]) -> Float[Tensor, "layer"]:
        reached = (null >= self.accuracy[0] - ROUNDING).double().sum(0)
        return (1 + reached) / (1 + len(null))


def linear_probes(
    activations: Float[Tensor, "example layer d_model"],
    labels: Sequence[Hashable],
    groups: Sequence[Hashable],
    *,
    layers: Sequence[int] | None = None,
    transfer: Mapping[str, Float[Tensor, "example layer d_model"]] | None = None,
    types: Sequence[Hashable] | None = None,
    n_folds: int = 5,
    n_shuffles: int = 20,
    n_controls: int = 5,
    inverse_regularisation: float = 1.0,
    seed: int = 0,
) -> LinearProbes:
    """Logistic regression at every layer, cross-validated over whole groups, with its controls.

    groups: what must not be on both sides, such as the question. transfer: the same examples read elsewhere
    (trained on base: `{"trained": ...}`), scored by the same probes under the same folds. types: what control
    labels hang on, such as the token; the groups by default. layers: their numbers, 0.. by default.
    Raises ValueError for NaN, copies in different groups, one class, or folds that miss a class.
    """
    if OWN in (transfer or {}):
        raise ValueError(f"{OWN!r} is what the probes are fitted on; call the other set by another name")
    scored = {OWN: activations, **(transfer or {})}
    label, classes = codes(labels)
    group, _ = codes(groups)
    kind, _ = codes(groups if types is None else types)
    named = tuple(range(activations.shape[1])) if layers is None else tuple(layers)
    _check(scored, label, group, kind, named)
    if min(n_folds - 1, n_shuffles, n_controls) < 1 or not inverse_regularisation > 0:
        raise ValueError(
            "n_folds is 2 or more, n_shuffles and n_controls 1 or more and inverse_regularisation positive,"
            f" not {n_folds}, {n_shuffles}, {n_controls} and {inverse_regularisation}"
        )
    folds = grouped_folds(label, group, n_folds=n_folds, seed=seed)
    refuse_copies(activations, group)
    by_layer = [[_plain(x[:, k]) for x in scored.values()] for k in range(len(named))]
    own = [sets[0] for sets in by_layer]
    correct = [tested(sets[0], sets, label, folds, inverse_regularisation) for sets in by_layer]
    shuffled = shuffled_accuracy(
        own, label, group, n_shuffles=n_shuffles, n_folds=n_folds, seed=seed,
        generator=derived_generator(seed, "shuffle"), inverse_regularisation=inverse_regularisation,
    )  # fmt: skip
    control = control_accuracy(
        own, label, kind, n_controls=n_controls, n_folds=n_folds,
        generator=derived_generator(seed, "control"), inverse_regularisation=inverse_regularisation,
    )  # fmt: skip
    return LinearProbes(
        layers=named, classes=classes, sets=tuple(scored), labels=torch.from_numpy(label),
        groups=torch.from_numpy(group), folds=torch.from_numpy(folds),
        correct=torch.from_numpy(np.stack(correct, -1)), shuffled=shuffled, control=control,
        majority=float(np.bincount(label).max() / len(label)),
        inverse_regularisation=float(inverse_regularisation), seed=seed,
        notes=_notes(label, group, control),
    )  # fmt: skip


def activations_at(
    model: Model,
    texts: Sequence[Int[Tensor, "position"]],
    positions: Sequence[Int[Tensor, "k"] | Sequence[int]],
    *,
    site: SiteName = "resid_post",
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "example layer d_model"]:
    """The mean over each text's own positions at every layer, in fp32; equal texts are read once.

    Copies are then equal bit for bit in any dtype, so that `linear_probes` knows them.
    """
    read = sites(site, range(model.dims.n_layers) if layers is None else list(layers))
    wanted: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    pairs = zip(texts, positions, strict=True)
    keys = [tuple(tuple(torch.as_tensor(part).flatten().tolist()) for part in pair) for pair in pairs]
    rows = [wanted.setdefault((key[0], key[1]), len(wanted)) for key in keys]
    ids, at = ([torch.tensor(key[side]) for key in wanted] for side in (0, 1))
    return gather(model, ids, read, at)[rows]


def _plain(x: Float[Tensor, "example d_model"]) -> Float[np.ndarray, "example d_model"]:
    return x.detach().double().cpu().numpy()


def _check(
    scored: Mapping[str, Tensor],
    labels: Int[np.ndarray, "_labels"],
    groups: Int[np.ndarray, "_groups"],
    types: Int[np.ndarray, "_types"],
    layers: tuple[int, ...],
) -> None:
    n = len(scored[OWN])
    for what, given in (("labels", labels), ("groups", groups), ("types", types)):
        if len(given) != n:
            raise ValueError(f"{n} examples need one entry each in {what}, not {len(given)}")
    for name, x in scored.items():
        if x.shape != scored[OWN].shape or x.ndim != 3:
            raise ValueError(
                f"activations are [example, layer, d_model], the same for every set; {name!r} has"
                f" {list(x.shape)} beside {list(scored[OWN].shape)}"
            )
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        if bad:
            raise ValueError(f"{bad} of {n} examples of {name!r} hold NaN or infinity; leave them out")
    if len(layers) != scored[OWN].shape[1] or len(set(layers)) < len(layers):
        raise ValueError(f"{scored[OWN].shape[1]} layers need as many different numbers, not {list(layers)}")
    if len(set(labels.tolist())) < 2:
        raise ValueError(f"all {n} examples have the same label; give at least two classes")


def _notes(
    labels: Int[np.ndarray, "example"],
    groups: Int[np.ndarray, "example"],
    control: Float[Tensor, "draw layer"],
) -> tuple[str, ...]:
    notes = []
    if constant(labels, groups):
        notes.append("labels are shuffled between groups")
    else:
        single = sum(len(set(labels[groups == group].tolist())) == 1 for group in np.unique(groups))
        notes.append("labels are shuffled within groups")
        if single:
            notes.append(f"{single} groups hold one label, which no shuffle within them moves")
    if not len(control):
        notes.append("no control task: no type has two examples")
    return tuple(notes)
