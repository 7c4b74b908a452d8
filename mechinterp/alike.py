"""Whether two models can be compared, or patched into each other: the same ids, layers and rounding."""

from typing import Any

from mechinterp.model import Model

DIMENSIONS = ("n_layers", "d_model", "n_heads", "d_vocab")


def check_alike(one: Model, other: Model) -> None:
    """Raises ValueError where ids, layers or activations of one model mean something else in the other."""
    for what, mine, theirs in (*_architecture(one, other), ("dtype", one.backend.dtype, other.backend.dtype)):
        if mine != theirs:
            raise ValueError(
                f"{one.name} and {other.name} differ in {what} ({mine} and {theirs}); load a model and the"
                " base that it was trained from, both alike"
            )
    if one.tokenizer is None or other.tokenizer is None or one.tokenizer is other.tokenizer:
        return  # models without a tokenizer are taken at their word
    differing = set(one.tokenizer.get_vocab().items()) ^ set(other.tokenizer.get_vocab().items())
    if differing:
        raise ValueError(
            f"the tokenizers of {one.name} and {other.name} differ in {len(differing)} entries, such as"
            f" {min(differing)[0]!r}; the same ids would be other texts"
        )


def _architecture(one: Model, other: Model) -> list[tuple[str, Any, Any]]:
    a, b = one.dims, other.dims
    found: list[tuple[str, Any, Any]] = [(n, getattr(a, n), getattr(b, n)) for n in DIMENSIONS]
    mine, theirs = (model.source.get("architecture") for model in (one, other))
    return found if mine is None or theirs is None else [("architecture", mine, theirs), *found]
