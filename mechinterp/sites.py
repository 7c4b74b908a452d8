"""Where an activation lives: a name and a layer, the same on every backend.

Layer L counts from 0, and `resid_post` of layer L is the output of block L. The identities that define the
names are `resid_pre + attn_out = resid_mid`, `resid_mid + mlp_out = resid_post`, `z W_O (+ b) = attn_out` and
`sum over keys of pattern = 1`.
"""

import operator
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import total_ordering
from typing import Literal, get_args

SiteName = Literal[
    "resid_pre", "q", "k", "v", "q_rot", "k_rot", "pattern", "z", "attn_out", "resid_mid", "mlp_out",
    "resid_post",
]  # fmt: skip
NAMES: tuple[str, ...] = get_args(SiteName)
WRITABLE: tuple[str, ...] = ("resid_pre", "z", "attn_out", "mlp_out", "resid_post")
PER_HEAD: tuple[str, ...] = ("q", "k", "v", "q_rot", "k_rot", "z")

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.(?:attn\.)?hook_(\w+)")
_ALIASES = {"rot_q": "q_rot", "rot_k": "k_rot"}


@total_ordering
@dataclass(frozen=True)
class Site:
    """An activation of one block: `Site("resid_post", 22)`. Sites sort in the order of a forward pass.

    Raises ValueError for an unknown name and TypeError for a layer that is not an integer; that the layer
    exists is checked by the model, which knows how many there are.
    """

    name: SiteName
    layer: int

    def __post_init__(self):
        if self.name not in NAMES:
            close = get_close_matches(str(self.name), NAMES, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"there is no site {self.name!r}{hint}; the sites are {', '.join(NAMES)}")
        object.__setattr__(self, "layer", as_index(self.layer, "layer"))

    def __lt__(self, other: "Site") -> bool:
        return (self.layer, NAMES.index(self.name)) < (other.layer, NAMES.index(other.name))

    def __str__(self) -> str:
        return f"{self.name} of layer {self.layer}"

    @staticmethod
    def parse(text: str) -> "Site":
        """The site of a transformer-lens hook name: `blocks.5.hook_resid_pre`, `blocks.5.attn.hook_z`."""
        match = _TRANSFORMER_LENS.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no hook name of a block; write blocks.LAYER.hook_NAME, or Site(name, layer)"
            )
        name = _ALIASES.get(match[2], match[2])
        return Site(name, int(match[1]))  # pyright: ignore[reportArgumentType]


def as_index(value: object, what: str) -> int:
    """An int from an int or a numpy integer; bools, floats and strings hide mistakes and are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{what} must be an integer, not {value!r} of type {kind}") from None


def sites(name: SiteName, layers: range | list[int] | tuple[int, ...]) -> tuple[Site, ...]:
    """The same site in several layers, in the order asked; empty and repeated layers are refused."""
    found = tuple(Site(name, layer) for layer in layers)
    if not found:
        raise ValueError("no layers were given; name at least one, or range(model.dims.n_layers) for all")
    if len(set(found)) < len(found):
        raise ValueError(f"layers {list(layers)} repeat; name each layer once")
    return found
