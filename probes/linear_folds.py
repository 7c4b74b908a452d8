"""Which examples test which: folds of whole groups, labels shuffled as the groups allow, and copies refused.

A probe that is tested on a copy of what it was fitted to, or on another wording of the same question, reads
memory. Groups (questions, source texts) therefore stay whole, and copies across groups are an error.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

COPY = 1e-5  # relative distance: rounding between batches leaves 1e-6 in fp32
DRAWS = 200  # attempts at shuffled labels that can be split into folds


def grouped_folds(
    labels: Int[np.ndarray, "example"], groups: Int[np.ndarray, "example"], *, n_folds: int, seed: int
) -> Int[np.ndarray, "example"]:
    """The fold that tests each example: whole groups, classes spread evenly.

    Raises ValueError for fewer groups than folds, and for folds that fit or test on too few classes.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    n_groups, classes = len(set(groups.tolist())), set(labels.tolist())
    if n_groups < n_folds:
        raise ValueError(
            f"{n_groups} groups cannot be split into {n_folds} folds; use n_folds={n_groups} or fewer"
        )
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    folds = np.full(len(labels), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare classes: the checks below say what is wrong
        for fold, (_, tested) in enumerate(splitter.split(labels[:, None], labels, groups)):
            folds[tested] = fold
    for fold in range(n_folds):
        fitted, tested = set(labels[folds != fold].tolist()), set(labels[folds == fold].tolist())
        if fitted != classes or len(tested) < 2:
            raise ValueError(
                f"fold {fold} of {n_folds} fits {len(fitted)} of {len(classes)} classes and tests on"
                f" {len(tested)}, so its accuracy says nothing; use fewer folds, or more groups of each class"
            )
    return folds


def shuffled_labels(
    labels: Int[np.ndarray, "example"],
    groups: Int[np.ndarray, "example"],
    *,
    n_folds: int,
    seed: int,
    generator: torch.Generator,
) -> tuple[Int[np.ndarray, "example"], Int[np.ndarray, "example"]]:
    """Labels that mean nothing, and their folds, made as the true labels' are.

    Where each group has one label, labels move between groups; else they move within each group.
    """
    for _ in range(DRAWS):
        moved = _between(labels, groups, generator) if constant(labels, groups) else labels.copy()
        if not constant(labels, groups):
            for group in np.unique(groups):
                at = np.flatnonzero(groups == group)
                moved[at] = labels[at[torch.randperm(len(at), generator=generator).numpy()]]
        try:
            return moved, grouped_folds(moved, groups, n_folds=n_folds, seed=seed)
        except ValueError:  # a draw whose folds lack a class, which the true labels' must not either
            continue
    raise ValueError(
        f"none of {DRAWS} shuffles of the labels could be split into {n_folds} folds; use fewer folds, or"
        " more groups of each class"
    )


def constant(labels: Int[np.ndarray, "example"], groups: Int[np.ndarray, "example"]) -> bool:
    """Whether every group holds a single label."""
    return all(len(set(labels[groups == group].tolist())) == 1 for group in np.unique(groups))


def _between(
    labels: Int[np.ndarray, "example"], groups: Int[np.ndarray, "example"], generator: torch.Generator
) -> Int[np.ndarray, "example"]:
    names, first, place = np.unique(groups, return_index=True, return_inverse=True)
    order = torch.randperm(len(names), generator=generator).numpy()
    return labels[first][order][place]


def control_folds(
    types: Int[np.ndarray, "example"], *, n_folds: int, generator: torch.Generator
) -> Int[np.ndarray, "example"]:
    """Folds that put the examples of each type on both sides: what is tested there is memory of the type."""
    folds = np.full(len(types), -1)
    for kind in np.unique(types):
        at = np.flatnonzero(types == kind)
        start = int(torch.randint(n_folds, (1,), generator=generator))
        folds[at[torch.randperm(len(at), generator=generator).numpy()]] = (
            start + np.arange(len(at))
        ) % n_folds
    return folds


def control_labels(
    labels: Int[np.ndarray, "labelled"], types: Int[np.ndarray, "example"], generator: torch.Generator
) -> Int[np.ndarray, "example"]:
    """A label drawn for each type, as often as labels occur (Hewitt and Liang 2019); two of them at least."""
    names, place = np.unique(types, return_inverse=True)
    shares = torch.from_numpy(np.bincount(labels).astype(float))
    drawn = torch.zeros(len(names), dtype=torch.long)
    while len(drawn.unique()) < 2:
        drawn = torch.multinomial(shares, len(names), replacement=True, generator=generator)
    return drawn.numpy()[place]


def refuse_copies(
    activations: Float[Tensor, "example layer d_model"], groups: Int[np.ndarray, "example"]
) -> None:
    """Raises ValueError where two examples of different groups are the same at every layer.

    Copies have nearly the same projection on any vector, so only neighbours on a drawn one are compared.
    """
    values = activations.detach().float().cpu()
    size = values.square().mean((0, 2), keepdim=True).sqrt().clamp_min(1e-30)
    flat = rearrange(values / size, "example layer d_model -> example (layer d_model)")
    drawn = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0))
    along = flat @ (drawn / drawn.norm())
    order, reach = along.argsort().tolist(), 10 * COPY * float(flat.norm(dim=1).max())
    for place, one in enumerate(order):
        for other in order[place + 1 :]:
            if float(along[other] - along[one]) > reach:
                break
            apart = float((flat[one] - flat[other]).norm())
            if groups[one] != groups[other] and apart <= COPY * float(flat[one].norm()):
                a, b = sorted((one, other))
                raise ValueError(
                    f"examples {a} and {b} are copies of each other in different groups, so one would be"
                    " tested on what the other was fitted to; put copies into one group or leave one out"
                )


def codes(names: Sequence[object]) -> tuple[Int[np.ndarray, "example"], tuple[str, ...]]:
    """Names as numbers in order of first appearance, and the names as text."""
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names], dtype=int), tuple(map(str, place))
