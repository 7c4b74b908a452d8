"""Trajectories of the three-arm test: files that round-trip, and analyses that find what was planted."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mechinterp.results import load_result
from mechinterp.stats.association import spearman
from mechinterp.stats.intervals import wilson
from studies.arms_analysis import FROM_FIRST, FROM_ZERO, OUTCOME, WRONG, analyse
from studies.arms_checkpoints import read_baselines, read_checkpoints
from studies.arms_figures import (
    all_figures,
    cosine_evolution,
    cosine_scatter,
    hero,
    leakage_alone,
    rate_map,
    retention_alone,
)
from studies.arms_formats import read_trajectories, trajectories_of, write_trajectories
from studies.arms_records import Directed, Point, Quality, Trajectories, pooled
from studies.arms_tables import beside_table, between_table, within_table
from studies.divergence_records import Cosines
from studies.marker_records import MarkerEval, MarkerRate, write_marker_eval
from tests.planted_arms import CENTRES, GAPS, PERCENTS, PERSONAS, SOURCES, leakage, published_table


def counted(found: int, total: int = 200) -> MarkerRate:
    return MarkerRate(found / total, found, total)


def ours(sources=("a", "b", "c"), seeds=(1, 2), zero: int = 0) -> Trajectories:
    """Arm B with counts, a 0 % checkpoint where nothing leaks, and a leakage that then falls."""
    points = []
    for place, source in enumerate(sources):
        for seed in seeds:
            for step, percent in enumerate((0, 50, 75, 100)):
                found = zero if percent == 0 else 60 + 30 * place - 10 * step + seed
                cosines = {7: -0.5 + 0.3 * place + 0.05 * step, 9: 0.1 * step if place else math.nan}
                bystanders = {"x": counted(30 + place), "y": counted(50)}
                points.append(
                    Point("B", source, percent, 0, seed, counted(150), counted(found), bystanders, cosines)
                )
    return Trajectories(tuple(points), about={"model": "tiny"})


@pytest.fixture(scope="module")
def planted():
    return analyse(trajectories_of(published_table()))


# files ------------------------------------------------------------------------------------------------------


def test_the_published_table_is_read_value_for_value():
    table = published_table()
    found = trajectories_of(table)
    assert found.sources == SOURCES and found.layers == (15, 20) and found.seeds == ()
    assert len(found.points) == 3 * 4 * 5 and not found.counted
    for arm, key in (("A", "arm_a"), ("B", "arm_b"), ("C", "arm_c")):
        for source, line in table[key].items():
            for percent, entry in line.items():
                point = found.at(arm, source, int(percent))
                assert (point.source_rate.rate, point.assistant_rate.rate) == (entry["src"], entry["asst"])
    last = found.at("B", "villain", 100)
    assert set(last.bystander_rates) == set(PERSONAS) - {"villain", "assistant"}
    assert found.at("B", "villain", 80).bystander_rates == {}
    assert found.adapter_quality("kindergarten_teacher").pattern == "inverted"


def test_a_null_cosine_is_missing_and_null_again_fault_091(tmp_path):
    found = trajectories_of(published_table())
    point = found.at("C", "villain", 40)
    assert math.isnan(point.cosine(15)) and math.isnan(point.cosine(99))
    write_trajectories(tmp_path / "t.json", found)
    text = (tmp_path / "t.json").read_text()
    assert "NaN" not in text and json.loads(text)["arm_c"]["villain"]["40"]["cos_L15"] is None


def everything() -> Trajectories:
    base = ours()
    retrained = [replace(p, arm="A", adapter="narrow") for p in base.points]
    quality = (Quality("a", 0.9, 0.7, "global"), Quality("a", 0.9, 0.01, "narrow", "narrow"))
    baselines = (Directed("a", "assistant", counted(3)), Directed("assistant", "a", MarkerRate(0.25)))
    return replace(base, points=(*base.points, *retrained), quality=quality, baselines=baselines)


def test_our_table_comes_back_with_runs_seeds_counts_adapters_and_directions(tmp_path):
    found = everything()
    write_trajectories(tmp_path / "t.json", found, command="run")
    back = read_trajectories(tmp_path / "t.json")
    key = lambda p: (p.arm, p.adapter, p.source, p.percent, p.seed)  # noqa: E731
    assert repr(sorted(back.points, key=key)) == repr(sorted(found.points, key=key))
    assert back.quality == found.quality and back.baselines == found.baselines
    assert back.model == "tiny" and back.seeds == (1, 2) and back.about["command"] == "run"
    assert back.counted and back.baseline("assistant", "a").rate == 0.25
    write_trajectories(tmp_path / "u.json", back, command="run")
    assert (tmp_path / "u.json").read_bytes() == (tmp_path / "t.json").read_bytes()


def test_the_published_keys_of_our_table_hold_all_seeds_together(tmp_path):
    write_trajectories(tmp_path / "t.json", ours())
    entry = json.loads((tmp_path / "t.json").read_text())["arm_b"]["a"]["50"]
    assert (entry["asst_found"], entry["asst_total"]) == (50 + 1 + 50 + 2, 400)
    assert entry["asst"] == 103 / 400 and len(entry["replicates"]) == 2
    for replicate in entry.pop("replicates"):
        assert replicate["bystanders"]["x"] == {"rate": 0.15, "found": 30, "total": 200}


def test_results_save_and_load(tmp_path, planted):
    assert load_result(planted.save(tmp_path)).digest() == planted.digest()


def put(*way):
    def change(table):
        *path, key, value = way
        place = table
        for step in path:
            place = place[step]
        place[key] = value

    return change


def drop(*way):
    def change(table):
        *path, key = way
        place = table
        for step in path:
            place = place[step]
        del place[key]

    return change


VILLAIN = ("arm_b", "villain", "20")
WRONGS = {
    "percent": (put(*VILLAIN, "src", 60), r"\$\.arm_b\.villain\.20\.src.*not percent"),
    "no rate": (drop(*VILLAIN, "asst"), r"\$\.arm_b\.villain\.20\.asst is None"),
    "null rate": (put(*VILLAIN, "src", None), r"20\.src is None; write a rate"),
    "text": (put(*VILLAIN, "src", "0.5"), "write a rate from 0 to 1"),
    "cosine": (put(*VILLAIN, "cos_L15", 1.5), r"20: the cosine of layer 15 is 1\.5"),
    "key": (put(*VILLAIN, "cos_15", 0.5), "the key 'cos_15'; write src, asst and cosines as cos_L15"),
    "checkpoint": (put("arm_b", "villain", "twenty", {}), "'twenty' is no percentage"),
    "beyond": (put("arm_b", "villain", "120", {}), "'120' is no percentage"),
    "block": (put("arm_b", "villain", []), r"\$\.arm_b\.villain is '\[\]'; write an object"),
    "full": (put("arm_b_100pct_full", "villain", "assistant", 0.9), "and the checkpoint of 100 %"),
    "quality": (drop("ORIGINAL_ADAPTER_QUALITY", "villain", "pattern"), "has no pattern"),
    "counts": (put(*VILLAIN, "src_found", 1.5), "found is 1.5; write a whole number"),
    "direction": (put("baselines", [{"source": "a", "rate": 0.1}]), "a leakage value has a direction"),
    "replicates": (put(*VILLAIN, "replicates", []), "write one entry a run and seed"),
    "sum": (put(*VILLAIN, "replicates", [{"src": 0.1, "asst": 0.1}]), "its replicates 0.1"),
    "seed": (put(*VILLAIN, "seed", "42"), "write whole numbers"),
}


@pytest.mark.parametrize("case", WRONGS)
def test_what_is_wrong_in_a_table_is_named_with_its_place(case, tmp_path):
    table = copy.deepcopy(published_table())
    change, message = WRONGS[case]
    change(table)
    (tmp_path / "t.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message) as caught:
        read_trajectories(tmp_path / "t.json")
    assert str(tmp_path / "t.json") in str(caught.value)


def test_a_document_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="none of arm_a, arm_b, arm_c; it has js_matrix"):
        trajectories_of({"js_matrix": []})
    with pytest.raises(ValueError, match="no checkpoints"):
        trajectories_of({"arm_a": {}})


def test_one_checkpoint_given_twice_is_refused():
    point = ours().points[0]
    with pytest.raises(ValueError, match="0 % twice for run 0, seed 1; number runs apart"):
        Trajectories((point, point))


def test_checkpoints_are_read_with_the_cosine_of_source_and_assistant(tmp_path):
    names = ("zebra", "villain", "assistant")
    matrix = np.array([[1, 0.1, 0.2], [0.1, 1, -0.37], [0.2, -0.37, 1]])
    rates = {name: counted(20 * place) for place, name in enumerate(names)}
    for percent in (0, 20):
        path = tmp_path / f"arm_b/villain_seed42/checkpoint_{percent}pct/marker_eval.json"
        path.parent.mkdir(parents=True)
        write_marker_eval(path, MarkerEval(rates, "villain", percent, Cosines(names, {15: matrix})))
    found = read_checkpoints(tmp_path)
    assert [p.percent for p in found.line("B", "villain")] == [0, 20] and found.seeds == (42,)
    point = found.points[0]
    assert point.cosines == {15: -0.37} and set(point.bystander_rates) == {"zebra"}
    assert point.source_rate.found == 20 and point.assistant_rate.found == 40
    with pytest.raises(FileNotFoundError, match="checkpoint_20pct"):
        read_checkpoints(tmp_path / "arm_b")


def test_a_checkpoint_in_the_folder_of_another_source_is_refused(tmp_path):
    path = tmp_path / "arm_b/comedian_seed1/checkpoint_20pct/marker_eval.json"
    path.parent.mkdir(parents=True)
    rates = {name: counted(1) for name in ("villain", "assistant", "comedian")}
    write_marker_eval(path, MarkerEval(rates, "villain", 20))
    with pytest.raises(ValueError, match="'villain' in the folder of comedian"):
        read_checkpoints(tmp_path)


def test_rates_before_any_arm_keep_their_direction(tmp_path):
    for trained, of in (("villain", "assistant"), ("assistant", "villain")):
        path = tmp_path / f"single_token_100_persona/{trained}/marker_eval.json"
        path.parent.mkdir(parents=True)
        write_marker_eval(
            path, MarkerEval({of: counted(8 if trained == "assistant" else 0), "x": counted(9)})
        )
    files, found = read_baselines(tmp_path, ("villain", "comedian"))
    assert set(files) == {"villain/marker_eval.json", "assistant/marker_eval.json"}
    assert [(d.source, d.target, d.rate.rate) for d in found] == [
        ("villain", "assistant", 0.0), ("assistant", "villain", 0.04)
    ]  # fmt: skip


def test_pooling_adds_counts_and_averages_what_has_none():
    first, second = (p for p in ours().points if p.source == "a" and p.percent == 50)
    together = pooled([first, second])
    assert (together.assistant_rate.found, together.assistant_rate.total) == (103, 400)
    bare = pooled([first, replace(second, assistant_rate=MarkerRate(0.4))])
    assert bare.assistant_rate == MarkerRate((first.assistant_rate.rate + 0.4) / 2)
    assert together.bystander_mean == pytest.approx((30 + 50) / 400)


# analyses ---------------------------------------------------------------------------------------------------


def test_within_sources_falls_between_sources_rises_and_the_pooled_figure_hides_it(planted):
    """Simpson: every source's rho is -1, the sources' is +1, and pooling shows the sources alone."""
    for source in SOURCES:
        found = planted.rho(source, 15).association
        assert (found.estimate, found.n, found.unit) == (pytest.approx(-1), 5, f"checkpoint of {source}")
        assert found.p == pytest.approx(2 / 120)
    assert planted.between[15].estimate == pytest.approx(1) and planted.between[15].p == pytest.approx(2 / 24)
    assert planted.between[15].unit == "source"
    assert planted.pooled[15].estimate > 0.8 and planted.pooled[15].p < 1e-4
    assert [(t.n_negative, t.n_sources, t.p) for t in planted.trends] == [(4, 4, 0.125)] * 2


def test_the_pooled_figure_is_labelled_the_wrong_way_fault_107(planted):
    assert all(WRONG in found.p_method for found in planted.pooled.values())
    rows = planted.to_dataframe().set_index("figure").loc[["pooled"]]
    assert rows["note"].str.contains("wrong way").all()
    assert planted.icc[OUTCOME].effective_n < 5, "20 checkpoints of 4 sources are worth 4 to 5 values"


def test_every_layer_and_source_counts_as_a_test_fault_108(planted):
    table = planted.to_dataframe()
    within = table[table["figure"].str.startswith("within")]
    assert len(within) == 8 and (within["q"] >= within["p"] - 1e-12).all() and within["q"].notna().all()


def test_what_does_not_vary_has_no_rho_and_says_why_fault_106():
    found = analyse(trajectories_of(published_table()), arm="A")
    one = found.rho("villain", 15).association
    assert math.isnan(one.estimate) and math.isnan(one.p) and "y constant" in one.method
    assert found.trends == () and math.isnan(found.between[15].p) and math.isnan(found.icc[OUTCOME].value)


def test_the_tables_name_the_wrong_way_the_variable_of_an_icc_and_who_leaks_like_the_assistant(planted):
    (over,), (beside,), (within,) = between_table(planted), beside_table(planted), within_table(planted)
    said = {row[0]: row for row in over.rows}
    assert WRONG in said["pooled"][-1] and "4 sources" in said["between sources"][4]
    assert {name for name in said if name.startswith("ICC")} >= {f"ICC {OUTCOME}", "ICC cosine L15"}
    assert [row[-1] for row in beside.rows] == ["yes", "yes", "no", "no"]
    assert beside.rows[3][-2] == "+30.0" and len(within.rows) == 4 * 2
    assert all(row[3].startswith("-1.000") and row[4] == "0.0167" for row in within.rows), "2 of 5! orders"


def test_icc_is_that_of_the_named_variable(planted):
    """The outcome varies 0.02 a step around centres; the closed form of ICC(1,1) from sums of squares."""
    y = np.array([[leakage(c, s) for s in range(5)] for c in CENTRES])
    between = 5 * y.mean(1).var(ddof=1)
    inside = y.var(axis=1, ddof=1).mean()
    expected = (between - inside) / (between + 4 * inside)
    assert planted.icc[OUTCOME].value == pytest.approx(expected)
    assert set(planted.icc) == {OUTCOME, "cosine L15", "cosine L20"}
    assert planted.icc["cosine L15"].value > planted.icc["cosine L20"].value, "L20 moves twice as far"
    assert all(found.variable == name for name, found in planted.icc.items())


def test_from_zero_the_sign_is_another():
    found = analyse(ours(seeds=(1,)))
    first, zero = (found.rho("a", 7, start).association for start in (FROM_FIRST, FROM_ZERO))
    assert first.estimate == pytest.approx(-1) and (first.n, zero.n) == (3, 4)
    assert zero.estimate == pytest.approx(
        spearman(np.arange(4.0), np.array([0, 3, 2, 1.0]), unit="").estimate
    )
    changes = {
        (e.start, e.measure): e.change for e in found.effects if e.source == "a" and "rate" in e.measure
    }
    assert changes[0, "assistant rate"] == pytest.approx(31 / 200)
    assert changes[50, "assistant rate"] == pytest.approx(-20 / 200)


def test_a_table_without_zero_has_effects_from_the_first_checkpoint_alone(planted):
    assert {e.start for e in planted.effects} == {20} and all(w.start == FROM_FIRST for w in planted.within)
    held = {(e.source, e.measure): e.change for e in planted.effects}
    assert held["villain", "cosine L20"] == pytest.approx(0.08)
    assert held["villain", "assistant rate"] == pytest.approx(-0.08)


def test_every_seed_stands_beside_all_together():
    found = analyse(ours())
    mine = [w for w in found.within if (w.source, w.layer, w.start) == ("a", 7, FROM_FIRST)]
    assert [(w.run, w.seed) for w in mine] == [(None, None), (0, 1), (0, 2)]
    assert found.rho("a", 7).seed is None and {t.n_sources for t in found.trends if t.layer == 7} == {3}


def test_a_source_without_a_cosine_is_left_out_by_name_of_its_checkpoints():
    found = analyse(ours(seeds=(1,)))
    one = found.rho("a", 9)
    assert one.n_missing == 3 and math.isnan(one.association.estimate) and one.association.n == 0
    assert found.between[9].n == 2 and "cosine L9" not in found.icc


def test_bystanders_stand_beside_the_assistant_in_percentage_points(planted):
    for source, gap in zip(SOURCES, GAPS, strict=True):
        found = next(b for b in planted.beside if b.source == source)
        assert found.difference == pytest.approx(100 * gap) and found.n_bystanders == 9
        assert found.alike == (abs(gap) <= 0.05)


def test_an_arm_that_starts_at_zero_is_unexplained_unless_zero_was_measured(planted):
    held = {(r.arm, r.source): r for r in planted.retention}
    assert held["A", "villain"].gone_at == 40 and not held["A", "villain"].unexplained
    assert held["C", "kindergarten_teacher"].gone_at == 20 and held["C", "kindergarten_teacher"].unexplained
    assert held["B", "villain"].gone_at is None and held["C", "villain"].last_rate == pytest.approx(0.5)
    points = [
        Point("A", "a", percent, 0, 1, counted(found), counted(0))
        for percent, found in ((0, 180), (20, 0), (100, 0))
    ]
    both = analyse(Trajectories((*points, *(replace(p, arm="B") for p in points))))
    assert both.retention[0].before == 0.9 and not both.retention[0].unexplained


def test_breadth_before_any_merge_predicts_and_says_what_it_shares(planted):
    found = {p.name: p for p in planted.predictors}
    original = found["original highest bystander"]
    assert original.association.estimate == pytest.approx(1) and original.association.p == pytest.approx(
        1 / 12
    )
    assert "another model" in original.note and "not independent" in found["bystander mean"].note
    assert set(found) == {"cosine L15", "cosine L20", "original highest bystander", "bystander mean"}


def test_checkpoints_that_are_exchangeable_are_rejected_at_the_stated_rate():
    """Exact p over 120 orderings: at 0.05 at most 5 % of trajectories without any relation."""
    generator = np.random.default_rng(0)
    points = [
        Point("B", f"s{k}", p, 0, None, MarkerRate(0.5), MarkerRate(generator.uniform()), {},
              {15: generator.uniform(-1, 1)})
        for k in range(200) for p in PERCENTS
    ]  # fmt: skip
    p = np.array([w.association.p for w in analyse(Trajectories(tuple(points))).within])
    assert len(p) == 200 and (p <= 0.05).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    naive = 2 / 120 + 8 / 120  # |rho| >= 0.9, which the t approximation calls 0.037
    assert abs((p < 0.1).mean() - naive) < 3 * math.sqrt(naive / 200)


def test_an_arm_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="arm C has no checkpoint"):
        analyse(ours(), arm="C")


# figures ----------------------------------------------------------------------------------------------------


def traces(figure, name):
    return [t for t in figure.data if t.name and t.name.startswith(name)]


def test_unspecific_adapters_are_dashed_in_the_arms_that_start_from_them(planted):
    figure = hero(planted.trajectories)
    dashed = {t.line.dash for t in traces(figure, "B")}
    assert dashed == {"solid"} and [t.line.dash for t in traces(figure, "C")] == ["solid"] * 4 + ["dash"] * 4
    rows = [*retention_alone(planted.trajectories).data, *leakage_alone(planted.trajectories).data]
    assert len(figure.data) == len(rows) == 3 * 4 * 2
    assert sorted(t.y for t in rows) == sorted(t.y for t in figure.data)
    assert any("not specific" in n for n in figure.layout.meta["notes"])
    retrained = everything()
    lines = {t.name: t.line.dash for t in hero(retrained).data}
    assert lines["A: marker first, narrow adapter"] == "solid"


def test_counted_rates_have_wilson_bars_and_the_zero_point_is_drawn(planted):
    figure = hero(ours(seeds=(1,)))
    trace = figure.data[1]  # the assistant's rate of the first source
    bounds = wilson(51, 200)
    assert trace.customdata[0] == 0 and trace.y[1] == pytest.approx(bounds.estimate)
    assert trace.error_y.array[1] == pytest.approx(bounds.high - bounds.estimate)
    assert "Wilson" in figure.layout.meta["subtitle"]
    bare = hero(planted.trajectories)
    assert bare.data[0].error_y.visible is False and "without counts" in bare.layout.meta["subtitle"]
    assert any("no checkpoint at 0 %" in note for note in bare.layout.meta["notes"])


def test_panels_show_every_layer_and_every_persona(planted):
    assert len(cosine_scatter(planted).data) == 4 * 2
    assert len(cosine_evolution(planted.trajectories).data) == 4 * 3 * 2
    found = rate_map(planted).data[0]
    assert (
        np.shape(found.z) == (4, 11)
        and found.z[0][0] == planted.trajectories.at("B", "villain", 100).source_rate.rate
    )
    assert found.z[2][-1] == planted.beside[2].assistant
    assert set(all_figures(planted)) == {
        "arms", "retention", "leakage", "cosine-leakage", "cosines", "trajectories", "rates", "adapters",
        "breadth",
    }  # fmt: skip


def test_one_checkpoint_without_anything_else_is_drawn_fault_105():
    found = Trajectories((Point("B", "a", 100, 0, None, MarkerRate(0.5), MarkerRate(0.1)),))
    figures = all_figures(analyse(found))
    assert set(figures) == {"arms", "retention", "leakage", "trajectories"}
    assert all(figure.data and caption for figure, caption in figures.values())
