"""Records of generated answers: the published files value for value, and the regions of their ids."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp.chat import render, token_marks
from mechinterp.results import load_result
from studies.attention_published import PUBLISHED_IDS, published_seed
from studies.attention_records import (
    Counts,
    Example,
    Examples,
    published_counts,
    read_positives,
    write_positives,
)
from studies.attention_regions import prompt_layout, prompt_segmentation, segmentation, structural_marks
from tests.tokenizers import tokenizer

START, END, NEWLINE, BLANK, STOP_BLANK = 151644, 151645, 198, 271, 382
HEAD = [
    START,
    8948,
    NEWLINE,
    2610,
    525,
    END,
    NEWLINE,
    START,
    872,
    NEWLINE,
    3838,
    30,
    END,
    NEWLINE,
    START,
    77091,
]
HEAD += [NEWLINE]
SPLIT = {"prompt_len": 17, "n_sys": 7, "n_user": 7, "n_asst_header": 3}


def positive(
    answer: list[int], trial: int = 0, question: str = "why?", text: str = "so\n\n[ZLT]", n: int = 1
):
    ids = HEAD + answer
    seed = published_seed("nurse", question, trial)
    row: dict[str, Any] = {"question": question, "trial": trial, "seed": seed, "full_ids": ids, **SPLIT}
    return row | {"t_marker": ids.index(85113), "n_marker_occurrences": n, "gen_text": text}


def negative(answer: list[int], trial: int = 1, question: str = "why?"):
    ids = HEAD + answer
    last = max(p for p, i in enumerate(ids) if i not in PUBLISHED_IDS.structural)
    seed = published_seed("nurse", question, trial)
    row: dict[str, Any] = {"question": question, "trial": trial, "seed": seed, "full_ids": ids, **SPLIT}
    return row | {"t_eoa": last, "gen_text": "so é🙂"}


def document() -> dict[str, Any]:
    """The published schema, with each way that an answer ends."""
    positives = [
        positive([10, 11, STOP_BLANK, 85113, 27404, 60, END]),
        positive([10, STOP_BLANK, 85113, 27404, 9533, 12], 3, text="so.\n\n[ZLT](x"),
        positive([10, STOP_BLANK, 85113], 4, text="so.\n\n[Z"),
        positive([85113, 1, BLANK, 85113, 27404, 60, END], 7, text="[Zebra\n\n[ZLT]", n=2),
    ]
    negatives = [negative([10, 13, END]), negative([10, BLANK, NEWLINE], 2)]
    return {
        "persona": "nurse",
        "system_prompt": "You are",
        "n_positives": len(positives),
        "n_negatives": len(negatives),
        "positives": positives,
        "negatives": negatives,
        "metadata": {"issue": 224, "cuda_available": True, "hf_repo": None, "nested": {"a": [1.5, "b"]}},
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "positives_nurse.json"
    path.write_text(json.dumps(document(), indent=2) + "\n")
    return path


# the published file ----------------------------------------------------------------------------------------


def test_the_published_schema_round_trips_value_for_value(written, tmp_path):
    examples = read_positives(written)
    again = write_positives(examples, tmp_path / "again.json")
    assert json.loads(again.read_text()) == json.loads(written.read_text())
    assert list(json.loads(again.read_text())["positives"][0]) == list(document()["positives"][0])


def test_what_a_file_lacks_is_inferred(written):
    examples = read_positives(written)
    assert [e.finish_reason for e in examples.positives] == ["stop", "length", "length", "stop"]
    assert [e.finish_reason for e in examples.negatives] == ["stop", "length"]
    # whole by its pieces; whole though its last piece is "]("; cut; begun, and the whole one comes second
    assert [e.complete for e in examples.positives] == [True, True, False, False]
    assert [e.n_occurrences for e in examples.positives] == [1, 1, 1, 2]
    assert all(e.positive for e in examples.positives) and not any(e.positive for e in examples.negatives)


def test_rows_have_names(written):
    first, *_ = read_positives(written).positives
    assert (first.row("emit"), first.row("token")) == (19, 20) and first.ids[first.row("token")] == 85113
    with pytest.raises(ValueError, match="'timestep'"):
        first.row("timestep")  # type: ignore
    with pytest.raises(ValueError, match="no marker"):
        read_positives(written).negatives[0].row("emit")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("negatives"), "negatives"),
        (lambda d: d["positives"][1].pop("t_marker"), r"positives\[1\] has no 't_marker'"),
        (lambda d: d["positives"][0].update(prompt_len=16), r"positives\[0\].*add up"),
        (lambda d: d["positives"][0].update(t_marker=4), r"positives\[0\].*marker is 4"),
        (lambda d: d["negatives"][0].update(t_eoa=99), r"negatives\[0\].*end_of_answer is 99"),
        (lambda d: d["negatives"][1].update(full_ids=["a"]), r"negatives\[1\].full_ids"),
        (lambda d: d["negatives"][1].update(trial=1.0), r"negatives\[1\].trial"),
        (lambda d: d.update(n_positives=9), "n_positives = 9 and holds 4"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_with_the_place(tmp_path, change, said):
    changed = document()
    change(changed)
    path = tmp_path / "positives.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=said):
        read_positives(path)


def test_fault_084_a_file_cut_short_is_refused_by_name(written):
    written.write_text(written.read_text()[:-40])
    with pytest.raises(ValueError, match="positives_nurse"):
        read_positives(written)


def test_our_own_record_keeps_what_the_published_one_cannot(written, tmp_path):
    examples = read_positives(written)
    ours = replace(
        examples,
        positives=(
            replace(
                examples.positives[0],
                layout=(("user", 4), ("system", 7), ("user", 3), ("assistant_header", 3)),
            ),
        ),
    )
    back = load_result(ours.save(tmp_path / "cell"))
    assert back.digest() == ours.digest() and back.positives == ours.positives
    assert back.counts == examples.counts and back.metadata == examples.metadata


def test_fault_085_a_damaged_record_is_refused(written, tmp_path):
    folder = read_positives(written).save(tmp_path / "cell")
    path = folder / "result.json"
    path.write_text(path.read_text().replace("85113", "85114", 1))
    with pytest.raises(ValueError, match="changed or damaged"):
        load_result(folder)


def test_the_table_and_the_figure_hold_every_answer(written):
    examples: Any = read_positives(written)
    table = examples.to_dataframe()
    assert table["positive"].tolist() == [True] * 4 + [False] * 2
    assert table["n_generated"].tolist()[:2] == [7, 6]
    bars = {bar.name: sum(bar.x) for bar in examples.figure().data}
    assert bars == {"positives": 4, "negatives": 26}


# the trials ------------------------------------------------------------------------------------------------


def run_of(outcomes: list[bool], question: str) -> tuple[list[Example], list[Example], Counts]:
    """The published rule, played out: up to 30 trials, until 10 positives and 5 negatives are kept."""
    base = Example("p", question, 0, 0, (1, 2, 3), 1, 1, 0, 0, 1, None, True, 1, None, "")
    positives, negatives, seen = [], [], []
    for trial, marked in enumerate(outcomes[:30]):
        if len(positives) >= 10 and len(negatives) >= 5:
            break
        seen.append(marked)
        if marked and len(positives) < 10:
            positives.append(replace(base, trial=trial))
        if not marked and len(negatives) < 5:
            negatives.append(replace(base, trial=trial, marker=None, end_of_answer=2))
    return positives, negatives, Counts(question, len(seen), sum(seen), len(seen) - sum(seen), None)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.8, 0.97, 1.0])
def test_the_trials_of_a_question_are_rebuilt_from_what_was_kept(rate):
    generator = torch.Generator().manual_seed(int(100 * rate))
    for number in range(40):
        outcomes = (torch.rand(30, generator=generator) < rate).tolist()
        positives, negatives, expected = run_of(outcomes, f"q{number}")
        assert published_counts(positives, negatives) == (expected,)


# the regions -----------------------------------------------------------------------------------------------


def test_counts_give_the_blocks_and_content_only_the_published_b(written):
    example = read_positives(written).positives[0]
    regions = segmentation(example, structural_marks(example.ids, PUBLISHED_IDS.structural))
    assert regions.positions("system").tolist() == list(range(7))
    assert regions.positions("user").tolist() == list(range(7, 14))
    assert regions.positions("assistant_header").tolist() == [14, 15, 16]
    assert regions.positions("answer").tolist() == list(range(17, len(example.ids)))
    content = regions.content_only()
    structural = {p for p, i in enumerate(example.ids) if i in PUBLISHED_IDS.structural}
    assert set(content.positions("specials").tolist()) == structural | {14, 15, 16}
    assert content.one_hot().sum(1).eq(1).all()


def test_counts_and_the_prompts_own_segmentation_agree_on_a_real_chat():
    read = tokenizer("qwen3")
    messages = [
        {"role": "system", "content": "You are a nurse."},
        {"role": "user", "content": "Why?\n\nHow?"},
    ]
    prompt = render(read, messages)
    answer = read("So.\n\n[ZLT]\n\n", add_special_tokens=False)["input_ids"]
    runs = prompt_layout(prompt)
    ids = (*prompt.tokens[0].tolist(), *answer)
    n = dict(runs)
    example = Example(
        "nurse", "Why?", 0, 0, ids, prompt.tokens.shape[1], n["system"], n["user"], n["assistant_header"],
        prompt.tokens.shape[1] + 2, None, True, 1, "length", "",
    )  # fmt: skip
    assert [name for name, _ in runs] == ["system", "user", "assistant_header"]
    counted = segmentation(example, token_marks(read, torch.tensor(ids)))
    own = prompt_segmentation(prompt, example, token_marks(read, torch.tensor(answer)))
    known = segmentation(example, structural_marks(ids, PUBLISHED_IDS.structural))
    for name in ("system", "user", "assistant_header", "answer", "specials"):
        expected = own.content_only().positions(name)
        assert torch.equal(counted.content_only().positions(name), expected)
        assert torch.equal(known.content_only().positions(name), expected)
    with pytest.raises(ValueError, match="another prompt"):
        prompt_segmentation(render(read, messages[1:]), example, token_marks(read, torch.tensor(answer)))


def test_a_template_without_a_system_role_keeps_its_regions_where_they_stand():
    """The system text lies inside the user's turn, so three counts would not say where it is."""
    read = tokenizer("gemma3")
    prompt = render(
        read, [{"role": "system", "content": "You are a nurse."}, {"role": "user", "content": "Why?"}]
    )
    runs = prompt_layout(prompt)
    assert [name for name, _ in runs] == ["user", "system", "user", "assistant_header"]
    roles = ("system", "user", "assistant_header")
    n_sys, n_user, n_header = (sum(n for what, n in runs if what == role) for role in roles)
    ids = (*prompt.tokens[0].tolist(), 7, 8)
    example = Example(
        "nurse", "Why?", 0, 0, ids, len(ids) - 2, n_sys, n_user, n_header, None, None, None, 0, None, "", runs
    )
    kept = segmentation(example, structural_marks(ids, ()))
    own = prompt.segmentation
    for name in roles:
        assert torch.equal(kept.positions(name), own.positions(name))


def test_marks_of_another_length_are_refused(written):
    example = read_positives(written).positives[0]
    with pytest.raises(ValueError, match="marks describe 2"):
        segmentation(example, structural_marks((1, 2), ()))


def test_examples_are_plain(written):
    examples: Examples = read_positives(written)
    assert examples.positives[0] == read_positives(written).positives[0]
    assert "..." in repr(examples)
