"""W4: resid_post of every layer for 11 roles x 10 questions, at the last token and as a mean over an answer.

Peers as their users write them: transformer-lens's run_with_cache with a names filter, an nnsight trace, and
output_hidden_states in batches of 16. transformer-lens and nnsight run one prompt at a time, on a sample of
prompts.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import bridge
from benchmarks.subject import Subject
from benchmarks.timing import Arm, error, interleave
from mechinterp.backends.twin import twin
from mechinterp.gather import gather
from mechinterp.sites import Site
from studies.personas import core_personas, questions

SAMPLED = 10
ANSWER = 34  # tokens


@torch.no_grad()
def measure(subject: Subject, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Both readings, each against every peer."""
    model = subject.load()
    personas = list(core_personas().values())[: 3 if quick else 11]
    asked = questions("evaluation")[: 3 if quick else 10]
    prompts = [model.chat(q, system=p.system_prompt).tokens[0] for p in personas for q in asked]
    generator = torch.Generator().manual_seed(0)
    answers = [torch.cat([p, torch.randint(1000, 40000, (ANSWER,), generator=generator)]) for p in prompts]
    last = [torch.tensor([len(p) - 1]) for p in prompts]
    spans = [torch.arange(len(p), len(p) + ANSWER) for p in prompts]
    return {
        "last_token": _case(model, prompts, last, rounds),
        "mean_response": _case(model, answers, spans, rounds),
    }


def _case(model: Any, prompts: list[Tensor], at: list[Tensor], rounds: int) -> dict[str, Any]:
    layers = range(model.dims.n_layers)
    sites = [Site("resid_post", layer) for layer in layers]
    bare = model.backend.model
    hf = twin(bare)  # output_hidden_states leaves the library's own hooks on a model for good: not on ours
    step = max(1, len(prompts) // SAMPLED)
    some = list(range(0, len(prompts), step))
    share = len(some) / len(prompts)
    ours = Arm("ours", lambda: gather(model, prompts, sites, at))
    sample = (lambda x: x[some], lambda x: x)
    below_last = (
        lambda x: x[:, :-1],
        lambda x: x[:, :-1],
    )  # the last of hidden_states is after the final norm
    peers = [
        Arm(
            "bare_forward",
            lambda: torch.stack([bare.model(prompts[i][None].to(bare.device))[0][0, -1] for i in some]),
            share,
            None,
        ),
        Arm("transformer_lens", _transformer_lens(model, prompts, at, some), share, sample),
        Arm("nnsight", _nnsight(model, prompts, at, some), share, sample),
        Arm("hf_batched", _hf_batched(hf, prompts, at), 1.0, below_last),
    ]
    found = interleave(ours, peers, rounds)
    naive = torch.stack([_one(hf, prompts[i], at[i]) for i in some])
    mine = gather(model, [prompts[i] for i in some], sites, [at[i] for i in some])
    found["ours"]["max_error"] = error(mine[:, :-1], naive[:, :-1])
    return found


def _one(hf: Any, prompt: Tensor, at: Tensor) -> Tensor:
    """The naive reading of one prompt: hidden_states[layer + 1] is resid_post of every layer but the last."""
    states = hf.model(prompt[None].to(hf.device), output_hidden_states=True).hidden_states
    return torch.stack([state[0, at].float().mean(0) for state in states[1:]])


def _transformer_lens(model: Any, prompts: list[Tensor], at: list[Tensor], some: list[int]) -> Any:
    hf = model.backend.model
    peer = bridge(model, twin(hf))

    def run() -> Tensor:
        rows = []
        for i in some:
            _, cache = peer.run_with_cache(
                prompts[i][None].to(hf.device), names_filter=lambda n: n.endswith("hook_resid_post")
            )
            rows.append(
                torch.stack(
                    [
                        cache["resid_post", layer][0, at[i]].float().mean(0)
                        for layer in range(model.dims.n_layers)
                    ]
                )
            )
        return torch.stack(rows)

    return run


def _nnsight(model: Any, prompts: list[Tensor], at: list[Tensor], some: list[int]) -> Any:
    import nnsight
    from nnsight import NNsight

    lm: Any = NNsight(twin(model.backend.model))

    def run() -> Tensor:
        rows = []
        for i in some:
            with lm.trace(prompts[i][None].to(model.backend.device)):
                states = nnsight.save([])
                for layer in lm.model.layers:
                    states.append(layer.output[0, at[i]].float().mean(0))
            rows.append(torch.stack(list(states)))
        return torch.stack(rows)

    return run


def _hf_batched(hf: Any, prompts: list[Tensor], at: list[Tensor], size: int = 16) -> Any:
    def run() -> Tensor:
        rows = []
        for start in range(0, len(prompts), size):
            part, spans = prompts[start : start + size], at[start : start + size]
            longest = max(map(len, part))
            ids = torch.zeros(len(part), longest, dtype=torch.long, device=hf.device)
            mask = torch.zeros_like(ids)
            for k, p in enumerate(part):
                ids[k, longest - len(p) :] = p
                mask[k, longest - len(p) :] = 1
            position = (mask.cumsum(1) - 1).clamp_min(0)
            states = hf.model(
                ids, attention_mask=mask, position_ids=position, output_hidden_states=True
            ).hidden_states
            for k, p in enumerate(part):
                where = spans[k] + longest - len(p)
                rows.append(torch.stack([state[k, where].float().mean(0) for state in states[1:]]))
        return torch.stack(rows)

    return run
