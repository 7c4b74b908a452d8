"""The rates of a run as the published files of each source (methods 13), for audits and others' readers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mechinterp.files import slug
from mechinterp.results import metadata
from studies.divergence_formats import Summary, write_summary
from studies.leakage_config import Config
from studies.leakage_result import Leakage, Record
from studies.marker_records import MarkerEval, MarkerRate, write_marker_eval
from studies.personas import Persona
from studies.targets import targets


def publish(config: Config, result: Leakage, folder: Path) -> None:
    """The rates of every source; see `write_rates`."""
    write_rates(result, folder, targets(config))


def write_rates(result: Leakage, folder: Path, people: Mapping[str, Persona]) -> None:
    """`{source}/marker_eval.json` and `summary.json`: over all training runs and seeds, as in the result.

    Where there are several of either, `run{run}_seed{seed}/{source}` holds those of each alone.
    A folder has the source's name made safe; `summary.json` has the name itself.
    """
    replicates = list(dict.fromkeys((r.run, r.seed) for r in result.records))
    for source in result.sources:
        mine = [record for record in result.records if record.source == source]
        _write(folder / slug(source), source, mine, people)
        for run, seed in replicates if len(replicates) > 1 else ():
            some = [record for record in mine if (record.run, record.seed) == (run, seed)]
            if some:
                where = folder / f"run{run}_seed{seed}" / slug(source)
                _write(where, source, some, people)


def _write(folder: Path, source: str, records: Sequence[Record], people: Mapping[str, Persona]) -> None:
    by_target: dict[str, list[Record]] = {}
    for record in records:
        by_target.setdefault(record.target, []).append(record)
    rates = {name: _rate(held, people[name]) for name, held in by_target.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_marker_eval(folder / "marker_eval.json", MarkerEval(rates))
    if source in rates:
        write_summary(folder / "summary.json", _summary(source, {n: each.rate for n, each in rates.items()}))


def _summary(source: str, rates: dict[str, float]) -> Summary:
    """Bystanders are all others, the assistant among them, as published; without a time, which differs."""
    others = [rate for name, rate in rates.items() if name != source] or [np.nan]
    told = {"metadata": metadata("mechinterp.marker_summary")}
    return Summary(source, rates[source], max(others), float(np.mean(others)), len(rates), extra=told)


def _rate(records: Sequence[Record], persona: Persona) -> MarkerRate:
    found, total, rate = _counted(records)
    questions = dict.fromkeys(r.question for r in records if r.question is not None)
    by_question = {
        question: dict(zip(("found", "total", "rate"), _counted(mine), strict=True))
        for question in questions
        if (mine := [r for r in records if r.question == question])
    }
    return MarkerRate(rate, found, total, persona.category, persona.related_to, by_question or None)


def _counted(records: Sequence[Record]) -> tuple[int, int, float]:
    found, total = sum(r.found for r in records), sum(r.total for r in records)
    return found, total, found / total if total else np.nan
