"""W1: residual patching, layer by position: ours against transformer-lens's own sweep and an nnsight loop.

Two texts that differ from their second token on; `resid_pre` of one goes into the other, and a logit
difference is read at the last row. Ours runs the full grid; a peer's full grid is timed on cells drawn
uniformly from it. `column` is the last row's cells, both captures included; `heads` is every head's `z` at
the last row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import bridge
from benchmarks.subject import Subject
from benchmarks.timing import Arm, interleave
from mechinterp.backends.twin import twin
from mechinterp.loading import wrap
from patching.cases import Case
from patching.components import patch_heads
from patching.donors import FromRun
from patching.grid import PatchGrid
from patching.metrics import logit_difference
from patching.residual import patch_residual

SAMPLED = 24  # cells of a peer's full grid
TOKENS = (1000, 2000)  # whose logits are compared

Cells = list[tuple[int, int]]


@torch.no_grad()
def measure(subject: Subject, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Grid, last column and heads at each length; growth with length and depth beside them."""
    model = subject.load()
    lengths = (16,) if quick else (64, 128)
    found: dict[str, Any] = {}
    for n in lengths:
        suffix = "" if n == lengths[0] else f"_T{n}"
        found[f"grid{suffix}"] = _grid(model, n, max(1, rounds // 3))
        found[f"column{suffix}"] = _column(model, n, rounds)
    found["heads"] = _heads(model, lengths[0], max(1, rounds // 3))
    found["growth"] = _growth(model, lengths[0] // 2, max(1, rounds // 3))
    return found


def texts(n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Source and target ids, alike at the first position only."""
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(1000, 40000, (2, n), generator=generator).to(device)
    source[0] = target[0]
    return source, target


def _ours(model: Any, n: int, positions: list[int]) -> PatchGrid:
    source, target = texts(n, model.backend.device)
    metric = logit_difference(*TOKENS, at=n - 1)
    return patch_residual(
        model, model, target, metric, positions=positions, source_tokens=source, site="resid_pre"
    )


def _grid(model: Any, n: int, rounds: int) -> dict[str, Any]:
    n_layers = model.dims.n_layers
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randperm(n_layers * n, generator=generator)[:SAMPLED].tolist()
    cells = [(index // n, index % n) for index in drawn]
    share = len(cells) / (n_layers * n)
    sample = (lambda x: torch.stack([x[cell] for cell in cells]), lambda x: x)
    peers = [Arm(name, make(model, n, cells), share, sample) for name, make in PEERS.items()]
    whole = Arm("ours", lambda: _ours(model, n, list(range(n))).values[0, ..., 0])
    found = interleave(whole, peers, rounds)
    found["executed_over_minimum"] = _executed(model)
    found["flop_bound"] = _bound(model, _least(n_layers, n), found["ours"]["cpu_seconds"])
    return found


def _least(n_layers: int, n: int) -> int:
    """Token-layers that any exact engine runs: a cell changes all layers and positions from its own on."""
    return sum((n_layers - layer) * (n - position) for layer in range(n_layers) for position in range(n))


def _executed(model: Any, n: int = 8) -> dict[str, Any]:
    """What a grid ran through layers over the least, on a short one, where the control weighs most."""
    ran, least = _ours(model, n, list(range(n))).token_layers, _least(model.dims.n_layers, n)
    return {
        "ratio": ran / least,
        "wall_ratio": 1.0,
        "cpu_seconds": 0.0,
        "token_layers": ran,
        "minimum": least,
    }


def _column(model: Any, n: int, rounds: int) -> dict[str, Any]:
    cells = [(layer, n - 1) for layer in range(model.dims.n_layers)]
    some = cells[:: max(1, len(cells) // 6)]
    share = len(some) / len(cells)
    view = (lambda x: x[[layer for layer, _ in some]], lambda x: x)
    target, body = texts(n, model.backend.device)[1], model.backend.model
    peers = [Arm(name, make(model, n, some), share, view) for name, make in PEERS.items()]
    peers.append(Arm("bare_forward", lambda: body(target[None], use_cache=False).logits, 1.0, None))
    found = interleave(Arm("ours", lambda: _ours(model, n, [n - 1]).values[0, :, 0, 0]), peers, rounds)
    found["bare_forward"]["overhead"] = 1 / found["bare_forward"]["ratio"]
    return found


def _heads(model: Any, n: int, rounds: int) -> dict[str, Any]:
    n_heads, n_layers = model.dims.n_heads, model.dims.n_layers
    source, target = texts(n, model.backend.device)
    case = Case(target, (logit_difference(*TOKENS, at=n - 1),), {"last": (n - 1,)}, source)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randperm(n_layers * n_heads, generator=generator)[:SAMPLED].tolist()
    cells = [(index // n_heads, index % n_heads) for index in drawn]
    view = (lambda x: torch.stack([x[cell] for cell in cells]), lambda x: x)
    peer = Arm("transformer_lens", _lens_heads(model, n, cells), len(cells) / (n_layers * n_heads), view)
    ours = Arm("ours", lambda: patch_heads(FromRun(model), model, [case], place="last").values[0, ..., 0])
    return interleave(ours, [peer], rounds)


def _growth(model: Any, n: int, rounds: int) -> dict[str, Any]:
    """A grid of half the layers against one of all, and against twice the length: by the count, 4 each."""
    hf: Any = twin(model.backend.model)
    n_layers = model.dims.n_layers // 2
    hf.model.layers = hf.model.layers[:n_layers]
    hf.config.num_hidden_layers = n_layers
    half = wrap(hf, model.tokenizer, name="half", verify=False)

    def grid(which: Any, length: int) -> Any:
        return lambda: _ours(which, length, list(range(length))).values[0, ..., 0]

    peers = [Arm("twice_the_layers", grid(model, n), 1.0, None)]
    peers.append(Arm("twice_the_length", grid(half, 2 * n), 1.0, None))
    return interleave(Arm("ours", grid(half, n)), peers, rounds)


def _bound(model: Any, token_layers: int, seconds: float) -> dict[str, Any]:
    """Ours over the least arithmetic at the rate of a plain matrix product of 1024 rows, in CPU seconds."""
    import time

    dims, body = model.dims, model.backend.model
    per_layer = sum(p.numel() for p in body.model.layers[0].parameters() if p.ndim == 2)
    weight = body.model.layers[0].mlp.up_proj.weight
    rows = torch.randn(1024, dims.d_model, dtype=weight.dtype, device=weight.device)
    rows @ weight.T
    before = time.process_time()
    for _ in range(50):
        rows @ weight.T
    rate = 50 * 2 * 1024 * weight.numel() / (time.process_time() - before)
    least = 2 * token_layers * per_layer / rate
    return {
        "ratio": least / seconds,
        "wall_ratio": 1.0,
        "cpu_seconds": least,
        "gflops_per_second": rate / 1e9,
    }


# peers ------------------------------------------------------------------------------------------------------


def _lens(model: Any, n: int, cells: Cells) -> Callable[[], Tensor]:
    """transformer-lens's own sweep, generic_activation_patch, which get_act_patch_resid_pre wraps."""
    import pandas as pd
    from transformer_lens import patching

    peer, (source, target) = bridge(model, twin(model.backend.model)), texts(n, model.backend.device)
    index = pd.DataFrame(cells, columns=["layer", "pos"])

    def run() -> Tensor:
        _, cache = peer.run_with_cache(
            source[None], names_filter=lambda name: name.endswith("hook_resid_pre")
        )
        return patching.generic_activation_patch(
            model=peer, corrupted_tokens=target[None], clean_cache=cache, patching_metric=_difference,
            patch_setter=patching.layer_pos_patch_setter, activation_name="resid_pre", index_df=index,
        )  # fmt: skip

    return run


def _lens_heads(model: Any, n: int, cells: Cells) -> Callable[[], Tensor]:
    """The same for z of single heads, at the last row: its setter takes layer, position and head."""
    import pandas as pd
    from transformer_lens import patching

    peer, (source, target) = bridge(model, twin(model.backend.model)), texts(n, model.backend.device)
    index = pd.DataFrame([(layer, n - 1, head) for layer, head in cells], columns=["layer", "pos", "head"])

    def run() -> Tensor:
        _, cache = peer.run_with_cache(source[None], names_filter=lambda name: name.endswith("hook_z"))
        return patching.generic_activation_patch(
            model=peer, corrupted_tokens=target[None], clean_cache=cache, patching_metric=_difference,
            patch_setter=patching.layer_pos_head_vector_patch_setter, activation_name="z", index_df=index,
        )  # fmt: skip

    return run


def _difference(logits: Tensor) -> Tensor:
    return logits[0, -1, TOKENS[0]] - logits[0, -1, TOKENS[1]]


def _nnsight(model: Any, n: int, cells: Cells) -> Callable[[], Tensor]:
    """One trace a cell."""
    import nnsight
    from nnsight import NNsight

    lm: Any = NNsight(twin(model.backend.model))
    source, target = texts(n, model.backend.device)

    def run() -> Tensor:
        with lm.trace(source[None]):
            clean = nnsight.save([])
            for layer in lm.model.layers:
                clean.append(layer.input.clone())
        states = list(clean)
        found = []
        for layer, position in cells:
            with lm.trace(target[None]):
                x = lm.model.layers[layer].input.clone()
                x[:, position] = states[layer][:, position]
                lm.model.layers[layer].input = x
                logits = lm.lm_head.output[0, -1].save()
            found.append(logits[TOKENS[0]] - logits[TOKENS[1]])
        return torch.stack(found)

    return run


PEERS: dict[str, Callable[[Any, int, Cells], Callable[[], Tensor]]] = {
    "transformer_lens": _lens,
    "nnsight": _nnsight,
}
