"""W5: JS and KL of every pair of eleven prompts over a response, against the straightforward loop over pairs.

`stage` is the stage alone, on logits that are there: the peer takes log-softmax once and the textbook formula
for each of 55 pairs. `end_to_end` puts responses behind eleven prompts: the peer runs every prompt with its
response in one padded batch, with all logits. Ours gives both directions of KL too, which the peer does not.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import extra_peaks, over_ours
from benchmarks.subject import Subject
from benchmarks.timing import Arm, interleave
from mechinterp.divergence import pairwise
from probes.outputs import output_divergence
from probes.responses import Response
from studies.personas import core_personas, questions

K = 11
RESPONSES, TOKENS = 3, 40
LONG = 160  # response tokens where memory is taken
SIZES = {"stage": (49152, 16), "stage_V152064": (152064, 6)}


@torch.no_grad()
def measure(subject: Subject, *, rounds: int, quick: bool) -> dict[str, Any]:
    """The stage at two vocabularies, then whole responses with their memory."""
    model = subject.load()
    sizes = {"stage": (1000, 2)} if quick else SIZES
    found = {name: _stage(*size, subject.device, rounds) for name, size in sizes.items()}
    n, long = (4, 8) if quick else (TOKENS, LONG)
    found["end_to_end"] = _whole(model, n, rounds)
    arms = {name: make(model, 1, long) for name, make in ARMS.items()}
    held = extra_peaks("divergence", str(long), arms, subject)
    for name, entry in found["end_to_end"].items():
        entry["extra_megabytes"] = held[name]
    found["end_to_end"]["naive"]["memory_ratio"] = over_ours(held, "naive")
    return found


def _stage(d_vocab: int, n: int, device: str, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, n, d_vocab, generator=generator) * 3
    logits = (logits + 0.3 * torch.randn(K, n, d_vocab, generator=generator)).to(device)
    ours = Arm("ours", lambda: pairwise(logits).js.mean(0))
    return interleave(ours, [Arm("seed_formula", lambda: naive_js(logits).mean(0))], rounds)


def naive_js(logits: Tensor) -> Tensor:
    """[position k k]: the published formula, one pair after the other."""
    log_p = logits.float().log_softmax(-1)
    out = torch.zeros(logits.shape[1], K, K, device=logits.device)
    for a in range(K):
        for b in range(a + 1, K):
            log_m = torch.logaddexp(log_p[a], log_p[b]) - math.log(2)
            there, back = ((log_p[i].exp() * (log_p[i] - log_m)).sum(-1) for i in (a, b))
            out[:, a, b] = out[:, b, a] = (there + back) / 2
    return out


def _whole(model: Any, n: int, rounds: int) -> dict[str, Any]:
    arms = {name: make(model, RESPONSES, n) for name, make in ARMS.items()}
    return interleave(Arm("ours", arms["ours"]), [Arm("naive", arms["naive"])], rounds)


def alone(case: str, arm: str, subject: Subject) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """For a process of its own: a short run that touches every weight, and the run to be measured."""
    model = subject.load()
    return ARMS[arm](model, 1, 2), ARMS[arm](model, 1, int(case))


# both arms give JS by [k k], a mean over responses and their tokens -----------------------------------------


def _asked(n_responses: int, n: int) -> tuple[dict[str, str | None], list[Response]]:
    systems = {name: persona.system_prompt or None for name, persona in core_personas().items()}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (n_responses, n), generator=generator)
    question = questions("evaluation")[0]
    return systems, [Response("nobody", question, tuple(row.tolist()), i) for i, row in enumerate(ids)]


def _ours(model: Any, n_responses: int, n: int) -> Callable[[], Tensor]:
    systems, responses = _asked(n_responses, n)
    return lambda: output_divergence(model, systems, responses, include_turn_end=False).matrix().float()


def _naive(model: Any, n_responses: int, n: int) -> Callable[[], Tensor]:
    systems, responses = _asked(n_responses, n)
    hf = model.backend.model
    prompts = [model.chat(responses[0].question, system=s).tokens[0].tolist() for s in systems.values()]
    longest = max(map(len, prompts)) + n

    @torch.no_grad()
    def run() -> Tensor:
        found = []
        for response in responses:
            rows = [[0] * (longest - len(p) - n) + p + list(response.ids) for p in prompts]
            ids = torch.tensor(rows, device=hf.device)
            mask = torch.tensor([[0] * (longest - len(p) - n) + [1] * (len(p) + n) for p in prompts])
            logits = hf(ids, attention_mask=mask.to(hf.device), use_cache=False).logits
            found.append(naive_js(logits[:, -n - 1 : -1]).mean(0))
        return torch.stack(found).mean(0)

    return run


ARMS: dict[str, Callable[[Any, int, int], Callable[[], Tensor]]] = {"ours": _ours, "naive": _naive}
