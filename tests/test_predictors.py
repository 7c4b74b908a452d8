"""Predictors of leakage: planted truths at each level of the nesting, identities, criteria, figures."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mechinterp.results import load_result
from studies.criteria import criteria_table, judged
from studies.predictors import Comparison, Pairs, compare, directed_pairs
from studies.predictors_asymmetry import asymmetry
from studies.predictors_figures import cosine_map, predictor_scatter, redundancy_scatter, rho_bars
from studies.predictors_matrices import discrimination, per_question, redundancy

SOURCES, TARGETS = ("a", "b", "c", "d", "e"), tuple(f"t{k}" for k in range(8))


def planted(within: float, between: float, seed: int = 0, **more: np.ndarray) -> Pairs:
    """Pairs whose predictor `x` lies on leakage within sources and between them as asked."""
    generator = np.random.default_rng(seed)
    level = np.repeat(np.arange(5.0), 8) / 10
    own = generator.normal(0, 0.02, 40)
    leakage = 0.3 + level + own
    x = between * level + within * own + generator.normal(0, 0.004, 40)
    names = [s for s in SOURCES for _ in TARGETS]
    columns = {"x": x, "noise": generator.normal(size=40), **more}
    predictors = {name: tuple(values.tolist()) for name, values in columns.items()}
    return Pairs(tuple(names), TARGETS * 5, tuple(leakage.tolist()), predictors, "tiny", (3,))


@pytest.fixture(scope="module")
def strong() -> Comparison:
    """x lies on leakage within sources and between them."""
    return compare(planted(within=1, between=1), first="x", second="noise")


# the nesting ------------------------------------------------------------------------------------------------


def test_what_lies_between_sources_alone_is_pooled_and_not_within():
    found = compare(planted(within=0, between=-1), first="x", second="noise").spearman["x"]
    assert found.pooled.estimate < -0.9 and abs(found.mean_within) < 0.35
    assert found.within_p > 0.05 and found.between.estimate == pytest.approx(-1)


def test_what_lies_within_sources_is_seen_there_though_sources_hide_it():
    found = compare(planted(within=1, between=-1), first="x", second="noise").spearman["x"]
    assert found.mean_within > 0.9 and found.within_p < 0.001
    assert found.pooled.estimate < -0.5, "pooled, the sign is that of the sources"


def test_the_one_that_causes_says_more_than_its_echo():
    """leakage = f(x); the echo is x with noise, so it adds nothing once x is known."""
    pairs = planted(within=1, between=1)
    echo = np.array(pairs.predictors["x"]) + np.random.default_rng(1).normal(0, 0.05, 40)
    held = replace(pairs, predictors={**pairs.predictors, "echo": tuple(echo.tolist())})
    found = compare(held, first="x", second="echo")
    x, other = found.beyond
    assert (x.predictor, x.given, other.predictor, other.given) == ("x", "echo", "echo", "x")
    assert x.partial.estimate > 0.8 and abs(other.partial.estimate) < 0.4
    assert x.added.delta_r2 > 10 * other.added.delta_r2
    assert x.added.r2_both == pytest.approx(other.added.r2_both)
    assert found.advantage()["pooled"] > 0 and found.advantage()["mean within"] > 0


def test_without_a_source_is_the_same_as_pairs_that_never_had_it(strong):
    whole, rest = strong, compare(strong.pairs.without("c"), first="x", second="noise")
    assert whole.spearman["x"].leave_one_out["c"] == pytest.approx(rest.spearman["x"].pooled.estimate)
    for one, other in zip(whole.beyond, rest.beyond, strict=True):
        assert one.partial_without["c"] == pytest.approx(other.partial.estimate)
        assert one.delta_r2_without["c"] == pytest.approx(other.added.delta_r2)
    assert set(whole.beyond[0].partial_without) == set(SOURCES)


def test_fault_107_pooled_figures_are_those_of_scipy_and_say_that_they_are_naive(strong):
    pairs, found = strong.pairs, strong
    x, y = pairs.values("x"), np.array(pairs.leakage)
    assert found.spearman["x"].pooled.estimate == pytest.approx(stats.spearmanr(x, y)[0])
    assert found.pearson["x"].estimate == pytest.approx(stats.pearsonr(x, y)[0])
    table = found.to_dataframe().set_index(["predictor", "figure"])
    for figure in ("pooled", "Pearson, pooled", "partial given noise", "delta R² added to noise"):
        assert "naive" in table.loc[("x", figure), "note"]
    assert found.spearman["x"].block_p >= 1 / 120, "five sources cannot say more"


def test_fault_106_a_constant_source_has_no_rho_and_is_counted():
    pairs = planted(within=1, between=1)
    silent = tuple(0.0 if s == "b" else rate for s, rate in zip(pairs.sources, pairs.leakage, strict=True))
    found = compare(replace(pairs, leakage=silent), first="x", second="noise")
    assert found.spearman["x"].constant == ("b",) and math.isnan(found.spearman["x"].within["b"].estimate)
    assert found.spearman["x"].mean_within > 0.9
    table = found.to_dataframe().set_index(["predictor", "figure"])
    assert "constant: b" in table.loc[("x", "mean within"), "note"]
    assert "b: constant" in found.figure().layout.meta["notes"][1]


def test_directed_pairs_read_row_source_column_target():
    matrix = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 4.0], [5.0, 6.0, 0.0]])
    rates = {("a", "c"): 0.1, ("a", "a"): 0.9, ("c", "b"): 0.3}
    pairs = directed_pairs(rates, {"kl": matrix}, ["a", "b", "c"], seeds=[1])
    assert pairs.predictors["kl"] == (2.0, 6.0) and pairs.leakage == (0.1, 0.3)
    assert pairs.sources == ("a", "c") and pairs.seeds == (1,)
    with pytest.raises(ValueError, match="'z' leaks or is leaked into, but the matrices have only a, b, c"):
        directed_pairs({("z", "a"): 0.1}, {}, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": ("a",)}, "sources has 1 values for 3"),
        ({"predictors": {"x": (1.0, 2.0)}}, "x has 2 values for 3"),
        ({"sources": ("a", "a", "z")}, "z is paired with itself"),
    ],
)
def test_pairs_that_are_none_are_refused(change, said):
    right: dict[str, Any] = {
        "sources": ("a", "a", "a"), "targets": ("x", "y", "z"), "leakage": (0.1, 0.2, 0.3),
        "predictors": {"x": (1.0, 2.0, 3.0)},
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        Pairs(**right | change)
    with pytest.raises(ValueError, match="no predictor 'js'; there are x"):
        compare(Pairs(**right), first="js", second="x")


def test_a_comparison_comes_back_as_it_was_saved(strong, tmp_path):
    back = load_result(strong.save(tmp_path))
    assert isinstance(back, Comparison) and back.digest() == strong.digest()
    assert back.to_dataframe().equals(strong.to_dataframe())


# matrices ---------------------------------------------------------------------------------------------------


def symmetric(n: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(0.01, 0.05, (n, n))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 0)
    return values


def responses(js: np.ndarray, noise: float, n: int = 24, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """n responses to n / 2 questions whose mean is near `js`."""
    generator = np.random.default_rng(seed)
    moved = generator.normal(0, noise, (n, *js.shape))
    return js + (moved + moved.transpose(0, 2, 1)) / 2, [f"q{k % (n // 2)}" for k in range(n)]


NAMES = tuple("uvwxyz")


def test_discrimination_is_what_was_planted():
    js = symmetric(6, 0)
    js[1, 4] = js[4, 1] = 0.09
    js[2, 3] = js[3, 2] = 0.003
    found = discrimination(js, NAMES)
    assert found.farthest == ("v", "y") and found.nearest == ("w", "x")
    assert found.ratio == pytest.approx(30) and found.std == pytest.approx(np.std(js[np.triu_indices(6, 1)]))
    assert [c.passed for c in found.criteria] == [False, True, None, None], "nothing was resampled"
    assert list(found.to_dataframe()["js"])[0] == 0.003


def test_our_criteria_have_no_scale_and_the_published_bar_has():
    """The same matrix in bits, or in anything else: the ratio criteria stay, the bar in nats turns over."""
    values, asked = responses(symmetric(6, 0), 0.001)
    small, large = (
        discrimination(k * values.mean(0), NAMES, per_response=k * values, questions=asked) for k in (1, 100)
    )
    assert [c.passed for c in small.criteria] == [False, True, True, True]
    assert [c.passed for c in large.criteria] == [True, True, True, True]
    assert small.signal_to_noise == pytest.approx(large.signal_to_noise)


def test_pairs_that_differ_by_their_questions_alone_do_not_discriminate():
    values, asked = responses(np.full((6, 6), 0.03), 0.01)
    found = discrimination(values.mean(0), NAMES, per_response=values, questions=asked)
    assert found.criteria[3].passed is False and found.signal_to_noise < 2


def test_a_shift_that_all_pairs_share_is_no_noise():
    """A question on which everyone diverges more says nothing against telling pairs apart."""
    values, asked = responses(symmetric(6, 0), 0.0)
    place = {q: k for k, q in enumerate(dict.fromkeys(asked))}
    values = values + np.array([0.01 * place[q] for q in asked])[:, None, None]
    found = discrimination(values.mean(0), NAMES, per_response=values, questions=asked)
    assert found.noise < 1e-12 * found.mean or found.signal_to_noise > 1e6


def test_a_criterion_without_a_value_is_not_applicable():
    table = criteria_table(
        [judged("a", math.nan, 1.0), judged("b", 2.0, 1.0), judged("c", 2.0, 1.0, sense="at most")]
    )
    assert list(table["verdict"]) == ["not applicable", "pass", "fail"]
    assert list(table["threshold"]) == ["above 1", "above 1", "at most 1"]
    assert (table["what was done"] != "").all()


def test_a_cosine_that_is_js_turned_over_is_redundant_and_noise_is_not():
    js = symmetric(8, 0)
    names = tuple("abcdefgh")
    found = redundancy(js, {9: 1 - js, 3: symmetric(8, 5)}, names, centring="the 8")
    assert found.strongest == 9 and found.spearman[9].estimate == pytest.approx(-1)
    assert [c.passed for c in found.criteria] == [True, False], "layers in their order"
    i, j = np.triu_indices(8, 1)
    assert found.pearson[3].estimate == pytest.approx(stats.pearsonr(js[i, j], symmetric(8, 5)[i, j])[0])
    frame = found.to_dataframe()
    assert list(frame["redundant"]) == [False, True] and (frame["personas"] == 8).all()
    with pytest.raises(ValueError, match="cosine matrix of one layer or more"):
        redundancy(js, {}, names, centring="none")


def test_leakage_that_follows_the_direction_of_kl_is_found_among_sources():
    kl = np.abs(np.random.default_rng(2).normal(0.3, 0.1, (6, 6)))
    rates = {
        (a, b): 0.5 + (kl - kl.T)[i, j] / 2
        for i, a in enumerate(NAMES)
        for j, b in enumerate(NAMES)
        if i != j
    }
    found = asymmetry(kl, NAMES, rates, NAMES[:5])
    assert found.association is not None and found.association.estimate == pytest.approx(1)
    assert found.association.n_pairs == 10 and found.association.p <= 0.05
    frame = found.to_dataframe()
    assert np.allclose(frame["kl asymmetry"], frame["leak asymmetry"])
    assert frame["kl a||b"][0] == kl[0, 1] and frame["leak b->a"][0] == rates["v", "u"]


def test_two_sources_have_one_pair_and_no_association():
    rates = {("u", "v"): 0.1, ("v", "u"): 0.2}
    assert asymmetry(np.eye(6), NAMES, rates, ("u", "v")).association is None
    with pytest.raises(ValueError, match="no leakage of v into u"):
        asymmetry(np.eye(6), NAMES, {("u", "v"): 0.1}, ("u", "v"))
    with pytest.raises(ValueError, match="'q' is no persona"):
        asymmetry(np.eye(6), NAMES, rates, ("q", "v"))


def test_a_question_on_which_nothing_varies_is_uninformative():
    values, asked = responses(symmetric(6, 0), 0.002)
    flat = np.array([0.03 if q == "q1" else math.nan for q in asked])
    values[np.isfinite(flat)] = 0.03
    found = per_question(values, asked)
    assert found.n_uninformative == 1 and found.variation[found.questions.index("q1")] < 1e-9
    i, j = np.triu_indices(6, 1)
    own = np.concatenate([values[k, i, j] for k in range(24) if asked[k] == "q0"])
    assert found.variation[0] == pytest.approx(own.std() / own.mean()) and found.n_values[0] == own.size
    with pytest.raises(ValueError, match="24 responses need a question each, not 3"):
        per_question(values, asked[:3])


# figures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures(strong) -> dict[str, Any]:
    values, asked = responses(symmetric(6, 0), 0.002)
    found = strong
    one = found.spearman["x"]
    like = redundancy(symmetric(6, 0), {4: symmetric(6, 1)}, NAMES, centring="the 6", model="tiny")
    rates = {(a, b): 0.1 for a in NAMES for b in NAMES if a != b}
    return {
        "hero": found.figure(),
        "scatter": predictor_scatter(found, "x"),
        "map": discrimination(values.mean(0), NAMES, per_response=values, questions=asked).figure(),
        "redundancy": redundancy_scatter(like, 4),
        "cosine": cosine_map(like, 4),
        "asymmetry": asymmetry(symmetric(6, 0), NAMES, rates, NAMES[:4]).figure(),
        "questions": per_question(values, asked).figure(),
        "bars": rho_bars(
            {"the 6": {"4": one}, "the 60": {"2": one, "4": one}},
            title="bars", x_title="layer", model="tiny", seeds=[1], stored={"the 6": {"2": 0.3}},
        ),
    }  # fmt: skip


def test_every_figure_says_n_unit_seeds_and_band(figures):
    for name, figure in figures.items():
        said = figure.layout.meta["subtitle"]
        assert " n = " in said and "band: " in said and "seed" in said, name
        json.loads(figure.to_json())


def test_a_scatter_has_points_and_a_line_for_every_source(figures):
    for name, panels in (("scatter", 1), ("hero", 2)):
        modes = [trace.mode for trace in figures[name].data]
        assert modes.count("markers") == modes.count("lines") == 5 * panels


def test_a_line_within_a_source_is_least_squares_of_its_pairs(figures):
    pairs = planted(within=1, between=1)
    x, y = pairs.values("x")[:8], np.array(pairs.leakage)[:8]
    line = next(trace for trace in figures["scatter"].data if trace.mode == "lines")
    slope = (line.y[1] - line.y[0]) / (line.x[1] - line.x[0])
    assert slope == pytest.approx(stats.linregress(x, y)[0])


def test_bars_keep_layers_in_order_and_hollow_ones_are_only_stored(figures):
    bars = [trace for trace in figures["bars"].data if trace.type == "bar"]
    assert figures["bars"].layout.xaxis.categoryarray == ("2", "4")
    hollow = [trace for trace in bars if trace.marker.color == "white"]
    assert len(bars) == 3 and [tuple(trace.x) for trace in hollow] == [("2",)]
    assert hollow[0].offsetgroup == bars[0].offsetgroup and "stored only" in hollow[0].name


def test_names_with_markup_are_shown_as_they_are(strong):
    wild = tuple("<b>a</b>" if s == "a" else s for s in strong.pairs.sources)
    drawn = predictor_scatter(replace(strong, pairs=replace(strong.pairs, sources=wild)), "x")
    assert "<b>a</b>" not in drawn.to_json() and "&lt;b&gt;" in drawn.to_json().replace(
        "\\u003c", "<"
    ).replace("\\u0026", "&")
