"""One method on one task, opened and trained for a few steps: what the checks of the contract look at.

Stages that come before the last fit are made in three steps each and kept in a store; the last fit itself is opened as
the bench would open it. Whatever is done with its models happens inside the hook `fit`, so that a method's wrappers
("before fit", "after fit") are entered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import torch
from torch import Tensor

from kdzoo import catalog, plugins, roles
from kdzoo import execute as execution
from kdzoo.artefacts import Store
from kdzoo.cards import MethodCard, TaskCard
from kdzoo.errors import KdzooError, unknown
from kdzoo.fit import StepModule, fit_stage
from kdzoo.hookspecs import hookimpl
from kdzoo.method import FIT, Batch
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.runs import Run, StageSpec
from kdzoo.task import Data

T = TypeVar("T")
Use = tuple[str, str]
"""(method, task)."""

SHORT = 4  # optimiser steps of a short training
LATE = 3  # optimiser steps of a training that enters at the end of the card's own schedule
When = Literal["first", "last"]


class NotApplicable(Exception):
    """A check has nothing to say about this method; the message says why."""


def plugin_uses(plugin: str, profile: str) -> list[Use]:
    """Every (method, task) of a plugin in a profile, ordered by method.

    Raises:
        KdzooError: no plugin of this name is installed; its tests would pass without looking at anything.
    """
    known = plugins.load().found
    if plugin not in known:
        raise unknown("plugin", plugin, known, "'kdzoo plugins' lists those installed: pip install -e .")
    return [
        (slug, task)
        for slug, card in sorted(catalog.load().methods.items())
        if card.plugin == plugin
        for task, use in card.tasks.items()
        if use.profile == profile
    ]


@dataclass
class Trained:
    """What a short training left behind: weights of the roles that moved, loss terms step by step, the books."""

    weights: dict[str, dict[str, Tensor]]
    losses: list[dict[str, float]]
    hashes: dict[str, tuple[str, str]]
    books: dict[str, Any]
    facts: dict[str, Any]

    def apart(self, other: Trained, only: Sequence[str] | None = None) -> float:
        """The largest difference between the weights of two trainings, over the roles that both have."""
        shared = self.weights.keys() & other.weights.keys()
        differences = [
            float((value.double() - other.weights[role][name].double()).abs().max())
            for role in (shared if only is None else shared & set(only))
            for name, value in self.weights[role].items()
            if value.numel() and value.shape == other.weights[role][name].shape
        ]
        return max(differences, default=0.0)

    def largest(self, only: Sequence[str] | None = None) -> float:
        """The largest absolute value among the weights."""
        chosen = self.weights if only is None else {role: self.weights.get(role, {}) for role in only}
        values = [value for part in chosen.values() for value in part.values() if value.numel()]
        return max((float(value.abs().max()) for value in values), default=0.0)

    def same_weights(self, other: Trained) -> bool:
        """Whether all weights are equal, bit by bit."""
        return self.weights.keys() == other.weights.keys() and all(
            torch.equal(value, other.weights[role][name])
            for role, values in self.weights.items()
            for name, value in values.items()
        )

    def equals(self, other: Trained) -> bool:
        """Whether weights and loss terms are equal, bit by bit."""
        return self.losses == other.losses and self.same_weights(other)


class Recorder:
    """An extension that notes every loss term, as it enters the loss."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        self.losses.append(terms_of(run))


@dataclass
class Probe:
    """An engine that calls a function in place of training, inside the method's wrappers."""

    function: Callable[[Run], Any]
    found: list[Any] = field(default_factory=list)

    @hookimpl(tryfirst=True)
    def fit(self, run: Run) -> bool:
        self.found.append(self.function(run))
        return True


class Subject:
    """One method on one task.

    Args:
        method, task: slugs.
        root: a folder for artefacts and runs; several subjects may share it.
        settings: ``name=value`` as ``--set`` takes them, for models or data that are too large for a test.
        rows: how many rows of `val` and `test` a smoke bench is evaluated on; 0 for all.
    """

    def __init__(
        self, method: str, task: str, root: Path, settings: Sequence[str] = (), rows: int = 500
    ) -> None:
        cards = catalog.load()
        self.method, self.task, self.root, self.settings = method, task, root, tuple(settings)
        self.rows = rows
        self.card: MethodCard = cards.method(method)
        self.task_card: TaskCard = cards.task(task)
        self.store = Store(root)
        self._trained: dict[tuple[Any, ...], Trained] = {}

    def plan(
        self, arm: str = "", *, set: Sequence[str] = (), seed: int = 0, smoke: bool = True, **request: Any
    ) -> Plan:
        """The plan of one arm (or of several, named as ``--arms`` takes them) at one seed."""
        asked = Request(
            method=self.method,
            task=self.task,
            arms=arm or self.method,
            seeds=1,
            first_seed=seed,
            set=(*self.settings, *set),
            smoke=smoke,
            **request,
        )
        return make_plan(asked)

    def open(
        self,
        arm: str = "",
        *,
        set: Sequence[str] = (),
        seed: int = 0,
        patch: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        **request: Any,
    ) -> Run:
        """The arm's last fit, before its models are built.

        Args:
            patch: settings of this stage alone, past all checks: a setting that no card defines is added.
            folder: where it writes; a fresh one unless given.
            request: further fields of `kdzoo.plan.Request`, such as dtype.
        """
        name = arm or self.method
        whole, _ = _last_fit(self.plan(name, set=set, seed=seed, smoke=False, **request), name, seed)
        short, before = _last_fit(self.plan(name, set=set, seed=seed, **request), name, seed)
        for spec in before:
            if not self.store.folder(spec.key).exists():  # execute would read all sources to say the same
                execution.execute(spec, self.store)
        spec = replace(whole, needs=short.needs, settings={**whole.settings, **(patch or {})})
        run = execution.open_run(spec, self.store, folder or self.folder())
        run.store = self.store
        return run

    def folder(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{self.method}-", dir=self.root))

    def built(self, arm: str = "", **options: Any) -> Run:
        """The arm's last fit with its models, in the modes of training; no wrapper of `fit` is entered."""
        run = self.open(arm, **options)
        _build(run)
        return run

    def look(self, function: Callable[[Run], T], arm: str = "", **options: Any) -> T:
        """Call a function where the engine would train: models built, wrappers of `fit` entered."""
        run = self.open(arm, **options)
        probe = Probe(function)
        run.manager.register(probe, "probe")
        _build(run)
        run.hook.fit(run=run)
        found: T = probe.found[0]
        return found

    def short(self, **wanted: Any) -> dict[str, Any]:
        """Those of the wanted settings that the task or the method has."""
        known = self.task_card.params.keys() | self.card.params.keys()
        return {name: value for name, value in wanted.items() if name in known}

    @cached_property
    def repeatable(self) -> bool:
        """Whether two trainings with one seed end alike; if not, differences between others mean nothing."""
        return self.train().equals(self.train(again=True))

    def train(self, arm: str = "", *, when: When = "first", seed: int = 0, again: bool = False) -> Trained:
        """Train the arm's last fit for a few steps; an arm that was trained so before is not trained again.

        Args:
            when: "first": a whole run of a few steps; "last": the last steps of a run of the card's own length, for
                components that wait for their time.
            again: train again in any case.
        """
        slot = (arm or self.method, when, seed)
        if again or slot not in self._trained:
            whole = {"steps": SHORT, "warmup": 0} if when == "first" else {}
            run = self.open(arm, seed=seed, patch=self.short(eval_every=0, **whole))
            # Measuring on validation data moves nothing, and may cost more than all steps.
            rest = [split for split in run.task.splits if split != "val"]
            run.task = msgspec.structs.replace(run.task, splits=rest)
            trained = finish(run, run.steps - LATE if when == "last" else 0)
            if again:
                return trained
            self._trained[slot] = trained
        return self._trained[slot]


def finish(run: Run, step: int = 0) -> Trained:
    """Train a run to its end: from its checkpoint if there is one, or from `step` with fresh models."""
    recorder = Recorder()
    run.manager.register(recorder, "recorder")
    if step > 0:
        before = _build(run)
        run.step = step
        run.restart_clock()
        run.hook.fit(run=run)
    else:
        fit_stage(run)
        before = run.facts["roles"]
    moved = [name for name, role in run.roles.items() if role.kind != "frozen"]
    return Trained(
        weights={
            role: {
                name: value.detach().cpu().clone() for name, value in run.models[role].state_dict().items()
            }
            for role in moved
        },
        losses=recorder.losses,
        hashes={name: (before[name], roles.state_hash(run.models[name])) for name in run.roles},
        books=run.books(),
        facts=run.facts,
    )


def fewer_rows(run: Run, rows: int) -> None:
    """Let a run draw its training samples from the first rows of each stream only: at least a batch of them."""
    for stream in run.task.streams:
        whole = run.data(stream.split)
        run._data[stream.split] = _first_rows(whole, max(rows, int(run.cfg[stream.batch])))


@contextmanager
def few_evaluated(rows: int) -> Iterator[None]:
    """Serve the first rows of `val` and `test` to whatever is executed: three steps of training are not worth more."""
    whole = execution.serve

    def serve(run: Run, split: str) -> Data:
        data = whole(run, split)
        return _first_rows(data, rows) if rows and split in ("val", "test") else data

    execution.serve = serve
    try:
        yield
    finally:
        execution.serve = whole


def _first_rows(data: Data, count: int) -> Data:
    """The first rows of a split; what `collate` takes rows from stays whole."""
    if len(data) <= count:
        return data
    groups = None if data.groups is None else data.groups[:count]
    return replace(data, ids=data.ids[:count], hash=f"{data.hash} first {count}", groups=groups)


def backward(run: Run, step: int) -> float:
    """The loss of an optimiser step; gradients are left in the models. To be called inside `Subject.look`."""
    run.step = step
    module, total = StepModule(run), 0.0
    batches = iter(run.loader())
    for _ in range(int(run.cfg.get("accumulate", 1))):
        with run.device_info.autocast():
            loss = module(next(batches))
        if loss.requires_grad:
            loss.backward()
        total += float(loss.detach())
    return total


def loss_if_any(run: Run, step: int) -> float | None:
    """`backward`, or None where the step has no loss term at all."""
    try:
        return backward(run, step)
    except KdzooError as error:
        if "has no loss term" in str(error):
            return None
        raise


def refusal(plan: Callable[[], Any]) -> str:
    """What a plan is refused with; empty if it is made."""
    try:
        plan()
    except KdzooError as error:
        return str(error)
    return ""


def moments(run: Run) -> Iterator[tuple[str, int]]:
    """(name, step) of the first and the last step of a run, with no gradient left from the step before."""
    for name, step in {"the first step": 0, "the last step": run.steps - 1}.items():
        for module in run.models.values():
            for parameter in module.parameters():
                parameter.grad = None
        yield name, step


def terms_of(run: Run) -> dict[str, float]:
    """The loss terms of the current step as they enter the loss, summed over its micro-batches."""
    return {
        name: sum(float(total.detach()) * scale for total, scale in parts)
        for name, parts in run.terms.items()
    }


def _build(run: Run) -> dict[str, str]:
    hashes = roles.build(run)
    for name, module in run.models.items():
        module.train(run.roles[name].kind == "train")
    return hashes


def _last_fit(plan: Plan, arm: str, seed: int) -> tuple[StageSpec, list[StageSpec]]:
    """The last stage in which the arm itself is trained, and the stages before it."""
    stages = plan.runs[(arm, seed)]
    fits = [place for place, spec in enumerate(stages) if spec.stage.call == FIT and spec.arm == arm]
    if not fits:
        raise NotApplicable(f"no stage of {arm} calls {FIT}: there is no training loop to look at")
    return stages[fits[-1]], stages[: fits[-1]]
