"""A configuration is what was asked, exactly, or an error that names the key and what would be right."""

import math
from pathlib import Path
from typing import Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechinterp.config import StudyConfig, config_digest, load_config


class Arm(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    layer: int = 22
    strength: float = 1.0
    policy: Literal["fresh", "carry"] = "fresh"


class Config(StudyConfig):
    model: str = "small"
    roles: tuple[str, ...] = ("villain",)
    arms: tuple[Arm, ...] = ()
    steering: Arm = Arm()
    personas: Path | None = None
    greedy: bool = False


def written(folder: Path, text: str) -> Path:
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def test_a_file_overrides_and_defaults_meet(tmp_path):
    path = written(
        tmp_path, 'model = "m"\nroles = ["a", "b"]\npersonas = "p.json"\n[steering]\nstrength = 2\n'
    )
    config = load_config(Config, path, ["steering.layer=3", "greedy=true", "seed = 43"])
    assert config == Config(
        model="m",
        roles=("a", "b"),
        steering=Arm(layer=3, strength=2.0),
        personas=Path("p.json"),
        greedy=True,
        seed=43,
    )
    assert Config.from_toml(path).steering == Arm(strength=2.0)
    assert load_config(Config, None) == Config()


@pytest.mark.parametrize(
    "override, field, value",
    [
        ("model=plain words", "model", "plain words"),
        ("model='quoted'", "model", "quoted"),
        ("model=1234567", "model", "1234567"),
        ("model=2024-01-01", "model", "2024-01-01"),
        ("model=true", "model", "true"),
        ("model=a=b", "model", "a=b"),
        ("model=", "model", ""),
        ("model=1\nseed=3", "model", "1\nseed=3"),
        ('roles=["x", "y"]', "roles", ("x", "y")),
        ("arms=[{layer=1}]", "arms", (Arm(layer=1),)),
        ("steering={layer=4}", "steering", Arm(layer=4)),
    ],
)
def test_an_override_is_toml_or_text(override, field, value):
    assert getattr(load_config(Config, None, [override]), field) == value


@pytest.mark.parametrize(
    "text, says",
    [
        ("rolse = ['a']", r"rolse is not a key; known are roles,"),
        ("[steering]\nlayr = 3", r"steering\.layr is not a key; known are layer,"),
        ("[[arms]]\n[[arms]]\nstrenght = 3", r"arms\.1\.strenght is not a key; known are strength,"),
        ("seed = '3'", r"seed is '3'"),
        ("seed = true", r"seed is True"),
        ("seed = 3.0", r"seed is 3\.0"),
        ("greedy = 1", r"greedy is 1"),
        ("roles = 'villain'", r"roles is 'villain'"),
        ("roles = [1]", r"roles\.0 is 1"),
        ("[steering]\npolicy = 'new'", r"steering\.policy is 'new'.*'fresh' or 'carry'"),
        ("[steering]\nstrength = nan", "finite"),
        ("seed = 2024-01-01", "date"),
        ("seed = ", "is not TOML"),
        ("seed = 1\nseed = 2", "is not TOML"),
    ],
)
def test_fault_095_what_is_wrong_is_named_with_its_path_and_file(text, says, tmp_path):
    with pytest.raises(ValueError, match=says) as caught:
        load_config(Config, written(tmp_path, text))
    assert "study.toml" in str(caught.value) and type(caught.value) is ValueError


@pytest.mark.parametrize("override", ["seed", "=3", "a b=3", "seed.x=3", ".=1", "seed=1\nmodel='x'"])
def test_fault_095_an_override_of_another_form_is_refused(override, tmp_path):
    with pytest.raises(ValueError, match="seed"):
        load_config(Config, written(tmp_path, "seed = 1"), [override])


def test_fault_095_several_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"steering\.layer is 'x'.*rolse is not a key"):
        load_config(Config, None, ["rolse=1", "steering.layer=x"])


def test_fault_095_yaml_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a [*a]")
    with pytest.raises(ValueError, match="toml or .json"):
        load_config(Config, tmp_path / "x.yaml")
    with pytest.raises(FileNotFoundError, match="none.toml"):
        load_config(Config, tmp_path / "none.toml")


def test_json_files_are_read_as_strictly(tmp_path):
    (tmp_path / "x.json").write_text('{"seed": 3, "roles": ["a"]}')
    assert load_config(Config, tmp_path / "x.json") == Config(seed=3, roles=("a",))
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="object"):
        load_config(Config, tmp_path / "x.json")


def test_a_configuration_cannot_be_changed_or_hold_nan():
    with pytest.raises(pydantic.ValidationError):
        Config().seed = 3  # pyright: ignore[reportAttributeAccessIssue]

    class Loose(StudyConfig):
        rate: float = math.nan

    with pytest.raises(pydantic.ValidationError):
        Loose()


@given(seed=st.integers(), layer=st.integers(0, 80), roles=st.lists(st.text(), max_size=3))
def test_the_digest_depends_on_what_is_asked_and_not_on_how(seed, layer, roles):
    config = Config(seed=seed, roles=tuple(roles), steering=Arm(layer=layer))
    again = load_config(Config, None, [f"steering.layer={layer}"]).model_copy(
        update={"seed": seed, "roles": tuple(roles)}
    )
    assert config_digest(again) == config_digest(config)
    assert config_digest(config.model_copy(update={"seed": seed + 1})) != config_digest(config)
