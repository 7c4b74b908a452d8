"""Role vectors: identities between the two references, names that travel with rows, and what is refused."""

import pytest
import torch
from torch.testing import assert_close

from mechinterp.loading import wrap
from mechinterp.results import load_result
from probes.contrast import LastToken, MeanOver, contrast_vectors
from probes.roles import role_vectors
from probes.vectors import load_vectors, save_vectors
from tests.architectures import shared
from tests.test_contrast import asked, prompt

TEXTS = {"villain": [7] * 6, "assistant": [8] * 6, "bard": [9] * 6, "pirate": [10] * 6}


@pytest.fixture(scope="module")
def model():
    return wrap(shared("llama"), None, name="llama")


def prompts(n: int = 4) -> dict:
    return {name: asked(text, n) for name, text in TEXTS.items()}


@pytest.fixture(scope="module")
def against_control(model):
    return role_vectors(model, prompts(), control="assistant")


@pytest.fixture(scope="module")
def against_others(model):
    return role_vectors(model, prompts(), control="assistant", against="others")


def test_a_role_minus_the_control_is_the_contrast_of_their_prompts(model, against_control):
    sets = prompts()
    assert against_control.names == tuple(sets), "the mapping's order is the rows' order"
    for name in ("villain", "bard", "pirate"):
        pair = contrast_vectors(model, sets[name], sets["assistant"])
        for layer in range(model.dims.n_layers):
            assert_close(against_control[name, layer], pair[layer], atol=2e-5, rtol=1e-4)
        k = against_control.names.index(name)
        assert_close(against_control.norm[k], pair.norm, atol=2e-5, rtol=1e-4)


def test_the_control_minus_itself_is_exactly_zero_and_stays_out_of_the_vectors(against_control):
    k = against_control.names.index("assistant")
    assert against_control.values[k].count_nonzero() == 0
    assert against_control.split_half[k].isnan().all() and against_control.p[k].isnan().all()
    assert against_control.vectors().names == ("villain", "bard", "pirate")
    assert against_control.vectors().passport.reference == "assistant"


def test_minus_the_others_is_minus_the_mean_of_the_other_roles_without_the_control(against_others):
    means = {name: against_others.prompts_of(name).mean(0) for name in TEXTS}
    for name, others in (
        ("villain", ("bard", "pirate")),
        ("bard", ("villain", "pirate")),
        ("assistant", ("villain", "bard", "pirate")),
    ):
        expected = means[name] - torch.stack([means[other] for other in others]).mean(0)
        for layer in range(3):
            assert_close(against_others[name, layer], expected[layer], atol=2e-5, rtol=1e-4)
    assert against_others.p.isfinite().all(), "the control has a null too: it is compared with the roles"


def test_roles_minus_each_other_sum_to_zero(against_others):
    roles = [k for k, name in enumerate(TEXTS) if name != "assistant"]
    assert_close(against_others.values[roles].sum(0), torch.zeros(3, 64), atol=1e-4, rtol=0)


def test_what_is_said_of_a_role_against_the_others_does_not_depend_on_the_control(model):
    roles = {name: asked([9] * 6, 4, seed=seed) for seed, name in enumerate(("villain", "bard", "pirate"))}
    one, other = (
        role_vectors(model, roles | {"control": asked(text, 4)}, control="control", against="others")
        for text in ([8] * 6, [30, 31, 32])
    )
    for k in range(3):
        assert_close(one.values[k], other.values[k], atol=2e-5, rtol=1e-4)
        assert_close(one.null_percentile[k], other.null_percentile[k], atol=1.0, rtol=0)
        assert_close(one.split_half[k], other.split_half[k], atol=1e-3, rtol=0)
    assert (one.null_percentile[:3] < 99).any(), "roles of one text: their null is no foregone conclusion"


def test_both_references_are_of_the_same_activations(against_control, against_others):
    assert torch.equal(against_control.per_prompt, against_others.per_prompt)
    difference = against_control["villain", 1] - against_control["bard", 1]
    assert_close(
        difference, (against_others["villain", 1] - against_others["bard", 1]) * 2 / 3, atol=2e-5, rtol=1e-4
    )


def test_fault_of_the_source_rows_are_asked_for_by_name_whatever_their_order(model, against_control):
    turned = dict(reversed(prompts().items()))
    again = role_vectors(model, turned, control="assistant")
    assert again.names == tuple(turned)
    for name in TEXTS:
        assert_close(again[name, 2], against_control[name, 2], atol=2e-5, rtol=1e-4)
        assert_close(again.vectors()[name, 2], again[name, 2]) if name != "assistant" else None
    with pytest.raises(ValueError, match="'wizard'.*villain, assistant"):
        against_control["wizard", 1]
    with pytest.raises(IndexError, match="the layers are 0, 1, 2"):
        against_control["villain", 3]


def test_unequal_numbers_of_prompts_are_kept_apart(model):
    sets = prompts() | {"bard": asked(TEXTS["bard"], 7, seed=5)}
    for against in ("control", "others"):
        found = role_vectors(model, sets, control="assistant", against=against)
        assert found.prompts_of("bard").shape[0] == 7 and found.prompts_of("pirate").shape[0] == 4
        assert found.split_half[0].isfinite().all()
        assert found.vectors().passport.n_target is None
        assert found.to_dataframe().groupby("role")["n"].first()["bard"] == 7


def test_a_failure_in_one_role_raises_with_its_name_and_skips_nothing(model):
    sets = prompts()
    with pytest.raises(ValueError, match="bard holds no prompts"):
        role_vectors(model, sets | {"bard": []}, control="assistant")
    with pytest.raises(ValueError, match="prompt 1 of pirate"):
        role_vectors(model, sets | {"pirate": [sets["pirate"][0], prompt([], [], [])]}, control="assistant")
    with pytest.raises(ValueError, match="prompt 0 of villain.*'answer'"):
        role_vectors(model, sets, control="assistant", position=MeanOver("answer"))
    with pytest.raises(ValueError, match="villain: the contrast is zero"):  # fault 15
        role_vectors(model, sets | {"villain": sets["assistant"]}, control="assistant")


def test_too_few_roles_and_unknown_references_are_refused(model):
    sets = prompts()
    with pytest.raises(ValueError, match="'robot' has no prompts; the names are villain"):
        role_vectors(model, sets, control="robot")
    with pytest.raises(ValueError, match="'mean'"):
        role_vectors(model, sets, control="assistant", against="mean")
    with pytest.raises(ValueError, match="1 or more roles"):
        role_vectors(model, {"assistant": sets["assistant"]}, control="assistant")
    pair = {name: sets[name] for name in ("assistant", "villain")}
    with pytest.raises(ValueError, match="2 or more roles"):
        role_vectors(model, pair, control="assistant", against="others")


@pytest.mark.parametrize("against", ["control", "others"])
def test_fault_016_one_prompt_a_role_as_published_is_noted(model, against, tmp_path):
    found = role_vectors(model, prompts(1), control="assistant", against=against)
    assert found.split_half.isnan().all() and any("n = 1" in note for note in found.notes)
    assert load_result(found.save(tmp_path / "roles")).digest() == found.digest()
    assert "n = 1" in found.figure().layout.meta["subtitle"]
    vectors = found.vectors()
    loaded = load_vectors(save_vectors(vectors, tmp_path / "roles.safetensors"))
    assert loaded.passport == vectors.passport and torch.equal(loaded["bard", 1], found["bard", 1])


def test_table_and_figures_leave_the_control_to_its_place(against_control):
    frame = against_control.to_dataframe()
    assert len(frame) == 4 * 3 and set(frame["role"]) == set(TEXTS)
    for measure in ("relative_norm", "split_half"):
        drawn = against_control.figure(measure)
        assert {trace.name for trace in drawn.data} == {"villain", "bard", "pirate"}
        assert "3 roles minus assistant" in drawn.layout.meta["subtitle"]
    with pytest.raises(ValueError, match="split_half"):
        against_control.figure("p")


@pytest.mark.real
def test_roles_as_the_only_user_message_differ_from_the_control_and_from_each_other(real):
    texts = {
        "control": "You are an AI assistant.",
        "bard": "You are a traveling medieval bard.",
        "leviathan": "You are an ancient deep-sea leviathan.",
    }
    found = role_vectors(
        real, {k: [real.chat(t)] for k, t in texts.items()}, control="control", position=LastToken()
    )
    assert found.norm[1:].min() > 0 and found.values.shape == (3, 30, 576)
    middle = found["bard", 15] @ found["leviathan", 15] / found.norm[1, 15] / found.norm[2, 15]
    assert middle < 0.99
