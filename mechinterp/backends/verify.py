"""Are the sites where the anatomy says? Two rows of three tokens, block identities and writes, at load.

A wrong row is off by half or more while rounding is below 1e-5 in fp32, so the verdict is never close.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor

from mechinterp.backends.protocol import Backend, Pass, Recorder
from mechinterp.backends.turns import turn
from mechinterp.interventions import Add
from mechinterp.sites import Site, SiteName
from mechinterp.where import Rows

# bf16 keeps 8 bits: sums of a block's parts drift by up to 1e-2 of their size; wrong rows gave >= 0.3.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@torch.no_grad()
def verify(backend: Backend) -> dict[str, float]:
    """The worst relative error of each identity over layers. Raises ValueError naming the site that fails."""
    tokens = torch.tensor([[3, 1, 2], [5, 4, 6]], device=backend.device) % backend.dims.d_vocab
    worst: dict[str, float] = {}
    names: list[SiteName] = [
        "resid_pre", "q", "k", "v", "q_rot", "k_rot", "pattern", "z", "attn_out", "mlp_out", "resid_post",
    ]  # fmt: skip
    wanted = [Site(n, i) for i in range(backend.dims.n_layers) for n in names if n in backend.sites]
    values, logits = _first_run(backend, tokens, wanted)
    tolerance = TOLERANCE[backend.dtype]
    for layer in range(backend.dims.n_layers):
        for name, error in _identities(values, layer, backend).items():
            worst[name] = max(worst.get(name, 0.0), error)
            if not error <= tolerance:
                raise ValueError(_refusal(backend, name, layer, error, tolerance))
    last = values[Site("resid_post", backend.dims.n_layers - 1)]
    worst["unembed(resid_post) = logits"] = error = _relative(backend.readout.unembed(last), logits)
    if not error <= tolerance:
        raise ValueError(
            _refusal(backend, "unembed(resid_post) = logits", backend.dims.n_layers - 1, error, tolerance)
        )
    worst["writes"] = _writes(backend, tokens, values, tolerance)
    return worst


def _first_run(backend: Backend, tokens: Tensor, wanted: list[Site]) -> tuple[dict[Site, Tensor], Tensor]:
    """A pass that reads every site; where a row is so wrong that it fails, it names the site."""
    try:
        values, logits = _run(backend, tokens, wanted)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttributeError, LookupError, TypeError) as error:
        site = next((site for site in wanted if not _runs(backend, tokens, site)), wanted[0])
        raise ValueError(
            f"the {backend.name} backend cannot read {site} (it did not run: {error}); the anatomy row"
            " puts it, or the attention module, in the wrong place"
        ) from error
    for site in wanted:
        shape = None if site not in values else tuple(values[site].shape)
        n_batch, n = tokens.shape
        expected = (n_batch, n, *backend.dims.shape(site))
        if site.name == "pattern":
            expected = (n_batch, backend.dims.n_heads, n, n)
        if shape != expected:
            raise ValueError(
                f"the {backend.name} backend gives {site} the shape {shape}, not {expected}"
                f"{' (it did not run)' * (shape is None)}; the anatomy row puts it in the wrong place"
            )
    return values, logits


def _runs(backend: Backend, tokens: Tensor, site: Site) -> bool:
    try:
        _run(backend, tokens, [site])
    except (RuntimeError, AttributeError, LookupError, TypeError):
        return False
    return True


def _run(
    backend: Backend, tokens: Tensor, capture: list[Site], *interventions: Add
) -> tuple[dict[Site, Tensor], Tensor]:
    position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    rows = Rows(position, position - (tokens.shape[1] - 1), torch.ones_like(position, dtype=torch.bool))
    request = Pass(tokens, rows, None, capture=tuple(sorted(capture)), interventions=interventions)
    recorder = Recorder(request)
    with turn(backend):
        outcome = backend.forward(request, recorder)
    recorder.check()
    assert outcome.logits is not None  # no stop_after was asked for
    return recorder.values, outcome.logits


def _identities(values: dict[Site, Tensor], layer: int, backend: Backend) -> dict[str, float]:
    def at(name: SiteName, where: int = layer) -> Tensor:
        return values[Site(name, where)].float()

    pre, attn, mlp, post = (at(name) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    # measured against what the block adds: a stream that grows to thousands would hide a wrong addend
    change = (post - pre).norm() + 1e-3 * pre.norm()
    wrong = (pre + attn + mlp - post).abs()
    # in a narrow dtype the stream itself is rounded twice, by more than a block adds where it is large
    wrong = (wrong - torch.finfo(backend.dtype).eps * ((pre + attn).abs() + post.abs()) / 2).clamp_min(0)
    found = {"resid_pre + attn_out + mlp_out = resid_post": float(wrong.norm() / change)}
    if layer + 1 < backend.dims.n_layers:
        found["resid_post = next resid_pre"] = _relative(post, at("resid_pre", layer + 1))
    if "pattern" in backend.sites:
        pattern = at("pattern")
        found["rows of pattern sum to 1"] = float((pattern.sum(-1) - 1).abs().max())
        found["pattern v = z"] = _relative(_mixed(pattern, at("v")), at("z"))
    if "q_rot" in backend.sites:
        found["q unrotated = q_rot at position 0"] = _same_gain(at("q"), at("q_rot"))
        found["k unrotated = k_rot at position 0"] = _same_gain(at("k"), at("k_rot"))
    elif {"pattern", "q"} <= set(backend.sites) and not getattr(backend, "rotary", False):
        found["log pattern is linear in q k"] = _linear_scores(at("q"), at("k"), at("pattern"))
    return found


def _same_gain(plain: Tensor, rotated: Tensor) -> float:
    """At position 0 nothing is rotated, so rotated / plain is the same gain whatever the input."""
    (a, b), (rot_a, rot_b) = plain[:, 0], rotated[:, 0]
    return max(_angle(x, y) for x, y in zip(rot_a * b, rot_b * a, strict=True))  # one rms a head in Qwen3


def _linear_scores(q: Tensor, k: Tensor, pattern: Tensor) -> float:
    """Without rotation, log p(key) - log p(key 0) is scale * q (k - k_0) plus a fixed bias."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = einsum(q[:, 2], k, "batch head d, batch key head d -> batch head key")
    logs = pattern[:, :, 2].log()
    score, log = (rearrange(x - x[..., :1], "batch ... -> batch (...)") for x in (scores, logs))
    return _angle(score[0] - score[1], log[0] - log[1])


def _angle(a: Tensor, b: Tensor) -> float:
    """The sine of the angle between two vectors that should point the same way; 1 where they point apart."""
    unit_a, unit_b = a / a.norm().clamp_min(1e-30), b / b.norm().clamp_min(1e-30)
    return float((unit_a - unit_b).norm())


def _mixed(pattern: Tensor, v: Tensor) -> Tensor:
    grouped = rearrange(pattern, "batch (kv group) query key -> batch kv group query key", kv=v.shape[2])
    mixed = einsum(grouped, v, "batch kv group query key, batch key kv d -> batch query kv group d")
    return rearrange(mixed, "batch query kv group d -> batch query (kv group) d")


def _writes(backend: Backend, tokens: Tensor, natural: dict[Site, Tensor], tolerance: float) -> float:
    """Writes at a middle layer: what is added arrives in the stream and moves what is computed from it alone.

    attn_out and mlp_out swapped would keep every sum of a block, so their order is proven by who moves: z
    moves attn_out; attn_out moves mlp_out, unless the block is parallel; mlp_out never moves attn_out.
    """
    layer = backend.dims.n_layers // 2
    generator = torch.Generator().manual_seed(0)
    parallel = "resid_mid" not in backend.sites
    names: list[SiteName] = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    parts = [Site(name, layer) for name in names]
    moves: dict[SiteName, dict[SiteName, bool]] = {
        "z": {"attn_out": True},
        "attn_out": {"mlp_out": not parallel},
        "mlp_out": {"attn_out": False},
        "resid_pre": {},
    }
    moves["z"]["mlp_out"] = not parallel
    worst = 0.0
    for name, expected in moves.items():
        site = Site(name, layer)  # pyright: ignore[reportArgumentType]
        size = (
            natural[site if name == "z" else Site("resid_post", layer)].float().flatten(2).norm(dim=-1).mean()
            * 0.5
        )
        vector = torch.randn(backend.dims.shape(site), generator=generator).to(backend.device)
        vector = vector / vector.norm() * size
        values, _ = _run(backend, tokens, [*parts, site], Add(site=site, vector=vector))
        pre, attn, mlp, after = (values[s].float() for s in parts)
        moved = values[site].float() - natural[site].float()
        error = max(_relative(pre + attn + mlp, after), _relative(moved, vector.expand_as(moved)))
        worst = max(worst, error)
        if not error <= tolerance:
            raise ValueError(
                _refusal(backend, f"a vector added at {name} arrives in the stream", layer, error, tolerance)
            )
        for other, should in expected.items():
            seen = Site(other, layer)  # pyright: ignore[reportArgumentType]
            error = _relative(values[seen], natural[seen])
            if (error > 1e-6) != should:
                identity = f"a vector added at {name} {'moves' if should else 'leaves'} {other}"
                raise ValueError(_refusal(backend, identity, layer, error, 1e-6))
    return worst


def _relative(found: Tensor, expected: Tensor) -> float:
    return float(
        (found.float() - expected.float().to(found.device)).norm() / expected.float().norm().clamp_min(1e-30)
    )


def _refusal(backend: Backend, identity: str, layer: int, error: float, tolerance: float) -> str:
    return (
        f"the {backend.name} backend's sites do not satisfy `{identity}` at layer {layer}: relative error"
        f" {error:.2g} (the line is at {tolerance:.0e}); the anatomy row puts one of these in the wrong place"
    )
