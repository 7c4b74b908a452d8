"""W6: log-probability and rank of one token after every layer, at one row and at four of 100 tokens.

Peers as their users write them: norm and unembedding of whole layers, in an nnsight trace (the way of nnterp)
and on the cache of a transformer-lens bridge, so T x V logits a layer. `bare_forward` is the model's body
alone, with nothing read.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import bridge
from benchmarks.subject import Subject
from benchmarks.timing import Arm, interleave
from mechinterp.backends.twin import twin
from probes.lens import logit_lens

ROWS = (1, 4)
TARGET = 9531


@torch.no_grad()
def measure(subject: Subject, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Both numbers of rows, each against every peer."""
    model = subject.load()
    return {f"rows{n}": _case(model, 32 if quick else 100, n, rounds) for n in ROWS}


def _case(model: Any, n: int, n_rows: int, rounds: int) -> dict[str, Any]:
    arms = {name: make(model, *asked(n, n_rows, model.backend.device)) for name, make in ARMS.items()}
    peers = [
        Arm(name, run, 1.0, None) if name == "bare_forward" else Arm(name, run)
        for name, run in arms.items()
        if name != "ours"
    ]
    found = interleave(Arm("ours", arms["ours"]), peers, rounds)
    found["bare_forward"]["overhead"] = 1 / found["bare_forward"]["ratio"]
    return found


def asked(n: int, n_rows: int, device: torch.device | str = "cpu") -> tuple[Tensor, list[int]]:
    """Random ids and as many rows, the last among them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (n,), generator=generator)
    earlier = torch.randperm(n - 1, generator=generator)[: n_rows - 1].tolist()
    return ids.to(device), [*sorted(earlier), n - 1]


# every arm gives the log-probability by [row layer], and computes the rank too ------------------------------


def _ours(model: Any, ids: Tensor, rows: list[int]) -> Callable[[], Tensor]:
    return lambda: logit_lens(model, ids, rows=rows, targets=[TARGET]).log_prob[..., 0]


def _bare_forward(model: Any, ids: Tensor, rows: list[int]) -> Callable[[], Tensor]:
    body = model.backend.model.model

    @torch.no_grad()
    def run() -> Tensor:
        return body(ids[None], use_cache=False)[0]

    return run


def _nnterp_style(model: Any, ids: Tensor, rows: list[int]) -> Callable[[], Tensor]:
    import nnsight

    lm: Any = nnsight.NNsight(twin(model.backend.model))

    @torch.no_grad()
    def run() -> Tensor:
        with lm.trace(ids[None]):
            kept = nnsight.save([])
            for layer in lm.model.layers:
                logits = lm.lm_head(lm.model.norm(layer.output))
                kept.append(_standing(logits, rows))
        return torch.stack(list(kept), 1)

    return run


def _transformer_lens(model: Any, ids: Tensor, rows: list[int]) -> Callable[[], Tensor]:
    hf = model.backend.model
    peer = bridge(model, twin(hf))

    @torch.no_grad()
    def run() -> Tensor:
        _, cache = peer.run_with_cache(ids[None], names_filter=lambda n: n.endswith("hook_resid_post"))
        states = (cache["resid_post", layer] for layer in range(model.dims.n_layers))
        return torch.stack([_standing(peer.unembed(peer.ln_final(x)), rows) for x in states], 1)

    return run


ARMS: dict[str, Callable[[Any, Tensor, list[int]], Callable[[], Tensor]]] = {
    "ours": _ours,
    "bare_forward": _bare_forward,
    "nnterp_style": _nnterp_style,
    "transformer_lens": _transformer_lens,
}


def _standing(logits: Tensor, rows: list[int]) -> Tensor:
    """From a layer's logits at every position to one token's log-probability at the rows."""
    log_prob = logits[0].float().log_softmax(-1)[rows]
    rank = (log_prob > log_prob[:, TARGET, None]).sum(-1)
    del rank  # computed for the time that it takes
    return log_prob[:, TARGET]
