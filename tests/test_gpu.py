"""On a CUDA device: the CPU's numbers, narrow kernels that agree, several devices, memory that runs out.

Skipped where there is none; nothing else in the suite needs one.
"""

from typing import Any, cast

import pytest
import torch

from mechinterp.interventions import Add, ProjectOut
from mechinterp.loading import wrap
from mechinterp.sampling import Phase, Watch, sample
from mechinterp.sites import Site
from patching.grid import PatchGrid
from patching.metrics import log_prob
from patching.residual import patch_residual
from probes.lens import logit_lens
from tests.architectures import tiny
from tests.passes import BACKENDS, TOKENS, UNSUPPORTED, relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = ["transformers", *BACKENDS]
FAMILIES = ["llama", "gemma2", "gpt_neox", "phi3", "bloom"]
PAIRS = [(f, k) for f in FAMILIES for k in KINDS if (f, k) not in UNSUPPORTED]
LINE = torch.randn(64, generator=torch.Generator().manual_seed(3))


def on_gpu(family: str, kind: Any = "transformers", dtype: torch.dtype = torch.float32) -> Any:
    return wrap(tiny(family).to("cuda", dtype), None, backend=kind)


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_reads_and_writes_are_those_of_the_cpu(family, kind):
    """fp32 without TF32: only the order of sums differs, so the gate is ten times that of one device."""
    here: Any = wrap(tiny(family), None)
    there = on_gpu(family, kind)
    sites = [Site(name, layer) for layer in range(3) for name in ("resid_post", "attn_out", "z", "pattern")]
    edits = [Add(Site("resid_post", 0), LINE), ProjectOut(Site("attn_out", 1), LINE)]
    for interventions in ([], edits):
        expected = here.forward(TOKENS, capture=sites, interventions=interventions)
        found = there.forward(TOKENS, capture=sites, interventions=interventions)
        assert relative(found.logits.cpu(), expected.logits) < 5e-5
        for site in sites:
            assert relative(found[site].cpu(), expected[site]) < 5e-5, site


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_steered_then_free_tokens_are_those_of_the_cpu(family, kind):
    site = Site("resid_post", 1)
    phases = [Phase(12, (Add(site, 4 * LINE),)), Phase(12)]
    asked: Any = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "watch": Watch(site, LINE[None])}
    models = (wrap(tiny(family), None), on_gpu(family, kind))
    here, there = (cast("Any", sample(m, TOKENS, phases, **asked)) for m in models)
    assert torch.equal(here.generated.cpu(), there.generated.cpu())
    torch.testing.assert_close(
        there.telemetry.projections.cpu(), here.telemetry.projections.cpu(), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_rows_beside_a_narrow_kernel_are_eager_weights(family, dtype):
    """sdpa on CUDA gives no weights; ours, in fp32 from its queries and keys, are eager's to its rounding."""
    fast = on_gpu(family, dtype=dtype)
    rows = fast.forward(TOKENS, capture=[Site("pattern", layer) for layer in range(3)])
    eager: Any = tiny(family).to("cuda", dtype)
    eager.set_attn_implementation("eager")
    weights = eager(TOKENS.cuda(), output_attentions=True).attentions
    for layer in range(3):
        found = rows[Site("pattern", layer)]
        assert float((found.sum(-1) - 1).abs().max()) < 1e-6
        assert float((found - weights[layer].float()).abs().max()) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_ids_are_those_of_generate(dtype):
    model = on_gpu("llama", dtype=dtype)
    ours = sample(model, TOKENS, [Phase(32)], stop=frozenset()).generated
    theirs = model.backend.model.generate(
        TOKENS.cuda(), max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0
    )
    assert torch.equal(ours.cpu(), theirs[:, TOKENS.shape[1] :].cpu())


def test_layers_on_two_devices_are_one_model():
    """One block on the CPU between two on the GPU, moved between as `device_map` does."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    split: Any = tiny("llama").cuda()
    split.model.layers[1].cpu()
    for layer, place in ((1, "cpu"), (2, "cuda:0")):
        add_hook_to_module(split.model.layers[layer], AlignDevicesHook(execution_device=place))
    here: Any = wrap(tiny("llama"), None)
    there: Any = wrap(split, None)
    sites = [Site("resid_post", layer) for layer in range(3)]
    edit = [Add(site, LINE) for site in sites]
    expected = here.forward(TOKENS, capture=sites, interventions=edit)
    found = there.forward(TOKENS, capture=sites, interventions=edit)
    assert relative(found.logits.cpu(), expected.logits) < 5e-5
    assert all(relative(found[s].cpu(), expected[s]) < 5e-5 for s in sites)
    lens = [logit_lens(m, TOKENS[0], rows=[13], targets=[7]).log_prob for m in (here, there)]
    assert relative(lens[1].cpu(), lens[0]) < 5e-5
    grids = [_grid(m).values for m in (here, there)]
    assert relative(grids[1].cpu(), grids[0]) < 5e-5
    ours = sample(there, TOKENS, [Phase(8, (edit[1],)), Phase(8)]).generated
    assert torch.equal(ours.cpu(), sample(here, TOKENS, [Phase(8, (edit[1],)), Phase(8)]).generated)


def test_fault_075_a_batch_that_the_gpu_has_no_room_for_is_halved():
    """Torch is given a little more than the model holds, so that 4096 rows run out of it for real."""
    model = on_gpu("llama")
    rows, phases = TOKENS[:1].expand(4096, -1), [Phase(64)]
    few = sample(model, rows[:2], phases, stop=frozenset(), names=["a", "a"])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
        found = sample(model, rows, phases, stop=frozenset(), names=["a"] * len(rows))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(found.batches) > 1, "it was halved"
    assert torch.equal(found.generated, few.generated[:1].expand(len(rows), -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lens_and_patching_run_where_the_model_is(dtype):
    model = on_gpu("llama", dtype=dtype)
    lens = logit_lens(model, TOKENS[0], rows=[13], targets=[7])
    logits = model.forward(TOKENS[:1], logits_at=[-1]).logits[0, 0]
    whole = float(logits.float().log_softmax(-1)[7])
    assert float(lens.log_prob[0, -1, 0]) == pytest.approx(whole, abs=1e-2)
    assert float(_grid(model).baseline.flatten()[0]) == pytest.approx(whole, abs=1e-2)


def _grid(model: Any) -> PatchGrid:
    source = TOKENS[1].clone()
    source[0] = TOKENS[0, 0]
    asked: Any = {"positions": [12, 13], "source_tokens": source, "site": "resid_pre"}
    return patch_residual(model, model, TOKENS[0], log_prob(7, at=13), **asked)
