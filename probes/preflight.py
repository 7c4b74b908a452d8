"""Does the attention kernel matter? The model's own against eager, before anything is read (methods 9.2).

Three things are compared: logits on the prompts, rows of attention with the weights that eager itself
returns, and how often a sampled answer holds the marker. The rates come with the standard error of their
difference, for the published tolerance of 0.05 is barely more than one such error at 200 completions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp import figures
from mechinterp.backends.twin import twin
from mechinterp.chat import Prompt
from mechinterp.loading import make_backend
from mechinterp.model import Model
from mechinterp.results import Result, metadata
from mechinterp.sampling import Phase, Samples, sample
from mechinterp.sites import as_index, sites
from mechinterp.stats.intervals import wilson
from probes.markers import MARKER, detect

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

EAGER = "eager"


@dataclass(frozen=True, eq=False)
class Preflight(Result):
    """Completions in rows, the same seed for both kernels. Errors are absolute, the worst over the prompts.

    `found_eager` and `found_own` say which completions hold the marker; `identical` counts those whose ids
    are the same under both kernels, token by token.
    """

    model: str
    weights_sha256: str
    dtype: str
    kernel: str
    marker: str
    found_eager: Bool[Tensor, "completion"]
    found_own: Bool[Tensor, "completion"]
    identical: int
    n_prompts: int
    n_tokens: int
    temperature: float
    top_p: float
    seed: int
    tolerance: float
    logit_error: float
    row_errors: Float[Tensor, "layer"]

    @property
    def rates(self) -> dict[str, float]:
        """The share of completions with the marker, by kernel."""
        found = {EAGER: self.found_eager, self.kernel: self.found_own}
        return {name: float(which.double().mean()) for name, which in found.items()}

    @property
    def delta(self) -> float:
        """|rate under eager - rate under the model's own kernel|."""
        return abs(float((self.found_eager.double() - self.found_own.double()).mean()))

    @property
    def se(self) -> float:
        """Of the difference of two independent rates; the published tolerance must be held against it."""
        shares = (self.found_eager.double().mean(), self.found_own.double().mean())
        return math.sqrt(sum(float(p * (1 - p)) for p in shares) / len(self.found_own))

    @property
    def paired_se(self) -> float:
        """Of the mean difference within completions of one seed; NaN for a single one."""
        difference = self.found_eager.double() - self.found_own.double()
        return float(difference.std() / math.sqrt(len(difference))) if len(difference) > 1 else math.nan

    @property
    def passed(self) -> bool:
        """The published criterion: the rates differ by no more than the tolerance."""
        return self.delta <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The published `preflight.json` (its `tolerance_pp` is a fraction), and what it leaves out."""
        asked = (
            "model",
            "weights_sha256",
            "dtype",
            "kernel",
            "marker",
            "n_prompts",
            "n_tokens",
            "temperature",
        )
        return {
            "rates": self.rates,
            "delta": self.delta,
            "tolerance_pp": self.tolerance,
            "passed": self.passed,
            "se": self.se,
            "paired_se": self.paired_se if len(self.found_own) > 1 else None,
            "n_completions": len(self.found_own),
            "identical_completions": self.identical,
            "logit_max_abs": self.logit_error,
            "row_max_abs": float(self.row_errors.max()),
            "metadata": {
                **metadata("mechinterp.preflight"),
                **{name: getattr(self, name) for name in (*asked, "top_p", "seed")},
            },
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a kernel: its rate with Wilson's interval."""
        import pandas as pd

        rows = []
        for name, which in ((EAGER, self.found_eager), (self.kernel, self.found_own)):
            found, total = int(which.sum()), len(which)
            rate = wilson(found, total, unit="completion")
            rows.append((name, found, total, rate.estimate, rate.low, rate.high))
        return pd.DataFrame(rows, columns=["kernel", "found", "total", "rate", "low", "high"])

    def figure(self) -> "go.Figure":
        """How far rows of attention are from eager's own weights, by layer."""
        import pandas as pd

        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in self.rates.items())
        said = [
            f"marker rates: {rates}",
            f"|difference| {self.delta:.3f}, SE {self.se:.3f}, allowed {self.tolerance:g}:"
            f" {'pass' if self.passed else 'fail'}",
            f"logits within {self.logit_error:.1e}",
        ]
        subtitle = figures.caption(
            self.model, n=len(self.found_own), unit="completion", seeds=[self.seed], band="none", more=said
        )
        table = pd.DataFrame({"layer": range(len(self.row_errors)), "error": self.row_errors.tolist()})
        return figures.per_layer(
            table, "error", subtitle=subtitle, title=f"Attention rows under {self.kernel} and under eager",
            y_title="largest difference of a weight",
        )  # fmt: skip


@torch.no_grad()
def compare_with_eager(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    marker: str = MARKER,
    n_each: int = 10,
    n_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 0.95,
    seed: int = 42,
    tolerance: float = 0.05,
    batch_size: int = 40,
) -> Preflight:
    """Logits and rows on the prompts, and marker rates over `n_each` sampled completions of each.

    Eager runs in a twin over the same tensors, so the model, its config and its hooks stay as they are.
    Raises ValueError where there is nothing to compare, or the backend keeps no Hugging Face model.
    """
    if not prompts or as_index(n_each, "n_each") < 1:
        raise ValueError(f"{len(prompts)} prompts with {n_each} completions each leave nothing to compare")
    eager = eager_twin(model)
    logit_error, row_errors = _on_prompts(model, eager, prompts)
    names = [f"{k}|{trial}" for k in range(len(prompts)) for trial in range(n_each)]
    rows = [prompt.tokens[0] for prompt in prompts for _ in range(n_each)]
    draw = {"temperature": temperature, "top_p": top_p, "seed": seed, "batch_size": batch_size}
    sampled = [sample(who, rows, [Phase(n_tokens)], names=names, **draw) for who in (eager, model)]
    found = [_holds(model, answers, marker) for answers in sampled]
    return Preflight(
        model=model.name,
        weights_sha256=model.weights_sha256,
        dtype=str(model.backend.dtype).removeprefix("torch."),
        kernel=_own_kernel(model),
        marker=marker,
        found_eager=found[0],
        found_own=found[1],
        identical=_identical(*sampled),
        n_prompts=len(prompts),
        n_tokens=n_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        tolerance=tolerance,
        logit_error=logit_error,
        row_errors=row_errors,
    )


def eager_twin(model: Model) -> Model:
    """The same weights under transformers' eager attention; ValueError where there is no such model."""
    backend: Any = model.backend
    hf_model = backend.model if backend.name == "transformers" else getattr(backend, "hf_model", None)
    if hf_model is None:
        raise ValueError(
            f"the {backend.name} backend of {model.name} keeps no Hugging Face model to run eagerly; run the"
            " preflight with backend='transformers'"
        )
    copied: Any = twin(hf_model)
    copied.set_attn_implementation(EAGER)
    made, _ = make_backend("transformers", copied, backend.anatomy)
    return replace(model, backend=made, source={**model.source, "attention": EAGER})


def _holds(model: Model, sampled: Samples, marker: str) -> Bool[Tensor, "completion"]:
    """Which answers hold the marker, as text."""
    ends = zip(sampled.tokens, sampled.lengths.tolist(), sampled.prompt_lengths.tolist(), strict=True)
    found = [detect(model.tokenizer, ids[:end], marker, after=start).text for ids, end, start in ends]
    return torch.tensor(found)


def _identical(one: Samples, other: Samples) -> int:
    """How many rows have the same ids; where the longest answers differ in length, the shorter are padded."""
    n = min(one.tokens.shape[1], other.tokens.shape[1])
    same = (one.tokens[:, :n] == other.tokens[:, :n]).all(1) & (one.lengths == other.lengths)
    return int(same.sum())


def _own_kernel(model: Model) -> str:
    """What the model's own kernel is called; apart from eager's name, so that both have a rate."""
    name = str(model.source.get("attention"))
    return f"{model.backend.name}'s own eager" if name == EAGER else name


def _on_prompts(model: Model, eager: Model, prompts: Sequence[Prompt]) -> tuple[float, Tensor]:
    """The largest differences of logits, and of attention rows by layer, on distinct prompts one by one."""
    made: Any = eager.backend
    returning = twin(made.model).eval()  # asked for attentions, transformers leaves its own hooks on
    wanted = sites("pattern", range(model.dims.n_layers))
    logits, rows = [], []
    for ids in {tuple(prompt.tokens[0].tolist()): prompt.tokens for prompt in prompts}.values():
        own = model.forward(ids, capture=wanted)
        other = returning(ids.to(made.device), output_attentions=True, use_cache=False)
        assert own.logits is not None  # none were left out
        logits.append((own.logits.float() - other.logits.to(own.logits.device).float()).abs().max().cpu())
        layers = zip(wanted, other.attentions, strict=True)
        rows.append(torch.stack([(own[s].cpu() - a.float().cpu()).abs().max() for s, a in layers]))
    return float(torch.stack(logits).max()), torch.stack(rows).amax(0)
