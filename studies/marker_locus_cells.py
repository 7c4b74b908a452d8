"""The work of the locus study's cells: every measurement of one text set by a trained model and the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.cells import Cell
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.study_models import Pair
from patching.cases import Case
from patching.components import ablate, up_to
from patching.donors import Donor, FromRun, MeanOver, Zero
from patching.grid import PatchGrid
from patching.knockout import knock_out_cases, sliding
from patching.residual import patch_cases
from probes.direct import attributions
from probes.direct_pair import AttributionComparison
from probes.lens_batch import lens_values
from studies.attention_records import Examples
from studies.marker_locus_config import Config, chosen_layers
from studies.marker_locus_places import Marked, against_choice, cases, marked, token_cases
from studies.marker_locus_swap import Swap, swapped
from studies.trained import BASE
from studies.zlt_attention_cells import answers, examples_of

if TYPE_CHECKING:
    import pandas as pd

ABLATIONS = tuple((part, donor) for part in ("attn_out", "mlp_out") for donor in ("zero", "mean", BASE))
NULLS = ("random",)
MEASURES = ("log_prob", "rank", "difference")


@dataclass(frozen=True, eq=False)
class LensCurves(Result):
    """The lens on the marker's first piece, trained and base: positives at emit, negatives at their slot.

    `difference` is against each answer's own competitor.
    """

    questions: tuple[str, ...]
    negative_questions: tuple[str, ...]
    positives: dict[str, Float[Tensor, "reader example layer"]]
    negatives: dict[str, Float[Tensor, "reader example layer"]]
    n_other_piece: int
    n_cut: int

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a reader, answer, layer and measure."""
        import pandas as pd

        lines = []
        for kind, values in (("positive", self.positives), ("negative", self.negatives)):
            for measure, found in values.items():
                for reader, own in zip(("trained", BASE), found.tolist(), strict=True):
                    for example, curve in enumerate(own):
                        lines += [
                            (reader, kind, example, layer, measure, value)
                            for layer, value in enumerate(curve)
                        ]
        return pd.DataFrame(lines, columns=["reader", "answer", "example", "layer", "measure", "value"])


def taken(cell: Cell, model: None, inputs: Mapping[str, Result], config: Config) -> Examples:
    """A persona's answers of one run and seed, as many as are read."""
    assert config.records is not None  # the configuration refuses to be without
    where = cell.args
    return answers(config.records, where["persona"], run=where["run"], seed=where["seed"])


def chosen(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> Marked:
    """The answers that every measurement reads, with their rows and what the marker is held against."""
    examples = examples_of(dict(inputs))
    found = marked(pair.trained, examples, n_positives=config.n_read, n_negatives=config.n_read_negatives)
    return found if config.competitor == "end_of_turn" else against_choice(found, pair.base)


def _found(cell: Cell, inputs: Mapping[str, Any]) -> Marked:
    return inputs[cell.inputs[0]]


def _cases(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> list[Case]:
    return cases(pair.trained, _found(cell, inputs), n_control=config.n_control, seed=config.seed)


def lensed(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> LensCurves:
    """Both models on the identical ids."""
    found = _found(cell, inputs)
    read = {}
    for kind, texts, rows in (
        ("positives", found.positives, found.emits),
        ("negatives", found.negatives, found.slots),
    ):
        ids = [torch.tensor(example.ids) for example in texts]
        against = found.competitors[: len(ids)] if kind == "positives" else found.competitors[-len(ids) :]
        readers = (pair.trained, pair.base)
        both = [_lens(model, found.piece, ids, rows, against) for model in readers] if ids else []
        read[kind] = {m: torch.stack([one[m] for one in both]) for m in MEASURES} if both else {}
    return LensCurves(
        found.questions, tuple(e.question for e in found.negatives), **read,
        n_other_piece=found.n_other_piece, n_cut=found.n_cut,
    )  # fmt: skip


def _lens(
    model: Model, piece: int, ids: list[Tensor], rows: Sequence[int], against: Sequence[int]
) -> dict[str, Tensor]:
    """Every text at its row; the difference is to the text's own competitor."""
    others = sorted(set(against))
    values = lens_values(
        model, ids, [[row] for row in rows], targets={"marker": piece, **{str(c): c for c in others}},
        pairs=[("marker", str(c)) for c in others],
    )  # fmt: skip
    own = torch.tensor([others.index(c) for c in against])
    return {
        "log_prob": values.log_prob[:, 0, :, 0],
        "rank": values.rank[:, 0, :, 0].float(),
        "difference": values.difference[torch.arange(len(ids)), 0, :, own],
    }


def attributed(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> AttributionComparison:
    """What writes marker minus competitor at emit, in both models."""
    found = _found(cell, inputs)
    n = len(found.positives)
    one, other = (
        attributions(
            model, [torch.tensor(e.ids) for e in found.positives], rows=found.emits,
            targets=[found.piece] * n, competitors=found.competitors[:n], clusters=found.questions,
        )
        for model in (pair.trained, pair.base)
    )  # fmt: skip
    return AttributionComparison(one, other)


def swap(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> Swap:
    """Each model's stream into each model's attention, and how much of emit's goes to the system prompt."""
    found = _cases(cell, pair, inputs, config)
    region = "system" if "system" in found[0].places else "user"
    return swapped(
        pair.trained,
        pair.base,
        [case.tokens.tolist() for case in found],
        [case.metrics[0].at for case in found],
        [case.places[region] for case in found],
        questions=[str(case.cluster) for case in found],
        region=region,
    )


def carried(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> PatchGrid:
    """The stream after each layer, at every place, from one model into the other."""
    source, target = _way(cell, pair)
    layers = chosen_layers(config, target.dims.n_layers)
    found = _cases(cell, pair, inputs, config)
    return patch_cases(FromRun(source), target, found, layers=layers, nulls=NULLS, seed=config.seed)


def carried_token(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> PatchGrid:
    """The stream at t*, from one model into the other, scored on the marker's next piece."""
    source, target = _way(cell, pair)
    found = token_cases(_found(cell, inputs))
    if not found:
        raise ValueError(f"no marker of {cell.args['persona']} has a second piece; token cannot be scored")
    return patch_cases(FromRun(source), target, found, nulls=NULLS, seed=config.seed)


def _way(cell: Cell, pair: Pair) -> tuple[Any, Any]:
    return (pair.trained, pair.base) if cell.args["direction"] == "into base" else (pair.base, pair.trained)


def ablated(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> PatchGrid:
    """The trained model without one part at emit: each layer alone, then all layers up to each."""
    donors: dict[str, Donor] = {"zero": Zero(), "mean": MeanOver(), BASE: FromRun(pair.base)}
    layers = list(range(pair.trained.dims.n_layers))
    found = [
        replace(case, places={"emit": case.places["emit"]}) for case in _cases(cell, pair, inputs, config)
    ]
    if cell.args["donor"] == "mean":
        found = [case for case in found if case.control]
    return ablate(
        donors[cell.args["donor"]],
        pair.trained,
        found,
        part=cell.args["part"],
        layers=[*((layer,) for layer in layers), *up_to(layers)[1:]],
        seed=config.seed,
    )


def knocked(cell: Cell, pair: Pair, inputs: Mapping[str, Any], config: Config) -> PatchGrid:
    """One model without emit's look at the system prompt, over windows of layers, beside placebo regions."""
    model = pair.trained if cell.args["reader"] == "trained" else pair.base
    found = _cases(cell, pair, inputs, config)
    region = "system" if "system" in found[0].places else "user"
    cut = [replace(case, places={"emit": case.places["emit"], region: case.places[region]}) for case in found]
    n = model.dims.n_layers
    windows = sliding(range(n), min(config.window, n))[:: config.window_step]
    everywhere = [tuple(range(n))] if len(windows[0]) < n else []
    return knock_out_cases(
        model, cut, rows="emit", windows=[*windows, *everywhere], placebos=config.placebos, seed=config.seed
    )
