"""A certificate that the backends agree on one checkpoint: the user's own, on the user's own machine.

Each backend that supports the model is held against `transformers` on the same ids (see `comparison`).
Backends run over the same weights, one at a time beside the reference, so that a model needs to fit once
(HookedTransformer: twice).
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp import figures
from mechinterp.adapter_weights import merge
from mechinterp.adapters import needs_merged
from mechinterp.backends.protocol import BackendName
from mechinterp.comparison import GATE, TIE, Check, Truth, compare, truth_of
from mechinterp.loading import load, make_backend, with_adapter
from mechinterp.model import Model
from mechinterp.results import Result, metadata

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

logger = logging.getLogger("mechinterp")
REFERENCE: BackendName = "transformers"
QUESTION = "Name three things to pack for an island."
FLOOR = 1e-9  # where a logarithmic axis shows errors of zero
# What libraries raise for a model that they do not know; anything else is a fault of ours.
UNSUPPORTED = (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, AssertionError)


@dataclass(frozen=True, eq=False)
class Certificate(Result):
    """What was compared, on what, and whether it agrees. Print it: a table with a verdict.

    `left_out` holds the backends that could not be made for this model, with the reason.
    """

    model: str
    weights_sha256: str
    dtype: str
    device: str
    prompt: str
    prompt_ids: Int[Tensor, "position"]
    layer: int
    n_tokens: int
    seed: int
    gate: float
    tie: float
    checks: tuple[Check, ...]
    left_out: dict[str, str]

    @property
    def backends(self) -> tuple[str, ...]:
        """The reference, then those that were compared with it."""
        return tuple(dict.fromkeys(check.backend for check in self.checks))

    @property
    def passed(self) -> bool:
        """Whether every check passed, of at least one backend beside the reference."""
        return len(self.backends) > 1 and all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """One sentence; it names what failed."""
        others = ", ".join(self.backends[1:])
        if not others:
            return "FAIL: no backend could be compared with the reference"
        failed = [f"{check.what} on {check.backend}" for check in self.checks if not check.passed]
        if failed:
            more = f" and {len(failed) - 6} more" if len(failed) > 6 else ""
            return f"FAIL: {'; '.join(failed[:6])}{more}"
        missing = f"; not compared: {', '.join(self.left_out)}" if self.left_out else ""
        return f"PASS: {others} and {REFERENCE} agree in {len(self.checks)} checks{missing}"

    def __str__(self) -> str:
        return "\n".join([*_head(self), "", *_table(self), "", *_notes(self), self.verdict])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a check."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(check) for check in self.checks])

    def to_json(self) -> dict[str, Any]:
        """Plain data for other programs: what was asked, every check, the verdict, versions of libraries."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        said |= {
            "prompt_ids": self.prompt_ids.tolist(),
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }
        return {**metadata("mechinterp.certificate"), **said, "passed": self.passed, "verdict": self.verdict}

    def figure(self) -> go.Figure:
        """Relative errors of sites read and edits written, by backend, with the gate as a line."""
        df = self.to_dataframe()
        df = df.query("kind in ['read', 'write'] and error.notna()").reset_index(drop=True)
        names = list(dict.fromkeys(df.what))
        df["place"] = [float(names.index(what)) for what in df.what]
        df["shown"] = df.error.astype(float).clip(lower=FLOOR)
        told = (
            f"reference {REFERENCE}, {self.dtype} on {self.device}; identical values are drawn at {FLOOR:g}"
        )
        subtitle = figures.caption(
            self.model, n=len(self.prompt_ids), unit="token", seeds=[self.seed], band="none", more=[told]
        )
        figure = figures.scatter(
            df, "place", "shown", by="backend", name="what", subtitle=subtitle,
            title="Errors between backends", x_title="site read or edit written", y_title="relative L2 error",
        )  # fmt: skip
        ticks = [figures.label(name, 26) for name in names]
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=ticks, tickangle=60)
        figure.update_yaxes(type="log", exponentformat="power")
        figure.add_hline(y=self.gate, line_dash="dash", annotation_text=f"gate {self.gate:g}")
        return figure


def certify(
    model: str | Model,
    *,
    adapter: str | Path | None = None,
    backends: Sequence[BackendName] | None = None,
    n_tokens: int = 64,
    seed: int = 0,
) -> Certificate:
    """Compares backends with `transformers` on a model: by its name, or a `Model` on that backend.

    adapter: a peft directory or id, put on it first. backends: which to compare, all by default. n_tokens:
    how many ids are generated, half steered, half free.
    Raises ValueError for a backend that is none, fewer than 2 tokens, a Model on another backend, or too
    short a context; a backend that cannot run the model is left out with the reason.
    """
    known: tuple[BackendName, ...] = get_args(BackendName)
    asked: list[Any] = [n for n in dict.fromkeys(known if backends is None else backends) if n != REFERENCE]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"there is no backend {unknown[0]!r}; the backends are {', '.join(known)}")
    if n_tokens < 2:
        raise ValueError(
            f"{n_tokens} generated tokens cannot be half steered and half free; ask for 2 or more"
        )
    base = load(model) if isinstance(model, str) else model
    reference = base if adapter is None else with_adapter(base, adapter)
    if reference.backend.name != REFERENCE:
        raise ValueError(
            f"{reference.name} is on the {reference.backend.name} backend, and {REFERENCE} is the reference;"
            " pass its name, or mi.wrap(hf_model, tokenizer) of the Hugging Face model"
        )
    prompt, tokens = _prompt(reference, seed)
    n_ctx = reference.dims.n_ctx
    if n_ctx is not None and tokens.shape[1] + n_tokens > n_ctx:
        raise ValueError(
            f"{reference.name} has a context of {n_ctx} positions; the prompt takes {tokens.shape[1]}, so at"
            f" most {n_ctx - tokens.shape[1]} tokens can be generated, not {n_tokens}"
        )
    truth = truth_of(reference, tokens, n_tokens=n_tokens, seed=seed)
    checks, left_out = list(compare(reference, truth)), {}
    for name in asked:
        found, reason = _compared(name, truth)
        checks += found
        left_out |= {} if reason is None else {name: reason}
    return _certificate(truth, prompt, tuple(checks), left_out)


def _compared(name: BackendName, truth: Truth) -> tuple[tuple[Check, ...], str | None]:
    """The checks of one backend, which is let go afterwards; or why it cannot be made."""
    reference: Any = truth.model
    logger.info("comparing %s with %s", name, REFERENCE)
    try:
        hf_model, anatomy = reference.backend.model, reference.backend.anatomy
        if "adapter" in reference.source and needs_merged(name, anatomy):
            hf_model = merge(hf_model)
        made, _ = make_backend(name, hf_model, anatomy)
    except UNSUPPORTED as error:
        return (), f"{type(error).__name__}: {error}"
    found = compare(replace(reference, backend=made), truth)
    del made, hf_model
    gc.collect()  # hooks make cycles, and the next backend needs the memory
    return found, None


def _prompt(model: Model, seed: int) -> tuple[str, Int[Tensor, "1 position"]]:
    """A chat prompt; plain text where there is no template, drawn ids where there is no tokenizer."""
    if model.tokenizer is None:
        generator = torch.Generator().manual_seed(seed)
        return "drawn ids", torch.randint(model.dims.d_vocab, (1, 16), generator=generator)
    chat = bool(getattr(model.tokenizer, "chat_template", None))
    return "chat" if chat else "plain text", model.chat(QUESTION, chat=chat).tokens


def _certificate(
    truth: Truth, prompt: str, checks: tuple[Check, ...], left_out: dict[str, str]
) -> Certificate:
    model = truth.model
    dtype = model.backend.dtype
    return Certificate(
        model=model.name,
        weights_sha256=model.weights_sha256,
        dtype=str(dtype).removeprefix("torch."),
        device=str(model.backend.device),
        prompt=prompt,
        prompt_ids=truth.tokens[0].cpu(),
        layer=truth.layer,
        n_tokens=truth.n_tokens,
        seed=truth.seed,
        gate=GATE[dtype],
        tie=TIE[dtype],
        checks=checks,
        left_out=left_out,
    )


# as text ----------------------------------------------------------------------------------------------------


def _head(found: Certificate) -> list[str]:
    lines = [
        f"{found.model}, {found.dtype} on {found.device}, weights {found.weights_sha256[:12]}",
        f"reference {REFERENCE}; {found.prompt}, {len(found.prompt_ids)} tokens; edits at layer"
        f" {found.layer}; {found.n_tokens} ids, half steered, half free; seed {found.seed}",
        "errors are relative L2 norms, the worst over layers; edits are judged by the logits they lead to",
    ]
    if found.gate > 1e-3:
        lines.append(
            f"{found.dtype} rounds by itself: smaller faults show only when the model is loaded in float32"
        )
    return lines


def _table(found: Certificate) -> list[str]:
    """One line for each thing that was compared, one column for each backend."""
    rows: dict[tuple[str, str], dict[str, Check]] = {}
    for check in found.checks:
        rows.setdefault((check.kind, check.what), {})[check.backend] = check
    wide = max(len(what) for _, what in rows)
    ordered = sorted(rows, key=lambda key: ("identity", "read", "write", "ids").index(key[0]))  # stable
    columns = "  ".join(f"{backend:>{max(9, len(backend))}}" for backend in found.backends)
    lines = [f"{'':<8}  {'':<{wide}}  {columns}  {'allowed':>7}"]
    for kind, what in ordered:
        row = rows[kind, what]
        cells = "  ".join(f"{_cell(row.get(b)):>{max(9, len(b))}}" for b in found.backends)
        allowed = next((check.allowed for check in row.values() if check.allowed is not None), None)
        verdict = "PASS" if all(check.passed for check in row.values()) else "FAIL"
        lines.append(
            f"{kind:<8}  {what:<{wide}}  {cells}  {'' if allowed is None else f'{allowed:.0e}':>7}  {verdict}"
        )
    return lines


def _cell(check: Check | None) -> str:
    if check is None:
        return ""
    if check.error is not None:
        shown = "identical" if check.error == 0 and check.kind != "identity" else f"{check.error:.1e}"
        return shown if check.passed else f"!{shown}"
    if check.kind == "ids" and check.passed:
        return "same" if "identical" in check.said else "a tie"
    return "-" if check.passed else "!"


def _notes(found: Certificate) -> list[str]:
    """What numbers cannot say: failures, ids that part, sites that are not shown, backends left out."""
    lines = []
    for check in found.checks:
        if not check.passed:
            said = check.said or f"{check.error:.1e}, allowed {check.allowed:.0e}"
            at = f" ({check.where})" if check.where else ""
            lines.append(f"FAIL {check.backend}, {check.kind} {check.what}{at}: {said}")
        elif check.said and "identical" not in check.said:
            lines.append(f"{check.backend}, {check.what}: {check.said}")
    return lines + [f"not compared, {name}: {reason}" for name, reason in found.left_out.items()]
