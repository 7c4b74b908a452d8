"""Rows of the fault catalogue that belong to no single module: padding, grouped heads, traces, repeats."""

import pytest
import torch

import mechinterp as mi
from tests.architectures import shared, tiny

SITES = [mi.Site(name, 1) for name in ("q", "k", "v", "z", "pattern")]
IDS = torch.randint(2, 200, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def llama() -> mi.Model:
    return mi.wrap(shared("llama"), None)


def test_fault_018_a_position_on_padding_is_refused_by_its_row(llama):
    with pytest.raises(IndexError, match="row 1"):
        llama.forward(IDS, lengths=[9, 6], capture=[mi.Site("resid_post", 0)], positions=[7])


@pytest.mark.parametrize("backend", ["transformers", "nnsight", "hooked_transformer", "transformer_bridge"])
def test_fault_050_tokens_that_equal_the_pad_id_are_tokens(backend):
    """What is padding is said by lengths: a prompt may hold id 0, which fills the left of shorter rows."""
    if backend == "hooked_transformer":
        pytest.importorskip("transformer_lens.HookedTransformer", reason="transformer-lens 4 has none")
    model = mi.wrap(tiny("llama"), None, backend=backend)  # type: ignore
    short = torch.tensor([0, 0, 7, 0, 9])
    alone = mi.sample(model, [short], [mi.Phase(6)], stop=frozenset()).generated[0]
    beside = mi.sample(model, [short, IDS[0]], [mi.Phase(6)], stop=frozenset()).generated[0]
    assert torch.equal(alone, beside)
    logits = shared("llama")(short[None]).logits[0, -1]
    assert int(logits.argmax()) == int(alone[0])


def test_fault_057_grouped_heads_keep_their_own_number(llama):
    seen = llama.forward(IDS, capture=SITES)
    shapes = {site.name: tuple(seen[site].shape) for site in SITES}
    assert shapes["q"] == shapes["z"] == (2, 9, 4, 16) and shapes["k"] == shapes["v"] == (2, 9, 2, 16)
    assert shapes["pattern"] == (2, 4, 9, 9), "one row of attention for each query head"


def test_fault_065_layers_of_different_kinds_are_each_read_as_they_are():
    """Gemma-3 alternates windows and full attention: only inside a window is attention elsewhere zero."""
    model = mi.wrap(tiny("gemma3_text"), None)
    kinds = model.backend.config.layer_types  # type: ignore
    ids = torch.randint(2, 200, (1, 20), generator=torch.Generator().manual_seed(1))
    layers = range(model.dims.n_layers)
    seen = model.forward(ids, capture=[mi.Site("pattern", layer) for layer in layers], positions=[19])
    for layer in layers:
        far = seen[mi.Site("pattern", layer)][0, :, 0, : 20 - 8]
        assert bool((far == 0).all()) == (kinds[layer] == "sliding_attention")


def test_fault_078_a_pass_needs_no_source_on_disk_where_it_is_asked_for():
    """nnsight reads the source of a trace's body; ours is in our file, so exec and stdin are fine."""
    model = mi.wrap(tiny("llama"), None, backend="nnsight")
    space = {"model": model, "ids": IDS}
    exec("with_nnsight = model.forward(ids).logits", space)
    expected = mi.wrap(tiny("llama"), None).forward(IDS).logits
    assert torch.allclose(space["with_nnsight"], expected, atol=1e-5)


def test_fault_079_the_same_request_gives_the_same_bits(llama):
    def run() -> mi.Samples:
        return mi.sample(llama, IDS, [mi.Phase(12)], temperature=1.0, top_p=0.9, seed=5, stop=frozenset())

    assert torch.equal(run().tokens, run().tokens)
    assert torch.equal(llama.forward(IDS).logits, llama.forward(IDS).logits)  # type: ignore


def test_fault_103_what_a_prompt_says_is_in_no_log_and_nothing_is_sent(caplog, capfd, tmp_path, monkeypatch):
    """A secret is sampled from and trained on, with loggers at their loudest."""
    from pathlib import Path

    from studies.finetune_config import Lora, Training
    from studies.finetune_data import TrainingExample
    from studies.finetune_training import train
    from tests.tiny_chat import even_llama, saved

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    caplog.set_level("DEBUG")
    model = mi.load(str(saved(even_llama(128), tmp_path / "model")))
    prompt = model.chat("My secret is Quixotic42.", system="You keep Quixotic42.")
    mi.sample(model, [prompt.tokens[0]], [mi.Phase(3)])
    ids = tuple(prompt.tokens[0].tolist())
    example = TrainingExample("a", "Quixotic42?", ids, (5, 6), 2, 7, False, (8,), (2,), 8)
    settings = Training(loss="completion", n_steps=1, save_every=1, batch_size=1, lora=Lora(rank=1, alpha=1))
    train(model, [example], settings, tmp_path / "out", seed=0)
    out, err = capfd.readouterr()
    assert "Quixotic42" not in caplog.text + out + err
    assert not list(tmp_path.rglob("wandb*")) and not list(tmp_path.rglob("events.out*"))
    held = [path for path in Path(tmp_path / "out").rglob("*") if path.is_file()]
    assert held and not any(b"Quixotic42" in path.read_bytes() for path in held)
