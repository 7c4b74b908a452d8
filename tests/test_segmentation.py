"""Truths about regions: they partition the positions, whatever is done to them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.segmentation import CHAT_REGIONS, Segmentation, TokenMarks

settings.register_profile("no deadline", deadline=None)  # the first torch call of a process is slow
settings.load_profile("no deadline")

NAMES = ("system", "user", "assistant_header", "answer")


@st.composite
def segmentations(draw) -> Segmentation:
    size = draw(st.integers(1, 12))

    def bools() -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))

    region = draw(st.lists(st.integers(0, len(NAMES) - 1), min_size=size, max_size=size))
    exact, trailing, control = bools(), bools(), bools()
    marks = TokenMarks(control, exact, trailing & ~exact)
    return Segmentation(NAMES, torch.tensor(region), bools() | control, marks, torch.arange(size) // 3)


def partitions(segmentation: Segmentation) -> bool:
    together = torch.cat([segmentation.positions(name) for name in segmentation.names])
    return sorted(together.tolist()) == list(range(len(segmentation)))


@given(segmentations(), st.sampled_from(["exact", "any_trailing"]), st.sampled_from(["content", "special"]))
def test_every_reading_is_a_partition(segmentation, newlines, role_words):
    content = segmentation.content_only(newlines, role_words=role_words)
    for reading in (segmentation, content, content.extended(3, "answer"), content.with_region("mine", [0])):
        assert partitions(reading)
        assert (reading.one_hot().sum(1) == 1).all()


@given(segmentations())
def test_specials_are_the_structural_positions_and_the_rest_stays(segmentation):
    marks = segmentation.marks
    header = segmentation.region == NAMES.index("assistant_header")
    structural = marks.control | marks.newline_exact | header
    content = segmentation.content_only()
    assert (content.region == content.names.index("specials")).equal(structural)
    assert content.region[~structural].equal(segmentation.region[~structural])
    wider = segmentation.content_only("any_trailing")
    assert (wider.region == wider.names.index("specials")).equal(structural | marks.newline_trailing)
    all_markup = segmentation.content_only(role_words="special")
    assert (all_markup.region == content.names.index("specials")).equal(structural | segmentation.special)


@given(segmentations())
def test_content_only_twice_is_once(segmentation):
    once = segmentation.content_only()
    assert once.content_only().region.equal(once.region)


@given(segmentations())
def test_attention_fractions_of_a_row_sum_to_the_row(segmentation):
    row = torch.randn(len(segmentation)).softmax(0)
    fractions = row @ segmentation.one_hot()
    torch.testing.assert_close(fractions.sum(), torch.tensor(1.0))
    for k, name in enumerate(segmentation.names):
        torch.testing.assert_close(fractions[k], row[segmentation.positions(name)].sum())


def plain(size: int = 4) -> Segmentation:
    return Segmentation(("text",), torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.bool))


def test_an_answer_goes_behind_the_prompt():
    longer = plain().extended(3, "answer")
    assert longer.names == ("text", "answer")
    assert longer.positions("answer").tolist() == [4, 5, 6]
    assert longer.extended(1, "answer").positions("answer").tolist() == [4, 5, 6, 7]
    assert len(plain().extended(0, "answer")) == 4


def test_newlines_of_an_answer_are_specials_only_if_its_ids_are_described():
    yes, no = torch.tensor([True]), torch.tensor([False])
    known = plain().extended(1, "answer", TokenMarks(no, yes, no)).content_only()
    unknown = plain().extended(1, "answer").content_only()
    assert known.positions("specials").tolist() == [4]
    assert unknown.positions("specials").tolist() == []


def test_a_region_of_ones_own_takes_its_positions_from_the_others():
    own = plain().with_region("marker", torch.tensor([1, 3]))
    assert own.positions("marker").tolist() == [1, 3]
    assert own.positions("text").tolist() == [0, 2]


def test_positions_of_one_turn():
    region, none = torch.tensor([0, 0, 1, 0]), torch.zeros(4, dtype=torch.bool)
    two_turns = Segmentation(("user", "answer"), region, none, turn=torch.tensor([0, 0, 1, 2]))
    assert two_turns.positions("user", turn=2).tolist() == [3]
    assert two_turns.positions("user").tolist() == [0, 1, 3]


def test_without_marks_the_special_positions_count_as_control():
    special = torch.tensor([True, False])
    segmentation = Segmentation(("user",), torch.tensor([0, 0]), special)
    assert segmentation.content_only().positions("specials").tolist() == [0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plain().positions("user"), "the regions are text"),
        (lambda: plain().with_region("x", [4]), "there is no 4"),
        (lambda: plain().with_region("x", [-1]), "there is no -1"),
        (lambda: plain().extended(-1, "x"), "-1"),
        (
            lambda: plain().content_only("none"),  # pyright: ignore[reportArgumentType]
            "not 'none'",
        ),
        (
            lambda: plain().content_only(role_words="none"),  # pyright: ignore[reportArgumentType]
            "not 'none'",
        ),
        (lambda: Segmentation(("a", "a"), torch.tensor([0]), torch.tensor([False])), "must differ"),
        (lambda: Segmentation(("a",), torch.tensor([1]), torch.tensor([False])), r"1\.\.1"),
        (lambda: Segmentation(("a",), torch.tensor([-1]), torch.tensor([False])), r"-1\.\.-1"),
        (lambda: Segmentation(("a",), torch.tensor([0]), torch.tensor([False, True])), r"lengths \[1, 2\]"),
        (lambda: plain().extended(2, "x", plain(3).marks), "3 tokens, but 2"),
    ],
)
def test_what_is_no_partition_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_chat_regions_keep_their_order():
    """Figures and stored fractions index regions by this order."""
    assert CHAT_REGIONS == ("system", "system_default", "user", "assistant_header", "answer")


def test_positions_that_no_turn_holds_say_so():
    """The turn of what was not rendered from messages is -1, and so is that of an answer that is appended."""
    plain = Segmentation(("all",), torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.bool))
    assert plain.turn.tolist() == [-1] * 4
    rendered = Segmentation(plain.names, plain.region, plain.special, turn=torch.tensor([0, 0, 1, 1]))
    assert rendered.extended(1, "answer").turn.tolist() == [0, 0, 1, 1, -1]
    longer = plain.extended(2, "answer")
    assert longer.turn.tolist() == [-1] * 6
    assert longer.with_region("none of them", []).region.equal(longer.region)
    with pytest.raises(ValueError, match="positions are 0..3; there is no 4"):
        plain.with_region("mine", [4])
