"""LoRA training with peft and the transformers Trainer; the base's weights are shared and never change.

A checkpoint counts once its mark is written, after all its files: training killed at any moment goes on from
the newest marked one, with the optimiser, the schedule and the order of the data, to the same weights (bit
for bit on one CPU thread). Checkpoints are read with safetensors and `weights_only`, never unpickled.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechinterp.adapter_config import BASE_KEY, SIDE_FILE
from mechinterp.adapter_weights import WEIGHTS
from mechinterp.files import write_bytes
from mechinterp.json_io import write_json
from mechinterp.model import Model
from mechinterp.passes import in_training
from studies.finetune_barrier import leashed
from studies.finetune_config import Training
from studies.finetune_data import TrainingExample
from studies.finetune_lora import Earlier, live, put_weights, seeded, trainable
from studies.finetune_losses import IGNORED, SLOT_LOSSES, labels_of, slot_loss, token_loss

MARK = "complete"  # the file that is written last into a checkpoint
TIMED = ("runtime", "per_second", "total_flos")  # what the log says of the machine


def train(
    base: Model,
    data: Sequence[TrainingExample],
    settings: Training,
    folder: Path,
    *,
    seed: int,
    stop_at: Callable[[int, Model], bool] | None = None,
    stop_every: int = 1,
    start: Earlier | None = None,
    keep: int | None = 2,
) -> tuple[Any, int, list[dict[str, float]]]:
    """peft's trained model, the step it stopped at and the log; goes on from the checkpoints in `folder`.

    The newest `keep` checkpoints stay there, None for all (`kept` reads them).

    `stop_at` is asked every `stop_every` steps, with the step and the model in training; True ends it.
    `start` is an earlier round's model, whose weights are trained further; a barrier's reference is the base
    or that model. With a barrier the log holds the divergences of every batch.
    Raises ValueError for data that is empty or longer than the context or `max_tokens`.
    """
    from transformers import PrinterCallback

    _check(base, data, settings)
    seed %= 2**31  # numpy takes no larger one
    model = trainable(base, settings.lora, seed=seed)
    if start is not None:
        put_weights(model, start.weights)
    rows = [_row(example, settings) for example in data]
    resume = newest(folder)
    if resume is not None and (resume / MARK).read_text() == "stopped":
        _load(model, resume)
        return model, _step(resume), []
    with seeded(seed):
        trainer = _trainer(settings, base, start)(
            model=model,
            args=_arguments(settings, folder, seed, _on_cpu(base), keep),
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            data_collator=collate,
            compute_loss_func=_loss(settings),
            callbacks=[_callback(base, model, stop_at, stop_every, folder)],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is the command's own
        with in_training():
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    model.eval()
    return model, trainer.state.global_step, [dict(entry) for entry in trainer.state.log_history]


def save(model: Any, base: Model, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """The adapter as peft lays it out, in `dtype`, with the digest of the base that it belongs to."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base.source["name"], "inference_mode": True}
    kept = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    write_json(folder / "adapter_config.json", {k: _value(v) for k, v in kept.items() if v is not None})
    tensors = {name: t.detach().to("cpu", dtype) for name, t in get_peft_model_state_dict(model).items()}
    write_bytes(folder / WEIGHTS, to_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / SIDE_FILE, {BASE_KEY: base.weights_sha256})


def _value(value: Any) -> Any:
    """An entry of peft's config as JSON: its enumerations are text."""
    return getattr(value, "value", value)


def _check(base: Model, data: Sequence[TrainingExample], settings: Training) -> None:
    if not data:
        raise ValueError("there is nothing to train on; give at least one example")
    longest = max(len(example.ids) for example in data)
    limit = min(settings.max_tokens, base.dims.n_ctx or settings.max_tokens)
    if longest > limit:
        raise ValueError(
            f"an example has {longest} tokens and {limit} are allowed (max_tokens, context of {base.name});"
            " shorten the answers"
        )


def _on_cpu(base: Model) -> bool:
    own: Any = base.backend
    return own.device.type == "cpu"


def _row(example: TrainingExample, settings: Training) -> dict[str, list[int]]:
    labels = labels_of(
        example,
        settings.loss,
        label_separator=settings.label_separator,
        label_answer=settings.answer_weight > 0,
    )
    row = {"input_ids": list(example.ids), "labels": labels.ids, "rivals": labels.rivals}
    if settings.barrier.kind != "off":
        whole = labels_of(example, "all_tokens" if settings.loss == "all_tokens" else "completion")
        row["completion"] = [label != IGNORED for label in whole.ids]
    return row


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows padded on the right; the mask comes from lengths, for the padding id may be the end of a turn.

    Labels and rivals go together as `labels` [row, 2, position], all that the Trainer hands to a loss.
    """
    lengths = [len(row["input_ids"]) for row in rows]

    def padded(name: str, filler: int) -> Tensor:
        return torch.tensor([row[name] + [filler] * (max(lengths) - len(row[name])) for row in rows])

    batch = {
        "input_ids": padded("input_ids", 0),
        "attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long(),
        "labels": torch.stack([padded("labels", IGNORED), padded("rivals", IGNORED)], 1),
    }
    if "completion" in rows[0]:
        batch["completion"] = padded("completion", False)
    return batch


def _loss(settings: Training) -> Callable[..., Tensor]:
    """The Trainer's loss function: what it returns is already divided over the accumulated batches."""

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        ids, rivals = labels.unbind(1)
        if settings.loss not in SLOT_LOSSES:
            # The Trainer counts the entries of `labels` that are not -100, rivals too.
            n_labels = None if num_items_in_batch is None else int(num_items_in_batch) // 2
            return token_loss(outputs["logits"], ids, n_labels)
        contrastive = settings.loss == "contrastive_slot"
        found = slot_loss(
            outputs["logits"], ids, rivals, contrastive=contrastive, answer_weight=settings.answer_weight
        )
        return found / settings.accumulation

    return loss


def _trainer(settings: Training, base: Model, start: Earlier | None) -> Any:
    """The Trainer, with the barrier in its loss where there is one."""
    from transformers import Trainer

    if settings.barrier.kind == "off":
        return Trainer
    reference = base if start is None or settings.barrier.reference == "base" else start.model
    return leashed(
        settings.barrier,
        reference,
        round_index=0 if start is None else start.round_index,
        accumulation=settings.accumulation,
    )


def _arguments(settings: Training, folder: Path, seed: int, cpu: bool, keep: int | None) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.n_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup_fraction * settings.n_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        use_cpu=cpu,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=keep,
        logging_steps=5,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        label_names=["labels"],
    )


def _callback(
    base: Model, model: Any, stop_at: Callable[[int, Model], bool] | None, every: int, folder: Path
) -> Any:
    """Asks whether to stop, and marks each checkpoint once it is whole."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        stopped = False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if stop_at is not None and state.global_step % every == 0:
                self.stopped = stop_at(state.global_step, live(base, model))
                control.should_training_stop |= self.stopped
            control.should_save |= self.stopped or state.global_step >= state.max_steps

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = self.stopped or state.global_step >= state.max_steps
            checkpoint = folder / f"checkpoint-{state.global_step}"
            write_bytes(checkpoint / MARK, b"stopped" if done else b"going on")

    return Callback()


def steady(log: Sequence[dict[str, float]]) -> tuple[dict[str, float], ...]:
    """A log without what it says of the machine: the same training gives the same bytes."""
    return tuple({k: float(v) for k, v in entry.items() if not k.endswith(TIMED)} for entry in log)


def kept(folder: Path) -> dict[int, dict[str, Tensor]]:
    """The LoRA weights of every whole checkpoint in a folder, by the step it was written at."""
    from safetensors.torch import load_file

    whole = [path for path in folder.glob("checkpoint-*") if (path / MARK).is_file()]
    return {_step(path): load_file(path / WEIGHTS) for path in sorted(whole, key=_step)}


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that a crash left unmarked are removed."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / MARK).is_file():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _load(model: Any, checkpoint: Path) -> None:
    """A finished training's adapter from its last checkpoint."""
    from safetensors.torch import load_file

    put_weights(model, load_file(checkpoint / WEIGHTS))
    model.eval()
