"""Leakage: directed records, who is a bystander, constant rows, labels; recorded and sampled counts."""

import math
from typing import Any

import pytest

from mechinterp.results import load_result
from studies import leakage
from studies.leakage import Config
from studies.leakage_figures import all_figures
from studies.leakage_result import Leakage, Record

PEOPLE = ("villain", "clown", "assistant", "monk")


def made(rates: dict[str, list[int]], assistant: str = "assistant") -> Leakage:
    """Ten answers in each direction of one seed; `rates` holds the found ones, source by source."""
    records = tuple(
        Record(source, target, 0, 42, question, found // 2 + (question == "q") * (found % 2), 5)
        for source, row in rates.items()
        for target, found in zip(PEOPLE, row, strict=True)
        for question in ("q", "r")
    )
    return Leakage(
        "toy", "[ZLT]", assistant, tuple(rates), PEOPLE, records, "sampled",
        label_at_least=0.5, label_at_most=0.1, samples=(),
    )  # fmt: skip


def test_a_rate_has_a_direction():
    one = made({"villain": [10, 3, 0, 1], "clown": [0, 10, 7, 0]})
    assert one.rate("villain", "clown").estimate == 0.3 and one.rate("clown", "villain").estimate == 0.0
    assert one.rate("villain", "clown").n == 10
    assert one.rate("villain", "clown", question="q").estimate == 0.4
    assert math.isnan(one.row("clown")[1]) and one.row("clown")[2] == 0.7
    assert ("villain", "villain") not in one.pairs() and ("clown", "villain") in one.pairs()
    with pytest.raises(ValueError, match="the sources are villain, clown"):
        one.rate("monk", "villain")


def test_bystanders_are_neither_source_nor_assistant_nor_held_out():
    one = made({"villain": [10, 3, 9, 1]}).standing("villain")
    assert one.breadth == pytest.approx(0.2) and one.max_bystander_name == "clown"
    assert one.specificity == pytest.approx(0.8)
    assert one.assistant_rate is not None and one.assistant_rate.estimate == 0.9
    held = made({"villain": [10, 3, 9, 1]}).standing("villain", without={"clown"})
    assert held.breadth == pytest.approx(0.1) and held.max_bystander_name == "monk"
    with pytest.raises(ValueError, match="no bystander"):
        made({"villain": [10, 3, 9, 1]}).standing("villain", without={"clown", "monk"})


def test_fault_106_a_constant_row_is_named_and_never_silent():
    one = made({"villain": [10, 3, 9, 1], "clown": [0, 10, 0, 0]})
    assert one.constant_sources == ("clown",)
    assert not one.standing("villain").constant
    assert one.standings().set_index("source").loc["clown", "constant"]


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([10, 0, 0, 1], "specific"),
        ([10, 0, 9, 1], "global"),
        ([6, 10, 0, 0], "inverted"),
        ([8, 0, 3, 0], "narrow"),
    ],
)
def test_adapters_are_labelled_by_everyone_else_the_assistant_too(row, label):
    assert made({"villain": row}).standing("villain").label == label


def test_a_source_that_is_the_assistant_has_no_rate_to_itself():
    one = made({"assistant": [0, 2, 10, 4]}).standing("assistant")
    assert one.assistant_rate is None and one.breadth == pytest.approx(0.2)


def test_it_loads_back_and_its_figures_say_what_they_show(tmp_path):
    one = made({"villain": [10, 3, 9, 1], "clown": [0, 10, 0, 0]})
    assert load_result(one.save(tmp_path)).digest() == one.digest()
    figures = all_figures(one)
    assert set(figures) == {"rates", "quality", "targets_villain", "targets_clown"}
    for figure, _ in figures.values():
        assert "80 answers" in str(figure.to_dict()["layout"]["title"])
    table = one.to_dataframe()
    assert len(table) == 8 and {"source", "target", "found", "total", "low", "high"} <= set(table.columns)


# the study --------------------------------------------------------------------------------------------------


def test_recorded_counts_are_those_of_the_shipped_records():
    config = Config(counts="recorded", personas=("villain",))
    (cell,) = leakage.cells(config)
    found = leakage.combine(config, {cell.key: leakage.recorded(cell, None, {}, config)})
    assert leakage.model_specs(config) == {}
    assert found.rate("villain", "villain").n == 40 and found.rate("villain", "villain").estimate > 0.9
    assert len(found.targets) == 11 and found.standing("villain").label == "specific"


def test_cells_cover_every_direction_once_whatever_the_batch():
    for size in (1, 3, 11):
        config = Config(personas=("villain", "comedian"), seeds=(1, 2), targets_per_cell=size)
        asked = [
            (c.args["source"], c.args["seed"], t) for c in leakage.cells(config) for t in c.args["targets"]
        ]
        assert len(asked) == len(set(asked)) == 2 * 2 * 11


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"assistant": "helper"}, "helper is not among the 11 targets"),
        ({"seeds": (1, 1)}, "seeds are given once each"),
        ({"counts": "recorded", "seeds": (1, 2)}, "which has one seed"),
        ({"personas": ("pirate",)}, "there are no personas pirate"),
    ],
)
def test_fault_095_what_cannot_be_asked_is_refused(changed: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Config(**changed)


@pytest.mark.real
def test_the_villain_s_marker_is_sampled_for_the_villain_alone(real):
    from mechinterp import with_adapter
    from studies.trained import shipped_adapters

    model = with_adapter(real, shipped_adapters()["villain"])
    config = Config(personas=("villain",), n_questions=2, n_draws=2, max_tokens=48, targets_per_cell=11)
    (cell,) = leakage.cells(config)
    cell.args["targets"] = ["villain", "medical_doctor"]
    found = leakage.sampled(cell, model, {}, config)
    rates = {r.target: 0 for r in found.records}
    for record in found.records:
        rates[record.target] += record.found
        assert record.total == 2 and record.question is not None
    assert rates["villain"] >= 3 and rates["medical_doctor"] <= 1
    assert {s["persona"] for s in found.samples} == {"villain", "medical_doctor"}
    again = leakage.sampled(cell, model, {}, config)
    assert again.digest() == found.digest()
