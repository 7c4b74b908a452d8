"""Gates A to D of the attention study, windows of layers, and the sink reframe: pure functions over numbers.

Every gate answers pass, fail or not applicable, with the reason and the figure. `published` is the rule as
the source coded it; `ours` is what its words promise: a stated sign, and an interval over the units that are
independent. Inputs are contrasts `delta`: the marker row minus a control, of each example, at each layer.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechinterp.stats.bootstrap import complete_rows, published_sem
from mechinterp.stats.clustered import clustered_mean

Definition = Literal["published", "ours"]
SHORTEST = 3  # contiguous layers: fewer are no window
DIRECTION = 0.70  # share of examples


@dataclass(frozen=True)
class Gate:
    """One answer. `value` is the figure that was held against `threshold`; `per_layer` where layers vote."""

    name: str
    definition: Definition
    verdict: Literal["pass", "fail", "not applicable"]
    reason: str
    value: float | None = None
    threshold: float | None = None
    per_layer: tuple[bool, ...] | None = None

    @property
    def passed(self) -> bool:
        """Whether the verdict is pass; not applicable is not."""
        return self.verdict == "pass"

    @property
    def layers(self) -> int:
        """How many layers pass; 0 where layers have no vote."""
        return sum(self.per_layer or ())


def direction(delta: Float[np.ndarray, "example layer"], *, definition: Definition = "published") -> Gate:
    """Gate A: at least 0.70 of the examples have a positive contrast. Both definitions are this rule."""
    rows = delta[complete_rows(delta)]
    if not len(rows):
        return not_applicable("A direction", definition, "no complete example")
    what = f"{DIRECTION:.2f} of {len(rows)} examples positive"
    return by_layers("A direction", definition, (rows > 0).mean(0) >= DIRECTION, what)


def magnitude(
    delta: Float[np.ndarray, "example layer"],
    *,
    definition: Definition = "published",
    clusters: Sequence[Hashable] | None = None,
) -> Gate:
    """Gate B: published, one bootstrap SEM around the mean excludes zero on either side, which a null layer
    does in 32 % of draws; ours, the 95 % interval over clusters lies above zero.
    """
    rows = delta[complete_rows(delta)]
    if len(rows) < 3:
        return not_applicable("B magnitude", definition, f"{len(rows)} complete examples; three are needed")
    if definition == "published":
        return magnitude_of_means(rows.mean(0), published_sem(rows), len(rows))
    return above_zero("B magnitude", delta, clusters)


def magnitude_of_means(
    mean: Float[np.ndarray, "layer"], sem: Float[np.ndarray, "layer"], n_examples: int
) -> Gate:
    """Published gate B from a summary's means and errors."""
    what = f"|mean| above one bootstrap SEM, either sign, {n_examples} examples"
    return by_layers("B magnitude", "published", np.abs(mean) > sem, what)


def specificity_of_means(
    system: Float[np.ndarray, "layer"], others: Mapping[str, Float[np.ndarray, "layer"]]
) -> Gate:
    """Published gate C: the mean contrast of the system prompt above those of the other regions, no error."""
    above = np.all([system > mean for mean in others.values()], axis=0)
    return by_layers("C specificity", "published", above, f"mean above {' and '.join(others)}, no error bar")


def specificity(
    system: Float[np.ndarray, "example layer"],
    others: Mapping[str, Float[np.ndarray, "example layer"]],
    *,
    definition: Definition = "published",
    clusters: Sequence[Hashable] | None = None,
) -> Gate:
    """Gate C: the system prompt gains more than every other region (user_B and asst_B in the study).

    Ours pairs the regions example by example and asks each difference's 95 % interval to lie above zero.
    """
    kept = complete_rows(system) & np.all([complete_rows(other) for other in others.values()], axis=0)
    if kept.sum() < 3:
        return not_applicable(
            "C specificity", definition, f"{int(kept.sum())} complete examples; three are needed"
        )
    if definition == "published":
        return specificity_of_means(
            system[kept].mean(0), {name: other[kept].mean(0) for name, other in others.items()}
        )
    votes = [above_zero(name, system - other, clusters).per_layer or () for name, other in others.items()]
    what = f"paired 95 % interval above {' and '.join(others)}"
    return by_layers("C specificity", "ours", np.all(votes, axis=0), what)


def sink_robust(a: Gate, b: Gate, c: Gate) -> Gate:
    """Gate D: A, B and C at once. As published it adds nothing of its own; see `sink_reframe`."""
    definition = "published" if {a.definition, b.definition, c.definition} == {"published"} else "ours"
    for gate in (a, b, c):
        if gate.per_layer is None:
            return not_applicable("D sink-robust", definition, f"{gate.name}: {gate.reason}")
    votes = np.all([gate.per_layer or () for gate in (a, b, c)], axis=0)
    return by_layers("D sink-robust", definition, votes, "A, B and C")


def sink_reframe(with_specials: Sequence[bool], content_only: Sequence[bool]) -> Gate:
    """Does gate A hold anywhere only because the attention sink was counted? Pass: no layer, so no reframe.

    The arguments are gate A's votes on system_A (block-inclusive) and system_B (content-only).
    """
    only = np.asarray(with_specials) & ~np.asarray(content_only)
    found = np.flatnonzero(only).tolist()
    reason = f"layers {found} pass with the specials only" if found else "no layer needs the specials to pass"
    verdict = "fail" if found else "pass"
    return Gate("sink reframe", "published", verdict, reason, float(len(found)), 0.0, votes_of(only))


def contiguous_windows(
    per_layer: Sequence[bool] | np.ndarray, *, shortest: int = SHORTEST
) -> tuple[tuple[int, int], ...]:
    """Maximal runs of passing layers, each as [first, last] with both ends in it."""
    padded = np.concatenate([[False], np.asarray(per_layer, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    runs = zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True)
    return tuple((low, high) for low, high in runs if high - low + 1 >= shortest)


def h1_window(per_layer: Sequence[bool] | np.ndarray) -> tuple[int, int] | None:
    """The longest window, the lowest of equally long ones; None without any."""
    return max(contiguous_windows(per_layer), key=lambda w: (w[1] - w[0], -w[0]), default=None)


def within(window: tuple[int, int] | None, n_layers: int) -> np.ndarray:
    """A mask of the window's layers; all layers where there is no window."""
    low, high = window or (0, n_layers - 1)
    if not 0 <= low <= high < n_layers:
        raise ValueError(f"a window of {n_layers} layers is [first, last] in 0..{n_layers - 1}, not {window}")
    layer = np.arange(n_layers)
    return (low <= layer) & (layer <= high)


def above_zero(
    name: str, delta: Float[np.ndarray, "example layer"], clusters: Sequence[Hashable] | None
) -> Gate:
    """Layers whose 95 % interval over clusters lies above zero."""
    found = clustered_mean(delta, clusters, unit="example" if clusters is None else "question")
    if found.note and found.n < 3:
        return not_applicable(name, "ours", found.note)
    return by_layers(name, "ours", found.low > 0, f"95 % interval above zero, {found.method}")


def by_layers(name: str, definition: Definition, votes: np.ndarray, what: str) -> Gate:
    """Pass where at least three contiguous layers do; the figure is the longest run."""
    windows = contiguous_windows(votes, shortest=1)
    longest = max((high - low + 1 for low, high in windows), default=0)
    kept = [list(window) for window in windows if window[1] - window[0] + 1 >= SHORTEST]
    reason = f"{int(votes.sum())} of {len(votes)} layers pass ({what}); windows {kept or 'none'}"
    verdict = "pass" if longest >= SHORTEST else "fail"
    return Gate(name, definition, verdict, reason, float(longest), float(SHORTEST), votes_of(votes))


def not_applicable(name: str, definition: Definition, reason: str) -> Gate:
    """A gate that could not be asked, and why."""
    return Gate(name, definition, "not applicable", reason)


def votes_of(votes: np.ndarray) -> tuple[bool, ...]:
    """Plain booleans, which JSON can hold."""
    return tuple(bool(vote) for vote in votes)
