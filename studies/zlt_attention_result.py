"""What the attention study holds: each text set read by its trained model and by the base, and its contrasts.

A text set is one persona, training run and generation seed. Readings of one set are of the same ids and the
same rows, so trained and base are paired by example; examples of one question form a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.multiplicity import MaxT, max_t
from probes.preflight import Preflight
from studies.attention_readout import REGIONS, Readout
from studies.attention_records import Examples, Query

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Reader = Literal["trained", "base"]
READERS: tuple[Reader, ...] = ("trained", "base")
ROWS: tuple[Query, ...] = ("emit", "token")
UNIT = "question"


@dataclass(frozen=True, eq=False)
class Reading:
    """One text set and its two readers."""

    persona: str
    run: int
    seed: int
    examples: Examples
    trained: Readout
    base: Readout

    @property
    def name(self) -> str:
        return f"{self.persona}, training run {self.run}, seed {self.seed}"

    @property
    def questions(self) -> tuple[str, ...]:
        """The cluster of each example."""
        return self.trained.questions

    def of(self, reader: Reader) -> Readout:
        return self.trained if reader == "trained" else self.base

    def delta(
        self, reader: Reader, row: Query, control: str = "random_earlier", region: str | None = None
    ) -> Float[np.ndarray, "example layer"]:
        """A row's fraction minus its control rows', by example; on the region of segmentation B."""
        read = self.of(reader)
        return read.delta(row, control, region or f"{read.region} B").double().numpy()

    def difference(
        self, row: Query, control: str = "random_earlier", region: str | None = None
    ) -> Float[np.ndarray, "example layer"]:
        """Trained minus base of `delta`, paired by example: the diff-of-diffs of methods 9.7."""
        return self.delta("trained", row, control, region) - self.delta("base", row, control, region)

    def along(self) -> Float[np.ndarray, "example step layer"]:
        """Trained minus base at every row from before emit to token, each against C1 of emit."""
        sides = [(self.of(reader).around - self._control(reader)).double().numpy() for reader in READERS]
        return sides[0] - sides[1]

    def _control(self, reader: Reader):
        read = self.of(reader)
        return read.of("emit:random_earlier", f"{read.region} B")[:, None]

    def tested(self, values: Float[np.ndarray, "example layer"]) -> MaxT:
        """Layer by layer with a band for all layers; the unit is the question."""
        return max_t(values, self.questions, unit=UNIT)


@dataclass(frozen=True, eq=False)
class ZltAttention(Result):
    """All readings of a run. The table has one line a reading, reader, row, control and layer."""

    model: str
    marker: str
    row: Query
    region: str
    replication: str | None
    readings: tuple[Reading, ...]
    preflight: Preflight | None

    @property
    def personas(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(reading.persona for reading in self.readings))

    def first(self, persona: str) -> Reading:
        """A persona's first training run and seed: what figures of one persona show."""
        return next(reading for reading in self.readings if reading.persona == persona)

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        parts = []
        for reading in self.readings:
            where = {"persona": reading.persona, "run": reading.run, "seed": reading.seed}
            for row in ROWS:
                for control in controls_of(reading.trained, row):
                    arms = {reader: reading.delta(reader, row, control) for reader in READERS}
                    arms["trained - base"] = arms["trained"] - arms["base"]
                    for arm, values in arms.items():
                        found = clustered_mean(values, reading.questions, unit=UNIT)
                        parts.append(
                            pd.DataFrame(
                                {
                                    **where,
                                    "arm": arm,
                                    "row": row,
                                    "control": control,
                                    "layer": range(len(found.estimate)),
                                    "contrast": found.estimate,
                                    "low": found.low,
                                    "high": found.high,
                                    "p": found.p,
                                    "n_questions": found.n,
                                    "n_examples": found.n_examples,
                                }
                            )
                        )
        return pd.concat(parts, ignore_index=True)

    def headline(self) -> str:
        """The answer in a few lines of plain text."""
        from studies.zlt_attention_page import answer

        return answer(self)

    def figure(self) -> go.Figure:
        """Trained against base by layer, of the first persona; `zlt_attention_figures` has the others."""
        from studies.zlt_attention_figures import curves

        return curves(self, self.readings[0])


def controls_of(read: Readout, row: Query) -> tuple[str, ...]:
    """The controls that a row was compared with."""
    return tuple(stratum.split(":", 1)[1] for stratum in read.strata if stratum.startswith(f"{row}:"))


def absolute(read: Readout, row: Query) -> dict[str, Float[np.ndarray, "layer"]]:
    """Mean fraction of every region at a row, by layer: specials and the sink are among them."""
    return {region: read.of(row, region).nanmean(0).double().numpy() for region in REGIONS}
