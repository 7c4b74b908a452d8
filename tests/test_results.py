"""A saved result comes back bit for bit, or is refused; JSON is JSON; names stay names."""

import json
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mechinterp import results
from mechinterp.codec import read_tensors
from mechinterp.files import inside, slug, unique_names, write_bytes, write_csv
from mechinterp.json_io import append_line, canonical_sha256, dumps, read_json, read_lines, write_json
from mechinterp.results import Result, load_result, metadata
from mechinterp.sites import Site


@dataclass(frozen=True, eq=False)
class Inner(Result):
    name: str
    values: Any


@dataclass(frozen=True, eq=False)
class Sample(Result):
    VERSION: ClassVar[int] = 3
    held: Any
    second: Any = None


def round_trip(value: Any, folder: Path) -> Any:
    return load_result(Sample(value).save(folder)).held


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([math.nan, math.inf, -math.inf, -0.0])
    | st.text()
    | st.text().map(lambda name: Path("a") / name)
)
KEYS = st.text() | st.sampled_from(["$tuple", "$", "1"]) | st.integers() | st.tuples(st.integers(), st.text())
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | inner.map(lambda value: Inner("x", value))
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Inner):
        return isinstance(right, Inner) and left.name == right.name and same(left.values, right.values)
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes() or (left != left and right != right)
    return left == right


@given(value=NESTED)
@example(value=[math.nan, math.inf, -math.inf, -0.0, 0.1, 10**30])
@example(value={"$tuple": [1], "1": 2, 1: 3, (1, "x"): None})
@example(value=("\ud800", [], {}, (), Inner("\0", Path("a"))))
def test_anything_nested_comes_back_the_same(value, tmp_path_factory):
    assert same(round_trip(value, tmp_path_factory.mktemp("result")), value)


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_come_back_bit_for_bit(dtype, tmp_path):
    tensor = torch.randint(0, 2, (3, 4)).to(dtype)
    asked = {"whole": tensor, "view": tensor[:, 1], "turned": tensor.T, "none": tensor[:0], "row": tensor[1]}
    back = round_trip(asked, tmp_path)
    assert all(held.dtype == dtype for held in back.values())
    for name, expected in asked.items():
        assert back[name].shape == expected.shape
        assert back[name].tolist() == expected.tolist()


def test_nan_payloads_and_signed_zeros_of_tensors_survive(tmp_path):
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x80000000, 0x00000001], dtype=torch.int64).to(torch.int32)
    assert round_trip(bits.view(torch.float32), tmp_path).view(torch.int32).tolist() == bits.tolist()


def test_sites_arrays_gradients_and_tuples_of_tensors_come_back(tmp_path):
    asked = torch.nn.Parameter(torch.arange(3.0))
    value = {
        Site("z", 3): (asked, torch.tensor(2)),
        "array": np.arange(6).reshape(2, 3)[:, ::2],
        "n": np.float32(0.5),
    }
    back = round_trip(value, tmp_path)
    assert back[Site("z", 3)][0].tolist() == [0.0, 1.0, 2.0]
    assert not back[Site("z", 3)][0].requires_grad
    assert back["array"].dtype == np.int64 and (back["array"] == value["array"]).all()
    assert back["n"] == 0.5


def test_digest_is_of_the_content_and_survives_the_round_trip(tmp_path):
    one, other = Sample(torch.tensor([0.0, 1.0])), Sample(torch.tensor([-0.0, 1.0]))
    assert one.digest() != other.digest()
    assert load_result(one.save(tmp_path)).digest() == one.digest()


def test_saving_twice_gives_the_same_bytes_and_drops_old_tensors(tmp_path):
    sample = Sample(torch.randn(5), second=("a", 1.5))
    sample.save(tmp_path / "a"), sample.save(tmp_path / "b")
    for name in ("result.json", "tensors.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    Sample(1).save(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result.json"]


def test_metadata_names_versions_and_no_time():
    block = metadata()
    assert block["libraries"]["torch"].startswith(torch.__version__.split("+")[0])
    assert not {"time", "timestamp", "date"} & set(block)


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, torch.zeros(2, device="meta"), np.array(["a"]), 1j],
    ids=["an object", "a set", "a meta tensor", "text in an array", "a complex number"],
)
def test_what_could_not_be_read_back_is_refused_with_its_place(value, tmp_path):
    with pytest.raises(TypeError, match="result/held/deep"):
        Sample({"deep": value}).save(tmp_path)


def test_a_result_class_inside_a_function_is_refused_at_saving(tmp_path):
    @dataclass(frozen=True, eq=False)
    class Hidden(Result):
        x: int

    with pytest.raises(TypeError, match="module level"):
        Hidden(1).save(tmp_path)


def test_repr_is_short_and_names_shapes():
    text = repr(Sample(torch.zeros(1000, 1000), second="x" * 500))
    assert len(text.splitlines()) < 20 and len(text) < 300 and "[1000, 1000]" in text


def test_another_version_says_delete_it_to_recompute(tmp_path, monkeypatch):
    Sample(1).save(tmp_path)
    monkeypatch.setattr(Sample, "VERSION", 4)
    with pytest.raises(ValueError, match="version 3 and this code reads version 4; delete it to recompute"):
        load_result(tmp_path)


def rewrite(folder: Path, change: Any) -> None:
    """Change a saved result and give it a right digest, as someone who means harm would."""
    document = json.loads((folder / "result.json").read_text())
    document.pop("sha256")
    change(document)
    write_json(folder / "result.json", document | {"sha256": canonical_sha256(document)})


@pytest.mark.parametrize(
    "name",
    ["os:system", "subprocess:Popen", "mechinterp.__main__:main", "builtins:eval", "mechinterp.results:Path",
     "mechinterp.results:load_result", "mechinterp..results:Result", "../x:y", "studies.none:Gone",
     "pathlib:Path", "this:s", "mechinterp.runs:Cell", "unittest.mock:Mock", ":", ""],
)  # fmt: skip
def test_fault_087_no_class_outside_our_packages_is_built_from_a_file(name, tmp_path):
    import sys

    Sample(1).save(tmp_path)
    rewrite(tmp_path, lambda document: document["result"].update({"$record": name}))
    with pytest.raises(ValueError, match="class|dataclass"):
        load_result(tmp_path)
    assert "this" not in sys.modules


def test_other_fields_and_newer_layouts_are_refused(tmp_path):
    Sample(1).save(tmp_path)
    rewrite(tmp_path, lambda document: document["result"]["fields"].update({"third": 1}))
    with pytest.raises(ValueError, match="third"):
        load_result(tmp_path)
    rewrite(tmp_path, lambda document: document.update({"schema_version": 2}))
    with pytest.raises(ValueError, match="update mechinterp"):
        load_result(tmp_path)


def test_a_folder_without_a_result_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved result"):
        load_result(tmp_path)


def damages(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[-3] ^= 1
    return {
        "truncated": data[:-5],
        "empty": b"",
        "garbage": b"\x00" * 64,
        "header": b"\x10" + data[1:],
        "huge": b"\xff" * 8 + data[8:],
        "trailing": data + b"x",
        "flipped": bytes(flipped),
    }


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "header", "huge", "trailing", "flipped"])
@pytest.mark.parametrize("name", ["tensors.safetensors", "result.json"])
def test_fault_085_and_086_damage_is_found_and_the_file_named(damage, name, tmp_path):
    path = Sample(torch.randn(8), second=1.25).save(tmp_path) / name
    path.write_bytes(damages(path.read_bytes())[damage])
    with pytest.raises(ValueError, match=name):
        load_result(tmp_path)


def test_fault_086_every_flipped_bit_of_the_json_is_found(tmp_path):
    path = Sample({"rate": 0.5, "name": "villain"}, second=(1, None)).save(tmp_path) / "result.json"
    data = path.read_bytes()
    missed = []
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x04
        path.write_bytes(bytes(changed))
        try:
            back = load_result(tmp_path)
        except ValueError:
            continue
        if back.held != {"rate": 0.5, "name": "villain"} or back.second != (1, None):
            missed.append(place)
    assert not missed


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "header", "huge", "trailing"])
def test_fault_085_broken_tensor_files_of_others_are_named(damage, tmp_path):
    data = (Sample(torch.randn(8)).save(tmp_path) / "tensors.safetensors").read_bytes()
    (tmp_path / "foreign.safetensors").write_bytes(damages(data)[damage])
    with pytest.raises(ValueError, match="foreign.safetensors"):
        read_tensors(tmp_path / "foreign.safetensors")


def test_fault_080_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(
        "os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_fault_081_a_reader_of_the_old_file_never_sees_the_new_one_half_written(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"


# JSON


def test_fault_091_json_has_no_nan_and_no_foreign_scalars(tmp_path):
    value = {
        "nan": math.nan, "deep": [(np.float32(0.5), -math.inf)], "array": np.array([1.0, np.nan]),
        3: np.int64(4), "tensor": torch.tensor([[1.5, math.inf]], dtype=torch.bfloat16),
        "flag": np.bool_(True), "path": Path("a/b"),
        np.int64(7): Site("z", 1), "scalar": torch.tensor(2),
    }  # fmt: skip

    def constant(name):
        raise AssertionError(f"{name} in the file")

    assert json.loads(dumps(value), parse_constant=constant) == {
        "nan": None, "deep": [[0.5, None]], "array": [1.0, None], "3": 4, "tensor": [[1.5, None]],
        "flag": True, "path": "a/b", "7": {"name": "z", "layer": 1}, "scalar": 2,
    }  # fmt: skip


@given(value=NESTED.filter(lambda value: not isinstance(value, Inner)))
def test_fault_091_the_writer_gives_strict_json_or_says_what_it_cannot_hold(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "x.json"
    try:
        write_json(path, value)
    except (TypeError, ValueError) as error:
        assert "key" in str(error)
        return
    json.loads(path.read_bytes(), parse_constant=pytest.fail)


def test_fault_091_a_bare_nan_of_a_foreign_file_is_read(tmp_path):
    (tmp_path / "x.json").write_text('\ufeff{"a": NaN}')
    assert math.isnan(read_json(tmp_path / "x.json")["a"])


@given(text=st.text(st.characters(codec=None)))
@example(text="\ud800")
def test_any_text_is_read_back_even_lone_surrogates(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "x.json"
    write_json(path, text)
    assert read_json(path) == text


@pytest.mark.parametrize("data", [b'{"a": 1', b"", b"\xff\xfe", b'{"a": 1}}'])
def test_broken_json_is_refused_by_name(data, tmp_path):
    (tmp_path / "roles.json").write_bytes(data)
    with pytest.raises(ValueError, match="roles.json"):
        read_json(tmp_path / "roles.json")


def test_fault_054_a_key_given_twice_in_a_file_is_refused(tmp_path):
    (tmp_path / "roles.json").write_text('{"personas": {"villain": 1, "judge": 2, "villain": 3}}')
    with pytest.raises(ValueError, match="'villain' twice"):
        read_json(tmp_path / "roles.json")


def test_fault_084_json_lines_forgive_a_cut_end_but_not_a_broken_middle(tmp_path):
    path = tmp_path / "log.jsonl"
    append_line(path, {"a": 1}), append_line(path, {"b": math.nan})
    assert read_lines(path) == [{"a": 1}, {"b": None}]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="cut short"):
        assert read_lines(path) == [{"a": 1}]
    path.write_bytes(b'{"a": 1}\n{"b"\n{"c": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_lines(path)


# Names

HARD = [
    "../../x", "/etc/passwd", "CON", "con.txt", "a" * 300, "org/name", "", ".", "..", " ", "a.", "Villain",
    "villain", "VILLAIN", "é", "e\u0301", "E\u0301", "\x00", "ß", "ss", "a\nb", "~", "-x", "nul",
    "lpt1.json", "\udc80", "名前", "a:b", "a\\b", ".hidden",
]  # fmt: skip


def test_fault_092_hard_names_are_safe_and_stay_different(tmp_path):
    made = [slug(name) for name in HARD]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in made}) == len(HARD)
    for name in made:
        inside(tmp_path, tmp_path / name)
        assert 0 < len(name) <= 60 and name.isascii() and "/" not in name and name.strip(". ") == name
        assert name.split(".")[0] not in {"con", "nul", "lpt1"}
        (tmp_path / name).write_text("x")
    assert len(list(tmp_path.iterdir())) == len(HARD)


@given(
    names=st.lists(
        st.text(st.characters(codec=None)) | st.from_regex(r"[a-cA-C.-]{0,12}"), unique=True, max_size=8
    )
)
def test_fault_092_different_names_never_share_a_file(names):
    made = [slug(name) for name in names]
    assert len({name.casefold() for name in made}) == len(names)
    assert all(slug(name) != name or name == name.lower() for name in names)


def test_plain_names_are_kept_and_no_name_can_pose_as_anothers_slug():
    assert slug("villain_2.json") == "villain_2.json"
    assert slug(slug("Villain")) != slug("Villain")


def test_fault_092_a_path_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    for path in ("../x", "link/x", "/etc"):
        with pytest.raises(ValueError, match="outside"):
            inside(tmp_path / "run", tmp_path / "run" / path)


@pytest.mark.parametrize(
    "names", [["Judge", "judge"], ["\u00e9", "e\u0301"], ["a", " "], ["a", "a"], ["ß", "SS"]]
)
def test_fault_054_names_that_are_one_to_a_file_system_are_refused(names):
    with pytest.raises(ValueError, match="persona"):
        unique_names(names, what="persona")


def test_fault_102_no_cell_of_a_table_is_a_formula(tmp_path):
    frame = pd.DataFrame({"=name": ["=1+1", "@x", "-2", "+3", "plain"], "n": [-1, 2, 3, 4, 5]})
    write_csv(tmp_path / "t.csv", frame)
    back = pd.read_csv(tmp_path / "t.csv")
    assert back.columns[0] == "'=name" and back.iloc[:, 0].tolist() == ["'=1+1", "'@x", "'-2", "'+3", "plain"]
    assert back["n"].tolist() == [-1, 2, 3, 4, 5]


def test_fault_094_writers_at_one_moment_do_not_meet(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    texts = [bytes([65 + n]) * 20_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_bytes(tmp_path / "x", text), texts * 4))
    assert (tmp_path / "x").read_bytes() in texts and len(list(tmp_path.iterdir())) == 1


def test_one_writer_is_reachable_from_results():
    assert results.write_json is write_json and results.read_json is read_json
