"""The same numbers from every library: all sites read, all edits written, on tiny models of every family.

Gate: relative L2 <= 5e-6 in fp32. Absolute differences mislead: residual streams reach 2.5e4 in real models.
"""

from functools import cache
from typing import Any

import pytest
import torch

from mechinterp.backends.protocol import Backend, Pass
from mechinterp.backends.verify import verify
from mechinterp.interventions import Add, Apply, Clamp, From, Intervention, ProjectOut, Replace, Rotate
from mechinterp.sites import WRITABLE, Site
from tests.passes import (
    GATE,
    TOKENS,
    UNREADABLE,
    a_pass,
    assert_same,
    at,
    each_pair,
    every_site,
    logits,
    made,
    reference,
    relative,
    run,
)


def assert_equals_the_reference(backend: Any, family: str, request: Pass) -> None:
    """Every captured site and the logits of a pass are those of plain hooks on the Hugging Face model."""
    (outcome, values), (expected, natural) = run(backend, request), run(reference(family), request)
    assert_same(values, natural, request.capture)
    assert relative(outcome.logits, expected.logits) <= GATE  # type: ignore


# reading ----------------------------------------------------------------------------------------------------


@each_pair
def test_every_site_of_every_layer_equals_the_reference(family: str, kind: str):
    backend = made(family, kind)
    assert backend.dims == reference(family).dims
    assert set(backend.sites) == set(reference(family).sites) - UNREADABLE.get((family, kind), set())
    request = a_pass(TOKENS, capture=every_site(backend))
    assert_equals_the_reference(backend, family, request)


@each_pair
def test_chosen_slots_are_rows_of_the_whole(family: str, kind: str):
    backend = made(family, kind)
    slots = torch.tensor([[0, 5, 13], [2, 12, 7]])
    ends = torch.tensor([[13], [3]])
    request = a_pass(TOKENS, capture=every_site(backend), slots=slots, logit_slots=ends)
    (outcome, values), (expected, natural) = run(backend, request), run(reference(family), request)
    assert_same(values, natural, request.capture)
    assert outcome.logits.shape[1] == 1 and relative(outcome.logits, expected.logits) <= GATE  # type: ignore


@each_pair
def test_two_cached_chunks_are_one_pass(family: str, kind: str):
    backend = made(family, kind)
    edit = Add(Site("resid_post", 1), torch.full((64,), 0.5), where=From(3))
    whole = a_pass(TOKENS, capture=every_site(backend), interventions=(edit,))
    expected, natural = run(reference(family), whole)
    first, _ = run(backend, a_pass(TOKENS[:, :9], interventions=(edit,), keep_cache=True))
    tail = a_pass(
        TOKENS[:, 9:],
        before=9,
        interventions=(edit,),
        capture=whole.capture,
        cache=first.cache,
        keep_cache=True,
    )
    rest, values = run(backend, tail)
    assert relative(torch.cat([first.logits, rest.logits], 1), expected.logits) <= GATE  # type: ignore
    cut = {s: v[:, :, 9:] if s.name == "pattern" else v[:, 9:] for s, v in natural.items()}
    assert_same(values, cut, whole.capture)
    assert rest.cache is not None and rest.cache.n_slots == TOKENS.shape[1]


@each_pair
def test_a_cache_can_be_cropped_and_its_rows_chosen(family: str, kind: str):
    backend = made(family, kind)
    first, _ = run(backend, a_pass(TOKENS, keep_cache=True))
    assert first.cache is not None
    chosen = first.cache.select(torch.tensor([1, 1, 0]))
    chosen.crop(9)
    assert (chosen.n_slots, first.cache.n_slots) == (9, TOKENS.shape[1])
    rows = TOKENS[[1, 1, 0]]
    found = logits(backend, a_pass(rows[:, 9:], before=9, cache=chosen, keep_cache=True))
    assert relative(found, logits(reference(family), a_pass(rows))[:, 9:]) <= GATE


@each_pair
def test_left_padded_rows_equal_the_rows_alone(family: str, kind: str):
    backend = made(family, kind)
    pad = torch.tensor([0, 5])
    padded = TOKENS.clone()
    padded[1, :5] = 0
    padded[1, 5:] = TOKENS[1, :9]
    found, values = run(backend, a_pass(padded, pad=pad, capture=every_site(backend), keep_cache=True))
    alone, natural = run(reference(family), a_pass(TOKENS[1:, :9], capture=every_site(backend)))
    cut = {s: v[1:, :, 5:, 5:] if s.name == "pattern" else v[1:, 5:] for s, v in values.items()}
    assert_same(cut, natural, every_site(backend))
    assert relative(found.logits[1:, 5:], alone.logits) <= GATE  # type: ignore
    more = torch.tensor([[7, 8], [9, 10]])
    step = logits(backend, a_pass(more, before=14, pad=pad, cache=found.cache, keep_cache=True))
    both = logits(reference(family), a_pass(torch.cat([TOKENS[1:, :9], more[1:]], 1)))
    assert relative(step[1:], both[:, 9:]) <= GATE


@each_pair
def test_a_stopped_pass_runs_no_layer_after_it(family: str, kind: str):
    backend = made(family, kind)
    sites = every_site(backend)
    outcome, values = run(backend, a_pass(TOKENS, capture=sites, stop_after=1))
    _, natural = run(reference(family), a_pass(TOKENS, capture=sites))
    assert outcome.logits is None and set(values) == {site for site in sites if site.layer <= 1}
    assert_same(values, natural, tuple(values))
    none, values = run(
        backend, a_pass(TOKENS, capture=sites, logit_slots=torch.zeros(2, 0, dtype=torch.long))
    )
    assert none.logits is None and set(values) == set(sites)


@each_pair
def test_unembedding_the_last_stream_gives_the_logits(family: str, kind: str):
    backend = made(family, kind)
    residual = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = (one.readout.unembed(residual) for one in (backend, reference(family)))
        assert relative(found, expected) <= GATE
        assert backend.readout.unembed(residual[0, 0]).shape == (211,)


@each_pair
def test_the_sites_satisfy_their_identities(family: str, kind: str):
    assert max(verify(made(family, kind)).values()) <= 1e-5


# writing ----------------------------------------------------------------------------------------------------


def edits(site: Site, backend: Backend) -> list[Intervention]:
    shape = backend.dims.shape(site)
    v = torch.randn(shape, generator=torch.Generator().manual_seed(site.layer))
    w = torch.randn((2, *shape), generator=torch.Generator().manual_seed(7))
    return [
        Add(site, 0.5 * v, where=From(4)),
        Replace(site, w, strength=0.7),
        ProjectOut(site, v, strength=torch.tensor([1.0, 0.4])),
        Clamp(site, v, low=0.4, high=0.6),
        Rotate(site, v, angle=0.4, batch_rows=(1,)),
        Apply(site, lambda x: x.tanh() + x),
    ]


@cache
def edited(family: str, name: Any) -> list[tuple[Intervention, torch.Tensor]]:
    """The reference's logits under each edit; none may be too weak to compare."""
    backend = reference(family)
    plain = logits(backend, a_pass(TOKENS))
    found = [
        (edit, logits(backend, a_pass(TOKENS, interventions=(edit,))))
        for edit in edits(Site(name, 1), backend)
    ]
    assert all(relative(changed, plain) > 100 * GATE for _, changed in found), (
        f"an edit at {name} does nothing"
    )
    return found


@pytest.mark.parametrize("name", WRITABLE)
@each_pair
def test_every_intervention_gives_the_same_logits(family: str, kind: str, name: Any):
    for edit, expected in edited(family, name):
        found = logits(made(family, kind), a_pass(TOKENS, interventions=(edit,)))
        assert relative(found, expected) <= GATE, type(edit).__name__


@each_pair
def test_several_edits_compose_in_their_order(family: str, kind: str):
    backend = made(family, kind)
    both = tuple(
        edit for name in WRITABLE for layer in (0, 1, 2) for edit in edits(at(name, layer), backend)[:3]
    )
    request = a_pass(TOKENS, interventions=both, capture=every_site(backend))
    assert_equals_the_reference(backend, family, request)


@each_pair
def test_strength_zero_is_no_edit_bit_for_bit(family: str, kind: str):
    backend = made(family, kind)
    where = [at(name, 1) for name in WRITABLE]
    nothing = tuple(Add(site, torch.ones(backend.dims.shape(site)), strength=0.0) for site in where)
    assert torch.equal(
        logits(backend, a_pass(TOKENS, interventions=nothing)), logits(backend, a_pass(TOKENS))
    )
