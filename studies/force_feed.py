"""Whose text, read by whom: every trained model and the base on the same ids (methods.md 12.6).

The attention study forces a persona's text through the base alone. Here texts and readers are crossed, and
the mirror is an option: text that the base wrote under each persona's prompt, whose finished answers are
read where their marker would stand. A model fed its own text is the model itself: that difference is zero.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import model_validator

from mechinterp.cells import Cell
from mechinterp.model import Model
from mechinterp.results import Result
from studies.attention_records import Example, Examples
from studies.force_feed_page import page
from studies.force_feed_result import Fed, ForceFeed
from studies.trained import BASE, model_name, specs
from studies.zlt_attention_cells import draw, generate, readout, taken
from studies.zlt_attention_config import Config as AttentionConfig
from studies.zlt_attention_config import blocks
from studies.zlt_attention_result import ROWS

__all__ = ["Config", "cells", "combine", "draw", "mirrored", "model_specs", "page", "readout", "taken"]


class Config(AttentionConfig):
    """Texts are those of `records`; with `mirror` also answers of the base under each persona's prompt.

    `readers` are personas whose first trained model reads; empty for all. The base always reads.
    """

    readers: tuple[str, ...] = ()
    mirror: bool = False
    preflight: bool = False

    @model_validator(mode="after")
    def _texts_and_readers(self) -> "Config":
        if self.records is None:
            raise ValueError(
                "force_feed reads texts that there are: set records to a finished run of zlt_attention,"
                " or to a directory of positives_{persona}.json"
            )
        unknown = [reader for reader in self.readers if reader not in self.personas]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} must be among the personas to read; add them to `personas`,"
                " whose trained models are known"
            )
        return self


def cells(config: Config) -> list[Cell]:
    """Texts and their control rows, then one reading a reader and text, the base last."""
    texts: dict[str, tuple[str, ...]] = {}
    found: list[Cell] = []
    for persona in config.personas:
        args = {"persona": persona, "run": 0, "seed": config.seeds[0]}
        made = [Cell(f"taken/{persona}", "taken", None, (), args)]
        found += _with_controls(texts, persona, made, args)
        if config.mirror:
            made = [
                Cell(f"mirror/{persona}/{label}", "mirrored", BASE, (), {**args, "questions": block})
                for label, block in blocks(config)
            ]
            found += _with_controls(texts, f"base as {persona}", made, args)
    readers = [model_name(persona, 0) for persona in config.readers or config.personas]
    return found + [
        Cell(f"read/{reader}/{text}", "readout", reader, keys, {"text": text, "reader": reader})
        for reader in (*readers, BASE)
        for text, keys in texts.items()
    ]


def _with_controls(
    texts: dict[str, tuple[str, ...]], text: str, made: list[Cell], args: dict[str, Any]
) -> list[Cell]:
    keys = tuple(cell.key for cell in made)
    drawn = [Cell(f"controls/{text}/{row}", "draw", BASE, keys, {**args, "query": row}) for row in ROWS]
    texts[text] = (*keys, *(cell.key for cell in drawn))
    return [*made, *drawn]


def model_specs(config: Config) -> dict[str, dict[str, Any]]:
    return specs(config)


def mirrored(cell: Cell, model: Model, inputs: Mapping[str, Result], config: Config) -> Examples:
    """Finished answers of the base, each with its would-be marker: the slot behind its last content token."""
    found = generate(cell, model, inputs, config)
    slots = tuple(would_be(e) for e in found.negatives if _ends_with_a_slot(e))
    return replace(found, positives=slots, negatives=())


def would_be(example: Example) -> Example:
    """The same answer, read as if its marker stood behind its last content token."""
    assert example.end_of_answer is not None  # `_ends_with_a_slot` asked
    return replace(example, marker=example.end_of_answer + 1, end_of_answer=None, complete=None)


def _ends_with_a_slot(example: Example) -> bool:
    """The row that ended the answer is there to be read: it stopped of itself, and something follows."""
    end = example.end_of_answer
    return example.finish_reason == "stop" and end is not None and end + 1 < len(example.ids)


def combine(config: Config, results: Mapping[str, Result]) -> ForceFeed:
    """Every reading that is there. Raises ValueError where there is none."""
    found = []
    for cell in cells(config):
        if cell.task == "readout" and cell.key in results:
            text, read = cell.args["text"], results[cell.key]
            author = BASE if text.startswith("base as ") else model_name(text, 0)
            found.append(Fed(text, author, cell.args["reader"], read))  # pyright: ignore[reportArgumentType]
    if not found:
        raise ValueError("no text has been read yet; run the study further, without --limit")
    return ForceFeed(config.model, config.row, config.region, tuple(found))
