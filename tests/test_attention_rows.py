"""Attention rows under the model's own kernel are the eager ones, change no logit, and leave no trace."""

import threading

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechinterp.backends import attention_rows, hf
from mechinterp.backends.attention_rows import AttentionCall
from mechinterp.backends.twin import twin
from mechinterp.interventions import Apply
from mechinterp.loading import wrap
from mechinterp.model import State
from mechinterp.sites import Site, sites
from tests.architectures import FAMILIES, shared, tiny
from tests.passes import BACKENDS, TOKENS, a_pass, made, reference, run

PATTERNS = sites("pattern", range(3))
T = 24


def ids(n_batch: int = 2, n: int = T) -> torch.Tensor:
    return torch.randint(2, 211, (n_batch, n), generator=torch.Generator().manual_seed(1))


def mapping() -> dict:
    return dict(ALL_ATTENTION_FUNCTIONS.items())


def eager(family: str, tokens: torch.Tensor, **options) -> torch.Tensor:
    """[layer, batch, head, query, key], from the library's own eager kernel, in a model of its own."""
    model = tiny(family)
    model.set_attn_implementation("eager")
    return torch.stack(model(tokens, output_attentions=True, use_cache=False, **options).attentions)


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_056_057_059_rows_are_the_eager_ones(family):
    model = wrap(shared(family), None, verify=False)
    seen = model.forward(ids(), capture=PATTERNS)
    rows = seen.stack("pattern")
    assert rows.shape == (3, 2, model.dims.n_heads, T, T)
    assert_close(rows, eager(family, ids()), atol=5e-6, rtol=0)
    assert torch.equal(rows, rows.tril()) and float((rows.sum(-1) - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_fault_059_keys_before_a_sliding_window_get_nothing(family):
    model = wrap(shared(family), None, verify=False)
    kinds = getattr(model.backend.config, "layer_types", None) or ["sliding_attention"] * 3
    rows = model.forward(ids(), capture=PATTERNS).stack("pattern")
    for layer, kind in enumerate(kinds):
        outside = rows[layer].tril(-8)
        assert bool(outside.eq(0).all()) == (kind == "sliding_attention")
    assert "sliding_attention" in kinds


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_rows_are_those_of_the_whole(family):
    model = wrap(shared(family), None, verify=False)
    whole = model.forward(ids(), capture=PATTERNS).stack("pattern")
    chosen = model.forward(ids(), capture=PATTERNS, positions=[3, -1]).stack("pattern")
    assert_close(chosen, whole[:, :, :, [3, T - 1]], atol=1e-6, rtol=0)
    per_row = model.forward(ids(), capture=PATTERNS, positions=torch.tensor([[1], [7]])).stack("pattern")
    assert_close(per_row[:, 0, :, 0], whole[:, 0, :, 1], atol=1e-6, rtol=0)
    assert_close(per_row[:, 1, :, 0], whole[:, 1, :, 7], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_cached_chunks_are_those_of_one_pass(family):
    model = wrap(shared(family), None, verify=False)
    whole = model.forward(ids(), capture=PATTERNS).stack("pattern")
    state = model.forward(ids()[:, :13], keep_cache=True).state
    middle = model.forward(ids()[:, 13:23], capture=PATTERNS, cache=state)
    last = model.forward(ids()[:, 23:], capture=PATTERNS, cache=middle.state).stack("pattern")
    assert_close(middle.stack("pattern"), whole[:, :, :, 13:23, :23], atol=5e-6, rtol=0)
    assert_close(last, whole[:, :, :, 23:], atol=5e-6, rtol=0)


def left_padded(model, tokens: torch.Tensor, pad: list[int]) -> State:
    """An empty cache that says how many slots of padding each row begins with, as sampling makes it."""
    from mechinterp.backends.hf import GrowingLayer, KeyValues

    n = tokens.shape[1]
    return State(
        KeyValues([GrowingLayer() for _ in range(model.dims.n_layers)]),
        0,
        torch.tensor(pad),
        torch.tensor([n - p for p in pad]),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_gets_no_attention_and_changes_no_row(family):
    model = wrap(shared(family), None, verify=False)
    short = ids()[1:, :19]
    padded = torch.cat([ids()[:1], torch.cat([torch.zeros(1, 5, dtype=torch.long), short], 1)])
    seen = model.forward(
        padded, capture=PATTERNS, positions=[4, -1], cache=left_padded(model, padded, [0, 5])
    )
    alone = model.forward(short, capture=PATTERNS, positions=[4, -1])
    for layer in range(3):
        rows = seen[Site("pattern", layer)][1]
        assert rows[..., :5].eq(0).all()
        assert_close(rows[..., 5:], alone[Site("pattern", layer)][0], atol=5e-6, rtol=0)
    assert_close(seen.logits[1, 5:], alone.logits[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_changes_no_bit_of_the_logits(family):
    model = wrap(shared(family), None, verify=False)
    before = model.forward(ids()).logits
    read = model.forward(ids(), capture=[*PATTERNS, *sites("q", [0, 2])]).logits
    assert torch.equal(read, before) and torch.equal(shared(family)(ids()).logits, before)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_reading_changes_no_bit_under_a_mask_or_after_a_cache(family):
    model = wrap(shared(family), None, verify=False)

    def logits(capture: tuple[Site, ...]) -> list[torch.Tensor]:
        left = model.forward(ids(), capture=capture, cache=left_padded(model, ids(), [0, 5]))
        after = model.forward(ids(n=4), capture=capture, cache=left.state)
        right = model.forward(ids(), capture=capture, lengths=[T, 9])
        return [left.logits, after.logits, right.logits]

    assert all(torch.equal(read, bare) for read, bare in zip(logits(PATTERNS), logits(()), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_changes_no_row(family):
    model = wrap(shared(family), None, verify=False)
    padded = model.forward(ids(), capture=PATTERNS, lengths=[T, 9], positions=torch.tensor([[20], [8]]))
    alone = model.forward(ids()[1:, :9], capture=PATTERNS, positions=[8])
    for site in PATTERNS:
        assert padded[site][1, ..., 9:].eq(0).all()
        assert_close(padded[site][1, ..., :9], alone[site][0], atol=5e-6, rtol=0)


@pytest.mark.parametrize("kind", ["transformers", *BACKENDS])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_sums_over_regions_are_those_of_the_rows(family, kind, monkeypatch):
    """In a left-padded, cached chunk, on every backend; only a number a region is kept of each row."""
    monkeypatch.setattr(hf, "BLOCK", 2)
    backend = reference(family) if kind == "transformers" else made(family, kind)
    pad, slots = torch.tensor([0, 3]), torch.tensor([[0, 2, 4], [4, 1, 3]])
    regions = torch.rand(2, TOKENS.shape[1], 5, generator=torch.Generator().manual_seed(3))

    def second_chunk(regions: torch.Tensor | None) -> dict[Site, torch.Tensor]:
        first, _ = run(backend, a_pass(TOKENS[:, :9], pad=pad, keep_cache=True))
        rest = a_pass(
            TOKENS[:, 9:], pad=pad, before=9, cache=first.cache, keep_cache=True, capture=PATTERNS,
            slots=slots, regions=regions,
        )  # fmt: skip
        return run(backend, rest)[1]

    whole, summed = second_chunk(None), second_chunk(regions)
    for site in PATTERNS:
        assert summed[site].shape == (2, 4, 3, 5)
        assert_close(summed[site], torch.einsum("bhqk,bkr->bhqr", whole[site], regions), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "family,implementation", [("llama", "sdpa"), ("llama", "eager"), ("gemma2", "eager")]
)
def test_the_attention_functions_are_as_before_also_after_an_exception(family, implementation):
    hf_model = tiny(family)
    hf_model.set_attn_implementation(implementation)
    model = wrap(hf_model, None)
    before = mapping()
    model.forward(ids(), capture=PATTERNS)
    assert mapping() == before and hf_model.config._attn_implementation == implementation

    def fail(x):
        assert mapping() != before, "the tap is on while the pass runs"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.forward(ids(), capture=PATTERNS, interventions=[Apply(Site("resid_post", 1), fail)])
    assert mapping() == before


def test_a_users_own_attention_function_is_read_and_kept():
    calls = []
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def mine(*args, **kwargs):
        calls.append(1)
        return kernel(*args, **kwargs)

    before = mapping()
    ALL_ATTENTION_FUNCTIONS["sdpa"] = mine  # a local override, which comes before what is registered
    try:
        model = wrap(shared("llama"), None, verify=False)
        rows = model.forward(ids(), capture=PATTERNS).stack("pattern")
        assert len(calls) == 3 and ALL_ATTENTION_FUNCTIONS["sdpa"] is mine
        assert_close(rows, eager("llama", ids()), atol=5e-6, rtol=0)
        assert type(ALL_ATTENTION_FUNCTIONS)._global_mapping["sdpa"] is kernel
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert mapping() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_rows_of_narrow_dtypes_sum_to_one_in_fp32(family, dtype):
    rows = wrap(tiny(family).to(dtype), None).forward(ids(), capture=PATTERNS).stack("pattern")
    tolerance = 1e-6 if family != "bloom" else 4e-3  # BLOOM's own module rounds its rows to its dtype
    assert rows.dtype == torch.float32 and float((rows.sum(-1) - 1).abs().max()) < tolerance


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gpt2", "bloom")])
def test_fault_057_058_rotated_queries_and_keys_make_the_rows(family):
    """softmax(q k / scale) in fp64, soft-capped and windowed as the config says, each head with its keys."""
    model = wrap(shared(family), None, verify=False)
    config = model.backend.config
    windows = model.dims.windows or (None,) * 3
    seen = model.forward(ids(), capture=[*sites("q_rot", range(3)), *sites("k_rot", range(3)), *PATTERNS])
    for layer in range(3):
        q, k = seen[Site("q_rot", layer)].double(), seen[Site("k_rot", layer)].double()
        k = k.repeat_interleave(model.dims.n_heads // model.dims.n_kv_heads, dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * model.backend.attentions[layer].scaling
        if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
            scores = torch.tanh(scores / cap) * cap
        seen_keys = torch.ones(T, T).tril() * torch.ones(T, T).triu(1 - (windows[layer] or T))
        expected = scores.masked_fill(seen_keys == 0, -torch.inf).softmax(-1).float()
        assert_close(seen[Site("pattern", layer)], expected, atol=2e-6, rtol=0)


def test_fault_059_a_window_is_kept_where_the_kernel_gets_no_mask():
    """Kernels that take the window as a number (flash attention) are given no mask."""
    q, k = (torch.randn(1, 2, n, 4, generator=torch.Generator().manual_seed(n)) for n in (3, 10))
    call = AttentionCall(0, q, k, k, mask=None, scaling=0.5, softcap=None, window=4)
    found = attention_rows.rows(call, torch.arange(3)[None], torch.tensor([5]))
    for row in range(3):
        newest = 7 + row
        seen = [key for key in range(10) if max(newest - 3, 5) <= key <= newest]
        assert found[0, 0, row].nonzero().flatten().tolist() == seen
    assert_close(found.sum(-1), torch.ones(1, 2, 3))


def test_rows_see_the_edits_of_their_pass():
    model = wrap(shared("llama"), None, verify=False)
    edit = Apply(Site("resid_post", 0), lambda x: x.flip(-1))
    natural, edited = (
        model.forward(ids(), capture=PATTERNS, interventions=i).stack("pattern") for i in ((), (edit,))
    )
    assert torch.equal(natural[0], edited[0]) and not torch.allclose(natural[1], edited[1])


def test_another_threads_model_passes_straight_through():
    """While one model is in the middle of a read pass, another one runs: its rows are not handed over."""
    inside, go = threading.Event(), threading.Event()

    def wait(x):
        inside.set()
        assert go.wait(30)
        return x

    model = wrap(shared("llama"), None, verify=False)
    expected = model.forward(ids(), capture=PATTERNS).stack("pattern")
    found = []
    edit = Apply(Site("resid_post", 0), wait, strength=0.5)
    thread = threading.Thread(
        target=lambda: found.append(model.forward(ids(), capture=PATTERNS, interventions=[edit]))
    )
    before = mapping()
    thread.start()
    assert inside.wait(30)
    other = wrap(shared("mistral"), None, verify=False)
    other_rows = other.forward(ids(), capture=PATTERNS).stack("pattern")
    shared("qwen2")(ids())
    go.set()
    thread.join(60)
    assert torch.equal(found[0].stack("pattern"), expected)
    assert_close(other_rows, eager("mistral", ids()), atol=5e-6, rtol=0)
    assert mapping() == before


@pytest.mark.real
def test_rows_of_the_real_model_are_the_eager_ones(real, real_hf):
    """Grouped queries: nine heads over three key heads."""
    tokens = real.chat("What is the sea?").tokens
    rows = real.forward(tokens, capture=[Site("pattern", 0), Site("pattern", 29)], positions=[-1]).stack(
        "pattern"
    )
    assert rows.shape[1:3] == (1, 9)
    eager_twin = twin(real_hf)  # asked for attentions, transformers leaves hooks on
    eager_twin.set_attn_implementation("eager")
    expected = eager_twin(tokens, output_attentions=True).attentions
    assert_close(
        rows[:, 0, :, 0], torch.stack([expected[0][0, :, -1], expected[29][0, :, -1]]), atol=5e-6, rtol=0
    )
