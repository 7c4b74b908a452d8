"""What force-feeding holds: one reading for every text and reader, and what each adds to the author's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mechinterp.results import Result
from mechinterp.stats.clustered import ClusteredMean, clustered_mean
from studies.attention_readout import Readout
from studies.attention_records import Query

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

UNIT = "question"


@dataclass(frozen=True, eq=False)
class Fed:
    """One text, read by one model; `author` names the model that wrote it."""

    text: str
    author: str
    reader: str
    read: Readout

    def delta(self, row: Query) -> Float[np.ndarray, "example layer"]:
        """The row's fraction minus that of its C1 rows, on content."""
        return self.read.delta(row, "random_earlier", f"{self.read.region} B").double().numpy()

    def mean(self, row: Query) -> ClusteredMean:
        """The contrast averaged over layers, questions as units."""
        return clustered_mean(self.delta(row).mean(1, keepdims=True), self.read.questions, unit=UNIT)


@dataclass(frozen=True, eq=False)
class ForceFeed(Result):
    """Readings of crossed texts and readers. The table has one line a text and reader."""

    model: str
    row: Query
    region: str
    fed: tuple[Fed, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.text for one in self.fed))

    @property
    def readers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.reader for one in self.fed))

    def of(self, text: str, reader: str) -> Fed | None:
        return next((one for one in self.fed if (one.text, one.reader) == (text, reader)), None)

    def against_author(self, one: Fed) -> Float[np.ndarray, "example layer"] | None:
        """Reader minus author on the same ids, paired by example; None where the author did not read it."""
        own = self.of(one.text, one.author)
        return None if own is None else one.delta(self.row) - own.delta(self.row)

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        lines = []
        for one in self.fed:
            found, paired = one.mean(self.row), self.against_author(one)
            line = {
                "text": one.text,
                "reader": one.reader,
                "own": one.reader == one.author,
                "contrast": found.estimate[0],
                "low": found.low[0],
                "high": found.high[0],
                "n_questions": found.n,
                "n_examples": found.n_examples,
                "minus_author_p": float("nan"),  # where the author did not read the text
            }
            if paired is not None:
                tested = clustered_mean(paired.mean(1, keepdims=True), one.read.questions, unit=UNIT)
                line |= {
                    "minus_author": tested.estimate[0],
                    "minus_author_low": tested.low[0],
                    "minus_author_high": tested.high[0],
                    "minus_author_p": tested.p[0],
                }
            lines.append(line)
        return pd.DataFrame(lines)

    def headline(self) -> str:
        from studies.force_feed_page import answer

        return answer(self)

    def figure(self) -> go.Figure:
        """Texts by readers: the mean contrast over layers."""
        from studies.force_feed_page import grid

        return grid(self)
