"""Grids: identities of patching, planted writers found, nulls beside them, and what cannot be patched."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import copy

import pytest
import torch
from torch.testing import assert_close

import mechinterp as mi
import patching
from mechinterp.alike import check_alike
from mechinterp.results import load_result
from patching.cases import Case
from patching.donors import FromRun, MeanOver, Zero
from tests.architectures import shared, tiny

N = 11


def ids(n: int = N, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 211, (n,), generator=torch.Generator().manual_seed(seed))


def wrapped(hf, name="tiny") -> mi.Model:
    return mi.wrap(hf, None, name=name, verify=False)


@pytest.fixture(scope="module")
def base():
    return wrapped(shared("llama"), "base")


@pytest.fixture(scope="module")
def trained():
    """The base with other attention weights in layer 1: shared embedding, norms and head."""
    hf = tiny("llama")
    with torch.no_grad():
        for part in (hf.model.layers[1].self_attn.o_proj, hf.model.layers[1].self_attn.q_proj):
            part.weight.add_(0.3 * torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(5)))
    return wrapped(hf, "trained")


def difference(at: int = N - 1):
    return patching.logit_difference(5, 9, at=at)


# identities of methods 12.3 ---------------------------------------------------------------------------------


def test_a_models_own_values_change_nothing(base):
    grid = patching.patch_residual(base, base, ids()[None], difference())
    assert float(grid.effects().abs().max()) == 0 and grid.n_undefined() == 1
    assert grid.recovered().isnan().all()


def test_the_last_layer_at_the_scored_row_is_the_source(base, trained):
    read = (difference(), patching.log_prob(5, at=N - 1), patching.rank(5, at=N - 1))
    grid = patching.patch_residual(trained, base, ids()[None], read, positions=[N - 1])
    assert_close(grid.values[0, -1, 0], grid.donor_values[0], atol=1e-5, rtol=1e-5)
    assert float(grid.recovered()[0, -1, 0]) == pytest.approx(1, abs=1e-4)


def test_everything_at_layer_0_with_equal_embeddings_is_no_change(base, trained):
    everywhere = {"all": tuple(range(N))}
    grid = patching.patch_residual(
        trained, base, ids()[None], difference(), positions=everywhere, site="resid_pre", layers=[0]
    )
    assert float(grid.effects().abs().max()) == 0


def test_all_positions_above_the_last_difference_are_the_source(base, trained):
    """From resid_post of the layer that differs on, all rows of the source give the source's own logits."""
    grid = patching.patch_residual(
        trained, base, ids()[None], difference(), positions={"all": tuple(range(N))}, layers=[0, 1, 2]
    )
    assert float(grid.effects()[0, 0].abs().max()) == 0
    assert_close(grid.recovered()[0, 1:, 0], torch.ones(2), atol=1e-4, rtol=0)


def test_clean_into_corrupt_is_one_of_the_same_cells(base):
    """Patching all of the source's rows into other ids gives the source's logits from any layer on."""
    grid = patching.patch_residual(
        base, base, ids()[None], difference(), source_tokens=ids(seed=2)[None],
        positions={"all": tuple(range(N))}, site="resid_pre",
    )  # fmt: skip
    assert_close(grid.recovered()[0, :, 0], torch.ones(3), atol=1e-4, rtol=0)


def test_both_directions_are_one_function(base, trained):
    there = patching.patch_residual(trained, base, ids()[None], difference(), positions=[N - 1])
    back = patching.patch_residual(base, trained, ids()[None], difference(), positions=[N - 1])
    assert_close(there.donor_values, back.baseline, atol=1e-5, rtol=1e-5)
    assert_close(back.values[0, -1, 0], there.baseline[0], atol=1e-5, rtol=1e-5)


def test_an_alignment_puts_rows_where_they_belong(base):
    """The source is the target behind two more ids: the rows of a shifted text, placed by the alignment."""
    longer = torch.cat([ids()[:1], ids(2, seed=9), ids()[1:]])
    alignment = {0: 0, **{p: p + 2 for p in range(1, N)}}
    grid = patching.patch_residual(
        base, base, ids()[None], difference(), source_tokens=longer[None], alignment=alignment,
        positions=[N - 1], site="resid_post", layers=[2],
    )  # fmt: skip
    own = base.forward(longer[None], logits_at=[-1]).logits[0]
    assert_close(grid.values[0, 0, 0, 0], difference().read(own)[0], atol=1e-5, rtol=1e-5)


# planted truths ---------------------------------------------------------------------------------------------


def planted(layer: int, token: int = 5) -> mi.Model:
    """The base with an MLP of one layer that writes towards a token, whatever it reads."""
    hf = tiny("llama")
    with torch.no_grad():
        direction = hf.lm_head.weight[token] / hf.lm_head.weight[token].norm()
        down = hf.model.layers[layer].mlp.down_proj
        reads = torch.randn(down.weight.shape[1], generator=torch.Generator().manual_seed(7)).abs()
        down.weight.add_(40 * torch.outer(direction, reads.sign()))
    return wrapped(hf, "planted")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_planted_writer_is_found_in_its_layer_and_in_its_mlp(base, layer):
    source = planted(layer)
    read = patching.log_prob(5, at=N - 1)
    stream = patching.patch_residual(source, base, ids()[None], read, positions=[N - 1])
    assert float(stream.effects()[0, :layer].abs().max() if layer else 0) == 0
    assert float(stream.recovered(least=0.0)[0, 2, 0]) == pytest.approx(1, abs=1e-4)
    case = Case(ids(), (read,), {"last": (N - 1,)})
    mlp = patching.patch_cases(FromRun(source), base, [case], site="mlp_out").effects()[0, :, 0]
    attention = patching.patch_cases(FromRun(source), base, [case], site="attn_out").effects()[0, :, 0]
    assert int(mlp.abs().argmax()) == layer
    assert (
        float(mlp[:layer].abs().max() if layer else 0) < 1e-5
        and float(attention[: layer + 1].abs().max()) < 1e-5
    )


def test_a_planted_head_is_found_and_its_neighbours_are_not():
    hf = tiny("llama")
    with torch.no_grad():
        d_head = 16
        o = hf.model.layers[1].self_attn.o_proj.weight
        o[:, 2 * d_head : 3 * d_head] += 0.5 * torch.randn(
            64, d_head, generator=torch.Generator().manual_seed(1)
        )
        # z of layer 1 is as before: what differs is how head 2 writes, so heads of the source move nothing
        changed = hf.model.layers[1].self_attn.q_proj.weight
        changed[2 * d_head : 3 * d_head] += torch.randn(
            d_head, 64, generator=torch.Generator().manual_seed(2)
        )
    source, target = wrapped(hf, "planted"), wrapped(shared("llama"), "base")
    case = Case(ids(), (difference(),), {"last": (N - 1,)})
    grid = patching.patch_heads(FromRun(source), target, [case], place="last", layers=[0, 1])
    found = grid.effects()[0].abs()
    assert grid.columns == ("head 0", "head 1", "head 2", "head 3")
    assert float(found[1, 2]) > 1e-4
    found[1, 2] = 0
    assert float(found.max()) < 1e-6


def test_a_null_model_shows_nothing_where_the_patch_does(base, trained):
    cases = [Case(ids(seed=s), (difference(),), {"last": (N - 1,)}, name=str(s)) for s in range(8)]
    real = patching.patch_cases(FromRun(trained), base, cases)
    null = patching.patch_cases(FromRun(base), base, cases)
    assert float(null.effects().abs().max()) == 0
    assert float(real.effects()[:, 1:].abs().mean()) > 0.01


# ablation ---------------------------------------------------------------------------------------------------


def test_zero_mean_and_resampled_parts_are_what_they_say(base, trained):
    case = Case(ids(), (difference(),), {"last": (N - 1,)}, control=(2, 5))
    zero = patching.ablate(Zero(), base, [case], part="mlp_out")
    edit = mi.Replace(site=mi.Site("mlp_out", 1), value=torch.zeros(64), where=mi.At((N - 1,)))
    expected = difference().read(base.forward(ids()[None], interventions=[edit], logits_at=[-1]).logits[0])
    assert_close(zero.values[0, 1, 0], expected, atol=1e-5, rtol=1e-4)
    assert zero.recovered().isnan().all() and zero.n_undefined() == 1
    mean = patching.ablate(MeanOver(), base, [case], part="attn_out")
    value = base.forward(ids()[None], capture=[mi.Site("attn_out", 1)])[mi.Site("attn_out", 1)][
        0, [2, 5]
    ].mean(0)
    edit = mi.Replace(site=mi.Site("attn_out", 1), value=value, where=mi.At((N - 1,)))
    expected = difference().read(base.forward(ids()[None], interventions=[edit], logits_at=[-1]).logits[0])
    assert_close(mean.values[0, 1, 0], expected, atol=1e-5, rtol=1e-4)
    other = patching.ablate(FromRun(base), trained, [case], part="attn_out", layers=[0])
    assert float(other.effects().abs().max()) < 1e-6  # below the layer that was trained, outputs are the same


def test_all_layers_ablated_together_are_more_than_each_alone(base):
    case = Case(ids(), (difference(),), {"all": tuple(range(N))})
    ranges = patching.up_to(range(3))
    assert ranges == [(0,), (0, 1), (0, 1, 2)] and patching.from_on(range(3))[-1] == (2,)
    grid = patching.ablate(Zero(), base, [case], part="attn_out", layers=ranges)
    edits = [mi.Replace(site=mi.Site("attn_out", layer), value=torch.zeros(64)) for layer in range(3)]
    expected = difference().read(base.forward(ids()[None], interventions=edits, logits_at=[-1]).logits[0])
    assert_close(grid.values[0, 2, 0], expected, atol=1e-5, rtol=1e-4)
    assert [grid.layer_name(i) for i in range(3)] == ["0", "0–1", "0–2"]


# placebos ---------------------------------------------------------------------------------------------------


def test_placebos_are_of_the_same_size_and_come_from_the_seed(base, trained):
    cases = [Case(ids(seed=s), (difference(),), {"last": (N - 1,)}, name=str(s)) for s in range(4)]
    options = {"nulls": ("random", "shuffled"), "site": "resid_post"}
    grid = patching.patch_cases(FromRun(trained), base, cases, seed=1, **options)
    again = patching.patch_cases(FromRun(trained), base, cases, seed=1, **options)
    other = patching.patch_cases(FromRun(trained), base, cases, seed=2, **options)
    assert grid.digest() == again.digest() and grid.digest() != other.digest()
    assert grid.null_values.shape == (2, 4, 3, 1, 1)
    assert float(grid.effects(null="random")[:, 0].abs().max()) == 0, "no change has no direction"
    assert float(grid.effects(null="random")[:, 1:].abs().min()) > 0
    assert float(grid.effects(null="shuffled").abs().min()) > 0
    with pytest.raises(KeyError, match="swept with"):
        grid.effects(null="zero")


def test_a_placebo_moves_as_far_as_the_patch():
    from patching.donors import derangement, norm_matched

    generator = torch.Generator().manual_seed(0)
    own, given = torch.randn(2, 5, 64, generator=generator)
    moved = norm_matched(own, given, generator)
    assert_close((moved - own).norm(dim=1), (given - own).norm(dim=1))
    for n in range(2, 9):
        after = derangement(n, generator)
        assert sorted(after) == list(range(n)) and all(a != i for i, a in enumerate(after))


# results ----------------------------------------------------------------------------------------------------


def test_a_grid_is_saved_whole_and_tells_its_cells(base, trained, tmp_path):
    cases = [
        Case(ids(seed=s), (difference(), patching.rank(5, at=N - 1)), {"last": (N - 1,), "first": (0, 1)},
             name=f"q{s}", cluster=f"q{s // 2}")
        for s in range(6)
    ]  # fmt: skip
    grid = patching.patch_cases(FromRun(trained), base, cases, nulls=("random",))
    again = load_result(grid.save(tmp_path / "grid"))
    assert again.digest() == grid.digest()
    table = grid.to_dataframe()
    assert len(table) == 2 * 6 * 3 * 2 * 2 and set(table["patch"]) == {"trained", "random"}
    line = table.query("case == 'q3' and layers == '2' and column == 'first' and metric == 'rank'").iloc[0]
    assert line["value"] == float(grid.values[3, 2, 1, 1]) and line["baseline"] == float(grid.baseline[3, 1])
    mean = grid.mean()
    assert mean.n == 3 and mean.unit == "cluster" and mean.n_examples == 6
    assert_close(torch.tensor(mean.estimate), grid.effects().double().mean(0).flatten())
    assert grid.test(against="random").p_max_t.shape == (6,)
    for figure in (grid.figure(), grid.figure("recovered"), grid.profile(), grid.profile("effect", "rank")):
        assert "trained → base" in figure.layout.meta["subtitle"]
    assert "engine: incremental" in grid.figure().layout.meta["subtitle"]
    with pytest.raises(KeyError, match="there is no metric 'p'"):
        grid.effects("p")


# refusals ---------------------------------------------------------------------------------------------------


def test_fault_023_unequal_lengths_need_an_alignment(base):
    with pytest.raises(ValueError, match="pass alignment="):
        patching.patch_residual(base, base, ids()[None], difference(), source_tokens=ids(N + 1)[None])
    with pytest.raises(ValueError, match="says nothing of position 0"):
        patching.patch_residual(
            base, base, ids()[None], difference(), source_tokens=ids(N + 1)[None], alignment={N - 1: N}
        )
    with pytest.raises(IndexError, match="stands for 40"):
        patching.patch_residual(
            base, base, ids()[None], difference(), source_tokens=ids(N + 1)[None], positions=[N - 1],
            alignment={N - 1: 40},
        )  # fmt: skip


def test_fault_044_another_tokenizer_is_refused(real):
    tokenizer = copy.deepcopy(real.tokenizer)
    tokenizer.add_tokens(["a token of its own"])
    other = mi.wrap(real.backend.model, tokenizer, name="other", verify=False)
    with pytest.raises(ValueError, match="differ in 1 entries, such as 'a token of its own'"):
        check_alike(other, real)


def test_fault_071_models_of_another_build_or_dtype_are_refused(base):
    with pytest.raises(ValueError, match="differ in architecture"):
        patching.patch_residual(wrapped(shared("gpt2")), base, ids()[None], difference())
    narrow = wrapped(tiny("llama").to(torch.bfloat16))
    with pytest.raises(ValueError, match="differ in dtype"):
        patching.patch_residual(narrow, base, ids()[None], difference())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"positions": [N]}, IndexError, "it has 0..10"),
        ({"positions": {"empty": ()}}, ValueError, "holds no positions"),
        ({"layers": []}, ValueError, "at least one"),
        ({"layers": [1, 1]}, ValueError, "once"),
        ({"layers": [7]}, IndexError, "layers 0..2"),
        ({"nulls": ("shuffled",)}, ValueError, "rows of other cases"),
        ({"nulls": ("zero",)}, ValueError, "nulls are"),
        ({"site": "resid_mid"}, ValueError, "cannot be patched"),
        ({"metric": ()}, ValueError, "distinct names"),
        ({"metric": patching.log_prob(5, at=N), "positions": [0]}, IndexError, "are at 0..10"),
    ],
)
def test_what_cannot_be_patched_is_refused_in_words(base, options, error, said):
    metric = options.pop("metric", difference())
    with pytest.raises(error, match=said):
        patching.patch_residual(base, base, ids()[None], metric, **options)
