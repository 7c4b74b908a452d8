"""Centroids and centred cosines: identities, a planted common mean, references by name, and refusals."""

import pytest
import torch
from scipy.spatial.distance import cosine as scipy_cosine
from torch.testing import assert_close

from mechinterp.gather import gather
from mechinterp.loading import wrap
from mechinterp.results import load_result
from mechinterp.sites import Site
from probes.centering import OnSet, OnVector, Uncentered, centered_cosine, centroids
from probes.vectors import Passport, Vectors, load_vectors, save_vectors
from tests.architectures import shared
from tests.test_contrast import asked

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def model():
    return wrap(shared("llama"), None, name="llama")


@pytest.fixture(scope="module")
def found(model):
    sets = {f"persona {k}": asked([k + 7] * 5, 3) for k in range(4)}
    return centroids(model, sets, layers=LAYERS)


def planted(n: int, scale: float = 50.0, d_model: int = 512) -> tuple[Vectors, torch.Tensor]:
    """Personas as independent directions about one large common mean, and that mean."""
    generator = torch.Generator().manual_seed(n)
    common = scale * torch.randn(1, len(LAYERS), d_model, generator=generator)
    own = torch.randn(n, len(LAYERS), d_model, generator=generator)
    names = tuple(f"persona {k}" for k in range(n))
    return Vectors(names, LAYERS, common + own, Passport(model="planted")), common[0]


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def test_a_centroid_is_the_mean_over_its_prompts(model, found):
    for k, name in enumerate(found.names):
        ids = [one.tokens[0] for one in asked([k + 7] * 5, 3)]
        last = [torch.tensor([len(row) - 1]) for row in ids]
        rows = gather(model, ids, [Site("resid_post", layer) for layer in LAYERS], last)
        assert_close(found.prompts_of(name), rows, atol=2e-5, rtol=1e-4)
        for column, layer in enumerate(LAYERS):
            assert_close(found[name, layer], rows[:, column].mean(0), atol=2e-5, rtol=1e-4)


def test_cosines_are_scipys_about_the_reference(found):
    vector = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    references = {
        OnSet(): found.values.mean(0),
        OnSet(("persona 1", "persona 3")): found.values[[1, 3]].mean(0),
        OnVector(vector, "drawn"): vector,
        Uncentered(): torch.zeros(2, 64),
    }
    for center_on, reference in references.items():
        cosines = centered_cosine(found, center_on=center_on)
        moved = (found.values - reference).double()
        for k, layer in enumerate(LAYERS):
            for i in range(4):
                for j in range(4):
                    expected = 1 - scipy_cosine(moved[i, k], moved[j, k])
                    assert abs(float(cosines[layer][i, j]) - expected) < 1e-5


def test_cosine_matrices_are_symmetric_with_ones_on_the_diagonal(found):
    for center_on in (OnSet(), Uncentered()):
        values = centered_cosine(found, center_on=center_on).values
        assert_close(values, values.mT)
        assert_close(values.diagonal(dim1=1, dim2=2), torch.ones(len(LAYERS), 4))
        assert values.abs().max() <= 1


@pytest.mark.parametrize("n", [2, 11, 40])
def test_centring_on_their_own_mean_forces_cosines_of_minus_one_over_n_minus_one(n):
    points, _ = planted(n)
    cosines = centered_cosine(points, center_on=OnSet())
    for layer in LAYERS:
        assert abs(off_diagonal(cosines[layer]).mean() + 1 / (n - 1)) < 0.02
    assert any(f"{-1 / (n - 1):.2f}" in note for note in cosines.notes)


def test_the_reference_decides_what_is_seen():
    points, common = planted(11)
    raw = off_diagonal(centered_cosine(points, center_on=Uncentered())[2])
    about_common = off_diagonal(centered_cosine(points, center_on=OnVector(common, "common mean"))[2])
    about_own = off_diagonal(centered_cosine(points, center_on=OnSet())[2])
    about_two = centered_cosine(points, center_on=OnSet(points.names[:2]))[2]
    assert raw.min() > 0.99, "the common mean is all that is seen"
    assert about_common.abs().mean() < 0.05, "the planted directions are independent"
    assert -0.12 < about_own.mean() < -0.08, "eleven points about their own mean"
    assert abs(about_two[0, 1] + 1) < 1e-4, "the two that the centre is made of lie on either side of it"
    assert (about_two[2:, 2:][~torch.eye(9, dtype=torch.bool)] > 0.2).all(), "the rest share the way from it"


def test_a_wider_set_of_centroids_can_be_the_reference_of_a_narrower_one():
    wide, common = planted(111)
    core = Vectors(wide.names[:11], LAYERS, wide.values[:11], wide.passport)
    about_wide = centered_cosine(core, center_on=OnVector(wide.values.mean(0), "the 111"))
    about_core = centered_cosine(core, center_on=OnSet(name="the 11"))
    assert (about_wide.reference.name, about_core.reference.name) == ("the 111", "the 11")
    assert abs(off_diagonal(about_wide[0]).mean()) < 0.03 < abs(off_diagonal(about_core[0]).mean())


def test_the_reference_is_stored_with_name_size_personas_and_digest(found, tmp_path):
    whole = centered_cosine(found, center_on=OnSet())
    assert whole.reference.size == 4 and whole.reference.personas == found.names
    assert "all 4 personas" in whole.reference.name
    pair = centered_cosine(found, center_on=OnSet(("persona 0", "persona 2"), name="the pair"))
    assert (pair.reference.name, pair.reference.size) == ("the pair", 2)
    none = centered_cosine(found, center_on=Uncentered())
    assert none.reference.size == 0 and none.reference.sha256 is None
    given = centered_cosine(found, center_on=OnVector(found.values.mean(0), "given"))
    digests = {result.reference.sha256 for result in (whole, pair, none, given)}
    assert len(digests) == 4
    assert (
        centered_cosine(found, center_on=OnSet(found.names[::-1])).reference.sha256 == whole.reference.sha256
    )
    back = load_result(pair.save(tmp_path / "pair"))
    assert (
        back.digest() == pair.digest() and back.reference == pair.reference and torch.equal(back[2], pair[2])
    )


def test_fault_010_a_persona_that_is_the_reference_has_no_cosine_and_is_named(found):
    cosines = centered_cosine(found, center_on=OnSet(("persona 1",)))
    assert cosines.reference.name == "persona 1"
    assert cosines.values[:, 1].isnan().all() and cosines.values[:, :, 1].isnan().all()
    others = [0, 2, 3]
    assert cosines.values[:, others][:, :, others].isfinite().all()
    assert any("persona 1" in note and "NaN" in note for note in cosines.notes)


@pytest.mark.parametrize("shape", [(), (1,), (64,), (1, 64), (3, 64), (2, 1), (2, 63)])
def test_fault_006_007_008_a_reference_of_another_shape_never_broadcasts(found, shape):
    with pytest.raises(ValueError, match=r"one vector for each"):
        centered_cosine(found, center_on=OnVector(torch.ones(shape), "wrong"))


def test_references_that_are_none_are_refused(found):
    with pytest.raises(ValueError, match="'wizard'.*persona 0"):
        centered_cosine(found, center_on=OnSet(("wizard",)))
    for names in ((), ("persona 1", "persona 1")):
        with pytest.raises(ValueError, match="each once"):
            centered_cosine(found, center_on=OnSet(names))
    with pytest.raises(ValueError, match="NaN"):  # fault 9
        centered_cosine(found, center_on=OnVector(torch.full((2, 64), torch.nan), "broken"))
    with pytest.raises(TypeError, match="OnSet"):
        centered_cosine(found, center_on="mean")
    with pytest.raises(TypeError):
        centered_cosine(found)  # pyright: ignore: no default hides the reference
    with pytest.raises(ValueError, match="two personas"):
        centered_cosine(planted(1)[0], center_on=Uncentered())


def test_centroids_come_back_travel_and_take_unequal_sets(model, found, tmp_path):
    assert load_result(found.save(tmp_path / "centroids")).digest() == found.digest()
    loaded = load_vectors(save_vectors(found.vectors(), tmp_path / "centroids.safetensors"))
    again, here = (centered_cosine(each, center_on=OnSet()) for each in (loaded, found))
    assert again.digest() == here.digest(), "a file of centroids is as good as the centroids"
    assert loaded.passport.n_target == 3
    uneven = centroids(model, {"a": asked([7], 2), "b": asked([8], 5)})
    assert (
        any("between 2 and 5" in note for note in uneven.notes) and uneven.vectors().passport.n_target is None
    )
    with pytest.raises(ValueError, match="b holds no prompts"):
        centroids(model, {"a": asked([7], 2), "b": []})
    with pytest.raises(ValueError, match="no sets"):
        centroids(model, {})


def test_tables_and_figures(found):
    cosines = centered_cosine(found, center_on=OnSet())
    frame = cosines.to_dataframe()
    assert len(frame) == len(LAYERS) * 6 and set(frame["layer"]) == set(LAYERS)
    one = frame[(frame.layer == 2) & (frame.persona == "persona 1") & (frame.other == "persona 3")]
    assert_close(one["cosine"].item(), float(cosines[2][1, 3]))
    drawn = cosines.figure(0)
    assert "layer 0" in drawn.layout.title.text and "all 4 personas" in drawn.layout.meta["subtitle"]
    assert_close(torch.tensor(drawn.data[0].z), cosines[0].double(), check_dtype=False)
    with pytest.raises(IndexError, match="the layers are 0, 2"):
        cosines.figure(1)
    assert len(found.to_dataframe()) == 4 * len(LAYERS)
    assert "llama" in found.figure().layout.meta["subtitle"]


@pytest.mark.real
def test_related_personas_lie_closer_than_unrelated_ones_about_the_set_of_all(real):
    from studies.personas import core_personas

    people = core_personas()
    questions = ("What is the meaning of life?", "How do plants grow?", "What is money?")
    prompts = {
        key: [real.chat(question, system=one.system_prompt) for question in questions]
        for key, one in people.items()
    }
    about = centered_cosine(centroids(real, prompts, layers=[15]), center_on=OnSet())
    off = off_diagonal(about[15])
    assert abs(off.mean() + 1 / (len(people) - 1)) < 0.05
    closest = about.to_dataframe().set_index(["persona", "other"])["cosine"]
    assert closest["software_engineer", "data_scientist"] > closest.median()
