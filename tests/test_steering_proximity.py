"""Steering towards a source: the solved strength reaches the cosine, doses, slopes of planted responses."""

from typing import Any

import pytest
import torch

from mechinterp.results import load_result
from studies import steering_proximity
from studies.steering_proximity import Config
from studies.steering_proximity_cells import DIRECTIONS, OTHER, RANDOM, SOURCE, Counted, Dosed, Line
from studies.steering_proximity_figures import all_figures
from studies.steering_proximity_page import answer, caveats, headlines
from studies.steering_proximity_result import Steered, SteeringProximity
from studies.steering_proximity_solve import centred_cosine, strength_for


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_the_solved_strength_reaches_the_cosine(seed, part):
    source, assistant, about = drawn(seed, 3, 40)
    unit = torch.nn.functional.normalize(source - assistant, dim=0)
    natural = float(centred_cosine(source, assistant, about))
    wanted = natural + part * (1 - natural)
    beta = strength_for(wanted, source, assistant, about, unit)
    assert float(centred_cosine(source, assistant + beta * unit, about)) == pytest.approx(wanted, abs=1e-9)
    assert 0 < beta < float((source - assistant).norm()), "the source itself has cosine 1"


def test_the_smaller_of_two_strengths_is_taken_and_the_sign_is_kept():
    """In the plane: from straight down, cosine -1 at the start, through 0 on the way to the right."""
    source, assistant, about = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    right = torch.tensor([1.0, 0.0])
    for wanted, beta in ((-(0.5**0.5), 1.0), (-0.1, 99**0.5)):
        assert abs(strength_for(wanted, source, assistant, about, right)) == pytest.approx(beta)
    with pytest.raises(ValueError, match="no multiple of this direction"):
        strength_for(0.3, source, assistant, about, right)


DOSES = (-0.5, 0.0, 0.5)


def steered(rate: Any) -> SteeringProximity:
    """A study whose rates are `rate(direction, dose, role)` of ten answers to each of six questions."""
    vectors = torch.zeros(3, 3, 4)
    vectors[0, :, 0] = torch.tensor([-1.0, 0.0, 1.0])
    there = torch.tensor([[2.0, 0, 0, 0]] * 2)
    line = Line(
        "villain", "monk", 1, -0.2, DOSES, (None, -0.2, 0.4), (-1.0, 0.0, 1.0), vectors, torch.zeros(3, 3),
        home=torch.zeros(4), there=there, about=torch.zeros(2, 4),
    )  # fmt: skip
    roles = {"assistant": "assistant", "villain": "source", "monk": "bystander"}
    dosed = []
    for direction in DIRECTIONS:
        for dose in DOSES:
            if dose == 0 and direction != SOURCE:
                continue
            counts = tuple(
                Counted(name, role, f"q{q}", 42, rate(direction, dose, role) + (q % 2), 10)
                for name, role in roles.items()
                for q in range(6)
            )
            told = ({"persona": "assistant", "role": "assistant", "question": "q0", "text": "Hi"},)
            cosine = torch.tensor([0.0, -0.2 if dose == 0 else 0.4 if dose > 0 else -0.7])
            damage = dict.fromkeys(("mean", "rmse", "p95", "max"), abs(dose))
            dosed.append(Dosed("villain", direction, dose, cosine, counts, damage, told))
    return SteeringProximity("toy", "[ZLT]", (42,), (Steered("villain", 0, line, tuple(dosed)),))


def planted(direction: str, dose: float, role: str) -> int:
    """The assistant's rate rises towards the source alone, by 2 of 10 a dose of 0.5; the source's is high."""
    if role == "source":
        return 8
    return 4 + 4 * dose if direction == SOURCE and role == "assistant" else 4  # pyright: ignore


def test_a_planted_response_has_its_slope_and_the_controls_none():
    one = steered(lambda *about: int(planted(*about))).sources[0]
    assert one.distance == pytest.approx(2.0)
    slope, test = one.slope(SOURCE)
    assert slope.estimate == pytest.approx(0.4), "0.2 for half the way"
    assert slope.n == 6 and test.p == pytest.approx(2 / 2**6)
    assert one.slope(RANDOM)[0].estimate == pytest.approx(0) == one.slope(OTHER)[0].estimate
    assert one.beyond(RANDOM)[0].estimate == pytest.approx(0.4)
    assert one.slope(SOURCE, "source")[0].estimate == pytest.approx(0)


def test_the_page_says_slopes_damage_and_small_n(tmp_path):
    study = steered(lambda *about: int(planted(*about)))
    said = [line.quantity for line in headlines(study.sources[0])]
    assert f"villain: slope, {SOURCE} − {RANDOM}" in said and f"villain: slope, {SOURCE} − {OTHER}" in said
    assert "0.400" in answer(study) and any("Small n: 6 questions" in line for line in caveats(study))
    assert load_result(study.save(tmp_path)).digest() == study.digest()
    assert set(all_figures(study)) == {f"{n}_villain_0" for n in ("response", "roles", "damage", "cosines")}
    assert len(study.to_dataframe()) == 9


def test_a_source_that_loses_its_marker_is_told():
    def lost(direction: str, dose: float, role: str) -> int:
        return 0 if role == "source" and dose > 0 and direction == SOURCE else 8

    assert any("its own rate falls" in line for line in caveats(steered(lost)))


def test_dose_zero_is_one_cell_for_all_directions():
    cells = steering_proximity.cells(Config(doses=DOSES))
    doses = [(c.args["direction"], c.args["dose"]) for c in cells if c.task == "dose"]
    assert len(doses) == len(set(doses)) == 7 and sum(dose == 0 for _, dose in doses) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"doses": (0.1, 0.2, 0.3)}, "0 among them"),
        ({"doses": (0.0, 0.5, 1.0)}, "above -1 and below 1"),
        ({"personas": ("assistant",)}, "towards itself"),
        ({"other": "nobody"}, "nobody is not among the personas"),
    ],
)
def test_fault_095_what_cannot_be_asked_is_refused(changed: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Config(**changed)


@pytest.mark.real
def test_the_real_assistant_is_where_it_was_asked_to_be(real):
    """Solved at layer 15, read again under the edit; the other way it is farther; later layers answer."""
    config = Config(
        doses=DOSES, n_questions=1, n_draws=1, max_tokens=4, n_centroid_questions=2, n_bystanders=1
    )
    line_cell, *doses = steering_proximity.cells(config)
    line = steering_proximity.draw_line(line_cell, real, {}, config)
    found = {}
    for cell in doses:
        if cell.args["direction"] == SOURCE:
            found[cell.args["dose"]] = steering_proximity.dose(cell, real, {"line": line}, config)
    at = line.layer
    assert float(found[0.0].cosine[at]) == pytest.approx(line.natural, abs=1e-3)
    assert float(found[0.5].cosine[at]) == pytest.approx(line.requested[2], abs=1e-3)
    assert float(found[-0.5].cosine[at]) < line.natural
    assert float(found[0.5].cosine[-1]) > float(found[0.0].cosine[-1])
    assert torch.equal(found[0.5].cosine[:at], found[0.0].cosine[:at]), "nothing below the layer moves"
    assert found[0.0].damage["max"] == 0 < found[0.5].damage["mean"]
