"""One backend held against another on one model: identities, sites read, edits written, ids sampled.

Relative L2 errors are of whole tensors, the worst over layers. Where sampled ids differ, the two candidates
must be so close that rounding may choose between them, and that is said.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp import drawing
from mechinterp.backends.verify import TOLERANCE, verify
from mechinterp.cells import cell_seed
from mechinterp.directions import random_direction
from mechinterp.interventions import (
    Add,
    Apply,
    Clamp,
    From,
    Generated,
    Intervention,
    ProjectOut,
    Replace,
    Rotate,
)
from mechinterp.model import Model
from mechinterp.samples import Phase
from mechinterp.sampling import sample
from mechinterp.sites import WRITABLE, Site
from mechinterp.ties import draw_gap

# float32: the line that the parity tests hold twelve families to. The others keep 11 and 8 bits, and what
# each kernel rounds on its way through the layers adds up to about ten and six of their last steps.
GATE = {torch.float64: 5e-6, torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Logits of 16 to 32 are stored in steps of 2e-6, 0.016 and 0.125; candidates closer than TIE are decided by
# what the kernels round.
TIE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.032, torch.bfloat16: 0.25}
MODES: dict[str, float | None] = {"greedy": None, "sampled": 0.8}  # with the temperature of each
TOP_P = 0.95
BROKEN = (RuntimeError, ValueError, FloatingPointError)  # what a pass raises where it cannot be trusted


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `error` None: nothing was measured, and `said` tells why.

    `where` is the worst site; `moved` how far an edit moved the reference's logits, in the error's unit.
    """

    backend: str
    kind: Literal["identity", "read", "write", "ids"]
    what: str
    passed: bool
    error: float | None = None
    allowed: float | None = None
    where: str = ""
    moved: float | None = None
    said: str = ""


@dataclass(frozen=True, eq=False)
class Truth:
    """What the reference computes, and what it was asked: all that another backend is held against."""

    model: Model
    tokens: Int[Tensor, "1 position"]
    n_tokens: int
    seed: int
    layer: int
    vector: Float[Tensor, "d_model"]
    values: dict[Site, Tensor]
    logits: Float[Tensor, "1 position d_vocab"]
    edits: dict[tuple[str, str], Intervention]
    edited: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    ids: dict[str, Int[Tensor, "token"]] = field(default_factory=dict)

    @property
    def gate(self) -> float:
        return GATE[self.model.backend.dtype]

    @property
    def tie(self) -> float:
        return TIE[self.model.backend.dtype]


def truth_of(reference: Model, tokens: Int[Tensor, "1 position"], *, n_tokens: int, seed: int) -> Truth:
    """Runs the reference: sites, edits of a middle layer sized by what they find there, two sampled runs."""
    layer = reference.dims.n_layers // 2
    values, logits = _read(reference, tokens, reference.backend.sites)
    edits = {}
    for name in WRITABLE:
        generator = torch.Generator().manual_seed(cell_seed(seed, f"edits of {name}", 0))
        site = _site(name, layer)
        edits |= {(kind, name): edit for kind, edit in edits_of(site, values[site][0, -1], generator).items()}
    size = float(values[Site("resid_post", layer)][0, -1].float().norm())
    generator = torch.Generator().manual_seed(cell_seed(seed, "steering", 0))
    vector = random_direction(reference.dims.d_model, 0.5 * size, generator)
    truth = Truth(reference, tokens, n_tokens, seed, layer, vector, values, logits, edits)
    truth.edited.update({key: _edited(reference, truth, edit) for key, edit in edits.items()})
    truth.ids.update({mode: _ids(reference, truth, mode) for mode in MODES})
    return truth


def edits_of(
    site: Site, natural: Float[Tensor, "*shape"], generator: torch.Generator
) -> dict[str, Intervention]:
    """One edit of each type, each large enough to be seen in the logits."""
    size = float(natural.float().norm())
    v = random_direction(natural.numel(), size, generator).reshape(natural.shape)
    return {
        "Add": Add(site, 0.5 * v, where=From(1)),
        "Replace": Replace(site, v, strength=0.7),
        "ProjectOut": ProjectOut(site, natural.cpu().float() + v),  # all of a row would leave rounding alone
        "Clamp": Clamp(site, v, low=0.4 * size, high=0.6 * size),
        "Rotate": Rotate(site, v, angle=0.4),
        "Apply": Apply(site, lambda x: x + 0.5 * x.relu()),
    }


def compare(other: Model, truth: Truth) -> tuple[Check, ...]:
    """Every check of one backend; the reference itself is held to its identities alone."""
    if other is truth.model:
        return tuple(identities(other))
    return (*identities(other), *_reads(other, truth), *_writes(other, truth), *_sampled(other, truth))


def identities(model: Model) -> list[Check]:
    """What must hold within one backend: sums of a block, rows of pattern, unembedding, writes."""
    allowed, name = TOLERANCE[model.backend.dtype], model.backend.name
    try:
        found = verify(model.backend)
    except ValueError as error:
        return [Check(name, "identity", "identities of a block", False, None, allowed, said=str(error))]
    return [Check(name, "identity", what, error <= allowed, error, allowed) for what, error in found.items()]


def _reads(other: Model, truth: Truth) -> list[Check]:
    backend, checks = other.backend.name, []
    shown = tuple(name for name in truth.model.backend.sites if name in other.backend.sites)
    try:
        values, logits = _read(other, truth.tokens, shown)
    except BROKEN:
        values, logits = None, None  # then site by site, to see which it is
    for name in truth.model.backend.sites:
        if name not in shown:
            checks.append(Check(backend, "read", name, True, said="this backend does not show it"))
            continue

        def worst(name: str = name) -> tuple[float, str]:
            read = _read(other, truth.tokens, (name,))[0] if values is None else values
            found = [(relative(read[s], x), str(s)) for s, x in truth.values.items() if s.name == name]
            return max(found, key=lambda each: math.inf if math.isnan(each[0]) else each[0])

        checks.append(_measured(Check(backend, "read", name, False, allowed=truth.gate), worst))

    def of_logits() -> tuple[float, str]:
        return relative(_read(other, truth.tokens, ())[1] if logits is None else logits, truth.logits), ""

    return [*checks, _measured(Check(backend, "read", "logits", False, allowed=truth.gate), of_logits)]


def _writes(other: Model, truth: Truth) -> list[Check]:
    """The logits of the last rows under each edit, relative to the reference's under the same edit."""
    checks = []
    natural = truth.logits[:, -_rows(truth) :]
    for (kind, name), edit in truth.edits.items():
        expected = truth.edited[kind, name]
        moved = relative(expected, natural)
        weak = (
            f"the edit moves the logits by {moved:.1g} only, so little is proven"
            if moved < 10 * truth.gate
            else ""
        )
        check = Check(
            other.backend.name,
            "write",
            f"{kind} at {name}",
            False,
            None,
            truth.gate,
            str(edit.site),
            moved,
            weak,
        )
        checks.append(
            _measured(check, lambda e=edit, x=expected: (relative(_edited(other, truth, e), x), str(e.site)))
        )
    return checks


def _sampled(other: Model, truth: Truth) -> list[Check]:
    checks = []
    for mode, expected in truth.ids.items():
        empty = Check(other.backend.name, "ids", f"{mode}, steered then free", False)
        try:
            found = _ids(other, truth, mode)
        except BROKEN as error:
            checks.append(replace(empty, said=str(error)))
            continue
        passed, said = _agreement(found, expected, truth, mode)
        checks.append(replace(empty, passed=passed, said=said))
    return checks


def _agreement(found: Tensor, expected: Tensor, truth: Truth, mode: str) -> tuple[bool, str]:
    """Whether ids are identical up to a tie, in words."""
    n = len(expected)
    differing = (found != expected).nonzero().flatten().tolist()
    if not differing:
        return True, f"{n} of {n} ids identical"
    at = differing[0]
    ours, theirs = int(found[at]), int(expected[at])
    phase = "steered" if at < truth.n_tokens // 2 else "free"
    said = f"ids differ first at token {at} of {n} ({phase}): {ours} here, {theirs} by the reference"
    gap, unit = _gap(truth, mode, at, ours)
    if gap <= truth.tie:
        return (
            True,
            f"{said}; a tie: {unit} of {gap:.1g} decides, within {truth.tie:g}; later ids were not compared",
        )
    return False, f"{said}; no tie: {unit} of {gap:.1g} decides, beyond {truth.tie:g}"


def _gap(truth: Truth, mode: str, at: int, other: int) -> tuple[float, str]:
    """How far the reference is from choosing `other` at token `at`: in logits, or as a move of the draw."""
    n_prompt, expected = truth.tokens.shape[1], truth.ids[mode]
    so_far = torch.cat([truth.tokens[0].cpu(), expected[:at]])[None]
    steering = Add(Site("resid_post", truth.layer), truth.vector, where=From(n_prompt - 1))
    edits = (steering,) if at < truth.n_tokens // 2 else ()
    logits = truth.model.forward(so_far, interventions=edits, logits_at=[-1]).logits
    assert logits is not None  # logits_at asks for one row
    row = logits[0].float()
    temperature = MODES[mode]
    if temperature is None:
        return float(row[0, expected[at]] - row[0, other]), "a logit difference"
    uniform = drawing.uniforms(truth.seed, ["certificate"], truth.n_tokens)[:, at]
    gap = draw_gap(row, uniform, taken=int(expected[at]), other=other, temperature=temperature, top_p=TOP_P)
    return gap, "a move of the draw"


def _measured(check: Check, measure: Callable[[], tuple[float, str]]) -> Check:
    """The check with its error; what a backend refuses or breaks at is a failure in its own words."""
    assert check.allowed is not None  # every measured check has its gate
    try:
        error, where = measure()
    except BROKEN as reason:
        return replace(check, said=str(reason))
    if not math.isfinite(error):
        return replace(check, where=where, said=f"the error is {error}")
    return replace(check, passed=error <= check.allowed, error=error, where=where)


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64; raises ValueError where the shapes differ."""
    if found.shape != expected.shape:
        raise ValueError(f"the shape is {tuple(found.shape)}, the reference's {tuple(expected.shape)}")
    a, b = found.double().cpu(), expected.double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _read(model: Model, tokens: Tensor, names: tuple[str, ...]) -> tuple[dict[Site, Tensor], Tensor]:
    capture = [_site(name, layer) for layer in range(model.dims.n_layers) for name in names]
    found = model.forward(tokens, capture=capture)
    assert found.logits is not None  # no stop_after was asked for
    return {site: value.cpu() for site, value in found.values.items()}, found.logits.cpu()


def _rows(truth: Truth) -> int:
    """How many rows of logits an edit is judged by: a few, for a vocabulary of 256k makes them large."""
    return min(4, truth.tokens.shape[1])


def _edited(model: Model, truth: Truth, edit: Intervention) -> Tensor:
    n = truth.tokens.shape[1]
    logits = model.forward(truth.tokens, interventions=[edit], logits_at=range(n - _rows(truth), n)).logits
    assert logits is not None  # logits_at asks for some
    return logits.cpu()


def _ids(model: Model, truth: Truth, mode: str) -> Int[Tensor, "token"]:
    """Half of the tokens steered, half free on a fresh cache; no id ends a run, so that all are compared."""
    steering = Add(Site("resid_post", truth.layer), truth.vector, where=Generated())
    phases = [Phase(truth.n_tokens // 2, (steering,)), Phase(-(-truth.n_tokens // 2), cache="fresh")]
    found = sample(
        model, truth.tokens.cpu(), phases, temperature=MODES[mode], top_p=TOP_P, seed=truth.seed,
        names=["certificate"], stop=frozenset(),
    )  # fmt: skip
    return found.generated[0]


def _site(name: str, layer: int) -> Site:
    return Site(name, layer)  # pyright: ignore[reportArgumentType]
