"""How far the same response's next-token distributions lie apart under different system prompts (methods 5).

Every response stands, as ids, behind every persona's prompt; JS and KL between each pair of prompts are
averaged over its tokens. Values are kept per response: any choice of whose responses count is made of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.divergence import pairwise
from mechinterp.model import Model
from mechinterp.results import Result
from probes.lens_read import head_logits
from probes.responses import Response, SystemRole, deciding_states, prefill, prompt_ids, turn_end

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Selection = Literal["all", "pair", "source", "target"]
SELECTIONS: tuple[Selection, ...] = ("all", "pair", "source", "target")
LEAST_TOKENS = 2  # a shorter response is left out and counted
LOGITS = 2**21  # elements of logits in memory at a time: 8 MiB
GPU_LOGITS = 2**26  # there, where few large products are fast
ROWS = 256  # of responses in a pass on a CPU, unless asked: more gain no time and cost memory


@dataclass(frozen=True, eq=False)
class OutputDivergence(Result):
    """JS and KL in nats per response and ordered pair of personas: kl[:, i, j] is KL(i || j).

    `n_tokens` counts the rows of each response, `skipped` the responses that were too short for any.
    """

    model: str
    personas: tuple[str, ...]
    writers: tuple[str, ...]
    questions: tuple[str, ...]
    draws: tuple[int, ...]
    n_tokens: tuple[int, ...]
    js: Float[Tensor, "response persona persona"]
    kl: Float[Tensor, "response persona persona"]
    include_turn_end: bool
    skipped: int
    batch_sizes: tuple[int, ...]

    def matrix(
        self, measure: Literal["js", "kl"] = "js", responses: Selection = "all"
    ) -> Float[Tensor, "persona persona"]:
        """Means over responses, each weighing the same: over all (as published), over those of both members
        of a pair (the mean of their two means), of the first alone (source) or of the second (target).

        NaN where a persona that is asked for wrote none.
        """
        values = {"js": self.js, "kl": self.kl}[measure].double()
        if responses == "all":
            return values.mean(0)
        by_writer = torch.stack([values[self._wrote(name)].mean(0) for name in self.personas])
        first = torch.stack([rows[i] for i, rows in enumerate(by_writer)])
        second = torch.stack([rows[:, j] for j, rows in enumerate(by_writer)], 1)
        match responses:
            case "source":
                return first
            case "target":
                return second
            case "pair":
                return (first + second) / 2
        raise ValueError(f"responses must be one of {', '.join(SELECTIONS)}, not {responses!r}")

    def of_question(self, question: str) -> Float[Tensor, "response persona persona"]:
        """The JS values of the responses to one question."""
        return self.js[[i for i, asked in enumerate(self.questions) if asked == question]]

    def _wrote(self, name: str) -> Bool[Tensor, "response"]:
        return torch.tensor([writer == name for writer in self.writers], dtype=torch.bool)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for every ordered pair of personas: JS and KL under each selection of responses."""
        import pandas as pd

        names = {(m, r): self.matrix(m, r) for m in ("js", "kl") for r in SELECTIONS}
        pairs = list(itertools.permutations(range(len(self.personas)), 2))
        table: dict[str, list[Any]] = {
            "source": [self.personas[i] for i, _ in pairs],
            "target": [self.personas[j] for _, j in pairs],
        }
        for (measure, responses), matrix in names.items():
            table[f"{measure}_{responses}"] = [float(matrix[i, j]) for i, j in pairs]
        return pd.DataFrame(table)

    def figure(self) -> go.Figure:
        """The JS matrix over all responses, as a heat map."""
        import pandas as pd

        from mechinterp.figures import caption, heatmap

        names = list(self.personas)
        frame = pd.DataFrame(self.matrix().numpy(), index=names, columns=names)
        return heatmap(
            frame,
            subtitle=caption(
                self.model, n=len(self.writers), unit="response", seeds=[], band="none",
                more=[f"{len(set(self.questions))} questions", "mean over all responses"],
            ),
            title="Jensen-Shannon divergence between personas' outputs",
            x_title="",
            y_title="",
            colour_title="JS, nats",
        )  # fmt: skip


@torch.no_grad()
def output_divergence(
    model: Model,
    systems: Mapping[str, str | None],
    responses: Sequence[Response],
    *,
    include_turn_end: bool = True,
    system_role: SystemRole = "native",
    batch_size: int | None = None,
) -> OutputDivergence:
    """Divergences between all pairs of personas over every response.

    systems: each persona's system prompt; None leaves the message out. A response's tokens include what the
    template closes a turn with, as published, unless `include_turn_end` is False. Prompts run `batch_size` at
    a time (unless asked, all on a GPU and on a CPU as many as make 256 rows), fewer where memory runs out.
    Responses shorter than two tokens are left out.
    Raises ValueError for fewer than two personas, no responses, and a template whose turns end differently.
    """
    if len(systems) < 2 or not responses:
        raise ValueError(
            f"divergence needs two personas or more and a response, not {len(systems)} and {len(responses)}"
        )
    kept, values, sizes, skipped, most = [], [], [], 0, len(systems)
    for question in dict.fromkeys(response.question for response in responses):
        prompts = [prompt_ids(model, system, question, system_role) for system in systems.values()]
        end = _end(model, systems, question, system_role) if include_turn_end else ()
        before = prefill(model, prompts, _fitting(model, batch_size, len(prompts), max(map(len, prompts))))
        for response in (r for r in responses if r.question == question):
            ids = (*response.ids, *end)
            if len(ids) < LEAST_TOKENS:
                skipped += 1
                continue
            wanted = min(most, _fitting(model, batch_size, len(prompts), len(ids)))
            states, ran = deciding_states(before, ids, wanted)
            most = min(most, ran) if ran < wanted else most  # what did not fit once is not tried again
            kept.append((response, len(ids)))
            values.append(_of_response(model, states))
            sizes.append(ran)
    if not kept:
        raise ValueError(f"every response is shorter than {LEAST_TOKENS} tokens; give longer ones")
    return OutputDivergence(
        model=model.name,
        personas=tuple(systems),
        writers=tuple(response.writer for response, _ in kept),
        questions=tuple(response.question for response, _ in kept),
        draws=tuple(response.draw for response, _ in kept),
        n_tokens=tuple(n for _, n in kept),
        js=torch.stack([js for js, _ in values]),
        kl=torch.stack([kl for _, kl in values]),
        include_turn_end=include_turn_end,
        skipped=skipped,
        batch_sizes=tuple(sorted(set(sizes))),
    )


def _fitting(model: Model, batch_size: int | None, n_prompts: int, n_tokens: int) -> int:
    """How many prompts run at a time, `n_tokens` of each."""
    if batch_size is not None:
        return batch_size
    return n_prompts if model.backend.device.type != "cpu" else max(1, ROWS // n_tokens)


def joined(parts: Sequence[OutputDivergence]) -> OutputDivergence:
    """Divergences of the same model between the same personas, over the responses of all parts."""
    first = parts[0]
    for part in parts:
        for name in ("model", "personas", "include_turn_end"):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(f"parts differ in {name}; only divergences of one kind are joined")
    names = ("writers", "questions", "draws", "n_tokens")
    return replace(
        first,
        **{name: tuple(value for part in parts for value in getattr(part, name)) for name in names},
        js=torch.cat([part.js for part in parts]),
        kl=torch.cat([part.kl for part in parts]),
        skipped=sum(part.skipped for part in parts),
        batch_sizes=tuple(sorted({size for part in parts for size in part.batch_sizes})),
    )


def _end(
    model: Model, systems: Mapping[str, str | None], question: str, system_role: SystemRole
) -> tuple[int, ...]:
    ends = {turn_end(model, system, question, system_role=system_role) for system in systems.values()}
    if len(ends) != 1:
        raise ValueError(
            "the template closes a turn with other ids under another system prompt; pass"
            " include_turn_end=False"
        )
    return ends.pop()


def _of_response(model: Model, states: Float[Tensor, "prompt row d_model"]) -> tuple[Tensor, Tensor]:
    """Mean JS and KL over the rows of one response, a few rows through the head at a time."""
    n_prompts, n_rows, _ = states.shape
    held = LOGITS if states.device.type == "cpu" else GPU_LOGITS
    step = max(1, held // (n_prompts * model.dims.d_vocab))
    totals = torch.zeros(2, n_prompts, n_prompts, dtype=torch.float64)
    for rows in states.split(step, dim=1):
        totals += _sums(model, rows).cpu()
    js, kl = (totals / n_rows).float()
    return js, kl


def _sums(model: Model, rows: Float[Tensor, "prompt row d_model"]) -> Float[Tensor, "2 prompt prompt"]:
    """JS and KL summed over some rows; their logits are gone before those of the next rows are made."""
    logits = head_logits(model, rearrange(rows, "prompt row d_model -> (prompt row) d_model"))
    found = pairwise(rearrange(logits, "(prompt row) d_vocab -> prompt row d_vocab", prompt=len(rows)))
    return torch.stack([found.js.double().sum(0), found.kl.double().sum(0)])
