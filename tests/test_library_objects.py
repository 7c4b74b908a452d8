"""Whose objects are whose: the user's model stays as it was, a user's library object is used as it is.

And what the libraries do not do is refused with the way out.
"""

import sys
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechinterp.backends.anatomy import anatomy_of
from mechinterp.backends.transformers import TransformersBackend
from mechinterp.backends.verify import verify
from mechinterp.interventions import Add, Apply
from mechinterp.loading import make_backend
from mechinterp.sites import WRITABLE, Site
from tests.architectures import config, shared
from tests.passes import (
    BACKENDS,
    GATE,
    HAS_HOOKED,
    TOKENS,
    UNSUPPORTED,
    a_pass,
    assert_same,
    at,
    each_backend,
    every_site,
    logits,
    made,
    reference,
    relative,
    run,
    tiny_model,
)

# the user's model -------------------------------------------------------------------------------------------


def state(model: torch.nn.Module) -> dict[str, Any]:
    """All of a model that a library could have changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "keys": list(model.state_dict()),
        "tensors": [
            (t.data_ptr(), t.requires_grad, t.sum().item()) for t in model.state_dict(keep_vars=True).values()
        ],
        "classes": [(name, type(module), id(module)) for name, module in model.named_modules()],
        "dict": [sorted(module.__dict__) for module in model.modules()],
        "hooks": [[len(getattr(module, kind)) for kind in hooks] for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "kernels": dict(ALL_ATTENTION_FUNCTIONS),
        "config": model.config.to_dict(),  # type: ignore
        "attention": model.config._attn_implementation,  # type: ignore
        "forward": model.forward.__qualname__,
    }


class Boom(Exception):
    pass


def boom(x: torch.Tensor) -> torch.Tensor:
    raise Boom


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", ["transformers", *BACKENDS])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_fault_019_025_056_the_users_model_is_as_before_also_after_a_fault(
    family: str, kind: Any, train: bool
):
    model = tiny_model(family).train(train)
    model.model.layers[1].register_forward_hook(lambda *_: None) if family == "llama" else None
    before, plain = state(model), logits(reference(family), a_pass(TOKENS))
    backend = make_backend(kind, model, anatomy_of(model.config))[0]  # type: ignore
    sites = every_site(backend)
    assert relative(run(backend, a_pass(TOKENS, capture=sites))[0].logits, plain) <= GATE  # type: ignore
    for name in WRITABLE:
        with pytest.raises(Boom):
            run(backend, a_pass(TOKENS, capture=sites, interventions=(Apply(at(name, 1), boom),)))
    assert relative(run(backend, a_pass(TOKENS, capture=sites))[0].logits, plain) <= GATE  # type: ignore
    assert state(model) == before
    assert relative(model.eval()(TOKENS).logits, plain) <= GATE


@each_backend
def test_weights_are_shared_except_by_hooked_transformer(kind: Any):
    model = tiny_model("llama")
    backend, notes = make_backend(kind, model, anatomy_of(model.config))
    plain = logits(backend, a_pass(TOKENS))
    model.model.layers[0].mlp.down_proj.weight.data.mul_(2.0)
    assert torch.equal(plain, logits(backend, a_pass(TOKENS))) == (kind == "hooked_transformer")
    assert any("copy" in note for note in notes) == (kind == "hooked_transformer")


# what is not supported --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), sorted(UNSUPPORTED))
def test_an_unsupported_family_is_refused_with_the_way_out(family: str, kind: Any):
    if not HAS_HOOKED:
        pytest.skip("transformer-lens 4 has no HookedTransformer; its refusal is the next test")
    with pytest.raises(
        ValueError, match=f"{kind} does not support {family}.*use transformers, nnsight or transformer_bridge"
    ):
        made(family, kind)


def test_fault_077_hooked_transformer_under_transformer_lens_4_says_what_to_use(monkeypatch):
    if HAS_HOOKED:  # here the installed version has it; take it away
        monkeypatch.delattr("transformer_lens.HookedTransformer")
        monkeypatch.setitem(sys.modules, "transformer_lens.HookedTransformer", None)
    with pytest.raises(ImportError, match="use transformer_bridge or install transformer-lens<4"):
        make_backend("hooked_transformer", shared("llama"), anatomy_of(shared("llama").config))


@pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has no HookedTransformer")
def test_hooked_transformer_computes_olmo2_without_grouped_heads():
    from transformers import AutoModelForCausalLM

    cfg = config("olmo2")
    cfg.num_key_value_heads = cfg.num_attention_heads
    model = AutoModelForCausalLM.from_config(cfg).eval()
    backend = make_backend("hooked_transformer", model, anatomy_of(cfg))[0]
    request = a_pass(TOKENS, capture=every_site(backend))
    assert_same(
        run(backend, request)[1],
        run(TransformersBackend(model, anatomy_of(cfg)), request)[1],
        request.capture,
    )


@pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has no HookedTransformer")
def test_hooked_transformer_refuses_a_rotation_that_it_would_not_compute():
    from transformers import AutoModelForCausalLM

    cfg = config("llama")
    cfg.rope_parameters = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 40,
    }
    model = AutoModelForCausalLM.from_config(cfg).eval()
    with pytest.raises(ValueError, match="does not support the rotary scaling 'yarn'"):
        make_backend("hooked_transformer", model, anatomy_of(cfg))


@pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has no HookedTransformer")
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 40, "rope_theta": 5e5,
        },
    ],
)  # fmt: skip
def test_hooked_transformer_scales_rotations_as_the_model_does(rope: dict[str, Any]):
    from transformers import AutoModelForCausalLM

    cfg = config("llama")
    cfg.rope_parameters = rope
    model = AutoModelForCausalLM.from_config(cfg).eval()
    backend = make_backend("hooked_transformer", model, anatomy_of(cfg))[0]
    assert relative(logits(backend, a_pass(TOKENS)), model(TOKENS).logits) <= GATE


@pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has no HookedTransformer")
def test_hooked_transformer_with_other_logits_than_the_model_is_refused():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()  # not what the config says: every identity of `verify` still holds
    with pytest.raises(ValueError, match="gives other logits than LlamaForCausalLM itself"):
        make_backend("hooked_transformer", model, anatomy_of(model.config))


# objects that the user built --------------------------------------------------------------------------------


def nnsight_model(model: torch.nn.Module) -> Any:
    import nnsight

    return nnsight.NNsight(model)


def test_a_users_nnsight_model_runs_with_its_stored_edits():
    from mechinterp.backends.nnsight import ready_made

    theirs = nnsight_model(tiny_model("llama"))
    vector = torch.full((64,), 0.3)
    with theirs.edit(inplace=True):
        theirs.model.layers[1].output = theirs.model.layers[1].output + vector
    backend = ready_made(theirs)
    expected = logits(reference("llama"), a_pass(TOKENS, interventions=(Add(Site("resid_post", 1), vector),)))
    assert relative(logits(backend, a_pass(TOKENS)), expected) <= GATE
    theirs.clear_edits()
    assert relative(logits(backend, a_pass(TOKENS)), logits(reference("llama"), a_pass(TOKENS))) <= GATE
    verify(backend)
    with theirs.trace(TOKENS):
        still = theirs.lm_head.output.save()
    assert relative(still, logits(reference("llama"), a_pass(TOKENS))) <= GATE


def test_an_nnsight_model_that_is_no_causal_model_is_refused():
    from mechinterp.backends.nnsight import ready_made

    with pytest.raises(TypeError, match="wraps Linear; wrap a Hugging Face causal language model"):
        ready_made(nnsight_model(torch.nn.Linear(2, 2)))


def lens_object(family: str, kind: Any) -> Any:
    model = tiny_model(family)
    return make_backend(kind, model, anatomy_of(model.config))[0].model  # type: ignore


@pytest.mark.parametrize("kind", [kind for kind in BACKENDS if kind != "nnsight"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "granite"])
def test_a_users_lens_model_keeps_its_own_hooks(family: str, kind: Any):
    if (family, kind) in UNSUPPORTED:
        return
    from mechinterp.backends.transformer_lens import ready_made

    theirs = lens_object(family, kind)
    seen: list[int] = []
    theirs.add_hook("blocks.1.hook_resid_post", lambda x, hook: seen.append(1))
    backend = ready_made(theirs)
    verify(backend)
    request = a_pass(TOKENS, capture=every_site(backend))
    assert_same(run(backend, request)[1], run(reference(family), request)[1], request.capture)
    with pytest.raises(Boom):
        run(backend, a_pass(TOKENS, interventions=(Apply(Site("z", 1), boom),)))
    points = [point for point in theirs.hook_dict.values() if point._forward_hooks]
    assert len({id(point) for point in points}) == 1 and seen
    del seen[:]
    theirs(TOKENS)
    assert seen == [1]


@pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has no HookedTransformer")
def test_folded_weights_of_a_users_hooked_transformer_still_satisfy_the_identities():
    from mechinterp.backends.transformer_lens import ready_made

    theirs = lens_object("llama", "hooked_transformer")
    theirs.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    backend = ready_made(theirs)
    verify(backend)
    assert relative(logits(backend, a_pass(TOKENS)), logits(reference("llama"), a_pass(TOKENS))) <= 1e-5


def test_wrong_anatomy_is_refused_on_the_other_backends_too():
    wrong = anatomy_of(shared("llama").config)  # Gemma-2's norms come after attention and MLP
    backend = make_backend("nnsight", shared("gemma2"), wrong)[0]
    with pytest.raises(ValueError, match="resid_pre \\+ attn_out \\+ mlp_out = resid_post"):
        verify(backend)
