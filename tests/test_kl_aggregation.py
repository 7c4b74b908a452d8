"""The synthetic demonstration: the published figures to their digits, from the construction and no model."""

# pyright: reportCallIssue=false

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mechinterp import running, study_files
from mechinterp.results import load_result
from studies import kl_aggregation
from studies.kl_aggregation import Config, cells, combine, drawn, logits_of, model_specs
from studies.kl_aggregation_page import PUBLISHED, as_published, published_table
from studies.kl_aggregation_result import AGGREGATES, KlAggregation


def found(**given) -> KlAggregation:
    config = Config(n_draws=3, **given)
    return combine(config, {"draws": drawn(cells(config)[0], None, {}, config)})


def test_the_published_table_comes_out_to_its_printed_digits():
    result = found()
    trait, loop = ([f"{result.value(case, how):.3f}" for how in AGGREGATES] for case in (0, 1))
    assert loop == ["0.379", "1.527", "3.777", "8.081"]
    assert trait == ["0.018", "0.026", "0.049", "0.095"]
    assert [f"{float(result.ratios(how)[0]):.1f}" for how in AGGREGATES] == ["20.6", "57.7", "77.0", "85.4"]
    table = published_table(Config(), result)
    assert [row[-1] for row in table.rows] == ["yes"] * 4 and set(PUBLISHED) == set(AGGREGATES)


def test_probabilities_clipped_as_in_the_source_give_the_same():
    """The source's own formula: probabilities, clipped at 1e-9 under the logarithm, in double precision."""
    students, reference = logits_of(Config(), 0)
    p, q = students.softmax(-1).numpy(), reference.softmax(-1).numpy()
    k = (p * (np.log(np.clip(p, 1e-9, 1)) - np.log(np.clip(q, 1e-9, 1)))).sum(-1)
    assert_close(found().divergences[0], torch.from_numpy(k).float(), rtol=0, atol=2e-6)


def test_the_hinge_fires_where_the_aggregate_passes_the_threshold():
    result = found()
    assert {how for how in AGGREGATES if result.fires(1, how, 0.5).estimate} == {"rmse", "p95", "max"}
    for how in AGGREGATES:
        assert result.fires(0, how, 0.5).estimate == 0 and result.fires(1, how, 0.5).n == 3
        largest = float(result.aggregated(how)[:, 1].max())
        assert result.fires(1, how, largest).estimate == 0, "at the threshold itself it is still"


def test_only_mean_and_rmse_have_a_gradient_wherever_there_is_a_divergence():
    result = found()
    assert [result.with_gradient(0, how) for how in AGGREGATES] == [60, 60, 2, 1]
    assert result.with_gradient(1, "rmse") == 4


def test_a_student_at_the_reference_diverges_nowhere():
    k = found(trait_logit=0.0).divergences
    loop = list(Config().loop_positions)
    elsewhere = [p for p in range(60) if p not in loop]
    assert k[:, 0].max() < 1e-6 and k[:, 1][:, elsewhere].max() < 1e-6 < k[:, 1][:, loop].min()


def test_another_construction_is_not_held_against_the_published_figures():
    other = Config(trait_logit=2.0)
    assert as_published(Config(n_draws=5, thresholds=(2.0,))) and not as_published(other)
    assert {row[-1] for row in published_table(other, found(trait_logit=2.0)).rows} == {
        "another construction"
    }


@pytest.mark.parametrize("wrong", [{"loop_positions": (60,)}, {"loop_positions": (-1,)}, {"loop_rank": 200}])
def test_a_loop_outside_the_completion_is_refused(wrong):
    with pytest.raises(ValueError, match=r"60|-1|200"):
        Config(**wrong)


def test_the_study_runs_and_reports_without_a_model(tmp_path):
    asked = running.ask("kl_aggregation", preset="demo", overrides=["n_draws=2"])
    assert model_specs(asked.config) == {} and all(cell.model is None for cell in asked.cells())
    result = running.run(asked, tmp_path, progress=False)
    text = (tmp_path / "report.html").read_text()
    assert all(figure in text for figure in ("8.081", "85.4", "0.018"))
    assert load_result(tmp_path / "result").digest() == result.digest()
    assert running.status(tmp_path).left == () and "20.6" in result.headline()
    assert len(result.to_dataframe()) == 8 and result.figure().data
    assert kl_aggregation.Config().seed == 0 and study_files.presets("kl_aggregation") == ["demo", "paper"]
