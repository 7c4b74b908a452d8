"""Patched cells are full forwards with the same edits, on every architecture; the fast way is no other."""

# pyright: reportArgumentType=false

import pytest
import torch
from torch.testing import assert_close

import mechinterp as mi
import patching
from mechinterp.interventions import Replace
from mechinterp.sites import Site
from mechinterp.where import At
from patching import incremental, sweep
from patching.cells import untouched
from patching.sweep import sweep_cells
from tests.architectures import FAMILIES, hooks_of, shared

N, CLOSE = 11, {"atol": 2e-5, "rtol": 1e-4}
BACKENDS = ["transformers", "nnsight", "hooked_transformer", "transformer_bridge"]


def ids(n: int = N, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 211, (n,), generator=torch.Generator().manual_seed(seed))


def tiny(family: str, backend="transformers") -> mi.Model:
    return mi.wrap(shared(family), None, backend=backend, verify=False)


def metrics(at: int = N - 1):
    return patching.logit_difference(5, 9, at=at), patching.log_prob(7, at=at)


def naive(model, tokens, edits, read):
    """One full pass with the edits, nothing shared and nothing left out."""
    replaced = []
    for edit in edits:
        for i, position in enumerate(edit.positions):
            value = edit.value[i]
            if edit.head is not None:
                whole = model.forward(tokens[None], capture=[edit.site])[edit.site][0, position].clone()
                whole[edit.head] = value
                value = whole
            replaced.append(Replace(site=edit.site, value=value, where=At((position,))))
    logits = model.forward(tokens[None], interventions=replaced).logits[0].float()
    return torch.stack([metric.read(logits[metric.at, None])[0] for metric in read])


def drawn(model, name, layer, positions, seed=3, head=None):
    site, generator = Site(name, layer), torch.Generator().manual_seed(seed)
    shape = model.dims.shape(site) if head is None else model.dims.shape(site)[1:]
    return patching.Edit(site, positions, torch.randn(len(positions), *shape, generator=generator), head)


def some_cells(model):
    """Every site, first, middle and last layer and position, spans, and several edits in one cell."""
    cells = []
    for name in ("resid_pre", "resid_post", "attn_out", "mlp_out", "z"):
        for layer, positions in ((0, (0,)), (1, (4,)), (2, (N - 1,)), (1, (2, 3, 7))):
            cells.append((drawn(model, name, layer, positions, len(cells)),))
    cells.append((drawn(model, "z", 1, (4, 6), 50, head=2),))
    cells.append((drawn(model, "mlp_out", 0, (5,), 51), drawn(model, "attn_out", 2, (1, N - 1), 52)))
    cells.append((drawn(model, "resid_post", 0, (5,), 53), drawn(model, "resid_pre", 2, (3,), 54)))
    return cells


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_057_every_cell_is_the_naive_full_forward(family):
    model, read = tiny(family), (*metrics(), patching.rank(3, at=6))
    cells = some_cells(model)
    swept = sweep_cells(untouched(model, ids(), read), cells, read)
    assert_close(swept.values, torch.stack([naive(model, ids(), c, read) for c in cells]), **CLOSE)
    assert (swept.engine == "incremental") == (family != "bloom"), swept.engine


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_four_backends_give_one_sweep(family, backend):
    reference, model, read = tiny(family), tiny(family, backend), metrics()
    cells = some_cells(reference)
    expected = sweep_cells(untouched(reference, ids(), read), cells, read)
    found = sweep_cells(untouched(model, ids(), read), cells, read)
    assert_close(found.values, expected.values, atol=5e-5, rtol=1e-3)
    whole = f"whole passes: {backend} runs no block of this architecture by itself"
    assert found.engine == ("incremental" if backend == "transformers" else whole)


def test_no_batch_size_changes_a_cell(monkeypatch):
    model, read = tiny("llama"), metrics()
    cells = some_cells(model)
    whole = sweep_cells(untouched(model, ids(), read), cells, read)
    monkeypatch.setattr(sweep, "ROWS", 2 * N)
    cut = sweep_cells(untouched(model, ids(), read), cells, read)
    assert_close(cut.values, whole.values, **CLOSE)
    assert cut.token_layers > 0


@pytest.mark.parametrize("backend", ["transformers", "nnsight"])
def test_fault_101_out_of_memory_halves_the_batch_and_goes_on(backend, monkeypatch):
    model, read = tiny("llama", backend), metrics()
    cells = some_cells(model)
    expected = sweep_cells(untouched(model, ids(), read), cells, read)
    run, sizes = untouched(model, ids(), read), []
    real = type(model).unembed, type(model).forward

    def small(method, size_of):
        def limited(self, x, *args, **kwargs):
            sizes.append(size_of(x))
            if sizes[-1] > 3:
                raise torch.OutOfMemoryError("no more")
            return method(self, x, *args, **kwargs)

        return limited

    monkeypatch.setattr(type(model), "unembed", small(real[0], len))
    monkeypatch.setattr(type(model), "forward", small(real[1], len))
    found = sweep_cells(run, cells, read)
    assert max(sizes) > 3
    assert_close(found.values, expected.values, **CLOSE)


def test_only_the_layers_and_positions_that_a_cell_changes_are_run():
    """A grid of resid_pre runs sum (L - l)(T - p) token-layers, and one cell of control."""
    model, read = tiny("llama"), metrics()
    cells = [
        (drawn(model, "resid_pre", layer, (position,), layer * N + position),)
        for layer in range(3)
        for position in range(N)
    ]
    swept = sweep_cells(untouched(model, ids(), read), cells, read)
    least = sum((3 - layer) * (N - position) for layer in range(3) for position in range(N))
    control = 3 * (N - sorted(range(N))[N // 2])
    assert swept.token_layers == least + control


def test_own_values_and_later_positions_cost_nothing_and_change_nothing():
    model, read = tiny("llama"), metrics(at=6)
    run = untouched(model, ids(), read)
    own = patching.Edit(Site("resid_pre", 1), (2, 4), run.residual[1, [2, 4]])
    after = patching.Edit(Site("resid_post", 0), (2, 4), run.residual[1, [2, 4]])
    behind = drawn(model, "resid_pre", 0, (8,))
    swept = sweep_cells(run, [(own,), (after,), (behind,)], read)
    assert swept.token_layers == 0 and swept.engine.startswith("none")
    assert torch.equal(swept.values, swept.baseline.expand(3, -1))


def test_an_engine_that_fails_its_own_control_is_not_used(monkeypatch):
    """Blocks that ran wrong would be off for a cell without edits too: whole passes run, and it is said."""
    model, read = tiny("llama"), metrics()
    cells = some_cells(model)
    expected = sweep_cells(untouched(model, ids(), read), cells, read)
    monkeypatch.setattr(incremental, "relative", lambda found, expected: 0.5)
    found = sweep_cells(untouched(model, ids(), read), cells, read)
    assert found.engine == "whole passes: a cell without edits came out 5.0e-01 off, with 1e-04 allowed"
    assert_close(found.values, expected.values, **CLOSE)


def test_the_models_own_modules_are_as_before_even_after_an_error():
    hf, read = shared("llama"), metrics()
    model = tiny("llama")
    hooks = hooks_of(hf)  # other tests may have asked it for attentions, which leaves transformers' own
    run = untouched(model, ids(), read)
    before = run.state.cache.n_slots
    sweep_cells(run, some_cells(model), read)
    bad = patching.Edit(Site("z", 1), (3,), torch.zeros(1, 4, 16))
    object.__setattr__(bad, "head", 0)
    with pytest.raises(ValueError, match="the value at z of layer 1"):
        sweep_cells(run, [(bad,)], read)
    assert run.state.cache.n_slots == before
    assert hooks_of(hf) == hooks
    again = sweep_cells(run, some_cells(model), read)
    assert_close(again.values, sweep_cells(untouched(model, ids(), read), some_cells(model), read).values)


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (lambda m: drawn(m, "resid_pre", 0, (3, 1)), ValueError, "in order"),
        (lambda m: drawn(m, "resid_pre", 0, ()), ValueError, "given once each"),
        (lambda m: drawn(m, "resid_pre", 0, (-1,)), IndexError, "absolute"),
        (lambda m: patching.Edit(Site("resid_pre", 9), (0,), torch.zeros(1, 64)), IndexError, "layers 0..2"),
        (lambda m: patching.Edit(Site("q", 0), (0,), torch.zeros(1, 4, 16)), ValueError, "cannot be patched"),
        (lambda m: patching.Edit(Site("resid_pre", 0), (0,), torch.zeros(1, 63)), ValueError, "need"),
        (lambda m: patching.Edit(Site("mlp_out", 0), (0,), torch.ones(1, 64) / 0), ValueError, "finite"),
        (lambda m: patching.Edit(Site("z", 0), (0,), torch.zeros(1, 16), 4), ValueError, "heads 0..3"),
    ],
)  # fmt: skip
def test_fault_024_an_edit_that_cannot_be_is_refused_before_any_compute(edit, error, said):
    model, read = tiny("llama"), metrics()
    with pytest.raises(error, match=said):
        sweep_cells(untouched(model, ids(), read), [(edit(model),)], read)


def test_fault_024_a_parallel_block_names_the_sites_it_has():
    model, read = tiny("gpt_neox"), metrics()
    mid = patching.Edit(Site("resid_mid", 0), (0,), torch.zeros(1, 64))
    with pytest.raises(ValueError, match="has no resid_mid: it adds attention and MLP in parallel"):
        sweep_cells(untouched(model, ids(), read), [(mid,)], read)


def test_metrics_are_what_their_names_say():
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    assert_close(patching.log_prob(3, at=0).read(logits), log_p[:, 3])
    assert_close(patching.probability(3, at=0).read(logits), log_p[:, 3].exp())
    assert_close(patching.logit_difference(3, 8, at=0).read(logits), log_p[:, 3] - log_p[:, 8])
    order = logits.argsort(-1, descending=True)
    assert all(int(order[i, int(r)]) == 3 for i, r in enumerate(patching.rank(3, at=0).read(logits)))
    kl = patching.kl_to(logits[0], at=0).read(logits)
    expected = [torch.nn.functional.kl_div(q, log_p[0], log_target=True, reduction="sum") for q in log_p]
    assert_close(kl, torch.stack(expected), atol=1e-6, rtol=1e-5)
    assert float(kl[0]) == pytest.approx(0, abs=1e-6)
    padded = logits.index_fill(1, torch.tensor([29]), -torch.inf)
    assert patching.kl_to(padded[0], at=0).read(padded).isfinite().all()
