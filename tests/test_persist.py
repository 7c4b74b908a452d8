"""Steer, let go, follow: every number of a release is held to a pass without a cache over the final ids."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mechinterp.chat import Prompt
from mechinterp.divergence import aggregate, kl
from mechinterp.interventions import Add, At, Everywhere, From
from mechinterp.loading import wrap
from mechinterp.results import load_result
from mechinterp.sampling import Phase, sample
from mechinterp.segmentation import Segmentation
from mechinterp.sites import Site
from probes.decay import normalised, release_half_life, windows
from probes.persist import Release, Trial, persistence, release
from tests.architectures import shared

SITE = Site("resid_post", 1)
STOPS = frozenset(range(1, 60))  # so many that a free text soon ends


@pytest.fixture(scope="module")
def model():
    return replace(wrap(shared("llama"), None, name="tiny", verify=False), eos_ids=frozenset())


@pytest.fixture(scope="module")
def stopping(model):
    return replace(model, eos_ids=STOPS)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int = 1, n: int = 7) -> Prompt:
    ids = torch.randint(60, 211, (n,), generator=torch.Generator().manual_seed(seed))
    marks = Segmentation(("text",), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool))
    return Prompt(ids[None], marks, "", (), None)


VECTOR = 3 * random(5, 64)
WATCHED = {"ours": VECTOR, "another": random(6, 64)}


def trials() -> list[Trial]:
    """Two arms on prompts of unequal length, one unsteered, in one batch."""
    steered = [Trial("steered", prompt(), VECTOR, seed) for seed in (1, 2, 3)]
    floor = [Trial("floor", prompt(), None, seed) for seed in (1, 2, 3)]
    return [*steered, *floor, Trial("longer", prompt(2, 11), -VECTOR, 1)]


def released(model, rows=None, **more):
    given = {"site": SITE, "n_steer": 5, "n_free": 6, "temperature": 1.0} | more
    return release(model, trials() if rows is None else rows, WATCHED, **given)


def decided(model, run, row: int, edits=()) -> torch.Tensor:
    """The residual at the row that decides each generated token, from one pass without a cache."""
    n, start = run.generated.shape[1], int(run.prompt_lengths[row])
    ids = run.tokens[row : row + 1, : start + n]
    return model.forward(ids, capture=[SITE], interventions=list(edits))[SITE][0, start - 1 : start + n - 1]


def onto(states: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return states @ vector / vector.norm()


def divergences(run: Release) -> torch.Tensor:
    assert run.kl is not None
    return run.kl


# rows -------------------------------------------------------------------------------------------------------


def test_arms_of_one_seed_draw_alike(model):
    rows = [Trial(arm, prompt(), None, seed) for arm in ("left", "right") for seed in (1, 2)]
    run = released(model, rows)
    left, right = run.generated[run.rows("left")], run.generated[run.rows("right")]
    assert torch.equal(left, right)
    assert not torch.equal(left[0], left[1])


def test_a_repeated_trial_draws_anew_and_alike_in_every_arm(model):
    rows = [Trial(arm, prompt(), None, 1) for arm in ("left", "left", "right", "right")]
    run = released(model, rows).generated
    assert not torch.equal(run[0], run[1])
    assert torch.equal(run[:2], run[2:])


@pytest.mark.parametrize("cache", ["fresh", "carry"])
@pytest.mark.parametrize("rows", ["generated", "all", "last"])
def test_a_floor_row_beside_steered_ones_is_an_unsteered_run(model, cache, rows):
    run = released(model, cache=cache, steered_rows=rows)
    floor = run.rows("floor")
    alone = sample(
        model, [prompt().tokens[0]] * 3, [Phase(11)], temperature=1.0, names=["1/0", "2/0", "3/0"]
    ).generated  # fmt: skip
    assert torch.equal(run.generated[floor], alone)
    assert_close(run.projections[floor], run.natural[floor])


def test_a_row_is_the_same_whoever_is_beside_it(model):
    run = released(model)
    for row, trial in enumerate(trials()):
        alone = released(model, [trial])
        assert torch.equal(run.generated[row], alone.generated[0])
        assert_close(run.projections[row], alone.projections[0], atol=1e-4, rtol=1e-4)


def test_batches_change_nothing_but_are_said(model):
    whole, parts = released(model), released(model, batch_size=3)
    assert torch.equal(whole.generated, parts.generated)
    assert_close(whole.projections, parts.projections, atol=1e-4, rtol=1e-4)
    assert (whole.batches, parts.batches) == ((7,), (3, 3, 1))


# projections ------------------------------------------------------------------------------------------------


def test_free_projections_are_of_a_natural_pass_over_the_final_ids(model):
    run = released(model)
    for row in range(len(run.arms)):
        states = decided(model, run, row)
        for k, vector in enumerate(WATCHED.values()):
            assert_close(run.projections[row, 5:, k], onto(states, vector)[5:], atol=1e-4, rtol=1e-4)
        assert_close(run.norms[row, 5:], states.norm(dim=-1)[5:], atol=1e-4, rtol=1e-4)
    assert torch.equal(run.projections[:, 5:], run.natural[:, 5:])


def test_a_carried_cache_reaches_the_steered_site_through_the_ids_alone(model):
    """What layer L reads is of layers up to L: keys and values above it are the first to hold the edit."""
    run = released(model, cache="carry", kl=True)
    for row in run.rows("steered"):
        natural = onto(decided(model, run, row), VECTOR)
        assert_close(run.projections[row, 5:, 0], natural[5:], atol=1e-4, rtol=1e-4)
    fresh = released(model, kl=True)
    assert torch.equal(run.generated[:, :5], fresh.generated[:, :5])
    assert float((divergences(run) - divergences(fresh))[:3, 5:].min()) > 0


@pytest.mark.parametrize("rows", ["generated", "all"])
def test_steered_projections_are_taken_after_the_edit_and_natural_before_it(model, rows):
    run = released(model, steered_rows=rows)
    start = len(prompt().segmentation.region)
    where = Everywhere() if rows == "all" else From(start - 1)
    for row in run.rows("steered"):
        states = decided(model, run, row, [Add(SITE, VECTOR, where=where)])
        assert_close(run.projections[row, :5, 0], onto(states, VECTOR)[:5], atol=1e-4, rtol=1e-4)
    gap = (run.projections - run.natural)[run.rows("steered")]
    assert_close(gap[:, :5, 0], VECTOR.norm().expand(3, 5), atol=1e-4, rtol=1e-4)
    assert_close(gap[:, :5, 1], onto(VECTOR, WATCHED["another"]).expand(3, 5), atol=1e-4, rtol=1e-4)


def test_last_steers_the_newest_row_alone(model):
    run = released(model, steered_rows="last", temperature=None)
    start = int(run.prompt_lengths[0])
    for t in range(5):
        ids = run.tokens[:1, : start + t]
        seen = model.forward(
            ids, capture=[SITE], interventions=[Add(SITE, VECTOR, where=At((start + t - 1,)))]
        )
        assert_close(run.projections[0, t, 0], onto(seen[SITE][0, -1], VECTOR), atol=1e-4, rtol=1e-4)
        assert int(seen.logits[0, -1].argmax()) == int(run.generated[0, t])


def test_the_three_policies_of_steered_rows_differ(model):
    """At the steered site they differ in nothing but the ids; in what is sampled from, they do."""
    everywhere = {rows: released(model, steered_rows=rows, kl=True) for rows in ("generated", "all", "last")}
    found = [divergences(run)[:3, :5] for run in everywhere.values()]
    assert float((found[0] - found[1]).abs()[:, 0].min()) > 1e-4  # the prompt's other rows are seen at once
    assert_close(found[0][:, 0], found[2][:, 0], atol=1e-6, rtol=1e-4)  # one row is steered: the newest
    assert float((found[0] - found[2]).abs()[:, 1:].max()) > 1e-4


# KL ---------------------------------------------------------------------------------------------------------


def test_kl_is_to_the_unedited_model_on_the_same_ids(model):
    run = released(model, kl=True)
    start = int(run.prompt_lengths[0])
    steered = [Add(SITE, VECTOR, where=From(start - 1))]
    ids = run.tokens[:1, : start + 4]
    edited, natural = (model.forward(ids, interventions=e).logits[0, start - 1 :] for e in (steered, []))
    assert_close(divergences(run)[0, :5], kl(edited, natural), atol=1e-5, rtol=1e-3)


def test_kl_is_nothing_where_no_edit_is_seen(model):
    run = released(model, kl=True)
    assert bool((divergences(run)[run.rows("steered"), :5] > 1e-3).all())
    assert float(divergences(run)[run.rows("floor")].max()) < 1e-6
    assert bool((divergences(run)[:, 5:] == 0).all())


def test_kl_goes_on_where_the_cache_is_carried(model):
    run = released(model, kl=True, cache="carry")
    assert bool((divergences(run)[run.rows("steered"), 5:].mean(1) > 1e-4).all())
    assert float(divergences(run)[run.rows("floor")].max()) < 1e-6


@pytest.mark.parametrize("how", ["mean", "rmse", "p95", "max"])
def test_coherence_aggregates_each_rows_own_steered_tokens(stopping, how):
    run = released(stopping, kl=True, suppress="neither", n_steer=8)
    assert not bool(run.real[:, :8].all())
    for row, found in enumerate(run.coherence(how)):
        kept = divergences(run)[row, :8][run.real[row, :8]]
        assert_close(found, aggregate(kept, how))


def test_coherence_must_have_been_asked_for(model):
    with pytest.raises(ValueError, match="without kl=True"):
        released(model).coherence("p95")


# ends -------------------------------------------------------------------------------------------------------


def test_early_ends_are_gaps_in_the_curves(stopping):
    run = released(stopping, n_free=30)
    ended = [row for row, reason in enumerate(run.finish_reason) if reason == "stop"]
    assert ended
    for row in range(len(run.arms)):
        real, last = run.real[row], int(run.real[row].sum()) - 1
        assert real.tolist() == [t <= last for t in range(len(real))]  # whole up to the end, nothing after
        assert (int(run.generated[row, last]) in STOPS) == (row in ended)
        curve = run.curves(run.arms[row], "ours")[run.rows(run.arms[row]).index(row)]
        assert torch.equal(curve.isfinite(), real)


@pytest.mark.parametrize(
    ("suppress", "steered", "free"),
    [("steered", False, True), ("both", False, False), ("neither", True, True)],
)
def test_stop_ids_are_suppressed_in_the_phases_that_say_so(stopping, suppress, steered, free):
    rows = [Trial("floor", prompt(), None, seed) for seed in range(12)]
    run = released(stopping, rows, suppress=suppress)
    hit = torch.isin(run.generated, torch.tensor(sorted(STOPS))) & run.real
    assert (bool(hit[:, run.phase == 0].any()), bool(hit[:, run.phase == 1].any())) == (steered, free)


# arms and results -------------------------------------------------------------------------------------------


def test_persistence_has_two_arms_with_a_row_a_seed(model):
    run = persistence(
        model, prompt(), VECTOR, site=SITE, n_steer=3, n_free=4, strength=0.5, seeds=(7, 8, 7)
    )  # fmt: skip
    assert run.arms == ("steered", "steered", "floor", "floor") and run.seeds == (7, 8, 7, 8)
    assert run.phase.tolist() == [0] * 3 + [1] * 4 and run.free().tolist() == [False] * 3 + [True] * 4
    gap = (run.projections - run.natural)[:2, :3, 0]
    assert_close(gap, (0.5 * VECTOR.norm()).expand(2, 3), atol=1e-4, rtol=1e-4)


def test_strength_nothing_is_the_floor(model):
    run = persistence(
        model, prompt(), VECTOR, site=SITE, n_steer=3, n_free=4, strength=0.0, seeds=(7, 8), temperature=1.0
    )  # fmt: skip
    assert torch.equal(run.generated[:2], run.generated[2:])
    assert torch.equal(run.projections[:2], run.projections[2:])


def test_the_figure_says_what_it_shows(model):
    run = released(model)
    figure = run.figure().to_plotly_json()["layout"]
    assert figure["shapes"][1]["x0"] == 4.5  # before the first free token, number 5
    assert [a["text"] for a in figure["annotations"][:2]] == ["steered", "free (fresh cache)"]
    subtitle = figure["title"]["subtitle"]["text"]
    for said in ("tiny", "n = 1 run", "seeds 1–3", "95 % t over runs"):
        assert said in subtitle


def test_a_release_survives_a_file(model, tmp_path):
    run = released(model, kl=True)
    run.save(tmp_path / "a")
    back = load_result(tmp_path / "a")
    back.save(tmp_path / "b")
    for name in ("result.json", "tensors.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert torch.equal(back.projections, run.projections) and back.site == SITE and back.arms == run.arms


def test_the_table_has_a_line_a_row_token_and_vector(model):
    run = released(model)
    table = run.to_dataframe()
    assert len(table) == 7 * 11 * 2
    one = table[(table.arm == "floor") & (table.seed == 2) & (table.token == 6) & (table.vector == "another")]
    assert one.projection.item() == float(run.projections[run.rows("floor")[1], 6, 1])
    assert one.phase.item() == "free" and bool(one.real.item())


# refusals ---------------------------------------------------------------------------------------------------


def test_an_unknown_arm_or_vector_is_answered_with_those_there_are(model):
    run = released(model)
    with pytest.raises(KeyError, match="no arm 'flor'; the arms are steered, floor, longer"):
        run.rows("flor")
    with pytest.raises(KeyError, match="no vector 'bard'; there are ours, another"):
        run.curves("floor", "bard")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steered_rows": "prompt"}, "steered_rows is generated, all or last, not 'prompt'"),
        ({"suppress": "free"}, "suppress is steered, both or neither, not 'free'"),
        ({"cache": "keep"}, "cache must be 'fresh' or 'carry', not 'keep'"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_p": 1.5}, r"top_p must be within \(0, 1\]"),
        ({"n_free": -1}, "n_tokens >= 0"),
        ({"n_free": 500}, "context of 160 positions"),
        ({"rows": []}, "at least one trial"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_released_is_refused(model, wrong, said):
    with pytest.raises(ValueError, match=said):
        released(model, **wrong)


@pytest.mark.parametrize(
    ("vector", "said"),
    [(torch.ones(63), "63"), (torch.ones(1), "1"), (torch.ones(3, 64), "64"),
     (torch.full((64,), math.nan), "NaN or infinity")],
    ids=["fault_006", "fault_007", "fault_008", "fault_009"],
)  # fmt: skip
@pytest.mark.parametrize("beside", [False, True])
def test_a_vector_that_does_not_fit_is_refused(model, vector, said, beside):
    rows = [Trial("steered", prompt(), vector, 1), *(trials() if beside else [])]
    with pytest.raises(ValueError, match=said):
        released(model, rows)


def test_fault_001_a_layer_beyond_the_last_is_refused(model):
    with pytest.raises((ValueError, IndexError), match="0..2"):
        released(model, site=Site("resid_post", 3))


# summaries --------------------------------------------------------------------------------------------------


def test_the_floor_is_zero_and_the_ceiling_one():
    curves = torch.tensor([[2.0, 2.0], [6.0, 6.0], [3.0, 5.0], [1.0, torch.nan], [torch.nan, torch.nan]])
    assert_close(
        normalised(curves, 2.0, 6.0), torch.tensor([0.0, 1.0, 0.5, -0.25, torch.nan]), equal_nan=True
    )  # fmt: skip


@pytest.mark.parametrize("ceiling", [2.0, 1.0, math.nan])
def test_a_ceiling_that_is_not_above_the_floor_defines_nothing(ceiling):
    assert normalised(torch.ones(3, 4), 2.0, ceiling).isnan().tolist() == [True] * 3


def test_windows_are_means_of_equal_parts():
    curves = torch.arange(16.0).reshape(2, 8)
    curves[1, 5:] = torch.nan
    assert_close(
        windows(curves, 4),
        torch.tensor([[0.5, 2.5, 4.5, 6.5], [8.5, 10.5, 12.0, torch.nan]]),
        equal_nan=True,
    )
    with pytest.raises(ValueError, match="1 or more windows"):
        windows(curves, 0)


def test_a_planted_half_life_is_found_from_the_first_free_token():
    t = torch.arange(60.0)
    curves = 1.5 + 4 * 2 ** (-t / 9) + 0.2 * random(8, 8, 60)
    found = release_half_life(curves, 1.5)
    assert found.identified and found.low < 9 < found.high and abs(found.estimate - 9) < 1
    assert found.amplitude == pytest.approx(4, abs=0.3) and found.n == 8


@pytest.mark.parametrize(
    ("curves", "floor", "reason"),
    [(torch.ones(8, 2), 0.0, "2 free tokens"), (torch.ones(8, 0), 0.0, "0 free tokens"),
     (torch.ones(8, 9), math.nan, "floor")],
)  # fmt: skip
def test_without_free_tokens_there_is_no_half_life_and_no_end_of_the_run(curves, floor, reason):
    found = release_half_life(curves, floor)
    assert not found.identified and reason in found.reason and math.isnan(found.estimate)
