"""mmengine's Runner as kdzoo's engine: its loop, hooks, optimiser wrapper and DDP; core's loss, data, optimiser, books.

`fit` is what a segmentation task puts in its module (``fit = engine.fit``). The Runner is started for the steps that
are left, as one epoch of exactly that length. Off, because core does them: the Runner's checkpoints, schedules,
validation, seeds, log files and weight initialisation. How each promise of docs/engines.md is kept is said at its
place, by name (E1 to E8).

Not here: FSDP and mixed precision with loss scaling (bf16 needs none).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from kdzoo.fit import StepModule
from kdzoo.hookspecs import hookimpl
from kdzoo.loader import Loader
from kdzoo.method import Batch
from kdzoo.runs import Run

_NUMBER = itertools.count()


@hookimpl
def fit(run: Run) -> bool:
    """Let mmengine's Runner train the steps that are left."""
    accumulate, clip = int(run.cfg.get("accumulate", 1)), float(run.cfg.get("clip", 0.0))
    optimizer = OptimWrapper(
        run.optimizer(),
        accumulative_counts=accumulate,
        clip_grad={"max_norm": clip} if clip else None,  # E6: over all groups
    )
    name = f"kdzoo-{os.getpid()}-{next(_NUMBER)}"
    with TemporaryDirectory(prefix="kdzoo-mmengine-") as folder:
        runner = QuietRunner(
            run=run,
            model=StepModel(run, accumulate * run.device_info.ranks),
            work_dir=folder,
            train_dataloader=Steps(run.loader(), (run.steps - run.step) * accumulate),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper=optimizer,
            default_hooks=dict.fromkeys(
                ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
            ),
            custom_hooks=[Stepped(run, accumulate, bool(clip))],
            log_level="ERROR",
            env_cfg={
                "mp_cfg": {"mp_start_method": multiprocessing.get_start_method()}
            },  # as the bench has it
            experiment_name=name,
        )
        optimizer.message_hub = (
            runner.message_hub
        )  # where it leaves the gradient's norm; else in one of all runs
        try:
            runner.train()
        finally:
            forget(name)
    return True


class StepModel(BaseModel):
    """Core's `StepModule` as a model of mmengine: a batch in, ``{"loss": scalar}`` out.

    E5: mmengine divides by the micro-batches and DDP by the ranks, but the terms are divided by both already, so the
    loss is multiplied by them. One key with "loss" in it: mmengine would sum all of them.
    """

    def __init__(self, run: Run, scale: int) -> None:
        super().__init__()
        self.step = StepModule(run)  # E4: it tests the loss before backward; E6: it holds trained roles only
        self.data_preprocessor = AsItIs()
        self.scale, self.autocast = scale, run.device_info.autocast()

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor]:
        with self.autocast:
            return {"loss": self.step(batch) * self.scale}

    def init_weights(self) -> None:
        """Core has built and loaded the models."""

    def train(self, mode: bool = True) -> StepModel:
        """Core sets the mode of each role; a method may keep one in evaluation mode."""
        self.training = mode
        return self


class AsItIs(nn.Module):
    """mmengine's place for normalising images: the loader has done it."""

    def forward(self, batch: Batch, training: bool = True) -> tuple[Batch]:
        return (batch,)


class Steps:
    """Core's loader as mmengine's data loader: the same iterator, with the length of what is left (E2, E3)."""

    dataset = SimpleNamespace(metainfo={})

    def __init__(self, loader: Loader, length: int) -> None:
        self.loader, self.length = loader, length

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def __len__(self) -> int:
        return self.length


class Stepped(Hook):
    """Tells core of every optimiser step."""

    def __init__(self, run: Run, accumulate: int, clips: bool) -> None:
        self.run, self.accumulate, self.clips = run, accumulate, clips

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if (batch_idx + 1) % self.accumulate == 0:
            norm = runner.message_hub.get_scalar("train/grad_norm").current() if self.clips else None
            self.run.stepped(data_batch, norm)


class QuietRunner(Runner):
    """A Runner that leaves models on core's device and writes nothing."""

    def __init__(self, run: Run, **options: Any) -> None:
        self.kdzoo_run = run
        super().__init__(**options)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """mmengine's DDP where core has opened ranks; else the model where it lies.

        The Runner's own form would move everything to the first GPU it sees.
        """
        device = self.kdzoo_run.device_info
        if device.ranks == 1:
            return model
        places = [device.torch.index] if device.torch.type == "cuda" else None
        # A method may train a part of a net in some steps only.
        return MMDistributedDataParallel(module=model, device_ids=places, find_unused_parameters=True)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Core records the environment; mmengine would start compilers to ask for their versions."""

    def dump_config(self) -> None:
        """The configuration is in the record."""

    def set_randomness(self, *args: Any, **options: Any) -> None:
        """E1: core seeds every micro-step."""
        self._seed = 0


def forget(name: str) -> None:
    """Drop what mmengine keeps for ever under a runner's name: a worker trains many runs."""
    for manager in (MessageHub, MMLogger, Visualizer, DefaultScope):
        logger = manager._instance_dict.pop(name, None)
        for handler in getattr(logger, "handlers", []):
            handler.close()
