"""Sampling: phases held to their definition without a cache, rows free of their neighbours, exact top-p."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mechinterp import drawing
from mechinterp.divergence import kl
from mechinterp.interventions import (
    Add,
    Apply,
    At,
    Constant,
    Everywhere,
    FirstN,
    From,
    Generated,
    Newest,
    ProjectOut,
    Ramp,
    Rows,
)
from mechinterp.loading import wrap
from mechinterp.sampling import Phase, Samples, Watch, sample, stop_ids
from mechinterp.sites import Site
from tests.architectures import FAMILIES, shared, tiny

NEVER = frozenset()
LAST = Site("resid_post", 2)


@pytest.fixture(scope="module")
def model():
    return wrap(shared("llama"), None, name="tiny", verify=False)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(*lengths: int) -> list[torch.Tensor]:
    return [torch.randint(2, 211, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]


def vector(model, site: Site, size: float = 3.0) -> torch.Tensor:
    """A direction large enough to change what is sampled."""
    natural = model.forward(prompts(9)[0][None], capture=[site])[site]
    shape = model.dims.shape(site)
    found = random(7, *shape)
    return size * natural.flatten(2).norm(dim=-1).mean() * found / found.norm()


def watching(model, n: int = 2, kl: bool = False) -> Watch:
    return Watch(LAST, random(3, n, model.dims.d_model), capture=(LAST, Site("attn_out", 1)), kl=kl)


def same(a: Samples, b: Samples) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.lengths, b.lengths)


# the definition ---------------------------------------------------------------------------------------------


def placed(edit, prompt_length: int, first: int, end: int, newest: int) -> list:
    """The edit as one edit a position, for the rows that a phase computed, first..end-1; `newest` decides."""
    position = torch.arange(end)[None]
    rows = Rows(position, position - (prompt_length - 1), torch.ones_like(position, dtype=torch.bool))
    weight = edit.weight(rows)[0]
    chosen = (
        [newest] if isinstance(edit.where, Newest) else edit.where.mask(rows)[0].nonzero().flatten().tolist()
    )
    kept = [p for p in chosen if first <= p < end and float(weight[p]) != 0]
    return [replace(edit, where=At((p,)), strength=float(weight[p]), schedule=Constant()) for p in kept]


def by_definition(
    model, prompt: torch.Tensor, phases: list[Phase]
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Greedy ids, the residual and the logits that decide each: a whole pass without a cache for every token.

    A phase's edits act on the rows that it computes: from the row that decides its first token on (the first
    phase computes the prompt too). Entering one afresh makes all rows before natural; carrying keeps all.
    """
    ids, past, states, logits = prompt.tolist(), [], [], []
    for phase in phases:
        first = len(ids) - 1 if len(ids) > len(prompt) else 0
        past = [] if phase.cache == "fresh" else past
        for _ in range(phase.n_tokens):
            n = len(ids)
            now = [e for edit in phase.interventions for e in placed(edit, len(prompt), first, n, n - 1)]
            seen = model.forward(torch.tensor(ids)[None], capture=[LAST], interventions=[*past, *now])
            states.append(seen[LAST][0, -1])
            logits.append(seen.logits[0, -1])
            ids.append(int(seen.logits[0, -1].argmax()))
        lasting = [edit for edit in phase.interventions if not isinstance(edit.where, Newest)]
        past = past + [e for edit in lasting for e in placed(edit, len(prompt), first, len(ids) - 1, -1)]
    return ids[len(prompt) :], torch.stack(states), torch.stack(logits)


def held_to_definition(model, rows: list[torch.Tensor], phases: list[Phase]) -> None:
    got = sample(model, rows, phases, stop=NEVER, watch=watching(model))
    for i, row in enumerate(rows):
        ids, states, _ = by_definition(model, row, phases)
        found = got.telemetry.captured[LAST][i]
        assert_close(found, states, atol=2e-5 * float(states.abs().max()), rtol=0)
        assert got.generated[i].tolist() == ids


WHERES = {
    "generated": Generated(),
    "everywhere": Everywhere(),
    "newest": Newest(),
    "at": At((1, 5)),
    "from": From(4),
}


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize("name", ["resid_post", "attn_out", "resid_pre", "mlp_out", "z"])
@pytest.mark.parametrize("cache", ["fresh", "carry"])
def test_steered_then_free_is_what_it_is_without_a_cache(model, name, where, cache):
    edit = Add(Site(name, 1), vector(model, Site(name, 1)), where=WHERES[where])
    held_to_definition(model, prompts(6, 4), [Phase(4, (edit,)), Phase(4, cache=cache)])


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_is_what_it_is_without_a_cache_in_every_family(family):
    model = wrap(shared(family), None, verify=False)
    site = Site("resid_post", 0)
    edit = Add(site, vector(model, site), where=Generated())
    held_to_definition(model, prompts(12, 5), [Phase(4, (edit,)), Phase(4, cache="fresh")])


@pytest.mark.parametrize("layers", [(0, 2), (1, 1), (2, 2)])
def test_fresh_undoes_edits_of_several_layers_and_sites(model, layers):
    low, high = layers
    edits = (
        Add(Site("attn_out", high), vector(model, Site("attn_out", high)), where=Generated()),
        ProjectOut(Site("resid_post", low), random(5, 64)),
        Add(Site("resid_post", high), vector(model, Site("resid_post", high)), schedule=FirstN(2)),
    )
    held_to_definition(model, prompts(6, 4), [Phase(4, edits), Phase(3, cache="fresh")])


def variants(model) -> dict[str, list[Phase]]:
    site = Site("resid_post", 0)
    v = vector(model, site)
    steer = Add(site, v, where=Generated())
    other = Add(Site("attn_out", 1), vector(model, Site("attn_out", 1)))
    newest = Add(site, v, where=Newest())
    ramp = Add(site, v, where=Generated(), schedule=Ramp(4))
    return {
        "steered, carried, fresh": [Phase(3, (steer,)), Phase(3, cache="carry"), Phase(3, cache="fresh")],
        "steered, steered on, fresh": [
            Phase(2, (steer,)),
            Phase(2, (other,), cache="carry"),
            Phase(3, cache="fresh"),
        ],
        "free, steered everywhere, fresh": [Phase(2), Phase(3, (other,)), Phase(3, cache="fresh")],
        "newest and everywhere, fresh": [Phase(3, (newest, other)), Phase(3, cache="fresh")],
        "newest and everywhere, carried": [Phase(3, (other, newest)), Phase(3, cache="carry")],
        "steered, steered afresh": [Phase(3, (steer,)), Phase(3, (steer,), cache="fresh")],
        "everywhere, everywhere afresh": [Phase(3, (other,)), Phase(3, (other,), cache="fresh")],
        "ramp, carried, ramp": [Phase(3, (ramp,)), Phase(1, cache="carry"), Phase(3, (ramp,), cache="carry")],
        "newest, then everywhere afresh": [Phase(3, (newest,)), Phase(3, (other,), cache="fresh")],
        "nothing, steered, nothing, fresh": [Phase(0), Phase(2, (steer,)), Phase(0), Phase(2, cache="fresh")],
    }


@pytest.mark.parametrize("case", list(variants(wrap(shared("llama"), None, verify=False))))
def test_other_orders_of_phases_are_what_they_are_without_a_cache(model, case):
    held_to_definition(model, prompts(6, 4), variants(model)[case])
    held_to_definition(model, prompts(6, 6, 4), variants(model)[case])  # equal ones share a prefill


@pytest.mark.parametrize(
    "case", ["everywhere, everywhere afresh", "newest, then everywhere afresh", "steered, carried, fresh"]
)
def test_a_backend_that_cannot_replay_gives_the_same(model, case):
    """Without `replay` a fresh phase runs the ids again; the next phase's edits must not reach those rows."""
    backend = model.backend

    class Plain:
        def __getattr__(self, name):
            if name == "replay":
                raise AttributeError(name)
            return getattr(backend, name)

    phases = variants(model)[case]
    plain = sample(replace(model, backend=Plain()), prompts(6, 4), phases, stop=NEVER, watch=watching(model))
    ours = sample(model, prompts(6, 4), phases, stop=NEVER, watch=watching(model))
    assert same(plain, ours)
    assert_close(plain.telemetry.captured[LAST], ours.telemetry.captured[LAST], atol=2e-4, rtol=1e-4)


def test_equal_prompts_share_their_prefill_and_nothing_else(model):
    edit = Add(LAST, vector(model, LAST), where=Generated(), strength=torch.tensor([0.0, 1.0, -1.0]))
    row = prompts(6)[0]
    got = sample(model, [row] * 3, [Phase(4, (edit,)), Phase(3)], stop=NEVER)
    for i, strength in enumerate((0.0, 1.0, -1.0)):
        alone = [Phase(4, (replace(edit, strength=strength),)), Phase(3)]
        assert got.generated[i].tolist() == by_definition(model, row, alone)[0]


def test_two_carried_phases_are_one(model):
    site = Site("attn_out", 1)
    for where in (Generated(), Everywhere(), Newest()):
        edit = Add(site, vector(model, site), where=where, schedule=Ramp(5))
        one = sample(model, prompts(6, 4), [Phase(7, (edit,))], stop=NEVER, watch=watching(model))
        two = sample(
            model,
            prompts(6, 4),
            [Phase(3, (edit,)), Phase(4, (edit,), cache="carry")],
            stop=NEVER,
            watch=watching(model),
        )
        assert same(one, two) and torch.equal(one.telemetry.projections, two.telemetry.projections)
        assert two.phase.tolist() == [0] * 3 + [1] * 4


def test_fresh_and_carried_differ_under_a_strong_vector(model):
    site = Site("resid_post", 0)
    edit = Add(site, vector(model, site, 10.0), where=Generated())
    fresh, carry = (
        sample(
            model, prompts(6), [Phase(5, (edit,)), Phase(5, cache=cache)], stop=NEVER, watch=watching(model)
        )
        for cache in ("fresh", "carry")
    )
    assert torch.equal(fresh.generated[:, :5], carry.generated[:, :5])
    assert (fresh.telemetry.projections - carry.telemetry.projections)[:, 5:].abs().max() > 0.1


def test_fault_052_strength_zero_and_no_steered_tokens_are_no_steering_bit_for_bit(model):
    off = Add(LAST, vector(model, LAST), strength=0.0)
    zeros = replace(off, strength=torch.zeros(2))
    on = replace(off, strength=1.0)
    bare = sample(
        model, prompts(6, 4), [Phase(6)], temperature=1.0, stop=NEVER, watch=watching(model, kl=True)
    )
    for phases in ([Phase(3, (off,)), Phase(3)], [Phase(3, (zeros,)), Phase(3)], [Phase(0, (on,)), Phase(6)]):
        got = sample(
            model, prompts(6, 4), phases, temperature=1.0, stop=NEVER, watch=watching(model, kl=True)
        )
        assert same(got, bare)
        for name in ("projections", "natural", "norms", "entropy", "kl"):
            assert torch.equal(getattr(got.telemetry, name), getattr(bare.telemetry, name)), name


# rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate(family):
    hf_model = shared(family)
    row = prompts(9)[0]
    expected = hf_model.generate(
        row[None],
        attention_mask=torch.ones(1, 9),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    got = sample(wrap(hf_model, None, verify=False), row[None], [Phase(12)], stop=NEVER)
    assert got.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "bloom", "gpt_neox"])
def test_fault_049_rows_do_not_depend_on_neighbours_order_or_batch_size(family):
    model = wrap(shared(family), None, verify=False)
    rows, names = prompts(3, 11, 6, 8, 5), ["a", "b", "c", "d", "e"]
    edit = Add(LAST, random(1, 5, 64), where=Generated(), strength=torch.arange(5.0), batch_rows=(0, 1, 3, 4))
    phases = [Phase(5, (edit,)), Phase(4)]
    options = {"temperature": 0.9, "top_p": 0.9, "seed": 5, "stop": NEVER}
    whole = sample(model, rows, phases, names=names, **options)
    cut = sample(model, rows, phases, names=names, batch_size=2, **options)
    assert same(whole, cut) and cut.batches == (2, 2, 1) and whole.batches == (5,)
    order = [3, 0, 4, 2, 1]
    turned = replace(edit, vector=edit.vector[order], strength=edit.strength[order], batch_rows=(0, 1, 2, 4))
    moved = sample(
        model,
        [rows[i] for i in order],
        [Phase(5, (turned,)), Phase(4)],
        names=[names[i] for i in order],
        **options,
    )
    assert torch.equal(moved.generated, whole.generated[order])
    for i, name in enumerate(names):
        one = replace(
            edit, vector=edit.vector[i], strength=float(edit.strength[i]), batch_rows=None if i != 2 else ()
        )
        alone = sample(model, [rows[i]], [Phase(5, (one,)), Phase(4)], names=[name], **options)
        assert torch.equal(alone.generated[0], whole.generated[i])


def test_rows_of_one_name_draw_alike_and_of_two_apart(model):
    row = prompts(6)[0]
    got = sample(model, [row, row, row], [Phase(12)], temperature=1.5, names=["a", "a", "b"], stop=NEVER)
    assert torch.equal(got.generated[0], got.generated[1]) and not torch.equal(
        got.generated[0], got.generated[2]
    )
    again = sample(model, [row], [Phase(12)], temperature=1.5, names=["b"], stop=NEVER)
    other = sample(model, [row], [Phase(12)], temperature=1.5, names=["b"], seed=1, stop=NEVER)
    longer = sample(model, [row], [Phase(20)], temperature=1.5, names=["b"], stop=NEVER)
    assert torch.equal(again.generated[0], got.generated[2]) and not torch.equal(
        other.generated, again.generated
    )
    assert torch.equal(longer.generated[:, :12], again.generated)


def hooks(model) -> list[int]:
    """What hangs on a shared model; transformers leaves capture hooks of its own after some other tests."""
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.backend.model.modules()]


def test_fault_075_a_batch_that_does_not_fit_is_halved_and_the_rows_stay_what_they_are(model):
    rows, calls, before = prompts(6, 4, 7, 5, 3), [], hooks(model)

    def full_once(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("injected")
        return x + 1

    edit = Apply(LAST, full_once, where=Generated())
    got = sample(model, rows, [Phase(4, (edit,)), Phase(3)], stop=NEVER, watch=watching(model))
    calls[:] = [0] * 10
    calm = sample(model, rows, [Phase(4, (edit,)), Phase(3)], stop=NEVER, watch=watching(model))
    assert got.batches == (2, 2, 1) and calm.batches == (5,) and same(got, calm)
    assert_close(got.telemetry.projections, calm.telemetry.projections, atol=1e-4, rtol=1e-4)
    assert hooks(model) == before


def test_fault_075_a_single_row_that_does_not_fit_raises(model):
    def full(_):
        raise torch.OutOfMemoryError("injected")

    with pytest.raises(torch.OutOfMemoryError):
        sample(model, prompts(4, 5), [Phase(2, (Apply(LAST, full),))])


# ends -------------------------------------------------------------------------------------------------------


def test_fault_051_rows_end_at_any_stop_id_unless_it_is_suppressed(model):
    rows = prompts(6, 4)
    free = sample(model, rows, [Phase(10)], temperature=1.5, stop=NEVER)
    stops = frozenset({int(free.generated[0, 4]), int(free.generated[1, 2])})
    got = sample(model, rows, [Phase(10)], temperature=1.5, stop=stops)
    for i in range(2):
        ids = free.generated[i].tolist()
        end = next(k for k, token in enumerate(ids) if token in stops) + 1
        n = int(got.prompt_lengths[i])
        assert got.lengths[i] == n + end and got.finish_reason[i] == "stop"
        assert (
            got.tokens[i, n : n + end].tolist() == ids[:end]
            and got.tokens[i, :n].tolist() == rows[i].tolist()
        )
        assert got.real[i].tolist() == [k < end for k in range(got.generated.shape[1])]
    kept = sample(model, rows, [Phase(10, suppress=stops)], temperature=1.5, stop=stops)
    assert kept.finish_reason == ("length", "length") and kept.real.all()
    assert not torch.isin(kept.generated, torch.tensor(sorted(stops))).any()


def test_fault_053_stops_are_suppressed_by_phase(model):
    row = prompts(6)
    first = int(sample(model, row, [Phase(1)], stop=NEVER).generated[0, 0])
    got = sample(
        model,
        row,
        [Phase(3, suppress=frozenset({first})), Phase(50)],
        stop=frozenset({first}),
        temperature=3.0,
    )
    assert got.real.shape[1] > 3 and first not in got.generated[0, :3].tolist()


def test_a_stop_at_the_very_last_token_is_a_stop_and_all_done_ends_early(model):
    row = prompts(6)[0]
    ids = sample(model, [row], [Phase(4)], stop=NEVER).generated[0].tolist()
    last = sample(model, [row], [Phase(ids.index(ids[3]) + 1)], stop=frozenset({ids[3]}))
    assert last.finish_reason == ("stop",) and int(last.lengths[0]) == 6 + ids.index(ids[3]) + 1
    early = sample(
        model, [row], [Phase(4), Phase(90)], stop=frozenset({ids[0]}), watch=watching(model, kl=True)
    )
    assert (
        early.generated.shape == (1, 1) and early.telemetry.kl.shape == (1, 1) and early.phase.tolist() == [0]
    )


def test_fault_052_no_tokens_at_all_is_the_prompt(model):
    got = sample(model, prompts(6, 4), [Phase(0)], watch=watching(model, kl=True))
    assert (
        got.generated.shape == (2, 0)
        and got.lengths.tolist() == [6, 4]
        and got.finish_reason == ("length",) * 2
    )
    assert got.telemetry.projections.shape == (2, 0, 2) and got.telemetry.kl.shape == (2, 0)


def test_fault_051_stop_ids_are_all_of_the_configs_and_the_tokenizers():
    hf_model = tiny("llama")
    hf_model.generation_config.eos_token_id = [5, 7]
    hf_model.config.eos_token_id = 1

    class Tokenizer:
        eos_token_id = 9

    assert stop_ids(wrap(hf_model, Tokenizer(), verify=False)) == {1, 5, 7, 9}
    Tokenizer.eos_token_id = 10**6
    assert stop_ids(wrap(hf_model, Tokenizer(), verify=False)) == {1, 5, 7}, (
        "an id past the vocabulary ends nothing"
    )


# telemetry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [Generated(), Everywhere(), Newest()])
def test_telemetry_is_that_of_the_deciding_pass(model, where):
    edit = Add(LAST, vector(model, LAST), where=where, strength=2.0)
    phases = [Phase(3, (edit,)), Phase(3)]
    watch = watching(model, kl=True)
    got = sample(model, prompts(6), phases, stop=NEVER, watch=watch)
    ids, states, logits = by_definition(model, prompts(6)[0], phases)
    unit = watch.directions / watch.directions.norm(dim=-1, keepdim=True)
    assert_close(got.telemetry.projections[0], states @ unit.T, atol=1e-3, rtol=1e-4)
    assert_close(got.telemetry.norms[0], states.norm(dim=-1), atol=1e-3, rtol=1e-4)
    assert_close(
        got.telemetry.entropy[0],
        torch.distributions.Categorical(logits=logits).entropy(),
        atol=1e-3,
        rtol=1e-3,
    )
    whole = torch.cat([prompts(6)[0], torch.tensor(ids)])[None]
    natural = model.forward(whole).logits[0, 5:-1]
    assert_close(got.telemetry.kl[0], kl(logits, natural), atol=1e-3, rtol=1e-3)
    assert (got.telemetry.kl[0, 3:].abs() < 1e-4).all() and (got.telemetry.kl[0, :3] > 1e-2).all()


def test_the_natural_projection_differs_by_the_strength_at_steered_rows(model):
    v = vector(model, LAST)
    edit = Add(LAST, v, where=Generated(), strength=torch.tensor([1.5, -2.0]))
    got = sample(
        model, prompts(6, 4), [Phase(3, (edit,)), Phase(3)], stop=NEVER, watch=Watch(LAST, v[None])
    ).telemetry
    moved = (got.projections - got.natural)[..., 0]
    expected = torch.tensor([[1.5], [-2.0]]) * v.norm()
    assert_close(moved[:, :3], expected.expand(2, 3), atol=1e-3, rtol=1e-4)
    assert torch.equal(moved[:, 3:], torch.zeros(2, 3))


def test_resid_mid_can_be_watched(model):
    mid = Site("resid_mid", 1)
    got = sample(
        model, prompts(6), [Phase(3)], stop=NEVER, watch=Watch(mid, random(0, 2, 64), capture=(mid,))
    )
    seen = model.forward(got.tokens, capture=[mid])[mid][0, 5:-1]
    assert_close(got.telemetry.captured[mid][0], seen, atol=1e-4, rtol=1e-4)
    assert torch.equal(got.telemetry.natural, got.telemetry.projections)


# one token --------------------------------------------------------------------------------------------------


def top_p_by_sorting(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The likeliest ids up to the one that reaches top_p, equally likely ones together, renormalised."""
    p = (logits.double() / temperature).softmax(-1)
    likelier = torch.tensor([float(p[p > x].sum()) for x in p])
    kept = torch.where(likelier < top_p, p, 0.0)
    return kept / kept.sum()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("fallback", [False, True])
def test_draws_have_the_top_p_distribution(top_p, fallback):
    n = 10_000 if fallback else 40_000  # the fallback goes row by row
    logits = 2 * random(0, 30)
    logits[3] = logits[4] = logits[5]
    expected = top_p_by_sorting(logits, 1.3, top_p)
    uniform = torch.rand(
        n, drawing.DRAWS + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    if fallback and top_p < 1:
        uniform[:, : drawing.DRAWS] = _missing(logits, 1.3, top_p)
    got = drawing.draw(logits.expand(n, -1), uniform, 1.3, top_p).bincount(minlength=30).double() / n
    assert not got[expected == 0].any(), "an id outside the nucleus was drawn"
    assert float((got - expected).abs().sum() / 2) < 4 / n**0.5


@pytest.mark.parametrize("d_vocab", [30, drawing.BLOCK, drawing.BLOCK + 1, 3 * drawing.BLOCK - 200])
def test_a_draw_is_where_the_whole_cumulative_mass_passes_its_number(d_vocab):
    """Blocks of the vocabulary change nothing: against the running sum of all ids in float64."""
    logits = 3 * random(0, 200, d_vocab)
    logits[:, [0, d_vocab // 2, d_vocab - 1]] = -torch.inf
    uniform = torch.rand(200, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    uniform[:3, 0] = torch.tensor([0.0, 1 - 2**-53, 0.5])
    p = (logits / 0.7).softmax(-1).double()
    total = p.cumsum(-1)
    expected = torch.searchsorted(total, uniform * total[:, -1:], right=True).squeeze(1)
    got = drawing.draw(logits, uniform, 0.7, 1.0)
    apart = (total.gather(1, expected[:, None].clamp_max(d_vocab - 1)) - uniform).abs().squeeze(1)
    assert (got == expected)[apart > 1e-6].all() and (apart > 1e-6).sum() > 190
    assert (p.gather(1, got[:, None]) > 0).all(), "an id without mass was drawn"


def _missing(logits: torch.Tensor, temperature: float, top_p: float) -> float:
    """A uniform number that lands on an id outside the nucleus, so that every try misses."""
    p = (logits / temperature).softmax(-1).double()
    outside = int((top_p_by_sorting(logits, temperature, top_p) == 0).nonzero()[0])
    return float(p[:outside].sum() + p[outside] / 2)


def test_equally_likely_ids_stay_together_on_both_paths():
    logits = torch.tensor([1.0, 1.0, 1.0, -9.0])
    uniform = torch.rand(
        4000, drawing.DRAWS + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    direct = drawing.draw(logits.expand(4000, -1), uniform, 1.0, 0.5)
    uniform[:, : drawing.DRAWS] = 1 - 1e-9
    sorted_ = drawing.draw(logits.expand(4000, -1), uniform, 1.0, 0.5)
    assert set(direct.tolist()) == set(sorted_.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [1e-6, 1e-39])
def test_low_temperatures_are_greedy_and_suppressed_ids_are_never_drawn(temperature):
    logits = random(0, 500, 40)
    logits[:, 0] = logits[:, -1] = -torch.inf
    uniform = torch.rand(
        500, drawing.DRAWS + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    uniform[0], uniform[1] = 0.0, 1 - 2**-53
    assert torch.equal(drawing.draw(logits, uniform, temperature, 0.9), logits.argmax(-1))
    warm = drawing.draw(logits, uniform, 5.0, 1.0)
    assert not torch.isin(warm, torch.tensor([0, 39])).any()


# bad input --------------------------------------------------------------------------------------------------

GOOD = [Phase(2)]


@pytest.mark.parametrize(
    "arguments,kind,says",
    [
        ({"prompts": []}, ValueError, "at least one token"),
        ({"prompts": [torch.tensor([], dtype=torch.long)]}, ValueError, "at least one token"),
        ({"prompts": torch.tensor([3, 4, 5])}, TypeError, r"write \[ids\]"),
        ({"prompts": [3, 4]}, TypeError, "must be ids, not int"),
        ({"prompts": ["hello"]}, TypeError, "must be ids, not str"),
        ({"prompts": [torch.tensor([1.0, 2.0])]}, TypeError, "whole ids"),
        ({"prompts": [torch.ones(2, 3, dtype=torch.long)]}, TypeError, r"\[position\]"),
        ({"prompts": [torch.tensor([3, 211])]}, ValueError, "ids 0..210; a prompt holds 211"),
        ({"prompts": [torch.tensor([3, -1])]}, ValueError, "a prompt holds -1"),
        ({"temperature": 0.0}, ValueError, "leave it out for greedy"),
        ({"temperature": -1.0}, ValueError, "must be positive"),
        ({"temperature": float("nan")}, ValueError, "must be positive"),
        ({"top_p": 0.0}, ValueError, r"\(0, 1\], not 0"),
        ({"top_p": 1.5}, ValueError, r"\(0, 1\], not 1.5"),
        ({"phases": []}, ValueError, "n_tokens"),
        ({"phases": [Phase(-1)]}, ValueError, r"not \[-1\]"),
        ({"phases": [Phase(2.5)]}, TypeError, "n_tokens must be an integer"),
        ({"phases": [Phase(2, cache="keep")]}, ValueError, "'fresh' or 'carry'"),
        ({"phases": [Phase(2, suppress=frozenset({211}))]}, ValueError, "211 cannot be suppressed"),
        ({"phases": [Phase(2, suppress=frozenset({-1}))]}, ValueError, "-1 cannot be suppressed"),
        ({"phases": [Phase(2, suppress=frozenset(range(211)))]}, ValueError, "every id is suppressed"),
        ({"names": ["a", "b"]}, ValueError, "1 rows need as many names; got 2"),
        ({"batch_size": 0}, ValueError, "at least 1"),
        ({"watch": Watch(LAST, torch.zeros(1, 64))}, ValueError, "norm zero"),
        ({"watch": Watch(LAST, torch.ones(64))}, ValueError, r"needs \[vector 64\]"),
        ({"watch": Watch(Site("resid_post", 3), torch.ones(1, 64))}, IndexError, "layers 0..2"),
        ({"watch": Watch(LAST, torch.ones(1, 64), capture=(Site("pattern", 0),))}, ValueError, "grows"),
        ({"watch": Watch(LAST, torch.ones(1, 64), capture=(Site("z", 9),))}, IndexError, "layers 0..2"),
        ({"phases": [Phase(2, (Add(Site("resid_post", 3), torch.ones(64)),))]}, IndexError, "layers 0..2"),
        ({"phases": [Phase(2, (Add(LAST, torch.ones(64), where=At((7,))),))]}, IndexError, "position 7"),
        ({"phases": [Phase(2, ("steer",))]}, TypeError, "is no intervention"),
    ],
)  # fmt: skip
def test_fault_013_027_048_052_requests_that_cannot_be_met_are_refused_before_compute(
    model, arguments, kind, says
):
    def never(*_, **__):
        raise AssertionError("the model ran")

    backend = model.backend
    blocked = replace(
        model,
        backend=type(
            "Blocked",
            (),
            {"forward": never, "dims": backend.dims, "sites": backend.sites, "device": backend.device},
        )(),
    )
    call = {"prompts": prompts(5), "phases": GOOD, "stop": NEVER} | arguments
    with pytest.raises(kind, match=says):
        sample(blocked, call.pop("prompts"), call.pop("phases"), **call)


@pytest.mark.parametrize("where", ["generated", "everywhere", "newest"])
def test_fault_011_a_loud_vector_is_weighed_at_its_first_step_only_and_said_once(model, where, monkeypatch):
    """Weighing waits for the device, so it must not happen at each step."""
    looks, norms = [], Add.norms
    monkeypatch.setattr(Add, "norms", lambda edit: looks.append(edit.site) or norms(edit))
    edit = Add(Site("resid_post", 1), vector(model, Site("resid_post", 1), 500.0), where=WHERES[where])
    phases = [Phase(3), Phase(4, (edit,)), Phase(2), Phase(3, (edit,), cache="carry")]
    with pytest.warns(UserWarning, match="added at resid_post of layer 1") as said:
        sample(model, prompts(5, 7), phases, stop=frozenset())
    assert len(said) == 1 and looks == [edit.site]


def test_fault_020_the_same_edit_twice_is_refused(model):
    edit = Add(LAST, random(0, 64))
    with pytest.raises(ValueError, match="given twice"):
        sample(model, prompts(5), [Phase(2, (edit, edit))])
    both = sample(model, prompts(5), [Phase(2, (edit, replace(edit)))], stop=NEVER, watch=watching(model))
    double = sample(
        model, prompts(5), [Phase(2, (replace(edit, strength=2.0),))], stop=NEVER, watch=watching(model)
    )
    assert_close(both.telemetry.projections, double.telemetry.projections, atol=1e-4, rtol=1e-4)


def test_fault_047_a_context_that_is_too_short_is_refused_with_both_numbers(model):
    with pytest.raises(ValueError, match="context of 160 positions; prompt and phases need 161"):
        sample(model, prompts(11), [Phase(100), Phase(50)])
    assert sample(model, prompts(158), [Phase(2)], stop=NEVER).lengths.tolist() == [160]


def test_fault_074_logits_that_are_not_finite_stop_the_run():
    hf_model = tiny("llama")
    model = wrap(hf_model, None)
    hf_model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        sample(model, prompts(4), [Phase(2)])


# the embedded model -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_greedy_on_the_real_model_is_generate_up_to_the_first_tie(real, real_hf):
    prompt = real.chat("Name three colours.").tokens
    n = prompt.shape[1]
    expected = real_hf.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False
    )[0, n:]
    got = sample(real, prompt, [Phase(24)])
    ids = got.generated[0][: len(expected)]
    if not torch.equal(ids, expected[: len(ids)]):
        first = int((ids != expected[: len(ids)]).nonzero()[0])
        logits = real.forward(got.tokens[:, : n + first], logits_at=[-1]).logits[0, -1]
        assert abs(float(logits[ids[first]] - logits[expected[first]])) < 1e-4


@pytest.mark.real
def test_a_fresh_free_phase_on_the_real_model_is_a_full_recomputation(real):
    site = Site("resid_post", 14)
    watch = Watch(site, random(1, 2, real.dims.d_model))
    edit = Add(site, 40 * random(0, real.dims.d_model) / real.dims.d_model**0.5, where=Generated())
    prompt = real.chat("Who are you?").tokens
    got = sample(real, prompt, [Phase(6, (edit,)), Phase(5)], stop=NEVER, watch=watch)
    n = prompt.shape[1]
    whole = real.forward(got.tokens, capture=[site], logits_at=range(n + 5, n + 10))
    assert whole.logits[0].argmax(-1).tolist() == got.generated[0, 6:].tolist()
    unit = watch.directions / watch.directions.norm(dim=-1, keepdim=True)
    expected = (whole[site][0, n + 5 : n + 10] @ unit.T).tolist()
    assert_close(got.telemetry.projections[0, 6:], torch.tensor(expected), atol=1e-2, rtol=1e-3)
