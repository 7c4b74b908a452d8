"""The persistence study: its cells before any model, its runs on three backends, what it says of itself."""

import json
import math
import shutil
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from mechinterp import running, study_models
from mechinterp.cells import check_cells, select
from mechinterp.config import load_config
from mechinterp.divergence import aggregate
from mechinterp.results import load_result
from mechinterp.runs import Run
from mechinterp.stats.intervals import mean_interval
from probes.vectors import Passport, Vectors, save_vectors
from studies import persistence
from studies.persistence import Config, cells, combine
from studies.persistence_config import asked, people, prompt_of
from studies.persistence_page import caveats, confidence, headlines, page
from studies.persistence_result import Persistence
from tests.tiny_chat import saved, spread_llama

SIZES = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 49152, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
SMALL = [
    "layers=[1]", "strengths=[1.0]", "n_steer=4", "n_free=6", "n_runs=3", "n_contrast=3",
    "roles=['deep_sea_leviathan','grumpy_mechanic']", "caches=['fresh','carry']",
]  # fmt: skip
BACKENDS = ["transformers", "nnsight", "hooked_transformer"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A tiny llama with the embedded model's tokenizer, as a user's local directory."""
    return saved(spread_llama(**SIZES), tmp_path_factory.mktemp("model") / "tiny-chat")


def study(directory: Path, *more: str):
    return running.ask("persistence", overrides=[f"model={str(directory)!r}", *SMALL, *more])


@pytest.fixture(scope="module")
def runs(directory, tmp_path_factory):
    """One finished run for each backend: its folder and its result, made when it is first asked for."""
    made: dict[str, tuple[Path, Persistence]] = {}

    def run_on(backend: str) -> tuple[Path, Persistence]:
        if backend not in made:
            folder = tmp_path_factory.mktemp(backend)
            made[backend] = (
                folder,
                running.run(study(directory, f"backend={backend}"), folder, progress=False),
            )
        return made[backend]

    return run_on


@pytest.fixture(scope="module")
def finished(runs):
    return runs("transformers")


def config(*overrides: str) -> Config:
    return load_config(Config, None, list(overrides))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("timings.jsonl", "report.html", ".lock")
    }


# cells and configurations -----------------------------------------------------------------------------------


def test_cells_are_known_before_any_model():
    found = cells(
        config("model=there/is-none", "strengths=[0.1,0.2]", "caches=['fresh','carry']", "layers=[3,7]")
    )
    check_cells(found)
    assert len({cell.key for cell in found}) == len(found) == 1 + 2 + 3 * 2 * 2 * 2
    steered = [cell for cell in found if cell.task == "steer"]
    assert {(c.args["role"], c.args["layer"], c.args["strength"], c.args["cache"]) for c in steered} == {
        (role, layer, strength, cache)
        for role in config().roles
        for layer in (3, 7)
        for strength in (0.1, 0.2)
        for cache in ("fresh", "carry")
    }
    assert all(hasattr(persistence, cell.task) for cell in found)


def test_strengths_in_nats_are_calibrated_once_for_all_caches_and_questions():
    found = cells(
        config("strength_in=kl", "strengths=[0.5,1.0]", "caches=['fresh','carry']", "n_questions=2")
    )
    calibrations = {cell.key for cell in found if cell.task == "calibrated"}
    assert len(calibrations) == 3 * 2
    for cell in found:
        if cell.task == "steer":
            key = f"calibrate/{cell.args['role']}/layer15/{cell.args['strength']:g}"
            assert set(cell.inputs) == {"vectors", key} and key in calibrations


def test_a_limit_keeps_what_the_first_cells_read():
    found = select(cells(config()), 3)
    check_cells(found)
    assert [cell.task for cell in found] == ["extract", "reference", "steer"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["roles=['medieval_bart']"],
            "there are no roles medieval_bart; the roles are control, anxious_teenager",
        ),
        (["roles=['control','medieval_bard']"], "'control', and it is not one of the roles"),
        (["roles=[]"], "roles"),
        (["strength_in=kl", "strengths=[0.0]"], "nats > 0"),
        (["strength_in=kl", "n_steer=0"], "n_steer > 0"),
        (["n_questions=9"], "holds 5 questions; 9 were asked for"),
        (["question_group=personal"], "no question group 'personal'; the groups are personal_reflection"),
        (["contrast_group=none"], "no question group 'none'"),
        (["caches=['kept']"], "caches"),
        (["strengths=[nan]"], "nan"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_model(overrides, said):
    with pytest.raises(ValueError) as refused:
        config(*overrides)
    assert said in str(refused.value)


@pytest.mark.parametrize("overrides", [["strengths=[0.2,0.2]"], ["roles=['medieval_bard','medieval_bard']"]])
def test_a_condition_given_twice_is_refused(overrides):
    with pytest.raises(ValueError, match="two cells have the key steer/medieval_bard"):
        check_cells(cells(config("roles=['medieval_bard']", *overrides)))


def test_the_paper_preset_is_what_was_published():
    paper = running.ask("persistence", preset="paper").config
    assert (
        paper.model == "google/gemma-2-27b-it" and paper.layers == (22,) and "anxious_teenager" in paper.roles
    )
    assert (paper.n_steer, paper.n_free) == (200, 500)
    assert (paper.strength_in, paper.strengths) == ("raw", (1.0,))
    assert (paper.role_as, paper.steered_rows, paper.suppress) == ("user_message", "all", "both")
    assert asked(paper, paper.question_group, 1) == ("What do you think is the meaning of life?",)
    check_cells(cells(paper))


def test_the_demo_preset_has_eight_runs_an_arm_on_the_embedded_model():
    demo = running.ask("persistence", preset="demo").config
    assert demo.n_runs >= 8 and demo.model == "smollm2-135m-instruct-q4"
    assert len(demo.strengths) > 1 and len(demo.roles) > 1


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_a_preset_names_no_key_twice_and_no_default_by_accident(name):
    table = tomllib.loads((files("studies.presets") / f"persistence.{name}.toml").read_text())
    assert set(table) <= set(Config.model_fields)


# a user's own -----------------------------------------------------------------------------------------------


PERSONAS = {
    "personas": {
        "control": {"system_prompt": ""},
        "pirate": {"readable_name": "Salty pirate", "system_prompt": "You are a pirate."},
        "monk": "You are a silent monk.",
    }
}
QUESTIONS = {"questions": {"mine": ["Where is the ship?"], "drill": ["One?", "Two?", "Three?"]}}


@pytest.fixture
def own(tmp_path) -> list[str]:
    (tmp_path / "personas.json").write_text(json.dumps(PERSONAS))
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 2, 48, generator=generator)
    save_vectors(Vectors(("monk", "pirate"), (1, 2), values, Passport()), tmp_path / "vectors.safetensors")
    return [
        f"personas={str(tmp_path / 'personas.json')!r}", f"questions={str(tmp_path / 'questions.json')!r}",
        "roles=['pirate','monk']", "question_group=mine", "contrast_group=drill",
    ]  # fmt: skip


def test_a_users_personas_questions_and_vectors_are_the_ones_that_run(directory, own, tmp_path):
    vectors = f"vectors={str(tmp_path / 'vectors.safetensors')!r}"
    asked_for = study(directory, *own, vectors, "strength_in=raw", "strengths=[2.0]")
    folder = tmp_path / "run"
    result = running.run(asked_for, folder, progress=False)
    given = torch.randn(2, 2, 48, generator=torch.Generator().manual_seed(1))
    assert result.names["pirate"] == "Salty pirate" and result.names["monk"] == "Monk"
    release = load_result(folder / "cells/steer/pirate/layer1/2/fresh/q0").release
    gap = (release.projections - release.natural)[release.rows("steered"), :4, release.names.index("pirate")]
    torch.testing.assert_close(gap, (2 * given[1, 0].norm()).expand(3, 4), atol=1e-3, rtol=1e-4)
    prompt = release.tokens[0, : release.prompt_lengths[0]]
    model = study_models.loader(asked_for.module.model_specs(asked_for.config))("model")
    assert model.decode(prompt).count("Where is the ship?") == 1
    assert set(Run.read(folder).manifest.inputs) == {"personas", "questions", "vectors"}
    assert (
        result.vectors is None
        and "vector-norms" not in page(asked_for.config, result, Run.read(folder)).figures
    )


def test_an_empty_system_prompt_is_left_out_not_sent_empty(directory, own, tmp_path):
    asked_for = study(directory, *own)
    model = study_models.loader(asked_for.module.model_specs(asked_for.config))("model")
    silent, told = (people(asked_for.config)[key] for key in ("control", "pirate"))
    found = prompt_of(asked_for.config, model, silent, "Where is the ship?")
    assert torch.equal(found.tokens, model.chat("Where is the ship?").tokens)
    bare = asked_for.config.model_copy(update={"chat": False})
    assert prompt_of(bare, model, silent, "Where?").text == "Where?\n\n"
    assert prompt_of(bare, model, told, "Where?").text == "You are a pirate.\n\nWhere?\n\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [("question_group=yours", "has no group 'yours'; its groups are mine, drill"),
     ("contrast_group=training", "has no group 'training'; its groups are mine, drill"),
     ("roles=['bard']", "the roles are control, pirate, monk"),
     ("n_questions=2", "holds 1 questions; 2 were asked for")],
)  # fmt: skip
def test_a_users_file_is_answered_with_what_it_holds(own, change, said):
    with pytest.raises(ValueError) as refused:
        config(*own, "n_contrast=3", change)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("names", "layers", "width", "said"),
    [(("pirate",), (1,), 48, "no vector 'monk'"), (("pirate", "monk"), (2,), 48, "no vector for layer 1"),
     (("pirate", "monk"), (1,), 64, "d_model 48")],
)  # fmt: skip
def test_vectors_that_do_not_fit_are_refused_in_words(directory, own, tmp_path, names, layers, width, said):
    values = torch.randn(len(names), len(layers), width)
    path = save_vectors(Vectors(names, layers, values, Passport()), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=said):
        running.run(study(directory, *own, f"vectors={str(path)!r}"), tmp_path / "run", progress=False)


def test_fault_001_a_layer_that_the_model_has_not_is_refused(directory, tmp_path):
    with pytest.raises((ValueError, IndexError), match="0..2"):
        running.run(study(directory, "layers=[3]"), tmp_path, progress=False)


# runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_every_backend_samples_the_same_ids(runs, backend):
    (ours, result), (theirs, other) = runs("transformers"), runs(backend)
    steered = [cell.key for cell in cells(config_of(ours)) if cell.task in ("steer", "reference")]
    assert len(steered) == 1 + 2 * 2
    varied = set()
    for key in steered:
        a, b = (load_result(folder / "cells" / key).release for folder in (ours, theirs))
        assert torch.equal(a.generated, b.generated) and torch.equal(a.tokens, b.tokens)
        torch.testing.assert_close(a.projections, b.projections, atol=1e-3, rtol=1e-4)
        varied |= set(a.generated.flatten().tolist())
    assert len(varied) > 50  # no agreement on one repeated token
    for mine, its in zip(result.outcomes, other.outcomes, strict=True):
        assert its.coefficient == pytest.approx(mine.coefficient, rel=1e-4)


def config_of(folder: Path) -> Config:
    return running.reopened(folder)[0].config


def test_the_run_is_what_the_probes_say(finished):
    """Floor, ceiling and persistence are those of the cells' own curves, paired by seed."""
    folder, result = finished
    reference = load_result(folder / "cells/reference/layer1/q0").release
    for outcome in result.outcomes:
        role = outcome.condition.role
        steered = load_result(folder / "cells" / outcome.condition.cell).release
        free = steered.curves("steered", role)[:, 4:].nanmean(1)
        floor, ceiling = (
            float(reference.curves(arm, role)[:, 4:].nanmean()) for arm in ("floor", f"ceiling:{role}")
        )
        assert (outcome.floor, outcome.ceiling) == (floor, ceiling)
        expected = (free - floor) / (ceiling - floor) if ceiling > floor else free * torch.nan
        torch.testing.assert_close(outcome.persistence["steered"], expected, equal_nan=True)
        assert outcome.against("floor").estimate == pytest.approx(
            float((free - reference.curves("floor", role)[:, 4:].nanmean(1)).mean()), rel=1e-5
        )
        assert steered.seeds == (42, 43, 44) * 2 and outcome.seeds == (42, 43, 44)


def test_random_directions_have_the_vectors_norm_and_differ_by_run(finished):
    folder, _ = finished
    release = load_result(folder / "cells/steer/deep_sea_leviathan/layer1/1/fresh/q0").release
    runs_ = load_result(folder / "cells/steer/deep_sea_leviathan/layer1/1/fresh/q0")
    vector = load_result(folder / "cells/vectors")["deep_sea_leviathan", 1]
    norm = abs(runs_.coefficient) * float(vector.norm())
    residual = load_result(folder / "cells/vectors").residual_norm[1]
    assert runs_.strength_in_norms == pytest.approx(norm / residual, rel=1e-5) == pytest.approx(1.0, rel=1e-5)
    gap = (release.projections - release.natural)[:, :4, release.names.index("deep_sea_leviathan")]
    torch.testing.assert_close(gap[release.rows("steered")], torch.full((3, 4), norm), atol=1e-3, rtol=1e-4)
    pushed = gap[release.rows("random")]
    torch.testing.assert_close(pushed, pushed[:, :1].expand(3, 4), atol=1e-3, rtol=1e-3)
    assert float(pushed.abs().max()) < 0.7 * norm and len(set(pushed[:, 0].tolist())) == 3


def test_the_other_arm_is_the_other_roles_own_runs(finished):
    folder, result = finished
    for outcome in result.outcomes:
        other = "grumpy_mechanic" if outcome.condition.role == "deep_sea_leviathan" else "deep_sea_leviathan"
        theirs = load_result(
            folder / f"cells/steer/{other}/layer1/1/{outcome.condition.cache}/q0"
        ).release.curves("steered", outcome.condition.role)
        torch.testing.assert_close(outcome.curves["other"], theirs, equal_nan=True)


def test_drift_on_its_own_role_is_its_persistence(finished):
    _, result = finished
    for outcome in result.outcomes:
        own = outcome.drift[result.roles.index(outcome.condition.role)]
        expected = outcome.persistence["steered"].nanmean()
        torch.testing.assert_close(own, expected, equal_nan=True, atol=1e-4, rtol=1e-4)
    found = result.attractors(1, 1.0, "fresh")
    assert found.shape == (2, 2)
    torch.testing.assert_close(found[0], result.outcomes[0].drift, equal_nan=True)


def test_a_cell_lost_is_made_again_byte_by_byte(directory, finished, tmp_path):
    folder, _ = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    before = tree(again)
    shutil.rmtree(again / "cells/steer/deep_sea_leviathan/layer1/1/carry")
    assert running.status(again).left == ("steer/deep_sea_leviathan/layer1/1/carry/q0",)
    running.run(study(directory), again, progress=False)
    assert tree(again) == before
    assert running.status(again).left == ()


def test_another_question_in_the_same_directory_is_refused(directory, finished):
    with pytest.raises(ValueError, match=r"config\.n_free \(6 there, 7 asked\)"):
        running.run(study(directory, "n_free=7"), finished[0], progress=False)


def test_a_limited_run_has_no_result_and_can_be_gone_on_with(directory, finished, tmp_path):
    asked_for = study(directory)
    assert running.run(asked_for, tmp_path, limit=2, progress=False) is None
    assert running.status(tmp_path).done == 2
    with pytest.raises(ValueError, match="is not finished, 4 cells are left"):
        running.report(tmp_path)
    results = {key: load_result(tmp_path / "cells" / key) for key in ("vectors", "reference/layer1/q0")}
    with pytest.raises(ValueError, match="no steered cell has finished"):
        combine(asked_for.config, results)
    running.run(asked_for, tmp_path, progress=False, report=False)
    assert tree(tmp_path / "cells") == tree(finished[0] / "cells")


def test_what_has_finished_is_concluded_without_the_rest(finished):
    """The other role's runs are not there yet: the arm is left out, and nothing else."""
    folder, whole = finished
    keys = ("vectors", "reference/layer1/q0", "steer/deep_sea_leviathan/layer1/1/fresh/q0")
    part = combine(config_of(folder), {key: load_result(folder / "cells" / key) for key in keys})
    assert len(part.outcomes) == 1 and set(part.outcomes[0].curves) == {
        "steered",
        "random",
        "floor",
        "ceiling",
    }
    torch.testing.assert_close(
        part.outcomes[0].persistence["steered"], whole.outcomes[0].persistence["steered"], equal_nan=True
    )
    part.figure()


def test_strengths_in_nats_are_reached_in_the_steered_text(directory, tmp_path):
    more = ["strength_in=kl", "strengths=[1.0]", "roles=['medieval_bard']", "caches=['fresh']"]
    more += ["n_steer=8", "temperature=0.3"]
    result = running.run(study(directory, *more), tmp_path, progress=False)
    found = load_result(tmp_path / "cells/calibrate/medieval_bard/layer1/1")
    assert found.converged and found.reached == pytest.approx(1.0, rel=0.1)
    (outcome,) = result.outcomes
    assert outcome.calibration is not None and outcome.calibration.tried == found.tried
    assert outcome.coefficient == found.coefficient and outcome.condition.other is None
    steered = load_result(tmp_path / "cells" / outcome.condition.cell).release
    kl = steered.kl[steered.rows("steered"), :8]
    assert float(aggregate(kl.flatten(), "p95")) == pytest.approx(found.reached, rel=1e-3)
    asked_for, run = running.reopened(tmp_path)
    assert "calibration-medieval_bard-l1-1" in page(asked_for.config, result, run).figures
    assert "Calibration" not in " ".join(caveats(asked_for.config, result))
    missed = replace(outcome, calibration=replace(found, converged=False, reached=0.25))
    said = " ".join(caveats(asked_for.config, replace(result, outcomes=(missed,))))
    assert "did not reach the asked KL in 1 conditions (nats: 0.25 instead of 1)" in said


@pytest.mark.parametrize(
    "more",
    [["n_free=1"], ["n_free=2", "n_steer=0"], ["n_runs=1"], ["kl=false"], ["suppress=neither", "n_steer=8"],
     ["temperature=8.0", "suppress=neither"], ["chat=false"], ["role_as=user_message"], ["strengths=[0.0]"]],
    ids=" ".join,
)  # fmt: skip
def test_at_the_edges_a_run_still_ends_in_a_report(directory, tmp_path, more):
    asked_for = study(directory, "roles=['medieval_bard']", "caches=['fresh']", *more)
    running.run(asked_for, tmp_path, progress=False)
    assert (tmp_path / "report.html").is_file()
    assert running.report(tmp_path).is_file()


# what it says -----------------------------------------------------------------------------------------------


def test_the_page_says_what_follows_from_its_own_numbers(finished):
    folder, result = finished
    asked_for, run = running.reopened(folder)
    made = page(asked_for.config, result, run)
    said = " ".join(made.caveats)
    assert "Small n: 3 runs an arm; the smallest p that sign flips can give is 0.25" in said
    assert "One question" in said and "4 conditions" in said
    stopped = sum(o.n_stopped["steered"] for o in result.outcomes)
    assert f"{12 - stopped} of 12 steered runs hit the cap of 6 free tokens; {stopped} ended" in said
    assert "suppressed (steered)" in said
    assert made.confidence[0] == "low" and "3 runs an arm on 1 question," in made.confidence[1]
    assert made.digests["configuration"] == run.manifest.config_sha256
    assert {f"curves-{r}-l1-1-{c}-q0" for r in result.roles for c in ("fresh", "carry")} <= set(made.figures)
    assert {"attractors-l1-1-fresh", "attractors-l1-1-carry", "vector-norms"} <= set(made.figures)
    for figure, _ in made.figures.values():
        subtitle = figure.to_plotly_json()["layout"]["title"]["subtitle"]["text"]
        assert "n =" in subtitle and "band" in subtitle
    assert (folder / "report.html").read_text().count("Persistence of a steered persona")


def test_caveats_follow_the_run_and_not_the_study(finished):
    folder, result = finished
    asked_for, _ = running.reopened(folder)
    more = asked_for.config.model_copy(update={"n_questions": 4, "suppress": "neither"})
    many = replace(result, seeds=tuple(range(30)), outcomes=tuple(
        replace(o, condition=replace(o.condition, question=i)) for i, o in enumerate(result.outcomes)
    ))  # fmt: skip
    said = " ".join(caveats(more, many))
    assert "Small n" not in said and "One question" not in said and "suppressed" not in said
    assert confidence(many)[0] == "moderate"
    far = {"steered": {"p95": torch.full((3,), 2.0)}}
    broken = tuple(replace(o, coherence=far, ceiling=o.floor) for o in result.outcomes)
    said = " ".join(caveats(more, replace(result, outcomes=broken)))
    assert "In 4 of 4 conditions" in said and "beyond the coherence frontier" in said
    assert "undefined for Deep-sea leviathan" in said


def test_headline_text_has_a_line_a_condition(finished):
    _, result = finished
    lines = result.headline().splitlines()
    assert "paired sign flips over 3 runs each" in lines[0] and len(lines) == 1 + 4
    for line, outcome in zip(lines[1:], result.outcomes, strict=True):
        assert str(outcome.condition) in line and ("n = 3" in line or "undefined" in line)


def test_headlines_are_the_tests_on_the_runs(finished):
    _, result = finished
    for outcome in result.outcomes:
        kept, beyond, life, coherence = headlines(result, outcome)
        assert kept.p == outcome.against("floor").p and kept.estimate == pytest.approx(
            float(outcome.persistence["steered"].mean()), nan_ok=True
        )
        if kept.n:
            assert beyond.test == "paired: exact sign flips over 3 runs"
        assert life.note == outcome.half_life.reason
        p95 = mean_interval(outcome.coherence["steered"]["p95"], method="bootstrap")
        assert (coherence.estimate, coherence.low, coherence.high) == (p95.estimate, p95.low, p95.high)


def test_a_ceiling_below_its_floor_ends_nothing(finished):
    folder, result = finished
    asked_for, run = running.reopened(folder)
    nothing = {arm: torch.full((3,), math.nan) for arm in result.outcomes[0].persistence}
    undefined = replace(
        result, outcomes=tuple(replace(o, persistence=nothing, ceiling=o.floor - 1) for o in result.outcomes)
    )
    made = page(asked_for.config, undefined, run)
    assert made.headlines[0].n == 0 and "does not raise the projection" in made.headlines[0].note
    assert "persistence undefined, n = 0" in undefined.headline()
    assert undefined.to_dataframe()["persistence"].isna().all()
    assert "undefined" in next(iter(made.figures.values()))[1]


def test_a_run_without_free_tokens_is_left_out_and_counted(finished):
    _, result = finished
    outcome = result.outcomes[0]
    gap = {arm: torch.tensor([0.5, math.nan, 0.7]) for arm in outcome.persistence}
    found = replace(outcome, persistence=gap).interval("steered")
    assert found.n == 2 and found.estimate == pytest.approx(0.6)


def test_the_samples_are_the_extremes_the_typical_and_the_references(finished):
    _, result = finished
    reasons = [sample["reason"] for sample in result.samples]
    assert reasons[-2:] == ["unsteered floor, first run", "ceiling, told the role, first run"]
    ranked = sorted(v for o in result.outcomes for v in o.persistence["steered"].tolist() if v == v)
    if ranked:
        by_reason = {sample["reason"]: sample["persistence"] for sample in result.samples}
        assert by_reason["highest persistence"] == pytest.approx(ranked[-1])
        assert by_reason["lowest persistence"] == pytest.approx(ranked[0])


def test_the_table_has_a_line_a_condition_and_arm(finished):
    _, result = finished
    table = result.to_dataframe()
    assert len(table) == 4 * 5
    assert set(table.arm) == {"steered", "random", "other", "floor", "ceiling"}
    told = table[(table.arm == "ceiling") & (table.ceiling > table.floor)]
    assert told.persistence.tolist() == pytest.approx([1.0] * len(told))
    floor = table[(table.arm == "floor") & (table.ceiling > table.floor)]
    assert floor.persistence.tolist() == pytest.approx([0.0] * len(floor), abs=1e-5)


def test_the_result_is_the_one_in_the_folder(finished):
    folder, result = finished
    back = load_result(folder / "result")
    assert back.headline() == result.headline()
    assert torch.equal(back.outcomes[0].curves["steered"], result.outcomes[0].curves["steered"])
