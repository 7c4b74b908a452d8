"""Edits as pure functions of rows: algebra, places, schedules, dtypes; no model."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mechinterp.edit_checks import check
from mechinterp.interventions import (
    Add,
    Apply,
    At,
    Clamp,
    Constant,
    Everywhere,
    FirstN,
    From,
    Generated,
    InPrompt,
    InRegion,
    Intervention,
    Newest,
    ProjectOut,
    Ramp,
    Replace,
    Rotate,
    Rows,
    WholePrompt,
)
from mechinterp.sites import NAMES, WRITABLE, Site

SITE = Site("resid_post", 1)
SEEDS = st.integers(0, 10_000)
D = 12


def rows(n_batch: int = 2, n: int = 5, pad: tuple[int, ...] = (0, 0), prompt: int = 3) -> Rows:
    """Slots 0..n-1, `pad` of them padding on the left of each row; prompts of `prompt` tokens."""
    position = torch.arange(n)[None] - torch.tensor(pad)[:, None]
    return Rows(position.expand(n_batch, -1), position - (prompt - 1), position >= 0)


def random(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edits(vector: torch.Tensor, **options) -> list[Intervention]:
    return [
        Add(SITE, vector, **options),
        Replace(SITE, vector, **options),
        ProjectOut(SITE, vector, **options),
        Clamp(SITE, vector, -0.1, 0.1, **options),
        Rotate(SITE, vector, 0.3, **options),
        Apply(SITE, lambda x: 2 * x, **options),
    ]


# algebra ----------------------------------------------------------------------------------------------------


def test_strength_zero_returns_the_very_same_object():
    x = random(0, 2, 5, D)
    for edit in edits(random(1, D), strength=0.0):
        assert edit.edit(x, rows()) is x


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, strength=st.floats(-5, 5))
def test_add_is_a_sum(seed, strength):
    x, v = random(seed, 2, 5, D), random(seed + 1, D)
    assert_close(Add(SITE, v, strength=strength).edit(x, rows()), x + strength * v)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, angle=st.floats(-4, 4), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rotate_keeps_the_norm_and_turns_by_the_angle_up_to_the_direction(seed, angle, scale):
    x, v = random(seed, 2, 5, D, scale=scale), random(seed + 1, D)
    turned = Rotate(SITE, v, angle).edit(x, rows())
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)
    away = torch.cosine_similarity(x.double(), v.double(), dim=-1).acos()
    now = torch.cosine_similarity(turned.double(), v.double(), dim=-1).clamp(-1, 1).acos()
    assert_close(now, (away - angle).clamp(0, math.pi), atol=2e-3, rtol=0)


def test_rotate_stops_at_the_direction():
    x, v = random(0, 2, 5, D), random(1, D)
    expected = x.norm(dim=-1, keepdim=True) * v / v.norm()
    assert_close(Rotate(SITE, v, 10.0).edit(x, rows()), expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("angle", [0.5, -0.5, math.pi / 2])
def test_rotate_keeps_the_norm_where_x_is_parallel_or_opposite_to_the_direction(sign, angle):
    v = random(1, D)
    x = (sign * 3.7 * v).expand(2, 5, D)
    turned = Rotate(SITE, v, angle).edit(x, rows())
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    now = torch.cosine_similarity(turned, v.expand_as(turned), dim=-1).acos()
    start = 0.0 if sign > 0 else math.pi
    assert_close(now, torch.full_like(now, min(max(start - angle, 0.0), math.pi)), atol=2e-3, rtol=0)


def test_rotate_leaves_zero_rows_zero():
    assert Rotate(SITE, random(0, D), 0.4).edit(torch.zeros(2, 5, D), rows()).eq(0).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, low=st.floats(-2, 0), high=st.floats(0, 2))
def test_clamp_puts_the_projection_within_its_bounds_and_again_changes_nothing(seed, low, high):
    x, v = random(seed, 2, 5, D, scale=3), random(seed + 1, D)
    clamp = Clamp(SITE, v, low, high)
    once = clamp.edit(x, rows())
    along = once @ (v / v.norm())
    assert (along >= low - 1e-5).all() and (along <= high + 1e-5).all()
    assert_close(clamp.edit(once, rows()), once, atol=1e-5, rtol=1e-5)
    across = ProjectOut(SITE, v)
    assert_close(across.edit(once, rows()), across.edit(x, rows()), atol=1e-5, rtol=1e-5)


def test_clamp_leaves_rows_within_its_bounds_bit_for_bit():
    x = random(0, 2, 5, D)
    assert torch.equal(Clamp(SITE, random(1, D), -1e6, 1e6).edit(x, rows()), x)
    assert torch.equal(Clamp(SITE, random(1, D)).edit(x, rows()), x)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_project_out_leaves_no_projection_and_again_changes_nothing(seed):
    x, v = random(seed, 2, 5, D), random(seed + 1, D, scale=7)
    once = ProjectOut(SITE, v).edit(x, rows())
    assert_close(once @ v, torch.zeros(2, 5), atol=1e-4, rtol=0)
    assert_close(ProjectOut(SITE, v).edit(once, rows()), once, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_replace_at_full_strength_is_the_value_itself(dtype):
    value = random(1, D, scale=1e-3).to(dtype)
    out = Replace(SITE, value).edit(random(0, 2, 5, D, scale=1e3).to(dtype), rows())
    assert torch.equal(out, value.expand(2, 5, D)) and out.dtype == dtype


def test_apply_sees_the_chosen_rows_in_fp32_and_cannot_reach_the_activation():
    seen = []

    def spoil(x):
        seen.append((x.shape, x.dtype))
        return x.mul_(3)

    x = random(0, 2, 5, D).to(torch.bfloat16)
    kept = x.clone()
    half = Apply(SITE, spoil, where=At((1,)), strength=0.5).edit(x, rows())
    assert seen == [((2, D), torch.float32)] and torch.equal(x, kept)
    assert_close(half[:, 1], 2 * x[:, 1]), "half way to three times x is twice x"


def test_fault_022_a_function_of_the_wrong_shape_is_refused_at_the_hook():
    for wrong in (lambda x: x[:, :1], lambda x: None, lambda x: x.sum()):
        with pytest.raises(ValueError, match=r"must return \(10, 12\)"):
            Apply(SITE, wrong).edit(random(0, 2, 5, D), rows())


def test_edits_compose_in_the_order_given():
    x, v = random(0, 2, 5, D), random(1, D)
    add, out = Add(SITE, v), ProjectOut(SITE, v)
    added_last = add.edit(out.edit(x, rows()), rows())
    removed_last = out.edit(add.edit(x, rows()), rows())
    assert_close(added_last @ v, torch.full((2, 5), float(v @ v)), rtol=1e-4, atol=0)
    assert_close(removed_last @ v, torch.zeros(2, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fault_014_the_dtype_of_the_stream_stays_and_the_sum_is_rounded_once(dtype):
    x, v = random(0, 2, 5, D).to(dtype), random(1, D).double()
    for edit in edits(v):
        assert edit.edit(x, rows()).dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    expected = (x.to(wide) + 1.5 * v.to(wide)).to(dtype)
    assert torch.equal(Add(SITE, v, strength=1.5).edit(x, rows()), expected)


def test_nothing_of_the_users_is_changed():
    x, v = random(0, 2, 5, D), random(1, D)
    strength = torch.tensor([1.0, 2.0])
    before = [t.clone() for t in (x, v, strength)]
    for edit in edits(v, strength=strength):
        edit.edit(x, rows())
    assert all(torch.equal(a, b) for a, b in zip((x, v, strength), before, strict=True))


# places -----------------------------------------------------------------------------------------------------

LEFT = rows(pad=(0, 2), n=6)  # the second row has two padding slots, so its position 0 is slot 2


@pytest.mark.parametrize(
    "where,first,second",
    [
        (Everywhere(), [0, 1, 2, 3, 4, 5], [2, 3, 4, 5]),
        (At((0, 3)), [0, 3], [2, 5]),
        (From(2), [2, 3, 4, 5], [4, 5]),
        (InPrompt(), [0, 1], [2, 3]),
        (WholePrompt(), [0, 1, 2], [2, 3, 4]),
        (Generated(), [2, 3, 4, 5], [4, 5]),
        (Newest(), [5], [5]),
        (InRegion(torch.tensor([1, 2, 9])), [1, 2], [3, 4]),
    ],
)
def test_places_are_absolute_positions_under_left_padding(where, first, second):
    mask = where.mask(LEFT)
    assert mask[0].nonzero().flatten().tolist() == first and mask[1].nonzero().flatten().tolist() == second


@pytest.mark.parametrize(
    "where", [Everywhere(), At((0, 3, 4)), From(1), InPrompt(), Generated(), InRegion(torch.tensor([0, 4]))]
)
def test_a_chunk_of_slots_has_the_rows_that_the_whole_has_there(where):
    whole = where.mask(LEFT)
    parts = [
        where.mask(Rows(LEFT.position[:, s], LEFT.step[:, s], LEFT.real[:, s]))
        for s in (slice(0, 4), slice(4, 6))
    ]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_newest_under_right_padding_is_each_rows_last_token():
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    position = torch.arange(4).expand(2, -1)
    assert Newest().mask(Rows(position, position - 1, real)).int().argmax(1).tolist() == [3, 1]


def test_prompt_and_generated_part_the_rows():
    assert torch.equal(InPrompt().mask(LEFT) ^ Generated().mask(LEFT), LEFT.real)


def test_vectors_strengths_and_rows_can_differ_in_a_batch():
    x, vectors = random(0, 2, 5, D), random(1, 2, D)
    strength = torch.tensor([0.0, -2.0])
    out = Add(SITE, vectors, strength=strength).edit(x, rows())
    assert torch.equal(out[0], x[0])
    assert_close(out[1], x[1] - 2 * vectors[1])
    only = Add(SITE, vectors, batch_rows=(0,)).edit(x, rows())
    assert torch.equal(only[1], x[1])
    assert_close(only[0], x[0] + vectors[0])


def test_z_is_edited_by_head():
    x, v = random(0, 2, 5, 3, 4), random(1, 3, 4)
    site = Site("z", 0)
    assert_close(Add(site, v).edit(x, rows()), x + v)
    per_row = random(2, 2, 3, 4)
    assert_close(Add(site, per_row).edit(x, rows()), x + per_row[:, None])


# schedules --------------------------------------------------------------------------------------------------


def test_schedules_count_generated_tokens():
    step = torch.tensor([[-2, -1, 0, 1, 2, 3, 9]])
    assert Constant().factor(step).tolist() == [[1] * 7]
    assert FirstN(2).factor(step).tolist() == [[1, 1, 1, 1, 0, 0, 0]]
    assert Ramp(2, start=1.0, end=3.0).factor(step).tolist() == [[1, 1, 1, 2, 3, 3, 3]]
    assert Ramp(4).factor(step).tolist() == [[0, 0, 0, 0.25, 0.5, 0.75, 1]]


def test_a_scheduled_strength_is_the_product_and_zero_touches_nothing():
    x, v = random(0, 2, 5, D), random(1, D)
    edit = Add(SITE, v, strength=2.0, schedule=FirstN(1))
    out = edit.edit(x, rows(prompt=2))
    assert_close(out[:, :2], x[:, :2] + 2 * v)
    assert torch.equal(out[:, 2:], x[:, 2:]) and int(edit.mask(rows(prompt=2)).sum()) == 4


@pytest.mark.parametrize("wrong", [lambda: FirstN(-1), lambda: Ramp(0), lambda: Ramp(3, end=math.nan)])
def test_schedules_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="FirstN counts|Ramp.*n >= 1"):
        wrong()
    with pytest.raises(TypeError, match="must be an integer"):
        FirstN(2.5)  # type: ignore[arg-type]


# bad input --------------------------------------------------------------------------------------------------

SHAPE, BATCH = (D,), 2


@pytest.mark.parametrize("shape", [(D + 1,), (1,), (), (1, D), (3, D), (D, 1), (2, 2, D)])
def test_fault_006_007_vectors_of_other_shapes_are_refused_with_both(shape):
    with pytest.raises(ValueError, match=r"has shape \(.*but the site holds \(12,\)"):
        check(Add(SITE, torch.ones(shape)), SHAPE, BATCH)


def test_fault_008_a_stack_of_layers_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="index it with a layer first"):
        check(Add(SITE, torch.ones(30, D)), SHAPE, BATCH)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fault_009_vectors_that_are_not_finite_are_refused(bad):
    v = torch.ones(D)
    v[3] = bad
    for edit in edits(v)[:5]:
        with pytest.raises(ValueError, match="NaN or infinity"):
            check(edit, SHAPE, BATCH)


def test_fault_010_a_direction_of_norm_zero_is_refused_and_a_zero_summand_is_not():
    for edit in edits(torch.zeros(D))[2:5]:
        with pytest.raises(ValueError, match="norm zero"):
            check(edit, SHAPE, BATCH)
    per_row = torch.stack([torch.ones(D), torch.zeros(D)])
    with pytest.raises(ValueError, match="norm zero"):
        check(ProjectOut(SITE, per_row), SHAPE, BATCH)
    check(Add(SITE, torch.zeros(D)), SHAPE, BATCH)


@pytest.mark.parametrize(
    "strength,kind",
    [(None, TypeError), ("2", TypeError), (True, TypeError), (math.nan, ValueError), (math.inf, ValueError)],
)
def test_fault_013_strengths_that_are_no_numbers_are_refused(strength, kind):
    with pytest.raises(kind, match="strength must be"):
        check(Add(SITE, torch.ones(D), strength=strength), SHAPE, BATCH)


def test_fault_013_negative_and_numpy_strengths_are_numbers():
    import numpy as np

    for strength in (-3, -3.0, np.float32(-3), np.int64(-3), torch.tensor([-3.0, -3.0])):
        edit = Add(SITE, torch.ones(D), strength=strength)
        check(edit, SHAPE, BATCH)
        assert_close(edit.edit(torch.zeros(2, 5, D), rows()), torch.full((2, 5, D), -3.0))


def test_a_strength_for_each_row_must_fit_the_batch():
    for shape in ((3,), (), (2, 1)):
        with pytest.raises(ValueError, match="one for each of 2 rows"):
            check(Add(SITE, torch.ones(D), strength=torch.ones(shape)), SHAPE, BATCH)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in WRITABLE])
def test_fault_024_sites_that_cannot_be_written_are_refused_with_those_that_can(name):
    with pytest.raises(ValueError, match="can be read, not written; the writable sites are resid_pre, z"):
        check(Add(Site(name, 0), torch.ones(D)), SHAPE, BATCH)


@pytest.mark.parametrize(
    "edit,kind,says",
    [
        (Add(SITE, [1.0] * D), TypeError, "must be a tensor, not list"),
        (Add(SITE, torch.ones(D), where=3), TypeError, "where must be"),
        (Add(SITE, torch.ones(D), where=At(3)), TypeError, r"At\(\(3,\)\)"),
        (Add(SITE, torch.ones(D), schedule=2), TypeError, "schedule must be"),
        (
            Add(SITE, torch.ones(D), batch_rows=(0, 2)),
            ValueError,
            r"\(0, 2\) are not all within the batch of 2",
        ),
        (Add(SITE, torch.ones(D), batch_rows=(True,)), TypeError, "must be an integer"),
        (Clamp(SITE, torch.ones(D), 2.0, 1.0), ValueError, "low <= high"),
        (Clamp(SITE, torch.ones(D), math.nan), ValueError, "low <= high"),
        (Rotate(SITE, torch.ones(D), math.nan), ValueError, "finite angle"),
        ("add", TypeError, "is no intervention"),
    ],
)
def test_other_parts_that_cannot_act_are_refused(edit, kind, says):
    with pytest.raises(kind, match=says):
        check(edit, SHAPE, BATCH)


def test_the_base_class_is_no_edit():
    with pytest.raises(TypeError, match="is no edit"):
        Intervention(SITE).edit(random(0, 2, 5, D), rows())
