"""Contrasts for the tests of gates: noise with the likeness of layers and questions, and planted effects."""

from functools import cache

import numpy as np

N_LAYERS = 28
TRIALS = 400


def noise(
    n_examples: int = 40, *, seed: int = 0, n_layers: int = N_LAYERS, likeness: float = 0.9
) -> np.ndarray:
    """Examples whose neighbouring layers resemble each other, as attention's do."""
    return np.random.default_rng(seed).normal(size=(n_examples, n_layers)) @ _across(n_layers, likeness)


@cache
def _across(n_layers: int, likeness: float) -> np.ndarray:
    apart = np.abs(np.subtract.outer(np.arange(n_layers), np.arange(n_layers)))
    return np.linalg.cholesky(likeness**apart).T


def questions(n_clusters: int, n_examples: int = 40) -> list[str]:
    return [f"question {i % n_clusters}" for i in range(n_examples)]


def clustered(n_clusters: int, *, seed: int, share: float = 0.5, n_examples: int = 40) -> np.ndarray:
    """Noise of which a share of the variance belongs to the question."""
    common = noise(n_clusters, seed=seed + 10**6)[np.arange(n_examples) % n_clusters]
    return np.sqrt(share) * common + np.sqrt(1 - share) * noise(n_examples, seed=seed)


def planted(low: int = 6, high: int = 20, *, size: float = 2.0, seed: int = 0) -> np.ndarray:
    delta = noise(seed=seed)
    delta[:, low : high + 1] += size
    return delta


def null_rate(gate, trials: int = TRIALS) -> float:
    return sum(gate(seed).passed for seed in range(trials)) / trials


def error(rate: float, trials: int = TRIALS) -> float:
    """Three standard errors of a Monte Carlo rate."""
    return 3 * np.sqrt(rate * (1 - rate) / trials)


def side_by_side(draw, trials: int) -> np.ndarray:
    """Many independent studies as more layers of one, for gates that judge layer by layer."""
    return np.concatenate([draw(seed) for seed in range(trials)], axis=1)
