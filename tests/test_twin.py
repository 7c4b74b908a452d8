"""A twin shares tensors and nothing else: not the hooks of the original, nor notes that they are there."""

import torch

from mechinterp.backends.twin import twin
from tests.architectures import tiny

IDS = torch.tensor([[5, 9, 3]])


def test_a_twin_of_a_model_that_was_asked_for_attentions_gives_them_too():
    """transformers notes on a model that its output hooks are on; the copy has none and must not say so."""
    hf = tiny("llama")
    hf.set_attn_implementation("eager")
    own = hf(IDS, output_attentions=True, output_hidden_states=True)
    copied = twin(hf)
    seen = copied(IDS, output_attentions=True, output_hidden_states=True)
    assert len(seen.attentions) == len(own.attentions) == 3 and len(seen.hidden_states) == 4
    assert all(torch.equal(a, b) for a, b in zip(seen.attentions, own.attentions, strict=True))


def test_a_twin_shares_every_tensor_and_no_hook():
    hf = tiny("gpt2")
    handle = hf.transformer.h[0].register_forward_hook(lambda *_: None)
    copied = twin(hf)
    pairs = zip(hf.parameters(), copied.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in copied.modules())
    assert hf.transformer.h[0]._forward_hooks and copied.config is not hf.config
    handle.remove()
