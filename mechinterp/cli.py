"""The command line: thin, and quick to say what it can do. Heavy imports wait until a command needs them."""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechinterp import cli_models, cli_plan, cli_run
from mechinterp.cli_text import printable, say, talk

EXAMPLES = """examples:
  mechinterp demo                                      five studies at demo size, with one report
  mechinterp studies                                   what can be run
  mechinterp run persistence --preset demo --out runs/p --set "roles=['medieval_bard']"
  mechinterp run persistence --config mine.toml --out runs/mine --dry-run
  mechinterp run leakage --preset demo --jobs 4        in four processes; the results are those of one
  mechinterp plan persistence --preset paper           what it will cost, before the weights are there
  mechinterp status runs/mine                          how far it is; the same `run` command goes on
  mechinterp audit zlt_attention DIR --out runs/a      published records analysed again, without a model
  mechinterp train-marker --persona villain            a marker adapter on the embedded model
  mechinterp models pull smollm2-135m-instruct-q4      the chat model that needs no hub
  mechinterp parity smollm2-135m-instruct-q4           do all backends give the same numbers?
  mechinterp doctor                                    what works on this machine
  mechinterp new study mine                            a study of your own to start from
"""
# what the library raises on purpose, with a message that stands alone
EXPECTED = (ValueError, OSError, RuntimeError, LookupError, ImportError, FloatingPointError, MemoryError)


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    root = argparse.ArgumentParser(
        prog="mechinterp",
        description="Hooks, steering and studies of personas, the same on four backends.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="store_true", help="print the version")
    root.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = root.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser("demo", help="run five studies at demo size and write one report of them")
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="the folder of their runs (default: runs/demo)"
    )
    demo.set_defaults(act=_demo)

    cli_models.add(commands)

    studies = commands.add_parser("studies", help="list the studies and their presets")
    studies.set_defaults(act=_studies)

    cli_run.add(commands).set_defaults(act=_run)
    cli_plan.add(commands).set_defaults(act=_plan)
    _add_train_marker(commands)

    status = commands.add_parser("status", help="how far a run is")
    status.add_argument("directory", type=Path)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(act=_status)

    diff = commands.add_parser("diff", help="hold two run directories against each other")
    diff.add_argument("first", type=Path)
    diff.add_argument("second", type=Path)
    diff.add_argument("--json", action="store_true", help="print JSON")
    diff.set_defaults(act=_diff)

    report = commands.add_parser("report", help="write a finished run's report again")
    report.add_argument("directory", type=Path)
    report.add_argument(
        "--formats", nargs="+", choices=["png", "pdf"], default=[], help="also export the figures"
    )
    report.set_defaults(act=_report)

    audit = commands.add_parser("audit", help="analyse a study's published records again, without a model")
    audit.add_argument("study", help="zlt_attention, output_divergence or causal_proximity")
    audit.add_argument(
        "directory",
        type=Path,
        help="where the records are, any of them; causal_proximity: the JSON file of its table",
    )
    audit.add_argument("--out", type=Path, required=True, help="where audit.json, audit.csv and the page go")
    audit.set_defaults(act=_audit)

    doctor = commands.add_parser("doctor", help="what works on this machine, and what to do about the rest")
    doctor.set_defaults(act=_doctor)

    new = commands.add_parser("new", help="write a study of your own to start from")
    new.add_argument("what", choices=["study"])
    new.add_argument("name", help="its name: lower-case letters, digits and _")
    new.add_argument("--folder", type=Path, default=Path(), help="where to (default: here)")
    new.set_defaults(act=_new)
    return root


def _add_train_marker(commands: Any) -> None:
    train = commands.add_parser("train-marker", help="train a marker into a persona, or go on with it")
    train.add_argument("--persona", help="the source (default: villain)")
    train.add_argument("--config", type=Path, help="a TOML or JSON file")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="change one value"
    )
    train.add_argument("--out", type=Path, help="directory (default: runs/marker-PERSONA)")
    train.add_argument("--answers", type=Path, help="own answers sampled before, to share between sources")
    train.add_argument("--shipped", action="store_true", help="make the six shipped adapters anew")
    train.set_defaults(act=_train_marker)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 or 143 interrupted."""
    root = parser()
    given = root.parse_args(argv)
    if given.version:
        import mechinterp

        print(mechinterp.__version__)
        return 0
    if given.command is None:
        root.print_help()
        return 2
    try:
        return given.act(given)
    except KeyboardInterrupt:
        print("mechinterp: interrupted", file=sys.stderr)
        return 130
    except EXPECTED as error:
        if given.debug:
            raise
        print(printable(f"mechinterp: error: {_message(error)}"), file=sys.stderr)
        return 1


def _message(error: BaseException) -> str:
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return "\n".join([str(said), *getattr(error, "__notes__", [])])


def _demo(given: argparse.Namespace) -> int:
    from mechinterp.demo import demo

    talk()
    _say_if_crowded()
    for result in demo(given.out):
        say(result.headline())
    print(f"report: {given.out / 'report.html'}")
    return 0


def _run(given: argparse.Namespace) -> int:
    from mechinterp import cells, running

    cli_run.check(given)
    asked = running.ask(given.study, preset=given.preset, config=given.config, overrides=given.overrides)
    if given.dry_run:
        say(cells.listed(asked.cells(given.limit)))
        return 0
    talk()
    _say_if_crowded()
    out, result = cli_run.act(given, asked)
    if result is None:
        print(f"{running.status(out)}; the same command {_goes_on(given)} goes on")
        return 0
    say(result.headline())
    if not given.no_report:
        print(f"report: {out / 'report.html'}")
    return 0


def _plan(given: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the plan
        found = cli_plan.planned(given)
    print(printable(cli_plan.as_json(found) if given.json else cli_plan.as_text(found)))
    return 1 if any(part.failed for part in found.parts) else 0


def _goes_on(given: argparse.Namespace) -> str:
    return "without --limit" if given.limit is not None else "with the other shares"


def _train_marker(given: argparse.Namespace) -> int:
    from studies.finetune_shipped import build, command

    talk()
    _say_if_crowded()
    if given.shipped:
        made = build(given.out or Path("runs/markers"))
    else:
        made = [command(given.persona, given.out, given.config, given.overrides, given.answers)]
    for one in made:
        say(one.headline())
    return 0


def _studies(given: argparse.Namespace) -> int:
    from mechinterp import study_files

    for name, line in study_files.known().items():
        print(f"{name:<20} {line}\n{'':<20} presets: {', '.join(study_files.presets(name))}")
    return 0


def _status(given: argparse.Namespace) -> int:
    from mechinterp import running

    found = running.status(given.directory)
    if given.json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        say(str(found))
    return 0


def _diff(given: argparse.Namespace) -> int:
    from mechinterp import difference

    found = difference.compare(given.first, given.second)
    if given.json:
        print(json.dumps({**dataclasses.asdict(found), "identical": found.identical}))
    else:
        say(str(found))
    return 0 if found.identical else 1


def _report(given: argparse.Namespace) -> int:
    from mechinterp import running

    print(running.report(given.directory, given.formats))
    return 0


def _audit(given: argparse.Namespace) -> int:
    from studies.audit import audit

    print(f"report: {audit(given.study, given.directory, given.out)}")
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from mechinterp import doctor

    broken, out = 0, sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for what was found
        for found in doctor.examine():
            print(printable(str(found)), file=out, flush=True)
            broken += found.state == "broken"
    return 1 if broken else 0


def _new(given: argparse.Namespace) -> int:
    from mechinterp.new_study import write_study

    study, test = write_study(given.name, given.folder)
    print(f"{study}\n{test}\nmechinterp run {study}")
    return 0


def _say_if_crowded() -> None:
    from mechinterp import running

    line = running.crowded()
    if line is not None:
        logging.getLogger("mechinterp").info(line)
