"""Attention by region: partitions of eager's own rows, on every backend, in any batch, flagged by windows."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import probes
from mechinterp.backends import attention_rows, hf
from mechinterp.backends.twin import twin
from mechinterp.chat import token_marks
from mechinterp.loading import wrap
from mechinterp.model import Model
from mechinterp.results import load_result
from mechinterp.segmentation import Segmentation
from probes import attention_batch
from probes.attention import attention_fractions, marker_rows
from probes.attention_batch import fractions_of
from probes.markers import Occurrence
from tests.architectures import FAMILIES, shared, tiny
from tests.passes import BACKENDS, made

N = 30
ROWS = [7, 20, 29]


def ids(n: int = N, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 211, (n,), generator=torch.Generator().manual_seed(seed))


def segmented(n: int = N, names: str = "abc", seed: int = 0) -> Segmentation:
    """Scattered regions, so that no two are told apart by their order."""
    region = torch.randint(len(names), (n,), generator=torch.Generator().manual_seed(seed))
    return Segmentation(tuple(names), region, torch.zeros(n, dtype=torch.bool))


def blocks(*lengths: int) -> Segmentation:
    region = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Segmentation(tuple("abcdef"[: len(lengths)]), region, torch.zeros(sum(lengths), dtype=torch.bool))


@cache
def model(family: str) -> Model:
    return wrap(shared(family), None, verify=False)


@cache
def eager(family: str) -> torch.Tensor:
    """[layer, head, query, key], the weights that the library's own eager kernel returns."""
    own: Any = twin(shared(family))
    own.set_attn_implementation("eager")
    return torch.stack(own(ids()[None], output_attentions=True, use_cache=False).attentions)[:, 0]


def naive(family: str, segmentation: Segmentation, rows: list[int]) -> torch.Tensor:
    return torch.einsum("lhrk,kg->rlhg", eager(family)[:, :, rows], segmentation.one_hot())


# the numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_056_057_fractions_are_sums_of_eagers_weights(family):
    segmentation = segmented()
    found = attention_fractions(model(family), ids(), segmentation, rows=ROWS)
    assert_close(found.fractions, naive(family, segmentation, ROWS), atol=5e-6, rtol=0)
    assert_close(found.sink, eager(family)[:, :, ROWS, 0].movedim(2, 0), atol=5e-6, rtol=0)
    assert_close(found.fractions.sum(-1), torch.ones(3, 3, 4), atol=1e-6, rtol=0)
    assert found.deviation == float((found.fractions.sum(-1) - 1).abs().max())


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2", "bloom"])
def test_every_backend_gives_the_same_numbers_and_the_same_flags(family, kind):
    other = Model("tiny", made(family, kind), None, "")
    segmentation = blocks(3, 9, 18)
    expected, found = (attention_fractions(m, ids(), segmentation, rows=ROWS) for m in (model(family), other))
    assert_close(found.fractions, expected.fractions, atol=5e-6, rtol=0)
    assert_close(found.sink, expected.sink, atol=5e-6, rtol=0)
    assert torch.equal(found.outside_window, expected.outside_window)


def test_a_model_that_attends_evenly_gives_each_region_its_share_of_the_keys():
    """Planted: without queries every score is 0, so a fraction is a count of keys."""
    flat: Any = tiny("llama")
    for layer in flat.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    segmentation = segmented()
    found = attention_fractions(wrap(flat, None, verify=False), ids(), segmentation, rows=ROWS)
    counts = torch.stack([segmentation.one_hot()[: row + 1].sum(0) for row in ROWS])
    assert torch.equal(found.n_keys, counts.long())
    shares = counts / torch.tensor(ROWS)[:, None].add(1)
    assert_close(found.fractions, shares[:, None, None].expand(-1, 3, 4, -1), atol=1e-6, rtol=0)
    assert_close(found.sink, (1 / torch.tensor(ROWS).add(1.0))[:, None, None].expand(-1, 3, 4))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_fault_111_fractions_of_bfloat16_sum_to_one_in_fp32(family):
    narrow = wrap(tiny(family).to(torch.bfloat16), None)
    found = attention_fractions(narrow, ids(), segmented(), rows=range(N))
    assert found.fractions.dtype == torch.float32 and found.dtype == "bfloat16"
    assert found.deviation < 1e-6


def test_a_region_of_the_users_takes_from_the_others_what_it_gets():
    before = segmented()
    after = before.with_region("mine", [4, 11, 12])
    one, other = (attention_fractions(model("llama"), ids(), s, rows=ROWS) for s in (before, after))
    assert other.regions == ("a", "b", "c", "mine")
    taken = (one.fractions - other.fractions[..., :3]).sum(-1)
    assert_close(other.fractions[..., 3], taken, atol=2e-6, rtol=0)
    assert_close(other.fractions.sum(-1), torch.ones(3, 3, 4), atol=1e-6, rtol=0)


@pytest.mark.real
def test_fault_062_both_segmentations_of_a_real_chat(real, real_hf):
    """A and B of methods 9.4 on one answer: B takes from A what its specials hold, and the sink is one."""
    prompt = real.chat("What is the sea?", system="You are a librarian.")
    answer = real.tokenizer("Salt water.\n\nAnd fish.", add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([*prompt.tokens[0].tolist(), *answer])
    marks = token_marks(real.tokenizer, torch.tensor(answer))
    a = prompt.segmentation.extended(len(answer), "answer", marks)
    rows = {"first": prompt.last, "end": -1}
    of_a = attention_fractions(real, tokens, a, rows=rows)
    of_b = attention_fractions(real, tokens, a.content_only(), rows=rows)
    own: Any = twin(real_hf)
    own.set_attn_implementation("eager")
    weights = torch.stack(own(tokens[None], output_attentions=True, use_cache=False).attentions)[:, 0]
    expected = torch.einsum("lhrk,kg->rlhg", weights[:, :, [prompt.last, -1]], a.one_hot())
    assert_close(of_a.fractions, expected, atol=5e-6, rtol=0)
    moved = sum(of_a.fractions[..., i] - of_b.fractions[..., i] for i in range(len(a.names)))
    specials = of_b.fractions[..., of_b.regions.index("specials")]
    assert_close(specials, moved, atol=2e-6, rtol=0)
    assert (specials >= of_b.sink - 1e-6).all(), "position 0 is <|im_start|>, which is special"
    assert float(of_b.sink[1].mean()) > 0.2, "this model rests on its first token"
    assert of_a.deviation < 1e-5 and of_b.deviation < 1e-5


# what runs --------------------------------------------------------------------------------------------------


def test_tokens_behind_the_last_row_are_neither_run_nor_read():
    seen = []
    body: Any = shared("llama")
    handle = body.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    try:
        first = attention_fractions(model("llama"), ids(), blocks(5, 25), rows=[12, 3])
        other = torch.cat([ids()[:13], ids(17, seed=9)])
        second = attention_fractions(model("llama"), other, blocks(5, 25), rows=[12, 3])
    finally:
        handle.remove()
    assert seen == [(1, 13), (1, 13)]
    assert torch.equal(first.fractions, second.fractions)


def test_nothing_runs_behind_the_last_rows():
    """No layer above the last one asked, not even the rest of that one, and no unembedding."""
    ran = []
    body: Any = shared("llama")
    parts = {"0": body.model.layers[0].mlp, "1": body.model.layers[1].mlp, "2": body.model.layers[2],
             "head": body.lm_head, "norm": body.model.norm}  # fmt: skip
    hooks = [m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in parts.items()]
    try:
        some = attention_fractions(model("llama"), ids(), segmented(), rows=ROWS, layers=[1, 0])
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == ["0"]
    every = attention_fractions(model("llama"), ids(), segmented(), rows=ROWS)
    assert some.layers == (0, 1) and torch.equal(some.fractions, every.fractions[:, :2])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_many_rows_are_made_a_block_at_a_time(family, monkeypatch):
    """All rows of a text at once would be T x T; no more than a block of them ever exists."""
    sizes = []
    rows = attention_rows.rows

    def noted(call, slots, pad_left):
        sizes.append(slots.shape[1])
        return rows(call, slots, pad_left)

    monkeypatch.setattr(attention_rows, "rows", noted)
    monkeypatch.setattr(hf, "BLOCK", 8)
    found = attention_fractions(model(family), ids(), segmented(), rows=range(N))
    assert sizes == [8, 8, 8, 6] * 3
    assert_close(found.fractions, naive(family, segmented(), list(range(N))), atol=5e-6, rtol=0)


# many at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_any_batch_gives_what_each_example_gives_alone(family, monkeypatch):
    monkeypatch.setattr(attention_batch, "SLOTS", 64)
    lengths = [9, 30, 12, 25, 11, 30, 70]
    examples = [ids(n, seed=n) for n in lengths]
    layouts = [[segmented(n, "ab", n), segmented(n, "abcde"[: 2 + n % 4], n + 1)] for n in lengths]
    rows = [[n - 1, n // 2, 3][: 1 + n % 3] for n in lengths]
    together = fractions_of(model(family), examples, layouts, rows)
    for example, layout, asked, found in zip(examples, layouts, rows, together, strict=True):
        for segmentation, values in zip(layout, found.values, strict=True):
            alone = fractions_of(model(family), [example], [[segmentation]], [asked])[0]
            assert values.shape == (len(asked), 3, 4, len(segmentation.names))
            assert_close(values, alone.values[0], atol=2e-6, rtol=0)
            assert_close(found.sink, alone.sink, atol=2e-6, rtol=0)
        assert max(found.deviations) < 1e-6


def test_batches_hold_every_example_once_and_no_more_slots_than_allowed(monkeypatch):
    monkeypatch.setattr(attention_batch, "SLOTS", 100)
    lengths = [3, 40, 41, 7, 150, 33, 33, 33, 9]
    packed = attention_batch._batches(lengths)
    assert sorted(i for batch in packed for i in batch) == list(range(len(lengths)))
    for batch in packed:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100
    assert len(packed) == 4


def test_an_example_does_not_see_another_examples_regions():
    """Right padding belongs to no region, and each row of a batch has columns of its own."""
    layouts = [[blocks(4, 6)], [blocks(20, 10)]]
    found = fractions_of(model("llama"), [ids(10), ids()], layouts, [[9], [29]])
    assert_close(found[0].values[0], naive_of(ids(10), layouts[0][0], [9]), atol=5e-6, rtol=0)
    assert_close(found[1].values[0], naive_of(ids(), layouts[1][0], [29]), atol=5e-6, rtol=0)


def naive_of(tokens: torch.Tensor, segmentation: Segmentation, rows: list[int]) -> torch.Tensor:
    own: Any = twin(shared("llama"))
    own.set_attn_implementation("eager")
    weights = torch.stack(own(tokens[None], output_attentions=True, use_cache=False).attentions)[:, 0]
    return torch.einsum("lhrk,kg->rlhg", weights[:, :, rows], segmentation.one_hot())


# windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "llama"])
def test_fault_059_a_region_outside_a_sliding_window_is_flagged_and_no_zero(family):
    segmentation = blocks(1, 11, 18)
    found = attention_fractions(model(family), ids(), segmentation, rows=[6, 19, 29])
    kinds = getattr(model(family).backend.config, "layer_types", None) or ["sliding_attention"] * 3
    table = found.to_dataframe().set_index(["row", "layer", "region"])
    for layer, kind in enumerate(kinds):
        sliding = kind == "sliding_attention" and family != "llama"
        outside = {("6", "a"): False, ("19", "a"): True, ("19", "b"): True, ("29", "b"): True}
        outside |= {("6", "b"): False, ("29", "c"): False, ("6", "c"): False}
        for (row, region), wanted in outside.items():
            line = table.loc[(row, layer, region)]
            assert bool(line.outside_window) == (wanted and sliding), (row, layer, region)
            assert math.isnan(line.fraction) == (wanted and sliding)
        assert math.isnan(table.loc[("29", layer, "a")].sink) == sliding
    assert table.loc[("6", 0, "c")].fraction == 0.0, "not there yet is nothing, and no matter of windows"
    assert found.heads_to_dataframe().fraction.isna().sum() == 4 * table.fraction.isna().sum()


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_flags_are_where_the_kernel_gives_nothing(family):
    """A window is as wide as the kernel's own: one position is in it, or gets no attention."""
    each = Segmentation(tuple(map(str, range(N))), torch.arange(N), torch.zeros(N, dtype=torch.bool))
    found = attention_fractions(model(family), ids(), each, rows=[0, 7, 8, 29])
    seen = found.n_keys.bool()[:, None].expand_as(found.outside_window)
    nothing = found.fractions.eq(0).all(2) & seen
    assert torch.equal(found.outside_window, nothing) and found.outside_window.any()
    assert torch.equal(found.sink_outside_window, found.outside_window[..., 0])


# rows by name -----------------------------------------------------------------------------------------------

MARKER = Occurrence(emit=20, token=21, end=24, ids=(5, 6, 7), complete=True, variant="[Z|LT|]")


def test_emit_has_not_read_the_marker_and_token_has():
    other = ids().clone()
    other[21] = (other[21] + 1) % 211
    one, two = (
        attention_fractions(model("llama"), t, segmented(), rows=marker_rows(MARKER, "both"))
        for t in (ids(), other)
    )
    assert one.row_names == ("emit", "token") and one.positions == (20, 21)
    emit, token = one.row("emit"), one.row("token")
    assert torch.equal(one.fractions[emit], two.fractions[emit])
    assert not torch.allclose(one.fractions[token], two.fractions[token], atol=1e-4)


def test_emit_is_the_default_and_rows_keep_their_names():
    assert marker_rows(MARKER) == {"emit": 20} and marker_rows(MARKER, "token") == {"token": 21}
    with pytest.raises(ValueError, match="'emit', 'token' or 'both'"):
        marker_rows(MARKER, "timestep")  # type: ignore
    found = attention_fractions(model("llama"), ids(), segmented(), rows={"late": -1, "early": 2})
    table = found.to_dataframe()
    assert dict(zip(table.row, table.position, strict=True)) == {"late": 29, "early": 2}
    plain = attention_fractions(model("llama"), ids(), segmented(), rows=[29, 2])
    assert torch.equal(found.fractions, plain.fractions) and plain.row_names == ("29", "2")
    with pytest.raises(KeyError, match="late, early"):
        found.row("emit")


# the result -------------------------------------------------------------------------------------------------


def test_tables_hold_every_number_once():
    found = attention_fractions(model("qwen2"), ids(), segmented(), rows=ROWS)
    heads = found.heads_to_dataframe()
    assert len(heads) == found.fractions.numel()
    for (row, layer, head, region), part in heads.groupby(["row", "layer", "head", "region"]):
        at = (found.row(row), layer, head)
        assert float(part.fraction.iloc[0]) == float(found.fractions[(*at, found.regions.index(region))])
        assert float(part.sink.iloc[0]) == float(found.sink[at])
    means = found.to_dataframe()
    assert len(means) == found.fractions[:, :, 0].numel() and set(means["head"]) == {"mean"}
    grouped = heads.groupby(["row", "layer", "region"]).fraction.mean()
    both = means.set_index(["row", "layer", "region"]).fraction
    assert (grouped - both.loc[grouped.index]).abs().max() < 1e-6


def test_a_saved_result_comes_back_bit_for_bit(tmp_path):
    found = attention_fractions(model("mistral"), ids(), segmented(), rows={"emit": 9})
    again = load_result(found.save(tmp_path))
    assert again.digest() == found.digest() and again.to_dataframe().equals(found.to_dataframe())


def test_the_figure_has_a_line_a_region_and_the_sink_dashed():
    segmentation = blocks(5, 15, 10).with_region("empty", [])
    found = attention_fractions(model("mistral"), ids(), segmentation, rows={"x": 10, "y": 24})
    figure = found.figure("y")
    named = {trace.name: trace for trace in figure.data}  # type: ignore
    assert set(named) == {"b", "c", "sink (position 0; in a region too)"}, "a lies outside every window"
    dashed = [name for name, trace in named.items() if trace.line.dash == "dash"]
    assert dashed == ["sink (position 0; in a region too)"]
    assert named[dashed[0]].y == (None, None, None)
    assert "sliding window" in figure.layout.meta["subtitle"]
    first = {trace.name: trace for trace in found.figure().data}  # type: ignore
    assert list(first["b"].y) == found.fractions[0, :, :, 1].mean(1).tolist() and "c" not in first


def test_fractions_are_renormalised_only_on_request():
    """BLOOM rounds its own rows to bfloat16: their sums miss 1 by more than rounding in fp32 would."""
    narrow = wrap(tiny("bloom").to(torch.bfloat16), None)
    found = attention_fractions(narrow, ids(), segmented(), rows=range(N))
    sums = found.fractions.sum(-1)
    assert 1e-4 < found.deviation < 5e-3 and found.deviation == float((sums - 1).abs().max())
    scaled = found.renormalised()
    assert_close(scaled.fractions.sum(-1), torch.ones_like(sums), atol=1e-6, rtol=0)
    assert_close(scaled.fractions * sums[..., None], found.fractions)
    assert_close(scaled.sink * sums, found.sink)
    assert scaled.renormalised_to_one and not found.renormalised_to_one
    assert scaled.deviation == found.deviation, "what was read stays on record"


@pytest.mark.parametrize("off", [6e-3, -6e-3, math.nan])
def test_a_partition_that_misses_one_is_an_error(off):
    example = attention_batch._Example(ids(4), (3,), torch.ones(4, 3), (2,))
    good = torch.full((1, 3, 4, 3), 0.5)
    assert attention_batch._split(example, good, 0).deviations == (0.0,)
    assert attention_batch._split(example, good * 1.004, 0).deviations[0] == pytest.approx(4e-3, abs=1e-6)
    with pytest.raises(FloatingPointError, match="example 7 add up to 1 within"):
        attention_batch._split(example, good * (1 + off), 7)


# refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"rows": [30]}, IndexError, "positions 0..29; there is no row 30"),
        ({"rows": [-2]}, IndexError, "there is no row -2"),
        ({"rows": []}, ValueError, "name at least one position"),
        ({"rows": [True]}, TypeError, "a row must be an integer"),
        ({"layers": [3]}, IndexError, "layers 0..2"),
        ({"layers": []}, ValueError, "name at least one"),
        ({"segmentation": segmented(29)}, ValueError, "covers 29 positions .* extend it"),
        ({"tokens": ids().float()}, ValueError, "must be ids"),
        ({"tokens": ids().clone().fill_(211)}, ValueError, "outside 0..210"),
        ({"tokens": ids()[None].expand(2, -1)}, ValueError, "one text"),
        ({"tokens": ids(200), "segmentation": segmented(200), "rows": [199]}, ValueError, "160 positions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_before_any_compute(change, error, said):
    ran = []
    asked: dict[str, Any] = {"tokens": ids(), "segmentation": segmented(), "rows": ROWS, **change}
    body: Any = shared("llama")
    handle = body.register_forward_pre_hook(lambda *_: ran.append(1))
    inner = body.model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(error, match=said):
            attention_fractions(model("llama"), asked.pop("tokens"), asked.pop("segmentation"), **asked)
    finally:
        handle.remove()
        inner.remove()
    assert not ran


def test_lists_of_different_lengths_are_refused_and_none_is_none():
    with pytest.raises(ValueError, match="2 examples need as many lists of segmentations"):
        fractions_of(model("llama"), [ids(), ids()], [[segmented()]], [[1], [2]])
    with pytest.raises(ValueError, match="example 0 has no segmentation"):
        fractions_of(model("llama"), [ids()], [[]], [[1]])
    assert fractions_of(model("llama"), [], [], []) == []


def test_the_public_names_are_these():
    assert probes.attention_fractions is attention_fractions and probes.fractions_of is fractions_of
