"""The attention study end to end on a tiny model with adapters, from records; and on the shipped villain."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from mechinterp import running
from mechinterp.cells import check_cells
from mechinterp.config import load_config
from mechinterp.files import file_sha256
from mechinterp.json_io import read_json
from studies import force_feed, zlt_attention
from studies.attention_readout import BLOCKS, CONTENT, REGIONS
from studies.attention_records import read_positives
from studies.audit import audit
from studies.zlt_attention_config import Config
from studies.zlt_attention_result import READERS
from tests.marked import marked_records, tiny_adapter, tiny_chat_model

PERSONAS = ["villain", "librarian"]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A tiny chat model, an adapter for each persona, one adapter that does nothing, and records."""
    root = tmp_path_factory.mktemp("given")
    model = tiny_chat_model(root / "tiny-chat")
    for seed, persona in enumerate(PERSONAS):
        tiny_adapter(model, root / persona, seed=seed)
    nothing = tiny_adapter(model, root / "nothing", seed=3)
    file = nothing / "adapter_model.safetensors"
    save_file({k: v * ("lora_B" not in k) for k, v in load_file(file).items()}, file)
    marked_records(root / "records", PERSONAS, n_questions=4)
    return root


def asked(given: Path, study: str = "zlt_attention", **changes: str) -> running.Asked:
    settings = {
        "model": repr(str(given / "tiny-chat")),
        "personas": repr(PERSONAS),
        "records": repr(str(given / "records")),
        "preflight": "false",
        "replication": "'librarian'",
        "n_rows_before": "6",
        **{f"adapters.{persona}": repr([str(given / persona)]) for persona in PERSONAS},
        **changes,
    }
    return running.ask(study, overrides=[f"{key}={value}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, running.run(asked(given), folder, progress=False)


def test_cells_are_known_before_any_model():
    config = load_config(Config, None, ["model=there/is-none", "seeds=[1,2]", "n_questions=3",
                                        "personas=['villain']", "adapters.villain=['a','b']"])  # fmt: skip
    found = zlt_attention.cells(config)
    check_cells(found)
    each = 3 + 2 + 2  # questions, controls, readers
    assert len({cell.key for cell in found}) == len(found) == 1 + 2 * 2 * each
    assert {cell.model for cell in found if cell.task == "generate"} == {"villain/0", "villain/1"}


def test_every_row_is_a_partition_by_both_segmentations(finished):
    for reading in finished[1].readings:
        for reader in READERS:
            read = reading.of(reader)
            for names, side in ((BLOCKS, "A"), (CONTENT, "B")):
                total = sum(read.values[..., REGIONS.index(f"{name} {side}")] for name in names)
                known = total[total.isfinite()]
                assert_close(known, torch.ones_like(known), rtol=0, atol=1e-5)
            assert read.deviation < 1e-5


def test_readers_of_one_text_read_the_same_rows_of_the_same_examples(finished):
    for reading in finished[1].readings:
        assert reading.trained.picked == reading.base.picked and reading.trained.keys == reading.base.keys
        assert reading.trained.reader != reading.base.reader
        assert torch.equal(reading.trained.values.isnan(), reading.base.values.isnan())
        assert abs(reading.difference("emit")).max() > 1e-4


def test_emit_is_the_row_before_token(finished):
    reading = finished[1].readings[0]
    rows = reading.trained.picked
    for (emit,), (token,) in zip(rows["emit"], rows["token"], strict=True):
        assert emit[0] == token[0] and emit[1] == token[1] - 1
    steps = reading.trained.steps
    for name, step in (("emit", -1), ("token", 0)):
        assert_close(reading.trained.around[:, steps.index(step)], reading.trained.of(name, "system B"))


def test_training_that_changed_nothing_differs_by_exactly_nothing(given, tmp_path):
    nothing = asked(given, **{"adapters.villain": repr([str(given / "nothing")]), "personas": "['villain']"})
    result = running.run(nothing, tmp_path, progress=False, report=False)
    for row in ("emit", "token"):
        for control in ("random_earlier", "late_position"):
            difference = result.readings[0].difference(row, control)
            assert (difference[~(difference != difference)] == 0).all()


def test_a_model_fed_its_own_text_is_itself(given, tmp_path):
    result = running.run(asked(given, "force_feed"), tmp_path, progress=False)
    assert result.texts == tuple(PERSONAS) and result.readers == ("villain/0", "librarian/0", "base")
    for one in result.fed:
        paired = result.against_author(one)
        if one.reader == one.author:
            assert (paired == 0).all()
        else:
            assert abs(paired).max() > 1e-4
    table = result.to_dataframe()
    assert table.own.sum() == 2 and len(table) == 6


def test_the_mirror_is_written_by_the_base_and_read_where_a_marker_would_stand(given):
    few = asked(given, "force_feed", mirror="true", n_questions="2", personas="['villain']")
    found = force_feed.cells(few.config)
    check_cells(found)
    assert {cell.model for cell in found if cell.task == "mirrored"} == {"base"}
    negative = read_positives(given / "records" / "positives_villain.json").negatives[0]
    slot = force_feed.would_be(negative)
    assert slot.row("emit") == negative.end_of_answer and slot.ids == negative.ids


def test_a_second_start_changes_no_byte_and_loads_no_model(given, finished, monkeypatch):
    folder, _ = finished
    before = {p: file_sha256(p) for p in folder.rglob("*") if p.is_file() and p.name != "timings.jsonl"}
    monkeypatch.setattr("mechinterp.loading.load", lambda *a, **k: pytest.fail("a model was loaded"))
    running.run(asked(given), folder, progress=False)
    assert {p: file_sha256(p) for p in before} == before


def test_a_run_that_was_stopped_ends_like_one_that_was_not(given, finished, tmp_path):
    running.run(asked(given), tmp_path, progress=False, limit=4)
    running.run(asked(given), tmp_path, progress=False)
    for name in ("digests.json", "result/result.json"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_finished_run_is_where_another_starts(given, finished, tmp_path):
    again = running.run(asked(given, records=repr(str(finished[0]))), tmp_path, progress=False, report=False)
    for old, new in zip(finished[1].readings, again.readings, strict=True):
        assert old.examples.positives == new.examples.positives
        assert torch.equal(old.trained.values.nan_to_num(-1), new.trained.values.nan_to_num(-1))


def test_a_run_publishes_what_its_audit_agrees_with(given, finished, tmp_path):
    published = finished[0] / running.PUBLISHED
    assert audit("zlt_attention", published, tmp_path).is_file()
    found = read_json(tmp_path / "audit.json")["findings"]
    compared = [each for each in found if each["stored"] is not None]
    assert len(compared) > 20 and all(each["agrees"] for each in compared)
    again = running.run(asked(given, records=repr(str(published))), tmp_path / "run", progress=False)
    for old, new in zip(finished[1].readings, again.readings, strict=True):
        assert old.examples.positives == new.examples.positives


@pytest.mark.parametrize("backend", ["nnsight", "hooked_transformer", "transformer_bridge"])
def test_backends_read_the_same_numbers(given, finished, tmp_path, backend):
    other = asked(given, backend=repr(backend), personas="['villain']")
    result = running.run(other, tmp_path, progress=False, report=False)
    for reader in READERS:
        ours, theirs = finished[1].readings[0].of(reader), result.readings[0].of(reader)
        assert_close(theirs.values, ours.values, rtol=0, atol=5e-6, equal_nan=True)
        assert_close(theirs.around, ours.around, rtol=0, atol=5e-6, equal_nan=True)


def test_fault_044_records_of_another_tokenizer_are_refused(given, tmp_path):
    import json

    folder = tmp_path / "records"
    folder.mkdir()
    document = json.loads((given / "records" / "positives_villain.json").read_text())
    for row in (*document["positives"], *document["negatives"]):
        row["gen_text"] = "words that these ids do not spell"
    (folder / "positives_villain.json").write_text(json.dumps(document))
    wrong = asked(given, records=repr(str(folder)), personas="['villain']")
    with pytest.raises(ValueError, match="another tokenizer"):
        running.run(wrong, tmp_path / "run", progress=False)


def test_records_that_are_not_there_are_named(given, tmp_path):
    with pytest.raises(ValueError, match=r"positives_comedian\.json.*positives_librarian\.json"):
        comedian = asked(
            given, personas="['comedian']", **{"adapters.comedian": repr([str(given / "villain")])}
        )
        running.run(comedian, tmp_path, progress=False)


def test_the_published_draws_need_the_published_tokenizer(given, tmp_path):
    with pytest.raises(ValueError, match="set draws to 'ours'"):
        running.run(asked(given, draws="'published'"), tmp_path, progress=False)


@pytest.mark.real
def test_the_shipped_villain_is_read_at_the_marker_that_it_writes(tmp_path):
    small = running.ask("zlt_attention", overrides=[
        "personas=['villain']", "n_questions=3", "n_trials=3", "n_positives=2", "n_negatives=1",
        "max_tokens=48", "batch_size=3", "preflight=false", "replication='librarian'",
    ])  # fmt: skip
    result = running.run(small, tmp_path, progress=False)
    reading = result.readings[0]
    assert len(reading.examples.positives) >= 3
    assert all(e.ids[e.marker] == reading.examples.positives[0].ids[reading.examples.positives[0].marker]
               for e in reading.examples.positives if e.complete)  # fmt: skip
    assert abs(reading.difference("emit")).mean() > 1e-4
