"""`mechinterp models` and `mechinterp parity`: the embedded model, and whether backends agree on a model."""

import argparse
import contextlib
import json
import sys
from typing import Any

from mechinterp.cli_text import say, talk


def add(commands: Any) -> None:
    """Both commands with their options."""
    models = commands.add_parser("models", help="the embedded model: list, pull, verify")
    models.add_argument("action", choices=["list", "pull", "verify"])
    models.add_argument("name", nargs="?", help="which model, for pull and verify")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(act=_models)

    parity = commands.add_parser("parity", help="certify that the backends agree on a model")
    parity.add_argument("model", help="a name that load() takes")
    names = "nnsight, hooked_transformer, transformer_bridge"
    parity.add_argument(
        "--backends", nargs="+", metavar="BACKEND", help=f"compared with transformers; default: {names}"
    )
    parity.add_argument("--adapter", metavar="DIR", help="a peft adapter, put on the model first")
    parity.add_argument("--tokens", type=int, default=64, help="generated tokens to compare (default: 64)")
    parity.add_argument("--json", action="store_true", help="print JSON")
    parity.set_defaults(act=_parity)


def _models(given: argparse.Namespace) -> int:
    from mechinterp import hub

    if given.action != "list" and given.name is None:
        raise ValueError(f"models {given.action} needs a name; `mechinterp models list` shows them")
    if given.action == "list":
        rows = [
            {"name": m.name, "state": m.state, "path": str(m.path), "bytes": m.n_bytes, "licence": m.licence}
            for m in hub.known()
        ]
        lines = [f"{row['name']}  {row['state']}  {row['path']}" for row in rows]
        print(json.dumps(rows, indent=2) if given.json else "\n".join(lines))
        return 0
    if given.action == "pull":
        talk()
        path = hub.pull(given.name)
        print(json.dumps({"name": given.name, "path": str(path)}) if given.json else path)
        return 0
    found = hub.verify(given.name)
    fields = {"changed": found.changed, "missing": found.missing, "unexpected": found.unexpected}
    wrong = "; ".join(f"{what}: {', '.join(map(str, names))}" for what, names in fields.items() if names)
    if given.json:
        print(json.dumps({"name": given.name, "ok": found.ok, **fields}))
    else:
        print(wrong or f"{given.name}: every file is as converted")
    return 0 if found.ok else 1


def _parity(given: argparse.Namespace) -> int:
    from mechinterp.certificate import certify

    talk()
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the certificate
        found = certify(given.model, adapter=given.adapter, backends=given.backends, n_tokens=given.tokens)
    if given.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        say(str(found))
    return 0 if found.passed else 1
