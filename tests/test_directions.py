"""Directions: identities, parity with scipy and torch, planted truths, and the faults of the catalogue."""

import numpy as np
import pytest
import torch
from einops import rearrange
from scipy.spatial.distance import cosine as scipy_cosine
from torch.testing import assert_close

from mechinterp import directions as d


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mean_difference_is_antisymmetric_and_keeps_layers():
    a, b = drawn(6, 3, 8), drawn(4, 3, 8, seed=1)
    assert_close(d.mean_difference(a, b), -d.mean_difference(b, a))
    assert_close(d.mean_difference(a, b)[1], d.mean_difference(a[:, 1], b[:, 1]))


def test_mean_difference_finds_the_shift_that_was_planted():
    base, shift = drawn(5, 2, 16), drawn(2, 16, seed=1)
    assert_close(d.mean_difference(base + shift, base), shift, atol=1e-5, rtol=0)


def test_mean_difference_of_bf16_is_taken_in_fp32():
    a = (1000 + drawn(300, 4)).bfloat16()
    b = (1000 + drawn(300, 4, seed=1)).bfloat16()
    exact = a.double().mean(0) - b.double().mean(0)
    assert_close(d.mean_difference(a, b).double(), exact, atol=1e-3, rtol=0)


def test_fault_015_identical_prompt_sets_are_a_zero_contrast():
    a = drawn(5, 3, 8)
    for call in (lambda: d.mean_difference(a, a.flip(0)), lambda: d.pca_of_differences(a - a)):
        with pytest.raises(ValueError, match="contrast is zero"):
            call()


def test_fault_015_one_layer_that_agrees_keeps_its_zero_row():
    a, b = drawn(5, 2, 8), drawn(5, 2, 8, seed=1)
    b[:, 0] = a[:, 0]
    difference = d.mean_difference(a, b)
    assert difference[0].norm() < 1e-6 < difference[1].norm()


def test_fault_016_no_prompts_raise_and_one_is_the_plain_difference():
    a, b = drawn(1, 8), drawn(1, 8, seed=1)
    assert_close(d.mean_difference(a, b), a[0] - b[0])
    for left, right in ((a[:0], b), (a, b[:0])):
        with pytest.raises(ValueError, match="n=0"):
            d.mean_difference(left, right)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_009_values_that_are_not_finite_are_refused(bad: float):
    a = drawn(4, 8)
    spoilt = a.clone()
    spoilt[2, 3] = bad
    for call in (
        lambda: d.mean_difference(a, spoilt),
        lambda: d.pca_of_differences(spoilt),
        lambda: d.projection(a, spoilt[2]),
        lambda: d.cosine_matrix(spoilt, center_on=None),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call()


def test_fault_010_a_zero_vector_has_no_cosine_and_no_projection():
    x, zero = drawn(3, 8), torch.zeros(8)
    assert d.cosine(x, zero).isnan().all()
    assert d.cosine(x, x[0]).isfinite().all()
    with pytest.raises(ValueError, match="norm zero"):
        d.projection(x, torch.stack([x[0], zero]))


def test_pca_of_differences_finds_the_planted_axis_whatever_its_sign():
    axis = torch.nn.functional.normalize(drawn(2, 16, seed=3), dim=-1)
    strength = 5 + drawn(40, 1, 1, seed=4)
    pairs = strength * axis + 0.1 * drawn(40, 2, 16, seed=5)
    for sign in (1, -1):
        found = d.pca_of_differences(sign * pairs)
        assert (d.cosine(found, sign * axis) > 0.99).all()
        assert ((found * (sign * pairs).mean(0)).sum(-1) > 0).all()
    assert_close(found.norm(dim=-1), torch.ones(2))


def test_top_singular_is_numpy_svd_and_shares_sum_to_one():
    rows = drawn(6, 3, 10) + 2
    for centered in (False, True):
        top = d.top_singular(rows, centered=centered)
        for layer in range(3):
            matrix = rows[:, layer].double().numpy()
            matrix = matrix - matrix.mean(0) if centered else matrix
            _, spectrum, right = np.linalg.svd(matrix, full_matrices=False)
            assert np.allclose(top.spectrum[layer], spectrum, atol=1e-4)
            assert abs(abs(float(right[0] @ top.direction[layer].double().numpy())) - 1) < 1e-5
            assert float(top.share[layer]) == pytest.approx(spectrum[0] ** 2 / (spectrum**2).sum(), rel=1e-5)


def test_the_sign_of_top_singular_is_that_of_the_mean_at_any_scale():
    rows = drawn(6, 3, 10) + 1
    for scale in (1e-3, 1.0, 1e3):
        for sign in (1, -1):
            found = d.top_singular(sign * scale * rows, centered=True).direction
            assert ((found * sign * rows.mean(0)).sum(-1) > 0).all()


def test_top_singular_centred_ignores_what_all_rows_share():
    axis = torch.eye(12)[4]
    rows = 100 * torch.eye(12)[0] + torch.linspace(-1, 1, 7)[:, None] * axis
    assert abs(d.top_singular(rows, centered=False).direction[0]) > 0.99
    centred = d.top_singular(rows, centered=True)
    assert abs(centred.direction[4]) > 0.99 and centred.share > 0.99
    with pytest.raises(ValueError, match="rows are the same"):
        d.top_singular(rows[:1].expand(3, -1), centered=True)


def test_projection_is_linear_and_ignores_the_length_of_the_direction():
    x, v = drawn(2, 5, 8), drawn(3, 8, seed=1)
    assert d.projection(x, v).shape == (2, 5, 3)
    assert d.projection(x, v[0]).shape == (2, 5)
    assert_close(d.projection(x, v), d.projection(x, 17 * v))
    # the persistence study's identity: adding alpha v moves the projection by alpha ||v||
    assert_close(d.projection(x + 0.5 * v[1], v[1]), d.projection(x, v[1]) + 0.5 * v[1].norm())
    assert_close(d.projection(x, v)[..., 2], d.cosine(x, v[2]) * x.norm(dim=-1))


def test_cosine_is_scipy_and_never_leaves_its_bounds():
    x, v = drawn(20, 30), drawn(30, seed=1)
    expected = [1 - scipy_cosine(row.double(), v.double()) for row in x]
    assert_close(d.cosine(x, v).double(), torch.tensor(expected, dtype=torch.double), atol=1e-6, rtol=0)
    assert d.cosine(x, 3 * x).max() <= 1


def test_cosine_matrix_has_no_hidden_centre():
    rows = drawn(5, 2, 8) + 3
    with pytest.raises(TypeError):
        d.cosine_matrix(rows)  # type: ignore[call-arg]
    raw = d.cosine_matrix(rows, center_on=None)
    own = d.cosine_matrix(rows, center_on=rows.mean(0))
    assert raw.shape == (2, 5, 5)
    assert_close(raw, rearrange(raw, "layer i j -> layer j i"))
    assert_close(own[1], d.cosine_matrix(rows[:, 1] - rows[:, 1].mean(0), center_on=None))
    assert raw.min() > 0 > own.min()


def test_centring_points_on_themselves_forces_negative_cosines():
    """Methods 4: the mean off-diagonal cosine of n centred random points is about -1 / (n - 1)."""
    rows = drawn(11, 4000)
    cosines = d.cosine_matrix(rows, center_on=rows.mean(0))
    off = cosines[~torch.eye(11, dtype=torch.bool)]
    assert float(off.mean()) == pytest.approx(-1 / 10, abs=0.01)


def test_fault_010_a_row_that_is_the_centre_has_no_cosine():
    rows = drawn(4, 8)
    cosines = d.cosine_matrix(rows, center_on=rows[1])
    assert cosines[1].isnan().all() and cosines[:, 1].isnan().all()
    assert cosines[[0, 2, 3]][:, [0, 2, 3]].isfinite().all()
    assert d.cosine_matrix(rows[:1].repeat(3, 1), center_on=rows[0]).isnan().all()


def test_split_halves_agree_on_a_planted_vector_and_not_on_noise(generator: torch.Generator):
    noise = drawn(30, 2, 400)
    planted = noise.clone()
    planted[:, 1] += 3 * drawn(400, seed=9)
    halves = d.split_half_cosine(planted, generator, n_splits=50)
    assert halves.shape == (50, 2)
    assert halves[:, 0].mean().abs() < 0.1 and halves[:, 1].min() > 0.95


def test_split_half_of_two_prompts_is_their_cosine(generator: torch.Generator):
    pair = drawn(2, 8)
    assert_close(d.split_half_cosine(pair, generator, n_splits=3), d.cosine(pair[0], pair[1]).expand(3))
    with pytest.raises(ValueError, match="two prompts"):
        d.split_half_cosine(pair[:1], generator)


def test_permutation_null_sees_the_planted_layer_only(generator: torch.Generator):
    a, b = 50 + drawn(12, 3, 64), 50 + drawn(9, 3, 64, seed=1)
    a[:, 2] += 1
    result = d.permutation_norm_null(a, b, generator, n_permutations=199)
    assert_close(result.observed, d.mean_difference(a, b).norm(dim=-1))
    assert result.null.shape == (199, 3)
    assert float(result.p[2]) == pytest.approx(1 / 200) and (result.p[:2] > 0.05).all()


def test_permutation_null_p_is_uniform_where_there_is_nothing():
    def p_of(trial: int) -> torch.Tensor:
        a, b = drawn(6, 20, 16, seed=2 * trial), drawn(6, 20, 16, seed=2 * trial + 1)
        return d.permutation_norm_null(a, b, torch.Generator().manual_seed(trial), n_permutations=99).p

    p = torch.cat([p_of(trial) for trial in range(15)])
    assert float((p <= 0.05).float().mean()) < 0.09 and 0.4 < float(p.mean()) < 0.6


def test_permutation_null_is_the_same_in_small_blocks(monkeypatch: pytest.MonkeyPatch):
    a, b = drawn(5, 3, 8), drawn(4, 3, 8, seed=1)
    whole = d.permutation_norm_null(a, b, torch.Generator().manual_seed(3), n_permutations=20)
    monkeypatch.setattr(d, "BLOCK", 1)
    blocked = d.permutation_norm_null(a, b, torch.Generator().manual_seed(3), n_permutations=20)
    assert_close(whole.null, blocked.null)


def test_permutation_null_of_one_prompt_a_side_proves_nothing(generator: torch.Generator):
    assert (d.permutation_norm_null(drawn(1, 4, 8), drawn(1, 4, 8, seed=1), generator).p == 1).all()


def test_random_direction_has_its_norm_and_its_seed(generator: torch.Generator):
    v = d.random_direction(512, 3.5, generator)
    assert float(v.norm()) == pytest.approx(3.5, rel=1e-5)
    assert_close(v, d.random_direction(512, 3.5, torch.Generator().manual_seed(7)))
    assert abs(float(d.cosine(v, d.random_direction(512, 1.0, generator)))) < 0.2
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite norm"):
            d.random_direction(4, wrong, generator)


def test_one_row_on_one_direction_is_one_number():
    found = d.projection(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    assert found.shape == () and float(found) == 4.0


def test_a_short_direction_is_a_direction():
    x, v = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.01]])
    torch.testing.assert_close(d.projection(x, v), torch.tensor([[4.0]]))


def test_differences_are_not_centred_for_they_share_what_is_looked_for():
    """All differences point one way and vary across it: centred, only the variation would be left."""
    generator = torch.Generator().manual_seed(0)
    shared, across = torch.eye(8)[0], torch.eye(8)[1]
    pairs = 5 * shared + torch.randn(40, 1, generator=generator) * across
    found = d.pca_of_differences(pairs)
    assert float(found @ shared) > 0.95


def test_the_sign_is_that_of_the_mean_though_single_entries_disagree():
    pairs = torch.tensor([[4.0, -0.1, 0.0], [3.0, -0.2, 0.1], [5.0, -0.1, -0.1]])
    found = d.pca_of_differences(pairs)
    assert float(found @ pairs.mean(0)) > 0
    assert float(d.pca_of_differences(-pairs) @ -pairs.mean(0)) > 0


def test_a_layer_is_small_or_nothing_beside_itself_and_not_beside_other_layers():
    """Rows of a short layer are not nothing because another layer is a million times as long."""
    rows = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0))
    scaled = rows * torch.tensor([1.0, 1e7])[:, None]
    here, there = (d.cosine_matrix(given, center_on=given.mean(0)) for given in (rows, scaled))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        d.mean_difference(scaled[:2], scaled[2:])[0], d.mean_difference(rows[:2], rows[2:])[0]
    )


def test_one_split_and_one_permutation_are_enough_to_ask_for():
    rows, generator = torch.randn(4, 6), torch.Generator().manual_seed(0)
    assert d.split_half_cosine(rows, generator, n_splits=1) is not None
    found = d.permutation_norm_null(rows[:2], rows[2:], generator, n_permutations=1)
    assert found is not None
    assert d.random_direction(1, 2.0, generator).abs().tolist() == [2.0]


def test_a_contrast_is_zero_where_it_is_rounding_of_its_own_layer():
    """A long layer without a difference hides none in a short one; noise of all layers is no contrast."""
    a = torch.ones(3, 2, 4) * torch.tensor([1.0, 1e8])[:, None]
    b = a.clone()
    b[:, 0, 0] += 1.0
    assert d.mean_difference(a, b)[0].norm() == 1.0
    noise = a.clone()
    noise[:, 1, 0] += 8.0  # the next number that fp32 has there
    with pytest.raises(ValueError, match="the contrast is zero at every layer"):
        d.mean_difference(a, noise)


def test_the_sign_of_a_small_mean_is_a_sign_too():
    pairs = 0.01 * torch.tensor([[4.0, -0.1, 0.0], [3.0, -0.2, 0.1], [5.0, -0.1, -0.1]])
    for turned in (pairs, -pairs):
        assert float(d.pca_of_differences(turned) @ turned.mean(0)) > 0
