"""transformers' Trainer as kdzoo's engine: its loop, its accelerator, its DDP; core's loss, data, optimiser and books.

`fit` is what a language task puts in its module (``fit = engine.fit``). The Trainer is started for the steps that are
left, as one epoch of exactly that length. Off, because core does them: the Trainer's checkpoints, schedules,
evaluation, logs, seeds and its filter for losses that are not finite. How each promise of docs/engines.md is kept is
said at its place, by name (E1 to E8).

With the setting `shard` weights, gradients and optimiser state are shared among the ranks (`kdzoo_llm.sharding`). Not
here: FSDP and DeepSpeed as accelerate starts them, which would own the weights that core saves and restores; they are
refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as said_by_transformers

from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.hookspecs import hookimpl
from kdzoo.loader import Loader
from kdzoo.method import Batch
from kdzoo.runs import Run

OWNERS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


@hookimpl
def fit(run: Run) -> bool:
    """Let transformers' Trainer train the steps that are left."""
    for name in OWNERS:
        if os.environ.get(name, "").lower() in ("true", "1"):
            raise KdzooError(
                f"{name} is set: accelerate would own weights and optimiser, which kdzoo's checkpoints hold, so a "
                "resumed run would differ. Start with torchrun, or with accelerate without it; to share the weights "
                "among the ranks set shard=true where the task has that setting."
            )
    if run.step >= run.steps:
        return True
    if run.cfg.get("shard", False) and run.device_info.ranks > 1:
        from kdzoo_llm.sharding import sharded

        with sharded(run) as shards:
            _train(run, shards.root(StepModel(run, run.device_info.ranks)))
    else:
        _train(run, StepModel(run, run.device_info.ranks))
    return True


def _train(run: Run, model: StepModel) -> None:
    accumulate, clip = int(run.cfg.get("accumulate", 1)), float(run.cfg.get("clip", 0.0))
    said_by_transformers.set_verbosity_error()
    with TemporaryDirectory(prefix="kdzoo-transformers-") as folder:
        QuietTrainer(run, model, _arguments(run, folder, accumulate, clip)).train()


def _arguments(run: Run, folder: str, accumulate: int, clip: float) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=run.steps - run.step,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=clip,  # E6: over all trained parameters; 0 is off
        use_cpu=run.device.type == "cpu",
        # accelerate has one precision a process: with another one the next stage could not open its device.
        bf16=run.device_info.accelerator is not None and run.device_info.dtype == "bfloat16",
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        logging_nan_inf_filter=False,  # E4
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # a method may train a part of a net in some steps only
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process a GPU: no torch DataParallel
    return arguments


class StepModel(nn.Module):
    """Core's `StepModule` as a model of transformers: a batch in, a scalar out.

    E5: DDP, and FSDP as well, divides by the ranks, but the terms are divided by them already, so the loss is
    multiplied by them.
    """

    def __init__(self, run: Run, ranks: int) -> None:
        super().__init__()
        self.step = StepModule(run)  # E4: it tests the loss before backward; E6: it holds trained roles only
        self.ranks, self.autocast = ranks, run.device_info.autocast()

    def forward(self, batch: Batch) -> Tensor:
        with self.autocast:
            loss: Tensor = self.step(batch)
        return loss * self.ranks

    def train(self, mode: bool = True) -> StepModel:
        """Core sets the mode of each role; a method may keep one in evaluation mode."""
        self.training = mode
        return self


class QuietTrainer(Trainer):
    """A Trainer that takes core's loader and optimiser as they are, and writes nothing."""

    def __init__(self, run: Run, model: StepModel, arguments: TrainingArguments) -> None:
        self.kdzoo_run = run
        self.norm: float | Tensor | None = None
        super().__init__(model=model, args=arguments, callbacks=[Stepped(self)], train_dataset=_Nothing())
        self.pop_callback(PrinterCallback)

    def get_train_dataloader(self) -> Steps:  # type: ignore[override]
        """E2: core's loader, unprepared: accelerate's would fetch one batch ahead."""
        run = self.kdzoo_run
        return Steps(run.loader(), (run.steps - run.step) * self.args.gradient_accumulation_steps)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """E1: one micro-batch after the other, since core seeds each when it hands it out."""
        return OneByOne(epoch_iterator, num_batches), None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = self.kdzoo_run.optimizer()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """E3: core sets the learning rate of every step."""
        self.lr_scheduler: Any = NoSchedule()
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        # E5: the terms are divided by all micro-batches of the step; the Trainer would divide by their number again.
        loss: Tensor = model(inputs)
        return loss * self.current_gradient_accumulation_steps

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # core has put the batch where it belongs

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """The model stays where core has put it."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self.norm = (
            grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
        )  # under `shard`
        return self.norm

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # E7: core counts


class Stepped(TrainerCallback):
    """Tells core of every optimiser step."""

    def __init__(self, trainer: QuietTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        run = self.trainer.kdzoo_run
        assert run.batch is not None
        control.should_training_stop = run.stepped(run.batch, self.trainer.norm)
        return control


class Steps:
    """Core's loader as a data loader of the Trainer: the same iterator, with the length of what is left (E3)."""

    def __init__(self, loader: Loader, length: int) -> None:
        self.loader, self.length, self.dataset = loader, length, _Nothing()

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def __len__(self) -> int:
        return self.length


class OneByOne:
    """The micro-batches of one optimiser step, each fetched when its turn comes."""

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.count):
            yield next(self.batches)

    def __len__(self) -> int:
        return self.count


class NoSchedule:
    """Stands where the Trainer wants a learning-rate schedule."""

    def step(self) -> None: ...

    def get_last_lr(self) -> list[float]:
        return [0.0]

    def state_dict(self) -> dict[str, Any]:
        return {}


class _Nothing(torch.utils.data.Dataset):
    """The Trainer asks for the length of a data set."""

    def __len__(self) -> int:
        return 1
