"""gather: the same rows as a plain pass a prompt gives, in groups that never cost more than no sharing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mechinterp import gather as gathering
from mechinterp.backends.twin import twin
from mechinterp.gather import batches, gather, groups
from mechinterp.loading import wrap
from mechinterp.sites import Site
from tests.architectures import shared

FAMILIES = ["llama", "gpt2", "gemma2", "bloom"]  # rotary, learned, sliding and soft-capped, ALiBi
PREFIX = torch.arange(20, 40)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return wrap(shared(request.param), None, name=request.param)


@pytest.fixture(scope="module")
def llama():
    return wrap(shared("llama"), None, name="llama")


def drawn(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 211, (n,), generator=generator) for n in lengths]


def families_of_prompts() -> list[torch.Tensor]:
    """Long and short shared beginnings, one prompt inside another, one twice, some alone, in no order."""
    tails = drawn(3, 9, 1, 5, 30, 4, 7)
    inner = torch.cat([PREFIX[:12], tails[4]])
    return [
        torch.cat([PREFIX, tails[0]]),
        tails[4],
        torch.cat([PREFIX, tails[1]]),
        inner,
        torch.cat([inner, tails[3]]),
        PREFIX,
        torch.cat([PREFIX, tails[1]]),
        tails[2],
        torch.cat([PREFIX[:3], tails[6]]),
        torch.cat([PREFIX, tails[0], tails[5]]),
    ]


def naive(model, prompts, sites, positions):
    rows = []
    for ids, at in zip(prompts, positions, strict=True):
        seen = model.forward(ids[None], capture=sites, logits_at=())
        rows.append(torch.stack([seen[site][0, at].float().mean(0) for site in sites]))
    return torch.stack(rows)


def all_layers(model, *names):
    return [Site(name, layer) for name in names for layer in range(model.dims.n_layers)]


def last_of(prompts):
    return [torch.tensor([len(ids) - 1]) for ids in prompts]


def test_the_last_rows_of_prompts_that_share_beginnings_are_those_of_a_pass_each(model):
    prompts = families_of_prompts()
    sites = all_layers(model, "resid_pre", "attn_out", "mlp_out", "resid_post")
    got = gather(model, prompts, sites, last_of(prompts))
    assert got.shape == (len(prompts), len(sites), model.dims.d_model) and got.dtype == torch.float32
    assert_close(got, naive(model, prompts, sites, last_of(prompts)), atol=2e-5, rtol=1e-4)
    shared_rows = [
        g for g in groups([p.tolist() for p in prompts], [len(p) - 1 for p in prompts]) if g.prefix
    ]
    assert len(shared_rows) >= 1, "no prefix was shared, so nothing was tested"


@pytest.mark.parametrize(
    "positions_of",
    [
        pytest.param(lambda n: torch.arange(n // 2, n), id="means over the second half"),
        pytest.param(lambda n: torch.tensor([0, n - 1]), id="inside the shared beginning too"),
    ],
)
def test_means_over_positions_that_differ_between_prompts(model, positions_of):
    prompts = families_of_prompts()
    positions = [positions_of(len(ids)) for ids in prompts]
    sites = all_layers(model, "resid_post")
    got = gather(model, prompts, sites, positions)
    assert_close(got, naive(model, prompts, sites, positions), atol=2e-5, rtol=1e-4)


def test_resid_mid_is_the_sum_of_what_was_read(model):
    prompts = drawn(5, 8, 8)
    got = gather(
        model, prompts, [Site("resid_mid", 1), Site("resid_pre", 1), Site("attn_out", 1)], last_of(prompts)
    )
    assert_close(got[:, 0], got[:, 1] + got[:, 2])


def test_one_prompt_and_few_layers(model):
    prompts = drawn(6)
    sites = [Site("resid_post", 2), Site("resid_post", 0)]
    got = gather(model, prompts, sites, last_of(prompts))
    assert_close(got, naive(model, prompts, sites, last_of(prompts)), atol=2e-5, rtol=1e-4)


def test_sites_with_heads_keep_their_shape(llama):
    prompts = families_of_prompts()
    sites = all_layers(llama, "z")
    got = gather(llama, prompts, sites, last_of(prompts))
    assert got.shape[2:] == (llama.dims.n_heads, llama.dims.d_head)
    assert_close(got, naive(llama, prompts, sites, last_of(prompts)), atol=2e-5, rtol=1e-4)


def test_rows_do_not_depend_on_the_other_prompts_or_their_order(llama):
    prompts = families_of_prompts()
    sites = all_layers(llama, "resid_post")
    together = gather(llama, prompts, sites, last_of(prompts))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = [prompts[i] for i in order]
    assert_close(gather(llama, shuffled, sites, last_of(shuffled)), together[order], atol=2e-5, rtol=1e-4)


def test_many_small_passes_are_one_large_one(llama, monkeypatch):
    prompts = families_of_prompts()
    sites = all_layers(llama, "resid_post")
    at_once = gather(llama, prompts, sites, last_of(prompts))
    monkeypatch.setattr(gathering, "ROWS", 8)
    assert_close(gather(llama, prompts, sites, last_of(prompts)), at_once, atol=2e-5, rtol=1e-4)


def test_fault_005_resid_post_of_layer_l_is_hidden_state_l_plus_one(llama):
    prompts = drawn(7)
    hidden = twin(shared("llama"))(prompts[0][None], output_hidden_states=True).hidden_states
    got = gather(llama, prompts, all_layers(llama, "resid_post"), last_of(prompts))[0]
    for layer in range(llama.dims.n_layers - 1):  # the last hidden state is taken after the final norm
        assert_close(got[layer], hidden[layer + 1][0, -1], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(got[-1], hidden[-1][0, -1], atol=1e-2)


@pytest.mark.parametrize("layer", [3, -1])
def test_fault_001_fault_002_a_layer_that_is_not_there(llama, layer):
    with pytest.raises(IndexError, match="layers 0..2"):
        gather(llama, drawn(4), [Site("resid_post", layer)], [torch.tensor([3])])


@pytest.mark.parametrize("at", [[4], [-1], [0, 9]])
def test_fault_017_positions_outside_the_prompt(llama, at):
    with pytest.raises(IndexError, match="positions 0..3"):
        gather(llama, drawn(4), [Site("resid_post", 0)], [torch.tensor(at)])


def test_fault_027_empty_prompts_positions_and_lists_are_refused(llama):
    site, none = [Site("resid_post", 0)], torch.tensor([], dtype=torch.long)
    with pytest.raises(ValueError, match="no tokens"):
        gather(llama, [none], site, [torch.tensor([0])])
    with pytest.raises(ValueError, match="region empty"):
        gather(llama, drawn(4), site, [none])
    with pytest.raises(ValueError, match="at least one"):
        gather(llama, [], site, [])
    with pytest.raises(ValueError, match="2 prompts need"):
        gather(llama, drawn(4, 5), site, [torch.tensor([0])])


def test_fault_047_fault_048_prompts_beyond_the_context_and_foreign_ids(llama):
    site = [Site("resid_post", 0)]
    with pytest.raises(ValueError, match="161 tokens.*context of 160"):
        gather(llama, drawn(161), site, [torch.tensor([0])])
    with pytest.raises(ValueError, match="outside 0..210"):
        gather(llama, [torch.tensor([5, 211])], site, [torch.tensor([0])])


def test_sites_of_different_shapes_are_refused(llama):
    for sites in ([Site("z", 0), Site("resid_post", 0)], [Site("pattern", 0)]):
        with pytest.raises(ValueError, match="one shape"):
            gather(llama, drawn(4), sites, [torch.tensor([0])])


# Ids of a small alphabet in front of which some prompts get a common beginning: prefixes of many lengths.
beginnings = st.lists(st.lists(st.integers(0, 2), max_size=25), min_size=1, max_size=4)
endings = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=8)), min_size=1, max_size=12
)
firsts = st.lists(st.integers(0, 40), min_size=12, max_size=12)


@settings(max_examples=150, deadline=None)
@given(beginnings, endings, firsts)
def test_groups_partition_the_prompts_and_never_cost_more_than_no_sharing(begin, end, first):
    ids = [begin[k % len(begin)] + tail for k, tail in end]
    wanted = [min(at, len(row) - 1) for at, row in zip(first, ids, strict=False)]
    found = groups(ids, wanted)
    assert sorted(i for group in found for i in group.members) == list(range(len(ids)))
    for group in found:
        for i in group.members:
            assert tuple(ids[i][: len(group.prefix)]) == group.prefix
            assert len(group.prefix) <= wanted[i], "a prefix reaches a position that is to be read"
            assert len(group.prefix) < len(ids[i]), "a prompt has no token left to run"
    cost = sum(len(g.prefix) + sum(len(ids[i]) - len(g.prefix) for i in g.members) for g in found)
    assert cost <= sum(map(len, ids))


@settings(max_examples=100, deadline=None)
@given(beginnings, endings)
def test_batches_hold_every_prompt_once_and_mix_no_prefixed_with_unprefixed(begin, end):
    ids = [begin[k % len(begin)] + tail for k, tail in end]
    packed = batches(groups(ids, [len(row) - 1 for row in ids]), ids)
    assert sorted(i for batch in packed for group in batch for i in group.members) == list(range(len(ids)))
    assert all(len({bool(group.prefix) for group in batch}) == 1 for batch in packed)


def test_roles_times_questions_run_each_role_once():
    roles, questions = drawn(40, 40, seed=1), drawn(6, 7, 8, seed=2)
    ids = [torch.cat([role, question]).tolist() for question in questions for role in roles]
    found = groups(ids, [len(row) - 1 for row in ids])
    assert sorted(g.prefix for g in found) == sorted(tuple(role.tolist()) for role in roles)
