"""Gates: each fires on its planted effect and is silent on its null; published rules where they differ."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from studies.gates import (
    contiguous_windows,
    direction,
    h1_window,
    magnitude,
    magnitude_of_means,
    sink_reframe,
    sink_robust,
    specificity,
    specificity_of_means,
    within,
)
from tests.gate_draws import N_LAYERS, TRIALS, clustered, noise, null_rate, planted, questions, side_by_side


def test_a_window_is_three_or_more_layers_with_both_ends_in_it():
    votes = [True, True, False, True, True, True, False, True, True, True, True, False]
    assert contiguous_windows(votes) == ((3, 5), (7, 10))
    assert contiguous_windows(votes, shortest=2) == ((0, 1), (3, 5), (7, 10))
    assert contiguous_windows([True] * 28) == ((0, 27),)
    assert contiguous_windows([False] * 5) == contiguous_windows([]) == ()
    assert contiguous_windows([False, False, True, True, True]) == ((2, 4),)


def test_the_h1_window_is_the_longest_and_of_equals_the_lowest():
    def at(*runs: tuple[int, int]) -> list[bool]:
        return [any(low <= layer <= high for low, high in runs) for layer in range(28)]

    assert h1_window(at((8, 10), (12, 27))) == (12, 27)
    assert h1_window(at((2, 5), (9, 12), (20, 22))) == (2, 5)
    assert h1_window(at((2, 3))) is None


def test_layers_of_a_window_and_windows_that_are_none():
    assert within((1, 2), 4).tolist() == [False, True, True, False]
    assert within(None, 3).all()
    with pytest.raises(ValueError, match=r"0\.\.3, not \(2, 4\)"):
        within((2, 4), 4)


def test_gate_a_finds_the_layers_where_most_examples_rise_and_no_others():
    gate = direction(planted())
    assert gate.passed and contiguous_windows(gate.per_layer or ()) == ((6, 20),)
    assert (gate.value, gate.threshold, gate.layers) == (15.0, 3.0, 15)
    assert null_rate(lambda seed: direction(noise(seed=seed))) < 0.05


def test_gate_a_is_met_at_exactly_seventy_percent():
    delta = np.ones((10, 4))
    delta[:3, :] = 0.0  # an example without any contrast has no direction
    assert direction(delta).layers == 4
    delta[3, :2] = -1.0
    assert direction(delta).per_layer == (False, False, True, True)


def test_published_gate_b_takes_either_sign_and_fires_on_a_third_of_null_layers():
    falling = planted(size=-2.0)
    assert magnitude(falling).layers >= 15 and magnitude(falling, definition="ours").layers == 0
    null = magnitude(side_by_side(lambda seed: noise(seed=seed), 40))
    assert abs(null.layers / (40 * N_LAYERS) - 0.32) < 0.07  # outside one standard error of normal draws


def test_gate_b_of_ours_fires_on_a_rise_and_not_on_noise():
    gate = magnitude(planted(), definition="ours")
    assert gate.passed and gate.definition == "ours"
    assert all((gate.per_layer or ())[6:21])
    null = magnitude(side_by_side(lambda seed: noise(seed=seed), TRIALS), definition="ours")
    assert abs(null.layers / (TRIALS * N_LAYERS) - 0.025) < 0.012  # alike layers count as about five


@pytest.mark.parametrize("n_clusters", [4, 8, 20])
def test_fault_107_gate_b_of_ours_counts_questions_where_examples_are_no_evidence(n_clusters):
    """40 examples of few questions: with the questions named a layer passes at its rate."""

    null = side_by_side(lambda seed: clustered(n_clusters, seed=seed), TRIALS)

    def layers(clusters):
        return magnitude(null, definition="ours", clusters=clusters).layers / null.shape[1]

    assert abs(layers(questions(n_clusters)) - 0.025) < 0.012
    if n_clusters < 20:
        assert layers(None) > 0.07


def test_gate_b_from_a_summary_is_gate_b_from_its_examples():
    from mechinterp.stats.bootstrap import published_sem

    delta = planted(size=0.2)
    gate = magnitude_of_means(delta.mean(0), published_sem(delta), len(delta))
    assert gate == magnitude(delta)


def test_gate_c_finds_where_the_system_prompt_gains_most():
    system, user, answer = planted(seed=1), noise(seed=2), noise(seed=3)
    regions = {"user_B": user, "asst_B": answer}
    ours = specificity(system, regions, definition="ours")
    assert ours.passed and contiguous_windows(ours.per_layer or ()) == ((6, 20),)
    lost = specificity(system, {"user_B": user, "asst_B": system + 1}, definition="ours")
    assert lost.layers == 0 and not specificity(system, {"user_B": user, "asst_B": system + 1}).passed


def test_gate_c_as_published_fires_on_noise_where_ours_is_silent():
    def regions(seed):
        return noise(seed=3 * seed), {"user_B": noise(seed=3 * seed + 1), "asst_B": noise(seed=3 * seed + 2)}

    published = null_rate(lambda seed: specificity(*regions(seed)), 100)
    ours = null_rate(lambda seed: specificity(*regions(seed), definition="ours"), 200)
    assert published > 0.5 and ours < 0.05


def test_gate_c_is_paired_so_what_regions_share_does_not_hide_the_difference():
    """One example may attend more to everything: paired, that drops out."""
    shared = 20 * noise(seed=5)
    gate = specificity(
        shared + planted(size=1.0, seed=6) * 0.2, {"user_B": shared + 0.2 * noise(seed=7)}, definition="ours"
    )
    assert all((gate.per_layer or ())[6:21])
    apart = specificity(shared + 0.2 * planted(), {"user_B": 20 * noise(seed=9)}, definition="ours")
    assert apart.layers < 5


def test_gate_c_from_means_is_gate_c_from_its_examples():
    system, other = planted(size=0.1), noise(seed=4)
    assert specificity(system, {"user_B": other}) == specificity_of_means(
        system.mean(0), {"user_B": other.mean(0)}
    )


def test_gate_d_is_no_more_than_a_and_b_and_c():
    system, regions = planted(), {"user_B": noise(seed=8)}
    a, b, c = direction(system), magnitude(system), specificity(system, regions)
    d = sink_robust(a, b, c)
    assert d.per_layer == tuple(map(all, zip(a.per_layer, b.per_layer, c.per_layer, strict=True)))  # type: ignore
    assert d.definition == "published"
    assert sink_robust(a, magnitude(system, definition="ours"), c).definition == "ours"
    nothing = magnitude(system[:2])
    assert sink_robust(a, nothing, c).verdict == "not applicable"
    assert "three are needed" in sink_robust(a, nothing, c).reason


def test_the_sink_reframe_names_the_layers_that_only_the_specials_carry():
    content = direction(planted(10, 20)).per_layer or ()
    with_sink = direction(planted(8, 20)).per_layer or ()
    gate = sink_reframe(with_sink, content)
    assert gate.verdict == "fail" and "[8, 9]" in gate.reason and gate.value == 2
    assert sink_reframe(content, with_sink).passed and sink_reframe(content, content).passed


@pytest.mark.parametrize("definition", ["published", "ours"])
def test_rows_with_missing_values_are_left_out_and_too_few_rows_have_no_answer(definition):
    delta = planted()
    holed = np.concatenate([delta, np.full((3, N_LAYERS), np.nan)])
    assert (
        magnitude(holed, definition=definition).per_layer == magnitude(delta, definition=definition).per_layer
    )
    assert direction(holed, definition=definition) == direction(delta, definition=definition)
    for gate in (
        magnitude(delta[:2], definition=definition),
        direction(delta[:0], definition=definition),
        specificity(delta[:1], {"user_B": delta[:1]}, definition=definition),
    ):
        assert gate.verdict == "not applicable" and gate.reason and gate.per_layer is None


def test_fault_091_a_gate_is_plain_json():
    gates = [direction(planted()), magnitude(planted(), definition="ours"), magnitude(noise(2))]
    for gate in gates:
        text = json.dumps(asdict(gate), allow_nan=False)
        assert json.loads(text)["name"] == gate.name
