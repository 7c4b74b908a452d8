"""A model's twin: its own modules, hooks and config over the very same tensors.

For libraries that rewrite the module tree they are given, for good: the user's model is never that tree.
"""

import copy

from torch import nn


def twin(model: nn.Module) -> nn.Module:
    """A deep copy of the modules that shares every parameter and buffer; no memory is spent on weights.

    Hooks of the original are not copied: they are the user's, and belong to the user's module objects.
    Neither is transformers' note that its output hooks are on: with the note and without the hooks, a twin
    asked for hidden states or attentions would return none.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, memo=shared)
    for module in copied.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, name).clear()
        module._forward_hooks_with_kwargs.clear()
        module._forward_pre_hooks_with_kwargs.clear()
        module._forward_hooks_always_called.clear()
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return copied
