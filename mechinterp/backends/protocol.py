"""What every library must be able to do, and the plain data that a pass hands to it.

Nothing above this package knows which library runs. A backend gets a `Pass` that is already checked and
resolved (the door is `Model`), calls `Recorder.visit` where the model makes each asked-for activation, and
returns an `Outcome`. What one backend can do and another cannot is an optional protocol of its own
(`Replays`).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.backends.readout import ReadsOut
from mechinterp.interventions import Add, Intervention
from mechinterp.sites import Site
from mechinterp.where import Rows

BackendName = Literal["transformers", "nnsight", "hooked_transformer", "transformer_bridge"]
LOUD = 10.0  # residual norms; above, later layers see little but the vector that was added


@dataclass(frozen=True)
class Dims:
    """The sizes of a model. `n_kv_heads` differs from `n_heads` under grouped-query attention.

    `windows` is how many of the newest keys a query of each layer sees, itself included; None is all of them,
    and an empty tuple says so of every layer.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int | None
    windows: tuple[int | None, ...] = ()

    def shape(self, site: Site) -> tuple[int, ...]:
        """The shape that a site has at one position."""
        if site.name in ("k", "v", "k_rot"):
            return (self.n_kv_heads, self.d_head)
        if site.name in ("q", "q_rot", "z"):
            return (self.n_heads, self.d_head)
        return (self.d_model,)


@runtime_checkable
class Cache(Protocol):
    """Keys and values of the tokens seen so far. A pass that is given a cache uses it up: go on with the new
    one.
    """

    @property
    def n_slots(self) -> int: ...

    def select(self, rows: Int[Tensor, "row"]) -> "Cache":
        """A cache of its own with these batch rows, in this order; rows may repeat."""
        ...

    def for_one_pass(self, rows: Int[Tensor, "row"]) -> "Cache":
        """These batch rows to be read by one pass, whose own keys and values nobody will ask for."""
        ...

    def crop(self, n_slots: int) -> None:
        """Forgets every slot from `n_slots` on."""
        ...


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass over a chunk of slots, resolved. `pad_left` counts the padding slots before each row's
    tokens. With `regions`, rows of `pattern` are summed over these key columns where they are made.
    `weighed` are the edits whose size an earlier pass has looked at; `forbidden` are the keys that rows of a
    layer may not attend to. A `live` pass keeps its captures on autograd's graph.
    """

    tokens: Int[Tensor, "batch slot"]
    rows: Rows
    pad_left: Int[Tensor, "batch"] | None
    capture: tuple[Site, ...] = ()
    slots: Int[Tensor, "batch k"] | None = None
    interventions: tuple[Intervention, ...] = ()
    logit_slots: Int[Tensor, "batch row"] | None = None
    stop_after: int | None = None
    cache: Cache | None = None
    keep_cache: bool = False
    natural: tuple[Site, ...] = ()
    pool: Float[Tensor, "batch slot"] | None = None
    weighed: frozenset[Intervention] = frozenset()
    regions: Float[Tensor, "batch key region"] | None = None
    forbidden: Mapping[int, Bool[Tensor, "batch head slot key"]] = field(default_factory=dict)
    live: bool = False

    @property
    def n_cached(self) -> int:
        return 0 if self.cache is None else self.cache.n_slots

    @property
    def wants_logits(self) -> bool:
        return self.stop_after is None and (self.logit_slots is None or self.logit_slots.shape[1] > 0)

    def key_mask(self) -> Bool[Tensor, "batch key"] | None:
        """False on left padding, over cached and new slots; None where nothing is padded."""
        if self.pad_left is None:
            return None
        slot = torch.arange(self.n_cached + self.tokens.shape[1], device=self.tokens.device)
        return slot[None] >= self.pad_left[:, None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a backend returns: the recorder holds captures and counts; logits are None where none were asked
    for.
    """

    logits: Float[Tensor, "batch k d_vocab"] | None
    cache: Cache | None


@dataclass(eq=False)
class Recorder:
    """Captures and edits activations as a backend hands them over, one visit a site, and counts what it
    edited.
    """

    request: Pass
    values: dict[Site, Tensor] = field(default_factory=dict)
    natural: dict[Site, Tensor] = field(default_factory=dict)
    applied: list[int] = field(default_factory=list)
    peaks: list[Tensor] = field(default_factory=list)
    ratios: dict[Site, float] = field(default_factory=dict)

    def __post_init__(self):
        self.applied = [0] * len(self.request.interventions)
        self._by_site: dict[Site, list[tuple[int, Intervention]]] = {}
        for index, intervention in enumerate(self.request.interventions):
            self._by_site.setdefault(intervention.site, []).append((index, intervention))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that a backend must hand over, in forward order."""
        return tuple(sorted({*self.request.capture, *self.request.natural, *self._by_site}))

    def visit(self, site: Site, x: Float[Tensor, "batch slot *shape"]) -> Float[Tensor, "batch slot *shape"]:
        """x as the model should go on with it."""
        if site in self.request.natural:
            self.natural[site] = self._home(x.detach())
        for index, intervention in self._by_site.get(site, ()):
            natural, x = x, intervention.edit(x, self.request.rows)
            mask = intervention.mask(self.request.rows)
            count = int(mask.sum())
            self.applied[index] += count
            if count:
                self._weigh(intervention, natural.detach(), mask)
                self.peaks.append(x.detach().float().flatten(2).norm(dim=-1).amax().cpu())
        if site in self.request.capture:
            x = self._alive(x) if self.request.live else x
            self.values[site] = x if self.request.live else self._home(self._kept(x))
        return x

    def put(self, site: Site, blocks: Iterable[Float[Tensor, "batch head k key"]]) -> None:
        """Keeps attention rows, which a backend slices itself, in blocks of rows: whole, or each block summed
        over regions before the next is made.
        """
        regions = self.request.regions
        kept = []
        for rows in blocks:
            if regions is not None:
                columns = regions.to(rows.device)
                rows = einsum(rows, columns, "batch head k key, batch key region -> batch head k region")
            kept.append(self._home(rows.detach()))
        self.values[site] = kept[0] if len(kept) == 1 else torch.cat(kept, 2)

    def _home(self, x: Tensor) -> Tensor:
        """On the device of the tokens: layers may lie on several, what they gave lies on one."""
        return x.to(self.request.tokens.device)

    def _alive(self, x: Tensor) -> Tensor:
        """A tensor of its own on the path to the logits; nothing before the first one is asked for."""
        begun = bool(self.values) and x.requires_grad
        return (x if begun else x.detach().requires_grad_()).clone()

    def _kept(self, x: Tensor) -> Tensor:
        """A copy, which no later change in place can reach; or the pooled rows, in fp32."""
        if self.request.pool is not None:
            weights = self.request.pool.to(x.device)
            return einsum(x.detach().float(), weights, "batch slot ..., batch slot -> batch ...")
        if self.request.slots is None:
            return x.detach().clone()
        return gather_slots(x.detach(), self.request.slots)

    def _weigh(self, edit: Intervention, x: Tensor, mask: Bool[Tensor, "batch slot"]) -> None:
        """Holds an added vector against the median norm of the rows of the stream that it is added to.

        Once an edit: this reads from the device, which no step of a sampling loop should wait for.
        """
        if not isinstance(edit, Add) or edit in self.request.weighed:
            return
        if edit.site.name not in ("resid_pre", "resid_post"):
            return  # what a part adds to the stream is short beside the stream, so its norm is no measure
        residual = float(x[mask.to(x.device)].float().norm(dim=-1).median())
        longest = float(edit.norms().expand(len(mask))[mask.any(1).cpu()].max())
        if residual > 0:
            self.ratios[edit.site] = max(longest / residual, self.ratios.get(edit.site, 0.0))

    def kept(self) -> dict[str, object]:
        """All that it has seen, for a recorder elsewhere that was sent in its place."""
        return {name: getattr(self, name) for name in ("values", "natural", "applied", "peaks", "ratios")}

    def check(self) -> None:
        """Raises RuntimeError unless every edit acted on exactly the rows asked.

        Raises FloatingPointError where an edit left the stream out of range, and warns where an added vector
        is more than LOUD times as long as the stream.
        """
        for intervention, applied in zip(self.request.interventions, self.applied, strict=True):
            asked = int(intervention.mask(self.request.rows).sum())
            late = self.request.stop_after is not None and intervention.site.layer > self.request.stop_after
            if applied != asked and not late:
                raise RuntimeError(
                    f"{type(intervention).__name__} at {intervention.site} was asked for {asked} rows and"
                    f" acted on {applied}; this backend did not run the site"
                )
        # both an inf of a narrow dtype and a value whose square is an inf in the final norm's fp32 show here
        if not all(peak.isfinite() for peak in self.peaks):
            raise FloatingPointError(
                "an edit left activations whose norm is not finite, in their own dtype or squared in fp32, as"
                " the final norm does: every logit would be the same; use a smaller strength"
            )
        for site, ratio in self.ratios.items():
            if ratio > LOUD:
                warnings.warn(
                    f"the vector added at {site} is {float(f'{ratio:.2g}'):g} times as long as the stream"
                    " there (the median norm of its rows); little else reaches the later layers: use a"
                    " smaller strength",
                    UserWarning,
                    stacklevel=2,
                )


def gather_slots(
    x: Float[Tensor, "batch slot *shape"], slots: Int[Tensor, "batch k"]
) -> Float[Tensor, "batch k *shape"]:
    """The chosen slots of each batch row."""
    batch = rearrange(torch.arange(len(x), device=x.device), "batch -> batch 1")
    return x[batch, slots.to(x.device)]


@runtime_checkable
class Backend(Protocol):
    """A library that runs one model. `sites` are the names it can read for this architecture."""

    name: BackendName
    dims: Dims
    sites: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    readout: ReadsOut

    def forward(self, request: Pass, recorder: Recorder) -> Outcome: ...


@runtime_checkable
class Replays(Protocol):
    """A backend that can run the upper layers alone, from a residual stream that the caller has."""

    def replay(
        self, request: Pass, recorder: Recorder, layer: int, residual: Float[Tensor, "batch slot d_model"]
    ) -> Outcome:
        """Runs layers `layer`.. on `residual` (the resid_pre of `layer`) over the prefix that the cache
        holds.
        """
        ...


@runtime_checkable
class Visitor(Protocol):
    """What a block hands its activations to: those at `sites`, each as the block should go on with it."""

    @property
    def sites(self) -> tuple[Site, ...]: ...

    def visit(self, site: Site, x: Float[Tensor, "batch slot *shape"]) -> Tensor: ...


Block = Callable[[int, Float[Tensor, "cell slot d_model"], Visitor], Float[Tensor, "cell slot d_model"]]


@runtime_checkable
class RunsBlocks(Protocol):
    """A backend that can run one block by itself, over the keys and values of a run that is done.

    `runs_blocks` is False for a family whose blocks cannot be called so.
    """

    runs_blocks: bool

    def blocks(self, request: Pass) -> AbstractContextManager[Block]:
        """(layer, resid_pre, visitor of z, attn_out, mlp_out) -> resid_post, for the last slots of a run.

        `request` holds those slots, of one row, and the run's whole cache. A block takes any number of rows
        that go on from the slots before them, which are shared and never written.
        """
        ...
