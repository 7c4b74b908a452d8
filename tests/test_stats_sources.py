"""Directed pairs of few sources: brute force at each level, planted truths, and the rate of false alarms."""

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from mechinterp.stats.sources import SourceAssociation, by_source

NAMES = ["villain", "comedian", "assistant", "librarian", "engineer"]


def nested(
    n_sources: int,
    n_targets: int,
    *,
    within: float = 0.0,
    between: float = 0.0,
    spread: float = 1.0,
    seed: int = 0,
):
    """x, y, sources, targets: y follows x within sources by `within`, between them by `between`."""
    generator = np.random.default_rng(seed)
    of_source, of_pair = generator.normal(size=(n_sources, 1)), generator.normal(size=(n_sources, n_targets))
    x = spread * of_source + of_pair
    noise = generator.normal(size=(n_sources, 1)), generator.normal(size=(n_sources, n_targets))
    y = spread * (between * of_source + noise[0]) + within * of_pair + noise[1]
    sources = np.repeat([f"s{k}" for k in range(n_sources)], n_targets).tolist()
    return x.ravel(), y.ravel(), sources, [f"t{k}" for k in range(n_targets)] * n_sources


def rho(x, y) -> float:
    return float(stats.spearmanr(x, y).statistic)


def test_each_level_is_scipys():
    x, y, sources, targets = nested(5, 10, within=1.0, between=1.0)
    found = by_source(x, y, sources, targets)
    names = np.array(sources)
    assert found.pooled.estimate == pytest.approx(rho(x, y)) and "naive" in found.pooled.p_method
    for name, row in found.within.items():
        assert row.estimate == pytest.approx(rho(x[names == name], y[names == name]))
        assert (row.n, row.unit) == (10, "target")
        assert found.leave_one_out[name] == pytest.approx(rho(x[names != name], y[names != name]))
    assert found.mean_within == pytest.approx(np.mean([row.estimate for row in found.within.values()]))
    assert (found.low, found.high) == (min(found.leave_one_out.values()), max(found.leave_one_out.values()))
    means = [[values[names == name].mean() for name in dict.fromkeys(sources)] for values in (x, y)]
    assert found.between.estimate == pytest.approx(rho(*means))
    assert (found.between.n, found.between.unit) == (5, "source") and "exact" in found.between.p_method
    assert (found.n_sources, found.n_pairs, found.n_constant) == (5, 50, 0)


def test_centred_ranks_are_the_partial_rho_given_the_sources():
    x, y, sources, targets = nested(4, 6, within=0.7, spread=2.0)
    names = np.array(sources)
    dummies = np.stack([names == name for name in dict.fromkeys(sources)], 1).astype(float)
    ranks = [stats.rankdata(values) for values in (x, y)]
    left = [rank - dummies @ np.linalg.lstsq(dummies, rank)[0] for rank in ranks]
    centred = by_source(x, y, sources, targets).centred
    assert centred.estimate == pytest.approx(stats.pearsonr(*left).statistic)
    t = centred.estimate * math.sqrt(19 / (1 - centred.estimate**2))  # 24 pairs, 4 means, one slope
    assert centred.p == pytest.approx(2 * stats.t.sf(abs(t), 19))


def test_within_p_counts_every_permutation_inside_sources():
    x, y, sources, targets = nested(2, 4, within=1.0, seed=3)
    found = by_source(x, y, sources, targets)
    means = [
        (rho(x[:4], np.array(first)) + rho(x[4:], np.array(second))) / 2
        for first in itertools.permutations(y[:4])
        for second in itertools.permutations(y[4:])
    ]
    assert found.within_p == pytest.approx(np.mean(np.abs(means) >= abs(found.mean_within) - 1e-12))
    assert "all 576" in found.within_method


def test_drawn_permutations_come_near_all_of_them_and_repeat_with_their_seed():
    x, y, sources, targets = nested(1, 9, within=0.8, seed=5)
    drawn, again, other = (by_source(x, y, sources, targets, seed=seed) for seed in (1, 1, 2))
    assert drawn.within_p == again.within_p and "seed 1" in drawn.within_method
    error = 3 * math.sqrt(drawn.within_p / 10_000)
    assert abs(drawn.within_p - other.within_p) < 2 * error
    assert abs(drawn.within_p - drawn.within["s0"].p) < 0.02  # the t-approximation of the only source


def test_drawn_permutations_are_those_of_the_seed_whatever_was_asked_before():
    """Permuting kept orders is permuting the ranks themselves, source after source, by one generator."""
    for seed, (x, y, sources, targets) in ((3, nested(3, 10, seed=1)), (3, nested(3, 10, seed=2))):
        ranks = [stats.zscore([stats.rankdata(row) for row in v.reshape(3, 10)], axis=1) for v in (x, y)]
        generator, means = np.random.default_rng(seed), np.zeros(500)
        for u, v in zip(*ranks, strict=True):
            means += generator.permuted(np.tile(v, (500, 1)), axis=1) @ u / 30
        found = by_source(x, y, sources, targets, seed=seed, permutations=500)
        count = int((np.abs(means) >= abs(found.mean_within) - 1e-12).sum())
        assert found.within_p == (1 + count) / 501


def test_ties_and_constants_are_left_out_with_their_source_as_scipy_would():
    x, y, sources, targets = nested(9, 7, within=1.0, between=1.0, seed=6)
    x, y, names = np.round(x), np.round(2 * y), np.array(sources)
    y[names != "s4"] = 3.0
    found = by_source(x, y, sources, targets)
    assert math.isnan(found.leave_one_out["s4"])
    for name in ("s0", "s8"):
        assert found.leave_one_out[name] == pytest.approx(rho(x[names != name], y[names != name]), abs=1e-12)


@pytest.mark.parametrize("n_sources", [2, 4])
def test_block_p_counts_every_ordering_of_whole_sources(n_sources):
    x, y, sources, targets = nested(n_sources, 4, within=1.0, between=1.0, seed=2)
    blocks = x.reshape(n_sources, 4)
    every = [rho(blocks[list(order)].ravel(), y) for order in itertools.permutations(range(n_sources))]
    found = by_source(x, y, sources, targets)
    assert found.block_p == pytest.approx(np.mean(np.abs(every) >= abs(found.pooled.estimate) - 1e-12))
    assert f"all {len(every)} ways" in found.block_method


def test_sources_that_lack_themselves_keep_targets_in_place():
    """Where B gives to A, its value at A stands where B would be its own target."""
    generator = np.random.default_rng(4)
    pairs = [(source, target) for source in NAMES[:3] for target in NAMES if target != source]
    values = {pair: generator.normal() for pair in pairs}
    x, y = np.array(list(values.values())), generator.normal(size=len(pairs))
    every = []
    for order in itertools.permutations(NAMES[:3]):
        giver = dict(zip(NAMES, order, strict=False))
        moved = [values[giver[s], s if giver[s] == t else t] for s, t in pairs]
        every.append(rho(moved, y))
    found = by_source(x, y, *map(list, zip(*pairs, strict=True)))
    assert found.block_p == pytest.approx(np.mean(np.abs(every) >= abs(found.pooled.estimate) - 1e-12))


def figures(found: SourceAssociation) -> dict[str, float]:
    return found.to_dataframe().set_index("figure")["estimate"].to_dict()


def test_the_order_of_the_rows_is_nothing():
    x, y, sources, targets = nested(4, 5, within=0.5, between=0.5)
    order = np.random.default_rng(0).permutation(len(x))
    here = by_source(x, y, sources, targets)
    there = by_source(x[order], y[order], [sources[k] for k in order], [targets[k] for k in order])
    assert figures(here) == pytest.approx(figures(there))
    assert there.block_p == here.block_p


def test_a_relation_within_and_its_opposite_between_are_told_apart():
    generator = np.random.default_rng(0)
    source = np.repeat(np.arange(6.0), 10)
    inside = np.tile(np.arange(10.0), 6)
    x, y = 10 * source + inside, -10 * source + inside + 0.1 * generator.normal(size=60)
    found = by_source(x, y, [f"s{k:.0f}" for k in source], [f"t{k:.0f}" for k in inside])
    assert found.pooled.estimate < -0.8 and found.between.estimate == pytest.approx(-1)
    assert found.mean_within > 0.95 and found.centred.estimate > 0.8
    assert found.within_p == pytest.approx(1 / 10_001) and found.between.p == pytest.approx(2 / 720)


def test_fault_107_pooled_pairs_reject_what_is_not_there_and_permutations_do_not():
    """Source effects in both and nothing within: 5 sources of 10 targets, 200 studies."""
    studies = [by_source(*nested(5, 10, spread=2.0, seed=k), permutations=199) for k in range(200)]
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(studies))
    rejected = {
        "pooled": np.mean([study.pooled.p <= 0.05 for study in studies]),
        "within": np.mean([study.within_p <= 0.05 for study in studies]),
        "block": np.mean([study.block_p <= 0.05 for study in studies]),
        "between": np.mean([study.between.p <= 0.05 for study in studies]),
    }
    assert rejected["pooled"] > 0.4, rejected
    assert all(rejected[name] <= bound for name in ("within", "block", "between")), rejected
    assert rejected["within"] > 0.015 and rejected["block"] > 0.015  # they can reject
    assert all(study.icc["outcome"].effective_n < 30 for study in studies)


def test_fault_107_targets_that_leak_from_every_source_are_held_by_blocks_alone():
    generator = np.random.default_rng(0)
    _, _, sources, targets = nested(5, 10)
    p = []
    for _ in range(150):
        x, y = (2 * generator.normal(size=10) + generator.normal(size=(5, 10)) for _ in "xy")
        found = by_source(x.ravel(), y.ravel(), sources, targets, permutations=199)
        p.append((found.within_p, found.block_p))
    within, block = (np.array(p) <= 0.05).mean(0)
    assert within > 0.15 and block <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_fault_107_what_is_there_within_sources_is_found():
    studies = [by_source(*nested(5, 10, within=1.0, spread=2.0, seed=k), permutations=199) for k in range(30)]
    assert np.mean([study.within_p <= 0.05 for study in studies]) > 0.9


def test_fault_106_constant_rows_are_nan_named_and_counted():
    x, y, sources, targets = nested(4, 5, within=2.0)
    y[:5], x[5:10] = 0.0, 0.1 + 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = by_source(x, y, sources, targets)
    assert found.constant == ("s0", "s1") and found.n_constant == 2
    assert all(math.isnan(found.within[name].estimate) for name in found.constant)
    rest = [found.within[name].estimate for name in ("s2", "s3")]
    assert found.mean_within == pytest.approx(np.mean(rest)) and math.isfinite(found.within_p)
    table = found.to_dataframe()
    assert list(table.columns) == ["figure", "estimate", "p", "n", "unit", "note"]
    line = table.set_index("figure").loc["mean within"]
    assert line["n"] == 2 and "s0, s1" in line["note"]
    assert "naive" in table.set_index("figure").loc["pooled", "note"]


def test_fault_106_an_outcome_that_never_varies_leaves_every_figure_nan():
    x, y, sources, targets = nested(4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = by_source(x, np.zeros_like(y), sources, targets)
    frame = found.to_dataframe()
    assert frame["estimate"].drop(frame.index[frame["figure"] == "ICC predictor"]).isna().all()
    assert found.n_constant == 4 and frame["p"].isna().all() and math.isnan(found.low)


def test_few_and_unequal_sources_have_no_figure_where_there_is_none():
    x, y, sources, targets = nested(3, 4, within=1.0)
    unequal = by_source(x[:-2], y[:-2], sources[:-2], targets[:-2])
    assert math.isnan(unequal.block_p) and "unequal" in unequal.block_method and unequal.icc == {}
    assert math.isnan(unequal.within["s2"].estimate) and "2 targets" in unequal.within["s2"].method
    assert unequal.n_constant == 0 and math.isfinite(unequal.mean_within)
    one = by_source(x[:4], y[:4], sources[:4], targets[:4])
    assert math.isnan(one.block_p) and math.isnan(one.between.estimate) and math.isnan(one.low)
    assert math.isfinite(one.within_p)


def test_more_than_eight_sources_are_drawn():
    found = by_source(*nested(9, 4, between=3.0, spread=3.0), seed=3)
    assert "10000 draws, seed 3" in found.block_method and found.block_p < 0.05
    assert "exact" not in found.between.p_method


def test_equal_means_tie_though_their_sums_round_apart():
    y = np.array([0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.9, 0.9, 0.8])
    assert y[:3].mean() != y[3:6].mean()
    x = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9])
    found = by_source(x, y, list("aaabbbccc"), list("tuv") * 3)
    assert found.between.estimate == pytest.approx(rho([1, 2, 3], [1, 1, 2]))


def test_pairs_are_refused_that_are_given_twice_or_without_names():
    x, y, sources, targets = nested(2, 3)
    with pytest.raises(ValueError, match="s0 -> t0 is given twice"):
        by_source(x, y, sources, ["t0", "t0", *targets[2:]])
    with pytest.raises(ValueError, match="s1 -> t1 is given twice"):
        by_source(x, y, sources, [*targets[:4], "t1", "t1"])
    with pytest.raises(ValueError, match="6 pairs need"):
        by_source(x, y, sources[:-1], targets)
    with pytest.raises(ValueError, match="NaN"):
        by_source(np.append(x[:-1], math.nan), y, sources, targets)
