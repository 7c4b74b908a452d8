"""Divergences: parity with torch and scipy, bounds, the published table of aggregates, gradients, memory."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mechinterp import divergence as dv

HOW = ("mean", "rmse", "p95", "max")


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kl_is_torch_distributions_and_scipy():
    p, q = logits(4, 7, 50), logits(4, 7, 50, seed=1)
    ours = dv.kl(p, q)
    assert_close(ours, kl_divergence(Categorical(logits=p), Categorical(logits=q)), atol=1e-5, rtol=1e-5)
    numpy = rel_entr(p.double().softmax(-1).numpy(), q.double().softmax(-1).numpy()).sum(-1)
    assert np.allclose(ours.numpy(), numpy, atol=1e-5)


def test_js_is_scipy_symmetric_and_bounded():
    p, q = logits(30, 50), logits(30, 50, seed=1)
    expected = jensenshannon(p.double().softmax(-1).numpy(), q.double().softmax(-1).numpy(), axis=-1) ** 2
    assert np.allclose(dv.js(p, q).numpy(), expected, atol=1e-6)
    assert_close(dv.js(p, q), dv.js(q, p))
    apart = torch.full((2, 10), -math.inf)
    apart[0, :5] = apart[1, 5:] = 0
    assert float(dv.js(apart[0], apart[1])) == pytest.approx(math.log(2))


def test_a_distribution_is_no_distance_from_itself_whatever_its_offset():
    p = logits(6, 40)
    assert (dv.kl(p, p) == 0).all() and (dv.js(p, p).abs() < 1e-7).all()
    assert (dv.kl(p, p + 100) < 1e-5).all() and (dv.kl(p, p + 100) >= 0).all()


def test_suppressed_tokens_add_nothing_on_the_left_and_infinity_on_the_right():
    p, q = logits(3, 20), logits(3, 20, seed=1)
    cut = p.clone()
    cut[:, 4] = -math.inf
    rest = cut.isfinite()[0]
    both = q.clone()
    both[:, 4] = -math.inf
    assert_close(dv.kl(cut, both), dv.kl(p[:, rest], q[:, rest]))
    assert_close(dv.js(cut, both), dv.js(p[:, rest], q[:, rest]))
    assert dv.kl(p, cut).isposinf().all() and dv.kl(cut, p).isfinite().all()
    leaf = cut.clone().requires_grad_()
    (dv.kl(leaf, both).sum() + dv.js(leaf, both).sum()).backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_half_precision_logits_are_compared_in_fp32():
    p, q = logits(5, 2000).bfloat16(), logits(5, 2000, seed=1).bfloat16()
    ours = dv.kl(p, q)
    assert ours.dtype == torch.float32
    exact = kl_divergence(Categorical(logits=p.double()), Categorical(logits=q.double()))
    assert_close(ours.double(), exact, atol=1e-4, rtol=0)


def test_vocabularies_of_different_size_are_refused():
    with pytest.raises((ValueError, TypeError), match="vocab"):
        dv.kl(logits(3, 20), logits(3, 21))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that owns new memory."""

    def __init__(self, known: set[int]):
        super().__init__()
        self.known, self.numel = known, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.known:
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("divergence", [dv.kl, dv.js])
def test_memory_is_bounded_by_the_block_and_blocks_change_nothing(
    divergence, monkeypatch: pytest.MonkeyPatch
):
    p, q = logits(3, 40, 100).bfloat16(), logits(3, 40, 100, seed=1).bfloat16()
    whole = divergence(p, q)
    monkeypatch.setattr(dv, "BLOCK", 700)
    with Largest({p.untyped_storage().data_ptr(), q.untyped_storage().data_ptr()}) as largest:
        blocked = divergence(p, q)
    assert_close(whole, blocked)
    assert largest.numel <= 700


def coherent_and_collapsed() -> dict[str, np.ndarray]:
    """KL at 60 positions of the two synthetic failures of methods 11, in numpy, from their description.

    Tokens are ranked by their mean probability over the positions.
    """

    def probabilities(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def clipped(x: np.ndarray) -> np.ndarray:
        return probabilities(x).clip(1e-9)

    reference = np.random.default_rng(0).normal(size=(60, 200))
    order = probabilities(reference).mean(0).argsort()
    trait, loop = reference.copy(), reference.copy()
    trait[:, order[100]] += 1.6
    loop[12:16] = -10.0
    loop[12:16, order[3]] = 12.0
    return {
        name: (clipped(x) * (np.log(clipped(x)) - np.log(clipped(reference)))).sum(1)
        for name, x in (("trait", trait), ("loop", loop))
    }


def test_the_published_table_of_aggregates_is_reproduced():
    table = {
        name: [round(float(dv.aggregate(torch.from_numpy(k), how)), 3) for how in HOW]
        for name, k in coherent_and_collapsed().items()
    }
    assert table == {"trait": [0.018, 0.026, 0.049, 0.095], "loop": [0.379, 1.527, 3.777, 8.081]}


@pytest.mark.parametrize("length", [1, 2, 19, 20, 21, 500])
def test_p95_is_torch_quantile(length: int):
    k = logits(4, length).abs()
    assert_close(dv.aggregate(k, "p95"), k.quantile(0.95, dim=-1))


@pytest.mark.parametrize("how", HOW)
def test_a_masked_row_is_the_row_cut_short(how: dv.Aggregate):
    k = logits(3, 30).abs()
    lengths = torch.tensor([30, 11, 1])
    mask = torch.arange(30) < lengths[:, None]
    spoilt = k.masked_fill(~mask, math.nan)
    cut = torch.stack([dv.aggregate(row[:length], how) for row, length in zip(k, lengths, strict=True)])
    assert_close(dv.aggregate(spoilt, how, mask=mask), cut)
    assert dv.aggregate(k, how, mask=torch.zeros_like(mask)).isnan().all()
    assert dv.aggregate(k[:, :0], how).isnan().all()


@pytest.mark.parametrize("how", HOW)
def test_gradients_are_finite_at_zero_and_elsewhere(how: dv.Aggregate):
    for start in (torch.zeros(2, 9), logits(2, 9).abs(), torch.ones(2, 9).half()):
        k = start.clone().requires_grad_()
        dv.hinge_barrier(dv.aggregate(k, how), tau=0.5, weight=0.3).sum().backward()
        assert k.grad is not None and k.grad.isfinite().all()


def test_a_spike_moves_the_aggregates_in_their_order():
    k = torch.full((100,), 0.01)
    k[:6] = 8.0
    mean, rmse, p95, largest = (float(dv.aggregate(k, how)) for how in HOW)
    assert mean < rmse < p95 <= largest
    k[3] = math.inf
    assert dv.aggregate(k, "max").isposinf() and dv.aggregate(k, "p95").isfinite()


def test_the_barrier_is_nothing_below_its_threshold_and_a_ramp_above():
    value = torch.tensor([0.0, 0.5, 1.5])
    assert_close(dv.hinge_barrier(value, 0.5, 0.3), torch.tensor([0.0, 0.0, 0.3]))


def test_an_unknown_aggregate_names_the_known_ones():
    with pytest.raises((ValueError, TypeError), match="mean.*rmse.*p95.*max"):
        dv.aggregate(torch.ones(3), "median")  # type: ignore[arg-type]


# every pair at once -----------------------------------------------------------------------------------------


def near(k: int, n: int, d_vocab: int) -> torch.Tensor:
    """k distributions that share most of themselves, as those of one text under k prompts do."""
    return logits(1, n, d_vocab, seed=7) + logits(k, n, d_vocab, seed=8, scale=0.3)


@pytest.mark.parametrize(
    ("k", "d_vocab", "held"), [(5, 50, 2**19), (5, 1300, 2**19), (4, 1300, 2**13), (2, 512, 1)]
)
def test_every_pair_at_once_is_each_pair_in_fp64(k, d_vocab, held, monkeypatch):
    """Odd and even numbers of distributions, vocabularies in one part and in several."""
    monkeypatch.setattr(dv, "PAIRS_BLOCK", held)
    given = near(k, 9, d_vocab) + 50 * torch.arange(k)[:, None, None]  # an offset is nothing to a softmax
    found, exact = dv.pairwise(given), given.double().softmax(-1).numpy()
    for a in range(k):
        for b in range(k):
            js = jensenshannon(exact[a], exact[b], axis=-1) ** 2
            assert np.allclose(found.js[:, a, b], js, atol=1e-6)
            assert np.allclose(found.kl[:, a, b], rel_entr(exact[a], exact[b]).sum(-1), atol=1e-6)
    assert torch.equal(found.js, found.js.transpose(1, 2))
    assert (found.js.diagonal(dim1=1, dim2=2) == 0).all() and (found.kl.diagonal(dim1=1, dim2=2) == 0).all()


def test_pairs_keep_their_direction_and_what_one_excludes_is_infinite_one_way():
    given = near(3, 4, 30)
    given[1, :, 2] = -math.inf
    found = dv.pairwise(given)
    assert found.kl[:, 0, 1].isposinf().all() and found.kl[:, 1, 0].isfinite().all()
    assert_close(found.kl[:, 1, 0], dv.kl(given[1], given[0]), atol=1e-6, rtol=1e-5)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert_close(found.js[:, b, a], dv.js(given[b], given[a]), atol=1e-6, rtol=1e-5)
    assert (found.kl.diagonal(dim1=1, dim2=2) == 0).all()


def test_distributions_far_apart_and_alike_keep_their_bounds():
    """Probabilities that fp32 rounds to 0 cost what their logits say; equal ones are at no distance."""
    given = torch.zeros(4, 1, 700)
    given[0, 0, 0] = given[1, 0, 1] = 300.0
    given[3] = given[2] = logits(1, 700)
    found = dv.pairwise(given)
    assert float(found.js[0, 0, 1]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found.kl[0, 0, 1]) == pytest.approx(300) and (found.kl >= 0).all() and (found.js >= 0).all()
    assert float(found.js[0, 2, 3]) < 3e-7 and float(found.kl[0, 2, 3]) < 3e-7


def test_one_distribution_has_no_pair():
    alone = dv.pairwise(logits(1, 3, 40))
    assert alone.js.shape == (3, 1, 1) and (alone.js == 0).all() and (alone.kl == 0).all()


def test_memory_of_pairs_does_not_grow_with_positions_and_nothing_given_is_changed():
    given = near(4, 40, 1000)
    before = given.clone()
    sizes = []
    for n in (20, 40):
        with Largest({given.untyped_storage().data_ptr()}) as largest, pytest.MonkeyPatch.context() as patch:
            patch.setattr(dv, "PAIRS_BLOCK", 8000)
            dv.pairwise(given[:, :n])
        sizes.append(largest.numel)
    assert sizes[0] == sizes[1] <= 2 * 8192 and torch.equal(given, before)


def test_blocks_of_positions_change_nothing(monkeypatch):
    given = near(4, 11, 60)
    whole = dv.pairwise(given)
    monkeypatch.setattr(dv, "PAIRS_BLOCK", 4 * 60 * 2)
    parts = dv.pairwise(given)
    assert torch.equal(parts.js, whole.js) and torch.equal(parts.kl, whole.kl)
    none = dv.pairwise(given[:, :0])
    assert none.js.shape == none.kl.shape == (0, 4, 4)


def test_fault_111_pairs_of_bf16_logits_are_computed_in_fp32():
    given = near(3, 4, 40).bfloat16()
    assert torch.equal(dv.pairwise(given).js, dv.pairwise(given.float()).js)


def test_a_matrix_of_logits_is_refused_with_the_shape_that_is_wanted():
    with pytest.raises(ValueError, match=r"\[k, position, d_vocab\], not of shape \(3, 40\)"):
        dv.pairwise(torch.zeros(3, 40))


def test_a_vocabulary_in_parts_gives_what_it_gives_whole(monkeypatch):
    """What one block holds is far less than a row, so every sum runs over several parts."""
    logits = torch.randn(5, 3, 1000, generator=torch.Generator().manual_seed(1)) * 3
    whole = dv.pairwise(logits)
    monkeypatch.setattr(dv, "PAIRS_BLOCK", 700)
    parts = dv.pairwise(logits)
    torch.testing.assert_close(parts.js, whole.js, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parts.kl, whole.kl, rtol=1e-6, atol=1e-9)
    log_p = logits.double().log_softmax(-1)
    exact = (log_p[1].exp() * (log_p[1] - log_p[4])).sum(-1)
    torch.testing.assert_close(parts.kl[:, 1, 4].double(), exact, rtol=1e-5, atol=1e-7)


def test_divergences_are_over_the_vocabulary_whatever_stands_before_it():
    p, q = torch.randn(2, 2, 3, 4, 7, generator=torch.Generator().manual_seed(2))
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert dv.kl(p, q).shape == exact.shape == (2, 3, 4)
    torch.testing.assert_close(dv.kl(p, q).double(), exact, rtol=1e-5, atol=1e-7)
    mean = torch.logaddexp(log_p, log_q) - math.log(2)
    js = ((log_p.exp() * (log_p - mean)).sum(-1) + (log_q.exp() * (log_q - mean)).sum(-1)) / 2
    torch.testing.assert_close(dv.js(p, q).double(), js, rtol=1e-5, atol=1e-7)


def test_small_divergences_over_a_large_vocabulary_keep_their_digits():
    """Entropies of 11 nats, JS of 2e-5: what is summed in fp32 alone is off by 1e-6."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(1, 6, 152_064, generator=generator)
    given = shared + 0.01 * torch.randn(3, 6, 152_064, generator=generator)
    found, log_p = dv.pairwise(given), given.double().log_softmax(-1)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        kl = (log_p[a].exp() * (log_p[a] - log_p[b])).sum(-1)
        mean = torch.logaddexp(log_p[a], log_p[b]) - math.log(2)
        js = sum((log_p[i].exp() * (log_p[i] - mean)).sum(-1) for i in (a, b)) / 2
        assert_close(found.js[:, a, b].double(), js, atol=2.5e-7, rtol=0)
        assert_close(found.kl[:, a, b].double(), kl, atol=5e-8, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 512), (2, 3, 600), (3, 512, 600), (512, 600)])
def test_a_sum_is_over_the_last_axis_whole_short_sums_or_not(shape):
    assert_close(dv._sum(torch.ones(shape)).double(), torch.full(shape[:-1], float(shape[-1])).double())


def test_kl_of_log_probabilities_is_over_the_last_axis():
    log_p, log_q = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    assert_close(dv.kl_from_log(log_p, log_q), dv.kl(log_p, log_q), atol=1e-6, rtol=1e-5)
