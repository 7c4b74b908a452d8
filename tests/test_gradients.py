"""Gradients are finite differences of edits, the same from every library, and leave nothing on the model."""

from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from mechinterp.gradients import Gradients, gradients
from mechinterp.interventions import Add, At, Replace
from mechinterp.loading import with_adapter, wrap
from mechinterp.model import Model
from mechinterp.sites import WRITABLE, Site, sites
from tests.architectures import FAMILIES, shared, tiny
from tests.passes import GATE, TOKENS, at, each_pair, made, relative

EVERY = tuple(at(name, layer) for layer in range(3) for name in WRITABLE)
T = TOKENS.shape[1]


@cache
def model(family: str) -> Model:
    return wrap(shared(family), None, verify=False)


def score(logits: torch.Tensor) -> torch.Tensor:
    """Not linear in the logits, and another one in every row."""
    return (logits[..., 5] - logits.logsumexp(-1)).sum() + 0.1 * logits[:, 0, 9] @ logits[:, 0, 11]


def of(model: Model, wanted: tuple[Site, ...] = EVERY, **options: Any) -> Gradients:
    return gradients(model, TOKENS, wanted, score, logits_at=[9, -1], **options)


# against naive computation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_differences_of_small_edits(family):
    """At every kind of site, at one position of each sequence at a time; z in every query head.

    Four steps along a line, so that the error is of their fourth power. Most norms compute in fp32 even in an
    fp64 model: smaller steps would show its rounding.
    """
    exact = wrap(tiny(family).double(), None, verify=False)
    found, step = of(exact), 2.0**-7
    steps = step * torch.tensor([1.0, -1, 2, -2]).repeat_interleave(2)
    generator = torch.Generator().manual_seed(0)
    for name, position in zip(WRITABLE, (0, 9, 4, 13, 6), strict=True):
        site = at(name, 1)
        direction = torch.randn(2, *exact.dims.shape(site), generator=generator, dtype=torch.float64)
        edit = Add(site, torch.cat([direction] * 4), where=At((position,)), strength=steps)
        logits = exact.forward(TOKENS.repeat(4, 1), logits_at=[9, -1], interventions=[edit]).logits
        up, down, far_up, far_down = (float(score(part)) for part in logits.chunk(4))  # type: ignore
        expected = (8 * (up - down) - (far_up - far_down)) / (12 * step)
        slope = float((found[site][:, position] * direction).sum())
        assert abs(slope - expected) < 3e-4 * (0.1 + abs(expected)), (site, slope, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_score_are_those_of_a_forward_pass(family):
    found = of(model(family))
    natural = model(family).forward(TOKENS, capture=EVERY, logits_at=[9, -1])
    for site in EVERY:
        assert relative(found.values[site], natural[site]) <= GATE
        assert found[site].shape == natural[site].shape
        assert not found[site].requires_grad and not found.values[site].requires_grad
    assert relative(found.logits, natural.logits) <= GATE  # type: ignore
    assert found.score == pytest.approx(float(score(found.logits)))


@each_pair
def test_every_backend_gives_the_same(family: str, kind: str):
    expected, found = of(model(family)), of(Model("tiny", made(family, kind), None, ""))
    for site in EVERY:
        assert relative(found[site], expected[site]) <= 2 * GATE, site
        assert relative(found.values[site], expected.values[site]) <= GATE, site


# identities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_added_to_the_stream_has_the_gradient_of_the_stream(family):
    found = of(model(family))
    for layer in range(3):
        post = found[Site("resid_post", layer)]
        assert_close(found[Site("mlp_out", layer)], post)
        if layer < 2:
            assert_close(post, found[Site("resid_pre", layer + 1)])
        if family == "gpt_neox":  # attention and MLP in parallel
            assert_close(found[Site("attn_out", layer)], post)


def test_the_gradient_of_z_is_that_of_attn_out_through_each_heads_part_of_the_projection():
    """Grouped queries: four heads of z over two of k and v."""
    found = of(model("llama"))
    weight = shared("llama").model.layers[1].self_attn.o_proj.weight  # type: ignore
    per_head = weight.unflatten(1, (4, 16))
    expected = torch.einsum("btm,mhd->bthd", found[Site("attn_out", 1)], per_head)
    assert_close(found[Site("z", 1)], expected)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom", "granite"])
def test_a_site_alone_has_the_gradient_that_it_has_among_others(family):
    together = of(model(family))
    for site in EVERY:
        assert_close(of(model(family), (site,))[site], together[site])


def test_rows_that_the_score_does_not_read_have_none_in_the_last_stream():
    last = of(model("llama"))[Site("resid_post", 2)]
    read = last.flatten(2).norm(dim=-1) > 0
    assert torch.equal(read, torch.isin(torch.arange(T), torch.tensor([9, 13])).expand(2, -1))


def test_the_gradient_of_a_sum_holds_that_of_each_sequence_and_padding_has_none():
    def read(logits):
        return logits[..., 5].sum()

    both = gradients(model("llama"), TOKENS, EVERY, read, logits_at=[-1], lengths=[T, 9])
    for row, n in enumerate((T, 9)):
        alone = gradients(model("llama"), TOKENS[row : row + 1, :n], EVERY, read, logits_at=[-1])
        for site in EVERY:
            assert_close(both[site][row, :n], alone[site][0], atol=1e-5, rtol=1e-4)
            assert both[site][row, n:].eq(0).all()


def test_gradients_are_of_what_the_edits_leave():
    """After an edit of the site itself; nothing of a stream that is replaced further up."""
    v = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    site = Site("resid_post", 1)
    edited = of(model("llama"), (Site("resid_pre", 0), site), interventions=[Replace(site, v)])
    assert_close(edited.values[site], v[:, None].expand(2, T, 64))
    assert edited[Site("resid_pre", 0)].eq(0).all() and not edited[site].eq(0).all()
    natural = of(model("llama"), (site,))
    assert relative(edited[site], natural[site]) > 0.01
    none = of(model("llama"), (site,), interventions=[Add(site, v[0], strength=0.0)])
    assert torch.equal(none[site], natural[site])


# the user's model -------------------------------------------------------------------------------------------


def state_of(module: torch.nn.Module) -> tuple:
    return (
        [(p.requires_grad, p.grad is None, p._version) for p in module.parameters()],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
    )


@pytest.mark.parametrize("kind", ["transformers", "nnsight", "transformer_bridge"])
def test_parameters_flags_mode_and_hooks_are_left_as_they_were(kind):
    """Of a model in train() whose parameters are trained: the gradients are those of a frozen one."""
    from mechinterp.backends.anatomy import anatomy_of
    from mechinterp.loading import make_backend

    hf_model: Any = tiny("llama")
    own = Model("tiny", make_backend(kind, hf_model, anatomy_of(hf_model.config))[0], None, "")
    frozen = of(own)
    hf_model.train().requires_grad_(True)
    hf_model.model.norm.weight.requires_grad_(False)
    before = state_of(hf_model)
    free = of(own)
    assert state_of(hf_model) == before
    for site in EVERY:
        assert relative(free[site], frozen[site]) <= GATE

    def fail(logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradients(own, TOKENS, EVERY, fail, logits_at=[-1])
    assert state_of(hf_model) == before
    assert torch.is_grad_enabled()


def test_it_runs_within_no_grad_and_a_pass_after_it_is_as_before():
    before = model("llama").forward(TOKENS).logits
    with torch.no_grad():
        within = of(model("llama"))
        assert not torch.is_grad_enabled()
    assert torch.equal(within[EVERY[0]], of(model("llama"))[EVERY[0]])
    after = model("llama").forward(TOKENS, capture=EVERY)
    assert torch.equal(after.logits, before) and not after[EVERY[0]].requires_grad  # type: ignore


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapter_on_is_the_merged_model_and_off_is_the_base(family, tmp_path):
    import copy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=["c_attn"] if family == "gpt2" else ["q_proj", "o_proj"])
        config.fan_in_fan_out = family == "gpt2"
        trained: Any = get_peft_model(copy.deepcopy(shared(family)), config).eval()  # type: ignore
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(str(tmp_path))
    base = wrap(shared(family), None)
    off = of(base)
    on = of(with_adapter(base, tmp_path))
    merged = of(wrap(trained.merge_and_unload(), None))
    again = of(base)
    for site in EVERY:
        assert relative(on[site], merged[site]) <= 2e-5
        assert torch.equal(again[site], off[site]) and relative(on[site], off[site]) > 1e-3


# faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        pytest.param((), ValueError, "no sites", id="fault_004_empty"),
        pytest.param((Site("z", 3),), IndexError, "0..2", id="fault_001"),
        pytest.param((Site("pattern", 1),), ValueError, "no gradient at pattern", id="pattern"),
        pytest.param((Site("resid_mid", 1),), ValueError, "no gradient at resid_mid", id="resid_mid"),
        pytest.param(("z",), TypeError, "no site", id="no_site"),
    ],
)
def test_sites_without_a_gradient_are_refused(wanted, error, said):
    with pytest.raises(error, match=said):
        of(model("llama"), wanted)


@pytest.mark.parametrize(
    ("scored", "error", "said"),
    [
        pytest.param(lambda logits: logits[:, 0, 5], TypeError, "one number", id="per_row"),
        pytest.param(lambda logits: logits.sum().item(), TypeError, "float", id="a_float"),
        pytest.param(lambda logits: logits.argmax(-1).sum(), TypeError, "one number", id="whole"),
        pytest.param(lambda logits: logits.detach().sum(), ValueError, "detach", id="detached"),
        pytest.param(lambda logits: logits.sum() * torch.nan, FloatingPointError, "nan", id="fault_074_nan"),
    ],
)
def test_scores_without_a_gradient_are_refused(scored, error, said):
    with pytest.raises(error, match=said):
        gradients(model("llama"), TOKENS, EVERY[:1], scored, logits_at=[-1])


def test_rows_must_be_named_and_there():
    with pytest.raises(ValueError, match="computes no logits"):
        gradients(model("llama"), TOKENS, EVERY[:1], score, logits_at=())
    with pytest.raises(IndexError, match="0..13"):
        gradients(model("llama"), TOKENS, EVERY[:1], score, logits_at=[14])
    with pytest.raises(KeyError, match="name it in sites"):
        of(model("llama"), (Site("z", 0),))[Site("z", 1)]


def test_the_gradient_of_a_site_may_be_asked_for_in_several_layers_at_once():
    found = of(model("llama"), sites("z", range(3)))
    assert list(found.gradients) == list(sites("z", range(3)))
