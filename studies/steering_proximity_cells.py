"""The work of steering towards a source: the line and its strengths, then steered answers at each dose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.cells import Cell, cell_seed
from mechinterp.directions import random_direction
from mechinterp.divergence import aggregate
from mechinterp.interventions import Add
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sampling import Phase, Watch, sample
from mechinterp.sites import Site, sites
from mechinterp.where import Everywhere, WholePrompt
from probes.centering import centroids
from probes.markers import detect
from studies.personas import Persona
from studies.prompts import prompt_of
from studies.steering_proximity_config import Config, bystanders, other_of
from studies.steering_proximity_solve import centred_cosine, strength_for
from studies.targets import targets
from studies.trained import asked

if TYPE_CHECKING:
    import pandas as pd

ROWS = {"all": Everywhere(), "prompt": WholePrompt()}
SOURCE, RANDOM, OTHER = "towards the source", "random", "towards another"
DIRECTIONS = (SOURCE, RANDOM, OTHER)


@dataclass(frozen=True, eq=False)
class Line(Result):
    """Where the assistant stands to the source, and the vector of every direction and dose at `layer`.

    `requested` and `strengths` are by dose; `reached` is the formula's centred cosine of each vector.
    """

    source: str
    other: str
    layer: int
    natural: float
    doses: tuple[float, ...]
    requested: tuple[float | None, ...]
    strengths: tuple[float, ...]
    vectors: Float[Tensor, "direction dose d_model"]
    reached: Float[Tensor, "direction dose"]
    home: Float[Tensor, "d_model"]  # the assistant's centroid at `layer`
    there: Float[Tensor, "layer d_model"]  # the source's centroids
    about: Float[Tensor, "layer d_model"]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(
            {
                "direction": direction,
                "dose": dose,
                "strength": strength,
                "requested": requested,
                "cosine by formula": float(self.reached[k, d]),
            }
            for k, direction in enumerate(DIRECTIONS)
            for d, (dose, strength, requested) in enumerate(
                zip(self.doses, self.strengths, self.requested, strict=True)
            )
        )


@dataclass(frozen=True)
class Counted:
    """Answers to one question under one persona, steered, and how many have the marker."""

    persona: str
    role: str
    question: str
    seed: int
    found: int
    total: int


@dataclass(frozen=True, eq=False)
class Dosed(Result):
    """One direction and dose: cosines re-extracted at every layer, counts, and the damage by KL in nats.

    `damage` holds aggregates of KL(steered || natural) over the tokens of an answer, averaged over answers.
    """

    source: str
    direction: str
    dose: float
    cosine: Float[Tensor, "layer"]
    counts: tuple[Counted, ...]
    damage: dict[str, float]
    samples: tuple[dict[str, Any], ...]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([vars(count) for count in self.counts])


def draw_line(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Line:
    """Centroids of everyone, the line from assistant to source, and what each dose adds along it."""
    source = cell.args["source"]
    layer = model.dims.n_layers // 2 if config.layer is None else config.layer
    questions = asked(config)[: config.n_centroid_questions]
    people = targets(config)
    found = centroids(
        model, {name: [prompt_of(model, p, q) for q in questions] for name, p in people.items()}
    )
    about, place = found.values.mean(0), found.layers.index(layer)
    other = other_of(config, source)
    own, there, elsewhere = (found[name, layer] for name in (config.assistant, source, other))
    unit = torch.nn.functional.normalize(there - own, dim=0)
    natural = float(centred_cosine(there, own, about[place]))
    requested, strengths = [], []
    for dose in config.doses:
        asked_for = natural + abs(dose) * (1 - natural)
        beta = 0.0 if dose == 0 else strength_for(asked_for, there, own, about[place], unit)
        strengths.append(beta if dose > 0 else -beta)
        requested.append(asked_for if dose > 0 else natural if dose == 0 else None)
    generator = torch.Generator().manual_seed(cell_seed(config.seed, f"random/{source}", 0))
    units = [unit, random_direction(len(unit), 1.0, generator)]
    units.append(torch.nn.functional.normalize(elsewhere - own, dim=0))
    vectors = torch.stack([torch.stack([beta * one for beta in strengths]) for one in units])
    return Line(
        source=source,
        other=other,
        layer=layer,
        natural=natural,
        doses=config.doses,
        requested=tuple(requested),
        strengths=tuple(strengths),
        vectors=vectors,
        reached=centred_cosine(there, own + vectors, about[place]).float(),
        home=own,
        there=torch.stack([found[source, one] for one in found.layers]),
        about=about,
    )


def dose(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Dosed:
    """Steered answers under every prompt, counted; the assistant's centroid read again under the edit."""
    (line,) = inputs.values()
    k, d = DIRECTIONS.index(cell.args["direction"]), line.doses.index(cell.args["dose"])
    site = Site("resid_post", line.layer)
    steering = (Add(site, line.vectors[k, d], where=ROWS[config.rows]),) if line.strengths[d] else ()
    counts, damage, samples = _answers(model, config, line, steering, site)
    return Dosed(
        source=line.source,
        direction=cell.args["direction"],
        dose=cell.args["dose"],
        cosine=_read_again(model, config, line, steering),
        counts=counts,
        damage=damage,
        samples=samples,
    )


def _read_again(
    model: Model, config: Config, line: Line, steering: tuple[Add, ...]
) -> Float[Tensor, "layer"]:
    """The centred cosine of source and assistant at every layer, the assistant's centroid under the edit."""
    persona = targets(config)[config.assistant]
    every, total = sites("resid_post", range(model.dims.n_layers)), None
    questions = asked(config)[: config.n_centroid_questions]
    for question in questions:
        seen = model.forward(
            prompt_of(model, persona, question).tokens,
            capture=every,
            interventions=steering,
            positions=[-1],
            logits_at=(),
        )
        state = torch.stack([seen[site][0, 0].float().cpu() for site in every])
        total = state if total is None else total + state
    assert total is not None  # there are two questions or more
    return centred_cosine(line.there, total / len(questions), line.about).float()


def _answers(
    model: Model, config: Config, line: Line, steering: tuple[Add, ...], site: Site
) -> tuple[tuple[Counted, ...], dict[str, float], tuple[dict[str, Any], ...]]:
    people, questions = targets(config), asked(config)
    roles = {config.assistant: "assistant", line.source: "source"}
    roles |= dict.fromkeys(bystanders(config, line.source), "bystander")
    rows = [
        (name, question, seed, draw)
        for name in roles
        for question in questions
        for seed in config.seeds
        for draw in range(config.n_draws)
    ]
    found = sample(
        model,
        [_prompt(model, people[name], question) for name, question, _, _ in rows],
        [Phase(config.max_tokens, steering)],
        temperature=config.temperature,
        top_p=config.top_p,
        seed=cell_seed(config.seed, "steered answers", 0),
        names=["/".join(map(str, row)) for row in rows],
        watch=Watch(site, line.vectors[0, -1:], kl=True) if steering else None,
        batch_size=config.batch_size,
    )
    marked = [
        detect(
            model.tokenizer,
            found.tokens[i, : found.lengths[i]],
            config.marker,
            after=int(found.prompt_lengths[i]),
        ).text
        for i in range(len(rows))
    ]
    counts = []
    for name, role in roles.items():
        for question in questions:
            for seed in config.seeds:
                mine = [m for m, row in zip(marked, rows, strict=True) if row[:3] == (name, question, seed)]
                counts.append(Counted(name, role, question, seed, sum(mine), len(mine)))
    samples = []
    for name, role in roles.items():
        place = next(i for i, row in enumerate(rows) if row[0] == name)
        text = model.decode(found.generated[place][found.real[place]])
        samples.append({"persona": name, "role": role, "question": rows[place][1], "text": text})
    return tuple(counts), _damage(found), tuple(samples)


def _prompt(model: Model, persona: Persona, question: str) -> Tensor:
    return prompt_of(model, persona, question).tokens[0]


def _damage(found: Any) -> dict[str, float]:
    """Each aggregate of KL(steered || natural) over an answer's tokens, averaged; 0 unsteered."""
    if found.telemetry is None:
        return {"mean": 0.0, "rmse": 0.0, "p95": 0.0, "max": 0.0}
    k = found.telemetry.kl
    return {
        how: float(aggregate(k, how, mask=found.real.to(k.device)).nanmean())
        for how in ("mean", "rmse", "p95", "max")
    }
