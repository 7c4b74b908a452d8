"""The models of a study by the names that its cells use: what they are made from, and loading them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mechinterp.digests import adapted_sha256
from mechinterp.json_io import canonical_sha256


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models that a cell needs at once, over one set of weights where the trained one is an adapter."""

    trained: Any
    base: Any


def weights_of(spec: dict[str, Any]) -> str:
    """The `weights_sha256` of the model that these words load, its adapter included, without loading it."""
    from mechinterp import hub

    source = hub.resolve(spec["name"], revision=spec.get("revision"), subfolder=spec.get("subfolder"))
    digest = hub.weights_sha256(source.path)
    if spec.get("adapter") is None:
        return digest
    adapter = hub.weights_sha256(hub.resolve_adapter(str(spec["adapter"])).path)
    return adapted_sha256(digest, adapter)


def loader(specs: dict[str, dict[str, Any]]) -> Callable[[str], Any]:
    """Loads a model of the study by its name there; adapters of one base are put on that base, loaded once.

    A spec {"pair": (trained, base)} names two of the others, which come together as a `Pair`.

    Other backends than transformers rewrite or copy what they are given, so there each has a base of its own.
    """
    from mechinterp.loading import load, with_adapter

    def base_of(spec: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in spec.items() if name != "adapter" and value is not None}

    adapted = [spec for spec in specs.values() if spec.get("adapter") is not None]
    shared = {canonical_sha256(base_of(s)) for s in adapted if s.get("backend") == "transformers"}
    bases: dict[str, Any] = {}

    def resolve(name: str) -> Any:
        if "pair" in specs[name]:
            return Pair(*(resolve(each) for each in specs[name]["pair"]))
        spec, given = specs[name], base_of(specs[name])
        key, model_name = canonical_sha256(given), given.pop("name")
        if key not in shared:
            return load(model_name, **given, adapter=spec.get("adapter"))
        if key not in bases:
            bases[key] = load(model_name, **given)
        return bases[key] if spec.get("adapter") is None else with_adapter(bases[key], spec["adapter"])

    return resolve
