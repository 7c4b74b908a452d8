"""The certificate: right backends pass, and each way of being wrong is named by what it is wrong in."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import mechinterp as mi
from mechinterp.certificate import Certificate, certify
from mechinterp.comparison import Check, compare, truth_of
from mechinterp.results import load_result
from mechinterp.sites import WRITABLE
from tests.architectures import tiny
from tests.passes import BACKENDS, HAS_HOOKED

TOKENS = torch.randint(2, 211, (1, 12), generator=torch.Generator().manual_seed(1))


@cache
def model(family: str) -> mi.Model:
    return mi.wrap(tiny(family), None, name=f"tiny {family}")


@cache
def truth(family: str):
    return truth_of(model(family), TOKENS, n_tokens=8, seed=0)


@cache
def certificate(family: str) -> Certificate:
    return certify(model(family), backends=BACKENDS, n_tokens=8)  # type: ignore


class Changed:
    """The reference with something wrong; everything else is its own."""

    def __init__(self, inner: Any, wrong: Any):
        self.inner, self.wrong, self.name = inner, wrong, "wrong"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def forward(self, request: Any, recorder: Any) -> Any:
        outcome = self.inner.forward(request, recorder)
        return self.wrong(outcome, recorder, request) or outcome


def checks_of(wrong: Any, family: str = "llama") -> tuple[Check, ...]:
    reference = model(family)
    return compare(replace(reference, backend=Changed(reference.backend, wrong)), truth(family))


def failures(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.what: check for check in checks if not check.passed}


def tiny_adapter(hf_model: Any, layers: list[str], folder: Path) -> Path:
    """A LoRA adapter on these layers, large enough to be seen in every check."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        trained = get_peft_model(hf_model, LoraConfig(r=2, lora_alpha=4, target_modules=layers))
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(str(folder))
    return folder


# right ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_right_backends_pass_every_check(family: str):
    found = certificate(family)
    assert found.passed, str(found)
    assert found.backends == ("transformers", *BACKENDS)
    assert found.verdict.startswith("PASS") and not found.left_out


def test_what_is_compared_is_every_site_every_edit_at_every_writable_site_and_the_ids():
    for backend in BACKENDS:
        own = [c for c in certificate("llama").checks if c.backend == backend]
        read = {c.what for c in own if c.kind == "read"}
        assert read == {*model("llama").backend.sites, "logits"}
        assert {"q", "k", "v", "q_rot", "k_rot", "pattern", "resid_mid"} <= read
        edits = ("Add", "Replace", "ProjectOut", "Clamp", "Rotate", "Apply")
        assert {c.what for c in own if c.kind == "write"} == {f"{e} at {s}" for e in edits for s in WRITABLE}
        assert len([c for c in own if c.kind == "ids"]) == 2
        assert len([c for c in own if c.kind == "identity"]) >= 8


def test_no_edit_is_too_weak_to_prove_anything():
    moved = [c.moved for c in certificate("gemma2").checks if c.kind == "write"]
    assert all(m is not None and m > 0.01 for m in moved)


def test_the_reference_runs_steered_then_free_and_the_steering_shows():
    asked = truth("llama")
    plain = mi.sample(model("llama"), TOKENS, [mi.Phase(8)], stop=frozenset()).generated[0]
    assert len(asked.ids["greedy"]) == 8 and not torch.equal(asked.ids["greedy"], plain)


def test_half_precision_has_its_own_gate_and_says_what_it_hides():
    made = mi.wrap(tiny("llama").to(torch.bfloat16), None, name="tiny bf16")
    found = certify(made, backends=["nnsight"], n_tokens=4)
    assert found.passed and found.gate == 5e-2 and "float32" in str(found)


def test_the_users_model_is_as_before():
    hf_model = tiny("llama")
    before = {name: type(module) for name, module in hf_model.named_modules()}
    kernel = hf_model.config._attn_implementation  # type: ignore
    certify(mi.wrap(hf_model, None), backends=["nnsight", "transformer_bridge"], n_tokens=2)
    assert {name: type(module) for name, module in hf_model.named_modules()} == before
    assert hf_model.config._attn_implementation == kernel  # type: ignore
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf_model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_an_adapter_is_certified_on_every_backend_where_lora_layers_cannot_run_as_well(family: str, tmp_path):
    """HookedTransformer, and the bridge of a fused projection, read weights: the adapter is merged there."""
    layers = ["q_proj", "up_proj"] if family == "llama" else ["query_key_value", "dense"]
    adapter = tiny_adapter(tiny(family), layers, tmp_path)
    found = certify(model(family), adapter=adapter, backends=BACKENDS, n_tokens=4)  # type: ignore
    assert found.passed and not found.left_out, str(found)
    assert found.model == f"tiny {family}+{tmp_path.name}"
    assert found.weights_sha256 != model(family).weights_sha256
    ready = certify(mi.with_adapter(model(family), adapter), backends=["nnsight"], n_tokens=4)
    assert ready.passed and ready.weights_sha256 == found.weights_sha256
    with pytest.raises(ValueError, match="active adapters"):
        certify(mi.with_adapter(model(family), adapter), adapter=adapter)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_embedded_model_is_certified_on_every_backend(real: mi.Model):
    found = certify(real, backends=BACKENDS, n_tokens=6)  # type: ignore  # 64 on tiny models: test_same_tokens
    assert found.passed and found.prompt == "chat" and not found.left_out, str(found)


# wrong ------------------------------------------------------------------------------------------------------


def test_a_site_that_is_read_a_thousandth_too_large_is_named_and_nothing_else_is():
    def wrong(outcome: Any, recorder: Any, request: Any) -> None:
        for site in recorder.values:
            if site.name == "attn_out":
                recorder.values[site] = recorder.values[site] * 1.001

    found = failures(checks_of(wrong))
    assert set(found) == {"attn_out", "resid_mid", "identities of a block"}  # resid_mid is made of it
    assert found["attn_out"].error == pytest.approx(1e-3, rel=1e-3)
    assert found["attn_out"].where.startswith("attn_out of layer")


def test_one_wrong_layer_is_named():
    def wrong(outcome: Any, recorder: Any, request: Any) -> None:
        for site in recorder.values:
            if (site.name, site.layer) == ("q_rot", 1):
                recorder.values[site] = recorder.values[site].roll(1, dims=1)

    found = failures(checks_of(wrong))
    assert set(found) >= {"q_rot"} and found["q_rot"].where == "q_rot of layer 1"


def test_an_edit_that_is_not_written_is_named():
    def wrong(outcome: Any, recorder: Any, request: Any) -> Any:
        if [edit.site.name for edit in request.interventions] == ["z"] and len(request.tokens) == 1:
            natural = truth("llama").logits[:, -outcome.logits.shape[1] :]
            return replace(outcome, logits=natural)
        return None

    found = failures(checks_of(wrong))
    assert {name.split(" at ")[1] for name in found} == {"z"} and len(found) == 6
    assert all(check.error is not None and check.error > 0.01 for check in found.values())


def test_ids_that_differ_are_told_with_the_token_and_how_far_from_a_tie():
    def wrong(outcome: Any, recorder: Any, request: Any) -> Any:
        if request.cache is None or request.cache.n_slots < 16:  # after the pass
            return None
        return replace(outcome, logits=-outcome.logits)

    found = failures(checks_of(wrong))
    assert {"greedy, steered then free", "sampled, steered then free"} <= set(found)
    said = found["greedy, steered then free"].said
    assert "differ first at token 4 of 8 (free)" in said and "no tie: a logit difference of" in said


def test_candidates_at_a_tie_pass_and_are_told():
    hf_model: Any = tiny("llama")
    hf_model.lm_head.weight.data[1::2] = hf_model.lm_head.weight.data[:-1:2]  # ids 2k and 2k + 1 always tie
    reference = mi.wrap(hf_model, None)
    nudge = torch.zeros(211)
    nudge[1::2] = 1e-5

    def wrong(outcome: Any, recorder: Any, request: Any) -> Any:
        return None if outcome.logits is None else replace(outcome, logits=outcome.logits + nudge)

    other = replace(reference, backend=Changed(reference.backend, wrong))
    found = compare(other, truth_of(reference, TOKENS, n_tokens=4, seed=0))
    greedy = next(c for c in found if c.what.startswith("greedy"))
    assert greedy.passed and "differ first at token 0" in greedy.said and "a tie" in greedy.said


def test_the_distance_of_a_drawn_id_is_how_far_the_draw_must_move():
    from mechinterp import drawing
    from mechinterp.comparison import TOP_P, _agreement

    asked = truth("llama")
    row = model("llama").forward(TOKENS, interventions=[], logits_at=[-1]).logits[0]  # type: ignore
    free = replace(asked, n_tokens=1, ids={})  # one token: half of it, none, is steered
    uniform = drawing.uniforms(0, ["certificate"], 1)[:, 0]

    def drawn(move: float) -> int:
        return int(drawing.draw(row, (uniform + move).clamp(0, 1), 0.8, TOP_P))

    free.ids["sampled"] = torch.tensor([drawn(0.0)])
    move = next(m for m in (0.002 * 1.3**i for i in range(20)) if drawn(m) != drawn(0.0))
    other = torch.tensor([drawn(move)])
    passed, said = _agreement(other, free.ids["sampled"], free, "sampled")
    assert not passed and "a move of the draw" in said
    distance = float(said.split("move of the draw of ")[1].split()[0])
    assert move / 1.4 < distance <= move * 1.06  # one digit is printed


def test_a_backend_that_breaks_fails_in_its_own_words_and_json_holds_no_nan():
    def wrong(outcome: Any, recorder: Any, request: Any) -> Any:
        if any(site.name == "pattern" for site in request.capture):
            raise RuntimeError("no pattern here")
        return None if outcome.logits is None else replace(outcome, logits=outcome.logits * torch.nan)

    found = failures(checks_of(wrong))
    assert "no pattern here" in found["pattern"].said
    assert "not finite" in found["logits"].said and found["logits"].error is None
    broken = replace(certificate("llama"), checks=tuple(found.values()))
    assert not broken.passed and "FAIL" in str(broken)
    json.dumps(broken.to_json(), allow_nan=False)


def test_values_that_are_not_numbers_fail_wherever_they_are():
    def wrong(outcome: Any, recorder: Any, request: Any) -> None:
        for site in recorder.values:
            if (site.name, site.layer) == ("mlp_out", 1):
                recorder.values[site] = recorder.values[site] * torch.nan

    found = failures(checks_of(wrong))
    assert found["mlp_out"].where == "mlp_out of layer 1" and found["mlp_out"].error is None


@pytest.mark.skipif(not HAS_HOOKED, reason="this transformer-lens has no HookedTransformer")
def test_an_unsupported_backend_is_left_out_with_its_reason_and_certifies_nothing():
    found = certify(model("olmo2"), backends=["hooked_transformer"], n_tokens=2)
    assert "hooked_transformer" in found.left_out and found.left_out["hooked_transformer"]
    assert not found.passed and "no backend could be compared" in found.verdict
    assert "not compared, hooked_transformer" in str(found)


# at the door ------------------------------------------------------------------------------------------------


def test_bad_requests_are_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="no backend 'nnsigt'; the backends are transformers, nnsight"):
        certify("there/is-no-such-model", backends=["nnsigt"])  # type: ignore
    with pytest.raises(ValueError, match="ask for 2 or more"):
        certify("there/is-no-such-model", n_tokens=1)
    with pytest.raises(ValueError, match="at most 144 tokens"):
        certify(model("llama"), n_tokens=145)


def test_a_model_on_another_backend_cannot_be_the_reference():
    with pytest.raises(ValueError, match="on the nnsight backend, and transformers is the reference"):
        certify(mi.wrap(tiny("llama"), None, backend="nnsight"))


# as data ----------------------------------------------------------------------------------------------------


def test_json_and_files_give_it_back(tmp_path: Any):
    found = certificate("llama")
    table = found.to_json()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert table["passed"] is True and len(table["checks"]) == len(found.checks)
    again = load_result(found.save(tmp_path))
    assert again.digest() == found.digest() and str(again) == str(found)


def test_the_table_has_a_line_and_a_verdict_for_everything_that_was_compared():
    found = certificate("gemma2")
    lines = str(found).splitlines()
    for check in found.checks:
        assert any(line.startswith(f"{check.kind:<8}  {check.what} ") for line in lines), check.what
    judged = [line for line in lines if line.endswith(("PASS", "FAIL"))]
    assert len(judged) == len({(c.kind, c.what) for c in found.checks})
    assert len({line.rindex("  ") for line in judged}) == 1, "columns are not aligned"


def test_one_row_a_check():
    df = certificate("llama").to_dataframe()
    assert len(df) == len(certificate("llama").checks) and {"backend", "what", "error", "passed"} <= set(df)


def test_fault_100_the_figure_shows_a_hostile_name_as_text():
    figure = replace(certificate("llama"), model="<img src=x onerror=alert(1)>").figure()
    assert "<img" not in figure.layout.title.subtitle.text  # type: ignore
    assert figure.layout.yaxis.type == "log"  # type: ignore
    drawn = {trace.name for trace in figure.data}  # type: ignore
    assert drawn == set(BACKENDS)
