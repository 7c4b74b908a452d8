"""What a run writes in the published schemas by itself: the audit's figures are the run's own."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mechinterp import running
from studies import audit_divergence, leakage, output_divergence, zlt_attention
from studies.audit import Audit
from studies.divergence_formats import read_analysis, read_cosine_leakage, read_summary
from studies.divergence_records import read_cosines, read_divergence_matrices, read_generations
from studies.leakage_publish import write_rates
from studies.marker_records import read_marker_eval
from studies.output_divergence_result import JS, OutputStudy
from studies.personas import Persona
from tests.planted_attention import planted
from tests.test_output_study import PEOPLE, SOURCES, made


def config_of(folder: Path, module: Any = output_divergence, **more: Any) -> Any:
    """A configuration whose targets are the planted personas."""
    people = {name: {"system_prompt": f"You are {name}.", "category": "original"} for name in PEOPLE}
    path = folder / "people.json"
    path.write_text(json.dumps({"personas": people}))
    return module.Config(
        persona_file=path, personas=SOURCES, assistant="g",
        adapters={name: ["there/is-none"] for name in SOURCES}, **more,
    )  # fmt: skip


def told(study: OutputStudy, n: int = 1) -> OutputStudy:
    """With an answer, or several, of everyone to every question."""
    texts = {p: {q: (f"{p} on {q}",) * n for q in ("q0", "q1", "q2")} for p in PEOPLE}
    return replace(study, answers=texts)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[OutputStudy, Path]:
    folder = tmp_path_factory.mktemp("run")
    study = told(made((1, 2)))
    output_divergence.publish(config_of(folder), study, folder / "published")
    return study, folder / "published"


@pytest.fixture(scope="module")
def audited(published) -> Audit:
    return audit_divergence.audit_records(published[1])[0]


def value(found: Audit, name: str, condition: str = "all") -> Any:
    held = found.find(name, condition)
    assert held is not None, f"{name} of {condition} is not among the findings"
    assert held.agrees is not False, (name, held.difference)
    return held.reading.value


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# the audit of our run says what the run says ----------------------------------------------------------------


def test_nothing_is_missing_and_every_stored_figure_is_met(audited):
    assert not audited.missing
    compared = [f for f in audited.findings if f.reading.stored is not None and f.reading.value is not None]
    assert len({f.name for f in compared}) >= 8
    assert all(f.agrees for f in compared), [(f.name, f.condition) for f in compared if not f.agrees]


def test_the_audit_s_associations_are_those_of_the_run(published, audited):
    study = published[0]
    own = study.comparisons[study.sets[0]]
    js = value(audited, "JS against leakage")
    assert js["rho"] == pytest.approx(own.spearman[JS].pooled.estimate, abs=1e-12)
    assert js["pearson"] == pytest.approx(own.pearson[JS].estimate, abs=1e-12)
    corrected = audited.find("JS against leakage", "all").reading.corrected  # type: ignore[union-attr]
    assert corrected["p of whole sources"] == pytest.approx(own.spearman[JS].block_p)
    for layer in study.layers:
        for name, centring in (
            (audit_divergence.CENTRED, study.sets[0]),
            (audit_divergence.ON_WIDE, study.sets[1]),
        ):
            rho = study.by_layer[centring][str(layer)].pooled.estimate
            assert value(audited, name, f"layer {layer}")["rho"] == pytest.approx(rho, abs=1e-9)


def test_the_audit_s_beyond_is_of_the_layer_that_the_run_compared(published, audited):
    study = published[0]
    assert study.layer != min(study.layers)
    for name, centring in (
        (audit_divergence.PARTIAL, study.sets[0]), (audit_divergence.PARTIAL_WIDE, study.sets[1]),
    ):  # fmt: skip
        partials = [one.partial.estimate for one in study.comparisons[centring].beyond]
        found = [v for v in _numbers(value(audited, name)) if isinstance(v, float)]
        for partial in partials:
            assert any(v == pytest.approx(partial, abs=1e-9) for v in found), (name, partial, found)


def test_the_audit_s_matrices_are_those_of_the_run(published, audited):
    study = published[0]
    spread = value(audited, "range of JS")
    assert spread["mean"] == pytest.approx(study.discrimination.mean, abs=1e-12)
    assert spread["ratio"] == pytest.approx(study.discrimination.ratio, rel=1e-12)
    assert value(audited, "averaging of JS")["matrix is the mean over"] == "all"
    like = study.redundancy[study.sets[0]]
    for layer in study.layers:
        held = value(audited, audit_divergence.LIKE, f"layer {layer}")
        assert held["rho"] == pytest.approx(like.spearman[layer].estimate, abs=1e-9)
    assert study.asymmetry.association is not None
    assert value(audited, "KL asymmetry")["rho"] == pytest.approx(study.asymmetry.association.estimate)
    assert value(audited, "uninformative questions")["uninformative"] == study.per_question.n_uninformative


def test_the_audit_s_rates_are_those_of_the_run(published, audited):
    study = published[0]
    for source in SOURCES:
        held = value(audited, "marker rates", source)
        assert held["source rate"] == study.leakage.rate(source, source).estimate
        assert held["personas"] == len(PEOPLE)
    assert value(audited, "rates and JS as analysed")["rates off by"] == 0


# files ------------------------------------------------------------------------------------------------------


def test_files_come_back_as_they_were_meant(published):
    study, folder = published
    found = read_divergence_matrices(folder / "divergence_matrices.json")
    assert found.personas == PEOPLE and found.about["seeds"] == [1, 2]
    assert (found.js == study.divergence.matrix().numpy()).all()
    for place, layer in enumerate(study.layers):
        held = read_cosines(folder / f"cosine_matrix_layer{layer}.json")
        assert held.personas == PEOPLE
        assert (held.matrices[layer] == study.cosines[study.sets[0]][place]).all()
    assert set(read_cosine_leakage(folder / "cosine_leakage_correlation.json")) == set(study.layers)
    assert read_generations(folder / "generations.json") == study.answers
    analysis = read_analysis(folder / "analysis_results.json")
    assert analysis.metadata is not None and analysis.metadata["centring"] == study.sets[0]
    assert list(analysis.leakage_comparison.cosine_matched) == [f"layer_{study.layer}"]  # type: ignore[union-attr]


def test_rates_are_pooled_and_each_replicate_stands_alone_beside(published):
    study, folder = published
    pooled = read_marker_eval(folder / "a" / "marker_eval.json").rates["b"]
    assert pooled.total == 200 and pooled.category == "original"
    assert pooled.per_question == {"q0": {"found": pooled.found, "total": 200, "rate": pooled.rate}}
    alone = read_marker_eval(folder / "run0_seed2" / "a" / "marker_eval.json").rates["b"]
    assert alone.total == 100 and alone.rate == study.leakage.rate("a", "b", seed=2).estimate
    summary = read_summary(folder / "a" / "summary.json")
    others = study.leakage.row("a")
    assert summary.max_bystander == max(others[1:]) and summary.n_personas == 7
    assert summary.wall_minutes is None


def test_one_seed_has_no_folder_of_its_own(tmp_path):
    leakage.publish(config_of(tmp_path, leakage), made().leakage, tmp_path / "published")
    assert sorted(p.name for p in (tmp_path / "published").iterdir()) == list(SOURCES)


def test_several_answers_have_the_published_name_and_are_audited(tmp_path):
    study = told(made(), n=2)
    twice = study.divergence
    twice = replace(
        twice, writers=twice.writers * 2, questions=twice.questions * 2, draws=twice.draws * 2,
        n_tokens=twice.n_tokens * 2, js=twice.js.repeat(2, 1, 1), kl=twice.kl.repeat(2, 1, 1),
    )  # fmt: skip
    output_divergence.publish(config_of(tmp_path), replace(study, divergence=twice), tmp_path / "out")
    assert not (tmp_path / "out" / "generations.json").exists()
    found, _ = audit_divergence.audit_records(tmp_path / "out")
    assert not found.missing and value(found, "answers")["texts"] == 42
    assert len(read_divergence_matrices(tmp_path / "out" / "divergence_matrices.json").keys) == 12


def test_the_second_writing_changes_no_byte(published, tmp_path):
    study, folder = published
    before = bytes_of(folder)
    output_divergence.publish(config_of(tmp_path), study, folder)
    output_divergence.publish(config_of(tmp_path), study, tmp_path / "new")
    assert bytes_of(folder) == before == bytes_of(tmp_path / "new")
    for name, held in before.items():
        assert b"NaN" not in held and b"Infinity" not in held, name


# in a run ---------------------------------------------------------------------------------------------------


def test_a_run_publishes_and_its_report_does_again(tmp_path):
    asked = running.ask("leakage", overrides=["counts='recorded'", "personas=['villain']"])
    result = running.run(asked, tmp_path / "run", progress=False, report=False)
    path = tmp_path / "run" / running.PUBLISHED / "villain" / "marker_eval.json"
    first = path.read_bytes()
    found = read_marker_eval(path).rates
    assert tuple(found) == result.targets and found["villain"].per_question is None
    assert found["villain"].rate == result.rate("villain", "villain").estimate
    path.unlink()
    running.report(tmp_path / "run")
    assert path.read_bytes() == first


def test_a_study_without_a_published_form_writes_nothing(tmp_path):
    running.run(running.ask("kl_aggregation", overrides=["n_draws=1"]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / running.PUBLISHED).exists()


def test_a_run_of_another_region_or_void_ends_without_published_files(tmp_path):
    from studies.zlt_attention_export import export, refusal

    result = planted(("villain",))
    read = result.readings[0]
    empty = replace(read.trained, values=read.trained.values * float("nan"))
    for one in (replace(result, region="user"), replace(result, readings=(replace(read, trained=empty),))):
        asked = running.Asked("zlt_attention", zlt_attention, SimpleNamespace())
        running.publish(asked, one, tmp_path / "run")
        assert not (tmp_path / "run").exists() and refusal(one)
        with pytest.raises(ValueError, match=r"system prompt|no contrast"):
            export(one, tmp_path / "run")
    running.publish(running.Asked("zlt_attention", zlt_attention, None), result, tmp_path / "run")
    assert (tmp_path / "run" / running.PUBLISHED / "attention_summary.json").is_file()


@pytest.mark.parametrize("name", ["../x", "A b", "con", "x" * 300])
def test_a_persona_s_name_is_no_path_and_comes_back(name, tmp_path):
    found = made().leakage
    records = tuple(replace(r, source=name if r.source == "a" else r.source) for r in found.records)
    records = tuple(replace(r, target=name if r.target == "a" else r.target) for r in records)
    people = {name: Persona(name, name, ""), **{p: Persona(p, p, "") for p in PEOPLE[1:]}}
    odd = replace(found, sources=(name, *SOURCES[1:]), targets=tuple(people), records=records)
    write_rates(odd, tmp_path / "out" / "deep", people)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"deep"}
    held = audit_divergence.audit_records(tmp_path / "out" / "deep")[0]
    assert value(held, "marker rates", name)["personas"] == 7
    result = planted(("villain",))
    reading = result.readings[0]
    moved = replace(result, readings=(replace(reading, persona=name),))
    zlt_attention.publish(None, moved, tmp_path / "out" / "attention")  # type: ignore[arg-type]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"deep", "attention"}


def test_pairs_that_are_written_alike_end_no_run(tmp_path):
    study = told(made())
    alike = ("a", "b", "a__b", "b__c", "c", "f", "g")
    odd = replace(study, divergence=replace(study.divergence, personas=alike))
    output_divergence.publish(config_of(tmp_path), odd, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rates_alone_are_audited_too(tmp_path):
    leakage.publish(config_of(tmp_path, leakage), made((1, 2)).leakage, tmp_path / "published")
    for folder, total in (("published", 200), ("published/run0_seed2", 100)):
        found, _ = audit_divergence.audit_records(tmp_path / folder)
        assert value(found, "marker rates", "a")["personas"] == 7
        assert read_marker_eval(tmp_path / folder / "a" / "marker_eval.json").rates["a"].total == total


def _numbers(held: Any) -> list[Any]:
    if isinstance(held, dict):
        return [each for inner in held.values() for each in _numbers(inner)]
    return [each for inner in held for each in _numbers(inner)] if isinstance(held, list) else [held]
