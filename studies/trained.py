"""The shipped trained models: marker adapters on the embedded model, by the persona they were put into."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

FOLDER = "adapters"


@dataclass(frozen=True)
class Shipped:
    """A shipped adapter and its record: configuration, seed, data digest and measured rates."""

    persona: str
    path: Path
    record: dict[str, Any]


def shipped() -> dict[str, Shipped]:
    """The shipped marker adapters by persona, in the order of their names."""
    root = Path(str(files("studies.data"))) / FOLDER
    found = sorted(path for path in root.glob("*") if (path / "adapter_config.json").is_file())
    return {
        path.name: Shipped(path.name, path, json.loads((path / "record.json").read_text())) for path in found
    }


def shipped_adapters() -> dict[str, Path]:
    """Their directories, as `load(adapter=...)` takes them."""
    return {persona: one.path for persona, one in shipped().items()}
