"""First-order effects are slopes of patching, right where patches are small, and say how far off they are."""

# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import copy
import math
from functools import cache

import pytest
import torch
from scipy.stats import spearmanr
from torch.testing import assert_close

import mechinterp as mi
import patching
from mechinterp.gradients import gradients
from mechinterp.interventions import Add
from mechinterp.results import load_result
from mechinterp.sites import Site
from mechinterp.where import At
from patching.cells import untouched
from patching.sweep import sweep_cells
from tests.architectures import FAMILIES, shared, tiny

N = 9
METRIC = patching.logit_difference(5, 9, at=N - 1)
SITES = ["resid_pre", "attn_out", "mlp_out", "resid_post", "z"]
BACKENDS = ["nnsight", "hooked_transformer", "transformer_bridge"]


def ids(seed: int = 1, n: int = N) -> torch.Tensor:
    return torch.randint(2, 211, (1, n), generator=torch.Generator().manual_seed(seed))


@cache
def model(family: str, backend="transformers") -> mi.Model:
    return mi.wrap(shared(family), None, backend=backend, verify=False)


@cache
def near(family: str, size: float = 1e-4) -> mi.Model:
    """The same model with weights a little off, so that patches from it are small."""
    moved = copy.deepcopy(shared(family))
    generator = torch.Generator().manual_seed(2)
    for parameter in moved.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return mi.wrap(moved, None, verify=False)


def attributed(source: mi.Model, target: mi.Model, metric=METRIC, **options):
    return patching.attribution_patching(source, target, ids(), metric, **options)


# against exact patching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "bloom"])
def test_small_patches_do_what_their_attribution_says(family, site):
    """In fp64, where the exact effects of small patches are not rounding. Grouped queries in two of them."""
    base, moved = tiny(family).double(), tiny(family).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in moved.parameters():
        parameter.data += 2e-4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    pair = [mi.wrap(one, None, verify=False) for one in (moved, base)]
    found = attributed(*pair, site=site, n_exact=40)
    reach = float(found.exact.abs().max())
    assert 0 < reach < 0.5 and found.worst_error < 0.05 * reach and found.rank_correlation > 0.98


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_slopes_of_the_way_to_the_source(family):
    """Finite differences on the way of one position, for single heads of z and for attn_out.

    Four steps of 2^-5: norms that compute in fp32 even in an fp64 model would show smaller ones as rounding.
    """
    target, donor, step = mi.wrap(tiny(family).double(), None, verify=False), ids(seed=4), 2.0**-5
    steps = step * torch.tensor([1.0, -1, 2, -2])
    for site in ("attn_out", "z"):
        found = attributed(target, target, source_tokens=donor, site=site, n_exact=1)
        for layer, head, position in ((0, 0, 3), (2, max(0, len(found.heads) - 1), N - 1)):
            at = Site(site, layer)
            own, given = (target.forward(t, capture=[at])[at][0, position] for t in (ids(), donor))
            way = given - own
            if found.heads:
                way = way * (torch.arange(len(found.heads)) == head)[:, None]
            edit = Add(at, way, where=At((position,)), strength=steps)
            seen = target.forward(ids().expand(4, -1), logits_at=[N - 1], interventions=[edit])
            up, down, far_up, far_down = METRIC.read(seen.logits[:, 0]).tolist()
            expected = (8 * (up - down) - (far_up - far_down)) / (12 * step)
            assert float(found.effects[layer, head, position]) == pytest.approx(expected, rel=3e-3, abs=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_the_sample_is_the_exact_engines_and_so_are_its_figures(site):
    source, target = near("llama", 0.05), model("llama")
    found = attributed(
        source, target, site=site, n_exact=10_000, layers=[2, 0], positions={"a": [2, 4], "b": [8]}
    )
    assert torch.equal(found.sampled, torch.arange(found.effects.numel()))
    run = untouched(target, ids()[0], [METRIC])
    cells = []
    for layer in (2, 0):
        at = Site(site, layer)
        rows = source.forward(ids(), capture=[at])[at][0]
        for head in range(4) if site == "z" else [None]:
            for where in ((2, 4), (8,)):
                value = rows[list(where)] if head is None else rows[list(where)][:, head]
                cells.append((patching.Edit(at, where, value, head),))
    swept = sweep_cells(run, cells, [METRIC])
    assert_close(found.exact, swept.values[:, 0] - swept.baseline[0], atol=1e-6, rtol=1e-5)
    assert found.layers == (2, 0) and found.columns == ("a", "b")
    assert found.rank_correlation == pytest.approx(float(spearmanr(found.approximate, found.exact).statistic))
    assert found.worst_error == float((found.approximate - found.exact).abs().max())


def test_a_place_of_several_positions_is_the_sum_of_them():
    options = {"source_tokens": ids(seed=4), "n_exact": 1}
    single = attributed(model("llama"), model("llama"), **options)
    sets = attributed(model("llama"), model("llama"), positions={"some": [1, 4, 8]}, **options)
    assert_close(sets.effects[..., 0], single.effects[..., [1, 4, 8]].sum(-1))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_four_backends_give_one_attribution(family, kind):
    for site, steps in (("z", 1), ("resid_post", 3)):
        found, expected = (
            attributed(m, m, source_tokens=ids(seed=4), site=site, steps=steps, n_exact=5)
            for m in (model(family, kind), model(family))
        )
        assert_close(found.effects, expected.effects, atol=2e-5, rtol=1e-4)
        assert_close(found.exact, expected.exact, atol=2e-5, rtol=1e-4)


# the integrated path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family,site", [("llama", "z"), ("llama", "resid_post"), ("gemma2", "mlp_out"), ("gpt2", "attn_out")]
)
def test_integrated_effects_of_a_layer_add_up_to_patching_it_whole(family, site):
    """Completeness; one gradient at the target's rows is off by more."""
    target, donor = model(family), ids(seed=4)
    whole = patching.patch_residual(
        target, target, ids(), METRIC, positions={"all": range(N)}, source_tokens=donor, site=site
    ).effects()[0, :, 0]
    errors = [
        (
            attributed(target, target, source_tokens=donor, site=site, steps=steps, n_exact=1).effects.sum(
                (1, 2)
            )
            - whole
        )
        for steps in (1, 64)
    ]
    assert float(errors[1].abs().max()) < 5e-4 * float(whole.abs().max())  # midpoints: 8e-5 seen
    assert float(errors[1].abs().max()) < 0.05 * float(errors[0].abs().max())


def test_a_path_of_no_length_and_of_small_length_is_the_gradient():
    target = model("llama")
    one, four = (attributed(near("llama"), target, steps=steps, n_exact=1) for steps in (1, 4))
    assert_close(four.effects, one.effects, atol=1e-6, rtol=0.02)
    assert attributed(target, target, steps=4, n_exact=1).effects.eq(0).all()


# identities, the result -------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_a_models_own_rows_have_no_effect_and_no_rank_correlation(site):
    found = attributed(model("llama"), model("llama"), site=site, n_exact=5)
    assert found.effects.eq(0).all() and found.exact.abs().max() < 1e-5 and found.worst_error < 1e-5
    assert math.isnan(found.rank_correlation) and found.baseline == pytest.approx(found.donor_value, abs=1e-5)


def test_what_cannot_reach_the_row_has_no_effect():
    target = model("llama")
    early = patching.log_prob(7, at=4)
    found = attributed(target, target, early, source_tokens=ids(seed=4), positions=range(N))
    assert found.effects[..., 5:].eq(0).all() and found.effects[:2, :, :5].ne(0).all()
    assert found.effects[2, :, :4].eq(0).all() and found.effects[2, 0, 4] != 0


def test_another_length_goes_through_an_alignment():
    target, longer = model("llama"), torch.cat([torch.tensor([[3, 4]]), ids()], 1)
    shifted = {p: p + 2 for p in range(N)}
    found = attributed(target, target, source_tokens=longer, alignment=shifted, n_exact=1, site="resid_pre")
    rows = target.forward(longer, capture=[Site("resid_pre", 1)])[Site("resid_pre", 1)][0, 2:]
    own = target.forward(ids(), capture=[Site("resid_pre", 1)])[Site("resid_pre", 1)][0]
    slope = gradients(
        target, ids(), [Site("resid_pre", 1)], lambda x: METRIC.read(x[:, 0]).sum(), logits_at=[-1]
    )
    assert_close(found.effects[1, 0], ((rows - own) * slope[Site("resid_pre", 1)][0]).sum(-1))


def test_the_sample_is_drawn_from_the_seed():
    def sample(seed):
        return attributed(near("llama"), model("llama"), site="z", n_exact=6, seed=seed).sampled.tolist()

    assert sample(0) == sample(0) != sample(1) and len(set(sample(0))) == 6


def test_table_figures_and_round_trip(tmp_path):
    for site in ("z", "resid_post"):
        found = attributed(near("llama"), model("llama"), site=site, n_exact=6)
        table = found.to_dataframe()
        assert len(table) == found.effects.numel() and table["exact"].notna().sum() == 6
        cell = table.iloc[int(found.sampled[2])]
        assert cell["exact"] == pytest.approx(float(found.exact[2]))
        for figure in (found.figure(), found.agreement()):
            assert "Spearman" in figure.to_dict()["layout"]["meta"]["subtitle"]
        assert load_result(found.save(tmp_path / site)).digest() == found.digest()
    with pytest.raises(KeyError, match="no column"):
        found.figure("x")


# faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        pytest.param({"source_tokens": ids(n=5)}, ValueError, "alignment", id="fault_023"),
        pytest.param({"site": "resid_mid"}, ValueError, "cannot be patched", id="fault_024"),
        pytest.param({"layers": [3]}, IndexError, "0..2", id="fault_001"),
        pytest.param({"positions": [N]}, IndexError, "0..8", id="fault_017"),
        pytest.param({"positions": []}, ValueError, "at least one", id="no_positions"),
        pytest.param({"steps": 0}, ValueError, "1 or more", id="steps"),
        pytest.param({"n_exact": 0}, ValueError, "exact cells", id="n_exact"),
        pytest.param({"metric": (METRIC,)}, TypeError, "one metric", id="metrics"),
        pytest.param({"metric": patching.rank(5, at=3)}, ValueError, "has a gradient", id="rank"),
    ],
)
def test_what_cannot_be_attributed_is_refused(options, error, said):
    with pytest.raises(error, match=said):
        attributed(near("llama"), model("llama"), **{"metric": METRIC, **options})
