"""HookedTransformer's cache, behind the protocol's."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Int
from torch import Tensor


class HookedKeyValues:
    """HookedTransformer's own cache: keys before rotation, and the mask of every slot so far."""

    def __init__(self, entries: Any):
        self.entries = entries

    @property
    def n_slots(self) -> int:
        return self.entries[0].past_keys.shape[1]

    def select(self, rows: Int[Tensor, "row"]) -> "HookedKeyValues":
        return self._each(lambda tensor: tensor[rows.to(tensor.device)])

    def for_one_pass(self, rows: Int[Tensor, "row"]) -> "HookedKeyValues":
        return self.select(rows)

    def crop(self, n_slots: int) -> None:
        self.entries = self._each(lambda tensor: tensor[:, :n_slots]).entries

    def _each(self, change: Callable[[Tensor], Tensor]) -> "HookedKeyValues":
        whole = self.entries
        entries = [type(e)(change(e.past_keys), change(e.past_values)) for e in whole.entries]
        return HookedKeyValues(type(whole)(entries, change(whole.previous_attention_mask)))
