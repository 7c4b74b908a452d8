"""The work of the divergence study's cells: responses, their divergences, centroids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechinterp.cells import Cell, cell_seed
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sampling import Phase, sample
from probes.centering import Centroids, centroids
from probes.outputs import OutputDivergence, output_divergence
from probes.responses import Response, SystemRole, tokenised
from studies.finetune_answers import system_of
from studies.output_divergence_config import Config, reference
from studies.prompts import prompt_of
from studies.targets import targets
from studies.trained import asked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Responses(Result):
    """Answers of the base model in every persona's voice; the id that ended the turn is left out."""

    responses: tuple[Response, ...]
    texts: tuple[str, ...]
    capped: tuple[bool, ...]

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        lines = zip(self.responses, self.texts, self.capped, strict=True)
        return pd.DataFrame(
            {
                "writer": one.writer,
                "question": one.question,
                "draw": one.draw,
                "n_tokens": len(one.ids),
                "capped": cut,
                "text": text,
            }
            for one, text, cut in lines
        )


def respond(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Responses:
    """Everyone's answers to one question: sampled by the base model, or the texts of a file as ids."""
    everyone, question = targets(config), asked(config)[cell.args["question"]]
    if config.generations is not None:
        return _given(model, config, question)
    rows = [(name, draw) for name in everyone for draw in range(config.n_responses)]
    prompts = [prompt_of(model, everyone[name], question).tokens[0] for name, _ in rows]
    found = sample(
        model,
        prompts,
        [Phase(config.response_tokens)],
        temperature=config.response_temperature,
        top_p=config.response_top_p,
        seed=cell_seed(cell.args["seed"], "responses", cell.args["question"]),
        names=[f"{name}/{draw}" for name, draw in rows],
        batch_size=config.batch_size,
    )
    responses, capped = [], []
    for place, (name, draw) in enumerate(rows):
        ids = found.tokens[place, len(prompts[place]) : found.lengths[place]].tolist()
        ended = found.finish_reason[place] == "stop"
        capped.append(not ended)
        responses.append(Response(name, question, tuple(ids[: len(ids) - ended]), draw))
    return Responses(tuple(responses), tuple(model.decode(one.ids) for one in responses), tuple(capped))


def _given(model: Model, config: Config, question: str) -> Responses:
    assert config.generations is not None  # the caller looked
    document = json.loads(config.generations.read_text())
    missing = [name for name in targets(config) if question not in document.get(name, {})]
    if missing:
        raise ValueError(f"{config.generations} holds no answer of {missing[0]} to {question!r}")
    texts = {name: {question: document[name][question]} for name in targets(config)}
    responses = tokenised(model, systems(config), texts, system_role=system_role(model, config))
    return Responses(
        tuple(responses), tuple(model.decode(r.ids) for r in responses), (False,) * len(responses)
    )


def diverge(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> OutputDivergence:
    """Divergences between all pairs of personas over the answers to one question."""
    return output_divergence(
        model,
        systems(config),
        [response for part in inputs.values() for response in part.responses],
        include_turn_end=config.include_turn_end,
        system_role=system_role(model, config),
        batch_size=config.divergence_batch,
    )


def centre(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Centroids:
    """Centroids at the last prompt token over the study's questions (methods 4), of the widest set."""
    people = reference(config) if config.centre_on_wide else targets(config)
    prompts = {
        name: [prompt_of(model, persona, question) for question in asked(config)]
        for name, persona in people.items()
    }
    return centroids(model, prompts, layers=config.layers)


def systems(config: Config) -> dict[str, str | None]:
    """Each target's system prompt; an empty one leaves the message out (methods 4)."""
    return {name: system_of(persona) for name, persona in targets(config).items()}


def system_role(model: Model, config: Config) -> SystemRole:
    """Whether the template has a system role; the prompts of those without begin the user's turn."""
    told = next((system for system in systems(config).values() if system), None)
    try:
        model.chat("?", system=told)
    except ValueError as error:
        if "prepend_user" not in str(error):
            raise
        return "prepend_user"
    return "native"
