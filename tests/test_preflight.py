"""The preflight: a kernel that is right passes it and leaves no trace, a wrong one shows in every figure."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechinterp.backends.twin import twin
from mechinterp.json_io import write_json
from mechinterp.loading import make_backend, wrap
from mechinterp.model import Model
from mechinterp.results import load_result
from probes.preflight import Preflight, _own_kernel, compare_with_eager, eager_twin
from studies.attention_formats import read_preflight
from tests.architectures import shared
from tests.passes import HAS_HOOKED, made


def preflight(eager: list[bool], own: list[bool], **changes: Any) -> Preflight:
    found = Preflight(
        model="m", weights_sha256="0", dtype="float32", kernel="sdpa", marker="[ZLT]",
        found_eager=torch.tensor(eager), found_own=torch.tensor(own), identical=0, n_prompts=1, n_tokens=8,
        temperature=1.0, top_p=0.95, seed=42, tolerance=0.05, logit_error=1e-5,
        row_errors=torch.tensor([1e-7, 3e-7]),
    )  # fmt: skip
    return replace(found, **changes)


def short(model: Model, **changes: Any) -> Preflight:
    prompts = [model.chat(q, system="You are a librarian.") for q in ("What is the sea?", "Why?")]
    asked = {"marker": "the", "n_each": 2, "n_tokens": 6, **changes}
    return compare_with_eager(model, prompts, **asked)


@pytest.fixture(scope="module")
def found(real) -> Preflight:
    return short(real)


@pytest.mark.real
def test_the_models_own_kernel_is_eager_to_rounding(found):
    assert found.kernel == "sdpa" and len(found.found_own) == 4
    assert 0 < found.logit_error < 3e-4 and 0 < float(found.row_errors.max()) < 5e-6
    assert found.row_errors.shape == (30,)
    assert found.identical == 4 and found.delta == 0 and found.paired_se == 0 and found.passed


@pytest.mark.real
def test_the_model_is_as_it_was(found, real, real_hf):
    """`unharmed` looks for hooks; the twin that runs eagerly has a config of its own and the same tensors."""
    assert real_hf.config._attn_implementation == "sdpa" and not real_hf.config.output_attentions
    other: Any = eager_twin(real).backend.model  # type: ignore
    assert other.config._attn_implementation == "eager" and real_hf.config._attn_implementation == "sdpa"
    pairs = zip(other.parameters(), real_hf.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)


@pytest.mark.real
def test_a_kernel_that_is_wrong_shows_in_logits_rows_and_ids(real, real_hf):
    """Planted: a kernel that forgets the newest key. Nothing but the comparison can tell."""
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def forgetful(module, query, key, value, *args, **kwargs):
        value = value.clone()
        value[:, :, -1] = 0
        return kernel(module, query, key, value, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = forgetful
    try:
        backend, _ = make_backend("transformers", twin(real_hf), real.backend.anatomy)
        wrong = short(replace(real, backend=backend), n_each=1, n_tokens=4)
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert wrong.logit_error > 0.5 and float(wrong.row_errors.max()) > 0.01 and wrong.identical < 2


def test_the_standard_error_is_of_the_difference_of_two_rates():
    """Methods 9.2: at the published rates and K = 200 the tolerance is barely more than one error."""
    published = preflight([True] * 42 + [False] * 158, [True] * 41 + [False] * 159)
    assert published.rates == {"eager": 0.21, "sdpa": 0.205} and published.passed
    assert published.delta == pytest.approx(0.005)
    assert published.se == pytest.approx(math.sqrt((0.21 * 0.79 + 0.205 * 0.795) / 200))
    assert published.se == pytest.approx(0.041, abs=5e-4)
    difference = torch.tensor([1.0] + [0.0] * 199).double()
    assert published.paired_se == pytest.approx(float(difference.std()) / math.sqrt(200))


@pytest.mark.parametrize(("differing", "passed"), [(10, True), (11, False)])
@pytest.mark.parametrize("eager_is_higher", [True, False])
def test_the_tolerance_is_kept_on_both_sides(differing, passed, eager_is_higher):
    more, fewer = [True] * (60 + differing) + [False] * (140 - differing), [True] * 60 + [False] * 140
    found = preflight(*((more, fewer) if eager_is_higher else (fewer, more)))
    assert found.passed is passed and found.delta == pytest.approx(differing / 200)


def test_what_it_writes_is_the_published_file(tmp_path):
    found = preflight([True, False], [True, True])
    write_json(tmp_path / "preflight.json", found.to_json())
    read = read_preflight(tmp_path / "preflight.json")
    assert (read.rates, read.delta, read.tolerance_pp, read.passed) == (found.rates, 0.5, 0.05, False)
    assert read.extra["se"] == found.se and read.metadata is not None and read.metadata["kernel"] == "sdpa"
    alone = preflight([True], [True]).to_json()
    assert alone["paired_se"] is None and json.dumps(alone, allow_nan=False)


def test_table_and_saved_result(tmp_path):
    found = preflight([True, False, False], [True, True, False])
    table = found.to_dataframe().set_index("kernel")
    assert table.found.to_dict() == {"eager": 1, "sdpa": 2} and (table.total == 3).all()
    assert ((table.low < table.rate) & (table.rate < table.high)).all()
    assert load_result(found.save(tmp_path)).digest() == found.digest()


def test_the_figure_shows_rows_by_layer_and_says_the_rates():
    figure = preflight([True, False], [True, True]).figure()
    line = figure.data[0]  # type: ignore
    assert_close(torch.tensor(line.y), torch.tensor([1e-7, 3e-7]))
    said = figure.layout.meta["subtitle"]
    assert "eager 0.500, sdpa 1.000" in said and "fail" in said


def test_an_own_kernel_that_is_eager_has_a_name_of_its_own():
    """Two rates need two names: the bridge and soft-capped models run eagerly already."""
    capped = wrap(shared("gemma2"), None, verify=False)
    named = replace(capped, source={**capped.source, "attention": "eager"})
    assert _own_kernel(named) == "transformers's own eager"


def test_nothing_to_compare_is_refused():
    model = wrap(shared("llama"), None, verify=False)
    with pytest.raises(ValueError, match="0 prompts with 10 completions"):
        compare_with_eager(model, [])


@pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has no HookedTransformer")
def test_a_backend_without_a_hugging_face_model_is_refused():
    hooked = Model("tiny", made("llama", "hooked_transformer"), None, "")
    with pytest.raises(ValueError, match="keeps no Hugging Face model"):
        eager_twin(hooked)
