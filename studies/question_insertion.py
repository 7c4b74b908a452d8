"""Question insertion: does playing a role move the model along the role's direction? (methods.md 10.3)

A role is played through user turns, and so is the control. Probe questions are put in after every turn, and
the states that decide their answers are compared: with each other, with the role's vector, and by their top
singular direction, which is then steered along against a random direction of equal norm.
"""

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from mechinterp.cells import Cell, cell_seed
from mechinterp.chat import Prompt
from mechinterp.directions import random_direction
from mechinterp.gather import gather
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sites import Site, sites
from probes.persist import Trial, release
from probes.strength import coefficient
from studies import persistence_config as shared
from studies import persistence_runs
from studies.models import ModelConfig, specs
from studies.persistence_runs import KINDS, Directions
from studies.personas import load_questions, questions
from studies.playing import inserted, play, with_ids
from studies.question_insertion_cells import Inserted, Played, Steered
from studies.question_insertion_likeness import teacher_forced
from studies.question_insertion_page import page
from studies.question_insertion_result import QuestionInsertion, conclude
from studies.transcripts import Transcript, read_transcript

__all__ = ["Config", "cells", "combine", "converse", "extract", "insert", "model_specs", "page", "steer"]

CONTROL = "control"


class Config(ModelConfig):
    """What is asked. `strength` is of the role's vector, in the unit `strength_in`; all arms get its norm.

    With `transcript` its role is not played but taken from the file, and the control plays the file's user
    turns.
    """

    roles: tuple[str, ...] = Field(("medieval_bard", "anxious_teenager"), min_length=1)
    personas: Path | None = None
    turns: Path | None = None
    turn_group: str = "conversation"
    n_turns: int = Field(4, ge=2)
    transcript: Path | None = None
    answer_tokens: int = Field(40, ge=1)
    probe_groups: tuple[str, ...] = Field(("introspect", "revert", "role"), min_length=1)
    questions: Path | None = None
    vectors: Path | None = None
    role_as: Literal["system", "user_message"] = "system"
    contrast_group: str = "training"
    n_contrast: int = Field(8, ge=1)
    layers: tuple[int, ...] = Field((15,), min_length=1)
    strength_in: Literal["raw", "unit", "residual_norms"] = "residual_norms"
    strength: float = 0.2
    steered_rows: Literal["generated", "all", "last"] = "generated"
    question_group: str = "personal_reflection"
    n_questions: int = Field(1, ge=1)
    n_tokens: int = Field(40, ge=1)
    n_runs: int = Field(8, ge=1)
    temperature: float | None = Field(0.8, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    suppress: Literal["steered", "neither"] = "neither"
    batch_size: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _known(self) -> "Config":
        asking(self)  # raises for roles that there are not
        probe_questions(self)
        if self.transcript is not None and self.roles != (read_transcript(self.transcript).role,):
            role = read_transcript(self.transcript).role
            raise ValueError(
                f"{self.transcript} plays {role!r}, so set roles = [{role!r}], not {list(self.roles)}"
            )
        user_turns(self)
        return self


def asking(config: Config) -> shared.Config:
    """The part of the question that the persistence study asks as well: roles, prompts and vectors."""
    both = set(shared.Config.model_fields) & set(Config.model_fields)
    return shared.Config(**{name: getattr(config, name) for name in both})


def user_turns(config: Config) -> tuple[str, ...]:
    """What the user says: the first `n_turns` of the transcript's turns, the file's, or the shipped ones."""
    if config.transcript is not None:
        where, known = str(config.transcript), read_transcript(config.transcript).user_turns
    else:
        with as_file(files("studies.data").joinpath("user_turns.json")) as shipped:
            groups = load_questions(config.turns or shipped)
        where = str(config.turns or "user_turns.json")
        if config.turn_group not in groups:
            raise ValueError(
                f"{where} has no group {config.turn_group!r}; its groups are {', '.join(groups)}"
            )
        known = groups[config.turn_group]
    if len(known) < config.n_turns:
        raise ValueError(f"{where} holds {len(known)} user turns; {config.n_turns} were asked for (n_turns)")
    return known[: config.n_turns]


def probe_questions(config: Config) -> tuple[tuple[str, str], ...]:
    """The questions that are put in, as (group, question)."""
    return tuple((group, text) for group in config.probe_groups for text in _group(config, group))


def _group(config: Config, group: str) -> tuple[str, ...]:
    if config.questions is None:
        return questions(group)
    groups = load_questions(config.questions)
    if group not in groups:
        raise ValueError(f"{config.questions} has no group {group!r}; its groups are {', '.join(groups)}")
    return groups[group]


def cells(config: Config) -> list[Cell]:
    """Vectors; a conversation and its states for the control and each role; then the steered runs."""
    found = [Cell("vectors", "extract", "model")]
    for role in (CONTROL, *config.roles):
        found.append(Cell(f"play/{role}", "converse", "model", (), {"role": role}))
        found.append(Cell(f"insert/{role}", "insert", "model", (f"play/{role}",), {"role": role}))
    for role in config.roles:
        for layer in config.layers:
            for q in range(config.n_questions):
                args = {"role": role, "layer": layer, "question": q}
                needs = ("vectors", f"insert/{role}")
                found.append(Cell(f"steer/{role}/layer{layer}/q{q}", "steer", "model", needs, args))
    return found


def extract(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Directions:
    """Role minus control at every layer, as in the persistence study; or a file of vectors, checked."""
    return persistence_runs.extract(cell, model, inputs, asking(config))


def converse(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Played:
    """The conversation of a role: played on ids, or the given transcript's first turns as ids."""
    role = cell.args["role"]
    if config.transcript is not None and role != CONTROL:
        return Played(
            model.name, with_ids(model, _cut(read_transcript(config.transcript), config.n_turns)), given=True
        )
    system = shared.people(asking(config))[role].system_prompt or None
    played = play(
        model,
        role,
        system,
        user_turns(config),
        n_tokens=config.answer_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    return Played(model.name, played, given=False)


def _cut(given: Transcript, turns: int) -> Transcript:
    """The first turns of a transcript."""
    start = int(given.system is not None)
    return Transcript(
        given.role,
        given.messages[: start + 2 * turns],
        given.ids[: 2 * turns],
        given.model,
        given.revision,
        given.seed,
        given.finish[:turns],
    )


def insert(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Inserted:
    """The state at the last prompt token of every question at every insertion point, at all layers."""
    transcript: Transcript = inputs[f"play/{cell.args['role']}"].transcript
    asked = probe_questions(config)
    points = range(transcript.n_turns + 1)
    prompts = [inserted(model, transcript, text, after=p) for _, text in asked for p in points]
    every = sites("resid_post", range(model.dims.n_layers))
    states = gather(model, prompts, every, [torch.tensor([len(prompt) - 1]) for prompt in prompts])
    return Inserted(
        model=model.name,
        role=cell.args["role"],
        groups=tuple(group for group, _ in asked),
        questions=tuple(text for _, text in asked),
        n_before=tuple(len(transcript.running(p)) for p in points),
        states=states.unflatten(0, (len(asked), len(points))),
    )


def steer(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Steered:
    """Runs under the default prompt along each direction at one norm, unsteered, and told the role."""
    role, layer = cell.args["role"], cell.args["layer"]
    given, people = asking(config), shared.people(asking(config))
    vector, residual = inputs["vectors"][role, layer].float(), inputs["vectors"].residual_norm[layer]
    norm = abs(coefficient(KINDS[config.strength_in](config.strength), vector, residual)) * float(
        vector.norm()
    )
    question = shared.asked(given, config.question_group, config.n_questions)[cell.args["question"]]
    default, told = (shared.prompt_of(given, model, people[key], question) for key in (CONTROL, role))
    along = {how: top.direction[layer] for how, top in inputs[f"insert/{role}"].tops().items()}
    trials = _trials(config, role, layer, {**along, "role": vector / vector.norm()}, norm, default, told)
    found = release(
        model,
        trials,
        {role: vector, **along},
        site=Site("resid_post", layer),
        n_steer=config.n_tokens,
        n_free=0,
        steered_rows=config.steered_rows,
        temperature=config.temperature,
        top_p=config.top_p,
        suppress=config.suppress,
        batch_size=config.batch_size,
    )
    answers = [row[real] for row, real in zip(found.generated, found.real, strict=True)]
    return Steered(
        release=found,
        role=role,
        norm=norm,
        norm_in_residuals=norm / residual,
        log_p_role=teacher_forced(model, told.tokens[0], answers),
        log_p_default=teacher_forced(model, default.tokens[0], answers),
        texts=tuple(model.decode(answer) for answer in answers),
    )


def _trials(
    config: Config,
    role: str,
    layer: int,
    along: Mapping[str, torch.Tensor],
    norm: float,
    default: Prompt,
    told: Prompt,
) -> list[Trial]:
    """All arms of a cell, paired by seed; the random direction is a new one in every run."""
    seeds = shared.seeds(asking(config))
    trials = [Trial(arm, default, norm * unit, seed) for arm, unit in along.items() for seed in seeds]
    for seed in seeds:
        generator = torch.Generator().manual_seed(cell_seed(seed, f"random/{role}/{layer}", 0))
        size = len(next(iter(along.values())))
        trials.append(Trial("random", default, random_direction(size, norm, generator), seed))
    trials += [Trial("unsteered", default, None, seed) for seed in seeds]
    return trials + [Trial("told", told, None, seed) for seed in seeds]


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return specs(config)


def combine(config: Config, results: Mapping[str, Result]) -> QuestionInsertion:
    """Every role's conversation beside the control's, and its steered runs beside random ones."""
    found: Mapping[str, Any] = results
    names = {key: persona.readable_name for key, persona in shared.people(asking(config)).items()}
    steered = [
        (cell.args["layer"], cell.args["question"], found[cell.key])
        for cell in cells(config)
        if cell.task == "steer"
    ]
    return conclude(
        config.roles,
        {role: names[role] for role in (CONTROL, *config.roles)},
        config.layers,
        found["vectors"].vectors,
        {role: (found[f"play/{role}"], found[f"insert/{role}"]) for role in (CONTROL, *config.roles)},
        steered,
        seed=config.seed,
    )
