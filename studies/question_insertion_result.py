"""What question insertion finds: how states move with the turns, and what their main direction does.

The unit of replication is the question for states (each role has one conversation), and the run for steered
texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechinterp.directions import cosine, cosine_matrix, projection
from mechinterp.files import slug
from mechinterp.results import Result
from mechinterp.stats.intervals import Interval, mean_interval
from mechinterp.stats.paired import SignFlip, sign_flip
from probes.vectors import Vectors
from studies.question_insertion_cells import Inserted, Played, Steered
from studies.transcripts import Transcript, write_transcript

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ARMS = ("unsteered", "random", "raw", "centred", "role", "told")
MEASURES = ("projection", "log_ratio")


@dataclass(frozen=True, eq=False)
class Shift:
    """One role's conversation beside the control's: projections on the role's vector, the means' geometry.

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
                    found = mean_interval(
                        shift.projections["role"][:, p, k], method="bootstrap", unit="question"
                    )
                    lines.append(
                        {
                            "role": shift.role,
                            "layer": layer,
                            "turns": p,
                            "n": found.n,
                            "projection": found.estimate,
                            "low": found.low,
                            "high": found.high,
                            "control_projection": float(shift.projections["control"][:, p, k].mean()),
                            "cosine_to_start": float(shift.cosines[layer, p, 0]),
                            **{f"{how}_share": float(share[layer]) for how, share in shift.shares.items()},
                            **{f"{how}_alignment": float(cos[k]) for how, cos in shift.alignment.items()},
                        }
                    )
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
            who: torch.stack([projection(x[:, :, k], v) for k, v in enumerate(along)], -1)
            for who, x in states.items()
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
            {
                "role": runs.role,
                "layer": runs.release.site.layer,
                "arm": arm,
                "seed": runs.release.seeds[row],
                "log_ratio": float(values[middle]),
                "text": runs.texts[row],
            }
        )
    return found
