"""Figures and page of the attention study: they draw what the table holds, and what was planted shows."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from mechinterp.report import render, write_report
from mechinterp.stats.clustered import clustered_mean
from mechinterp.stats.intervals import wilson
from studies.zlt_attention_caveats import cannot_show, caveats, confidence
from studies.zlt_attention_figures import all_figures, controls, curves, difference, rates, rows
from studies.zlt_attention_maps import conditions, regions, trajectory, trajectory_map
from studies.zlt_attention_page import page, trained_against_base
from studies.zlt_attention_result import UNIT, ZltAttention
from studies.zlt_attention_tables import all_gates, gate_tables, headlines, sample_table, token_texts
from tests.planted_attention import CONTROLS, DOWN, LAYERS, MARKER, QUESTIONS, STEPS, UP, planted

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=1>\x1b[31m"
RESULT = planted()
READING = RESULT.readings[1]
TABLE = RESULT.to_dataframe()


class Asked:
    """The part of a configuration that a page reads."""

    model, backend, max_tokens, records = "tiny", "transformers", 512, None

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"model": self.model, "backend": self.backend, "seeds": [42], "max_tokens": self.max_tokens}


RUN: Any = SimpleNamespace(
    manifest=SimpleNamespace(
        models={"base": "a" * 64}, inputs={"records": "c" * 64}, threads=1, config_sha256="b" * 64
    ),
    status=lambda _: SimpleNamespace(seconds=12.0),
)


def held(arm: str, row: str = "emit", control: str = "random_earlier", persona: str = "librarian") -> Any:
    """What the result's own table says of one line, by layer."""
    asked = "persona == @persona and arm == @arm and row == @row and control == @control"
    return TABLE.query(asked).sort_values("layer")


def line(figure: go.Figure, name: str, kind: str = "scatter") -> Any:
    """The drawn line (not its band) of a name."""
    (found,) = (t for t in figure.data if t.name == name and t.type == kind and t.mode != "none")
    return found


def drawn(figure: go.Figure, name: str) -> np.ndarray:
    return np.array(line(figure, name).y, dtype=float)


def subtitle(figure: go.Figure) -> str:
    return figure.to_dict()["layout"]["meta"]["subtitle"]


def test_curves_are_the_tables_and_their_bands_are_simultaneous():
    figure = curves(RESULT, READING)
    bands = [t for t in figure.data if t.mode == "none"]
    for reader, band in zip(("trained", "base"), bands, strict=True):
        np.testing.assert_allclose(drawn(figure, reader), held(reader)["contrast"])
        whole = READING.tested(READING.delta(reader, "emit")).band()
        np.testing.assert_allclose([min(band.y[:-1]), max(band.y[:-1])], [whole.low.min(), whole.high.max()])
        assert (whole.high > held(reader)["high"].to_numpy()).all()  # wider than of one layer alone
    assert "n = 12 questions" in subtitle(figure)
    assert "24 examples" in subtitle(figure)
    assert "simultaneous" in subtitle(figure)


def test_the_planted_layers_are_the_ones_marked():
    figure = difference(RESULT, READING)
    bars = {t.name: (list(t.x), list(t.y)) for t in figure.data if t.type == "bar"}
    assert bars["raised"][0] == [UP]
    assert bars["lowered"][0] == [DOWN]
    assert sorted(bars["not told from 0"][0]) == sorted({*range(LAYERS)} - {UP, DOWN})
    assert {t.width for t in figure.data if t.type == "bar"} == {0.8}, "no bar reaches into its neighbours"
    table = held("trained - base")
    found = dict(sorted(pair for x, y in bars.values() for pair in zip(x, y, strict=True)))
    np.testing.assert_allclose(list(found.values()), table["contrast"])
    pointwise = line(figure, "pointwise").error_y
    np.testing.assert_allclose(pointwise.array, table["high"] - table["contrast"])
    hover = next(t for t in figure.data if t.name == "raised").customdata[0]
    assert "max-T" in hover
    assert "BH" in hover


def test_a_null_marks_no_layer():
    null = planted(("villain",), up=0.0, down=0.0)
    bars = {t.name: len(t.x) for t in difference(null, null.readings[0]).data if t.type == "bar"}
    assert bars == {"raised": 0, "lowered": 0, "not told from 0": LAYERS}
    assert "told from 0 in no layer" in trained_against_base(null, null.readings[0])


def test_the_heat_map_holds_every_condition_about_zero():
    figure = conditions(RESULT)
    cells: Any = figure.data[0]
    assert cells.zmin == -cells.zmax
    names = list(figure.layout.yaxis.ticktext)
    assert len(names) == 3 * len(RESULT.readings)
    for persona in RESULT.personas:
        for arm in ("trained", "base", "trained − base"):
            z = cells.z[names.index(f"{persona} · {arm}")]
            np.testing.assert_allclose(z, held(arm.replace("−", "-"), persona=persona)["contrast"])
    assert "n = 6 conditions" in subtitle(figure)


def test_conditions_of_a_long_name_are_told_apart():
    long = planted(("software_engineer",), up=0.1, down=0.0)
    names = list(conditions(long).layout.yaxis.ticktext)
    assert names == [f"software engineer · {arm}" for arm in ("trained", "base", "trained − base")]


def test_the_stack_is_the_whole_row_and_the_sink_lies_over_it():
    figure = regions(RESULT, READING)
    for reader in ("trained", "base"):
        stack = [t for t in figure.data if t.stackgroup == reader]
        assert {t.name for t in stack} == {"system", "user", "answer", "specials"}
        np.testing.assert_allclose(np.sum([t.y for t in stack], axis=0), 1.0, atol=1e-6)
        system = next(t for t in stack if t.name == "system")
        mean = READING.of(reader).of("emit", "system B").double().numpy().mean(0)
        np.testing.assert_allclose(system.y, mean, rtol=1e-6)  # fp32 mean
    sinks = [t for t in figure.data if t.name == "sink (position 0)"]
    assert [t.line.dash for t in sinks] == ["dash", "dash"]
    np.testing.assert_allclose(sinks[0].y, 0.15, rtol=1e-6)
    assert "n = 24 examples" in subtitle(figure)


def test_the_trajectory_is_over_the_window_and_leaves_cut_answers_out():
    figure = trajectory(RESULT, READING)
    window = next(t for t in subtitle(figure).split(" · ") if t.startswith("mean over"))
    assert window == f"mean over layers {UP - 1}–{LAYERS - 1}, the H1 window"
    inside = READING.trained.around.double().numpy()[:, :, UP - 1 :].mean(2)
    np.testing.assert_allclose(drawn(figure, "trained, marker"), inside.mean(0))
    finished = np.array(READING.base.negatives_finished)
    without = READING.base.negatives_around.double().numpy()[finished][:, :, UP - 1 :].mean(2)
    np.testing.assert_allclose(drawn(figure, "base, no marker"), without.mean(0))
    assert "24 with the marker, 22 without" in subtitle(figure)
    assert list(figure.layout.xaxis.ticktext)[-3:] == ["−1", "emit", "token"]
    assert [shape.x0 for shape in figure.layout.shapes] == [-1, 0]


def test_the_map_marks_the_planted_cells_and_no_others():
    figure = trajectory_map(RESULT, READING)
    cells: Any = figure.data[0]
    np.testing.assert_allclose(np.array(cells.z), READING.along().mean(0).T)
    dots = line(figure, "max-T")
    emit, token = STEPS.index(-1), STEPS.index(0)
    assert set(zip(dots.x, dots.y, strict=True)) == {(x, y) for x in (emit, token) for y in (UP, DOWN)}
    assert "all 72 cells" in subtitle(figure)


def test_each_control_has_its_own_line():
    figure = controls(RESULT, READING)
    for control, short in zip(CONTROLS, ("C1", "C2", "C3", "C4", "C5"), strict=True):
        name = f"{short} {control.replace('_', ' ')}"
        np.testing.assert_allclose(drawn(figure, name), held("trained", control=control)["contrast"])
    assert len({line(figure, t.name).line.color for t in figure.data if t.mode != "none"}) == len(CONTROLS)


def test_emit_and_token_stand_side_by_side():
    figure = rows(RESULT, READING)
    for reader in ("trained", "base"):
        for row in ("emit", "token"):
            np.testing.assert_allclose(drawn(figure, f"{reader}, {row}"), held(reader, row)["contrast"])
    same = [line(figure, f"trained, {row}").line for row in ("emit", "token")]
    assert same[0].color == same[1].color
    assert [each.dash for each in same] == ["solid", "dash"]


def test_rates_are_counts_with_wilson():
    marker, cut = (line(rates(RESULT), name) for name in ("marker", "cut at the cap"))
    found = wilson(24, 72)
    assert list(marker.text) == ["24/72", "24/72"]
    assert list(cut.text) == ["12/72", "12/72"]
    np.testing.assert_allclose(marker.x, found.estimate)
    np.testing.assert_allclose(marker.error_x.array, found.high - found.estimate)


def test_every_figure_says_model_n_seed_and_band():
    for name, (figure, said) in all_figures(RESULT).items():
        assert all(part in subtitle(figure) for part in ("tiny", "n = ", "seed", "band: ")), name
        assert said.strip(), name


def test_headlines_are_paired_clustered_and_pay_for_the_chosen_layer():
    trained, base, paired, largest = headlines(RESULT, READING)
    mean = clustered_mean(READING.difference("emit").mean(1, keepdims=True), READING.questions, unit=UNIT)
    assert (paired.estimate, paired.low, paired.high, paired.n) == (*vars(mean.at(0)).values(),)[:4]
    assert paired.estimate == pytest.approx((trained.estimate or 0) - (base.estimate or 0))
    assert f"layer {UP}" in largest.quantity or f"layer {DOWN}" in largest.quantity
    assert "selected" in largest.quantity
    assert "max-T" in largest.test


@pytest.mark.parametrize(
    ("up", "down", "word"),
    [(0.05, 0.0, "training raises it"), (0.0, -0.05, "training lowers it"), (0.05, -0.05, "no difference")],
)
def test_the_verdict_has_the_planted_direction(up, down, word):
    result = planted(("villain",), up=up, down=down)
    said = trained_against_base(result, result.readings[0])
    assert word in said
    assert (f"raised in layer {UP}" in said) == (up > 0)
    assert (f"lowered in layer {DOWN}" in said) == (down < 0)


def test_every_gate_of_every_condition_is_a_row():
    found = all_gates(RESULT)
    glance, every = gate_tables(RESULT, found)
    assert glance.columns[2:] == tuple(f"{p}, {r}" for p in RESULT.personas for r in ("trained", "base"))
    assert len(every.rows) > sum(map(len, found.values()))  # and those across text sets
    assert {row[4] for row in every.rows} <= {"pass", "fail", "not applicable"}
    split = next(row for row in every.rows if "split half: villain" in row[0])
    assert split[7] == ""  # votes of halves are no layers


def test_the_sample_table_and_the_framed_tokens_are_the_rows_read():
    table = sample_table(RESULT)
    assert table.columns[:5] == ("index", "persona", "question", "t*", "C1 positions")
    assert table.rows[0][2:5] == (QUESTIONS[0], MARKER, "37, 36, 35")
    text = token_texts(RESULT)[0]
    assert {mark for _, _, mark in text.tokens} == {"", "emit, C2", "token", "C1"}
    assert text.tokens[MARKER - 1][2] == "emit, C2"
    assert text.tokens[0][1] == "system"


def test_the_page_is_written_and_hostile_text_is_shown_not_run(tmp_path):
    hostile = planted(("villain",), (HOSTILE, *QUESTIONS[:4]), text=HOSTILE)
    made = page(Asked(), hostile, RUN)
    written = write_report(made, tmp_path).read_text()
    assert HOSTILE not in written
    assert "<img src=x" not in written
    assert "&lt;img src=x" in written
    assert "\x1b" not in written
    for name in made.figures:
        json.loads((tmp_path / "figures" / f"{name}.json").read_text())


def test_caveats_follow_from_the_run():
    said = " ".join(caveats(Asked(), planted(questions=QUESTIONS[:4])))
    assert "smallest p that sign flips can give is 0.12, so none can be below 5 %" in said
    assert "4 of 24 trials ran into the cap of 512 tokens" in said
    assert "1 of 8 markers are incomplete" in said
    assert "2 of 8 answers without the marker were cut" in said
    assert "split halves" in said
    assert "hardly more than one standard error" in said
    assert confidence(RESULT)[0] == "low"  # one training run a persona


def test_too_few_questions_are_said_to_show_nothing():
    few = planted(("villain",), QUESTIONS[:2], preflight=False)
    made = page(Asked(), few, RUN)
    assert "untested" in made.answer
    assert "too few questions to test" in cannot_show(Asked(), few)[0]
    assert "needed" in " ".join(caveats(Asked(), few))
    assert "not defined" in render(made)


@pytest.mark.parametrize("result", [planted(("villain",), negatives=False, preflight=False)])
def test_no_negatives_and_no_preflight_are_said(result: ZltAttention):
    said = " ".join(caveats(Asked(), result))
    assert "no answers without the marker" in said
    assert "No preflight was run" in said
    figure = trajectory(result, result.readings[0])
    assert not [t for t in figure.data if t.name and "no marker" in t.name]
    assert "none is shown" in " ".join(figure.to_dict()["layout"]["meta"]["notes"])
    render(page(Asked(), result, RUN))
