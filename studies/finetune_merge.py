"""An adapter is merged with a measurement on both sides: validated, counted before and after (methods 7.6).

The arms of the three-arm test were once merged with a scaling that was 5.7 times too weak, and nobody saw it
because nothing was measured between merge and training. Here no merge goes unmeasured.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mechinterp.divergence import kl
from mechinterp.loading import merge_adapter, with_adapter
from mechinterp.model import Model
from studies import finetune_training as training
from studies.finetune_config import Lora
from studies.finetune_lora import put_weights, trainable
from studies.marker_records import MarkerRate


@dataclass(frozen=True)
class Merge:
    """An adapter and what it did before and after it was merged.

    `before` and `after` count the marker under the source's own prompt, with the adapter on and merged, with
    the same draws. `kl` is the mean KL(merged || adapter on) in nats at the end of the prompts.
    """

    adapter: str
    rank: int
    alpha: float
    rslora: bool
    scaling: float
    n_modules: int
    delta_norm: float
    before: MarkerRate
    after: MarkerRate
    kl: float


@contextmanager
def as_folder(base: Model, lora: Lora, weights: dict[str, Tensor], name: str) -> Iterator[Path]:
    """LoRA weights as a peft directory of a base, in fp32, for as long as the context lasts."""
    model = trainable(base, lora, seed=0)
    put_weights(model, weights)
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        training.save(model, base, path, dtype=torch.float32)
        yield path


def merge_measured(
    base: Model,
    adapter: str | Path,
    asked: Lora | None,
    count: Callable[[Model], MarkerRate],
    prompts: Sequence[Tensor],
    *,
    largest_fall: float,
) -> tuple[Model, Merge]:
    """The merged model, and what was measured on both sides of the merge.

    Raises ValueError where the adapter's own configuration is not the one asked for, and RuntimeError where
    the rate fell by more than `largest_fall`.
    """
    on, name = with_adapter(base, adapter), Path(adapter).name
    applied = on.source["adapter"]
    check_shape(adapter, applied, asked)
    before = count(on)
    merged = merge_adapter(base, adapter)
    after = count(merged)
    if after.rate < before.rate - largest_fall:
        raise RuntimeError(
            f"the marker was in {before.found} of {before.total} answers with {name} on and in"
            f" {after.found} of {after.total} after it was merged; a fall of {largest_fall} is allowed: the"
            " merge lost the marker, so nothing may be trained on it (merge in float32)"
        )
    return merged, Merge(
        adapter=name,
        rank=max(applied["rank"]),
        alpha=max(applied["alpha"]),
        rslora=applied["rslora"],
        scaling=max(applied["scaling"]),
        n_modules=applied["n_modules"],
        delta_norm=applied["delta_norm"],
        before=before,
        after=after,
        kl=apart(merged, on, prompts),
    )


def check_shape(adapter: str | Path, applied: dict[str, Any], asked: Lora | None) -> None:
    """Raises ValueError where rank, alpha, rsLoRA or targets of an adapter are not those asked for."""
    if asked is None:
        return
    wanted = {
        "rank": [asked.rank], "alpha": [asked.alpha], "rslora": asked.rslora,
        "targets": sorted(asked.targets),
    }  # fmt: skip
    for name, value in wanted.items():
        if applied[name] != value:
            raise ValueError(
                f"{adapter} has {name} {applied[name]} and {value} was asked for: its update would be scaled"
                f" by {max(applied['scaling']):.4g}; give it the configuration that it was trained with"
            )


def apart(merged: Model, on: Model, prompts: Sequence[Tensor]) -> float:
    """Mean KL(merged || adapter on) of the next token after each prompt, in nats."""
    found = []
    for prompt in prompts:
        p, q = (model.forward(prompt[None], logits_at=[-1]).logits for model in (merged, on))
        assert p is not None and q is not None  # they were asked for
        found.append(float(kl(p, q).mean()))
    return sum(found) / len(found)
