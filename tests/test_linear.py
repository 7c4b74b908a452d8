"""Linear probes: what is planted is found where it is, nothing where nothing is, and no copy leaks."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import probes
from mechinterp.loading import wrap
from mechinterp.results import load_result
from mechinterp.sites import Site
from probes import linear_fit
from probes.linear import LinearProbes, activations_at, linear_probes
from probes.linear_folds import (
    control_folds,
    control_labels,
    grouped_folds,
    refuse_copies,
    shuffled_labels,
)
from tests.architectures import shared

LABELS = ["villain", "assistant"] * 20
QUESTIONS = [i // 4 for i in range(40)]  # ten groups of four, both labels in each
PERSONAS = [i // 4 for i in range(40)]
BY_PERSONA = ["even" if group % 2 else "odd" for group in PERSONAS]  # one label a group


def noise(n: int = 40, layers: int = 2, d: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, layers, d, generator=torch.Generator().manual_seed(seed))


def planted(labels: list[str] = LABELS, *, layer: int = 1, size: float = 3.0, seed: int = 0) -> torch.Tensor:
    x = noise(len(labels), seed=seed)
    signs = torch.tensor([1.0 if label == labels[0] else -1.0 for label in labels])
    x[:, layer] += size * signs[:, None] * torch.ones(12) / 12**0.5
    return x


def quick(x: torch.Tensor, labels: Any = LABELS, groups: Any = QUESTIONS, **asked: Any) -> LinearProbes:
    """Where it is not the controls that are tested, they need not be many."""
    return linear_probes(x, labels, groups, **{"n_shuffles": 1, "n_controls": 1, **asked})


@cache
def found() -> LinearProbes:
    return quick(planted(), transfer={"trained": planted(seed=5)}, n_shuffles=4, n_controls=2)


# planted and null -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "groups"), [(LABELS, QUESTIONS), (BY_PERSONA, PERSONAS)], ids=["in", "between"]
)
def test_planted_structure_is_found_at_its_layer_and_nowhere_else(labels, groups):
    result = quick(planted(labels), labels, groups, n_shuffles=19)
    assert float(result.accuracy[0, 1]) > 0.95 and float(result.p_any_layer[1]) == pytest.approx(1 / 20)
    assert float(result.accuracy[0, 0]) < 0.75 and float(result.p_any_layer[0]) > 0.05
    assert float(result.interval().low[0]) < 0.55
    assert float(result.interval().low[1]) > 0.85


def test_where_nothing_is_little_is_found():
    """One shuffle in twenty does as well by chance: of 20 nulls, 5 or more pass once in 390 times."""
    passed = [
        float(
            quick(noise(16, 1, 3, seed), LABELS[:16], QUESTIONS[:16], n_folds=2, n_shuffles=19, seed=seed).p
        )
        for seed in range(20)
    ]
    assert sum(p <= 0.05 for p in passed) < 5
    assert len(set(passed)) > 5, "p takes values all over the range"


def test_the_best_of_many_layers_pays_for_the_choice():
    result = quick(noise(16, 5, 3), LABELS[:16], QUESTIONS[:16], n_folds=2, n_shuffles=19)
    assert (result.p_any_layer >= result.p).all() and float(result.p_any_layer.min()) > float(result.p.min())


def test_p_counts_the_shuffles_that_do_as_well():
    result = found()
    for layer in range(2):
        reached = sum(
            float(draw[layer]) >= float(result.accuracy[0, layer]) - 1e-6 for draw in result.shuffled
        )
        assert float(result.p[layer]) == pytest.approx((1 + reached) / 5)


# parity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [12, 90], ids=["few features", "more features than examples"])
def test_the_probe_is_scikit_learns_own_on_the_same_folds(d):
    """Fitting in the examples' span is the same probe, since an L2 penalty does not see rotations."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = noise(40, 2, d)
    x[:, 1, :3] += 0.7 * torch.tensor([1.0 if label == "villain" else -1.0 for label in LABELS])[:, None]
    result = quick(x, transfer={"other": x + 0.5})
    y, folds = result.labels.numpy(), result.folds.numpy()
    for layer in range(2):
        for fold in range(5):
            own = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=1e-8))
            own.fit(x[folds != fold, layer].double().numpy(), y[folds != fold])
            for place, shift in enumerate((0.0, 0.5)):
                guessed = own.predict(x[folds == fold, layer].double().numpy() + shift)
                assert (guessed == y[folds == fold]).tolist() == result.correct[
                    place, folds == fold, layer
                ].tolist()


def test_several_classes_and_any_names():
    labels = [("a", 1), None, 3.5] * 12
    x = noise(36)
    for k in range(3):
        x[k::3, 1, k] += 6
    result = quick(x, labels, [i // 3 for i in range(36)], n_folds=4)
    assert result.classes == ("('a', 1)", "None", "3.5") and float(result.accuracy[0, 1]) > 0.95
    assert result.majority == pytest.approx(1 / 3)


# folds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [QUESTIONS, [i // 2 for i in range(40)]])
def test_folds_hold_whole_groups_and_every_example_once(groups):
    y, g = np.array([label == "villain" for label in LABELS], dtype=int), np.array(groups)
    folds = grouped_folds(y, g, n_folds=5, seed=0)
    assert set(folds.tolist()) == set(range(5))
    assert all(len(set(folds[g == group].tolist())) == 1 for group in set(groups))
    other = grouped_folds(y, g, n_folds=5, seed=1)
    assert folds.tolist() != other.tolist()


def test_shuffles_keep_what_the_groups_fix():
    g = np.array(QUESTIONS)
    generator = torch.Generator().manual_seed(0)
    within = np.array([label == "villain" for label in LABELS], dtype=int)
    moved, _ = shuffled_labels(within, g, n_folds=5, seed=0, generator=generator)
    assert moved.tolist() != within.tolist()
    assert all(moved[g == group].sum() == within[g == group].sum() for group in set(QUESTIONS))
    between = np.array([label == "even" for label in BY_PERSONA], dtype=int)
    moved, _ = shuffled_labels(between, g, n_folds=5, seed=0, generator=generator)
    assert moved.tolist() != between.tolist() and moved.sum() == between.sum()
    assert all(len(set(moved[g == group].tolist())) == 1 for group in set(QUESTIONS))


# the control task -------------------------------------------------------------------------------------------


def test_control_labels_hang_on_the_type_and_its_examples_are_on_both_sides():
    types, generator = np.array([i % 7 for i in range(40)]), torch.Generator().manual_seed(0)
    labels = np.array([0] * 30 + [1] * 10)
    drawn = [control_labels(labels, types, generator) for _ in range(200)]
    assert all(len(set(one[types == kind].tolist())) == 1 for one in drawn for kind in range(7))
    assert all(len(set(one.tolist())) == 2 for one in drawn)
    assert 0.2 < np.mean(drawn) < 0.35, "labels are drawn as often as they occur"
    folds = control_folds(types, n_folds=5, generator=generator)
    for fold in range(5):
        assert set(types[folds == fold].tolist()) <= set(types[folds != fold].tolist())


def test_a_probe_that_remembers_types_is_not_selective():
    """Activations that name the question let any labels of it be learned by heart; noise does not."""
    x = noise(40, 2, 12)
    x[:, 0] += 12 * torch.nn.functional.one_hot(torch.tensor(QUESTIONS), 12)
    result = quick(x, BY_PERSONA, PERSONAS, n_controls=4)
    assert float(result.control[:, 0].mean()) > 0.95 and float(result.control[:, 1].mean()) < 0.75
    assert_close(result.selectivity, result.accuracy[0] - result.control.mean(0))
    assert float(result.selectivity[0]) < -0.2


def test_selective_is_what_generalises_and_is_not_remembered():
    result = found()
    assert float(result.selectivity[1]) > 0.25


def test_without_types_that_repeat_there_is_no_control_and_it_is_said():
    result = quick(planted(), types=range(40))
    assert len(result.control) == 0 and result.selectivity.isnan().all()
    assert "no type has two examples" in " ".join(result.notes)
    assert result.to_dataframe().query("set == 'own'").control.isna().all()


# transfer ---------------------------------------------------------------------------------------------------


def test_transfer_scores_the_same_probes_under_the_same_folds():
    base = planted()
    same = quick(base, transfer={"copy": base, "mirror": -base})
    assert torch.equal(same.correct[0], same.correct[1])
    assert not same.drop("copy").estimate.any()
    assert float(same.accuracy[2, 1]) < 0.05 and float(same.drop("mirror").low[1]) > 0.8
    assert float(found().accuracy[1, 1]) > 0.9, "the direction is the same in the trained activations"
    alone = quick(base)
    assert torch.equal(alone.correct[0], same.correct[0]) and torch.equal(alone.shuffled, same.shuffled)


# copies and other faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_fault_109_copies_across_groups_are_refused_since_they_leak(rounding):
    """Pure noise, each example twice in two groups: ungrouped, the probe would score what it remembers."""
    half = noise(20, 2, 60)
    x = torch.cat([half, half * (1 + rounding)])
    labels, groups = LABELS[:20] * 2, [*range(20), *range(20, 40)]
    y = np.array([label == "villain" for label in labels], dtype=int)
    leaky = linear_fit.tested(x[:, 0].double().numpy(), [x[:, 0].double().numpy()], y, np.arange(40) % 7, 1.0)
    assert leaky.mean() > 0.75, "that is what a copy on the other side gives"
    with pytest.raises(ValueError, match="copies of each other in different groups"):
        quick(x, labels, groups)
    kept = quick(x, labels, [i % 20 for i in range(40)])
    assert float(kept.accuracy[0].max()) < 0.75


def test_what_is_equal_at_one_layer_only_is_no_copy():
    x = planted()
    x[:, 0] = x[0, 0]  # the layer of a token that all have
    assert float(quick(x).accuracy[0, 1]) > 0.9
    refuse_copies(x, np.arange(40))
    with pytest.raises(ValueError, match="examples 3 and 7 are copies"):
        x[7] = x[3]
        refuse_copies(x, np.arange(40))
    refuse_copies(x * 1e-20, np.zeros(40, dtype=int))


def changed(**given: Any) -> dict[str, Any]:
    return {"activations": planted(), "labels": LABELS, "groups": QUESTIONS, **given}


def holed() -> torch.Tensor:
    x = planted()
    x[3, 1, 2] = torch.nan
    return x


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (changed(labels=LABELS[:39]), "one entry each in labels, not 39"),
        (changed(groups=QUESTIONS[:5]), "one entry each in groups, not 5"),
        (changed(types=[1]), "one entry each in types, not 1"),
        (changed(activations=holed()), "1 of 40 examples of 'own' hold NaN"),
        (changed(transfer={"trained": holed()}), "1 of 40 examples of 'trained' hold NaN"),
        (changed(transfer={"trained": noise(40, 3)}), "'trained' has"),
        (changed(transfer={"own": planted()}), "another name"),
        (changed(labels=["a"] * 40), "at least two classes"),
        (changed(groups=[i // 10 for i in range(40)]), "4 groups cannot be split into 5 folds; use"),
        (changed(labels=["a"] * 36 + ["b"] * 4), "fits 1 of 2 classes|tests on 1"),
        (changed(layers=[1, 1]), "as many different numbers"),
        (changed(layers=[1]), "as many different numbers"),
        (changed(n_folds=1), "n_folds is 2 or more"),
        (changed(n_shuffles=0), "n_shuffles and n_controls 1 or more"),
        (changed(inverse_regularisation=0.0), "positive"),
    ],
)  # fmt: skip
def test_fault_016_what_cannot_be_probed_is_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        linear_probes(asked.pop("activations"), asked.pop("labels"), asked.pop("groups"), **asked)


def test_fault_110_one_class_is_refused_with_its_count_and_many_features_are_fitted():
    with pytest.raises(ValueError, match="all 40 examples have the same label; give at least two classes"):
        quick(planted(), ["villain"] * 40)
    wide = noise(40, 1, 400)  # ten features an example: without the penalty nothing would be determined
    assert abs(float(quick(wide).accuracy[0, 0]) - 0.5) < 0.3
    wide += torch.tensor([1.0 if label == LABELS[0] else -1.0 for label in LABELS])[:, None, None]
    assert float(quick(wide).accuracy[0, 0]) > 0.9


# the result -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_nothing_is_changed():
    x = planted()
    before = x.clone()
    one, two = (quick(x, seed=3) for _ in range(2))
    assert one.digest() == two.digest() and torch.equal(x, before)
    assert quick(x, seed=4).digest() != one.digest()


def test_a_saved_result_comes_back_bit_for_bit(tmp_path):
    again = load_result(found().save(tmp_path))
    assert again.digest() == found().digest() and again.to_dataframe().equals(found().to_dataframe())


def test_tables_and_intervals_count_groups():
    result = found()
    table = result.to_dataframe().set_index(["set", "layer"])
    assert len(table) == 2 * 2
    for place, name in enumerate(("own", "trained")):
        interval = result.interval(name)
        assert interval.n == 10 and interval.unit == "group" and interval.n_examples == 40
        for layer in range(2):
            line = table.loc[(name, layer)]
            assert line.accuracy == pytest.approx(float(result.correct[place, :, layer].float().mean()))
            assert line.low <= line.accuracy <= line.high
    assert table.loc["trained"].p.isna().all() and table.loc["own"].p.notna().all()
    with pytest.raises(KeyError, match="own, trained"):
        result.interval("base")


def test_the_figure_shows_the_controls_beside_the_accuracy():
    figure = found().figure()
    named = {trace.name: trace for trace in figure.data if trace.name}  # type: ignore
    assert set(named) >= {"own", "trained", "labels shuffled", "control task"}
    assert list(named["own"].y) == pytest.approx(found().accuracy[0].tolist())
    assert "n = 10 groups" in figure.layout.meta["subtitle"]


# from a model -----------------------------------------------------------------------------------------------


def test_activations_are_means_over_each_texts_own_positions_and_copies_are_bits():
    model = wrap(shared("llama"), None, verify=False)
    texts = [torch.randint(2, 211, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 14, 9)]
    x = activations_at(model, texts, [[8], [2, 3], [8]], layers=[0, 2])
    assert torch.equal(x[0], x[2]) and x.shape == (3, 2, 64)
    seen = model.forward(texts[1][None], capture=[Site("resid_post", 0), Site("resid_post", 2)], logits_at=())
    for k, layer in enumerate((0, 2)):
        assert_close(x[1, k], seen[Site("resid_post", layer)][0, 2:4].mean(0), atol=1e-6, rtol=1e-5)


def test_which_token_was_read_is_known_from_its_own_layer():
    """The last token of each text is one of two, and the first layer of a random model tells which."""
    model = wrap(shared("qwen2"), None, verify=False)
    generator = torch.Generator().manual_seed(0)
    texts = [
        torch.cat([torch.randint(20, 211, (6,), generator=generator), torch.tensor([5 + i % 2])])
        for i in range(40)
    ]
    x = activations_at(model, texts, [[6]] * 40, layers=[0])
    result = quick(x, [i % 2 for i in range(40)], n_shuffles=19)
    assert float(result.accuracy[0, 0]) > 0.95 and float(result.p_any_layer[0]) <= 0.05


def test_the_public_names_are_these():
    assert probes.linear_probes is linear_probes and probes.activations_at is activations_at
    assert probes.LinearProbes is LinearProbes
