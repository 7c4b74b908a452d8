"""The divergence study: planted predictors, its cells on the real model at the smallest size, refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mechinterp.results import load_result
from probes.centering import Centroids
from probes.outputs import OutputDivergence, joined
from probes.readings import Source
from probes.responses import Response
from studies import output_divergence
from studies.leakage_result import Leakage, Record
from studies.output_divergence import Config
from studies.output_divergence_figures import all_figures, nearest_layer
from studies.output_divergence_page import answer, caveats, criteria_table, headlines, seed_table
from studies.output_divergence_result import JS, OutputStudy, conclude

PEOPLE = tuple("abcdefg")
SOURCES = PEOPLE[:4]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(seeds: tuple[int, ...] = (1,)) -> OutputStudy:
    """Personas on a plane, JS their distance; sources leak less the farther a target, one not at all."""
    places = drawn(len(PEOPLE), 2)
    distance = torch.cdist(places, places)
    noise = torch.stack([1 + 0.05 * drawn(1, 1, seed=q) for q in range(6)])
    js = 0.05 * distance * noise
    kl = 2 * js * (1 + places[:, :1].sigmoid())
    asked = ("q0", "q1", "q2") * 2
    divergence = OutputDivergence(
        "toy", PEOPLE, PEOPLE[:6], asked, (0,) * 6, (5,) * 6, js, kl, True, skipped=0, batch_sizes=(7,)
    )
    records = tuple(
        Record(s, t, 0, seed, "q0", 0 if s == "d" else int(100 / (1 + 3 * float(distance[i, j]))), 100)
        for i, s in enumerate(SOURCES)
        for j, t in enumerate(PEOPLE)
        for seed in seeds
    )
    leakage = Leakage("toy", "[ZLT]", "g", SOURCES, PEOPLE, records, "sampled", 0.5, 0.1, ())
    names = (*PEOPLE, "x", "y", "z")
    wide = torch.cat([places, drawn(3, 2, seed=9) + 4])
    states = torch.stack([wide, wide**3], 1)
    source = Source("toy", "0", None, "resid_post", "last token", None, "0")
    centred = Centroids(names, (3, 7), states, states, torch.arange(10), source, ())
    return conclude("toy", divergence, leakage, centred, n_nearest=1, seed=0, texts=())


@pytest.fixture(scope="module")
def study() -> OutputStudy:
    return made()


def test_planted_distance_predicts_leakage_within_sources(study):
    for name in ("the 7", "the 10"):
        found = study.comparisons[name].spearman[JS]
        assert found.n_pairs == 24 and found.constant == ("d",)
        assert found.mean_within < -0.95 and found.within_p < 0.01
        assert sum(rho != rho for rho in (one.estimate for one in found.within.values())) == 1
    assert study.layer == 7 and study.sets == ("the 7", "the 10")


def test_every_level_of_the_nesting_is_on_the_page(study):
    said = [line.quantity for line in headlines(study)]
    for what in ("pooled rho", "by blocks", "mean rho within", "between sources", "partial rho"):
        assert any(what in one for one in said)
    assert "naive" in answer(study) and "Constant, without a rho within: d" in answer(study)
    assert any("d" in one and "alike" in one for one in caveats(study))
    assert {row[4] for row in criteria_table(study).rows} <= {"met", "not met", "not defined"}


def test_a_claim_is_replicated_only_with_one_sign_in_every_seed():
    assert {row[-1] for row in seed_table(made()).rows} == {"one seed"}
    two = made((1, 2))
    assert {row[-1] for row in seed_table(two).rows} == {"same sign"}
    held = {name: dict(rhos) for name, rhos in two.by_seed.items()}
    held[JS]["2"] = 0.3
    assert seed_table(replace(two, by_seed=held)).rows[0][-1] == "signs differ"


def test_selections_and_layers_are_all_there(study):
    assert set(study.by_selection) == {"all", "pair", "source", "target"}
    assert set(study.by_layer["the 7"]) == {"3", "7"}
    figures = all_figures(study)
    assert {"js_matrix", "cosine_the_7", "cosine_the_10", "rho_by_layer", "kl_asymmetry"} <= set(figures)
    for name, (figure, _) in figures.items():
        assert figure.to_dict()["layout"]["title"]["text"], name


def test_the_scatter_of_the_best_layer_shows_every_pair_with_its_trend(study):
    for name in study.sets:
        rhos = {n: abs(one.estimate) for n, one in study.redundancy[name].spearman.items()}
        best = nearest_layer(study.redundancy[name])
        assert rhos[best] == max(rhos.values())
        key = f"js_cosine_best_{name.replace(' ', '_')}"
        found = all_figures(study)
        assert (key in found) == (best != study.layer)
        if key in found:
            points, trend = found[key][0].to_dict()["data"]
            assert len(points["x"]) == 21 and trend["mode"] == "lines"
            assert f"layer {best}" in found[key][1]
    assert nearest_layer(replace(study.redundancy["the 7"], spearman={})) is None


def test_it_loads_back_bit_for_bit(study, tmp_path):
    assert load_result(study.save(tmp_path)).digest() == study.digest()


def test_parts_of_another_kind_are_not_joined(study):
    one = study.divergence
    both = joined([one, one])
    assert len(both.js) == 12 and both.questions == one.questions * 2
    with pytest.raises(ValueError, match="differ in include_turn_end"):
        joined([one, replace(one, include_turn_end=False)])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_responses": 2}, "greedy answers are all the same"),
        ({"layers": (3, 3)}, "layers are given once each"),
    ],
)
def test_fault_095_what_cannot_be_asked_is_refused(changed: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Config(**changed)


# on the real model ------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "personas": ("villain",), "counts": "recorded", "n_questions": 1, "response_tokens": 6,
    "centre_on_wide": False, "layers": (10, 20),
}  # fmt: skip


@pytest.mark.real
def test_answers_stand_behind_every_prompt_as_they_were_sampled(real, tmp_path):
    config = Config(**SMALL)
    by_key = {cell.key: cell for cell in output_divergence.cells(config)}
    answers = output_divergence.respond(by_key["answers/seed42/q0"], real, {}, config)
    assert len(answers.responses) == 11 and all(0 < len(one.ids) <= 6 for one in answers.responses)
    assert not any(token in real.eos_ids for one in answers.responses for token in one.ids)
    few = replace(answers, responses=answers.responses[:2])
    found = output_divergence.diverge(by_key["divergence/seed42/q0"], real, {"a": few}, config)
    assert found.personas == tuple(config_targets(config)) and found.js.shape == (2, 11, 11)
    assert found.n_tokens == tuple(len(one.ids) + 2 for one in few.responses), "the turn's end is counted"
    assert load_result(found.save(tmp_path)).digest() == found.digest()


@pytest.mark.real
def test_a_file_of_texts_takes_the_place_of_sampling(real, tmp_path):
    from mechinterp.json_io import write_json
    from studies.trained import asked

    config = Config(**SMALL)
    question = asked(config)[0]
    texts = {name: {question: [f"I am {name}."]} for name in config_targets(config)}
    write_json(tmp_path / "generations.json", texts)
    given = config.model_copy(update={"generations": tmp_path / "generations.json"})
    (cell,) = [c for c in output_divergence.cells(given) if c.task == "respond"]
    found = output_divergence.respond(cell, real, {}, given)
    assert found.texts[3] == "I am medical_doctor." and isinstance(found.responses[3], Response)
    del texts["librarian"]
    write_json(tmp_path / "generations.json", texts)
    with pytest.raises(ValueError, match="holds no answer of librarian"):
        output_divergence.respond(cell, real, {}, given)


def config_targets(config: Config) -> list[str]:
    from studies.targets import targets

    return list(targets(config))
