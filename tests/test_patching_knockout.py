"""Cells of a knock-out are whole passes with it, over one prefix; placebos are of the same size."""

# pyright: reportArgumentType=false, reportOptionalSubscript=false

from functools import cache

import pytest
import torch
from torch.testing import assert_close

import mechinterp as mi
import patching
from mechinterp.knockout import KnockOut
from mechinterp.results import load_result
from patching.cases import Case
from patching.components import up_to
from patching.knockout import sliding
from tests.architectures import FAMILIES, shared

N = 12
METRICS = (
    patching.logit_difference(5, 9, at=N - 2),
    patching.log_prob(7, at=N - 2),
    patching.log_prob(3, at=8),
)
REGIONS = {"head": (0, 1, 2), "middle": (4, 6)}
BACKENDS = ["nnsight", "hooked_transformer", "transformer_bridge"]


def ids(seed: int = 1, n: int = N) -> torch.Tensor:
    return torch.randint(2, 211, (1, n), generator=torch.Generator().manual_seed(seed))


@cache
def model(family: str, backend="transformers") -> mi.Model:
    return mi.wrap(shared(family), None, backend=backend, verify=False)


def named(*metrics):
    """The same metrics under names of their own."""
    from dataclasses import replace

    return tuple(replace(metric, name=f"{metric.name} {i}") for i, metric in enumerate(metrics))


READ = named(*METRICS)


def naive(target, tokens, rows, region, layers, heads=None):
    cut = KnockOut(layers, rows, region, heads)
    logits = target.forward(tokens, knockouts=[cut]).logits[0].float()
    return torch.stack([metric.read(logits[metric.at, None])[0] for metric in READ])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_the_whole_pass_with_that_knock_out(family):
    """Rows at two places, one of them behind a row that is read; single layers and windows."""
    windows = [(0,), (2,), (0, 1), (0, 1, 2)]
    found = patching.knock_out(model(family), ids(), READ, rows=[7, N - 2], region=REGIONS, windows=windows)
    assert found.engine == "one prefix for all cells" and found.columns == ("head", "middle")
    natural = model(family).forward(ids()).logits[0].float()
    for i, metric in enumerate(READ):
        assert_close(found.baseline[0, i], metric.read(natural[metric.at, None])[0], atol=2e-5, rtol=1e-4)
    for i, layers in enumerate(windows):
        for j, region in enumerate(REGIONS.values()):
            expected = naive(model(family), ids(), (7, N - 2), region, layers)
            assert_close(found.values[0, i, j], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_four_backends_give_one_grid(family, kind):
    expected, found = (
        patching.knock_out(m, ids(), READ, rows=[8, 10], region=REGIONS, heads=[1, 2], placebos=1)
        for m in (model(family), model(family, kind))
    )
    assert_close(found.values, expected.values, atol=2e-5, rtol=1e-4)
    assert_close(found.null_values, expected.null_values, atol=2e-5, rtol=1e-4)
    one = naive(model(family), ids(), (8, 10), REGIONS["head"], (1,), heads=(1, 2))
    assert_close(expected.values[0, 1, 0], one, atol=2e-5, rtol=1e-4)


def test_cells_that_do_not_fit_together_run_apart(monkeypatch):
    whole = patching.knock_out(model("llama"), ids(), READ, rows=[8], region=REGIONS, placebos=2)
    monkeypatch.setattr(patching.knockout, "ROWS", 7)
    apart = patching.knock_out(model("llama"), ids(), READ, rows=[8], region=REGIONS, placebos=2)
    assert_close(apart.values, whole.values, atol=1e-5, rtol=1e-5)
    assert_close(apart.null_values, whole.null_values, atol=1e-5, rtol=1e-5)


def test_the_prefix_is_computed_once():
    found = patching.knock_out(model("llama"), ids(), METRICS[0], rows=[8], region=REGIONS)
    cells = 2 * 3 + 1  # one of them without a knock-out, to prove the rest
    assert found.token_layers == 3 * (8 + cells * (N - 1 - 8))


def test_fault_075_out_of_memory_halves_the_batch(monkeypatch):
    expected = patching.knock_out(model("llama"), ids(), READ, rows=[8], region=REGIONS)
    run, sizes = patching.knockout._logits, []

    def small(prepared, cells):
        sizes.append(len(cells))
        if len(cells) > 3:
            raise torch.OutOfMemoryError
        return run(prepared, cells)

    monkeypatch.setattr(patching.knockout, "_logits", small)
    found = patching.knock_out(model("llama"), ids(), READ, rows=[8], region=REGIONS)
    assert_close(found.values, expected.values, atol=1e-5, rtol=1e-5)
    assert sizes[0] == 7 and max(sizes[2:]) <= 3
    monkeypatch.setattr(
        patching.knockout, "_logits", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError)
    )
    with pytest.raises(torch.OutOfMemoryError):
        patching.knock_out(model("llama"), ids(), READ, rows=[8], region=REGIONS)


def test_what_no_row_sees_has_no_effect():
    late = patching.knock_out(
        model("llama"), ids(), METRICS[0], rows=[4], region={"late": [6, 7], "mid": [2]}
    )
    assert late.effects()[0, :, 0].eq(0).all() and late.effects()[0, :, 1].ne(0).all()
    behind = patching.knock_out(model("llama"), ids(), METRICS[2], rows=[10], region=[2, 3])
    assert behind.effects().eq(0).all() and behind.token_layers == 0


def test_a_window_of_two_layers_is_no_sum_and_the_last_layer_alone_moves_only_its_row():
    last = patching.knock_out(model("llama"), ids(), METRICS[2], rows=[6], region=[1, 2], windows=[2])
    assert last.effects().abs().max() < 1e-5  # row 8 reads what row 6 made in lower layers only


def test_windows():
    assert sliding(range(4), 2) == [(0, 1), (1, 2), (2, 3)] and sliding(range(3), 3) == [(0, 1, 2)]
    for width in (0, 5):
        with pytest.raises(ValueError, match="1..4 wide"):
            sliding(range(4), width)
    found = patching.knock_out(
        model("llama"), ids(), METRICS[0], rows=[8], region=[1], windows=up_to(range(3))
    )
    assert found.layers == ((0,), (0, 1), (0, 1, 2)) and found.layer_name(2) == "0–2"


def test_a_placebo_is_another_region_of_the_same_size_before_the_rows():
    drawn = set()
    for seed in range(30):
        case = Case(ids()[0], READ, {"rows": (8, 10), "a": (2, 3), "b": (0, 5, 9)})
        generator = torch.Generator().manual_seed(seed)
        a, b = patching.knockout._placebo(case, "rows", ("a", "b"), generator)
        assert len(a) == 2 and len(b) == 2 and not {2, 3} & {*a} and not {0, 5} & {*b}
        assert all(0 < p < 8 for p in (*a, *b))
        drawn |= {*a}
    assert drawn == {1, 4, 5, 6, 7}
    twice = [
        patching.knock_out(model("llama"), ids(), READ, rows=[8], region=[1, 2], placebos=2, seed=4)
        for _ in range(2)
    ]
    assert torch.equal(twice[0].null_values, twice[1].null_values)
    assert twice[0].nulls == ("placebo 1", "placebo 2")
    assert not torch.equal(twice[0].null_values[0], twice[0].null_values[1])


def test_results_are_one_a_case_with_their_cluster(tmp_path):
    cases = [
        Case(ids(seed)[0], (METRICS[0],), {"emit": (N - 2,), "system": (1, 2, 3)}, cluster=str(seed % 4))
        for seed in range(8)
    ]
    found = patching.knock_out_cases(
        model("llama"), cases, rows="emit", windows=sliding(range(3), 2), placebos=1
    )
    assert found.values.shape == (8, 2, 1, 1) and found.null_values.shape == (1, 8, 2, 1, 1)
    for number, case in enumerate(cases):
        alone = patching.knock_out(
            model("llama"), case.tokens, METRICS[0], rows=[N - 2], region=[1, 2, 3], windows=[(0, 1), (1, 2)]
        )
        assert_close(found.values[number], alone.values[0], atol=1e-5, rtol=1e-5)
    assert found.mean().n == 4 and found.test(against="placebo 1").p.shape == (2,)
    assert found.n_undefined() == 8  # no run gave anything, so nothing can be recovered
    assert "patched" not in found.figure().to_dict()["layout"]["title"]["text"]
    assert load_result(found.save(tmp_path)).digest() == found.digest()


@pytest.mark.real
def test_the_earlier_copies_are_what_a_repeated_text_is_continued_from(real):
    """In SmolLM2: eight random words three times over; the last one is read off its earlier copies."""
    words = torch.randint(1000, 20000, (8,), generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([torch.tensor([1]), words, words, words])[None]
    metric = patching.log_prob(int(words[-1]), at=23)
    found = patching.knock_out(
        real, tokens, metric, rows=[23], region=[8, 16], windows=[range(10), range(10, 30)], placebos=3
    )
    early, late = found.effects().flatten().tolist()
    assert float(found.baseline) > -1 and late < -3 and abs(early) < 0.5
    for null in found.nulls:
        assert float(found.effects(null=null).abs().max()) < 0.5


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        pytest.param({"windows": [3]}, IndexError, "0..2", id="fault_001"),
        pytest.param({"windows": []}, ValueError, "at least one", id="fault_004_empty"),
        pytest.param({"windows": [1, 1]}, ValueError, "once", id="fault_004_twice"),
        pytest.param({"rows": [N]}, IndexError, "0..11", id="fault_017"),
        pytest.param({"region": [-1]}, IndexError, "0..11", id="fault_017_key"),
        pytest.param({"heads": [4]}, IndexError, "0..3", id="head"),
        pytest.param({"region": []}, ValueError, "no positions", id="no_region"),
        pytest.param({"rows": []}, ValueError, "no positions", id="no_rows"),
        pytest.param({"region": range(9)}, ValueError, "no key in layer 0", id="all_keys"),
        pytest.param({"region": range(8), "placebos": 1}, ValueError, "placebo", id="no_placebo"),
        pytest.param({"region": {"rows": [1]}}, ValueError, "otherwise", id="name"),
        pytest.param({"metric": patching.log_prob(5, at=N)}, IndexError, "0..11", id="metric"),
    ],
)
def test_what_cannot_be_knocked_out_is_refused(options, error, said):
    given = {"metric": METRICS[0], "rows": [8], "region": [1, 2], **options}
    with pytest.raises(error, match=said):
        patching.knock_out(model("llama"), ids(), given.pop("metric"), **given)


def test_the_place_of_the_rows_must_be_there():
    case = Case(ids()[0], READ, {"emit": (8,)})
    for rows in ("emit", "other"):
        with pytest.raises(ValueError, match="rows="):
            patching.knock_out_cases(model("llama"), [case], rows=rows)
