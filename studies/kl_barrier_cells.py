"""The cells of the barrier study: samples of a round's model, and the training of the next on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.cells import Cell, cell_seed
from mechinterp.model import Model
from mechinterp.results import Result
from mechinterp.sampling import Phase, sample
from studies import finetune_training as training
from studies.finetune_barrier import deciding_rows, divergences, reference_logits
from studies.finetune_data import TrainingExample
from studies.finetune_lora import earlier, weights_of
from studies.kl_barrier_config import Config
from studies.personas import questions
from studies.playing import opening


@dataclass(frozen=True, eq=False)
class Written(Result):
    """A round's samples, with KL(model || base) at each token of each; `repetition` is a share of n-grams."""

    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[int, ...], ...]
    question: Int[Tensor, "completion"]
    divergence: Float[Tensor, "completion token"]
    kept: Bool[Tensor, "completion token"]
    repetition: Float[Tensor, "completion"]
    stopped: int
    shown: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Round(Result):
    """An arm after a round: its LoRA weights, and the log of the training with every batch's divergences."""

    weights: dict[str, Tensor]
    log: tuple[dict[str, float], ...]


def write(cell: Cell, base: Model, inputs: Mapping[str, Result], config: Config) -> Written:
    """Samples of the base, or of the arm whose training is the cell's input."""
    trained: Any = next(iter(inputs.values()), None)
    model = base
    if trained is not None:
        model = earlier(base, config.training.lora, trained.weights, round_index=0).model
    asked = questions(config.question_group)[: config.n_questions]
    rows = [(q, draw) for q in range(len(asked)) for draw in range(config.n_draws)]
    prompts = [tuple(opening(base.tokenizer, None, asked[q])) for q, _ in rows]
    found = sample(
        model,
        [torch.tensor(prompt) for prompt in prompts],
        [Phase(config.n_tokens)],
        temperature=config.temperature,
        top_p=config.top_p,
        seed=cell_seed(config.seed, "samples", cell.args["round"]),
        names=[f"{asked[q]}/{draw}" for q, draw in rows],  # the same draws in every arm
        batch_size=config.batch_size * config.n_draws,
    )
    ids = [tuple(row[real].tolist()) for row, real in zip(found.generated, found.real, strict=True)]
    divergence, kept = compared(model, base, prompts, ids, config)
    return Written(
        prompts=tuple(prompts),
        completions=tuple(ids),
        question=torch.tensor([q for q, _ in rows]),
        divergence=divergence,
        kept=kept,
        repetition=torch.tensor([repeated(one, config.n_gram) for one in ids]),
        stopped=found.finish_reason.count("stop"),
        shown=tuple(model.decode(one) for one in ids),
    )


def train(cell: Cell, base: Model, inputs: Mapping[str, Result], config: Config) -> Round:
    """One round of an arm, on the samples of the round before; a killed one starts anew."""
    found: list[Any] = list(inputs.values())
    written, before = found[0], found[1] if len(found) > 1 else None
    round_index, lora = cell.args["round"] - 1, config.training.lora
    start = None if before is None else earlier(base, lora, before.weights, round_index=round_index)
    settings = config.training.model_copy(update={"barrier": config.barrier(cell.args["arm"])})
    rows = list(zip(written.prompts, written.completions, strict=True))
    data = [as_example(prompt, ids) for prompt, ids in rows]
    seed = cell_seed(config.seed, "train", round_index)
    with TemporaryDirectory() as folder:
        model, _, log = training.train(base, data, settings, Path(folder), seed=seed, start=start)
    return Round(weights_of(model), training.steady(log))


def as_example(prompt: tuple[int, ...], ids: tuple[int, ...]) -> TrainingExample:
    """A sample as it was written: its last id, a stop or the last before the cap, is the last target."""
    return TrainingExample("", "", prompt, ids[:-1], len(ids) - 1, ids[-1], False, (), ids[-1:], ids[-1])


def compared(
    model: Model,
    base: Model,
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[tuple[int, ...]],
    config: Config,
) -> tuple[Float[Tensor, "completion token"], Bool[Tensor, "completion token"]]:
    """KL(model || base) at the row that decides each token of each completion, 0 past its end."""
    lengths = torch.tensor([len(ids) for ids in completions])
    real = torch.arange(int(lengths.max())) < rearrange(lengths, "completion -> completion 1")
    found = torch.zeros(real.shape)
    if model is base:
        return found, real
    for first in range(0, len(prompts), config.batch_size):
        rows = range(first, min(first + config.batch_size, len(prompts)))
        whole = [prompts[i] + completions[i] for i in rows]
        longest = max(map(len, whole))
        place = torch.arange(longest)
        starts = torch.tensor([[len(prompts[i])] for i in rows])
        ends = torch.tensor([[len(ids)] for ids in whole])
        inputs = {
            "input_ids": torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in whole]),
            "attention_mask": (place < ends).long(),
        }
        places, kept = deciding_rows((place >= starts) & (place < ends))
        ours, theirs = (reference_logits(one, inputs, places) for one in (model, base))
        k = divergences(ours, theirs, "reverse").cpu()
        found[rows.start : rows.stop, : k.shape[1]] = k.masked_fill(~kept, 0)
    return found, real


def repeated(ids: Sequence[int], n: int) -> float:
    """The share of n-grams that stood earlier in the same completion; 0 where there is none."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
