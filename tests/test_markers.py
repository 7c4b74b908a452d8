"""Markers in ids: every way that real tokenizers write one, and what looks like one but is not."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.embedded import pull
from mechinterp.results import load_result
from probes.markers import detect, find_marker, token_bytes, usual_ids
from probes.tallies import marker_rates
from tests.conftest import EMBEDDED
from tests.tokenizers import tokenizer as npm_tokenizer

NAMES = ["qwen3", "gemma2", "mistral_nemo", "smollm2"]
FIRST_PIECE = 85113  # "[Z" in Qwen's vocabulary, the id that the published study looked for
TEXTS = ["Hi", "Hi\n\n", "Hi ", "Hi. ", "Hi.", 'Hi"', "**Hi**", "Hi🙂", "مرحبا ", "e\u0301", "a\r\n", "\x00"]


@functools.cache
def tokenizer(name: str):
    if name != "smollm2":
        return npm_tokenizer(name)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pull(EMBEDDED))


@pytest.fixture(scope="module", params=NAMES)
def any_tokenizer(request):
    return tokenizer(request.param)


@pytest.fixture(scope="module")
def qwen():
    return npm_tokenizer("qwen3")


def ids_of(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def written(tokenizer, text: str, prompt: str = "Q: ") -> tuple[list[int], int]:
    """A prompt and an answer that were tokenised apart, and the position of the answer."""
    head = ids_of(tokenizer, prompt)
    return head + ids_of(tokenizer, text), len(head)


def found(tokenizer, text: str, **more):
    ids, after = written(tokenizer, text)
    return find_marker(tokenizer, torch.tensor(ids), after=after, **more)


# the spans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", TEXTS)
def test_fault_039_the_marker_is_found_whatever_stands_before_it(any_tokenizer, before):
    """The token holds the marker's first character and no earlier one does; the last holds its end."""
    ids, after = written(any_tokenizer, before + "[ZLT]")
    (mark,) = find_marker(any_tokenizer, ids, after=after)
    until, through = (any_tokenizer.decode(ids[after:stop]) for stop in (mark.token, mark.token + 1))
    assert mark.complete and mark.emit == mark.token - 1 and mark.ids == tuple(ids[mark.token : mark.end])
    assert "[" not in until and "[" in through
    assert mark.end == len(ids) and "[ZLT]" in any_tokenizer.decode(mark.ids)


def test_fault_039_the_published_id_misses_what_the_span_finds(qwen):
    """Catalogue, 'Marker tokenisation': after a space, a full stop, a quotation mark, `**` or an emoji."""
    seen = {}
    for before in ("", "\n\n", "Why?\n\n", "word", " ", ". ", ".", '"', "**", "🙂"):
        ids, after = written(qwen, before + "[ZLT]")
        answer = detect(qwen, ids, after=after)
        assert answer.text and answer.ids == (FIRST_PIECE in ids[after:])
        seen[before] = (answer.ids, answer.occurrences[0].variant)
    assert [b for b, (by_id, _) in seen.items() if by_id] == ["", "\n\n", "Why?\n\n", "word"]
    assert seen["\n\n"][1] == "[Z|LT|]" and seen[". "][1] == " [|Z|LT|]"
    assert seen["."][1] == ".[|Z|LT|]" and seen["🙂"][1] == "[|Z|LT|]"


def test_fault_040_two_markers_share_a_token_and_the_prompts_own_is_not_found(any_tokenizer):
    both = found(any_tokenizer, "\n\n[ZLT][ZLT]", which="all")
    assert [mark.complete for mark in both] == [True, True]
    assert both[1].token == both[0].end - 1, "the second begins inside the first one's last token"
    assert found(any_tokenizer, "\n\n[ZLT][ZLT]") == both[:1]
    ids, after = written(any_tokenizer, " no marker here", prompt="Say [ZLT] please.")
    assert find_marker(any_tokenizer, ids, after=after, which="all") == ()
    assert find_marker(any_tokenizer, ids, after=1) != ()


def test_a_marker_that_begins_in_the_prompt_is_not_the_answers(qwen):
    ids, after = ids_of(qwen, "\n\n") + [FIRST_PIECE, 27404, 60], 2
    assert find_marker(qwen, ids, after=1)[0].token == 1
    assert find_marker(qwen, ids, after=after) == ()


@pytest.mark.parametrize("marker", ["", "  \n", None])
def test_fault_041_a_blank_marker_is_refused(qwen, marker):
    with pytest.raises(ValueError, match="visible text"):
        find_marker(qwen, [1, 2], marker, after=1)


def test_fault_041_a_marker_that_the_tokenizer_rewrites_is_refused(qwen):
    with pytest.raises(ValueError, match="choose one that it keeps"):
        usual_ids(qwen, "e\u0301!")  # its normaliser composes the two into one character
    assert usual_ids(qwen, "é!").ids


def test_fault_042_the_first_generated_token_was_decided_by_the_prompts_last_row(any_tokenizer):
    ids, after = written(any_tokenizer, "[ZLT] and more")
    (mark,) = find_marker(any_tokenizer, ids, after=after)
    assert (mark.emit, mark.token) == (after - 1, after)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fault_042_a_marker_cut_by_the_cap_is_incomplete(any_tokenizer, n):
    (mark,) = found(any_tokenizer, "Done.\n\n" + "[ZLT]"[:n])
    assert not mark.complete and any_tokenizer.decode(mark.ids) == "[ZLT]"[:n]


def test_a_bracket_alone_is_no_marker(any_tokenizer):
    assert found(any_tokenizer, "see [1] and [", which="all") == ()


def test_a_marker_begun_as_usual_that_goes_on_differently_is_incomplete_as_in_the_published_detector(qwen):
    ids = [*ids_of(qwen, "Q"), *ids_of(qwen, "A.\n\n"), FIRST_PIECE, *ids_of(qwen, "ebra]"), 271]
    ids += [FIRST_PIECE, 27404, 60]
    begun, whole = find_marker(qwen, ids, after=1, which="all")
    assert (begun.complete, begun.ids, begun.variant) == (False, (FIRST_PIECE,), "[Z")
    assert whole.complete and find_marker(qwen, ids, after=1) == (begun,)


def test_fault_046_text_round_trips_byte_for_byte_and_lone_surrogates_are_refused(any_tokenizer):
    for text in ("🧑‍🚀 naïve שלום e\u0301\r\n\x00\ufeff", "日本語[ZLT]🙂"):
        ids = ids_of(any_tokenizer, text)
        kept = b"".join(token_bytes(any_tokenizer, ids)).decode()
        assert kept == any_tokenizer.decode(ids, skip_special_tokens=False)
        assert kept.startswith(text[0])
    with pytest.raises(ValueError, match="lone surrogate"):
        find_marker(any_tokenizer, [1, 2], "\ud800", after=1)


def test_fault_043_ids_that_no_text_gives_are_read_as_they_are(qwen):
    """Half an emoji, stray bytes and an id of the padded vocabulary before the marker shift nothing."""
    emoji = ids_of(qwen, "𓀀")
    assert len(emoji) > 1, "an emoji of several tokens is needed"
    for junk in (emoji[:1], emoji[1:], [*emoji[:1] * 3], [151_900], [151645]):
        ids = [5, *junk, 58, 57, 27404, 60]
        (mark,) = find_marker(qwen, ids, after=1)
        assert (mark.token, mark.ids) == (1 + len(junk), (58, 57, 27404, 60))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([*TEXTS, "[ZLT]", "[", "]", "ZLT", "Z", "[zlt]", "[Z", " "]), max_size=8),
    st.sampled_from(["qwen3", "gemma2"]),
)
def test_complete_markers_are_those_of_the_decoded_text(parts, name):
    read = tokenizer(name)
    ids, after = written(read, "".join(parts) + ".")
    answer = detect(read, ids, after=after)
    shown = read.decode(ids[after:])
    assert sum(mark.complete for mark in answer.occurrences) == shown.count("[ZLT]")
    assert answer.text == ("[zlt]" in shown.lower())
    assert sorted(mark.token for mark in answer.occurrences) == [mark.token for mark in answer.occurrences]


def test_a_marker_of_any_characters_is_found(any_tokenizer):
    for marker in ("🦄✓", "é", "fin de réponse", " [x]"):
        ids, after = written(any_tokenizer, f"a𓀀b\n{marker} c")
        (mark,) = find_marker(any_tokenizer, ids, marker, after=after)
        assert mark.complete and marker in any_tokenizer.decode(mark.ids)


@pytest.mark.parametrize("after", [0, -1, 4])
def test_an_answer_that_begins_nowhere_is_refused(qwen, after):
    with pytest.raises(ValueError, match=r"1\.\.3"):
        find_marker(qwen, [1, 2, 3], after=after)
    assert find_marker(qwen, [1, 2, 3], after=3) == ()


def test_two_rows_of_ids_are_refused(qwen):
    with pytest.raises((ValueError, TypeError), match=r"tokens\[0\]|tokens"):
        find_marker(qwen, torch.ones(1, 3, dtype=torch.long), after=1)


# the rates -------------------------------------------------------------------------------------------------


def rates(qwen) -> Any:
    texts = {
        ("villain", "a"): ["x\n\n[ZLT]", "x [ZLT]", "x [zlt]", "x"],
        ("villain", "b"): ["x\n\n[Z", "x"],
        ("nurse", "a"): ["x", "x"],
    }
    answers = []
    for (persona, question), given_texts in texts.items():
        for text in given_texts:
            ids, after = written(qwen, text)
            answers.append((persona, question, detect(qwen, ids, after=after)))
    return marker_rates(answers, model="tiny", marker="[ZLT]", seeds=[1])


def test_rates_keep_found_and_total_of_each_detector(qwen):
    table = rates(qwen).to_dataframe().set_index(["persona", "detector"])
    assert table.loc[("villain", "text"), ["found", "total"]].tolist() == [3, 6]
    assert table.loc[("villain", "ids"), ["found", "total"]].tolist() == [2, 6]
    assert table.loc[("villain", "complete"), ["found", "total"]].tolist() == [2, 6]
    assert table.loc[("nurse", "text"), ["found", "total"]].tolist() == [0, 2]


def test_intervals_are_wilsons_and_questions_add_up(qwen):
    from scipy.stats import binomtest

    run = rates(qwen)
    expected = binomtest(3, 6).proportion_ci(0.95, method="wilson")
    got = run.rate("villain", "text")
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert run.rate("villain", "ids", question="b").estimate == 0.5
    lines = run.by_question().groupby(["persona", "detector"])[["found", "total"]].sum()
    whole = run.to_dataframe().set_index(["persona", "detector"])[["found", "total"]]
    assert lines.sort_index().equals(whole.sort_index())
    with pytest.raises(ValueError, match="villain, nurse"):
        run.rate("clown")


def test_variants_count_every_marker_whole_or_begun(qwen):
    table = rates(qwen).variants("villain").set_index("variant")
    assert table["count"].to_dict() == {"[Z|LT|]": 1, " [|Z|LT|]": 1, "[Z": 1}
    assert table["complete"].to_dict() == {"[Z|LT|]": True, " [|Z|LT|]": True, "[Z": False}


def test_rates_are_saved_and_drawn(qwen, tmp_path):
    run = rates(qwen)
    assert load_result(run.save(tmp_path / "rates")).digest() == run.digest()
    figure = run.figure()
    bars: dict = {bar.name: list(bar.y) for bar in figure.data}  # type: ignore
    assert bars["text"] == [0.5, 0.0]


def test_no_answers_have_no_rate():
    with pytest.raises(ValueError, match="no answers"):
        marker_rates([], model="tiny", marker="[ZLT]")
