"""Personas and questions: the shipped lists are what the methods say, and bad files are refused by path."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from studies.personas import (
    LONGEST_TEXT,
    Persona,
    core_personas,
    load_personas,
    load_questions,
    questions,
    roles,
    wide_personas,
)

CORE = [
    "software_engineer",
    "kindergarten_teacher",
    "data_scientist",
    "medical_doctor",
    "librarian",
    "french_person",
    "villain",
    "comedian",
    "police_officer",
    "zelthari_scholar",
    "assistant",
]
NAMED_ROLES = [
    "anxious_teenager",
    "medieval_bard",
    "deep_sea_leviathan",
    "mycelial_network",
    "grumpy_mechanic",
    "spiritual_guru",
    "victorian_aristocrat",
]
CATEGORY_SIZES = {
    "original": 11,
    "professional_peer": 15,
    "modified_source": 15,
    "opposite": 10,
    "hierarchical": 10,
    "intersectional": 10,
    "cultural_variant": 10,
    "fictional_exemplar": 10,
    "domain_adjacent": 10,
    "tone_variant": 5,
    "unrelated_baseline": 5,
}
GROUP_SIZES = {
    "personal_reflection": 5,
    "evaluation": 20,
    "training": 40,
    "introspect": 3,
    "revert": 3,
    "role": 3,
}


def written(folder: Path, document: object) -> Path:
    path = folder / "file.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_sixty_roles_follow_the_control():
    found = roles()
    assert len(found) == 61
    assert next(iter(found)) == "control"
    assert found["control"].system_prompt == "You are an AI assistant."
    assert set(NAMED_ROLES) <= set(found)


def test_role_instructions_are_distinct_single_lines():
    found = list(roles().values())
    assert len({persona.system_prompt for persona in found}) == len(found)
    for persona in found:
        assert persona.system_prompt.startswith("You are ")
        assert persona.system_prompt.endswith(".")
        assert "\n" not in persona.system_prompt
        assert persona.readable_name and persona.description


def test_core_personas_are_in_matrix_order():
    assert list(core_personas()) == CORE
    assert [persona.short for persona in core_personas().values()][:3] == ["SWE", "Teacher", "DataSci"]


def test_the_wide_set_is_the_core_and_a_hundred_by_category():
    wide = wide_personas()
    assert list(wide)[:11] == CORE
    found = [persona.category for persona in wide.values()]
    assert {category: found.count(category) for category in found} == CATEGORY_SIZES
    assert found.index("unrelated_baseline") == 106  # the order of appendix A.4 ends with this category


def test_relations_of_the_wide_set_point_inside_it():
    wide = wide_personas()
    for persona in wide.values():
        assert set(persona.related_to) <= set(wide) - {persona.key}
    assert wide["pacifist"].related_to == ("villain", "police_officer")


@pytest.mark.parametrize(("group", "size"), GROUP_SIZES.items())
def test_question_groups_have_their_published_sizes(group: str, size: int):
    assert len(set(questions(group))) == size


def test_training_and_evaluation_questions_are_disjoint():
    assert not set(questions("training")) & set(questions("evaluation"))


def test_an_unknown_group_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="personal_reflection"):
        questions("reflexion")


def test_reading_personas_loads_no_torch():
    script = "import sys, studies.personas as p; p.roles(); raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_order_is_that_of_the_file_with_the_control_in_front(tmp_path: Path):
    path = written(tmp_path, {"personas": {"b": "You are b.", "a": "You are a.", "control": "You are."}})
    assert list(load_personas(path)) == ["control", "b", "a"]


def test_a_plain_mapping_of_prompts_is_the_same_as_the_long_form(tmp_path: Path):
    plain = load_personas(written(tmp_path, {"sea_witch": "You are a sea witch.", "none": ""}))
    entries = {"sea_witch": {"system_prompt": "You are a sea witch."}, "none": {"system_prompt": ""}}
    assert plain == load_personas(written(tmp_path, {"personas": entries}))
    assert plain["sea_witch"] == Persona("sea_witch", "Sea witch", "You are a sea witch.")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path):
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "You are a."}).encode())
    assert list(load_personas(path)) == ["a"]


@pytest.mark.parametrize(
    "document",
    [
        {"villain": "x", "Villain": "y"},
        {"café": "x", "cafe\u0301": "y"},
        {"straße": "x", "STRASSE": "y"},
        {
            "a": {"system_prompt": "x", "readable_name": "1"},
            "A": {"system_prompt": "y", "readable_name": "2"},
        },
        '{"villain": "x", "villain": "y"}',
        '{"personas": {"a": "x"}, "personas": {"b": "y"}}',
        {
            "a": {"system_prompt": "x", "readable_name": "One"},
            "b": {"system_prompt": "y", "readable_name": "One"},
        },
    ],
    ids=["case", "unicode_form", "casefold", "only_the_key", "json_key", "json_wrapper", "readable_name"],
)
def test_fault_054_equal_names_are_refused(tmp_path: Path, document: object):
    with pytest.raises(ValueError, match=r"rename one|twice"):
        load_personas(written(tmp_path, document))


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"personas": {"a": None}}, r"\$\.personas\.a is null"),
        ({"personas": {"a": {"system_prompt": None}}}, r"\$\.personas\.a\.system_prompt is null"),
        ({"a": 3}, r"\$\.a is 3"),
        ({"a": {"system_prompt": 3.5}}, r"\$\.a\.system_prompt is 3\.5"),
        ({"a": {"prompt": "x"}}, r"\$\.a has no \"system_prompt\""),
        ({"a": "x" * 10_000_000}, r"\$\.a has 10000000 characters"),
        ({"": "x"}, r"\$\. is empty"),
        ({" ": "x"}, r"is empty"),
        ({"a": "\ud83d"}, r"\$\.a holds half"),
        ({"a": {"system_prompt": "x", "related_to": ["b", None]}}, r"\$\.a\.related_to\[1\] is null"),
        ({"a": {"system_prompt": "x", "readable_name": ""}}, r"\$\.a\.readable_name is empty"),
        ({"personas": {}}, r"\$\.personas holds no personas"),
        ({"personas": None}, r"\$\.personas is null"),
        ([{"a": "x"}], r"\$ is a list"),
        ('{"a": "x"', "not JSON"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_fault_055_what_is_no_persona_is_refused_with_its_path(tmp_path: Path, document: object, where: str):
    with pytest.raises(ValueError, match=where):
        load_personas(written(tmp_path, document))


def test_the_longest_allowed_text_is_taken(tmp_path: Path):
    assert len(load_personas(written(tmp_path, {"a": "x" * LONGEST_TEXT}))["a"].system_prompt) == LONGEST_TEXT


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_users_questions_are_read_by_group(tmp_path: Path, wrapped: bool):
    groups = {"sea": ["Is it deep?", "Is it cold?"], "sky": ["Is it blue?"]}
    found = load_questions(written(tmp_path, {"questions": groups} if wrapped else groups))
    assert found == {"sea": ("Is it deep?", "Is it cold?"), "sky": ("Is it blue?",)}


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"questions": {"g": ["a", None]}}, r"\$\.questions\.g\[1\] is null"),
        ({"questions": {"g": ["a", 7]}}, r"\$\.questions\.g\[1\] is 7"),
        ({"questions": {"g": [" "]}}, r"\$\.questions\.g\[0\] is empty"),
        ({"questions": {"g": []}}, r"\$\.questions\.g holds no questions"),
        ({"questions": {"g": "What?"}}, r"\$\.questions\.g is \"What"),
        ({"questions": {"g": ["What?", "what?"]}}, "rename one"),
        ({"questions": {}}, "holds no questions"),
        ({"questions": {"g": ["x" * 10_000_000]}}, r"\$\.questions\.g\[0\] has 10000000"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_fault_055_what_is_no_question_is_refused_with_its_path(tmp_path: Path, document: object, where: str):
    with pytest.raises(ValueError, match=where):
        load_questions(written(tmp_path, document))
