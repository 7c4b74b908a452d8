"""What question insertion finds: how states move with the turns of a conversation, and what their main direction does.

The unit of replication is the question for states (each role has one conversation), and the run for steered texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechinterp.directions import TopSingular, cosine, cosine_matrix, projection, top_singular
from mechinterp.files import slug
from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, mean_interval
from mechinterp.stats.paired import SignFlip, sign_flip
from probes.persist import Release
from probes.vectors import Vectors
from studies.transcripts import Transcript, write_transcript

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ARMS = ("unsteered", "random", "raw", "centred", "role", "told")
MEASURES = ("projection", "log_ratio")


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
        return {"raw": raw, "centred": TopSingular(centred.direction * sign, centred.share, centred.spectrum[..., :-1])}

    def to_dataframe(self) -> pd.DataFrame:
        """One line a point and layer: the norm of the mean state and its cosine with the one without turns."""
        import pandas as pd

        means = self.means()
        same = cosine(means, means[:1])
        return pd.DataFrame(
            {"turns": p, "layer": layer, "norm": float(means[p, layer].norm()), "cosine_to_start": float(same[p, layer])}
            for p in range(means.shape[0])
            for layer in range(means.shape[1])
        )

    def figure(self) -> go.Figure:
        """The cosine with the state without turns, by layer, a line a point."""
        from mechinterp.figures import caption, per_layer

        said = caption(self.model, n=len(self.questions), unit="question", seeds=[], band="none", more=[self.role])
        return per_layer(self.to_dataframe(), "cosine_to_start", by="turns", subtitle=said)


@dataclass(frozen=True, eq=False)
class Steered(Result):
    """One cell's runs; log-probabilities are of the same ids under the role's prompt and under the default one."""

    release: Release
    role: str
    norm: float
    norm_in_residuals: float
    log_p_role: Float[Tensor, "row token"]
    log_p_default: Float[Tensor, "row token"]
    texts: tuple[str, ...]

    def projection(self, arm: str) -> Float[Tensor, "run"]:
        """Each run's mean projection on the role's vector, before the edit of its own pass: what the text brings."""
        rows = self.release.rows(arm)
        natural = self.release.natural[rows, :, self.release.names.index(self.role)]
        return natural.masked_fill(~self.release.real[rows], torch.nan).nanmean(1)

    def log_ratio(self, arm: str) -> Float[Tensor, "run"]:
        """Each run's mean over its tokens of log p(token | role's prompt) - log p(token | default prompt), in nats."""
        return (self.log_p_role - self.log_p_default)[self.release.rows(arm)].nanmean(1)

    def fluency(self, arm: str) -> Float[Tensor, "run"]:
        """Each run's mean log p(token | default prompt) under the unedited model: low where the text is broken."""
        return self.log_p_default[self.release.rows(arm)].nanmean(1)

    def to_dataframe(self) -> pd.DataFrame:
        """One line a run."""
        import pandas as pd

        parts = []
        for arm in dict.fromkeys(self.release.arms):
            seeds = [self.release.seeds[row] for row in self.release.rows(arm)]
            measured = {"projection": self.projection(arm), "log_ratio": self.log_ratio(arm), "fluency": self.fluency(arm)}
            parts.append(pd.DataFrame({"arm": arm, "seed": seeds, **{k: v.tolist() for k, v in measured.items()}}))
        return pd.concat(parts, ignore_index=True)

    def figure(self) -> go.Figure:
        return self.release.figure()


@dataclass(frozen=True, eq=False)
class Shift:
    """One role's conversation beside the control's: projections on the role's vector, and the means' geometry.

    `projections["role"]` and `["control"]` are x . v / |v|; `norms` are those of the same states.
    """

    role: str
    transcript: Transcript
    given: bool
    vector_layers: tuple[int, ...]
    projections: dict[str, Float[Tensor, "question point vector_layer"]]
    norms: dict[str, Float[Tensor, "question point vector_layer"]]
    cosines: Float[Tensor, "layer point point"]
    spectra: dict[str, Float[Tensor, "layer rank_"]]
    shares: dict[str, Float[Tensor, "layer"]]
    alignment: dict[str, Float[Tensor, "vector_layer"]]  # cosine of the top direction with the role's vector

    @property
    def n_turns(self) -> int:
        return self.cosines.shape[-1] - 1

    def at(self, layer: int) -> int:
        return self.vector_layers.index(layer)

    def change(self, layer: int, who: str = "role") -> Float[Tensor, "question"]:
        """Projection after the last turn minus without turns, for every question."""
        found = self.projections[who][:, :, self.at(layer)]
        return found[:, -1] - found[:, 0]

    def beyond_control(self, layer: int) -> Float[Tensor, "question"]:
        """The change minus the control conversation's."""
        return self.change(layer) - self.change(layer, "control")

    def slope(self, layer: int) -> Float[Tensor, "question"]:
        """Least-squares growth a turn over the points after turns 1 to k."""
        found = self.projections["role"][:, 1:, self.at(layer)]
        turn = torch.arange(found.shape[1]) - (found.shape[1] - 1) / 2
        return einsum(found, turn, "question point, point -> question") / turn.square().sum()


@dataclass(frozen=True, eq=False)
class Outcome:
    """One cell of steered runs: role-likeness by arm, two ways."""

    role: str
    layer: int
    question: int
    seeds: tuple[int, ...]
    norm_in_residuals: float
    projection: dict[str, Float[Tensor, "run"]]
    log_ratio: dict[str, Float[Tensor, "run"]]
    fluency: dict[str, Float[Tensor, "run"]]
    n_stopped: dict[str, int]

    def interval(self, measure: str, arm: str) -> Interval:
        return mean_interval(getattr(self, measure)[arm], method="bootstrap")

    def against(self, measure: str, arm: str, other: str = "random") -> SignFlip:
        """An arm minus another, paired by seed."""
        found = getattr(self, measure)
        return sign_flip(found[arm] - found[other])


@dataclass(frozen=True, eq=False)
class QuestionInsertion(Result):
    """All roles of a run. The table has one line a role, layer and insertion point."""

    model: str
    roles: tuple[str, ...]
    names: dict[str, str]
    layers: tuple[int, ...]
    questions: tuple[tuple[str, str], ...]
    seed: int
    shifts: tuple[Shift, ...]
    outcomes: tuple[Outcome, ...]
    samples: tuple[dict[str, Any], ...]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        lines = []
        for shift in self.shifts:
            for k, layer in enumerate(shift.vector_layers):
                for p in range(shift.n_turns + 1):
                    found = mean_interval(shift.projections["role"][:, p, k], method="bootstrap", unit="question")
                    lines.append(
                        {
                            "role": shift.role, "layer": layer, "turns": p, "n": found.n, "projection": found.estimate,
                            "low": found.low, "high": found.high,
                            "control_projection": float(shift.projections["control"][:, p, k].mean()),
                            "cosine_to_start": float(shift.cosines[layer, p, 0]),
                            **{f"{how}_share": float(share[layer]) for how, share in shift.shares.items()},
                            **{f"{how}_alignment": float(cos[k]) for how, cos in shift.alignment.items()},
                        }
                    )  # fmt: skip
        return pd.DataFrame(lines)

    def headline(self) -> str:
        """The answer in a few lines of plain text."""
        from studies.question_insertion_page import answer

        return answer(self)

    def figure(self) -> go.Figure:
        """The first role's projection by turn; `studies.question_insertion_figures` draws the others."""
        from studies.question_insertion_figures import by_turn

        return by_turn(self, self.shifts[0], self.layers[0])

    def save(self, folder: Path | str) -> Path:
        """The result, and each conversation as `transcripts/ROLE.json`."""
        folder = super().save(folder)
        (folder / "transcripts").mkdir(exist_ok=True)
        for shift in self.shifts:
            write_transcript(folder / "transcripts" / f"{slug(shift.role)}.json", shift.transcript)
        return folder


def shift_of(vectors: Vectors, played: Played, own: Inserted, control: Inserted) -> Shift:
    """A role's states and the control's, on the role's vector at the layers that it has."""
    layers = list(vectors.layers)
    along = torch.stack([vectors[own.role, layer] for layer in layers])
    states = {"role": own.states[:, :, layers].float(), "control": control.states[:, :, layers].float()}
    tops = own.tops()
    return Shift(
        role=own.role,
        transcript=played.transcript,
        given=played.given,
        vector_layers=vectors.layers,
        projections={
            who: torch.stack([projection(x[:, :, k], v) for k, v in enumerate(along)], -1) for who, x in states.items()
        },
        norms={who: x.norm(dim=-1) for who, x in states.items()},
        cosines=cosine_matrix(own.means(), center_on=None),
        spectra={how: top.spectrum for how, top in tops.items()},
        shares={how: top.share for how, top in tops.items()},
        alignment={how: cosine(top.direction[layers], along) for how, top in tops.items()},
    )


def outcome_of(layer: int, question: int, runs: Steered) -> Outcome:
    found = runs.release
    return Outcome(
        role=runs.role,
        layer=layer,
        question=question,
        seeds=tuple(found.seeds[row] for row in found.rows("random")),
        norm_in_residuals=runs.norm_in_residuals,
        projection={arm: runs.projection(arm) for arm in ARMS},
        log_ratio={arm: runs.log_ratio(arm) for arm in ARMS},
        fluency={arm: runs.fluency(arm) for arm in ARMS},
        n_stopped={arm: sum(found.finish_reason[row] == "stop" for row in found.rows(arm)) for arm in ARMS},
    )


def conclude(
    roles: Sequence[str],
    names: dict[str, str],
    layers: Sequence[int],
    vectors: Vectors,
    conversations: Mapping[str, tuple[Played, Inserted]],
    steered: Sequence[tuple[int, int, Steered]],
    *,
    seed: int,
) -> QuestionInsertion:
    """Everything of a run; `conversations` holds the control too, `steered` is (layer, question, runs)."""
    control = conversations["control"][1]
    first = conversations[roles[0]][1]
    return QuestionInsertion(
        model=first.model,
        roles=tuple(roles),
        names=names,
        layers=tuple(layers),
        questions=tuple(zip(first.groups, first.questions, strict=True)),
        seed=seed,
        shifts=tuple(shift_of(vectors, *conversations[role], control) for role in roles),
        outcomes=tuple(outcome_of(layer, question, runs) for layer, question, runs in steered),
        samples=tuple(sample for _, _, runs in steered for sample in _samples(runs)),
    )


def _samples(runs: Steered) -> list[dict[str, Any]]:
    """Of each arm the run whose log ratio is the arm's median: typical, not chosen."""
    found = []
    for arm in ARMS:
        values = runs.log_ratio(arm)
        middle = int(values.argsort()[len(values) // 2])
        row = runs.release.rows(arm)[middle]
        found.append(
            {"role": runs.role, "layer": runs.release.site.layer, "arm": arm, "seed": runs.release.seeds[row],
             "log_ratio": float(values[middle]), "text": runs.texts[row]}
        )  # fmt: skip
    return found
