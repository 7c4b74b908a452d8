"""The work of the attention study's cells: preflight, answers or records, control rows, readings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechinterp.cells import Cell
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.runs import Run
from probes.markers import usual_ids
from probes.preflight import Preflight, compare_with_eager
from studies.attention_collect import Collecting, collect_questions, merge
from studies.attention_controls import Row
from studies.attention_draws import Controls, draw_controls
from studies.attention_published import PUBLISHED_IDS
from studies.attention_readout import Readout, read
from studies.attention_records import Examples, read_positives
from studies.attention_redraw import published_draws
from studies.attention_regions import facts_from_tokenizer
from studies.prompts import prompt_of
from studies.trained import asked, people
from studies.zlt_attention_config import Config


def check(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Preflight:
    """The first persona's trained model under its own kernel and under eager."""
    persona, questions = people(config)[config.personas[0]], asked(config)[: config.n_preflight]
    return compare_with_eager(
        model,
        [prompt_of(model, persona, question) for question in questions],
        marker=config.marker,
        n_each=max(1, config.n_preflight // len(questions)),
        n_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        batch_size=config.batch_size,
    )


def generate(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Examples:
    """Answers of a model to some questions under one persona."""
    persona, settings = (
        cell.args["persona"],
        Collecting(
            marker=config.marker,
            n_trials=config.n_trials,
            n_positives=config.n_positives,
            n_negatives=config.n_negatives,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=cell.args["seed"],
            batch_size=config.batch_size,
        ),
    )
    questions = [asked(config)[q] for q in cell.args["questions"]]
    system = people(config)[persona].system_prompt
    return collect_questions(model, questions, persona=persona, system=system, settings=settings)


def taken(cell: Cell, model: None, inputs: Mapping[str, Result], config: Config) -> Examples:
    """A persona's answers from a finished run of this study, or from a published file."""
    assert config.records is not None  # the cell exists only with records
    return answers(config.records, cell.args["persona"])


def answers(records: Path, persona: str, *, run: int = 0, seed: int | None = None) -> Examples:
    """A persona's answers from a finished run, of one training run and seed (its first by default), or from
    a published file, which holds one text set.
    """
    if (records / "manifest.json").is_file():
        return _from_run(Run.read(records), persona, run, seed)
    path = records / f"positives_{persona}.json"
    if not path.is_file():
        there = sorted(p.name for p in records.glob("positives_*.json"))
        raise ValueError(
            f"{records} has no {path.name}; it holds {', '.join(there) or 'no such file at all'}"
        )
    return read_positives(path)


def _from_run(run: Run, persona: str, number: int, seed: int | None) -> Examples:
    """The answers of one text set of a persona in a finished run."""
    from studies.zlt_attention import cells

    if run.manifest.study != "zlt_attention":
        raise ValueError(f"{run.folder} is a run of {run.manifest.study}; give one of zlt_attention")
    theirs = Config.model_validate(run.manifest.config, strict=False)
    found = [c for c in cells(theirs) if c.task in ("generate", "taken") and c.args["persona"] == persona]
    wanted = theirs.seeds[0] if seed is None else seed
    chosen = [c for c in found if c.args["run"] == number and c.args["seed"] == wanted]
    if not chosen:
        raise ValueError(
            f"{run.folder} holds no answers of {persona}, training run {number}, seed {wanted}; its personas"
            f" are {', '.join(theirs.personas)}, its seeds {list(theirs.seeds)}"
        )
    return examples_of({c.key: run.result(c) for c in chosen})


def examples_of(results: Mapping[str, Any]) -> Examples:
    """The answers among these results, all questions as one."""
    return merge([result for result in results.values() if isinstance(result, Examples)])


def draw(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Controls:
    """The control rows of every positive at one of its query rows."""
    examples = examples_of(inputs)
    if config.draws == "published" and cell.args["query"] == "token":
        if usual_ids(model.tokenizer, config.marker).ids != PUBLISHED_IDS.marker:
            raise ValueError(
                f"the published draws are defined on the ids of the published tokenizer, and {model.name}"
                f" writes {config.marker} with others; set draws to 'ours'"
            )
        return published_draws(examples, seed=config.seed)
    return draw_controls(
        examples,
        lambda example: facts_from_tokenizer(model.tokenizer, example, config.marker),
        query=cell.args["query"],
        seed=config.seed,
    )


def readout(cell: Cell, model: Model, inputs: Mapping[str, Any], config: Config) -> Readout:
    """One model's attention on one text set, at the rows that the controls picked."""
    examples = examples_of(inputs)
    return read(
        model,
        examples,
        picks_of(examples, [result for result in inputs.values() if isinstance(result, Controls)]),
        reader=model.name,
        region=config.region,
        newlines=config.newlines,
        n_before=config.n_rows_before,
    )


def picks_of(examples: Examples, drawn: list[Controls]) -> dict[str, list[list[tuple[int, int]]]]:
    """Strata by name: a query row alone, and `row:control` for each of its controls."""
    n = len(examples.positives)

    def place(row: Row) -> tuple[int, int]:
        return (row.example + n * (row.source == "negative"), row.position)

    found = {}
    for controls in drawn:
        found[controls.query] = [[(i, row)] for i, row in enumerate(controls.markers)]
        for name in controls.names:
            found[f"{controls.query}:{name}"] = [[place(row) for row in d.rows] for d in controls.of(name)]
    return found
