"""How much to add along a line so that a centred cosine takes a requested value (methods 12.9)."""

import math

from jaxtyping import Float
from torch import Tensor


def centred_cosine(
    a: Float[Tensor, "*rows d_model"],
    b: Float[Tensor, "*rows d_model"],
    about: Float[Tensor, "*rows d_model"],
) -> Float[Tensor, "*rows"]:
    """cos(a - about, b - about), in fp64."""
    x, y = (a - about).double(), (b - about).double()
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def strength_for(
    cosine: float,
    source: Float[Tensor, "d_model"],
    assistant: Float[Tensor, "d_model"],
    about: Float[Tensor, "d_model"],
    unit: Float[Tensor, "d_model"],
) -> float:
    """The smallest |beta| with cos(source - about, assistant + beta unit - about) = cosine.

    Both sides squared give a quadratic in beta; of its roots only those with the sign of `cosine` count.
    Raises ValueError where no beta reaches it.
    """
    a, b, u = ((x.double()) for x in (source - about, assistant - about, unit))
    p, q, s = float(a @ b), float(a @ u), float(b @ u)
    scale = cosine**2 * float(a @ a)
    second, first, none = q**2 - scale, 2 * (p * q - scale * s), p**2 - scale * float(b @ b)
    if abs(second) < 1e-12 * max(abs(q**2), abs(scale), 1e-300):
        roots = [] if first == 0 else [-none / first]
    else:
        inside = first**2 - 4 * second * none
        if -1e-9 * first**2 < inside < 0:  # a touching root, lost to rounding
            inside = 0.0
        roots = [] if inside < 0 else [(-first + way * math.sqrt(inside)) / (2 * second) for way in (1, -1)]
    held = [beta for beta in roots if (p + beta * q) * cosine >= -1e-12 * abs(p)]
    if not held:
        raise ValueError(
            f"no multiple of this direction brings the centred cosine to {cosine:.3g}; ask for one between"
            " the natural cosine and 1, along the line to the source"
        )
    return min(held, key=abs)
