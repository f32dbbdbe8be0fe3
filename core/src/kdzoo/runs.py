"""A run: one stage of one arm at one seed, and everything hooks may ask of it.

Plugins hold no state; whatever lives longer than a call is on the `Run`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pluggy import PluginManager
from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.loader import Loader, Order
from kdzoo.method import Batch, Metric, Output, Role, Stage
from kdzoo.rng import extend, mix, word
from kdzoo.settings import Settings
from kdzoo.task import Data
from kdzoo.weights import Weights

if TYPE_CHECKING:
    from kdzoo.artefacts import Store
    from kdzoo.cards import MethodCard, TaskCard
    from kdzoo.device import Device
    from kdzoo.recorded import SignalCache


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Everything a worker needs to make one artefact; `key` names it.

    `needs` maps the names of earlier stages to their keys. `roles` are those built in this stage, `ships` those that
    are evaluated. `settings` are all values of the arm, patched by the stage; `reads` in the stage restricts them.
    `signals` says where frozen roles' answers come from (`kdzoo.signal_choice`).
    """

    key: str
    task: str
    method: str | None
    arm: str
    seed: int | None
    stage: Stage
    settings: Mapping[str, Any]
    roles: tuple[Role, ...]
    ships: tuple[str, ...]
    needs: Mapping[str, str]
    extensions: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    data_root: str | None = None
    smoke: bool = False
    signals: str = "live"


class Stopped(BaseException):
    """The run was asked to stop (Ctrl-C) and wrote a checkpoint at a whole step; like KeyboardInterrupt, no error."""


class NotFinite(KdzooError):
    """A loss term or the gradient is NaN or infinite."""


@dataclass
class Cost:
    """What a stage has cost so far. `seconds` leaves validation out."""

    steps: int = 0
    examples: int = 0
    student_forwards: int = 0
    teacher_forwards: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    peak_memory_bytes: int = 0
    spent: dict[str, float] = field(default_factory=dict)


class Run:
    """One stage of one arm at one seed.

    Attributes:
        arm, seed, stage: names; `seed` is 0 for a stage that all seeds share.
        cfg: the settings this stage may read.
        step, steps: optimiser steps done and to do.
        models: role name -> module, in the order they were built.
        inputs: name of an earlier stage -> folder of its artefact.
        folder: where this stage writes.
        batch: the current micro-batch.
        weights: where the trained weights lie; an engine that shares them among ranks sets its own.
        hook: the hooks of this stage's plugins.
    """

    def __init__(
        self,
        spec: StageSpec,
        task: TaskCard,
        method: MethodCard | None,
        manager: PluginManager,
        serve: Callable[[Run, str], Data],
        folder: Path,
        inputs: Mapping[str, Path],
        device: Device,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.spec, self.task, self.method, self.device_info = spec, task, method, device
        self.manager, self.hook = manager, manager.hook
        self.arm, self.seed, self.stage = spec.arm, spec.seed or 0, spec.stage.name
        self.cfg = Settings(spec.settings, spec.stage.reads, spec.stage.name)
        self.step, self.steps, self.micro = 0, int(spec.settings.get("steps", 0)), 0
        self.models: dict[str, nn.Module] = {}
        self.roles: dict[str, Role] = {role.name: role for role in spec.roles}
        self.inputs, self.folder, self.device = dict(inputs), folder, device.torch
        self.batch: Batch | None = None
        self.weights = Weights()
        self.kept: dict[str, Any] = {}
        self.cost = Cost()
        self.curves: dict[str, list[list[float]]] = {}
        self.logs: dict[str, list[list[float]]] = {}
        self.metrics: dict[str, Metric] = {}
        self.predicted: dict[tuple[str, str, str], Predicted] = {}
        self.store: Store | None = None
        self.data_root = Path(spec.data_root) if spec.data_root else None
        self.facts: dict[str, Any] = {}
        self.terms: dict[
            str, list[tuple[Tensor, float]]
        ] = {}  # of this step: (total, scale) of each micro-batch
        self.restored: dict[str, Any] | None = None
        self.current_optimizer: torch.optim.Optimizer | None = None
        self.make_optimizer: Callable[[Run], torch.optim.Optimizer] | None = None  # None: core's
        self.rate: Callable[[int], float] = lambda step: float(self.cfg["lr"])  # learning rate of a step
        self.stopping = False
        self.evaluating = False  # measuring on val or test: what disturbs training keeps out of it
        self.started: Callable[[Run], None] = lambda _: None
        self.checkpoint_seconds = 10.0  # between two checkpoints; 0: after every step
        self.saving_seconds = 0.0
        self.saved_at = self.reported_at = time.monotonic()
        self.last_validation = ""
        self.split_open: set[str] = {"train", "pool", "dev", "val"}
        self.report = report
        self._serve = serve
        self._data: dict[str, Data] = {}
        self._orders: list[Order] = []
        self._memory: dict[tuple[str, str, str], Output] = {}
        self._base = mix(self.seed, spec.stage.name)
        self._micro_base = self._base
        self._elsewhere = "" if self.device.type == "cpu" else self.device.type
        self._generators: dict[tuple[str, str], torch.Generator] = {}
        self._started = time.perf_counter()

    # --- data -----------------------------------------------------------------------------------------------

    def data(self, split: str) -> Data:
        """A split of the task. `test` opens only in a bench's last stage."""
        if split not in self.split_open:
            raise KdzooError(
                f"stage {self.stage!r} of arm {self.arm!r} asked for the split {split!r}; only the evaluate stage may "
                "open test data, or a choice could leak from it. Use 'val' or 'dev'."
            )
        if split not in self._data:
            self._data[split] = self._serve(self, split)
        return self._data[split]

    def orders(self) -> list[Order]:
        """The order of every training stream of the task, in the card's order."""
        if not self._orders:
            self._orders = [
                Order(
                    self.data(stream.split),
                    self.seed,
                    stream.split,
                    int(self.cfg[stream.batch]),
                    int(self.cfg[stream.per_group]) if stream.per_group else 0,
                )
                for stream in self.task.streams
            ]
        return self._orders

    def loader(self) -> Loader:
        """Micro-batches for the steps that are left; goes to the framework as it is."""
        accumulate = int(self.cfg.get("accumulate", 1))
        return Loader(self, self.orders(), accumulate, self.device_info.rank, self.device_info.ranks)

    def optimizer(self) -> torch.optim.Optimizer:
        """The one optimiser over all trained roles; a task whose roles want several sets `make_optimizer` before."""
        from kdzoo.fit import make_optimizer

        self.current_optimizer = (self.make_optimizer or make_optimizer)(self)
        return self.current_optimizer

    def stepped(self, batch: Batch, grad_norm: Tensor | float | None = None) -> bool:
        """To be called by an engine once an optimiser step; True when the run is done."""
        from kdzoo.fit import stepped

        return stepped(self, batch, grad_norm)

    def to_device(self, batch: Batch) -> Batch:
        """The batch with its tensors on the run's device; nothing is copied on a CPU."""
        if self._elsewhere:
            batch.views = {name: _moved(value, self.device) for name, value in batch.views.items()}
            batch.labels = _moved(batch.labels, self.device)
        return batch

    # --- models' outputs ------------------------------------------------------------------------------------

    def enter(self, batch: Batch) -> None:
        """Make `batch` the current one and forget what models said about the last."""
        self.batch = batch
        self._memory.clear()

    @cached_property
    def view(self) -> str:
        """The view that the task's student is given, which is meant where none is named."""
        side = self.task.gives.get("student")
        return side.view if side else "image"

    def view_of(self, role: str) -> str:
        """The view that is meant for a role where none is named: the teacher's own where the task gives it one."""
        side = self.task.gives.get("teacher") if role == "teacher" else None
        return side.view if side else self.view

    def out(self, role: str, view: str = "") -> Output:
        """What a model says about a view of the current batch, with gradient; once a micro-batch."""
        view = view or self.view_of(role)
        slot = ("out", role, view)
        if slot not in self._memory:
            assert self.batch is not None, "run.out is for loss_terms, prepare_batch and after_step"
            # Dropout inside the model must not depend on what a loss or a hook has drawn before.
            self._seed_default(extend(self._micro_base, _out_word(role, view)))
            self._memory[slot] = as_output(self.models[role](self.batch.views[view]))
            if torch.is_grad_enabled():
                self.cost.student_forwards += len(self.batch.ids) * self.device_info.ranks
        return self._memory[slot]

    def signal(self, role: str, view: str = "") -> Output:
        """What a teacher says about a view of the current batch, without gradient; once a micro-batch."""
        view = view or self.view_of(role)
        slot = ("signal", role, view)
        if slot not in self._memory:
            assert self.batch is not None, "run.signal is for loss_terms, prepare_batch and after_step"
            output = self._answer(run=self, role=role, view=view)
            if output is None:
                raise KdzooError(f"no plugin answered for the teacher {role!r} on the view {view!r}")
            self._memory[slot] = output
        return self._memory[slot]

    @cached_property
    def _answer(self) -> Callable[..., Output | None]:
        """The hook, or core's own answer where nobody else gives one: a direct call costs less than a layer."""
        hook = self.hook.teacher_signal
        known = hook.get_hookimpls()
        alone = len(known) == 1 and known[0].plugin_name == "core" and "KDZOO_TRACE" not in os.environ
        answer: Any = known[0].function if alone else hook
        found: Callable[..., Output | None] = answer
        return found

    @cached_property
    def signal_cache(self) -> SignalCache:
        """What is recorded of this run's frozen roles; used under ``--signals recorded`` and ``top-k`` only."""
        from kdzoo.recorded import SignalCache

        return SignalCache(self)

    @property
    def ships(self) -> tuple[str, ...]:
        """Roles that are evaluated, sized and timed."""
        return self.spec.ships

    def shipped(self) -> Iterator[tuple[str, str]]:
        """(role, suffix for metric names) of every role that ships: no suffix where it is only one."""
        for role in self.ships:
            yield role, "" if len(self.ships) == 1 else f"[model={role}]"

    # --- randomness -----------------------------------------------------------------------------------------

    def seed_micro_step(self, step: int, micro: int) -> None:
        """Seed the default generators by the place of a micro-step: what was drawn before plays no part."""
        self.micro = micro
        self._micro_base = extend(extend(self._base, step), micro << 32 | self.device_info.rank)
        self._seed_default(self._micro_base)

    def _seed_default(self, seed: int) -> None:
        """The generators that plain torch calls draw from. ``torch.manual_seed`` costs a hundred times more."""
        torch.default_generator.manual_seed(seed)
        if self._elsewhere == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def rng(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose at this micro-step; the same purpose starts afresh at each call."""
        slot = (purpose, str(device))
        generator = self._generators.get(slot)
        if generator is None:
            generator = self._generators[slot] = torch.Generator(device)
        return generator.manual_seed(extend(self._micro_base, word(purpose)))

    # --- state and books ------------------------------------------------------------------------------------

    def keep(self, name: str, thing: Any) -> Any:
        """Put something with ``state_dict`` and ``load_state_dict`` into the checkpoint; a resumed run fills it."""
        if name in self.kept:
            raise KdzooError(
                f"run.keep: the name {name!r} is taken; two parts of the state would share one place"
            )
        self.kept[name] = thing
        if self.restored is not None and name in self.restored["kept"]:
            thing.load_state_dict(self.restored["kept"][name])
        return thing

    def log(self, name: str, value: float) -> None:
        """Note a value of this step for the learning curves."""
        self.logs.setdefault(name, []).append([self.step, float(value)])

    def spend(self, kind: str, amount: float) -> None:
        """Add to a cost that core does not count: tokens, money, requests."""
        self.cost.spent[kind] = self.cost.spent.get(kind, 0.0) + amount

    def do(self, stage: Stage) -> Path:
        """Make, or find, the artefact of a further stage from inside this one; returns its folder."""
        from kdzoo.execute import run_inner_stage

        return run_inner_stage(self, stage)

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Evaluation mode for all models; the time goes to validation, the batch and the modes come back."""
        began, batch = time.perf_counter(), self.batch
        with self.weights.whole():
            modes = {role: module.training for role, module in self.models.items()}
            for module in self.models.values():
                module.eval()
            self.evaluating = True
            try:
                with torch.no_grad():
                    yield
            finally:
                self.evaluating = False
                for role, mode in modes.items():
                    self.models[role].train(mode)
                self.batch = batch
                self._memory.clear()
                spent = time.perf_counter() - began
                self.cost.validation_seconds += spent
                self._started += spent

    def seconds(self) -> float:
        """Seconds since the clock was last started, validation left out."""
        return time.perf_counter() - self._started

    def leave_out(self, seconds: float) -> None:
        """Not to be counted as this run's time: somebody else is charged for it."""
        self._started += seconds

    def restart_clock(self) -> None:
        self._started = time.perf_counter()

    def predict(self, role: str, split: str, view: str = "", batch: int = 500) -> Predicted:
        """What a model says about a whole split, in order, in evaluation mode and without augmentation."""
        from kdzoo.evaluate import predict

        return predict(self, role, split, view or self.view_of(role), batch)

    def books(self) -> dict[str, Any]:
        """Costs, curves and logs, for the checkpoint and the artefact."""
        return {"cost": asdict(self.cost), "curves": self.curves, "logs": self.logs}


@dataclass(slots=True)
class Predicted:
    """A model's outputs over a split, concatenated: logits (N, C) or None, embedding (N, D) or None, labels."""

    logits: Tensor | None
    embedding: Tensor | None
    labels: Any
    ids: list[str]


@lru_cache
def _out_word(role: str, view: str) -> int:
    return mix("out", role, view)


def as_output(value: Any) -> Output:
    """A bare tensor counts as logits."""
    if isinstance(value, Output):
        return value
    if isinstance(value, Tensor):
        return Output(logits=value)
    raise TypeError(
        f"a model returned {type(value).__name__}, expected kdzoo.method.Output or a tensor of logits"
    )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return value
