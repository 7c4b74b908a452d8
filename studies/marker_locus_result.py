"""What the locus study holds: for each text set, every measurement of the trained model and the base."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechinterp.results import Result
from patching.grid import PatchGrid
from probes.direct_pair import AttributionComparison
from studies.marker_locus_cells import LensCurves
from studies.marker_locus_swap import Swap

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

UNIT = "question"


@dataclass(frozen=True, eq=False)
class Locus(Result):
    """One persona's answers of one training run and seed; grids are as `patching` makes them."""

    persona: str
    run: int
    seed: int
    lens: LensCurves
    attribution: AttributionComparison
    swap: Swap
    into_base: PatchGrid
    into_trained: PatchGrid
    token_into_base: PatchGrid
    token_into_trained: PatchGrid
    ablations: dict[str, PatchGrid]
    knocked_trained: PatchGrid
    knocked_base: PatchGrid

    @property
    def questions(self) -> tuple[str, ...]:
        return self.lens.questions

    @property
    def name(self) -> str:
        return f"{self.persona}, run {self.run}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class MarkerLocus(Result):
    """Every text set. The table has one line an alternative explanation and text set."""

    model: str
    marker: str
    loci: tuple[Locus, ...]

    @property
    def personas(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(locus.persona for locus in self.loci))

    def of(self, persona: str) -> tuple[Locus, ...]:
        """The text sets of one persona: its runs and seeds."""
        return tuple(locus for locus in self.loci if locus.persona == persona)

    def to_dataframe(self) -> "pd.DataFrame":
        import pandas as pd

        from studies.marker_locus_verdicts import verdicts

        lines = [
            {
                "persona": locus.persona, "run": locus.run, "seed": locus.seed, "alternative": one.name,
                "verdict": one.verdict, "estimate": one.estimate, "low": one.low, "high": one.high,
                "n": one.n, "unit": UNIT, "measure": one.measure, "reason": one.reason,
            }
            for locus in self.loci
            for one in verdicts(locus)
        ]  # fmt: skip
        return pd.DataFrame(lines)

    def headline(self) -> str:
        from studies.marker_locus_page import answer

        return answer(self)

    def figure(self) -> "go.Figure":
        """The stream carried from trained to base, layer by place, of the first text set."""
        return self.loci[0].into_base.figure("recovered")
