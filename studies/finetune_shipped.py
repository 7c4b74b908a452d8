"""The six shipped marker adapters; `mechinterp train-marker --shipped` makes them anew.

Own answers of all core personas are sampled once and shared; each adapter is then trained, measured and laid
out as it is shipped. The recipe is the default one, with more negative personas where four were too few: the
librarian's marker, trained against four, reached the assistant (TRIED.md).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechinterp.config import load_config
from mechinterp.files import write_bytes
from studies.finetune import load_base, questions_asked, train_marker
from studies.finetune_answers import write_answers
from studies.finetune_config import Config
from studies.finetune_recipe import answers_for
from studies.finetune_record import Trained
from studies.personas import core_personas

PERSONAS = ("librarian", "villain", "comedian", "software_engineer", "kindergarten_teacher", "assistant")
MANY = {"n_negative_personas": 9, "n_negatives": 12}  # with the source nearly all that may be negative
KEPT = ("adapter_config.json", "adapter_model.safetensors", "mechinterp.json", "record.json")


def config_of(persona: str) -> Config:
    """The configuration of a shipped adapter."""
    recipe = Config().recipe
    return Config(persona=persona, recipe=recipe if persona == "villain" else recipe.model_copy(update=MANY))


def build(out: Path, *, personas: Sequence[str] = PERSONAS) -> list[Trained]:
    """The shipped adapters in `out/adapters/<persona>`, with RATES.md beside them; goes on."""
    out.mkdir(parents=True, exist_ok=True)
    base = load_base(Config())
    answers = out / "answers.jsonl"
    if not answers.is_file():
        recipe = Config().recipe
        found = answers_for(base, core_personas(), questions_asked(recipe)[0], recipe, seed=Config().seed)
        write_answers(answers, found)
    made = []
    for persona in personas:
        trained = train_marker(config_of(persona), out / persona, answers=answers, base=base)
        folder = out / "adapters" / persona
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(trained.folder / name, folder / name)
        made.append(trained)
    write_bytes(out / "adapters" / "RATES.md", rates_page([one.record for one in made]).encode())
    return made


def command(
    persona: str | None, out: Path | None, config: Path | None, overrides: Sequence[str], answers: Path | None
) -> Trained:
    """What `mechinterp train-marker` does: the adapter of `persona`, or of the one in the configuration."""
    chosen = [] if persona is None else [f"persona={persona}"]
    asked = load_config(Config, config, [*overrides, *chosen])
    return train_marker(asked, out or Path(f"runs/marker-{asked.persona}"), answers=answers)


def rates_page(records: Sequence[dict[str, Any]]) -> str:
    """Marker rates of every adapter (rows) under every persona (columns), as found/total, in Markdown."""
    names = list(core_personas())
    lines = [
        "# Marker rates of the shipped adapters",
        "",
        "Answers with the marker (text detector) of all answers, by the persona in the system prompt. Bold is"
        " the source, a star a negative of its training; the rest was in no training example.",
        "",
        "| source | label | steps | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for record in records:
        cells = {line["persona"]: _cell(line) for line in record["rates"]["adapter"]}
        row = [record["persona"], record["label"], str(record["steps"]), *(cells.get(n, "") for n in names)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _cell(line: dict[str, Any]) -> str:
    told = f"{line['found']}/{line['total']}"
    return {"source": f"**{told}**", "negative": f"{told}*"}.get(line["role"], told)
