"""W3: steered-then-free generation, against bare `generate` at the same batch size and an nnsight loop.

Ours steers 24 tokens at a middle layer, drops the steered keys and values, samples 24 free ones and projects
every token on 60 vectors; bare `generate` makes 48 tokens and does nothing else. The seed loop re-encodes the
text of every token and runs it without a cache, as the source notebook does.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.subject import Subject
from benchmarks.timing import Arm, error, interleave
from mechinterp.backends.twin import twin
from mechinterp.interventions import Add, Everywhere
from mechinterp.sampling import Phase, Watch, sample, stop_ids
from mechinterp.sites import Site
from studies.personas import questions

LAYER = 15
N_VECTORS = 60


@torch.no_grad()
def measure(subject: Subject, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Greedy and top-p at several batch sizes."""
    model = subject.load()
    chat = model.chat("What do you think is the meaning of life?", system="You are an AI assistant.")
    prompt = chat.tokens.to(model.backend.device)
    n = 6 if quick else 24
    found: dict[str, Any] = {}
    for size in (1, 4) if quick else (1, 16):
        found[f"greedy_b{size}"] = _case(model, prompt, size, n, None, rounds)
    for size in (4,) if quick else (16, 64):
        found[f"topp_b{size}"] = _case(model, prompt, size, n, 0.95, rounds)
    found["seed_loop_b1"] = _seed_loop(model, n if quick else 100, max(1, rounds // 2))
    found["greedy_b1"]["naive_error"] = {
        "cpu_seconds": 0.0,
        "max_error": _against_recomputation(model, prompt, 8),
    }
    return found


def _vectors(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N_VECTORS, model.dims.d_model, generator=generator)


def _ours(model: Any, prompt: Tensor, size: int, n: int, top_p: float | None) -> Any:
    vectors = _vectors(model)
    site = Site("resid_post", LAYER)
    stops = stop_ids(model)
    steering = (Add(site, 20 * vectors[0]),)
    phases = [Phase(n, steering, suppress=stops), Phase(n, suppress=stops)]
    rows = prompt.expand(size, -1)

    def run() -> Tensor:
        found = sample(
            model,
            rows,
            phases,
            temperature=None if top_p is None else 1.0,
            top_p=top_p or 1.0,
            watch=Watch(site, vectors),
        )
        return found.generated

    return run


def _case(model: Any, prompt: Tensor, size: int, n: int, top_p: float | None, rounds: int) -> dict[str, Any]:
    peers = [Arm("generate", _generate(model.backend.model, prompt, size, 2 * n, top_p), 1.0, None)]
    if top_p is None:
        peers.append(
            Arm("nnsight", _nnsight(model, prompt, size, n), 1.0, (lambda x: x, lambda x: x[:, -2 * n :]))
        )
    return interleave(Arm("ours", _ours(model, prompt, size, n, top_p)), peers, rounds)


def _generate(hf: Any, prompt: Tensor, size: int, n: int, top_p: float | None) -> Any:
    sampling = {"do_sample": False} if top_p is None else {"do_sample": True, "top_p": top_p, "top_k": 0}

    def run() -> Tensor:
        rows = prompt.expand(size, -1)
        return hf.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=n,
            min_new_tokens=n,
            pad_token_id=0,
            **sampling,
        )

    return run


def _nnsight(model: Any, prompt: Tensor, size: int, n: int) -> Any:
    """Two generate calls under nnsight: steered, then free from the ids alone; one vector is projected on."""
    import nnsight
    from nnsight.modeling.transformers import TransformersModel

    lm: Any = TransformersModel(twin(model.backend.model), tokenizer=model.tokenizer, task="text-generation")
    vector = (20 * _vectors(model)[0]).to(model.backend.device, model.backend.dtype)

    def phase(ids: Tensor, steered: bool) -> Tensor:
        with lm.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0) as tracer:
            seen = nnsight.save([])
            for _ in tracer.iter[:n]:
                state = lm.model.layers[LAYER].output
                if steered:
                    state = state + vector
                    lm.model.layers[LAYER].output = state
                seen.append((state[:, -1] @ vector).clone())
            made = tracer.result.save()
        return made  # noqa: RET504  # inside the trace nothing may return

    def run() -> Tensor:
        return phase(phase(prompt.expand(size, -1), True), False)

    return run


def _seed_loop(model: Any, n: int, rounds: int) -> dict[str, Any]:
    """The source's loop, at the source's context: decode, encode again, full pass, argmax at every token.

    The mean context of its 200 steered and 500 free tokens is some 480; the loop runs a sample of the tokens.
    """
    hf, tokenizer = model.backend.model, model.tokenizer
    vector = _vectors(model)[0].to(hf.device, hf.dtype)
    prompt = (
        model.chat(" ".join(questions("training")), system="You are an AI assistant.")
        .tokens[:, :400]
        .to(hf.device)
    )
    sampled = max(2, n // 6)

    def run() -> Tensor:
        ids = prompt
        for step in range(sampled):
            handle = hf.model.layers[LAYER].register_forward_hook(
                lambda _m, _a, out, on=step < sampled // 2: out + 20 * vector if on else None
            )
            try:
                token = hf(ids, use_cache=False).logits[:, -1].argmax(-1)
            finally:
                handle.remove()
            text = tokenizer.decode(torch.cat([ids[0], token]))
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(hf.device)
        return ids

    ours = Arm("ours", _ours(model, prompt, 1, n, None))
    found = interleave(ours, [Arm("loop", run, sampled / (2 * n), None)], rounds)
    return {"ours": found["ours"], **found["loop"]}


def _against_recomputation(model: Any, prompt: Tensor, n: int) -> float:
    """The share of ids that differ from the definition: a full pass without cache at every token."""
    site, vector = Site("resid_post", LAYER), 20 * _vectors(model)[0]
    ids = prompt
    for step in range(2 * n):
        edits = [Add(site, vector, where=Everywhere())] if step < n else []
        token = model.forward(ids, interventions=edits, logits_at=[-1]).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], 1)
    phases = [Phase(n, (Add(site, vector),)), Phase(n)]
    found = sample(model, prompt, phases, stop=frozenset())
    return error(found.generated[0], ids[0, prompt.shape[1] :]) or 0.0
