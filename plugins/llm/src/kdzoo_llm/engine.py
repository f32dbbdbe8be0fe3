"""transformers' Trainer as kdzoo's engine: its loop and callbacks; core's loss, data, optimiser and books.

`fit` is what a language task puts in its module (``fit = engine.fit``). The Trainer is started for the steps that are
left. Off, because core does them: the Trainer's checkpoints, schedules, evaluation, logs, seeds of data, placing of
models. How each promise of docs/engines.md is kept is said at its place, by name (E1 to E8).

Not here: FSDP and DeepSpeed (refused: core writes whole checkpoints) and loss scaling (bf16 needs none).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.utils import logging

from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.hookspecs import hookimpl
from kdzoo.loader import Loader
from kdzoo.method import Batch
from kdzoo.runs import Run

Arguments = dict[str, Batch]  # of the model's forward


@hookimpl
def fit(run: Run) -> bool:
    """Let transformers' Trainer train the steps that are left."""
    refuse_launchers()
    verbosity = logging.get_verbosity()
    with TemporaryDirectory(prefix="kdzoo-trainer-") as folder:
        trainer = StepTrainer(run, folder)
        try:
            trainer.train()
        finally:
            logging.set_verbosity(verbosity)  # the Trainer sets it for the whole process
    return True


def refuse_launchers() -> None:
    """accelerate launch can ask for sharding by environment; core's checkpoints would then hold pieces."""
    for name, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise KdzooError(
                f"{name} asks for {what}, but every rank must hold whole models here: checkpoints are written by one "
                "rank and would hold a piece of the weights. Start with torchrun, or accelerate launch --multi_gpu."
            )


class StepTrainer(Trainer):
    """A Trainer that leaves models on core's device, fetches a micro-batch when it is its turn, and writes nothing."""

    loss_is_scaled_for_ga = True  # E5: terms are divided by the counts of the whole optimiser step

    def __init__(self, run: Run, folder: str) -> None:
        self.kdzoo_run, self.accumulate = run, int(run.cfg.get("accumulate", 1))
        self.clip = float(run.cfg.get("clip", 0.0))
        super().__init__(
            model=StepModel(run),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=run.steps - run.step,  # E3
                per_device_train_batch_size=1,
                gradient_accumulation_steps=self.accumulate,
                max_grad_norm=self.clip,
                save_strategy="no",
                eval_strategy="no",
                logging_strategy="no",
                logging_nan_inf_filter=False,  # E4: StepModule and run.stepped look
                report_to="none",
                disable_tqdm=True,
                log_level="error",
                use_cpu=run.device.type == "cpu",
                remove_unused_columns=False,
            ),
            callbacks=[Stepped(run, self)],
            optimizers=(run.optimizer(), Held()),  # type: ignore[arg-type]
        )
        self.remove_callback(PrinterCallback)
        self.grad_norm: Tensor | float | None = None

    def _move_model_to_device(self, model: nn.Module, device: Any) -> None:
        """Models lie where core has put them."""

    def get_train_dataloader(self) -> Any:
        """Core's loader, with the length of what is left (E2, E3)."""
        return Steps(self.kdzoo_run.loader(), self.args.max_steps * self.accumulate)

    def get_batch_samples(self, epoch_iterator: Iterator[Arguments], num_batches: int, device: Any) -> Any:
        """E1, E2: the Trainer's own form fetches all micro-batches first, and core's loader seeds each as it goes."""
        return Turn(epoch_iterator, num_batches), None

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """Model and optimiser as core made them, in torch's DDP where core has opened ranks.

        accelerate would move the model to a device of its own choice and wrap the loader.
        """
        assert isinstance(self.model, nn.Module)
        self.model_wrapped = self.kdzoo_run.device_info.wrap(self.model)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        return self.model_wrapped, train_dataloader

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Any:
        """Measured where it is clipped; the Trainer would measure it in any case."""
        self.grad_norm = grad_norm
        return grad_norm


class StepModel(nn.Module):
    """Core's `StepModule` as the Trainer's model: a batch in, ``{"loss": scalar}`` out.

    E5: DDP divides by the ranks, but terms are divided by the counts of all ranks already.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.step = StepModule(run)  # E4: it tests the loss before backward; E6: it holds trained roles only
        self.ranks, self.autocast = run.device_info.ranks, run.device_info.autocast()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast:
            return {"loss": self.step(batch) * self.ranks}

    def train(self, mode: bool = True) -> StepModel:
        """Core sets the mode of each role; a method may keep one in evaluation mode."""
        self.training = mode
        return self


class Steps:
    """Core's loader as a data loader of the model's arguments, with the length of what is left."""

    def __init__(self, loader: Loader, length: int) -> None:
        self.loader, self.length = loader, length

    def __iter__(self) -> Iterator[Arguments]:
        return ({"batch": batch} for batch in self.loader)

    def __len__(self) -> int:
        return self.length


class Turn(Sequence[Arguments]):
    """The micro-batches of one optimiser step, each fetched when it is its turn."""

    def __init__(self, source: Iterator[Arguments], count: int) -> None:
        self.source, self.length = source, count

    def __iter__(self) -> Iterator[Arguments]:
        return islice(self.source, self.length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: Any) -> Any:
        raise TypeError("micro-batches come in their order only")


class Stepped(TrainerCallback):
    """Tells core of every optimiser step."""

    def __init__(self, run: Run, trainer: StepTrainer) -> None:
        self.run, self.trainer = run, trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **rest: Any) -> TrainerControl:
        norm = self.trainer.grad_norm if self.trainer.clip else None
        assert self.run.batch is not None
        if self.run.stepped(self.run.batch, norm):
            control.should_training_stop = True
        return control


class Held:
    """The Trainer's place for a learning-rate schedule: core sets the rate of every step."""

    def step(self) -> None:
        """Nothing to do."""

    def get_last_lr(self) -> list[float]:
        return [0.0]
