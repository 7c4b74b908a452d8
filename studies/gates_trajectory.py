"""Gate F: does attention to the system prompt rise at the marker, or had it been high for a while?

As published, rows are counted from the end of the answer, where the marker's first piece is usually two rows
back; ours counts from t* itself, so that an answer that ends otherwise is read at its own marker. A reframe
is required when the difference five rows earlier exceeds half of that at the marker: pass means none.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechinterp.stats.clustered import ClusteredMean, clustered_mean, t_quantile
from mechinterp.wording import finite
from studies.gates import Definition, Gate, not_applicable, within

NAME = "F trajectory"
HALF = 0.5
EARLIER = 5  # rows before the marker
AT_MARKER = -2  # published: t* as counted from the last content token
ROWS = {"emit": -1, "token": 0}  # ours: offsets from t*


def trajectory_difference(
    positives: Float[np.ndarray, "positive row layer"], negatives: Float[np.ndarray, "negative row layer"]
) -> Float[np.ndarray, "row layer"]:
    """Mean of the positives minus mean of the negatives; NaN marks rows that an answer does not have."""
    return _mean(positives) - _mean(negatives)


def trajectory_from_the_end(
    difference: Float[np.ndarray, "row layer"] | None, window: tuple[int, int] | None
) -> Gate:
    """Published gate F, from the difference on the last rows of the answer, the last of them at offset 0.

    All layers count where there is no H1 window. None (the base model: no negatives) is not applicable.
    """
    if difference is None:
        return not_applicable(NAME, "published", "no negatives to compare with")
    last, n_layers = len(difference) - 1, difference.shape[1]
    if last + AT_MARKER - EARLIER < 0:
        raise ValueError(f"gate F reads offsets -7 and -2, so 8 or more rows, not {len(difference)}")
    band = difference[:, within(window, n_layers)].mean(1)
    earlier, marker = float(band[last + AT_MARKER - EARLIER]), float(band[last + AT_MARKER])
    return _judged("published", earlier, marker, "offsets -7 and -2 from the last content token")


def trajectory_at_marker(
    positives: Float[np.ndarray, "positive row layer"],
    negatives: Float[np.ndarray, "negative row layer"] | None,
    offsets: Sequence[int],
    window: tuple[int, int] | None,
    *,
    row: Literal["emit", "token"] = "emit",
    clusters: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
) -> Gate:
    """Gate F aligned on t*: `offsets` name the rows from t*, for negatives from where the marker would be.

    Only where positives and negatives differ at the marker (95 % interval over clusters, Welch) is there a
    rise to ask about. Clusters are the labels of the positives and of the negatives. Raises ValueError when
    the rows needed are not among the offsets.
    """
    if negatives is None or not len(negatives):
        return not_applicable(NAME, "ours", "no finished negatives to compare with")
    at = ROWS[row]
    missing = [offset for offset in (at - EARLIER, at) if offset not in offsets]
    if missing:
        raise ValueError(
            f"gate F at {row} reads offsets {at - EARLIER} and {at} from t*; {missing} not given"
        )
    inside = within(window, positives.shape[2])
    labels = clusters or (None, None)

    def at_row(offset: int) -> tuple[float, float]:
        place = list(offsets).index(offset)
        return _welch(
            *(
                clustered_mean(side[:, place, inside].mean(1, keepdims=True), of_side)
                for side, of_side in zip((positives, negatives), labels, strict=True)
            )
        )

    marker, half = at_row(at)
    if not abs(marker) > half:
        reason = f"positives and negatives do not differ at {row}: {marker:+.4g}, 95 % half-width {half:.4g}"
        return not_applicable(NAME, "ours", reason)
    return _judged("ours", at_row(at - EARLIER)[0], marker, f"rows {row}-{EARLIER} and {row}")


def _judged(definition: Definition, earlier: float, marker: float, where: str) -> Gate:
    if not (math.isfinite(earlier) and math.isfinite(marker)):
        return not_applicable(NAME, definition, f"no difference is known at {where}")
    required = abs(earlier) > HALF * abs(marker)
    ratio = abs(earlier) / abs(marker) if marker else (math.inf if earlier else 0.0)
    reason = f"{earlier:+.4g} against {marker:+.4g} at {where}: reframe {'' if required else 'not '}required"
    return Gate(NAME, definition, "fail" if required else "pass", reason, finite(ratio), HALF)


def _welch(positive: ClusteredMean, negative: ClusteredMean) -> tuple[float, float]:
    """Difference of two means and the half-width of its 95 % interval; infinite with too few clusters."""
    difference = float(positive.estimate[0] - negative.estimate[0])
    variances = [float(side.standard_error[0]) ** 2 for side in (positive, negative)]
    if not all(map(math.isfinite, variances)):
        return difference, math.inf
    if not any(variances):
        return difference, 0.0
    parts = zip(variances, (positive.degrees_of_freedom, negative.degrees_of_freedom), strict=True)
    freedom = sum(variances) ** 2 / sum(variance**2 / df for variance, df in parts)
    return difference, t_quantile(freedom, 0.95) * math.sqrt(sum(variances))


def _mean(rows: Float[np.ndarray, "example row layer"]) -> Float[np.ndarray, "row layer"]:
    known = np.isfinite(rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, rows, 0.0).sum(0) / known.sum(0)
