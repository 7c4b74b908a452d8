"""A marker-writer planted in one layer is found there by lens and patching; a null model shows nothing."""

import numpy as np
import pytest
import torch

import mechinterp as mi
import patching
import probes
from mechinterp.backends.twin import twin
from patching.cases import Case
from patching.donors import FromRun
from tests.architectures import shared, tiny

LAYER = 12


def with_writer(base: mi.Model, layer: int, token: int, tokens: torch.Tensor) -> mi.Model:
    """The base with one more rank in an MLP: what stands at the last row makes it write a token."""
    hf = twin(base.backend.model)
    mlp, head = hf.model.layers[layer].mlp, hf.get_output_embeddings()
    seen: dict[str, torch.Tensor] = {}
    handle = mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    with torch.no_grad():
        hf.model(tokens)
    handle.remove()
    reads = seen["x"][0, -1] / seen["x"][0, -1].norm() ** 2
    towards = (
        head.weight[token] - head.weight.mean(0)
    ) / hf.model.norm.weight  # through the final norm's gain
    writes = (towards / towards.norm()).detach()
    down = mlp.down_proj
    weight = down.weight.detach() + 3000 * torch.outer(writes, reads)
    down.weight = torch.nn.Parameter(weight, requires_grad=False)  # the twin's own: the base keeps its tensor
    return mi.wrap(hf, base.tokenizer, name="planted", verify=False)


@pytest.mark.real
def test_a_writer_planted_in_layer_12_is_found_by_the_lens_there_and_by_patching_from_there_on(real):
    token = real.tokenizer(" marker", add_special_tokens=False)["input_ids"][0]
    tokens = real.chat("What is the sea made of?").tokens
    row = tokens.shape[1] - 1
    planted = with_writer(real, LAYER, token, tokens)
    targets = {"marker": token}
    lens = {
        m.name: probes.logit_lens(m, tokens, rows=[row], targets=targets).rank[0, :, 0]
        for m in (planted, real)
    }
    trained, base = lens.values()
    assert torch.equal(trained[:LAYER], base[:LAYER]) and int(trained[LAYER]) < 10 <= int(base[LAYER])
    metric = patching.log_prob(token, at=row)
    recovered = patching.patch_residual(planted, real, tokens, metric, positions=[row]).recovered()[0, :, 0]
    assert float(recovered[:LAYER].abs().max()) < 0.05
    assert float(recovered[LAYER:].min()) > 0.9
    mlp = patching.patch_residual(planted, real, tokens, metric, positions=[row], site="mlp_out")
    assert int(mlp.effects()[0, :, 0].argmax()) == LAYER


def test_where_nothing_writes_a_marker_patching_finds_one_no_more_often_than_alpha_allows():
    """Null models: the base with noise in its weights. 20 of them, 8 texts each, max-T over cells at 5 %."""
    base = mi.wrap(shared("llama"), None, name="base", verify=False)
    generator, found = torch.Generator().manual_seed(0), 0
    for draw in range(20):
        hf = tiny("llama")
        with torch.no_grad():
            for parameter in hf.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        null = mi.wrap(hf, None, name="null", verify=False)
        texts = [torch.randint(2, 211, (7,), generator=generator) for _ in range(8)]
        tokens = torch.randint(2, 211, (8,), generator=generator).tolist()  # another target in every text
        places = {"last": (6,), "before": (5,)}
        cases = [
            Case(ids, (patching.logit_difference(token, 5, at=6),), places, name=str(i))
            for i, (ids, token) in enumerate(zip(texts, tokens, strict=True))
        ]
        grid = patching.patch_cases(FromRun(null), base, cases, seed=draw)
        found += bool(np.nanmin(grid.test().p_max_t) < 0.05)
    assert found <= 4, f"{found} of 20 null models showed something; 5 % are expected, 4 are the 99.7 % bound"
