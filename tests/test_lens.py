"""The lens: a model stopped after each layer, its last entry the model itself, on every backend."""

import json
import math
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import probes
from mechinterp.backends.anatomy import anatomy_of, module_at
from mechinterp.backends.hf import first, with_first
from mechinterp.backends.twin import twin
from mechinterp.loading import wrap
from mechinterp.model import Model
from mechinterp.results import load_result
from probes import lens_batch, lens_read
from probes.lens import LogitLens, logit_lens
from probes.lens_batch import lens_values
from probes.lens_pair import OTHER_HEAD, compare_heads, compare_lenses
from probes.translators import Translators, load_translators, read_tuned_lens, save_translators
from tests.architectures import FAMILIES, shared, tiny
from tests.passes import PAIRS, made

N, V = 20, 211
ROWS = [3, 19, 11]
TARGETS = {"marker": 17, "ends": [44, 0, 1], "other": [99]}
VERSUS = [("marker", "ends"), ("other", "marker")]
ASKED: Any = {"rows": ROWS, "targets": TARGETS, "pairs": VERSUS, "top_k": 4}
WRONG = {  # rows of an anatomy that are off by what is behind the last layer
    "llama": {"final_norm": "model.layers.1.input_layernorm"},
    "gemma2": {"softcap": None},
    "granite": {"logit_scale": None},
    "gpt2": {"final_norm": "transformer.h.0.ln_1"},
}


def ids(n: int = N, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, V, (n,), generator=torch.Generator().manual_seed(seed))


@cache
def model(family: str) -> Model:
    return wrap(shared(family), None, verify=False)


def layers_of(hf: Any) -> Any:
    return module_at(hf, anatomy_of(hf.config).layers)


@torch.no_grad()
def states_of(hf: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What each block of the library's own model returns."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: found.append(first(out).clone()))
        for layer in layers_of(hf)
    ]
    try:
        hf(tokens[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def naive(hf: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[layer position d_vocab]: the model's own logits where its last block returns a layer's state."""
    found = []
    for state in states_of(hf, tokens):
        last = layers_of(hf)[-1]
        hook = last.register_forward_hook(lambda _m, _a, out, state=state: with_first(out, state))
        try:
            found.append(hf(tokens[None], use_cache=False).logits[0])
        finally:
            hook.remove()
    return torch.stack(found)


@cache
def expected(family: str) -> torch.Tensor:
    """[row layer d_vocab]"""
    return naive(shared(family), ids())[:, ROWS].movedim(0, 1).double()


def assert_is_the_lens_of(found: Any, logits: torch.Tensor, atol: float = 2e-5) -> None:
    """Every measure, by its definition, from logits of the whole vocabulary."""
    log_p = logits.log_softmax(-1)
    groups = [[17], [44, 0, 1], [99]]
    of_group = torch.stack([log_p[..., group].logsumexp(-1) for group in groups], -1)
    of_logit = torch.stack([logits[..., group].logsumexp(-1) for group in groups], -1)
    best = torch.stack([logits[..., group].amax(-1) for group in groups], -1)
    assert_close(found.log_prob.double(), of_group, atol=atol, rtol=0)
    differences = torch.stack([of_logit[..., 0] - of_logit[..., 1], of_logit[..., 2] - of_logit[..., 0]], -1)
    assert_close(found.difference.double(), differences, atol=atol, rtol=0)
    above = [(logits[..., None, :] > (best + off)[..., None]).sum(-1) for off in (atol, -atol)]
    assert (above[0] <= found.rank).all() and (found.rank <= above[1]).all()
    assert (found.ties == 0).all()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert_close(found.entropy.double(), entropy, atol=atol, rtol=0)
    k = found.top_ids.shape[-1]
    assert_close(found.top_log_probs.double(), log_p.topk(k).values, atol=atol, rtol=0)
    assert_close(log_p.gather(-1, found.top_ids), log_p.topk(k).values, atol=atol, rtol=0)


# the numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_060_each_layer_is_what_the_model_says_if_it_stops_there(family):
    found = logit_lens(model(family), ids(), **ASKED)
    assert found.log_prob.shape == (3, 3, 3) and found.log_prob.dtype == torch.float32
    assert_is_the_lens_of(found, expected(family))
    assert found.gate_error < 3e-6


@pytest.mark.parametrize(("family", "kind"), [(f, k) for f, k in PAIRS if f in WRONG])
def test_every_backend_gives_the_same_lens(family, kind):
    other = Model("tiny", made(family, kind), None, "")
    found = logit_lens(other, ids(), **ASKED)
    assert_is_the_lens_of(found, expected(family), atol=5e-5)
    assert found.gate_error < 3e-6


@pytest.mark.parametrize("cap", [0.5, 3.0])
def test_soft_capping_is_in_every_layer(cap):
    capped: Any = tiny("gemma2")
    capped.config.final_logit_softcapping = cap
    found = logit_lens(wrap(capped, None), ids(), **ASKED)
    logits = naive(capped, ids())[:, ROWS].movedim(0, 1).double()
    assert logits.abs().max() <= cap, "the naive lens is capped by the library"
    assert_is_the_lens_of(found, logits)


def test_the_logit_scale_is_in_every_layer():
    scaled: Any = tiny("granite")
    scaled.config.logits_scaling = 0.25
    found = logit_lens(wrap(scaled, None), ids(), **ASKED)
    assert_is_the_lens_of(found, naive(scaled, ids())[:, ROWS].movedim(0, 1).double(), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
def test_fault_111_logits_of_a_bfloat16_model_are_computed_in_fp32(family):
    """Rounded to bfloat16, tokens share logits; nothing behind the norm is rounded here."""
    narrow: Any = tiny(family).to(torch.bfloat16)
    made = wrap(narrow, None)
    found = logit_lens(made, ids(), **ASKED)
    states = torch.stack(states_of(narrow, ids()))[:, 0, ROWS].movedim(0, 1)
    rounded = made.unembed(states).float()
    assert len(rounded[0, 0].unique()) < V, "bfloat16 has ties here"
    norm: Any = module_at(narrow, anatomy_of(narrow.config).final_norm)
    logits = norm(states).double() @ narrow.get_output_embeddings().weight.double().T
    logits = logits / getattr(narrow.config, "logits_scaling", 1.0)
    cap = getattr(narrow.config, "final_logit_softcapping", None)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    assert_is_the_lens_of(found, logits, atol=1e-4)
    assert found.dtype == "bfloat16" and found.log_prob.dtype == torch.float32


def test_ties_are_the_others_with_the_same_logit():
    logits = torch.tensor([[3.0, 1.0, 1.0, 2.0, 1.0, 3.0, -math.inf]])
    asked = lens_read.Asked(("a", "b", "c", "d"), ((1,), (1, 2), (0,), (6,)), ((0, 3),), 0)
    found = lens_read.measured(logits, asked)
    assert found.rank.tolist() == [[3, 3, 0, 6]] and found.ties.tolist() == [[2, 1, 1, 0]]
    p = logits.double().softmax(-1)[0]
    assert_close(found.entropy.double(), -(p[:6] * p[:6].log()).sum()[None], atol=1e-6, rtol=0)
    assert_close(found.log_prob[0, 1].double(), (2 * p[1]).log(), atol=1e-6, rtol=0)
    assert found.log_prob[0, 3] == -math.inf and found.difference[0, 0] == math.inf


# the gate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", WRONG)
def test_fault_060_a_wrong_head_is_refused_and_nothing_returned(family):
    hf: Any = tiny(family)
    if family == "gemma2":
        hf.config.final_logit_softcapping = 3.0
    row = replace(anatomy_of(hf.config), **WRONG[family])
    with pytest.raises(ValueError, match="after the last layer the lens differs from the logits of"):
        logit_lens(wrap(hf, None, anatomy=row, verify=False), ids(), **ASKED)
    assert logit_lens(wrap(hf, None, verify=False), ids(), **ASKED).gate_error < 3e-6


def test_fault_074_logits_that_are_edited_elsewhere_or_nan_are_refused():
    hf: Any = tiny("llama")
    edited = wrap(hf, None)

    def louder(_module: Any, _args: Any, output: Any) -> Any:
        output.logits = output.logits * 1.001
        return output

    hook = hf.register_forward_hook(louder)
    with pytest.raises(ValueError, match="differs from the logits"):
        logit_lens(edited, ids(), rows=[19], targets=[17])
    hook.remove()
    hf.lm_head.weight.data[5] = torch.nan
    with pytest.raises(FloatingPointError):
        logit_lens(edited, ids(), rows=[19], targets=[17])


def test_every_text_of_a_batch_passes_the_gate(monkeypatch):
    """However many rows are asked for, at least one of each text is held to the model's own logits."""
    monkeypatch.setattr(lens_batch, "GATED", 4)
    seen: list[int] = []
    real = lens_read.distance

    def noted(found: torch.Tensor, own: torch.Tensor) -> float:
        seen.append(len(own))
        return real(found, own)

    monkeypatch.setattr(lens_read, "distance", noted)
    lens_values(model("llama"), [ids()] * 2, [range(10)] * 2, targets=[5])
    lens_values(model("llama"), [ids()] * 7, [[3, 4]] * 7, targets=[5])
    assert sum(seen) == 2 * 2 + 7


# memory and batches -----------------------------------------------------------------------------------------


def test_no_more_logits_than_a_block_of_rows_ever_exist(monkeypatch):
    monkeypatch.setattr(lens_read, "ROWS", 7)
    sizes = []
    head_logits = lens_read.head_logits

    def noted(made: Model, states: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        return head_logits(made, states)

    monkeypatch.setattr(lens_read, "head_logits", noted)
    monkeypatch.setattr(lens_read, "TILE", 3)
    found = logit_lens(model("llama"), ids(), **ASKED)
    assert sizes == [7, 2]
    assert_is_the_lens_of(found, expected("llama"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_fault_049_any_batch_gives_what_each_text_gives_alone(family, monkeypatch):
    monkeypatch.setattr(lens_batch, "SLOTS", 64)
    monkeypatch.setattr(lens_read, "ROWS", 5)
    lengths = [9, 30, 12, 25, 11, 30, 70]
    texts = [ids(n, seed=n) for n in lengths]
    rows = [[-1, 3, n // 2] for n in lengths]
    asked: Any = {"targets": TARGETS, "pairs": VERSUS, "top_k": 2}
    together = lens_values(model(family), texts, rows, **asked)
    assert together.log_prob.shape == (7, 3, 3, 3) and together.top_ids.shape == (7, 3, 3, 2)
    for place, (text, wanted) in enumerate(zip(texts, rows, strict=True)):
        alone = logit_lens(model(family), text, rows=wanted, **asked)
        for name in ("log_prob", "difference", "entropy", "top_log_probs"):
            assert_close(getattr(together, name)[place], getattr(alone, name), atol=2e-5, rtol=0)
        assert torch.equal(together.rank[place], alone.rank)


def test_tokens_behind_the_last_row_are_neither_run_nor_read():
    seen = []
    body: Any = shared("llama")
    handle = body.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    try:
        one = logit_lens(model("llama"), ids(), rows=[12, 3], targets=[7])
        two = logit_lens(model("llama"), torch.cat([ids()[:13], ids(7, seed=9)]), rows=[12, 3], targets=[7])
    finally:
        handle.remove()
    assert seen == [(1, 13), (1, 13)] and torch.equal(one.log_prob, two.log_prob)


# planted ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def with_marker_writer(hf: Any, layer: int, row: int, token: int, tokens: torch.Tensor, size: float) -> Any:
    """A twin whose MLP in one layer writes a token's direction at a row: one matrix, changed by rank one."""
    changed: Any = twin(hf)
    projection = changed.model.layers[layer].mlp.down_proj
    seen: list[torch.Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, row].clone()))
    stream = states_of(changed, tokens)[layer][0, row]
    hook.remove()
    at = seen[0]
    others = changed.lm_head.weight.mean(0)
    direction = (changed.lm_head.weight[token] - others) * changed.model.norm.weight
    direction = size * stream.norm() * direction / direction.norm()
    projection.weight = nn.Parameter(projection.weight + torch.outer(direction, at / at.square().sum()))
    return changed.requires_grad_(False)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_planted_marker_writer_is_found_in_its_layer(layer):
    base = shared("llama")
    planted = with_marker_writer(base, layer, 15, 17, ids(), size=30.0)
    asked: Any = {"rows": [14, 15], "targets": {"marker": 17, "end": 1}, "pairs": [("marker", "end")]}
    trained, before = (logit_lens(wrap(hf, None, verify=False), ids(), **asked) for hf in (planted, base))
    assert torch.equal(trained.log_prob[:, :layer], before.log_prob[:, :layer])
    assert (trained.rank[1, layer:, 0] == 0).all() and (before.rank[1, :, 0] > 3).all()
    assert trained.first_layer_ranked(0)[1, 0] == layer and math.isnan(before.first_layer_ranked(0)[1, 0])
    assert (trained.difference[1, layer:] > 0).all()


@pytest.mark.real
def test_a_marker_planted_in_layer_12_of_the_real_model_is_found_there(real, real_hf):
    tokens = real.chat("What is the sea?", system="You are a librarian.").tokens[0]
    token, last = 9531, len(tokens) - 1
    planted = with_marker_writer(real_hf, 12, last, token, tokens, size=3.0)
    asked: Any = {"rows": {"emit": -1}, "targets": {"marker": token, "end": real.eos_ids}}
    asked["pairs"] = [("marker", "end")]
    found = compare_lenses(wrap(planted, real.tokenizer, verify=False), real, tokens, **asked)
    assert torch.equal(found.trained.rank[:, :12], found.base.rank[:, :12])
    assert (found.trained.rank[0, 12:, 0] == 0).all() and int(found.base.rank[0, :, 0].min()) > 100
    assert (found.log_prob_change()[0, 12:, 0] > 3).all() and (found.log_prob_change()[0, :12] == 0).all()
    assert found.heads == "identical" and found.through_base is None
    own = real_hf(tokens[None]).logits[0, -1].log_softmax(-1)
    assert_close(found.base.log_prob[0, -1, 0], own[token], atol=1e-4, rtol=0)


# two models -------------------------------------------------------------------------------------------------


def changed_head(part: str) -> Any:
    """The shared model under another final norm, or with one token's row of the unembedding moved."""
    hf: Any = twin(shared("llama"))
    if part == "norm":
        hf.model.norm.weight = nn.Parameter(hf.model.norm.weight * 1.5, requires_grad=False)
    else:
        weight = hf.lm_head.weight.clone()
        weight[17] += 0.1
        hf.lm_head.weight = nn.Parameter(weight, requires_grad=False)
    return hf


@pytest.mark.parametrize("part", ["norm", "one token"])
def test_where_heads_differ_the_trained_states_are_read_by_both(part):
    trained = wrap(changed_head(part), None, verify=False)
    found = compare_lenses(trained, model("llama"), ids(), **ASKED)
    assert found.heads == "different" and found.head_difference > 1e-4 and found.through_base is not None
    assert math.isnan(found.through_base.gate_error) and found.trained.gate_error < 3e-6
    own = naive(trained.backend.model, ids())[:, ROWS].movedim(0, 1).double()  # type: ignore
    assert_is_the_lens_of(found.trained, own)
    assert_is_the_lens_of(found.through_base, expected("llama"))  # the same body: the base's own lens
    assert torch.equal(found.base.log_prob, logit_lens(model("llama"), ids(), **ASKED).log_prob)
    assert OTHER_HEAD in set(found.to_dataframe()["reader"])
    named = {trace.name for trace in found.figure().data}  # type: ignore
    assert named == {"trained", "base", OTHER_HEAD}


def test_fault_070_a_model_and_itself_differ_nowhere_and_the_figure_says_so():
    found = compare_lenses(model("llama"), model("llama"), ids(), **ASKED)
    assert found.heads == "identical" and found.head_difference == 0 and found.through_base is None
    for change in (
        found.log_prob_change(),
        found.rank_change(),
        found.difference_change(),
        found.entropy_change(),
    ):
        assert (change == 0).all()
    assert "identical weights" in found.figure().layout.meta["subtitle"]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_heads_of_one_model_under_two_libraries_are_equal(family):
    other = Model("tiny", made(family, "transformer_bridge"), None, "other")
    assert compare_heads(model(family), other)[0] in ("identical", "equal to rounding")


class Words:
    """What a tokenizer is asked for here."""

    def __init__(self, *words: str):
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}


def test_fault_044_045_071_models_that_cannot_be_compared_are_refused():
    one, other = (wrap(shared("llama"), Words(*words), verify=False) for words in (("a", "b"), ("b", "a")))
    with pytest.raises(ValueError, match="tokenizers of .* differ in 4 entries"):
        compare_lenses(one, other, ids(), **ASKED)
    with pytest.raises(ValueError, match="bfloat16"):
        compare_lenses(wrap(tiny("llama").to(torch.bfloat16), None), model("llama"), ids(), **ASKED)
    larger = replace(one, backend=replace_dims(one.backend, d_vocab=212))
    with pytest.raises(ValueError, match="differ in d_vocab .212 and 211"):
        compare_lenses(larger, model("llama"), ids(), **ASKED)


def replace_dims(backend: Any, **changes: int) -> Any:
    import copy

    other = copy.copy(backend)
    other.dims = replace(backend.dims, **changes)
    return other


# translators ------------------------------------------------------------------------------------------------


def translators(name: str = "drawn", n_layers: int = 3, d_model: int = 64) -> Translators:
    generator = torch.Generator().manual_seed(3)
    weight = torch.eye(d_model) + 0.1 * torch.randn(n_layers, d_model, d_model, generator=generator)
    bias = torch.randn(n_layers, d_model, generator=generator)
    weight[-1], bias[-1] = torch.eye(d_model), 0.0
    return Translators(name, weight, bias)


def test_translated_states_are_what_the_head_reads():
    moved = translators()
    found = logit_lens(model("llama"), ids(), **ASKED, translators=moved)
    states = torch.stack(states_of(shared("llama"), ids()))[:, 0, ROWS]
    mapped = torch.stack([s @ w.T + b for s, w, b in zip(states, moved.weight, moved.bias, strict=True)])
    assert_is_the_lens_of(found, model("llama").unembed(mapped).movedim(0, 1).double(), atol=1e-4)
    assert found.method == "translators drawn" and found.gate_error < 3e-6
    plain = logit_lens(model("llama"), ids(), **ASKED)
    assert torch.equal(found.log_prob[:, -1], plain.log_prob[:, -1])
    assert not torch.allclose(found.log_prob[:, 0], plain.log_prob[:, 0], atol=1e-2)
    same = replace(moved, weight=torch.eye(64).repeat(3, 1, 1), bias=torch.zeros(3, 64))
    assert torch.equal(logit_lens(model("llama"), ids(), **ASKED, translators=same).log_prob, plain.log_prob)


def test_translators_round_trip_with_their_model_and_digest(tmp_path):
    path = save_translators(replace(translators(), model="tiny"), tmp_path / "lens.safetensors")
    again = load_translators(path)
    assert torch.equal(again.weight, translators().weight) and torch.equal(again.bias, translators().bias)
    assert (again.name, again.model) == ("lens.safetensors", "tiny") and len(str(again.sha256)) == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: replace(t, weight=t.weight[:, :3]), "must be weight"),
        (lambda t: replace(t, bias=t.bias[:2]), "must be weight"),
        (lambda t: replace(t, weight=t.weight.half()), "torch.float16"),
        (lambda t: replace(t, bias=t.bias + 1), "change the states after the last layer, 2"),
        (lambda t: replace(t, weight=2 * t.weight), "change the states after the last layer, 2"),
        (lambda t: replace(t, bias=t.bias * torch.nan), "NaN"),
    ],
)
def test_translators_that_cannot_be_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        change(translators())


@pytest.mark.parametrize("sizes", [(2, 64), (3, 32)])
def test_fault_006_translators_of_another_model_are_refused(sizes):
    with pytest.raises(ValueError, match=f"for {sizes[0]} layers of d_model {sizes[1]}; .* has 3 of 64"):
        logit_lens(model("llama"), ids(), **ASKED, translators=translators("x", *sizes))


def tuned_lens(folder: Any, params: dict[str, Any], **config: Any) -> Any:
    folder.mkdir()
    told = {"base_model_name_or_path": "tiny", "d_model": 4, "num_hidden_layers": 3, **config}
    (folder / "config.json").write_text(json.dumps(told))
    torch.save(params, folder / "params.pt")
    return folder


def linear_maps(bias: bool = True) -> dict[str, torch.Tensor]:
    maps = {f"{i}.weight": torch.full((4, 4), float(i)) for i in range(3)}
    return maps | ({f"{i}.bias": torch.full((4,), 10.0 * i) for i in range(3)} if bias else {})


def test_a_folder_of_the_tuned_lens_library_is_read_by_layer_outputs(tmp_path):
    """Its i-th map is for the stream that enters block i, and is added to that stream."""
    found = read_tuned_lens(tuned_lens(tmp_path / "a", linear_maps()))
    for layer in (0, 1):
        assert torch.equal(found.weight[layer], torch.eye(4) + layer + 1)
        assert torch.equal(found.bias[layer], torch.full((4,), 10.0 * (layer + 1)))
    assert torch.equal(found.weight[2], torch.eye(4)) and not found.bias[2].any()
    assert (found.name, found.model) == ("a", "tiny")
    plain = read_tuned_lens(tuned_lens(tmp_path / "b", linear_maps(bias=False), bias=False))
    assert not plain.bias.any() and torch.equal(plain.weight, found.weight)


@pytest.mark.parametrize(
    ("params", "config", "said"),
    [
        (linear_maps() | {"0.mlp": torch.ones(1)}, {}, "'0.mlp'"),
        ({k: v for k, v in linear_maps().items() if k != "1.bias"}, {}, "no '1.bias'"),
        (linear_maps(), {"d_model": 5}, "d_model is 5"),
        (linear_maps(), {"lens_type": "mlp"}, "'mlp'"),
        (linear_maps() | {"0.weight": Words("a")}, {}, "could run code"),
    ],
)
def test_fault_087_other_lenses_and_pickles_are_refused(params, config, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_tuned_lens(tuned_lens(tmp_path / "a", params, **config))


@pytest.mark.parametrize("content", [b"", b"\x08" * 40])
def test_fault_085_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
        load_translators(tmp_path / "x.safetensors")


# the result -------------------------------------------------------------------------------------------------


def test_tables_hold_every_number_once():
    found = logit_lens(model("qwen2"), ids(), **(ASKED | {"rows": {"late": -1, "early": 2}}))
    table = found.to_dataframe()
    assert len(table) == found.log_prob.numel()
    line: Any
    for line in table.itertuples():
        at = (found.row(line.row), line.layer)
        target = found.targets.index(line.target)
        assert line.log_prob == float(found.log_prob[(*at, target)])
        assert line.rank == int(found.rank[(*at, target)]) and line.entropy == float(found.entropy[at])
    assert dict(zip(table.row, table.position, strict=True)) == {"late": 19, "early": 2}
    pairs: Any = found.pairs_to_dataframe().set_index(["row", "layer", "pair"])["difference"]
    assert pairs["early", 1, "marker − ends"] == float(found.difference[1, 1, 0]) and len(pairs) == 12
    top: Any = found.top_to_dataframe().set_index(["row", "layer", "place"])
    assert top.loc[("late", 2, 3), "id"] == int(found.top_ids[0, 2, 3]) and len(top) == 24
    plain = logit_lens(model("qwen2"), ids(), rows=[19, 2], targets=[17, 99])
    assert plain.row_names == ("19", "2") and plain.targets == ("17", "99")
    assert plain.top_to_dataframe().empty and torch.equal(plain.rank[..., 0], found.rank[..., 0])


def test_saved_results_come_back_bit_for_bit(tmp_path):
    alone = logit_lens(model("mistral"), ids(), rows={"emit": 9}, targets=[5])
    pair = compare_lenses(wrap(changed_head("norm"), None, verify=False), model("llama"), ids(), **ASKED)
    for name, found in {"alone": alone, "pair": pair}.items():
        again = load_result(found.save(tmp_path / name))
        assert again.digest() == found.digest() and again.to_dataframe().equals(found.to_dataframe())


def test_the_figure_has_a_line_a_target_and_says_what_the_lens_is_not():
    found = logit_lens(model("llama"), ids(), **ASKED)
    traces: Any = found.figure("19").data
    named = {trace.name: trace for trace in traces}
    assert set(named) == {"marker", "ends", "other"}
    assert list(named["ends"].y) == found.log_prob[1, :, 1].tolist()
    subtitle = found.figure().layout.meta["subtitle"]
    assert "biased in early layers" in subtitle and "row 3 = position 3" in subtitle
    ranks = found.figure("19", "rank")
    assert list(ranks.data[0].y) == (found.rank[1, :, 0] + 1).tolist()  # type: ignore
    assert ranks.layout.yaxis.type == "log"
    assert {trace.name for trace in found.figure(y="difference").data} == {"marker − ends", "other − marker"}  # type: ignore
    entropy: Any = found.figure("11", "entropy").data
    assert len(entropy) == 1 and list(entropy[0].y) == found.entropy[2].tolist()  # type: ignore
    moved = logit_lens(model("llama"), ids(), **ASKED, translators=translators()).figure()
    assert "translators drawn: fitted" in moved.layout.meta["subtitle"]
    single = logit_lens(model("llama"), ids(), rows=[1], targets=[3])
    assert "3 at row 1" in single.figure().layout.title.text, "one line has no legend"
    with pytest.raises(ValueError, match="pass pairs="):
        single.figure(y="difference")


def test_figures_of_two_models_have_a_line_each():
    trained = wrap(with_marker_writer(shared("llama"), 1, 15, 17, ids(), 30.0), None, verify=False)
    found = compare_lenses(trained, model("llama"), ids(), **ASKED)
    lines = {trace.name: list(trace.y) for trace in found.figure("19", "marker", "rank").data}  # type: ignore
    assert lines == {"trained": (found.trained.rank[1, :, 0] + 1).tolist(),
                     "base": (found.base.rank[1, :, 0] + 1).tolist()}  # fmt: skip
    change = {trace.name: list(trace.y) for trace in found.change_figure("19").data}  # type: ignore
    assert change["other"] == pytest.approx(found.log_prob_change()[1, :, 2].tolist(), abs=1e-6)
    pair = found.figure("19", "other − marker", "difference").data
    assert list(pair[1].y) == found.base.difference[1, :, 1].tolist()  # type: ignore
    with pytest.raises(KeyError, match="marker, ends, other"):
        found.figure(target="nobody")


def test_first_layers_are_those_from_which_it_holds_or_nan():
    rank = torch.tensor([[[40, 3], [10, 3], [11, 900]]])
    holds = lens_read.first_layer(rank <= 10)
    assert holds.tolist() == [[1.0, 0.0]]
    assert math.isnan(float(lens_read.first_layer(rank > 1000)[0, 0]))
    found = logit_lens(model("llama"), ids(), **ASKED)
    values = lens_values(model("llama"), [ids()], [ROWS], targets=TARGETS, pairs=VERSUS)
    for name in ("first_layer_ranked", "first_layer_preferred"):
        assert_close(getattr(values, name)()[0], getattr(found, name)(), equal_nan=True)


# refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"rows": [20]}, IndexError, "positions 0..19; there is no row 20"),
        ({"rows": [-2]}, IndexError, "there is no row -2"),
        ({"rows": []}, ValueError, "at least one"),
        ({"rows": [True]}, TypeError, "a row must be an integer"),
        ({"targets": []}, ValueError, "at least one"),
        ({"targets": [5, 5]}, ValueError, "each named once"),
        ({"targets": {"a": []}}, ValueError, "at least one token id"),
        ({"targets": {"a": [3, 3]}}, ValueError, "each once"),
        ({"targets": {"a": V}}, ValueError, "the id 211; the model has ids 0..210"),
        ({"targets": {"a": -1}}, ValueError, "the id -1"),
        ({"targets": {"a": "[ZLT]"}}, TypeError, "a token id of the target 'a' must be an integer"),
        ({"targets": {"a": 1.5}}, TypeError, "must be an integer"),
        ({"pairs": [("marker", "nobody")]}, KeyError, "nobody"),
        ({"pairs": [("marker", "marker")]}, ValueError, "without a token in common"),
        ({"top_k": V + 1}, ValueError, "top_k"),
        ({"top_k": True}, TypeError, "top_k must be an integer"),
        ({"tokens": ids().float()}, ValueError, "must be ids"),
        ({"tokens": ids().clone().fill_(V)}, ValueError, "outside 0..210"),
        ({"tokens": ids()[None].expand(2, -1)}, ValueError, "one text"),
        ({"tokens": ids(200), "rows": [199]}, ValueError, "160 positions"),
    ],
)
def test_fault_017_047_048_what_cannot_be_read_is_refused_before_any_compute(change, error, said):
    ran = []
    asked: dict[str, Any] = {"tokens": ids(), "rows": ROWS, "targets": TARGETS, **change}
    body: Any = shared("llama")
    handle = body.model.embed_tokens.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(error, match=said):
            logit_lens(model("llama"), asked.pop("tokens"), **asked)
    finally:
        handle.remove()
    assert not ran


def test_fault_018_a_row_on_padding_or_missing_is_refused_by_its_text():
    with pytest.raises(IndexError, match="text 1 has positions 0..6; there is no row 7"):
        lens_values(model("llama"), [ids(), ids(7)], [[7], [7]], targets=[5])
    with pytest.raises(ValueError, match="same number of rows"):
        lens_values(model("llama"), [ids(), ids(7)], [[7], [1, 2]], targets=[5])
    with pytest.raises(ValueError, match="2 texts need as many lists of rows"):
        lens_values(model("llama"), [ids(), ids(7)], [[7]], targets=[5])
    with pytest.raises(ValueError, match="at least one"):
        lens_values(model("llama"), [], [], targets=[5])


def test_the_public_names_are_these():
    assert probes.logit_lens is logit_lens and probes.lens_values is lens_values
    assert probes.compare_lenses is compare_lenses and probes.LogitLens is LogitLens
    measures = {f.name for f in fields(probes.LensValues)} - {"gate_error"}
    assert measures < {f.name for f in fields(LogitLens)}
