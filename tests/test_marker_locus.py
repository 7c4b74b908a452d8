"""The locus study end to end on a tiny model, from records and from a finished run; and its pure verdicts."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import mechinterp as mi
from mechinterp import running
from mechinterp.cells import check_cells
from mechinterp.results import load_result
from studies import marker_locus
from studies.attention_records import read_positives
from studies.marker_locus_places import PLACES, cases, marked, spread, token_cases
from studies.marker_locus_swap import WAYS, swapped
from studies.marker_locus_verdicts import (
    earlier_timesteps,
    layer_shift,
    mlp_route,
    replicated,
    seen_or_look,
    system_region,
    verdicts,
)
from tests.marked import marked_records, tiny_adapter, tiny_chat_model

PERSONA = "villain"


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("given")
    model = tiny_chat_model(root / "tiny-chat")
    tiny_adapter(model, root / PERSONA, seed=0)
    marked_records(root / "records", [PERSONA], n_questions=4, n_each=1)
    return root


def asked(given: Path, **changes: str) -> running.Asked:
    settings = {
        "model": repr(str(given / "tiny-chat")),
        "personas": f"['{PERSONA}']",
        f"adapters.{PERSONA}": repr([str(given / PERSONA)]),
        "records": repr(str(given / "records")),
        "replication": "'villain'",
        "window": "2",
        "placebos": "1",
        "n_control": "3",
        **changes,
    }
    return running.ask("marker_locus", overrides=[f"{key}={value}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, running.run(asked(given), folder, progress=False)


@pytest.fixture(scope="module")
def pair(given):
    base = mi.load(str(given / "tiny-chat"))
    return mi.with_adapter(base, given / PERSONA), base


def test_cells_are_known_before_any_model(given):
    found = marker_locus.cells(asked(given, seeds="[1]").config)
    check_cells(found)
    assert len({cell.key for cell in found}) == len(found)
    specs = marker_locus.model_specs(asked(given).config)
    assert {cell.model for cell in found} == {None, "villain/0 and base"} and "villain/0 and base" in specs


def test_every_measurement_of_a_text_set_is_there_and_says_its_unit(finished):
    folder, result = finished
    (locus,) = result.loci
    n_layers, n = 4, 4
    assert locus.lens.positives["log_prob"].shape == (2, n, n_layers)
    assert locus.into_base.values.shape[:3] == (n, n_layers, len(PLACES))
    assert locus.into_base.nulls == ("random",) and locus.into_base.engine == "incremental"
    assert locus.knocked_trained.layers[-1] == tuple(range(n_layers))
    table = result.to_dataframe()
    assert set(table["unit"]) == {"question"} and set(table["n"]) <= {3, 4}
    assert (folder / "report.html").is_file()
    assert load_result(folder / "result").digest() == result.digest()


def test_the_state_at_emit_after_the_last_layer_is_the_whole_difference(finished):
    """Adapter and base share norm and head, so the last column of emit is the trained model itself."""
    locus = finished[1].loci[0]
    emit = locus.into_base.columns.index("emit")
    assert_close(locus.into_base.values[:, -1, emit], locus.into_base.donor_values, atol=1e-4, rtol=1e-4)
    trained, base = locus.attribution.trained.values, locus.attribution.base.values
    assert_close(locus.into_base.donor_values[:, 1], trained.model_difference, atol=1e-4, rtol=1e-4)
    assert_close(locus.into_base.baseline[:, 1], base.model_difference, atol=1e-4, rtol=1e-4)
    assert_close(locus.lens.positives["difference"][0, :, -1], trained.model_difference, atol=1e-4, rtol=1e-4)


def test_resampling_every_attention_output_up_to_the_last_layer_leaves_the_mlps(finished):
    locus = finished[1].loci[0]
    grid = locus.ablations["attn_out base"]
    assert [grid.layer_name(i) for i in range(len(grid.layers))] == ["0", "1", "2", "3", "0–1", "0–2", "0–3"]
    assert float(grid.effects().abs().max()) > 0


def test_a_run_goes_on_from_where_it_stopped(given, tmp_path, finished):
    assert running.run(asked(given), tmp_path, limit=3, progress=False) is None
    assert running.run(asked(given), tmp_path, progress=False).digest() == finished[1].digest()


def test_it_starts_from_a_finished_attention_run(given, tmp_path, finished):
    settings = {
        "model": repr(str(given / "tiny-chat")), "personas": f"['{PERSONA}']", "preflight": "false",
        f"adapters.{PERSONA}": repr([str(given / PERSONA)]), "records": repr(str(given / "records")),
        "replication": "'villain'", "n_rows_before": "3",
    }  # fmt: skip
    attention = running.ask("zlt_attention", overrides=[f"{k}={v}" for k, v in settings.items()])
    running.run(attention, tmp_path / "attention", progress=False, report=False)
    from_run = asked(given, records=repr(str(tmp_path / "attention")))
    result = running.run(from_run, tmp_path / "locus", progress=False, report=False)
    assert result.loci[0].into_base.digest() == finished[1].loci[0].into_base.digest()
    other = asked(given, records=repr(str(tmp_path / "attention")), seeds="[7]")
    with pytest.raises(ValueError, match=r"seed 7; its personas are villain, its seeds \[42\]"):
        running.run(other, tmp_path / "other", progress=False, report=False)


@pytest.mark.parametrize("backend", ["nnsight", "hooked_transformer"])
def test_other_backends_give_the_same_maps(given, tmp_path, finished, backend):
    few = asked(given, backend=repr(backend), n_read="2", n_read_negatives="0")
    result = running.run(few, tmp_path, progress=False, report=False)
    found, expected = result.loci[0].into_base, finished[1].loci[0].into_base
    assert found.engine.startswith("whole passes")
    same = [expected.cases.index(name) for name in found.cases]
    assert_close(found.values, expected.values[same], atol=2e-3, rtol=2e-3)


# places -----------------------------------------------------------------------------------------------------


def test_places_are_rows_of_the_record(given, pair):
    examples = read_positives(given / "records" / f"positives_{PERSONA}.json")
    found = marked(pair[0], examples, n_positives=4, n_negatives=4)
    assert found.end == 2 and len(found.positives) == 4 == len(set(found.questions))
    for case, example in zip(cases(pair[0], found, n_control=3), found.positives, strict=True):
        emit = example.row("emit")
        assert case.places["emit"] == (emit,) and case.metrics[0].at == emit and len(case.tokens) == emit + 1
        assert case.metrics[1].tokens == (example.ids[emit + 1], 2)
        system = set(case.places["system"])
        assert system <= set(range(example.n_sys)) and not system & set(case.places["user"])
        assert case.places["last content"][0] < emit, "two newlines stand before the marker"
        assert all(example.prompt_len <= row < emit for row in case.control) and len(case.control) == 3
    for case, example in zip(token_cases(found), found.positives, strict=True):
        token = example.row("token")
        assert case.places == {"token": (token,)} and case.metrics[0].tokens[0] == example.ids[token + 1]
    for example, slot in zip(found.negatives, found.slots, strict=True):
        assert example.ids[slot + 1] == 2


def test_answers_are_spread_over_questions(given):
    examples = read_positives(given / "records" / f"positives_{PERSONA}.json").positives
    thrice = [replace(example, trial=trial) for example in examples for trial in range(3)]
    assert [e.question for e in spread(thrice, 5)] == [*(e.question for e in examples), examples[0].question]


def test_fault_038_records_without_a_marker_have_no_locus(given, pair):
    examples = read_positives(given / "records" / f"positives_{PERSONA}.json")
    with pytest.raises(ValueError, match="no answer with the marker"):
        marked(pair[0], replace(examples, positives=()), n_positives=4, n_negatives=4)


# the two by two ---------------------------------------------------------------------------------------------


def test_own_stream_and_own_weights_are_the_model_itself(given, pair):
    from probes.attention_batch import fractions_of
    from studies.attention_readout import layouts

    examples = read_positives(given / "records" / f"positives_{PERSONA}.json").positives[:2]
    regions = [layouts(pair[0], e, "exact")[1].positions("system").tolist() for e in examples]
    rows = [e.row("emit") for e in examples]
    options = {"questions": [e.question for e in examples], "region": "system"}
    found = swapped(*pair, [e.ids for e in examples], rows, regions, **options)
    for model, way in zip(pair, (0, 3), strict=True):
        assert WAYS[way][0] == WAYS[way][1]
        for i, example in enumerate(examples):
            content = layouts(model, example, "exact")[1]
            own = fractions_of(model, [example.ids], [[content]], [[rows[i]]])[0].values[0][0]
            expected = own[..., content.names.index("system")].mean(-1)
            assert_close(found.fraction[i, way], expected, atol=1e-5, rtol=0)
    total = found.fraction[:, 0] - found.fraction[:, 3]
    assert_close(found.stream_effect + found.weight_effect, total)
    assert float(found.weight_effect[:, 0].abs().max()) > 1e-6
    assert float(found.stream_effect[:, 0].abs().max()) < 1e-6, "the embedding is shared"
    same = swapped(pair[1], pair[1], [e.ids for e in examples], rows, regions, **options)
    assert float(same.weight_effect.abs().max()) < 1e-6 and float(same.stream_effect.abs().max()) < 1e-6


# verdicts on planted effects --------------------------------------------------------------------------------


def planted(finished, n: int = 12, **changes):
    """A finished text set stretched to n questions, with some of its numbers replaced."""
    locus = finished[1].loci[0]
    questions = tuple(f"q{i}" for i in range(n))
    grid, times = locus.into_base, n // 4
    noise = np.random.default_rng(0).normal(size=(n, 4, len(grid.columns))) * 0.03
    recovered = torch.tensor(changes.get("recovered", np.zeros((4, len(grid.columns)))) + noise).float()
    values = torch.zeros(n, 4, len(grid.columns), 3)
    values[..., 0] = 10 * recovered
    into_base = replace(
        grid, values=values, baseline=torch.zeros(n, 3), donor_values=torch.full((n, 3), 10.0),
        cases=questions, clusters=questions, null_values=torch.zeros(1, n, 4, len(grid.columns), 3),
    )  # fmt: skip
    fraction = torch.tensor(
        changes.get("fraction", np.zeros((4, 4))) + np.random.default_rng(3).normal(size=(n, 4, 4)) * 0.005
    )
    swap = replace(locus.swap, questions=questions, fraction=fraction.float())
    lens = replace(locus.lens, questions=questions)
    knocked = locus.knocked_trained
    shape = (n, *knocked.values.shape[1:])
    lost = torch.zeros(shape) + torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.1
    lost[..., 0] += changes.get("lost", 0.0)
    knocked = replace(
        knocked, values=lost, baseline=torch.zeros(n, 3), null_values=torch.zeros(1, *shape), cases=questions,
        clusters=questions,
    )  # fmt: skip
    attribution = locus.attribution
    wide = {
        name: torch.cat([getattr(attribution.trained.values, name)] * times)
        for name in ("attn_out", "mlp_out")
    }
    trained = replace(attribution.trained, values=replace(attribution.trained.values, **wide))
    made = replace(locus, swap=swap, into_base=into_base, lens=lens, knocked_trained=knocked)
    return made, trained


def places_of(finished) -> tuple[str, ...]:
    return finished[1].loci[0].into_base.columns


def test_an_earlier_row_that_carries_the_marker_is_seen_and_noise_is_not(finished):
    names = places_of(finished)
    recovered = np.zeros((4, len(names)))
    assert earlier_timesteps(planted(finished, recovered=recovered)[0]).verdict == "does not hold"
    recovered[2, names.index("last content")] = 0.6
    found = earlier_timesteps(planted(finished, recovered=recovered)[0])
    assert found.verdict == "holds" and found.estimate == pytest.approx(0.6, abs=0.05) and found.n == 12


def test_a_layer_shift_is_the_distance_of_two_peaks(finished):
    names = places_of(finished)
    recovered, fraction = np.zeros((4, len(names))), np.zeros((4, 4))
    recovered[3, names.index("emit")] = 1.0
    fraction[0, 1] = 0.2
    found = layer_shift(planted(finished, recovered=recovered, fraction=fraction)[0])
    assert (found.verdict, found.estimate, found.low, found.high) == ("holds", 2, 2, 2)
    fraction[0] = (0, 0, 0, 0.2)
    assert layer_shift(planted(finished, recovered=recovered, fraction=fraction)[0]).verdict == "undecided"
    nowhere = layer_shift(planted(finished, fraction=fraction)[0])
    assert nowhere.verdict == "undecided" and "half is not recovered" in nowhere.reason


def test_stream_and_weights_are_told_apart(finished):
    through_weights = np.zeros((4, 4))
    through_weights[[0, 2]] = 0.1  # trained weights, whichever stream
    stream, weights = seen_or_look(planted(finished, fraction=through_weights)[0])
    assert (stream.verdict, weights.verdict) == ("undecided", "holds")
    assert weights.estimate == pytest.approx(0.1, abs=0.01)
    through_stream = np.zeros((4, 4))
    through_stream[[0, 1]] = -0.1
    stream, weights = seen_or_look(planted(finished, fraction=through_stream)[0])
    assert (stream.verdict, weights.verdict) == ("holds", "undecided")
    assert stream.estimate == pytest.approx(-0.1, abs=0.01)


def test_a_look_that_is_needed_is_missed_more_than_a_placebo(finished):
    assert system_region(planted(finished, lost=-3.0)[0]).verdict == "holds"
    assert system_region(planted(finished, lost=3.0)[0]).verdict == "does not hold"
    assert system_region(planted(finished)[0]).verdict == "undecided"


def test_few_questions_decide_nothing(finished):
    locus = finished[1].loci[0]
    two = replace(
        locus,
        swap=replace(locus.swap, questions=("a", "a", "b", "b")),
        into_base=replace(locus.into_base, clusters=("a", "a", "b", "b")),
        knocked_trained=replace(locus.knocked_trained, clusters=("a", "a", "b", "b")),
        lens=replace(locus.lens, questions=("a", "a", "b", "b")),
    )
    assert {one.verdict for one in verdicts(two)} == {"undecided"}
    assert all("too few" in one.reason for one in verdicts(two))


def test_replication_is_the_same_sign_in_every_run_and_seed(finished):
    locus = finished[1].loci[0]
    name = mlp_route(locus).name
    assert replicated([locus], name) == "one run and seed: not replicated"
    assert replicated([locus, locus], name) == "same sign in all of 2 runs and seeds"
    change = locus.attribution
    flipped = replace(locus, attribution=replace(change, trained=change.base, base=change.trained))
    assert replicated([locus, flipped], name) == "same sign in not all of 2 runs and seeds"
