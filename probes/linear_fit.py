"""Logistic regression by folds: fitted on one set of activations, scored on any of the same examples."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.linear_folds import control_folds, control_labels, shuffled_labels

ITERATIONS = 2000
RANK = 1e-10  # of the largest eigenvalue: directions below it are rounding


def tested(
    fitted: Float[np.ndarray, "example d_model"],
    scored: list[Float[np.ndarray, "example d_model"]],
    labels: Int[np.ndarray, "example"],
    folds: Int[np.ndarray, "example"],
    inverse_regularisation: float,
) -> Bool[np.ndarray, "set example"]:
    """Whether each example of each scored set is classified right by the probe of the folds without it.

    Features are standardised by the training part. An L2 penalty does not see rotations, so where there are
    more features than examples the fit runs in the examples' own span, which gives the same probe sooner.
    """
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    correct = np.zeros((len(scored), len(labels)), dtype=bool)
    for fold in np.unique(folds):
        training, held_out = folds != fold, folds == fold
        mean, spread = fitted[training].mean(0), fitted[training].std(0)
        spread = np.where(spread > 0, spread, 1.0)
        x = (fitted[training] - mean) / spread
        basis = _span(x) if x.shape[1] > len(x) else np.eye(x.shape[1])
        probe = LogisticRegression(C=inverse_regularisation, max_iter=ITERATIONS)
        with config_context(assume_finite=True, skip_parameter_validation=True):  # checked at the door
            probe.fit(x @ basis, labels[training])
            for place, each in enumerate(scored):
                scores = (each[held_out] - mean) / spread @ basis @ probe.coef_.T + probe.intercept_
                correct[place, held_out] = _best(scores, probe.classes_) == labels[held_out]
    return correct


def _best(
    scores: Float[np.ndarray, "held_out score"], classes: Int[np.ndarray, "class"]
) -> Int[np.ndarray, "held_out"]:
    """The class of the highest score; two classes share one score, which is the second's."""
    return classes[(scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(1)]


def _span(x: Float[np.ndarray, "example feature"]) -> Float[np.ndarray, "feature rank"]:
    """An orthonormal basis of what the examples span, from their products alone."""
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values > RANK * values[-1]
    return x.T @ (vectors[:, kept] / np.sqrt(values[kept]))


def shuffled_accuracy(
    layers: list[Float[np.ndarray, "example d_model"]],
    labels: Int[np.ndarray, "example"],
    groups: Int[np.ndarray, "example"],
    *,
    n_shuffles: int,
    n_folds: int,
    seed: int,
    generator: torch.Generator,
    inverse_regularisation: float,
) -> Float[Tensor, "shuffle layer"]:
    """Accuracy at every layer under some shuffles of the labels, each the same for all layers."""
    found = torch.zeros(n_shuffles, len(layers))
    for draw in range(n_shuffles):
        moved, folds = shuffled_labels(labels, groups, n_folds=n_folds, seed=seed, generator=generator)
        for place, x in enumerate(layers):
            found[draw, place] = float(tested(x, [x], moved, folds, inverse_regularisation).mean())
    return found


def control_accuracy(
    layers: list[Float[np.ndarray, "example d_model"]],
    labels: Int[np.ndarray, "example"],
    types: Int[np.ndarray, "example"],
    *,
    n_controls: int,
    n_folds: int,
    generator: torch.Generator,
    inverse_regularisation: float,
) -> Float[Tensor, "draw layer"]:
    """Accuracy on labels drawn for each type, tested on further examples of types that were fitted.

    No draws where fewer than two types have two examples: there is nothing to remember then.
    """
    sizes = np.bincount(types)
    seen = sizes[types] > 1
    if len(np.unique(types[seen])) < 2:
        return torch.zeros(0, len(layers))
    found = torch.zeros(n_controls, len(layers))
    for draw in range(n_controls):
        drawn = control_labels(labels, types[seen], generator)
        folds = control_folds(types[seen], n_folds=n_folds, generator=generator)
        for place, x in enumerate(layers):
            part = x[seen]
            found[draw, place] = float(tested(part, [part], drawn, folds, inverse_regularisation).mean())
    return found
