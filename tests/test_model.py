"""The door of a model: what it gives, what it refuses before compute, how it leaves the user's object."""

import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mechinterp.backends.twin import twin
from mechinterp.interventions import (
    Add,
    Apply,
    At,
    Everywhere,
    FirstN,
    From,
    Generated,
    Newest,
    ProjectOut,
    Ramp,
    Replace,
)
from mechinterp.loading import wrap
from mechinterp.sites import NAMES, WRITABLE, Site, sites
from tests.architectures import FAMILIES, config, shared, tiny
from tests.passes import BACKENDS

READ_OUT = Site("resid_post", 2)


@pytest.fixture(scope="module")
def model():
    return wrap(shared("llama"), None, name="tiny", verify=False)


def of(family: str):
    return wrap(shared(family), None, name=family, verify=False)


def ids(n_batch: int = 2, n: int = 9) -> torch.Tensor:
    return torch.randint(2, 211, (n_batch, n), generator=torch.Generator().manual_seed(n))


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everything(model) -> list[Site]:
    return [Site(name, layer) for layer in range(3) for name in NAMES if name in model.backend.sites]


def blocked(model):
    """The same door over a backend that must not be reached."""

    def never(*_):
        raise AssertionError("the model ran")

    backend = model.backend
    parts = {
        "forward": never,
        "dims": backend.dims,
        "sites": backend.sites,
        "device": backend.device,
        "name": backend.name,
    }
    return replace(model, backend=type("Blocked", (), parts)())


# what a pass gives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own_and_shapes_are_those_of_dims(family):
    model = of(family)
    seen = model.forward(ids(), capture=everything(model))
    assert torch.equal(seen.logits, shared(family)(ids()).logits)
    for site in everything(model):
        if site.name != "pattern":
            assert seen[site].shape == (2, 9, *model.dims.shape(site)), site
    assert model.dims.d_head == {"qwen3": 24, "gemma2": 24, "gemma3_text": 24}.get(family, 16), "fault_058"


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_005_hidden_states_are_the_residuals_except_the_last_which_is_normed(family):
    hidden = twin(shared(family))(ids(), output_hidden_states=True).hidden_states
    model = of(family)
    seen = model.forward(ids(), capture=[*sites("resid_pre", range(3)), *sites("resid_post", range(3))])
    for layer in range(3):
        assert torch.equal(hidden[layer], seen[Site("resid_pre", layer)])
    for layer in range(2):
        assert torch.equal(hidden[layer + 1], seen[Site("resid_post", layer)])
    assert not torch.allclose(hidden[3], seen[READ_OUT], rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_060_the_residual_after_the_last_layer_unembeds_to_the_logits(family):
    seen = of(family).forward(ids(), capture=[READ_OUT])
    assert_close(of(family).unembed(seen[READ_OUT]), seen.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt_neox"])
def test_resid_mid_is_the_stream_between(family):
    mid, pre, attn, mlp, post = (
        Site(n, 1) for n in ("resid_mid", "resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    seen = of(family).forward(ids(), capture=[mid, pre, attn, mlp, post])
    assert torch.equal(seen[mid], seen[pre] + seen[attn])
    assert_close(seen[mid] + seen[mlp], seen[post], atol=1e-5, rtol=1e-5)
    alone = of(family).forward(ids(), capture=[mid])
    assert list(alone.values) == [mid] and torch.equal(alone[mid], seen[mid])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WRITABLE)
def test_fault_073_two_cached_chunks_are_one_pass(family, name):
    model = of(family)
    site = Site(name, 1)
    edits = [
        Add(site, random(1, *model.dims.shape(site)), where=From(2)),
        ProjectOut(site, random(2, *model.dims.shape(site))),
    ]
    whole = model.forward(ids(), interventions=edits, capture=[READ_OUT, site])
    first = model.forward(ids()[:, :4], interventions=edits, capture=[READ_OUT, site], keep_cache=True)
    rest = model.forward(ids()[:, 4:], interventions=edits, capture=[READ_OUT, site], cache=first.state)
    for one, two in (
        (whole.logits, [first.logits, rest.logits]),
        *((whole[s], [first[s], rest[s]]) for s in (READ_OUT, site)),
    ):
        assert_close(torch.cat(two, 1), one, atol=4e-5 * float(one.abs().max()), rtol=0)
    assert tuple(a + b for a, b in zip(first.applied, rest.applied, strict=True)) == whole.applied == (14, 18)


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_049_050_padded_rows_are_what_they_are_alone(family):
    """The padding id is one that the rows hold too: realness comes from lengths, never from an id."""
    model, rows = of(family), [ids()[0, :5], ids()[1, :9], ids()[0, :1]]
    padded = torch.full((3, 9), int(ids()[0, 0]))
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    edit = Add(Site("resid_post", 0), random(3, 64))
    wanted = [READ_OUT, Site("pattern", 2)]
    seen = model.forward(
        padded, lengths=[5, 9, 1], capture=wanted, interventions=[edit], positions=[-1], logits_at=[-1, 0]
    )
    assert seen.applied == (15,)
    for i, row in enumerate(rows):
        alone = model.forward(
            row[None], capture=wanted, interventions=[edit], positions=[-1], logits_at=[-1, 0]
        )
        assert_close(seen.logits[i], alone.logits[0], atol=1e-4, rtol=1e-4)
        assert_close(seen[READ_OUT][i], alone[READ_OUT][0], atol=1e-4, rtol=1e-4)
        assert_close(
            seen[Site("pattern", 2)][i][..., : len(row)], alone[Site("pattern", 2)][0], atol=1e-5, rtol=0
        )


def test_positions_are_sliced_at_the_hook_and_minus_one_is_each_rows_last(model):
    whole = model.forward(ids(), capture=everything(model))
    some = model.forward(ids(), capture=everything(model), positions=[0, 4, -1], lengths=[9, 6])
    per_row = model.forward(ids(), capture=[READ_OUT], positions=torch.tensor([[2, -1], [0, 1]]))
    for site in everything(model):
        if site.name != "pattern":
            assert_close(some[site][0], whole[site][0, [0, 4, 8]], atol=1e-5, rtol=1e-5)
            assert_close(some[site][1], whole[site][1, [0, 4, 5]], atol=1e-5, rtol=1e-5)
            assert some[site].untyped_storage().nbytes() == some[site].nbytes, (
                "no larger tensor is kept alive"
            )
    assert torch.equal(per_row[READ_OUT][0], whole[READ_OUT][0, [2, 8]])
    assert torch.equal(per_row[READ_OUT][1], whole[READ_OUT][1, [0, 1]])
    assert model.forward(ids(), capture=[READ_OUT], positions=[]).values[READ_OUT].shape == (2, 0, 64)
    numpy = model.forward(ids(), capture=[READ_OUT], positions=list(np.array([2, 8])))
    assert torch.equal(numpy[READ_OUT], whole[READ_OUT][:, [2, 8]])


def test_logits_at_gives_those_rows_and_none_computes_none(model):
    whole = model.forward(ids()).logits
    assert_close(model.forward(ids(), logits_at=[3, -1]).logits, whole[:, [3, 8]], atol=1e-5, rtol=1e-5)
    calls = []
    handle = model.backend.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        nothing = model.forward(ids(), capture=[READ_OUT], logits_at=())
    finally:
        handle.remove()
    assert nothing.logits is None and not calls
    assert torch.equal(nothing[READ_OUT], model.forward(ids(), capture=[READ_OUT])[READ_OUT])


def test_stop_after_runs_no_later_layer(model):
    ran = []
    handles = [
        b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(model.backend.layers)
    ]
    try:
        seen = model.forward(ids(), capture=[Site("resid_post", 1), Site("pattern", 0)], stop_after=1)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1] and seen.logits is None
    assert torch.equal(
        seen[Site("resid_post", 1)],
        model.forward(ids(), capture=[Site("resid_post", 1)])[Site("resid_post", 1)],
    )
    with pytest.raises(KeyError, match="was not captured"):
        seen[READ_OUT]


def test_fault_026_captured_tensors_are_copies_that_can_be_edited(model):
    before = model.forward(ids()).logits
    assert not before.requires_grad
    seen = model.forward(ids(), capture=everything(model), positions=None)
    stored = [t.untyped_storage().data_ptr() for t in seen.values.values()]
    assert len(set(stored)) == len(stored)
    for value in seen.values.values():
        value.mul_(0)
    weights = {p.untyped_storage().data_ptr() for p in model.backend.model.parameters()}
    assert not weights & set(stored) and torch.equal(model.forward(ids()).logits, before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "granite", "bloom"])
def test_applied_counts_the_rows_that_were_changed(family):
    model, site = of(family), Site("attn_out", 1)
    v = random(0, 64)
    edits = [
        Add(site, v),
        Add(site, v, where=At((0, 3))),
        Add(site, v, where=From(5), batch_rows=(1,)),
        Add(site, v, where=Newest()),
        Add(site, v, where=Generated()),
        Add(site, v, strength=0.0),
        Add(site, v, strength=torch.tensor([0.0, 1.0])),
    ]
    assert model.forward(ids(), interventions=edits).applied == (18, 4, 4, 2, 2, 0, 9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WRITABLE)
def test_strength_zero_is_no_edit_and_a_site_replaced_by_itself_changes_nothing(family, name):
    model, site = of(family), Site(name, 1)
    before = model.forward(ids(1), capture=[site])
    off = model.forward(ids(1), interventions=[Add(site, random(0, *model.dims.shape(site)), strength=0.0)])
    assert torch.equal(off.logits, before.logits) and off.applied == (0,)
    values = [Replace(site, before[site][0, t], where=At((t,))) for t in range(9)]
    same = model.forward(ids(1), interventions=values)
    assert_close(same.logits, before.logits, atol=1e-5, rtol=1e-5)


def test_edits_at_one_site_compose_in_order_and_capture_sees_the_result(model):
    site = Site("resid_post", 1)
    v = random(0, 64)
    seen = model.forward(ids(), capture=[site], interventions=[ProjectOut(site, v), Add(site, v)])
    assert_close(seen[site] @ v, torch.full((2, 9), float(v @ v)), rtol=1e-3, atol=0)
    seen = model.forward(ids(), capture=[site], interventions=[Add(site, v), ProjectOut(site, v)])
    assert_close(seen[site] @ v, torch.zeros(2, 9), atol=1e-3, rtol=0)


def test_stack_is_by_layer_whatever_the_order_asked(model):
    seen = model.forward(ids(), capture=sites("resid_post", [2, 0, 1]))
    assert torch.equal(seen.stack("resid_post")[2], seen[READ_OUT]) and list(seen.values)[0] == READ_OUT
    with pytest.raises(KeyError, match="no z was captured"):
        seen.stack("z")


def test_a_branch_of_a_cache_is_its_own(model):
    state = model.forward(ids()[:, :6], keep_cache=True).state
    branch = state.select(torch.tensor([1, 1, 0]))
    one = model.forward(ids()[:, 6:], cache=state).logits
    three = model.forward(ids()[[1, 1, 0], 6:], cache=branch).logits
    assert_close(three, one[[1, 1, 0]], atol=1e-5, rtol=1e-5)


# bad input --------------------------------------------------------------------------------------------------

V = torch.ones(64)


@pytest.mark.parametrize(
    "arguments,kind,says",
    [
        ({"capture": [Site("resid_post", 3)]}, IndexError, r"tiny has layers 0\.\.2; there is no resid_post"),
        ({"capture": [Site("resid_post", -1)]}, IndexError, r"0\.\.2; there is no resid_post of layer -1"),
        ({"interventions": [Add(Site("resid_post", 30), V)]}, IndexError, "no resid_post of layer 30"),
        ({"capture": ["resid_post"]}, TypeError, r"write Site\(name, layer\)"),
        ({"interventions": [Add(READ_OUT, torch.ones(32))]}, ValueError, r"\(32,\).*\(64,\)"),
        ({"interventions": [Add(READ_OUT, torch.ones(3, 64))]}, ValueError, "index it with a layer"),
        ({"interventions": [Add(READ_OUT, V * float("nan"))]}, ValueError, "NaN"),
        ({"interventions": [ProjectOut(READ_OUT, V * 0)]}, ValueError, "norm zero"),
        ({"interventions": [Add(READ_OUT, V, strength=float("nan"))]}, ValueError, "finite"),
        ({"interventions": [Add(Site("resid_mid", 1), V)]}, ValueError, "add at attn_out"),
        ({"interventions": [Add(Site("pattern", 1), V)]}, ValueError, "can be read, not written"),
        ({"interventions": ["add"]}, TypeError, "is no intervention"),
        ({"interventions": [Add(READ_OUT, V, where=At((9,)))]}, IndexError, r"9; the tokens of row 0"),
        ({"interventions": [Add(READ_OUT, V, where=At((-1,)))]}, IndexError, "position -1"),
        ({"interventions": [Add(READ_OUT, V, where=At((1.0,)))]}, TypeError, "must be an integer, not 1.0"),
        ({"interventions": [Add(READ_OUT, V, where=From(-2))]}, IndexError, "position -2"),
        ({"interventions": [Add(READ_OUT, V, where=At((6,)))], "lengths": [9, 6]}, IndexError, "row 1"),
        ({"positions": [9]}, IndexError, r"\[9\] are not all in row 0, whose tokens here are at 0\.\.8"),
        ({"positions": [-2]}, IndexError, "-2"),
        ({"positions": [6], "lengths": [9, 6]}, IndexError, r"row 1, whose tokens here are at 0\.\.5"),
        ({"logits_at": [9]}, IndexError, r"logits_at \[9\]"),
        ({"positions": [True]}, TypeError, "must be an integer"),
        ({"positions": 3}, TypeError, "a list of positions"),
        ({"positions": "all"}, TypeError, "a list of positions"),
        ({"positions": torch.tensor([1.7])}, ValueError, "whole numbers"),
        ({"positions": torch.tensor(3)}, ValueError, r"shape \[k\]"),
        ({"positions": torch.zeros(3, 2, dtype=torch.long)}, ValueError, r"\[2, k\]"),
        ({"lengths": [9]}, ValueError, "one for each row"),
        ({"lengths": [9, 0]}, ValueError, "lengths"),
        ({"lengths": [9, 10]}, ValueError, r"1\.\.9"),
        ({"lengths": [9, 2.5]}, TypeError, "a length must be an integer"),
        ({"stop_after": 3}, IndexError, "0..2"),
        ({"stop_after": -1}, IndexError, "0..2|stop_after=-1"),
        ({"stop_after": True}, TypeError, "must be an integer"),
        ({"stop_after": 0, "capture": [READ_OUT]}, ValueError, "ends the pass before resid_post of layer 2"),
        ({"stop_after": 0, "interventions": [Add(READ_OUT, V)]}, ValueError, "ends the pass before"),
        ({"stop_after": 0, "keep_cache": True}, ValueError, "layers above would miss"),
        ({"stop_after": 0, "logits_at": [-1]}, ValueError, "leave logits_at out"),
        ({"keep_cache": True, "lengths": [9, 6]}, ValueError, "cannot go on after right padding"),
        ({"keep_cache": True, "lengths": [6, 6]}, ValueError, "cannot go on after right padding"),
        ({"tokens": torch.zeros(2, 0, dtype=torch.long)}, ValueError, "holds no tokens"),
        ({"tokens": torch.tensor([1, 2])}, TypeError, r"\[batch, position\], not torch.int64 \(2,\)"),
        ({"tokens": torch.ones(1, 3)}, TypeError, "not torch.float32"),
        ({"tokens": torch.ones(1, 3, dtype=torch.bool)}, TypeError, "not torch.bool"),
        ({"tokens": [[1, 2]]}, TypeError, "not list"),
        ({"tokens": torch.tensor([[1, 211]])}, ValueError, r"ids 0\.\.210; the tokens hold 211"),
        ({"tokens": torch.tensor([[1, -100]])}, ValueError, "the tokens hold -100"),
        ({"tokens": torch.ones(1, 161, dtype=torch.long)}, ValueError, "160 positions; 161 were given"),
    ],
)  # fmt: skip
def test_fault_001_to_018_027_047_048_requests_are_refused_before_compute(model, arguments, kind, says):
    call = {"tokens": ids()} | arguments
    with pytest.raises(kind, match=says):
        blocked(model).forward(call.pop("tokens"), **call)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_fault_003_ids_of_any_integer_type_are_ids(model, dtype):
    assert torch.equal(model.forward(ids().to(dtype)).logits, model.forward(ids()).logits)


def test_fault_020_the_same_edit_twice_is_refused_and_two_alike_add_up(model):
    edit = Add(READ_OUT, random(0, 64))
    with pytest.raises(ValueError, match="given twice"):
        model.forward(ids(), interventions=[edit, edit])
    twice = model.forward(ids(), interventions=[edit, replace(edit)]).logits
    assert_close(
        twice, model.forward(ids(), interventions=[replace(edit, strength=2.0)]).logits, atol=1e-4, rtol=1e-4
    )


def test_fault_024_a_parallel_block_says_that_it_has_no_resid_mid():
    with pytest.raises(
        ValueError, match="no resid_mid: it adds attention and MLP in parallel.*it has resid_pre"
    ):
        of("gpt_neox").forward(ids(), capture=[Site("resid_mid", 1)])
    with pytest.raises(ValueError, match="no q_rot: it has no rotary"):
        of("gpt2").forward(ids(), capture=[Site("q_rot", 1)])


def test_a_cache_is_used_up_once_and_fits_its_rows(model):
    state = model.forward(ids()[:, :4], keep_cache=True).state
    model.forward(ids()[:, 4:6], cache=state)
    with pytest.raises(ValueError, match="used up by a later pass"):
        model.forward(ids()[:, 4:6], cache=state)
    fresh = model.forward(ids()[:, :4], keep_cache=True).state
    with pytest.raises(ValueError, match="the cache holds 2 rows, the tokens 1"):
        model.forward(ids()[:1, 4:], cache=fresh)
    with pytest.raises(ValueError, match="context of 160"):
        model.forward(torch.ones(2, 157, dtype=torch.long), cache=fresh)
    with pytest.raises(IndexError, match=r"at 4\.\.8"):
        model.forward(ids()[:, 4:], cache=fresh, capture=[READ_OUT], positions=[3])


@pytest.mark.parametrize("strength", [1e20, 3e38, -1e25])
@pytest.mark.parametrize("name", ["resid_pre", "resid_post", "attn_out"])
def test_fault_011_a_strength_beyond_fp32_squares_is_an_error_not_garbage(model, strength, name):
    with pytest.raises(FloatingPointError, match="use a smaller strength"):
        model.forward(ids(), interventions=[Add(Site(name, 1), random(0, 64), strength=strength)])
    assert (
        model.forward(ids(), interventions=[Add(Site(name, 1), random(0, 64), strength=1e4)])
        .logits.isfinite()
        .all()
    )


def test_fault_011_an_overflow_at_a_row_that_is_not_the_last_is_seen(model):
    huge = Add(READ_OUT, random(0, 64), where=At((2,)), strength=1e25)
    for options in ({}, {"logits_at": ()}, {"logits_at": [-1]}, {"lengths": [9, 5]}):
        with pytest.raises(FloatingPointError):
            model.forward(ids(), interventions=[huge], **options)


@pytest.mark.parametrize("backend", ["transformers", *BACKENDS])
@pytest.mark.parametrize("name", ["resid_pre", "resid_post"])
def test_fault_011_a_vector_ten_times_as_long_as_the_stream_is_warned_of_with_the_ratio(backend, name):
    model = wrap(tiny("llama"), None, backend=backend, verify=False)
    site, where = Site(name, 1), At((2, 5))
    stream = model.forward(ids(), capture=[site], positions=[2, 5])[site].norm(dim=-1).median()
    unit = torch.nn.functional.normalize(random(0, 64), dim=0)
    edit = Add(site, unit * stream, where=where, strength=-37.0)
    with pytest.warns(UserWarning, match=f"added at {name} of layer 1 is 37 times as long") as said:
        model.forward(ids(), interventions=[edit])
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.forward(ids(), interventions=[replace(edit, strength=9.9)])


def test_fault_011_the_longest_of_a_batch_and_of_a_schedule_counts_where_it_acts(model):
    stream = model.forward(ids(), capture=[READ_OUT])[READ_OUT].norm(dim=-1).median()
    unit = torch.nn.functional.normalize(random(0, 64), dim=0)
    strengths = torch.tensor([1.0, 50.0])
    for options, ratio in (
        ({"strength": strengths}, 50),
        ({"strength": strengths, "batch_rows": (0,)}, None),
        ({"strength": 4.0, "schedule": Ramp(3, start=0.5, end=5.0)}, 20),
        ({"strength": 20.0, "schedule": FirstN(0)}, None),
    ):
        edit = Add(READ_OUT, unit * stream, **options)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.forward(ids(), interventions=[edit])
        assert [f"is {ratio} times" in str(w.message) for w in said] == [True] * (ratio is not None), options


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype,fits,beyond", [(torch.float16, 1e3, 1e5), (torch.bfloat16, 1e5, 1e25)])
def test_fault_012_the_limit_is_that_of_the_dtype(family, dtype, fits, beyond):
    model = wrap(tiny(family).to(dtype), None, verify=False)
    unit = torch.ones(64)
    unit[::2] = -1.0
    ok = model.forward(ids(), interventions=[Add(READ_OUT, unit, strength=fits)])
    assert ok.logits.isfinite().all() and ok.logits.dtype == dtype
    with pytest.raises(FloatingPointError, match="smaller strength"):
        model.forward(ids(), interventions=[Add(READ_OUT, unit, strength=beyond)])


def test_fault_022_a_function_of_the_wrong_shape_is_refused_at_the_hook(model):
    before = model.forward(ids()).logits
    with pytest.raises(ValueError, match=r"applied at resid_post of layer 1 must return \(18, 64\)"):
        model.forward(ids(), interventions=[Apply(Site("resid_post", 1), lambda x: x[0])])
    assert torch.equal(model.forward(ids()).logits, before)


def test_fault_074_logits_that_are_not_finite_are_an_error():
    hf_model = tiny("llama")
    model = wrap(hf_model, None)
    hf_model.lm_head.weight.data[3] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        model.forward(ids())


# the user's object ------------------------------------------------------------------------------------------


def fingerprint(hf_model: nn.Module) -> list:
    hooks = [
        (
            name,
            list(m._forward_hooks.values()),
            list(m._forward_pre_hooks.values()),
            type(m),
            m.training,
            m.forward,
        )
        for name, m in hf_model.named_modules()
    ]
    return [hooks, hf_model.config.to_dict(), [(p.data_ptr(), p._version) for p in hf_model.parameters()]]


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_019_an_exception_in_mid_pass_leaves_the_model_as_it_was(family):
    hf_model = tiny(family)
    model = wrap(hf_model, None)
    before, logits = fingerprint(hf_model), hf_model(ids()).logits

    def fail(_):
        raise KeyboardInterrupt

    for name in WRITABLE:
        with pytest.raises(KeyboardInterrupt):
            model.forward(
                ids(), capture=everything(model), interventions=[Apply(Site(name, 1), fail)], logits_at=[-1]
            )
        assert fingerprint(hf_model) == before
    assert torch.equal(model.forward(ids()).logits, logits) and torch.equal(hf_model(ids()).logits, logits)


def test_the_users_hooks_stay_and_run():
    hf_model = tiny("llama")
    seen = []
    handle = hf_model.model.layers[1].register_forward_hook(lambda m, a, out: seen.append(1) or out * 2)
    expected = hf_model(ids()).logits
    model = wrap(hf_model, None, verify=False)
    before = fingerprint(hf_model)
    assert torch.equal(model.forward(ids(), capture=everything(model)).logits, expected)
    assert fingerprint(hf_model) == before and len(seen) == 2
    handle.remove()


def test_fault_025_train_mode_is_restored_module_by_module_and_dropout_is_off():
    from transformers import AutoModelForCausalLM

    chosen = config("gpt2")
    chosen.resid_pdrop = chosen.embd_pdrop = chosen.attn_pdrop = 0.5
    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(chosen).train()
    hf_model.transformer.h[1].eval()
    modes = {name: m.training for name, m in hf_model.named_modules()}
    model = wrap(hf_model, None)
    assert "train() mode" in " ".join(model.notes)
    first, second = (model.forward(ids(), capture=everything(model)).logits for _ in range(2))
    assert torch.equal(first, second)
    assert {name: m.training for name, m in hf_model.named_modules()} == modes
    with pytest.raises(ZeroDivisionError):
        model.forward(ids(), interventions=[Apply(READ_OUT, lambda x: 1 / 0)])
    assert {name: m.training for name, m in hf_model.named_modules()} == modes


def test_fault_061_tied_embeddings_stay_tied_and_unembedding_copies():
    hf_model = tiny("gemma2")
    assert hf_model.lm_head.weight.data_ptr() == hf_model.model.embed_tokens.weight.data_ptr()
    model = wrap(hf_model, None)
    before = hf_model.lm_head.weight.clone()
    model.unembed(model.forward(ids(), capture=[READ_OUT])[READ_OUT]).mul_(0)
    model.forward(ids(), capture=[Site("resid_pre", 0)])[Site("resid_pre", 0)].mul_(0)
    assert hf_model.lm_head.weight.data_ptr() == hf_model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(hf_model.lm_head.weight, before)


def test_fault_021_two_threads_take_turns_on_one_model():
    """The first thread is held in the middle of an edited pass; the second, by another `Model`, waits."""
    hf_model = tiny("llama")
    one, two = wrap(hf_model, None), wrap(hf_model, None)
    natural = two.forward(ids()).logits
    inside, go, order, found = threading.Event(), threading.Event(), [], {}

    def hold(x):
        inside.set()
        assert go.wait(30)
        order.append("first is done")
        return x + 5

    def first():
        found["first"] = one.forward(ids(), interventions=[Apply(Site("resid_post", 0), hold)]).logits

    def second():
        found["second"] = two.forward(ids()).logits
        order.append("second is done")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive(), "the second pass waits"
    go.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first is done", "second is done"]
    assert torch.equal(found["second"], natural) and not torch.allclose(found["first"], natural)


def test_fault_021_many_threads_get_what_they_get_alone(model):
    vectors = [random(i, 64) * i for i in range(6)]
    alone = [model.forward(ids(), interventions=[Add(Site("resid_post", 0), v)]).logits for v in vectors]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(4):
            found[i] = model.forward(ids(), interventions=[Add(Site("resid_post", 0), vectors[i])]).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(found[i], alone[i]) for i in range(6))


def test_a_pass_inside_a_pass_is_refused(model):
    def again(x):
        return model.forward(ids(), capture=[READ_OUT])[READ_OUT].flatten(0, 1)

    with pytest.raises(RuntimeError, match="in the middle of a pass"):
        model.forward(ids(), interventions=[Apply(Site("resid_post", 0), again)])
    assert model.forward(ids()).logits.isfinite().all()


# models at the door -----------------------------------------------------------------------------------------


def test_fault_067_wrapped_models_are_refused_or_their_hooks_are_seen_to_run():
    with pytest.raises(ValueError, match="wrapped in DataParallel"):
        wrap(nn.DataParallel(tiny("llama")), None)
    with pytest.raises(ValueError, match="wrapped in OptimizedModule"):
        wrap(torch.compile(tiny("llama")), None)  # type: ignore[arg-type]


def test_fault_067_modules_compiled_in_place_are_refused():
    hf_model = tiny("llama")
    hf_model.model.layers[1].compile()
    with pytest.raises(ValueError, match="compiled"):
        wrap(hf_model, None)


def test_fault_066_a_model_without_weights_is_refused():
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config("llama"))
    with pytest.raises(ValueError, match="meta device"):
        wrap(empty, None)


def test_a_model_whose_weights_are_offloaded_is_refused_by_that_name():
    from accelerate import cpu_offload

    offloaded = cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="weights are offloaded to CPU or disk, .*embed_tokens.weight"):
        wrap(offloaded, None)


def test_a_site_that_a_backend_skips_is_an_error(model):
    """What was applied is counted against what was asked."""
    backend = model.backend

    class Deaf:
        def __getattr__(self, name):
            return getattr(backend, name)

        def forward(self, request, recorder):
            return backend.forward(
                replace(request, interventions=()), type(recorder)(replace(request, interventions=()))
            )

    with pytest.raises(RuntimeError, match="asked for 18 rows and acted on 0"):
        replace(model, backend=Deaf()).forward(ids(), interventions=[Add(READ_OUT, V, where=Everywhere())])


def test_fault_072_batches_change_logits_by_rounding_only(model):
    batch = ids(8)
    together = model.forward(batch).logits
    for i in range(8):
        assert_close(model.forward(batch[i : i + 1]).logits[0], together[i], atol=2e-4, rtol=1e-4)


@pytest.mark.real
def test_the_real_model_through_the_door_is_itself(real, real_hf):
    tokens = real.chat("What is the sea?").tokens
    seen = real.forward(tokens, capture=[Site("resid_post", 13), Site("resid_post", 29)], logits_at=[-1])
    own = twin(real_hf)(tokens, output_hidden_states=True)  # asked for these, transformers leaves hooks on
    assert_close(seen.logits[0, -1], own.logits[0, -1], atol=1e-4, rtol=1e-4)
    assert torch.equal(seen[Site("resid_post", 13)], own.hidden_states[14])
    assert not torch.allclose(seen[Site("resid_post", 29)], own.hidden_states[30], rtol=1e-2), (
        "that one is normed"
    )


@pytest.mark.real
def test_a_system_text_goes_before_the_question_where_there_is_no_system_role(real):
    merged = real.chat("Why is the sky blue?", system="You are a bard.", system_role="prepend_user")

    def said(region: str) -> str:
        return real.decode(merged.tokens[0, merged.segmentation.positions(region)])

    assert said("system") == "You are a bard.\n\n"
    assert "Why is the sky blue?" in said("user") and "bard" not in said("user")
    assert "SmolLM" in said("system_default") and "SmolLM" not in said("user")
