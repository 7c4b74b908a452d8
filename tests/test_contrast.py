"""Contrast vectors: identities, planted truths, round trips, the catalogue's faults, and the real model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mechinterp.chat import Prompt
from mechinterp.directions import cosine, projection, split_half_cosine
from mechinterp.gather import gather
from mechinterp.loading import wrap
from mechinterp.results import load_result
from mechinterp.segmentation import Segmentation
from mechinterp.sites import Site
from probes.contrast import LastToken, MeanOver, contrast_vectors, positions_of
from probes.vectors import load_vectors, save_vectors
from tests.architectures import shared

NAMES = ("system", "user", "assistant_header", "answer")
MARKER = 7


@pytest.fixture(scope="module")
def model():
    return wrap(shared("llama"), None, name="llama")


def prompt(*regions: list[int], template: str | None = None) -> Prompt:
    """A prompt of ids by region, in the order of NAMES; the first id of each is markup, save the answer's."""
    ids = [i for region in regions for i in region]
    region = [k for k, part in enumerate(regions) for _ in part]
    special = [
        bool(at == 0 or k == 2) and k != 3 for k, part in enumerate(regions) for at in range(len(part))
    ]
    segmentation = Segmentation(
        NAMES, torch.tensor(region, dtype=torch.long), torch.tensor(special, dtype=torch.bool)
    )
    return Prompt(torch.tensor([ids], dtype=torch.long), segmentation, "", (), template)


def asked(system: list[int], n: int, seed: int = 0) -> list[Prompt]:
    """Prompts that share a system text and differ in the question; the same questions for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    questions = [torch.randint(30, 200, (6,), generator=generator).tolist() for _ in range(n)]
    return [prompt([2, *system], [3, *question], [4, 5]) for question in questions]


def two_sets(n: int, m: int | None = None) -> tuple[list[Prompt], list[Prompt]]:
    return asked([MARKER] * 8, n), asked([9] * 8, n if m is None else m)


def every_layer(model) -> list[Site]:
    return [Site("resid_post", layer) for layer in range(model.dims.n_layers)]


# positions ----------------------------------------------------------------------------------------


def test_last_token_is_the_last_position_and_a_region_is_read_without_its_template_text():
    one = prompt([2, 10, 11], [3, 12], [4, 5], [13, 14])
    assert positions_of(one, LastToken()).tolist() == [8]
    assert positions_of(one, MeanOver("system")).tolist() == [1, 2]
    assert positions_of(one, MeanOver("user")).tolist() == [4]
    assert positions_of(one, MeanOver("answer")).tolist() == [7, 8]


def test_an_empty_unknown_or_textless_region_names_those_that_have_text():
    one = prompt([2, 10], [3, 12], [4, 5])
    for region in ("answer", "assistant_header", "marker"):
        with pytest.raises(ValueError, match=f"'{region}'.*with text are system, user"):
            positions_of(one, MeanOver(region))
    with pytest.raises(TypeError, match="LastToken"):
        positions_of(one, "last")


# values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [LastToken(), MeanOver("user"), MeanOver("system")])
def test_it_is_the_difference_of_the_means_of_plain_passes(model, position):
    a, b = two_sets(4, 3)
    found = contrast_vectors(model, a, b, position=position)

    def mean(prompts):
        rows = []
        for one in prompts:
            seen = model.forward(one.tokens, capture=every_layer(model))
            at = positions_of(one, position)
            rows.append(torch.stack([seen[s][0, at].mean(0) for s in every_layer(model)]))
        return torch.stack(rows)

    assert_close(found.values, mean(a).mean(0) - mean(b).mean(0), atol=2e-5, rtol=1e-4)
    assert_close(found.positive, mean(a), atol=2e-5, rtol=1e-4)
    assert_close(found.negative, mean(b), atol=2e-5, rtol=1e-4)
    assert_close(found.norm, found.values.norm(dim=-1))
    assert found.values.dtype == torch.float32


def test_swapping_the_sides_turns_the_vector_round(model):
    a, b = two_sets(4)
    there, back = contrast_vectors(model, a, b), contrast_vectors(model, b, a)
    assert_close(there.values, -back.values, atol=1e-5, rtol=1e-4)
    assert_close(there.split_half, back.split_half, atol=1e-4, rtol=0)


def test_layers_are_asked_for_by_number_in_the_order_given(model):
    a, b = two_sets(3)
    whole, part = contrast_vectors(model, a, b), contrast_vectors(model, a, b, layers=[2, np.int64(0)])
    assert part.layers == (2, 0) and part.values.shape == (2, model.dims.d_model)
    for layer in (2, 0):
        assert_close(part[layer], whole[layer], atol=2e-5, rtol=1e-4)
    with pytest.raises(IndexError, match="the layers are 2, 0"):
        part[1]


def test_no_logits_are_computed_and_no_layer_above_the_deepest_asked_runs(model):
    a, b = two_sets(2)
    calls = []
    hf_model = model.backend.model
    hooks = [
        m.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, m in hf_model.named_modules()
    ]
    contrast_vectors(model, a, b, layers=[1])
    for hook in hooks:
        hook.remove()
    assert "model.layers.1" in calls and "model.layers.2.mlp" not in calls and "lm_head" not in calls


def test_pca_finds_the_planted_direction_among_pairs_that_share_large_noise(model):
    a, b = two_sets(6)
    found = contrast_vectors(model, a, b, method="pca_of_differences")
    plain = contrast_vectors(model, a, b)
    assert_close(found.values.norm(dim=-1), torch.ones(model.dims.n_layers))
    assert ((found.values * plain.values).sum(-1) > 0).all(), "signed to agree with the mean difference"
    top = torch.linalg.svd(found.positive[:, 1] - found.negative[:, 1]).Vh[0]
    assert_close(cosine(found[1], top).abs(), torch.tensor(1.0))
    assert_close(found.norm, plain.norm)
    assert found.vectors("marker").passport.norm_units == "unit"
    with pytest.raises(ValueError, match="pairs, not 6 and 5"):
        contrast_vectors(model, a, b[:5], method="pca_of_differences")


# how far it can be trusted ------------------------------------------------------------------------


def test_paired_split_halves_are_those_of_the_paired_differences(model):
    a, b = two_sets(2)  # two prompts have one split
    found = contrast_vectors(model, a, b)
    expected = split_half_cosine(found.positive - found.negative, torch.Generator().manual_seed(1))
    assert_close(found.split_half, expected.mean(0), atol=1e-5, rtol=0)


def test_sets_of_different_size_are_split_each_for_itself(model):
    a, b = two_sets(12, 7)
    found = contrast_vectors(model, a, b)
    assert found.splits.shape == (100, model.dims.n_layers)
    assert (found.split_half > 0.5).all(), "another system text is a difference that both halves see"


def test_a_real_difference_beats_its_null_and_two_draws_of_one_set_do_not(model):
    a, b = two_sets(8)
    found = contrast_vectors(model, a, b)
    assert (found.p[1:] < 0.02).all() and (found.null_percentile[1:] > 99).all()
    same = contrast_vectors(model, asked([9] * 8, 8, seed=1), asked([9] * 8, 8, seed=2))
    assert (same.p > 0.02).all() and (same.null_percentile < 99).all()
    assert (same.split_half < found.split_half).all()


def test_the_seed_moves_only_what_is_drawn(model):
    a, b = two_sets(5)
    first, again, other = (contrast_vectors(model, a, b, seed=seed) for seed in (0, 0, 1))
    assert first.digest() == again.digest()
    assert torch.equal(first.values, other.values) and not torch.equal(first.null, other.null)
    assert not torch.equal(first.splits, other.splits)


def test_fault_016_one_prompt_a_side_gives_a_vector_and_says_what_it_cannot(model):
    a, b = two_sets(1)
    found = contrast_vectors(model, a, b)
    assert found.values.isfinite().all()
    assert found.split_half.isnan().all() and found.p.isnan().all() and found.null_percentile.isnan().all()
    assert any("n = 1" in note for note in found.notes)
    passport = found.vectors("marker").passport
    assert passport.n_target == 1 and passport.split_half == ((None,) * 3,)
    one_side = contrast_vectors(model, a, two_sets(6)[1])
    assert one_side.p.isfinite().all() and one_side.split_half.isnan().all()
    assert any("n = 1" in note for note in one_side.notes)


def test_fault_016_no_prompts_are_refused_and_unequal_sets_keep_their_counts(model):
    a, b = two_sets(3, 2)
    for positive, negative, side in (([], b, "positive"), (a, [], "negative")):
        with pytest.raises(ValueError, match=f"{side} holds no prompts"):
            contrast_vectors(model, positive, negative)
    passport = contrast_vectors(model, a, b).vectors("marker").passport
    assert (passport.n_target, passport.n_reference) == (3, 2)


@pytest.mark.parametrize("method", ["mean_difference", "pca_of_differences"])
def test_fault_015_identical_sets_are_a_zero_contrast_whatever_batch_they_ran_in(model, method):
    a = asked([MARKER] * 8, 5)
    for same in (a, list(reversed(a))):
        with pytest.raises(ValueError, match="contrast is zero"):
            contrast_vectors(model, a, same, method=method)


def test_fault_015_equal_prompts_run_once_so_their_rows_are_equal_bit_for_bit_in_any_dtype(model):
    a, one, other = asked([MARKER] * 8, 3), prompt([2], [3], [4, 5]), prompt([2], [3], [4, 6])
    rows = []
    hook = model.backend.model.model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: rows.append(len(inputs[0]))
    )
    contrast_vectors(model, [*a, one], [other])
    without_copies = sum(rows)
    found = contrast_vectors(model, [*a, *a, one], [*a, other])
    hook.remove()
    assert sum(rows) == 2 * without_copies
    assert torch.equal(found.positive[:3], found.negative[:3])
    assert torch.equal(found.positive[3:6], found.negative[:3])


# refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers, kind, match", [
    ([3], IndexError, "layers 0..2"),  # fault 1
    ([-1], IndexError, "layers 0..2"),  # fault 2
    ([1.0], TypeError, "integer"),  # fault 3
    ([True], TypeError, "integer"),
    (["1"], TypeError, "integer"),
    ([], ValueError, "no layers"),  # fault 4
    ([1, 1], ValueError, "repeat"),
])  # fmt: skip
def test_fault_001_002_003_004_layers_that_are_none(model, layers, kind, match):
    a, b = two_sets(1)
    with pytest.raises(kind, match=match):
        contrast_vectors(model, a, b, layers=layers)


def test_fault_027_028_an_empty_prompt_is_refused_by_its_number_and_one_of_controls_alone_is_read(model):
    a, b = two_sets(2)
    with pytest.raises(ValueError, match="prompt 1 of negative: the prompt holds no tokens"):
        contrast_vectors(model, a, [b[0], prompt([], [], [])])
    assert contrast_vectors(model, a, [prompt([2], [3], [4, 5])]).values.isfinite().all()


def test_fault_047_a_prompt_beyond_the_context_is_refused_by_its_number(model):
    a, b = two_sets(2)
    with pytest.raises(ValueError, match="prompt 2 of positive has 164 tokens"):
        contrast_vectors(model, [*a, prompt([2], [3] * 161, [4, 5])], b)


def test_what_is_no_prompt_site_or_method_is_refused_with_what_to_write(model):
    a, b = two_sets(2)
    with pytest.raises(TypeError, match="prompt 0 of positive is a str.*model.chat"):
        contrast_vectors(model, ["hello"], b)
    with pytest.raises(TypeError, match="positive is one prompt"):
        contrast_vectors(model, a[0], b, method="pca_of_differences")
    with pytest.raises(TypeError, match="negative is one prompt"):
        contrast_vectors(model, a, b[0])
    with pytest.raises(ValueError, match="resid_pre.*not 'z'"):
        contrast_vectors(model, a, b, site="z")
    with pytest.raises(ValueError, match="mean_difference"):
        contrast_vectors(model, a, b, method="mean")
    with pytest.raises(ValueError, match="prompt 0 of positive: .*'answer'.*system, user"):
        contrast_vectors(model, a, b, position=MeanOver("answer"))


# what is kept -------------------------------------------------------------------------------------


def test_the_result_and_the_vectors_come_back_bit_for_bit(model, tmp_path):
    for n in (1, 4):  # one prompt a side leaves tensors without rows, and NaN
        found = contrast_vectors(model, *two_sets(n))
        back = load_result(found.save(tmp_path / str(n)))
        assert back.digest() == found.digest() and torch.equal(back[2], found[2])
    vectors = found.vectors("marker")
    loaded = load_vectors(save_vectors(vectors, tmp_path / "marker.safetensors"))
    assert torch.equal(loaded["marker", 2], found[2]) and loaded.passport == vectors.passport


def test_the_passport_says_which_weights_prompts_and_positions(model):
    a, b = two_sets(3)
    found = contrast_vectors(model, a, b, site="attn_out", position=MeanOver("user"))
    passport = found.vectors("marker").passport
    assert (passport.model, passport.weights_sha256) == ("llama", model.weights_sha256)
    assert_close(torch.tensor(passport.split_half[0]), found.split_half)
    assert_close(torch.tensor(passport.null_percentile[0]), found.null_percentile)
    assert (passport.site, passport.positions, passport.method) == (
        "attn_out",
        "mean over user",
        "mean_difference",
    )
    digests = {
        contrast_vectors(model, *sets, position=position).source.prompts_digest
        for sets in ((a, b), (b, a), (a[:2], b), (a, b))
        for position in (LastToken(), MeanOver("user"))
    }
    assert len(digests) == 6, "other prompts, sides and positions have other digests, the same the same"


def test_templates_that_differ_and_prompts_that_end_in_an_answer_are_noted(model):
    a, b = two_sets(2)
    assert contrast_vectors(model, a, b).notes == ()
    mixed = contrast_vectors(model, [replace(one, template_sha256="t") for one in a], b)
    assert mixed.source.template_sha256 is None and "2 chat templates" in mixed.notes[0]
    alike = [[replace(one, template_sha256="t") for one in side] for side in (a, b)]
    assert contrast_vectors(model, *alike).source.template_sha256 == "t"
    answered = contrast_vectors(model, [prompt([2, 8], [3, 9], [4, 5], [10])], b)
    assert any("1 prompts end in an answer" in note for note in answered.notes)


@pytest.mark.parametrize("n", [1, 4])
def test_the_table_and_the_figure_say_what_was_measured(model, n):
    found = contrast_vectors(model, *two_sets(n), seed=3)
    frame = found.to_dataframe()
    assert list(frame.columns) == ["layer", "norm", "relative_norm", "split_half", "null_percentile", "p"]
    assert frame["layer"].tolist() == [0, 1, 2]
    assert_close(torch.tensor(frame["relative_norm"].to_numpy()), (found.norm / found.residual_norm).double())
    said = found.figure().layout.meta["subtitle"]
    for part in ("llama", f"n = {2 * n} prompts", "seed 3", f"{n} against {n}", "gen_prompt_last", "band"):
        assert part in said
    assert ("n = 1" in said) == (n == 1)


# the real model -----------------------------------------------------------------------------------

VILLAIN = "You are a villain who schemes to take over the world."
ASSISTANT = "You are a helpful assistant."
QUESTIONS = [
    "What is the meaning of life?", "How do plants grow?", "What should I eat today?", "How does rain form?",
    "What makes a good friend?", "How do I learn the piano?", "What is money?", "Why do people sleep?",
    "What do you plan for tomorrow?", "How are bridges built?", "What is your best book?", "Who are you?",
]  # fmt: skip


@pytest.mark.real
def test_villain_against_assistant_is_stable_and_separates_questions_that_it_never_saw(real):
    villain, assistant = (
        [real.chat(question, system=system) for question in QUESTIONS] for system in (VILLAIN, ASSISTANT)
    )
    found = contrast_vectors(real, villain[:8], assistant[:8])
    middle = slice(
        10, 21
    )  # above, the questions' own variance, which stays in the null, outgrows the contrast
    assert (found.split_half[middle] > 0.8).all() and (found.p[middle] < 0.02).all()
    assert found.source.template_sha256 == villain[0].template_sha256
    held_out = [one.tokens[0] for one in (*villain[8:], *assistant[8:])]
    sites = [Site("resid_post", layer) for layer in range(10, 21)]
    rows = gather(real, held_out, sites, [torch.tensor([len(ids) - 1]) for ids in held_out])
    for k, site in enumerate(sites):
        along = projection(rows[:, k], found[site.layer])
        assert along[:4].min() > along[4:].max(), f"layer {site.layer}"


@pytest.mark.real
def test_fault_029_prompts_without_a_template_are_read_too(real):
    one, other = (
        [real.chat(text, chat=False) for text in texts] for texts in (QUESTIONS[:3], QUESTIONS[3:6])
    )
    found = contrast_vectors(real, one, other, layers=[5], position=MeanOver("text"))
    assert found.source.template_sha256 is None and found[5].isfinite().all()
