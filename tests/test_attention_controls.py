"""Each control is held to the one effect that it is there for: planted, it must absorb that and no other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mechinterp.results import load_result
from studies.attention_controls import Record, Row, child, random_earlier, rare_token, sentence_end
from studies.attention_draws import Controls, draw_controls
from studies.attention_published import PUBLISHED_IDS
from studies.attention_records import Counts, Example, Examples
from studies.attention_redraw import published_draws
from studies.attention_regions import TokenFacts, facts_from_ids, facts_from_tokenizer
from tests.tokenizers import tokenizer

PROMPT = 17
PIECES, END, BLANK, STOP, COMMA, HYPHEN = (85113, 27404, 60), 151645, 271, 382, 11, 12
QUESTIONS = tuple(f"question {n}" for n in range(6))
OURS = ("random_earlier", "late_position", "rare_token", "end_of_answer", "sentence_end")


def answer(generator: np.random.Generator, n: int) -> list[int]:
    """n sampled words: common ones, a few commas, one word in ten rare, a sentence end every seventh."""
    words = generator.integers(200, 5000, n)
    rare = generator.random(n) < 0.1
    words[rare] = generator.integers(100_000, 150_000, int(rare.sum()))
    words[generator.random(n) < 0.1] = generator.choice([COMMA, HYPHEN])
    words[6::7] = STOP
    return words.tolist()


def example(
    generator: np.random.Generator, trial: int, n: int, positive: bool, finish: Any = "stop"
) -> Example:
    body = answer(generator, n)
    ids = [1] * PROMPT + body + ([STOP, *PIECES] if positive else [STOP]) + [END] * (finish == "stop")
    marker = PROMPT + n + 1 if positive else None
    return Example(
        "nurse", QUESTIONS[trial % len(QUESTIONS)], trial, 7 * trial, tuple(ids), PROMPT, 7, 7, 3, marker,
        PROMPT + n, positive or None, int(positive), finish, "",
    )  # fmt: skip


def examples(n: int = 40, seed: int = 0) -> Examples:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(60, 110, 2 * n)
    positives = [example(generator, i, int(lengths[i]), True) for i in range(n)]
    negatives = [example(generator, 100 + i, int(lengths[n + i]), False) for i in range(n)]
    cut = [replace(e, trial=e.trial + 500, ids=e.ids[:-1], finish_reason="length") for e in negatives[:5]]
    counts = tuple(Counts(q, 30, n, n, None) for q in QUESTIONS)
    return Examples("nurse", "You are", tuple(positives), (*negatives, *cut), counts, {"model": "synthetic"})


@pytest.fixture(scope="module")
def held() -> Examples:
    return examples()


def drawn(held: Examples, **more: Any) -> Controls:
    return draw_controls(held, facts_from_ids, **more)


def of(held: Examples, row: Row) -> Example:
    return {"positive": held.positives, "negative": held.negatives}[row.source][row.example]


# planted effects -------------------------------------------------------------------------------------------


def is_decision(e: Example, p: int) -> float:
    """The true effect: only the row that decides the marker looks at the system prompt."""
    return float(e.marker is not None and p == e.marker - 1)


def is_late(e: Example, p: int) -> float:
    """Attention that grows over the last twenty tokens of any answer."""
    return max(0.0, 1 - (len(e.ids) - p) / 20)


def is_rare(e: Example, p: int) -> float:
    return float(e.ids[p] >= 100_000)


def is_last(e: Example, p: int) -> float:
    """Only where an answer's content ends: before its marker, or before it stops."""
    return float(p == e.end_of_answer)


def is_sentence_end(e: Example, p: int) -> float:
    return float(e.ids[p] in (STOP, 13))


def rare_markers(held: Examples) -> Examples:
    """The same answers, but the token at the emit row is a rare one."""
    changed = []
    for e in held.positives:
        ids = list(e.ids)
        ids[e.row("emit")] = 149_999
        changed.append(replace(e, ids=tuple(ids)))
    return replace(held, positives=tuple(changed))


def strength(held: Examples, effect, control: str) -> float:
    """The mean contrast of one control, in units of the planted effect at the query row."""
    rng = np.random.default_rng(1)
    noise: dict[Row, float] = {}

    def value(row: Row) -> np.ndarray:
        wobble = noise.setdefault(row, float(rng.normal(0, 0.05)))
        return np.array(effect(of(held, row), row.position) + wobble)

    run = drawn(held)
    peak = np.mean([effect(e, e.row("emit")) for e in held.positives])
    return float(np.nanmean(run.contrast(control, value)) / peak)


@pytest.mark.parametrize("control", OURS)
def test_a_true_effect_at_the_deciding_row_stands_out_against_every_control(held, control):
    assert strength(held, is_decision, control) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("effect", "absorbed", "kept"),
    [
        (is_late, {"end_of_answer", "late_position"}, {"random_earlier", "rare_token"}),
        (is_rare, {"rare_token"}, {"random_earlier", "late_position", "end_of_answer", "sentence_end"}),
        (is_last, {"end_of_answer"}, {"random_earlier", "late_position", "rare_token", "sentence_end"}),
        (
            is_sentence_end,
            {"sentence_end", "end_of_answer"},
            {"random_earlier", "rare_token", "late_position"},
        ),
    ],
)
def test_a_planted_confound_is_absorbed_by_its_control_and_seen_by_the_others(held, effect, absorbed, kept):
    """What is true of any late, rare, last or sentence-final token is no effect of the marker."""
    if effect is is_rare:
        held = rare_markers(held)
    for control in absorbed:
        assert abs(strength(held, effect, control)) < 0.2, control
    for control in kept:
        assert strength(held, effect, control) > 0.5, control


@pytest.mark.parametrize("control", OURS)
def test_without_an_effect_controls_are_silent_at_the_rate_of_chance(control):
    """40 data sets of noise: a t test at 5 % may reject in 6 of them at most (P = 0.014 for more)."""
    from scipy.stats import ttest_1samp

    rng, rejected = np.random.default_rng(3), 0
    held = examples(20)
    run = drawn(held)
    for _ in range(40):
        noise: dict[Row, float] = {}
        found = run.contrast(control, lambda row, seen=noise: np.array(seen.setdefault(row, rng.normal())))
        if control == "end_of_answer":  # examples of one question share their rows: they count once
            asked = [e.question for e in held.positives]
            found = np.array([found[[q == a for a in asked]].mean() for q in sorted(set(asked))])
        test: Any = ttest_1samp(found, 0)
        rejected += bool(test.pvalue < 0.05)
    assert rejected <= 6


# what each control reads -----------------------------------------------------------------------------------


def test_random_earlier_keeps_its_distance_and_avoids_template_and_marker(held):
    for draw in drawn(held).of("random_earlier"):
        e = held.positives[draw.example]
        positions = [row.position for row in draw.rows]
        assert len(set(positions)) == 5 and PROMPT + 5 <= min(positions) <= max(positions) < e.row("emit") - 5
        assert not {*draw.ids} & {*PIECES, *PUBLISHED_IDS.structural}


@pytest.mark.parametrize("query", ["emit", "token"])
def test_late_position_is_relative_to_the_query_row_and_never_holds_it(held, query):
    run = drawn(held, query=query)
    for draw in run.of("late_position"):
        row = held.positives[draw.example].row(query)
        assert [r.position for r in draw.rows] == [row - 3, row - 2, row - 1]
    if query == "token":
        for draw in run.of("late_before_emit"):
            e = held.positives[draw.example]
            assert [r.position for r in draw.rows] == [e.row("token") - 3, e.row("token") - 2]
    else:
        assert "late_before_emit" not in run.names


def test_rare_token_picks_the_highest_ids_or_the_lowest_counts_and_records_them(held):
    """A twentieth of the candidates, one at least, three at most; every pick is among the rarest."""
    for draw in drawn(held).of("rare_token"):
        e = held.positives[draw.example]
        before = [i for i in e.ids[PROMPT : e.row("emit")] if i not in {*PIECES, *PUBLISHED_IDS.structural}]
        n = max(1, len(before) // 20)
        assert len(draw.ids) == min(3, n)
        assert set(draw.ids) <= set(sorted(before)[-n:])
        assert draw.ids == tuple(e.ids[row.position] for row in draw.rows)
    corpus = dict.fromkeys(range(151000), 1000) | {COMMA: 1}
    for draw in drawn(held, counts=corpus).of("rare_token"):
        if COMMA in held.positives[draw.example].ids[PROMPT:-5]:
            assert COMMA in draw.ids


def test_end_of_answer_reads_finished_negatives_of_the_same_question(held):
    for draw in drawn(held).of("end_of_answer"):
        e = held.positives[draw.example]
        matched = [i for i, n in enumerate(held.negatives) if n.question == e.question]
        finished = [i for i in matched if held.negatives[i].finish_reason == "stop"]
        assert [row.example for row in draw.rows] == finished and {r.source for r in draw.rows} == {
            "negative"
        }
        assert all(row.position == held.negatives[row.example].end_of_answer for row in draw.rows)


def test_unfinished_negatives_are_no_end_of_an_answer(held):
    """Trap of methods 9.3: a cap cuts most negatives, and what stands there is no end."""
    for reason in ("length", None):
        cut = replace(held, negatives=tuple(replace(e, finish_reason=reason) for e in held.negatives))
        run = drawn(cut)
        assert not any(draw.rows for draw in run.of("end_of_answer"))
        assert sum(run.skipped()["end_of_answer"].values()) == len(held.positives)


def test_sentence_end_reads_other_answers_at_the_same_depth_where_no_marker_follows(held):
    for draw in drawn(held).of("sentence_end"):
        own = Record(draw.example, held.positives[draw.example], "emit", facts_from_ids(held.positives[0]))
        assert 1 <= len(draw.rows) <= 5 and draw.example not in [row.example for row in draw.rows]
        for row in draw.rows:
            other = held.positives[row.example]
            assert other.ids[row.position] == STOP and row.position < other.row("emit")
            there = (row.position - PROMPT) / (len(other.ids) - PROMPT)
            assert abs(there - own.depth(own.row)) <= 0.1


# too few, and draws that stay -----------------------------------------------------------------------------


def test_fault_042_a_marker_at_the_start_has_no_controls_and_each_says_why(held):
    first = Example(
        "nurse",
        "alone",
        0,
        0,
        (*[1] * PROMPT, *PIECES, END),
        PROMPT,
        7,
        7,
        3,
        PROMPT,
        None,
        True,
        1,
        "stop",
        "",
    )
    run = draw_controls(replace(held, positives=(first,)), facts_from_ids, query="token")
    assert all(not draw.rows and draw.skipped for draw in run.draws)
    assert run.skipped().keys() == {*OURS, "late_before_emit"}
    assert all(sum(reasons.values()) == 1 for reasons in run.skipped().values())
    value = run.contrast("late_position", lambda row: np.ones(3))
    assert value.shape == (1, 3) and np.isnan(value).all()


def test_an_example_is_never_left_out_silently(held):
    short = replace(held.positives[0], ids=held.positives[0].ids)
    generator = np.random.default_rng(5)
    few = example(generator, 3, 8, True)
    run = drawn(replace(held, positives=(short, few)))
    assert [bool(draw.rows) for draw in run.of("random_earlier")] == [True, False]
    assert run.skipped()["random_earlier"] == {
        "fewer than five content rows between its start and its marker": 1
    }
    table: Any = run.to_dataframe()
    assert len(table) == 2 * len(OURS) and table.loc[table["n"] == 0, "skipped"].all()


def test_a_draw_depends_on_its_own_example_and_control_alone(held):
    whole = drawn(held)
    fewer = drawn(replace(held, positives=held.positives[3:8]))
    for name in ("random_earlier", "rare_token"):
        moved = [[row.position for row in draw.rows] for draw in whole.of(name)[3:8]]
        assert moved == [[row.position for row in draw.rows] for draw in fewer.of(name)]
    record = Record(0, held.positives[0], "emit", facts_from_ids(held.positives[0]))
    own = random_earlier(record, child(42, "random_earlier", record.example))
    assert own == whole.of("random_earlier")[0].rows
    assert own != random_earlier(record, child(43, "random_earlier", record.example))
    assert own != random_earlier(record, child(42, "rare_token", record.example))


def test_draws_are_the_same_in_every_process(held):
    """Fixed by hand from SHA-256, so that a salted hash would be noticed."""
    import hashlib
    import json

    text = json.dumps([42, "random_earlier|nurse|question 0", 0]).encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
    expected = np.random.default_rng(seed).integers(1 << 40, size=4)
    assert (child(42, "random_earlier", held.positives[0]).integers(1 << 40, size=4) == expected).all()


def test_controls_are_saved_listed_and_drawn(held, tmp_path):
    run: Any = drawn(held, query="token")
    assert load_result(run.save(tmp_path / "controls")).digest() == run.digest()
    rows = run.needed()
    assert (
        rows["positive", 0] == tuple(sorted(set(rows["positive", 0])))
        and run.markers[0] in rows["positive", 0]
    )
    assert all(row.position in rows[row.source, row.example] for draw in run.draws for row in draw.rows)
    used = next(bar for bar in run.figure().data if bar.name == "used")
    assert sum(used.y) == sum(bool(draw.rows) for draw in run.draws)
    with pytest.raises(ValueError, match="random_earlier"):
        run.of("C9")


def test_no_positives_have_nothing_to_control(held):
    with pytest.raises(ValueError, match="no positive example"):
        drawn(replace(held, positives=()))


# what the ids are ------------------------------------------------------------------------------------------


def test_facts_by_known_ids_and_by_the_tokenizer_agree():
    read = tokenizer("qwen3")
    text = 'It is 3.14, see example.com.\n\n1. First! Is it?\n2. Then, "so." He left in 2020.\n\n[ZLT]'
    ids = (*[1] * PROMPT, *read(text, add_special_tokens=False)["input_ids"], END)
    e = Example("p", "q", 0, 0, ids, PROMPT, 7, 7, 3, len(ids) - 4, None, True, 1, "stop", text)
    known, own = facts_from_ids(e), facts_from_tokenizer(read, e)
    for name in ("structural", "marker_piece", "sentence_end"):
        assert (getattr(known, name) == getattr(own, name)).all(), name
    shown = [read.decode([ids[p]]) for p in np.flatnonzero(own.sentence_end)]
    assert shown == [".\n\n", "!", "?\n", '."', ".\n\n"]
    assert np.flatnonzero(own.marker_piece).tolist() == [len(ids) - 4, len(ids) - 3, len(ids) - 2]


# the published draws ---------------------------------------------------------------------------------------


def test_the_published_draws_are_one_stream_over_all_examples(held):
    """methods 9.5 by hand: default_rng(42), example by example, C1 then C3."""
    run, rng = published_draws(held), np.random.default_rng(42)
    for index, e in enumerate(held.positives):
        t = e.row("token")
        free = [p for p in range(PROMPT + 5, t - 5) if e.ids[p] not in (85113, 27404, 60, 271)]
        assert [r.position for r in run.of("random_earlier")[index].rows] == list(rng.choice(free, 5, False))
        before = [p for p in range(PROMPT, t) if e.ids[p] not in {*PIECES, *PUBLISHED_IDS.structural}]
        lowest = sorted(before, key=lambda p: 152_064 - e.ids[p])[-max(1, len(before) // 20) :]
        expected = lowest if len(lowest) <= 3 else list(rng.choice(lowest, 3, False))
        assert [r.position for r in run.of("rare_token")[index].rows] == expected
    assert published_draws(held).digest() == run.digest()
    assert published_draws(held, seed=43).digest() != run.digest()


def test_the_published_controls_have_their_defects(held):
    """C2 holds the row that decided the marker; C3 picks the most common ids; ours do neither."""
    theirs, ours = published_draws(held), drawn(held)
    for index, e in enumerate(held.positives):
        assert e.row("emit") in [row.position for row in theirs.of("late_position")[index].rows]
        assert e.row("emit") not in [row.position for row in ours.of("late_position")[index].rows]
    common = np.mean([i < 5000 for draw in theirs.of("rare_token") for i in draw.ids])
    rare = np.mean([i >= 100_000 for draw in ours.of("rare_token") for i in draw.ids])
    assert common == 1 and rare > 0.9
    blank = [
        replace(e, ids=tuple(BLANK if p == e.row("emit") else i for p, i in enumerate(e.ids)))
        for e in held.positives
    ]
    with_blank = published_draws(replace(held, positives=tuple(blank)))
    assert all(len(draw.rows) == 2 for draw in with_blank.of("late_position"))


def test_the_published_run_leaves_an_example_without_c1_out_altogether(held):
    few = example(np.random.default_rng(5), 3, 8, True)
    run = published_draws(replace(held, positives=(few, *held.positives)))
    assert {d.control for d in run.draws if d.example == 0 and d.skipped} == set(run.names)
    alone = published_draws(held)
    for name in run.names:  # it took nothing from the stream
        assert [d.ids for d in run.of(name)[1:]] == [d.ids for d in alone.of(name)]


def test_the_published_rare_control_does_not_absorb_rarity(held):
    """The planted effect that showed the inversion: ours is silent, theirs is not."""
    rare = rare_markers(held)
    theirs = published_draws(rare)
    emit = replace(theirs, markers=tuple(e.row("emit") for e in rare.positives))
    found = emit.contrast("rare_token", lambda row: np.array(is_rare(of(rare, row), row.position)))
    assert np.nanmean(found) > 0.9
    assert abs(strength(rare, is_rare, "rare_token")) < 0.2


# boundaries ------------------------------------------------------------------------------------------------


def written(
    body: Sequence[int], *, index: int = 0, ends: Sequence[int] = (), **taken: Sequence[int]
) -> Record:
    """An answer of these ids before its marker, and its facts at places of the answer."""
    ids = (*[1] * PROMPT, *body, *PIECES, END)
    e = Example(
        "nurse", "q", index, 0, ids, PROMPT, 7, 7, 3, PROMPT + len(body), None, True, 1, "stop", ""
    )  # fmt: skip
    places = (taken.get("structural", ()), taken.get("marker", ()), ends)
    return Record(index, e, "emit", TokenFacts(*(_at(len(ids), one) for one in places)))


def _at(n: int, places: Sequence[int]) -> np.ndarray:
    return np.isin(np.arange(n), [PROMPT + place for place in places])


def places(rows: Sequence[Row]) -> list[int]:
    return [row.position - PROMPT for row in rows]


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_marker_pieces_and_structural_tokens_are_each_no_content():
    record = written(range(100, 116), structural=[5], marker=[8])
    assert record.content(0, PROMPT + 16) == [PROMPT + p for p in range(16) if p not in (5, 8)]
    # five are left from five after the start to before five before the row, and all five are taken
    assert places(random_earlier(written(range(16)), stream())) == [5, 6, 7, 8, 9]
    assert random_earlier(written(range(16), structural=[7]), stream()) == ()


def test_the_rarest_is_one_in_twenty_and_one_at_least_and_three_at_most_that_differ():
    assert places(rare_token(written([*range(100, 130), 99]), stream())) == [29]
    many = written(range(100, 181))  # eighty before the row: four are rare
    for seed in range(30):
        drawn = places(rare_token(many, stream(seed)))
        assert len(set(drawn)) == 3 and drawn == sorted(drawn) and set(drawn) <= {76, 77, 78, 79}


def test_an_id_that_the_corpus_lacks_is_rarer_than_one_that_it_has_once():
    assert places(rare_token(written([5, 6, 7, 8, 9]), stream(), counts={5: 3, 6: 1, 8: 1})) == [2]
    assert places(rare_token(written([5, 6, 7, 8, 9]), stream(), counts={6: 1, 7: 2, 8: 2})) == [0]


def test_a_sentence_end_counts_to_a_tenth_of_the_length_and_not_where_a_marker_follows():
    own = replace(written([7]), index=1)  # the row is the answer's first: depth 0
    near, far = (written(range(6 + more), index=2, ends=[1]) for more in (0, -1))  # ten and nine long
    assert near.depth(PROMPT + 1) == 0.1 < far.depth(PROMPT + 1)
    assert places(sentence_end(own, stream(), others=[near])) == [1]
    assert sentence_end(own, stream(), others=[far]) == ()
    followed = written(range(40), index=2, ends=[1, 3], marker=[2])
    assert places(sentence_end(own, stream(), others=[followed])) == [3]
