"""What the cells of question insertion hold: a conversation, the states of its questions, steered runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechinterp.directions import TopSingular, cosine, top_singular
from mechinterp.results import Result
from probes.persist import Release
from studies.transcripts import Transcript, write_transcript

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Played(Result):
    """A conversation; saving it also writes `transcript.json`, which other tools read."""

    model: str
    transcript: Transcript
    given: bool  # taken from a file, not played

    def to_dataframe(self) -> pd.DataFrame:
        """One line a message."""
        import pandas as pd

        return pd.DataFrame(list(self.transcript.messages))

    def save(self, folder: Path | str) -> Path:
        folder = super().save(folder)
        write_transcript(folder / "transcript.json", self.transcript)
        return folder


@dataclass(frozen=True, eq=False)
class Inserted(Result):
    """States at the last prompt token; point p is after p complete turns, 0 without any."""

    model: str
    role: str
    groups: tuple[str, ...]
    questions: tuple[str, ...]
    n_before: tuple[int, ...]  # ids of the conversation before the question
    states: Float[Tensor, "question point layer d_model"]

    def means(self) -> Float[Tensor, "point layer d_model"]:
        return self.states.mean(0)

    def tops(self) -> dict[str, TopSingular]:
        """The top right singular vector of the means after turns 1 to k, at every layer (methods 10.3).

        The raw one agrees with the means' mean; the centred one is signed so that later turns score higher.
        """
        rows = self.means()[1:]
        raw, centred = top_singular(rows, centered=False), top_singular(rows, centered=True)
        scores = einsum(rows, centred.direction, "point layer d_model, layer d_model -> point layer")
        turn = torch.arange(len(rows)) - (len(rows) - 1) / 2
        growth = einsum(turn, scores, "point, point layer -> layer")
        sign = rearrange(torch.where(growth < 0, -1.0, 1.0), "layer -> layer 1")
        # One rank less is left after centring; what an SVD gives in its place is rounding.
        return {
            "raw": raw,
            "centred": TopSingular(centred.direction * sign, centred.share, centred.spectrum[..., :-1]),
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One line a point and layer: the mean state's norm, and its cosine with the one without turns."""
        import pandas as pd

        means = self.means()
        same = cosine(means, means[:1])
        return pd.DataFrame(
            {
                "turns": p,
                "layer": layer,
                "norm": float(means[p, layer].norm()),
                "cosine_to_start": float(same[p, layer]),
            }
            for p in range(means.shape[0])
            for layer in range(means.shape[1])
        )

    def figure(self) -> go.Figure:
        """The cosine with the state without turns, by layer, a line a point."""
        from mechinterp.figures import caption, per_layer

        said = caption(
            self.model, n=len(self.questions), unit="question", seeds=[], band="none", more=[self.role]
        )
        return per_layer(self.to_dataframe(), "cosine_to_start", by="turns", subtitle=said)


@dataclass(frozen=True, eq=False)
class Steered(Result):
    """One cell's runs; log-probabilities are of the same ids under the role's and the default prompt."""

    release: Release
    role: str
    norm: float
    norm_in_residuals: float
    log_p_role: Float[Tensor, "row token"]
    log_p_default: Float[Tensor, "row token"]
    texts: tuple[str, ...]

    def projection(self, arm: str) -> Float[Tensor, "run"]:
        """Each run's mean projection on the role's vector before each pass's edit: what the text brings."""
        rows = self.release.rows(arm)
        natural = self.release.natural[rows, :, self.release.names.index(self.role)]
        return natural.masked_fill(~self.release.real[rows], torch.nan).nanmean(1)

    def log_ratio(self, arm: str) -> Float[Tensor, "run"]:
        """log p(text | role's prompt) - log p(text | default prompt) of each run, in nats a token."""
        return (self.log_p_role - self.log_p_default)[self.release.rows(arm)].nanmean(1)

    def fluency(self, arm: str) -> Float[Tensor, "run"]:
        """log p(text | default prompt) of each run, in nats a token: low where the text is broken."""
        return self.log_p_default[self.release.rows(arm)].nanmean(1)

    def to_dataframe(self) -> pd.DataFrame:
        """One line a run."""
        import pandas as pd

        parts = []
        for arm in dict.fromkeys(self.release.arms):
            seeds = [self.release.seeds[row] for row in self.release.rows(arm)]
            measured = {
                "projection": self.projection(arm),
                "log_ratio": self.log_ratio(arm),
                "fluency": self.fluency(arm),
            }
            parts.append(
                pd.DataFrame({"arm": arm, "seed": seeds, **{k: v.tolist() for k, v in measured.items()}})
            )
        return pd.concat(parts, ignore_index=True)

    def figure(self) -> go.Figure:
        return self.release.figure()
