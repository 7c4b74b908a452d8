"""Attention that is forbidden is zero, the rest of the row is its natural share, and nothing else changes."""

# pyright: reportCallIssue=false

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mechinterp.activations import State
from mechinterp.backends import masks
from mechinterp.backends.hf import GrowingLayer, KeyValues
from mechinterp.interventions import Apply, At, Replace
from mechinterp.knockout import KnockOut
from mechinterp.loading import wrap
from mechinterp.model import Model
from mechinterp.sites import Site, sites
from tests.architectures import FAMILIES, shared, tiny
from tests.passes import GATE, TOKENS, each_pair, made, reference, relative

PATTERNS = sites("pattern", range(3))
T = TOKENS.shape[1]
SOME = (
    KnockOut((0, 2), (5, 9, -1), (1, 2, 4)),
    KnockOut((1, 2), (7,), range(3), heads=(1, 3)),
    KnockOut((1,), (12,), (11, 12), batch_rows=(1,)),
)


@cache
def model(family: str) -> Model:
    return wrap(shared(family), None, verify=False)


def other(family: str, kind: str) -> Model:
    return Model("tiny", made(family, kind), None, "")


def hidden(knockouts: tuple[KnockOut, ...], layer: int) -> torch.Tensor:
    """[batch, head, query, key], written out place by place."""
    found = torch.zeros(2, 4, T, T, dtype=torch.bool)
    for k in knockouts:
        for batch in (0, 1) if k.batch_rows is None else k.batch_rows:
            for head in range(4) if k.heads is None else k.heads:
                for row in k.rows:
                    for key in k.keys:
                        found[batch, head, row, key] |= layer in k.layers
    return found


def mixed(pattern: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


# against naive computation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_is_the_natural_pattern_renormalised_over_what_is_left(family):
    """Down to the logits: the same pass with that layer's z put in its place gives the same."""
    knockouts = (KnockOut((1,), (5, -1), (0, 2, 3)), KnockOut((1,), (9,), (8, 9), heads=(0, 2)))
    z, v, pattern = Site("z", 1), Site("v", 1), Site("pattern", 1)
    natural = model(family).forward(TOKENS, capture=[v, pattern])
    left = natural[pattern].masked_fill(hidden(knockouts, 1), 0)
    expected = mixed(left / left.sum(-1, keepdim=True), natural[v])
    found = model(family).forward(TOKENS, capture=[z, v, pattern], knockouts=knockouts)
    assert_close(found[pattern], left / left.sum(-1, keepdim=True), atol=2e-6, rtol=0)
    assert relative(found[z], expected) < GATE
    put = [Replace(z, expected[:, row], where=At((row,))) for row in range(T)]
    replaced = model(family).forward(TOKENS, interventions=put)
    assert relative(found.logits, replaced.logits) < GATE  # type: ignore
    assert relative(found.logits, natural.logits if natural.logits is not None else TOKENS) > 100 * GATE  # type: ignore


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "bloom"])
def test_several_layers_are_an_explicit_softmax_with_minus_infinity_there(family):
    names = ("q", "k") if family == "gpt2" else ("q_rot", "k_rot")
    wanted = [Site(n, layer) for layer in range(3) for n in (*names, "v", "z", "pattern")]  # type: ignore
    seen = model(family).forward(TOKENS, capture=wanted, knockouts=SOME)
    config, dims = model(family).backend.config, model(family).dims  # type: ignore
    for layer in range(3):
        q, k = (seen[Site(n, layer)].double() for n in names)  # type: ignore
        k = k.repeat_interleave(dims.n_heads // dims.n_kv_heads, dim=2)
        attention = model(family).backend.attentions[layer]  # type: ignore
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
        scores *= dims.d_head**-0.5 if family == "gpt2" else attention.scaling
        if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
            scores = torch.tanh(scores / cap) * cap
        window = (dims.windows[layer] if dims.windows else None) or T
        unseen = ~torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
        pattern = scores.masked_fill(unseen | hidden(SOME, layer), -torch.inf).softmax(-1)
        assert_close(seen[Site("pattern", layer)], pattern.float(), atol=2e-6, rtol=0)
        assert (
            relative(seen[Site("z", layer)], mixed(pattern, seen[Site("v", layer)].double()).float()) < GATE
        )


@each_pair
def test_every_backend_gives_the_same(family: str, kind: str):
    wanted = [*PATTERNS, *sites("z", range(3)), *sites("resid_post", range(3))]
    expected = model(family).forward(TOKENS, capture=wanted, knockouts=SOME)
    found = other(family, kind).forward(TOKENS, capture=wanted, knockouts=SOME)
    assert relative(found.logits, expected.logits) <= GATE  # type: ignore
    for site in wanted:
        assert relative(found[site], expected[site]) <= GATE, site
    for layer, site in enumerate(PATTERNS):
        assert found[site][hidden(SOME, layer)].eq(0).all()
        assert_close(found[site].sum(-1), torch.ones(2, 4, T), atol=2e-6, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "gpt_neox"])
def test_kernels_agree(family):
    """A bool mask, an additive one, and none at all, where the kernel is left its causal fast path."""
    eager = tiny(family)
    eager.set_attn_implementation("eager")
    found = wrap(eager, None, verify=False).forward(TOKENS, knockouts=SOME).logits
    expected = model(family).forward(TOKENS, knockouts=SOME).logits
    assert relative(found, expected) <= GATE  # type: ignore


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_a_mask_is_narrowed_whatever_its_form(dtype):
    forbidden = torch.zeros(2, 3, 2, 5, dtype=torch.bool)
    forbidden[1, 2, 0, 1] = True
    lower = torch.ones(2, 5, dtype=torch.bool).tril(3)
    expected = lower & ~forbidden
    given = lower[None, None] if dtype == torch.bool else torch.where(lower, 0.0, -1e30).to(dtype)[None, None]
    for mask in (None, given):
        found = masks.narrowed(mask, forbidden, dtype)
        seen = found if dtype == torch.bool else found == 0
        assert found.dtype == dtype and torch.equal(seen.expand(2, 3, 2, 5), expected)


# what it means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_position_that_no_later_row_may_see_cannot_reach_one(family):
    """Another token there changes every later row, and none once every layer is cut."""
    cut = [KnockOut(range(3), range(5, T), (4,))]
    changed = TOKENS.clone()
    changed[:, 4] = (changed[:, 4] + 50) % 200
    (a, b), (free_a, free_b) = (
        [model(family).forward(tokens, knockouts=k).logits for tokens in (TOKENS, changed)] for k in (cut, ())
    )
    assert_close(a[:, 5:], b[:, 5:], atol=1e-6, rtol=1e-6)  # type: ignore
    assert torch.equal(a[:, :4], b[:, :4])  # type: ignore
    for at in range(4, T):
        assert relative(free_a[:, at], free_b[:, at]) > 100 * GATE  # type: ignore
    assert relative(a[:, 4], b[:, 4]) > 100 * GATE  # type: ignore


def test_only_the_named_heads_layers_rows_and_sequences_are_cut():
    knockout = KnockOut((1,), (9,), (2, 3), heads=(2,), batch_rows=(1,))
    natural, cut = (model("llama").forward(TOKENS, capture=PATTERNS, knockouts=k) for k in ((), (knockout,)))
    assert torch.equal(natural[PATTERNS[0]], cut[PATTERNS[0]])
    same = (natural[PATTERNS[1]] - cut[PATTERNS[1]]).abs().amax(-1) < 1e-6
    expected = torch.ones(2, 4, T, dtype=torch.bool)
    expected[1, 2, 9] = False
    assert torch.equal(same, expected)
    assert_close(natural.logits[0], cut.logits[0])  # type: ignore
    assert_close(natural.logits[1, :9], cut.logits[1, :9])  # type: ignore
    assert relative(natural.logits[1, 9:], cut.logits[1, 9:]) > 100 * GATE  # type: ignore


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom"])
def test_forbidding_what_no_row_sees_changes_no_bit(family):
    later = KnockOut(range(3), (2, 5), (6, 13))
    nothing = [later, KnockOut((0,), (13,), range(5))] if family == "mistral" else [later]
    natural = model(family).forward(TOKENS).logits
    assert torch.equal(model(family).forward(TOKENS, knockouts=nothing).logits, natural)  # type: ignore
    assert torch.equal(model(family).forward(TOKENS, knockouts=()).logits, natural)  # type: ignore


def test_knock_outs_add_up():
    one = (KnockOut((1,), (9,), (2, 3)), KnockOut((1,), (9, 10), (3, 4)))
    both = model("llama").forward(TOKENS, capture=PATTERNS, knockouts=one)
    zero = both[PATTERNS[1]].eq(0) & torch.ones(T, T, dtype=torch.bool).tril()
    assert torch.equal(zero, hidden(one, 1))


def test_places_may_be_ranges_and_tensors_and_equal_ones_are_equal():
    a = KnockOut(range(2), torch.tensor([3, 4]), [1, 2], heads=range(1))
    assert a == KnockOut((0, 1), (3, 4), torch.tensor([1, 2]), heads=(0,)) and a.keys == (1, 2)


# chunks, padding --------------------------------------------------------------------------------------------

PLACED = (
    KnockOut((0, 2), (5, 9, 13), (1, 2, 4)),
    KnockOut((1, 2), (3, 7, 12), range(3), heads=(1, 3)),
    KnockOut((1,), (12,), (11, 12), batch_rows=(1,)),
)


def within(knockouts: tuple[KnockOut, ...], start: int, end: int) -> list[KnockOut]:
    """Those that act in a chunk. Rows that are computed already stay in: they are left alone."""
    return [
        replace(k, rows=[r for r in k.rows if r < end], keys=[p for p in k.keys if p < end])
        for k in knockouts
        if any(start <= r < end for r in k.rows)
    ]


@each_pair
def test_cached_chunks_are_one_pass(family: str, kind: str):
    whole = model(family).forward(TOKENS, capture=PATTERNS, knockouts=PLACED)
    state, found = None, []
    for start, end in ((0, 6), (6, 13), (13, 14)):
        seen = other(family, kind).forward(
            TOKENS[:, start:end], capture=PATTERNS, cache=state, keep_cache=True,
            knockouts=within(PLACED, start, end),
        )  # fmt: skip
        state = seen.state
        found.append(seen.logits)
        rows = whole.stack("pattern")[:, :, :, start:end, :end]
        assert relative(seen.stack("pattern"), rows) <= GATE
    assert relative(torch.cat(found, 1), whole.logits) <= GATE  # type: ignore


@pytest.mark.parametrize("kind", ["transformers", "nnsight", "transformer_bridge", "hooked_transformer"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_left_padding_does_not_move_the_places(family, kind):
    padded = TOKENS.clone()
    padded[1, 5:] = TOKENS[1, :9]
    backend = reference(family) if kind == "transformers" else made(family, kind)
    if kind == "hooked_transformer":
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as KeyValueCache

        from mechinterp.backends.transformer_lens import HookedKeyValues

        empty: Any = HookedKeyValues(KeyValueCache.init_cache(backend.model.cfg, "cpu", 2))  # type: ignore
    else:
        empty = KeyValues([GrowingLayer() for _ in range(3)])
    state = State(empty, 0, torch.tensor([0, 5]), torch.tensor([T, 9]))
    knockouts = (KnockOut((0, 1), (4, 6), (1, 2)), KnockOut((2,), (-1,), (3,)))
    found = Model("tiny", backend, None, "").forward(
        padded, capture=PATTERNS, cache=state, knockouts=knockouts
    )
    alone = model(family).forward(TOKENS[1:, :9], capture=PATTERNS, knockouts=knockouts)
    rows = found.stack("pattern")[:, 1:, :, 5:, 5:]
    assert relative(rows, alone.stack("pattern")) <= GATE
    assert relative(found.logits[1:, 5:], alone.logits) <= GATE  # type: ignore


def test_right_padding_does_not_move_the_last_row():
    knockout = KnockOut((0, 1), (-1,), (1, 2))
    padded = model("llama").forward(TOKENS, lengths=[T, 9], knockouts=[knockout], logits_at=[-1])
    for row, n in enumerate((T, 9)):
        alone = model("llama").forward(TOKENS[row : row + 1, :n], knockouts=[knockout], logits_at=[-1])
        assert relative(padded.logits[row : row + 1], alone.logits) <= GATE  # type: ignore


# faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knockout", "error", "said"),
    [
        pytest.param(lambda: KnockOut((3,), (5,), (1,)), IndexError, "0..2", id="fault_001_layer"),
        pytest.param(lambda: KnockOut((-1,), (5,), (1,)), IndexError, "no layer -1", id="fault_002"),
        pytest.param(lambda: KnockOut((1.0,), (5,), (1,)), TypeError, "1.0", id="fault_003_float"),  # type: ignore
        pytest.param(lambda: KnockOut((True,), (5,), (1,)), TypeError, "True", id="fault_003_bool"),
        pytest.param(lambda: KnockOut("1", (5,), (1,)), TypeError, "'1'", id="fault_003_text"),  # type: ignore
        pytest.param(lambda: KnockOut((), (5,), (1,)), ValueError, "layers .* empty", id="fault_004_empty"),
        pytest.param(lambda: KnockOut((1, 1), (5,), (1,)), ValueError, "1 twice", id="fault_004_twice"),
        pytest.param(lambda: KnockOut((1,), (), (1,)), ValueError, "rows .* empty", id="no_rows"),
        pytest.param(lambda: KnockOut((1,), (5,), ()), ValueError, "keys .* empty", id="no_keys"),
        pytest.param(lambda: KnockOut((1,), 5, (1,)), TypeError, "a tuple", id="bare_number"),  # type: ignore
        pytest.param(lambda: KnockOut((1,), (14,), (1,)), IndexError, "0..13", id="fault_017_row"),
        pytest.param(lambda: KnockOut((1,), (5,), (-1,)), IndexError, "key -1", id="fault_017_key"),
        pytest.param(lambda: KnockOut((1,), (5,), (1,), heads=(4,)), IndexError, "0..3", id="head"),
        pytest.param(lambda: KnockOut((1,), (5,), (1,), batch_rows=(2,)), IndexError, "2 rows", id="batch"),
        pytest.param(lambda: KnockOut((1,), (5,), range(6)), ValueError, "position 5 .* layer 1", id="all"),
        pytest.param(lambda: Site("z", 1), TypeError, "no knock-out", id="no_knockout"),
    ],
)  # fmt: skip
def test_what_cannot_be_knocked_out_is_refused(knockout, error, said):
    with pytest.raises(error, match=said):
        model("llama").forward(TOKENS, knockouts=[knockout()])


def test_fault_018_a_position_on_padding_is_refused_and_batch_rows_limits_a_knock_out():
    with pytest.raises(IndexError, match="row 1 are at 0..8"):
        model("llama").forward(TOKENS, lengths=[T, 9], knockouts=[KnockOut((1,), (10,), (1,))])
    limited = KnockOut((1,), (10,), (1,), batch_rows=(0,))
    model("llama").forward(TOKENS, lengths=[T, 9], knockouts=[limited])


def test_fault_020_the_same_knock_out_twice_is_refused():
    twice = [KnockOut((1,), (5,), (1,)), KnockOut((1,), (5,), (1,))]
    with pytest.raises(ValueError, match="twice"):
        model("llama").forward(TOKENS, knockouts=twice)


def test_a_row_without_a_key_is_named_with_its_head_and_window():
    """Several knock-outs may leave a row nothing together, and a sliding window hides the older keys."""
    together = [KnockOut((2,), (3,), (0, 1), heads=(1,)), KnockOut((2,), (3,), (2, 3), heads=(1, 2))]
    with pytest.raises(ValueError, match=r"position 3 of batch row 0 no key in layer 2 \(head 1\)"):
        model("llama").forward(TOKENS, knockouts=together)
    with pytest.raises(ValueError, match="position 12 of batch row 0 no key in layer 0; leave it one"):
        model("mistral").forward(TOKENS, knockouts=[KnockOut((0,), (12,), range(5, 13))])
    model("mistral").forward(TOKENS, knockouts=[KnockOut((0,), (12,), range(5, 12))])


def test_rows_of_the_cached_prefix_and_layers_after_the_stop_are_refused():
    state = model("llama").forward(TOKENS[:, :9], keep_cache=True).state
    with pytest.raises(ValueError, match="cached prefix"):
        model("llama").forward(TOKENS[:, 9:], cache=state, knockouts=[KnockOut((1,), (8,), (1,))])
    with pytest.raises(ValueError, match="stop_after=0"):
        model("llama").forward(TOKENS, stop_after=0, knockouts=[KnockOut((1,), (8,), (1,))])


def test_a_kernel_that_takes_no_such_mask_is_refused_by_name():
    flex = tiny("llama")
    flex.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="'flex_attention' .* attn_implementation='sdpa'"):
        wrap(flex, None, verify=False).forward(TOKENS, knockouts=SOME)


def test_scores_that_a_library_shows_but_does_not_use_are_found_out():
    knocked = other("llama", "transformer_bridge")
    blind = torch.zeros(2, 4, T, T, dtype=torch.bool)
    blind[:, :, 5, 2] = True
    proving = masks._proving(blind, 1)
    with (
        pytest.raises(RuntimeError, match="layer 1"),
        knocked.backend.model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", proving)]),  # type: ignore
    ):
        knocked.forward(TOKENS)


@pytest.mark.parametrize("kind", ["transformers", "nnsight", "transformer_bridge"])
def test_fault_019_the_model_is_as_before_also_after_an_exception(kind):
    hf_model = tiny("llama")
    own = wrap(hf_model, None, verify=False)
    knocked = own if kind == "transformers" else other("llama", kind)
    inside = knocked.backend.model  # type: ignore
    before, hooks = knocked.forward(TOKENS).logits, n_hooks(inside)

    def fail(x):
        assert n_hooks(inside) > hooks
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        knocked.forward(TOKENS, knockouts=SOME, interventions=[Apply(Site("resid_post", 1), fail)])
    assert n_hooks(inside) == hooks
    knocked.forward(TOKENS, knockouts=SOME)
    assert n_hooks(inside) == hooks and torch.equal(knocked.forward(TOKENS).logits, before)  # type: ignore


def n_hooks(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
