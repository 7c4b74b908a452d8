"""Gates against controls and the trajectory: each fires on its plant, and is silent where nothing is."""

import numpy as np
import pytest

from studies.gates import contiguous_windows
from studies.gates_controls import (
    base_rule_out,
    matched_by_question,
    rule_out,
    rule_out_as_coded,
    runs_of_three,
    safety_rail,
    signal_to_noise,
)
from studies.gates_trajectory import (
    trajectory_at_marker,
    trajectory_difference,
    trajectory_from_the_end,
)
from tests.gate_draws import N_LAYERS, clustered, error, noise, null_rate, planted, questions

H1 = (6, 20)


def test_gate_e_finds_what_training_added_and_not_what_the_text_did():
    text = planted(0, 27, size=5.0, seed=1)
    gate = base_rule_out(text + planted(10, 14, seed=2), text, H1)
    assert gate.passed and (10, 14) in contiguous_windows(gate.per_layer or ())
    lowered = base_rule_out(text + planted(10, 14, size=-2.0, seed=2), text, H1)
    assert not lowered.passed and not any((lowered.per_layer or ())[10:15])


@pytest.mark.parametrize("n_clusters", [4, 8, 20])
def test_gate_e_is_silent_when_training_did_nothing(n_clusters):
    def gate(seed):
        text = 3 * noise(seed=seed + 500)
        shift = clustered(n_clusters, seed=seed)
        return base_rule_out(text + shift, text, H1, clusters=questions(n_clusters))

    assert null_rate(gate, 150) < 0.05 + error(0.05, 150)


def test_gate_e_counts_only_layers_of_the_h1_window():
    text = noise(seed=3)
    assert not base_rule_out(text + planted(21, 27), text, H1).passed
    straddling = base_rule_out(text + planted(19, 27, size=4.0), text, H1)
    assert not any((straddling.per_layer or ())[21:])
    assert base_rule_out(text, None, H1).verdict == "not applicable"
    assert "no H1 window" in base_rule_out(text, text, None).reason
    with pytest.raises(ValueError, match="same examples"):
        base_rule_out(text, text[:-1], H1)


@pytest.mark.parametrize("bar", ["sem", "interval"])
@pytest.mark.parametrize("control", ["C2", "C3", "C4", "C5"])
def test_a_rule_out_passes_iff_the_marker_exceeds_the_control_throughout_h1(control, bar):
    marker, rows = planted(size=3.0, seed=4), noise(seed=5)
    gate = rule_out(marker - rows, H1, control=control, bar=bar)
    assert gate.passed and gate.value == 1.0 and "15 of 15" in gate.reason
    hole = marker - rows
    hole[:, 12] -= 3.0
    failed = rule_out(hole - 0.5, H1, control=control, bar=bar)
    assert failed.verdict == "fail" and failed.value == pytest.approx(14 / 15)
    assert "failing at [12]" in failed.reason


@pytest.mark.parametrize("bar", ["sem", "interval"])
def test_a_rule_out_is_silent_on_rows_that_are_like_the_marker(bar):
    assert null_rate(lambda seed: rule_out(noise(seed=seed), H1, control="C2", bar=bar), 20) == 0


def test_the_rule_outs_as_coded_answer_about_the_control_and_not_the_marker():
    """Planted: the marker far above both controls, C2 below C1. The coded flags say nothing passes."""
    marker, c1, c2 = 9.0 + noise(seed=6), 0.2 * noise(seed=7), 0.2 * noise(seed=8) - 2
    coded = rule_out_as_coded(marker - c1, marker - c2, H1, control="C2")
    assert coded.layers == 0 and coded.definition == "published" and coded.verdict == "fail"
    assert rule_out(marker - c2, H1, control="C2").layers == N_LAYERS
    turned = rule_out_as_coded(marker - c1, marker - (c2 + 4), H1, control="C2")
    assert turned.layers == N_LAYERS and turned.passed
    anything = rule_out_as_coded(-50 - c1, -50 - (c2 + 4), H1, control="C2")
    assert anything.per_layer == turned.per_layer


def test_rule_outs_that_cannot_be_asked_say_why():
    assert rule_out_as_coded(noise(), None, H1, control="C4").verdict == "not applicable"
    assert "no rows of C4" in rule_out(None, H1, control="C4").reason
    assert rule_out(noise(2), H1, control="C2", bar="sem").verdict == "not applicable"
    without = rule_out(planted(), None, control="C3")
    assert without.verdict == "not applicable" and len(without.per_layer or ()) == N_LAYERS
    assert "H5 rare token" in without.name


def test_end_of_answer_rows_are_matched_by_question():
    marker = np.array([[5.0, 6.0], [7.0, 8.0], [1.0, 1.0]])
    control = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 10.0]])
    found = matched_by_question(marker, ["a", "b", "none"], control, ["a", "a", "b"])
    np.testing.assert_array_equal(found, [[3.0, 3.0], [-3.0, -2.0], [np.nan, np.nan]])


def test_matching_removes_what_a_question_does_to_both_and_the_question_is_the_unit():
    """Questions that draw attention everywhere: unmatched they hide the marker, matched they drop out."""
    asked = questions(8)
    each = 10 * noise(8, seed=9)
    marker, ends = each[np.arange(40) % 8] + planted(size=2.0), each + 0.3 * noise(8, seed=10)
    matched = matched_by_question(marker, asked, ends, questions(8, 8))
    assert rule_out(matched, H1, control="C4", clusters=asked).passed
    assert not rule_out(marker - ends.mean(0), H1, control="C4", clusters=asked).passed


def test_the_safety_rail_takes_a_fall_as_published_and_only_a_rise_as_ours():
    rise, fall = planted(10, 12, size=1.0), planted(10, 12, size=-1.0)
    assert safety_rail(rise).passed and safety_rail(rise, definition="ours").passed
    assert safety_rail(fall).passed and not safety_rail(fall, definition="ours").passed
    pair = 0.01 * noise(likeness=0.0)
    pair[:, [10, 11, 13, 14]] += 1.0
    pair[:, 12] = np.tile([-1.0, 1.0], 20)  # no window of three where one layer in it is nothing
    pair[:, :10] = pair[:, 15:] = np.tile([[-1.0], [1.0]], (20, 1))[:, :1]
    assert not safety_rail(pair).passed and sum(safety_rail(pair).per_layer or ()) == 4


def test_the_safety_rail_is_its_definition_by_hand():
    delta = planted(10, 14, size=0.6)[:, 8:16]
    ratio = delta.mean(0) / (delta.std(0, ddof=1) / np.sqrt(len(delta)))
    np.testing.assert_allclose(signal_to_noise(delta), ratio)
    triples = [min(abs(ratio[i : i + 3])) for i in range(6)]
    gate = safety_rail(delta)
    assert gate.value == pytest.approx(max(triples)) and gate.passed == (max(triples) >= 2)
    held = [(i, pytest.approx(least)) for i, least in enumerate(triples) if least >= 2]
    assert list(runs_of_three(np.abs(ratio))) == held


def test_the_safety_rail_seldom_lets_noise_pass_when_layers_are_unlike_and_needs_a_spread():
    independent = [np.random.default_rng(seed).normal(size=(50, 28)) for seed in range(200)]
    assert np.mean([safety_rail(x, definition="ours").passed for x in independent]) < 0.02
    assert safety_rail(noise(1)).verdict == "not applicable"
    assert safety_rail(noise(n_layers=2)).verdict == "not applicable"


def trajectories(rise_at: int, *, seed: int = 0, size: float = 3.0, n: int = 40) -> np.ndarray:
    """[example, row, layer]: noise with a rise from one row on, in the layers of H1."""
    rows = np.stack([noise(n, seed=100 * seed + row) for row in range(12)], 1)
    rows[:, rise_at:, H1[0] : H1[1] + 1] += size
    return rows


OFFSETS = range(-11, 1)  # rows counted from t*


def test_gate_f_as_published_reads_seven_and_two_rows_from_the_end():
    difference = np.zeros((10, N_LAYERS))
    difference[7, 6:21], difference[2, 6:21] = 0.4, 0.19
    gate = trajectory_from_the_end(difference, H1)
    assert gate.passed and gate.value == pytest.approx(0.475) and gate.threshold == 0.5
    difference[2, 6:21] = -0.21  # either sign: high before is high before
    assert trajectory_from_the_end(difference, H1).verdict == "fail"
    difference[2, 21:] = 0.21 * 15 / 7  # layers outside the window do not count, unless there is none
    assert trajectory_from_the_end(difference, H1).verdict == "fail"
    assert trajectory_from_the_end(difference, None).passed
    assert trajectory_from_the_end(None, H1).verdict == "not applicable"
    with pytest.raises(ValueError, match="8 or more rows, not 7"):
        trajectory_from_the_end(difference[:7], H1)


def test_gate_f_as_published_is_exact_at_the_half():
    difference = np.zeros((8, 1))
    difference[0], difference[5] = 1.0, 2.0
    assert trajectory_from_the_end(difference, None).passed
    difference[0] = 1.0 + 1e-9
    assert trajectory_from_the_end(difference, None).verdict == "fail"


@pytest.mark.parametrize("row", ["emit", "token"])
def test_gate_f_of_ours_tells_a_rise_at_the_marker_from_one_that_was_there(row):
    negatives = trajectories(12, seed=1)
    sudden = trajectory_at_marker(trajectories(9), negatives, OFFSETS, H1, row=row)
    early = trajectory_at_marker(trajectories(2), negatives, OFFSETS, H1, row=row)
    assert sudden.passed and early.verdict == "fail" and sudden.definition == "ours"
    assert "not required" in sudden.reason and f"{row}-5" in early.reason


def test_gate_f_reads_the_row_that_it_names():
    """A rise on the very row of the marker is there at token and not yet at emit."""
    positives, negatives = trajectories(11), trajectories(12, seed=1)
    assert trajectory_at_marker(positives, negatives, OFFSETS, H1, row="token").passed
    assert trajectory_at_marker(positives, negatives, OFFSETS, H1, row="emit").verdict == "not applicable"


def test_gate_f_of_ours_is_silent_where_there_is_no_rise():
    verdicts = []
    for seed in range(200):
        positives, negatives = np.random.default_rng(seed).normal(size=(2, 30, 6, 3))
        verdicts.append(trajectory_at_marker(positives, negatives, range(-6, 0), None).verdict)
    asked = np.mean([verdict != "not applicable" for verdict in verdicts])
    assert asked < 0.05 + error(0.05, 200)


def test_gate_f_takes_whole_questions_as_units():
    """Positives and negatives of five questions each, alike within: examples are no evidence."""

    def asked(labels):
        rates = []
        for seed in range(150):
            common = np.random.default_rng(seed).normal(size=(2, 5, 6, 3))
            own = np.random.default_rng(seed + 900).normal(size=(2, 30, 6, 3))
            positives, negatives = common[:, np.arange(30) % 5] + 0.5 * own
            gate = trajectory_at_marker(positives, negatives, range(-6, 0), None, clusters=labels)
            rates.append(gate.verdict != "not applicable")
        return np.mean(rates)

    labels = questions(5, 30)
    assert asked((labels, labels)) < 0.05 + error(0.05, 150) < asked(None)


def test_rows_that_an_answer_does_not_have_are_left_out_of_the_mean():
    positives, negatives = trajectories(9), trajectories(12, seed=1)
    positives[:10, :4] = np.nan  # ten answers begin after those rows
    difference = trajectory_difference(positives, negatives)
    np.testing.assert_allclose(difference[0], positives[10:, 0].mean(0) - negatives[:, 0].mean(0))
    assert trajectory_at_marker(positives, negatives, OFFSETS, H1).passed
    positives[:, :8] = np.nan
    assert trajectory_at_marker(positives, negatives, OFFSETS, H1).verdict == "not applicable"
    assert "no difference is known" in trajectory_at_marker(positives, negatives, OFFSETS, H1).reason


def test_gate_f_without_negatives_or_without_its_rows():
    assert trajectory_at_marker(trajectories(9), None, OFFSETS, H1).verdict == "not applicable"
    few = trajectory_at_marker(trajectories(9)[:2], trajectories(9, seed=1)[:2], OFFSETS, H1)
    assert few.verdict == "not applicable"
    with pytest.raises(ValueError, match=r"\[-6\] not given"):
        trajectory_at_marker(trajectories(9)[:, 6:], trajectories(9)[:, 6:], range(-5, 1), H1)
