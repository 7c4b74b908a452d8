"""What a forward pass gives back: the tokens, logits and captured activations, and where its cache stands."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.backends.protocol import Cache
from mechinterp.sites import Site


@dataclass(frozen=True, eq=False)
class State:
    """Where a sequence of cached passes stands: the library's cache and what its slots hold."""

    cache: Cache
    n_slots: int
    pad_left: Int[Tensor, "batch"] | None
    prompt_lengths: Int[Tensor, "batch"]

    def select(self, rows: Int[Tensor, "row"]) -> "State":
        """The state of some batch rows, with a cache of its own."""
        pad = None if self.pad_left is None else self.pad_left[rows]
        return State(self.cache.select(rows), self.n_slots, pad, self.prompt_lengths[rows])

    def for_one_pass(self, rows: Int[Tensor, "row"]) -> "State":
        """The same, to be read by one pass that leaves no state: nothing is copied beforehand."""
        pad = None if self.pad_left is None else self.pad_left[rows]
        return State(self.cache.for_one_pass(rows), self.n_slots, pad, self.prompt_lengths[rows])


@dataclass(frozen=True, eq=False)
class Activations:
    """What one forward pass gave: `values[site]` is [batch, position, ...] at the asked positions.

    `pattern` is [batch, head, position, key]. `applied` counts the rows that each intervention changed.
    """

    tokens: Int[Tensor, "batch position"]
    logits: Float[Tensor, "batch k d_vocab"] | None
    values: dict[Site, Tensor]
    state: State | None
    applied: tuple[int, ...] = ()
    natural: dict[Site, Tensor] = field(default_factory=dict)

    def __getitem__(self, site: Site) -> Tensor:
        if site not in self.values:
            captured = ", ".join(str(s) for s in sorted(self.values)) or "nothing"
            raise KeyError(f"{site} was not captured (captured: {captured}); name it in capture=")
        return self.values[site]

    def stack(self, name: str) -> Float[Tensor, "layer batch position *shape"]:
        """One site over all its captured layers."""
        found = [self.values[site] for site in sorted(self.values) if site.name == name]
        if not found:
            raise KeyError(f"no {name} was captured; name it in capture=")
        return torch.stack(found)


def with_parts(capture: tuple[Site, ...]) -> tuple[Site, ...]:
    """What a backend must capture: resid_mid is made of resid_pre and attn_out."""
    parts = [s for s in capture if s.name != "resid_mid"]
    for site in capture:
        if site.name == "resid_mid":
            parts += [Site("resid_pre", site.layer), Site("attn_out", site.layer)]
    return tuple(sorted(set(parts)))


def with_mid(values: dict[Site, Tensor], capture: tuple[Site, ...]) -> dict[Site, Tensor]:
    """The captured sites that were asked for, in the order asked."""
    return {
        site: values[Site("resid_pre", site.layer)] + values[Site("attn_out", site.layer)]
        if site.name == "resid_mid"
        else values[site]
        for site in capture
        if site.name == "resid_mid" or site in values
    }
