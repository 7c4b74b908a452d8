"""LoRA training with peft and the transformers Trainer; the base's weights are shared and never change.

A checkpoint counts once its mark is written, after all its files: training killed at any moment goes on from
the newest marked one, with the optimiser, the schedule and the order of the data, to the same weights (bit
for bit on one CPU thread). Checkpoints are read with safetensors and `weights_only`, never unpickled.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechinterp.adapter_config import BASE_KEY, SIDE_FILE
from mechinterp.adapter_weights import WEIGHTS
from mechinterp.adapters import refuse_active_adapters
from mechinterp.backends.transformers import TransformersBackend
from mechinterp.backends.twin import twin
from mechinterp.files import write_bytes
from mechinterp.json_io import write_json
from mechinterp.model import Model
from studies.finetune_config import Lora, Training
from studies.finetune_data import TrainingExample
from studies.finetune_losses import IGNORED, SLOT_LOSSES, labels_of, slot_loss, token_loss

MARK = "complete"  # the file that is written last into a checkpoint


def trainable(base: Model, lora: Lora, *, seed: int) -> Any:
    """peft's model over a twin of the base: own modules, own parameter objects, the base's very tensors.

    Only the LoRA weights take gradients, and the base's flags stay as they are. Raises ValueError for another
    backend than transformers, a base with an adapter, and targets that the base has not.
    """
    from peft import LoraConfig, get_peft_model

    if base.backend.name != "transformers":
        raise ValueError(
            f"{base.name} runs on {base.backend.name}; training needs backend='transformers', and every"
            " backend runs the adapter that comes of it"
        )
    own: Any = base.backend
    refuse_active_adapters(own.model)
    model = twin(own.model)
    _with_own_parameters(model)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  # peft multiplies it, nothing more
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    with seeded(seed):
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]


def _with_own_parameters(model: nn.Module) -> None:
    """Parameters that share the base's storage but have flags and gradients of their own; ties are kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
            setattr(module, name, made[id(parameter)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators at a seed, as peft and the Trainer want them, and back as the caller had them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def live(base: Model, trained: Any) -> Model:
    """The model in training as a `Model`, to be sampled from; it shares the weights that are trained."""
    own: Any = base.backend
    backend = TransformersBackend(trained.base_model.model, own.anatomy)
    return replace(base, name=f"{base.name}+training", backend=backend, notes=())


def train(
    base: Model,
    data: Sequence[TrainingExample],
    settings: Training,
    folder: Path,
    *,
    seed: int,
    stop_at: Callable[[int, Model], bool] | None = None,
    stop_every: int = 1,
) -> tuple[Any, int, list[dict[str, float]]]:
    """peft's trained model, the step it stopped at and the log; goes on from the checkpoints in `folder`.

    `stop_at` is asked every `stop_every` steps, with the step and the model in training; True ends it.
    Raises ValueError for data that is empty or longer than the context or `max_tokens`.
    """
    from transformers import PrinterCallback, Trainer

    _check(base, data, settings)
    model = trainable(base, settings.lora, seed=seed)
    rows = [_row(example, settings) for example in data]
    resume = newest(folder)
    if resume is not None and (resume / MARK).read_text() == "stopped":
        _load(model, resume)
        return model, _step(resume), []
    with seeded(seed):
        trainer = Trainer(
            model=model,
            args=_arguments(settings, folder, seed, _on_cpu(base)),
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            data_collator=collate,
            compute_loss_func=_loss(settings),
            callbacks=[_callback(base, model, stop_at, stop_every, folder)],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is the command's own
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
    return {"input_ids": list(example.ids), "labels": labels.ids, "rivals": labels.rivals}


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows padded on the right; the mask comes from lengths, for the padding id may be the end of a turn.

    Labels and rivals go together as `labels` [row, 2, position], all that the Trainer hands to a loss.
    """
    lengths = [len(row["input_ids"]) for row in rows]

    def padded(name: str, filler: int) -> Tensor:
        return torch.tensor([row[name] + [filler] * (max(lengths) - len(row[name])) for row in rows])

    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long(),
        "labels": torch.stack([padded("labels", IGNORED), padded("rivals", IGNORED)], 1),
    }


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


def _arguments(settings: Training, folder: Path, seed: int, cpu: bool) -> Any:
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
        save_total_limit=2,
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
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint / WEIGHTS))
    model.eval()
