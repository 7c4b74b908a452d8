"""What probes read of sets of prompts: one position or one pooled region a prompt, and where it was read.

Equal prompts are read once: their rows are then equal bit for bit, whichever batch they would have run in, so
two equal sets have a contrast of zero in any dtype.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.chat import Prompt
from mechinterp.files import unique_names
from mechinterp.gather import gather
from mechinterp.json_io import canonical_sha256
from mechinterp.model import Model
from mechinterp.segmentation import ANSWER
from mechinterp.sites import SiteName, as_index, sites
from probes.vectors import Passport

RESIDUAL: tuple[SiteName, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@dataclass(frozen=True)
class LastToken:
    """The prompt's last token; after a generation prompt, the row that decides the answer's first."""

    def __str__(self) -> str:
        return "gen_prompt_last"


@dataclass(frozen=True)
class MeanOver:
    """The mean over the positions of one region ("answer", "user", "system"), without its template text."""

    region: str

    def __str__(self) -> str:
        return f"mean over {self.region}"


Position = LastToken | MeanOver
LAST = LastToken()


@dataclass(frozen=True)
class Source:
    """Which weights were read, where, and on which prompts."""

    model: str
    weights_sha256: str
    revision: str | None
    site: str
    pooling: str
    template_sha256: str | None  # None where there was no template, or not one
    prompts_digest: str  # of the ids and positions of every prompt, under its set's name


@dataclass(frozen=True, eq=False)
class Reading:
    """Activations of named sets of prompts, in their order: row i belongs to set `owner[i]`."""

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "prompt layer d_model"]
    owner: Int[Tensor, "prompt"]
    source: Source
    notes: tuple[str, ...]

    def sets(self) -> list[Float[Tensor, "n layer d_model"]]:
        """The rows of each set, in the order of the names."""
        return [self.values[self.owner == k] for k in range(len(self.names))]


def positions_of(prompt: Prompt, position: Position) -> Int[Tensor, "k"]:
    """The absolute positions that a policy reads of a prompt, ascending.

    Control tokens and the template's own text are no part of a region's mean. Raises ValueError for a prompt
    without tokens and for a region without text, with the regions that have some.
    """
    segmentation = prompt.segmentation
    if not prompt.tokens.numel():
        raise ValueError("the prompt holds no tokens; give at least one id (a BOS alone is enough)")
    if isinstance(position, LastToken):
        return torch.tensor([prompt.last])
    if not isinstance(position, MeanOver):
        raise TypeError(f"{position!r} is no position policy; write LastToken() or MeanOver('answer')")
    text = {
        name: at[~segmentation.special[at]]
        for name in segmentation.names
        for at in [segmentation.positions(name)]
    }
    found = text.get(position.region)
    if found is None or not len(found):
        kept = ", ".join(name for name, at in text.items() if len(at)) or "none"
        raise ValueError(
            f"the prompt has no text in region {position.region!r}; the regions with text are {kept}"
        )
    return found


def read(
    model: Model,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    site: SiteName,
    layers: Sequence[int] | None,
    position: Position,
) -> Reading:
    """One row a prompt at every layer asked (all by default), in fp32, in one pass each and without logits.

    Raises TypeError, ValueError or IndexError, before any compute, with the set's name and prompt's number.
    """
    if site not in RESIDUAL:
        raise ValueError(
            f"vectors live where the residual stream's width is: {', '.join(RESIDUAL)}; not {site!r}"
        )
    asked = sites(site, range(model.dims.n_layers) if layers is None else list(layers))
    if not prompts:
        raise ValueError("there are no sets of prompts; give at least one name with its prompts")
    unique_names(prompts, what="set of prompts")
    wanted: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    rows, owner, held = [], [], {}
    for k, (name, items) in enumerate(prompts.items()):
        keys = [
            _key(model, name, number, prompt, position) for number, prompt in enumerate(several(name, items))
        ]
        rows += [wanted.setdefault(key, len(wanted)) for key in keys]
        owner += [k] * len(keys)
        held[name] = keys
    ids, positions = ([torch.tensor(part) for part in parts] for parts in zip(*wanted, strict=True))
    values = gather(model, ids, asked, positions)[rows]
    every = [prompt for items in prompts.values() for prompt in items]
    source = _source(model, every, site, position, canonical_sha256(held))
    taken = tuple(at.layer for at in asked)
    return Reading(tuple(prompts), taken, values, torch.tensor(owner), source, _notes(every, position))


def _source(
    model: Model, prompts: Sequence[Prompt], site: SiteName, position: Position, digest: str
) -> Source:
    templates = {prompt.template_sha256 for prompt in prompts}
    return Source(
        model=model.name,
        weights_sha256=model.weights_sha256,
        revision=model.source.get("revision"),
        site=site,
        pooling=str(position),
        template_sha256=templates.pop() if len(templates) == 1 else None,
        prompts_digest=digest,
    )


def passport_of(
    source: Source,
    *,
    method: str,
    reference: str | None,
    n_target: int | None,
    n_reference: int | None,
    split_half: Float[Tensor, "name layer"] | None = None,
    null_percentile: Float[Tensor, "name layer"] | None = None,
) -> Passport:
    """What vectors made of a reading travel with; a measure that could not be taken is None there."""
    return Passport(
        model=source.model,
        weights_sha256=source.weights_sha256,
        revision=source.revision,
        site=source.site,
        method=method,
        positions=source.pooling,
        reference=reference,
        norm_units="unit" if method == "pca_of_differences" else "activation",
        template_sha256=source.template_sha256,
        prompts_digest=source.prompts_digest,
        n_target=n_target,
        n_reference=n_reference,
        split_half=_table(split_half),
        null_percentile=_table(null_percentile),
    )


def column(layers: tuple[int, ...], layer: int) -> int:
    """Where a layer stands among the layers read."""
    index = as_index(layer, "layer")
    if index not in layers:
        raise IndexError(f"layer {index} was not read; the layers are {', '.join(map(str, layers))}")
    return layers.index(index)


def row(names: tuple[str, ...], name: str) -> int:
    """Where a set stands among the sets read."""
    if name not in names:
        raise ValueError(f"there is no {name!r}; the names are {', '.join(names)}")
    return names.index(name)


def _table(measure: Float[Tensor, "name layer"] | None) -> tuple[tuple[float | None, ...], ...] | None:
    if measure is None:
        return None
    return tuple(tuple(None if isnan(x) else x for x in line) for line in measure.tolist())


def several(name: str, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """A set of prompts as it is, or a refusal of one prompt and of none."""
    if isinstance(prompts, Prompt):
        raise TypeError(f"{name} is one prompt; put it in a list")
    if not len(prompts):
        raise ValueError(f"{name} holds no prompts (n=0); give at least one")
    return prompts


def _key(
    model: Model, name: str, number: int, prompt: Prompt, position: Position
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not isinstance(prompt, Prompt):
        kind = type(prompt).__name__
        raise TypeError(
            f"prompt {number} of {name} is a {kind}; write model.chat(question, system=...) for a Prompt"
        )
    length = prompt.tokens.numel()
    if model.dims.n_ctx is not None and length > model.dims.n_ctx:
        raise ValueError(
            f"prompt {number} of {name} has {length} tokens, and {model.name} a context of"
            f" {model.dims.n_ctx}; shorten it"
        )
    try:
        at = positions_of(prompt, position)
    except ValueError as error:
        raise ValueError(f"prompt {number} of {name}: {error}") from error
    return tuple(prompt.tokens.flatten().tolist()), tuple(at.tolist())


def _notes(prompts: Sequence[Prompt], position: Position) -> tuple[str, ...]:
    notes = []
    templates = {prompt.template_sha256 for prompt in prompts}
    if len(templates) > 1:
        notes.append(f"the prompts come from {len(templates)} chat templates (no template is counted as one)")
    answered = sum(
        prompt.segmentation.names[int(prompt.segmentation.region[-1])] == ANSWER for prompt in prompts
    )
    if answered and isinstance(position, LastToken):
        notes.append(f"{answered} prompts end in an answer, so their last token is no generation prompt's")
    return tuple(notes)
