"""W2: region fractions of attention at 20 rows, every layer and head, against what gives whole patterns.

Peers as their users write them: eager attention with `output_attentions` (at 4096 tokens, where that needs
some 18 GB, eager with a hook that reduces each layer at once) and transformer-lens with reducing pattern
hooks. `bare_forward` is the model's body alone, under its own kernel, with nothing read.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor

from benchmarks.memory import extra_peaks, over_ours
from benchmarks.peers import bridge
from benchmarks.subject import Subject
from benchmarks.timing import Arm, interleave
from mechinterp.backends.twin import twin
from mechinterp.segmentation import Segmentation
from probes.attention_batch import fractions_of

ROWS, REGIONS = 20, 6
LONG = 2048  # from here on whole patterns of all layers do not fit


@torch.no_grad()
def measure(subject: Subject, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Every length: CPU and wall ratios in one process, extra peak memory in fresh ones."""
    model = subject.load()
    lengths = (64,) if quick else (512, 1024, 4096)
    return {f"T{n}": _case(model, n, rounds if n < LONG else max(1, rounds // 2), subject) for n in lengths}


def _case(model: Any, n: int, rounds: int, subject: Subject) -> dict[str, Any]:
    arms = {name: make(model, n) for name, make in ARMS.items()}
    peers = [
        Arm(name, run, 1.0, None) if name == "bare_forward" else Arm(name, run)
        for name, run in arms.items()
        if name != "ours"
    ]
    found = interleave(Arm("ours", arms["ours"]), peers, rounds)
    found["bare_forward"]["overhead"] = 1 / found["bare_forward"]["ratio"]
    megabytes = extra_peaks("attention", f"T{n}", arms, subject)
    for arm, entry in found.items():
        entry["extra_megabytes"] = megabytes[arm]
        if arm != "ours":
            entry["memory_ratio"] = over_ours(megabytes, arm)
    return found


def alone(case: str, arm: str, subject: Subject) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """For a process of its own: a short run that touches every weight, and the run to be measured."""
    make = ARMS[arm]
    model = subject.load()
    return make(model, 2 * ROWS), make(model, int(case.removeprefix("T")))


# what is read, and by whom ----------------------------------------------------------------------------------


def asked(n: int) -> tuple[Tensor, Segmentation, list[int]]:
    """Random ids, six regions of equal length and twenty rows, the last among them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (n,), generator=generator)
    region = torch.arange(n) * REGIONS // n
    segmentation = Segmentation(tuple("abcdef"), region, torch.zeros(n, dtype=torch.bool))
    earlier = torch.randperm(n - 1, generator=generator)[: ROWS - 1].tolist()
    return ids, segmentation, [*sorted(earlier), n - 1]


def _ours(model: Any, n: int) -> Callable[[], Tensor]:
    ids, segmentation, rows = asked(n)
    return lambda: fractions_of(model, [ids], [[segmentation]], [rows])[0].values[0]


def _bare_forward(model: Any, n: int) -> Callable[[], Tensor]:
    ids, body = asked(n)[0].to(model.backend.device), model.backend.model.model

    @torch.no_grad()
    def run() -> Tensor:
        return body(ids[None], use_cache=False)[0]

    return run


def _eager(model: Any, n: int) -> Callable[[], Tensor]:
    ids, segmentation, rows = asked(n)
    ids = ids.to(model.backend.device)
    hf: Any = twin(model.backend.model)  # asked for attentions, transformers leaves its own hooks on
    hf.set_attn_implementation("eager")
    columns = segmentation.one_hot().to(ids.device)

    @torch.no_grad()
    def returned() -> Tensor:
        attentions = hf.model(ids[None], output_attentions=True, use_cache=False).attentions
        return _stacked([_reduced(weights, rows, columns) for weights in attentions])

    @torch.no_grad()
    def hooked() -> Tensor:
        kept: list[Tensor] = []

        def reduce(_module: Any, _args: Any, output: Any) -> Any:
            kept.append(_reduced(output[1], rows, columns))
            return (output[0], None)

        handles = [layer.self_attn.register_forward_hook(reduce) for layer in hf.model.layers]
        try:
            hf.model(ids[None], use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return _stacked(kept)

    return returned if n < LONG else hooked


def _transformer_lens(model: Any, n: int) -> Callable[[], Tensor]:
    ids, segmentation, rows = asked(n)
    ids = ids.to(model.backend.device)
    hf: Any = twin(model.backend.model)
    hf.set_attn_implementation("eager")
    peer = bridge(model, hf)
    columns = segmentation.one_hot().to(ids.device)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.dims.n_layers)]

    @torch.no_grad()
    def run() -> Tensor:
        kept: list[Tensor] = []

        def reduce(pattern: Tensor, hook: Any) -> None:
            del hook  # named so because transformer-lens passes it by keyword
            kept.append(_reduced(pattern, rows, columns))

        peer.run_with_hooks(ids[None], return_type=None, fwd_hooks=[(name, reduce) for name in names])
        return _stacked(kept)

    return run


ARMS: dict[str, Callable[[Any, int], Callable[[], Tensor]]] = {
    "ours": _ours,
    "bare_forward": _bare_forward,
    "eager": _eager,
    "transformer_lens": _transformer_lens,
}


def _reduced(pattern: Tensor, rows: list[int], columns: Tensor) -> Tensor:
    """One layer's whole pattern to the asked rows' fractions."""
    return einsum(pattern[0, :, rows].float(), columns, "head row key, key region -> row head region")


def _stacked(layers: list[Tensor]) -> Tensor:
    return rearrange(torch.stack(layers), "layer row head region -> row layer head region")
