"""Direct logit attribution: parts sum to the difference on all backends and are what weights say by hand."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import probes
from mechinterp.backends.twin import twin
from mechinterp.backends.verify import TOLERANCE
from mechinterp.loading import wrap
from mechinterp.model import Model
from mechinterp.results import load_result
from probes.direct import Attribution, attribution, attributions
from probes.direct_pair import AttributionComparison, compare_attributions
from probes.frozen_norm import freeze
from tests.architectures import FAMILIES, hooks_of, shared, tiny
from tests.passes import PAIRS, made, reference, relative

TARGET, COMPETITOR = 5, 9
BY_LAYER = ("attn_out", "mlp_out", "heads", "attn_bias", "head_error")
ROWS = {"emit": 11, "last": -1}
EVERY = [(family, "transformers") for family in FAMILIES] + PAIRS


def ids(n: int = 20, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 211, (n,), generator=torch.Generator().manual_seed(seed))


@cache
def model(family: str, kind: str = "transformers") -> Model:
    backend = reference(family) if kind == "transformers" else made(family, kind)
    return Model(family, backend, None, "0" * 64)


@cache
def read(family: str, kind: str = "transformers") -> Attribution:
    return attribution(model(family, kind), ids(), rows=ROWS, target=TARGET, competitor=COMPETITOR)


def of(hf_model: Any, tokens: torch.Tensor | None = None, row: int = -1) -> Attribution:
    """One row of a model that a test has made for itself."""
    given = ids() if tokens is None else tokens
    return attribution(
        wrap(hf_model, None, verify=False), given, rows=[row], target=TARGET, competitor=COMPETITOR
    )


# identities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_parts_sum_to_the_difference_and_heads_to_their_layer(family, kind):
    found = read(family, kind)
    values = found.values
    assert found.table.shape == (2, len(found.parts)) == (2, 1 + 2 * 3 + 2)
    assert_close(found.table.sum(1), values.difference, atol=2e-6, rtol=1e-5)
    assert_close(values.heads.sum(-1) + values.attn_bias, values.attn_out, atol=2e-6, rtol=1e-5)
    logits = shared(family)(ids()[None]).logits[0, [11, 19]]
    cap = getattr(shared(family).config, "final_logit_softcapping", None)  # type: ignore
    own = logits if cap is None else cap * torch.atanh(logits / cap)
    assert_close(values.difference, own[:, TARGET] - own[:, COMPETITOR], atol=5e-6, rtol=1e-5)
    assert_close(values.model_difference, logits[:, TARGET] - logits[:, COMPETITOR], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_every_backend_takes_a_model_apart_alike(family, kind):
    found, expected = read(family, kind).values, read(family).values
    for name in ("embedding", "attn_out", "mlp_out", "heads", "attn_bias", "norm_bias", "unembedding_bias"):
        assert_close(getattr(found, name), getattr(expected, name), atol=3e-6, rtol=1e-5, msg=name)


def test_soft_capping_is_not_part_of_the_difference():
    """Gemma-2 caps its logits at 30: for logits beyond it, the difference is far from what the model says."""
    loud: Any = tiny("gemma2")
    loud.set_output_embeddings(torch.nn.Linear(64, 211, bias=False))
    loud.lm_head.weight.data = 40 * torch.randn(211, 64, generator=torch.Generator().manual_seed(3))
    values = of(loud.requires_grad_(False)).values
    assert float(values.difference.abs()) > 60 >= float(values.model_difference.abs())


def test_nothing_of_the_model_is_changed():
    own: Any = shared("gpt2")
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    hooks = hooks_of(own)
    of(own)
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())
    assert hooks_of(own) == hooks


# parity with explicit weights -------------------------------------------------------------------------------


def test_llama_by_hand():
    own: Any = twin(shared("llama"))
    kept = caught(own, own.model.layers, "self_attn.o_proj", "self_attn", "mlp")
    direction = own.lm_head.weight[TARGET] - own.lm_head.weight[COMPETITOR]
    final = own(ids()[None], output_hidden_states=True)
    stream = kept["post"][2]
    scale = (stream.square().mean() + own.config.rms_norm_eps).rsqrt()
    read_by = own.model.norm.weight * direction * scale
    values = read("llama").values
    assert_close(
        values.embedding[1], own.model.embed_tokens.weight[ids()[-1]] @ read_by, atol=1e-6, rtol=1e-5
    )
    for layer, block in enumerate(own.model.layers):
        assert_close(values.mlp_out[1, layer], kept["mlp"][layer] @ read_by, atol=1e-6, rtol=1e-5)
        for head in range(4):
            part = slice(16 * head, 16 * (head + 1))
            by_hand = block.self_attn.o_proj.weight[:, part] @ kept["z"][layer][part] @ read_by
            assert_close(values.heads[1, layer, head], by_hand, atol=1e-6, rtol=1e-5)
    assert not values.attn_bias.any() and not values.norm_bias.any() and not values.unembedding_bias.any()
    assert_close(values.difference[1], final.logits[0, -1, TARGET] - final.logits[0, -1, COMPETITOR])


def test_gpt2_by_hand():
    own: Any = shared("gpt2")
    kept = caught(own, own.transformer.h, "attn.c_proj", "attn", "mlp")
    direction, norm = own.lm_head.weight[TARGET] - own.lm_head.weight[COMPETITOR], own.transformer.ln_f
    scale = (kept["post"][2].var(unbiased=False) + norm.eps).rsqrt()

    def through(part: torch.Tensor) -> torch.Tensor:
        return ((part - part.mean()) * scale * norm.weight) @ direction

    values = read("gpt2").values
    embedding = own.transformer.wte.weight[ids()[-1]] + own.transformer.wpe.weight[19]
    assert_close(values.embedding[1], through(embedding), atol=1e-6, rtol=1e-5)
    assert_close(values.norm_bias[1], norm.bias @ direction, atol=1e-6, rtol=1e-5)
    for layer, block in enumerate(own.transformer.h):
        assert_close(values.mlp_out[1, layer], through(kept["mlp"][layer]), atol=1e-6, rtol=1e-5)
        assert_close(values.attn_bias[1, layer], through(block.attn.c_proj.bias), atol=1e-6, rtol=1e-5)
        for head in range(4):
            part = slice(16 * head, 16 * (head + 1))
            by_hand = through(kept["z"][layer][part] @ block.attn.c_proj.weight[part])
            assert_close(values.heads[1, layer, head], by_hand, atol=1e-6, rtol=1e-5)


def caught(own: Any, layers: Any, projection: str, attention: str, mlp: str) -> dict[str, list[torch.Tensor]]:
    """At the last position: what projections read and what MLPs and layers give, by plain hooks."""
    kept: dict[str, list[torch.Tensor]] = {"z": [], "mlp": [], "post": []}

    def keep(name: str, take: Any) -> Any:
        return lambda _, args, out: kept[name].append(take(args, out)[0, -1])

    bare = lambda _, out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    handles = []
    for layer in layers:
        handles.append(
            layer.get_submodule(projection).register_forward_hook(keep("z", lambda args, _: args[0]))
        )
        handles.append(layer.get_submodule(mlp).register_forward_hook(keep("mlp", bare)))
        handles.append(layer.register_forward_hook(keep("post", bare)))
    own(ids()[None])
    for handle in handles:
        handle.remove()
    return kept


# planted truths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["head", "mlp"])
def test_a_planted_writer_is_found(what):
    own: Any = tiny("llama")
    kept = caught(own, own.model.layers, "self_attn.o_proj", "self_attn", "mlp")
    written = own.model.norm.weight * (own.lm_head.weight[TARGET] - own.lm_head.weight[COMPETITOR])
    block = own.model.layers[1]
    if what == "head":
        z = kept["z"][1].clone()
        z[:32] = z[48:] = 0  # head 2 alone
        block.self_attn.o_proj.weight += 40 * torch.outer(written, z / z.square().sum())
    else:
        inner: list[torch.Tensor] = []
        handle = block.mlp.down_proj.register_forward_hook(lambda _, args, __: inner.append(args[0][0, -1]))
        own(ids()[None])
        handle.remove()
        block.mlp.down_proj.weight += 40 * torch.outer(written, inner[0] / inner[0].square().sum())
    values = of(own).values
    biggest = values.heads[0] if what == "head" else values.mlp_out[0]
    place = (1, 2) if what == "head" else (1,)
    rest = [*values.heads.flatten().tolist(), *values.mlp_out.flatten().tolist()]
    assert float(biggest[place]) == max(rest) and float(biggest[place]) > 5 * sorted(rest)[-2]
    before = read("llama").values
    assert float(biggest[place]) > 10 * max(before.heads.abs().max(), before.mlp_out.abs().max())


def test_planted_heads_are_selected_on_one_half_and_hold_on_the_other():
    own: Any = tiny("llama")
    texts = [ids(8, seed) for seed in range(16)]
    written = own.lm_head.weight[TARGET] - own.lm_head.weight[COMPETITOR]
    value = own.model.layers[1].self_attn.v_proj
    value.bias = torch.nn.Parameter(torch.ones(32), requires_grad=False)  # every head carries a constant
    for head, sign in ((1, 1.0), (3, -1.0)):
        part = own.model.layers[1].self_attn.o_proj.weight[:, 16 * head : 16 * (head + 1)]
        part += sign * 0.5 * written[:, None]
    found = attributions(
        wrap(own, None, verify=False), texts, rows=[-1] * 16, targets=[TARGET] * 16,
        competitors=[COMPETITOR] * 16, clusters=[str(i // 2) for i in range(16)],
    )  # fmt: skip
    chosen = found.select_heads(per_layer=2)
    assert set(chosen.heads[1].tolist()) == {1, 3} and chosen.same_sign[1].all()
    assert not {found.clusters[i] for i in chosen.chosen_on} & {found.clusters[i] for i in chosen.reported_on}
    assert sorted(chosen.chosen_mean[1] > 0) == [False, True]


# adapters ---------------------------------------------------------------------------------------------------


def lora(folder: Any, hf_model: Any, targets: list[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(hf_model, LoraConfig(r=2, target_modules=targets))
    generator = torch.Generator().manual_seed(4)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


def test_an_adapter_is_read_as_it_runs_and_its_change_adds_up(tmp_path):
    """Adapter on and off share weights; LoRA in projections and unembedding is part of what they do."""
    import mechinterp as mi

    base = wrap(tiny("llama"), None, name="base")
    merged = lora(tmp_path, tiny("llama"), ["q_proj", "o_proj", "down_proj", "lm_head"])
    trained = mi.with_adapter(base, tmp_path)
    found = compare_attributions(trained, base, ids(), rows=ROWS, target=TARGET, competitor=COMPETITOR)
    expected = attribution(wrap(merged, None), ids(), rows=ROWS, target=TARGET, competitor=COMPETITOR)
    for name in ("embedding", "attn_out", "mlp_out", "heads"):
        assert_close(
            getattr(found.trained.values, name), getattr(expected.values, name), atol=2e-6, rtol=1e-5
        )
    assert_close(found.base.values.heads, read("llama").values.heads, atol=0, rtol=0)
    change = found.change
    assert_close(change.table.sum(1), change.values.difference, atol=3e-6, rtol=1e-5)
    assert_close(change.values.heads, found.trained.values.heads - found.base.values.heads)


class Dropping(torch.nn.Linear):
    """A projection with dropout, as an adapter's may have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)


def test_fault_025_dropout_of_a_model_in_training_is_not_read():
    own: Any = tiny("llama")
    for block in own.model.layers:
        block.self_attn.o_proj.__class__ = Dropping
    found = attribution(
        wrap(own.train(), None, verify=False), ids(), rows=ROWS, target=TARGET, competitor=COMPETITOR
    )
    assert_close(found.values.heads, read("llama").values.heads, atol=0, rtol=0)
    assert all(module.training for module in own.modules())


def test_a_model_and_itself_have_no_change():
    base = model("qwen2")
    found = compare_attributions(base, base, ids(), rows=ROWS, target=TARGET, competitor=COMPETITOR)
    assert not found.change.table.any() and not found.change.values.heads.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": 6}, "other targets"),
        ({"rows": {"emit": 10, "last": -1}}, "other positions"),
        ({"tokens": ids(20, 8)}, "other ids"),
        ({"rows": [11, -1]}, "other row_names"),
    ],
)
def test_what_was_not_asked_alike_is_not_compared(change, said):
    asked: dict[str, Any] = {
        "tokens": ids(),
        "rows": ROWS,
        "target": TARGET,
        "competitor": COMPETITOR,
        **change,
    }
    other = attribution(model("llama"), asked.pop("tokens"), **asked)
    with pytest.raises(ValueError, match=said):
        AttributionComparison(read("llama"), other)


def test_models_of_other_depth_are_not_compared():
    values = read("llama").values
    fields = {name: getattr(values, name)[:, :2] for name in BY_LAYER}
    shallow = replace(read("llama"), values=replace(values, **fields))
    with pytest.raises(ValueError, match=r"other layers or heads: \(3, 4\) and \(2, 4\)"):
        AttributionComparison(read("llama"), shallow)


# many texts -------------------------------------------------------------------------------------------------


def test_many_texts_are_what_each_is_alone(monkeypatch):
    monkeypatch.setattr("probes.direct_read.SLOTS", 40)
    monkeypatch.setattr("probes.direct_read.ROWS", 2)
    texts = [ids(n, seed) for seed, n in enumerate((12, 30, 7, 12, 20))]
    rows, targets = [-1, 4, 6, -1, 11], [5, 6, 7, 8, 9]
    whole = attributions(model("mistral"), texts, rows=rows, targets=targets, competitors=[1] * 5)
    for i, text in enumerate(texts):
        alone = attribution(model("mistral"), text, rows=[rows[i]], target=targets[i], competitor=1)
        assert_close(whole.table[i], alone.table[0], atol=2e-6, rtol=1e-5)
        assert_close(whole.values.heads[i], alone.values.heads[0], atol=2e-6, rtol=1e-5)
        assert whole.positions[i] == alone.positions[0]
        assert torch.equal(whole.tokens[i, : whole.positions[i] + 1], text[: whole.positions[i] + 1])
        assert (whole.tokens[i, whole.positions[i] + 1 :] == -1).all()


def test_what_follows_a_row_does_not_matter():
    other = ids().clone()
    other[12:] = 3
    again = attribution(model("llama"), other, rows=[11], target=TARGET, competitor=COMPETITOR)
    assert_close(again.table[0], read("llama").table[0], atol=1e-6, rtol=1e-5)


# norms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rms", "gemma", "bare", "layer", "odd", "identity"])
def test_parts_through_a_frozen_norm_are_the_norm_of_their_sum(kind):
    d, generator = 33 if kind == "odd" else 32, torch.Generator().manual_seed(0)
    gain, bias = torch.randn(d, generator=generator), torch.randn(d, generator=generator)

    def norm(x: torch.Tensor) -> torch.Tensor:
        if kind == "identity":
            return x
        if kind in ("layer", "odd"):
            return torch.nn.functional.layer_norm(x, (d,), gain, bias)
        unit = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return unit * {"rms": gain, "gemma": 1 + gain, "bare": torch.ones(d)}[kind]

    parts = torch.randn(5, 7, d, generator=generator) * torch.logspace(-2, 3, 5)[:, None, None]
    frozen = freeze(norm, parts.sum(1), tolerance=1e-4)
    assert frozen.centred == (kind in ("layer", "odd"))
    assert relative(frozen.apply(parts.double()).sum(1) + frozen.bias, norm(parts.sum(1)).double()) < 1e-5


def test_what_is_no_norm_is_refused_and_zeros_stay_zeros():
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="neither LayerNorm nor RMSNorm.* off by 0"):
        freeze(torch.tanh, x, tolerance=1e-4)
    zeros = freeze(lambda x: x, torch.zeros(2, 32), tolerance=1e-4)
    assert not zeros.apply(torch.zeros(2, 4, 32, dtype=torch.float64)).any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2", "granite"])
def test_narrow_models_add_up_within_their_rounding(family):
    """In bf16 the stream itself rounds; what that leaves is stated, and stays far below the parts."""
    found = of(tiny(family).to(torch.bfloat16))
    size = float(found.table.norm())
    assert float(found.values.sum_error) < 0.05 * size
    assert float(found.values.head_error.max()) < TOLERANCE[torch.bfloat16]
    assert_close(found.table, of(tiny(family)).table, atol=0.1 * size, rtol=0)


# transformer-lens's own objects -----------------------------------------------------------------------------


def hooked(**sizes: Any) -> Model:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=32,
        n_ctx=32,
        d_head=8,
        n_heads=4,
        d_mlp=64,
        d_vocab=50,
        act_fn="gelu",
        seed=1,
        **sizes,
    )
    return wrap(HookedTransformer(cfg), None)


@pytest.mark.parametrize("sizes", [{}, {"normalization_type": "RMS"}, {"output_logits_soft_cap": 3.0}])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hooked_transformer_of_the_users_own(sizes):
    found = attribution(hooked(**sizes), ids() % 50, rows=[-1], target=5, competitor=9)
    assert_close(found.table.sum(1), found.values.difference, atol=1e-5, rtol=1e-4)
    apart = float((found.values.difference - found.values.model_difference).abs())
    assert (apart > 1e-3) == ("output_logits_soft_cap" in sizes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_folded_and_centred_weights_give_the_same_attribution_by_head():
    """transformer-lens's processing moves gains and means into other weights; what heads write stays."""
    plain = hooked(normalization_type="LN")
    folded: Any = hooked(normalization_type="LN")
    weights = {name: tensor.clone() for name, tensor in plain.backend.model.state_dict().items()}  # type: ignore
    folded.backend.model.load_and_process_state_dict(
        weights, fold_ln=True, center_writing_weights=True, center_unembed=True, fold_value_biases=False
    )
    one, other = (
        attribution(each, ids() % 50, rows=[-1], target=5, competitor=9)
        for each in (plain, wrap(folded.backend.model, None))
    )
    assert_close(one.values.heads, other.values.heads, atol=1e-5, rtol=1e-4)


def test_olmo_in_a_hooked_transformer_norms_behind_its_attention():
    from tests.architectures import config

    ungrouped = config("olmo2")
    ungrouped.num_key_value_heads = 4
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = AutoModelForCausalLM.from_config(ungrouped).eval().requires_grad_(False)
    asked: dict[str, Any] = {"rows": [-1], "target": TARGET, "competitor": COMPETITOR}
    one, other = (
        attribution(wrap(own, None, backend=kind), ids(), **asked)
        for kind in ("transformers", "hooked_transformer")
    )
    assert_close(one.values.heads, other.values.heads, atol=1e-6, rtol=1e-4)


# the result -------------------------------------------------------------------------------------------------


def test_tables_hold_every_number_once():
    found = read("gpt2")
    table, heads = found.to_dataframe(), found.heads_to_dataframe()
    assert len(table) == found.table.numel() and table.contribution.tolist() == found.table.flatten().tolist()
    sums = table.groupby("row", sort=False).contribution.sum()
    assert (sums - table.groupby("row", sort=False).difference.first()).abs().max() < 1e-5
    assert dict(zip(table["row"], table.position, strict=True)) == {"emit": 11, "last": 19}
    by_layer = heads.groupby(["row", "layer"], sort=False).contribution.sum().tolist()
    assert_close(torch.tensor(by_layer), found.values.attn_out.flatten(), atol=1e-5, rtol=1e-4)
    assert len(heads) == 2 * 3 * 5 and (heads["head"] == "bias").sum() == 6


def test_a_saved_result_comes_back_bit_for_bit(tmp_path):
    found = AttributionComparison(read("llama"), read("mistral"))
    again = load_result(found.save(tmp_path))
    assert again.digest() == found.digest() and again.to_dataframe().equals(found.to_dataframe())
    assert again.change.digest() == found.change.digest()


def test_figures_draw_what_is_saved():
    found = read("gpt2")
    figure = found.figure("last")
    named = {trace.name: trace for trace in figure.data if trace.name}  # type: ignore
    assert list(named["attn_out"].y) == pytest.approx(found.values.attn_out[1].tolist())
    assert list(named["mlp_out"].y) == pytest.approx(found.values.mlp_out[1].tolist())
    assert "position 19" in figure.layout.title.text and "frozen" in figure.layout.meta["subtitle"]
    cells = found.heads_figure().data[0].z  # type: ignore
    assert [list(row) for row in cells] == [pytest.approx(row) for row in found.values.heads[0].tolist()]
    pair = AttributionComparison(read("llama"), read("mistral")).figure()
    assert "llama − mistral" in pair.layout.meta["subtitle"]
    names = {trace.name for trace in pair.data if trace.name}  # type: ignore
    assert names >= {
        f"{part}, {who}" for part in ("attn_out", "mlp_out") for who in ("trained", "base", "change")
    }
    with pytest.raises(KeyError, match="emit, last"):
        found.figure("token")


def test_many_texts_are_drawn_as_a_mean_with_the_band_of_their_clusters():
    texts = [ids(8, seed) for seed in range(6)]
    found = attributions(
        model("llama"), texts, rows=[-1] * 6, targets=[5] * 6, competitors=[9] * 6, clusters=list("aabbcc")
    )
    figure = found.figure()
    named = {trace.name: trace for trace in figure.data if trace.name}  # type: ignore
    assert list(named["attn_out"].y) == pytest.approx(found.values.attn_out.mean(0).tolist(), rel=1e-5)
    assert "n = 3 clusters" in figure.layout.meta["subtitle"] and "95 %" in figure.layout.meta["subtitle"]


# refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"target": COMPETITOR}, ValueError, "both 9"),
        ({"target": 211}, ValueError, "ids 0..210; there is no 211"),
        ({"competitor": -1}, ValueError, "there is no -1"),
        ({"target": True}, TypeError, "a target must be an integer"),
        ({"rows": [20]}, IndexError, "no row 20"),
        ({"rows": [-2]}, IndexError, "no row -2"),
        ({"rows": []}, ValueError, "at least one"),
        ({"tokens": ids()[None].expand(2, -1)}, ValueError, "see attributions"),
        ({"tokens": ids(200), "rows": [199]}, ValueError, "160 positions"),
    ],
)
def test_fault_017_what_cannot_be_read_is_refused_before_any_compute(change, error, said):
    asked: dict[str, Any] = {
        "tokens": ids(), "rows": ROWS, "target": TARGET, "competitor": COMPETITOR, **change
    }  # fmt: skip
    own: Any = shared("llama")
    ran: list[int] = []
    handle = own.model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(error, match=said):
            attribution(model("llama"), asked.pop("tokens"), **asked)
    finally:
        handle.remove()
    assert not ran


def test_lists_of_different_lengths_are_refused():
    asked: dict[str, Any] = {"rows": [1, 2], "targets": [5, 5], "competitors": [9, 9]}
    for name in asked:
        with pytest.raises(ValueError, match=f"one entry each in {name}, not 1"):
            attributions(model("llama"), [ids(), ids()], **{**asked, name: [1]})
    with pytest.raises(ValueError, match="one cluster label each, not 1"):
        attributions(model("llama"), [ids(), ids()], **asked, clusters=["a"])


@pytest.mark.parametrize(
    ("where", "edit", "said"),
    [
        ("model.layers.1", lambda x: x + 0.5, "the parts of .* add up to .* off by .* something else writes"),
        ("model.layers.1.self_attn.o_proj", lambda x: x + x**2, "heads of layer 1 .* miss its attn_out by"),
        ("lm_head", lambda x: x * torch.linspace(1, 2, 211), "give logits that are off from its own by"),
        ("model.norm", torch.tanh, "neither LayerNorm nor RMSNorm"),
    ],
    ids=["stream", "projection", "unembedding", "norm"],
)
def test_parts_that_do_not_add_up_are_an_error_that_says_by_how_much(where, edit, said):
    """A hook of the user's that the sites do not know of is such a part."""
    own: Any = tiny("llama")
    own.get_submodule(where).register_forward_hook(
        lambda _, __, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)
    )
    with pytest.raises(ValueError, match=said):
        of(own)


def test_the_public_names_are_these():
    assert probes.attribution is attribution and probes.attributions is attributions
    assert probes.compare_attributions is compare_attributions and probes.Attribution is Attribution
