"""A task small enough to train in milliseconds, made in memory: for tests of engines, extensions and the core itself.

Three classes, six inputs, a student and a teacher of one hidden layer. It needs no card file, no store and no plugin;
`run` gives a `Run` as a bench would make it, ready for `kdzoo.fit.fit_stage`.

Shapes: N rows of a split, B rows of a batch, 6 inputs, 3 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo import builtin, plugins
from kdzoo.cards import DataSource, MetricCard, Param, Stream, TaskCard
from kdzoo.device import open_device
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Metric, Output, Role, Term, fit_stage
from kdzoo.rng import mix
from kdzoo.runs import Run, StageSpec
from kdzoo.task import Data

INPUTS, CLASSES = 6, 3
SIZES = {"train": 40, "pool": 56, "val": 24, "test": 24}

SETTINGS: dict[str, Any] = {
    "steps": 20,
    "batch": 8,
    "pool_batch": 8,
    "accumulate": 1,
    "lr": 0.05,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup": 3,
    "clip": 0.0,
    "eval_every": 10,
    "task_weight": 1.0,
    "dropout": 0.3,
    "hidden": 16,
    "temperature": 2.0,
    "kd_weight": 1.0,
    "noise": 0.01,
}

ALONE = (Role("student"),)
"""The roles of an arm without a teacher."""

TAUGHT = (
    Role("connector"),
    Role("student"),
    Role("teacher", "frozen", seed=1),
    Role("average", "own", "init:student"),
)
"""A role of every kind: two trained, one frozen, one moved by the method (an average of the student's weights)."""


class Toy(nn.Module):
    """Linear, ReLU, dropout, linear: (B, 6) -> logits (B, 3)."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Linear(INPUTS, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Output:
        return Output(logits=self.head(self.dropout(self.body(x).relu())))


def task_card(streams: Sequence[str] = ("train",)) -> TaskCard:
    """The card of the toy task; `streams` are the splits that give training batches."""
    kinds = {"train": Stream(split="train", batch="batch"), "pool": Stream(split="pool", batch="pool_batch")}
    return TaskCard(
        slug="toy",
        title="Toy",
        summary="Three classes from six numbers",
        plugin="core",
        kind="classification",
        data={"toy": DataSource(source="a seeded generator", licence="none", ships=True)},
        sizes={"classes": CLASSES},
        splits=list(SIZES),
        models={"student": "one hidden layer"},
        metrics={
            "accuracy": MetricCard(better="higher", text="share of rows with the right class", primary=True)
        },
        streams=[kinds[split] for split in streams],
        params={name: Param(default=value, text=name) for name, value in SETTINGS.items()},
    )


def data(run: Run | None, split: str) -> Data:
    """A split: inputs are normal, the class is the largest of three fixed linear functions; pool has no labels."""
    generator = torch.Generator().manual_seed(mix("toy", split))
    inputs = torch.randn(SIZES[split], INPUTS, generator=generator)
    planes = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(mix("toy planes")))
    labels = (inputs @ planes).argmax(1)
    if split == "pool":
        labels = torch.full_like(labels, -1)
    ids = [f"{split}/{row}" for row in range(SIZES[split])]
    return Data(
        (inputs, labels, ids), ids, collate, hash=f"toy {split}", groups=None if split == "pool" else labels
    )


def collate(items: tuple[Tensor, Tensor, list[str]], rows: Tensor, seeds: Tensor | None) -> Batch:
    """Rows of a split; in training each is scaled by a factor between 0.9 and 1.1, drawn from its seed."""
    inputs, labels, ids = items
    views, targets = inputs[rows], labels[rows]
    if seeds is not None:
        views = views * (0.9 + 0.2 * (seeds >> 39).float() / (1 << 24)).unsqueeze(1)
    named = [ids[row] for row in rows.tolist()]
    labelled = 0 if named[0].startswith("pool") else len(named)
    return Batch(named, {"image": views}, targets, counts={"item": len(named), "label": labelled})


@hookimpl
def build_model(run: Run, role: str) -> nn.Module:
    if role == "connector":
        return nn.Linear(CLASSES, CLASSES)
    return Toy(int(run.cfg.hidden), float(run.cfg.dropout))


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Cross-entropy, summed over the labelled rows."""
    logits = run.out("student").logits
    assert logits is not None
    return {
        "task": Term(F.cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum"), per="label")
    }


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    found = {}
    for role, suffix in run.shipped():
        said = run.predict(role, split)
        assert said.logits is not None
        hits = (said.logits.argmax(1) == said.labels).float()
        found[f"accuracy{suffix}"] = Metric(float(hits.mean()), len(hits), hits)
    return found


def looks_the_same(split: str) -> Data:
    """A split whose rows are not scaled: what a frozen teacher says about them can be recorded."""
    return replace(
        data(None, split), collate=lambda items, rows, seeds: collate(items, rows, None), fixed_views=True
    )


class SoftLabels:
    """The plain distillation term, and nothing else: a student, a teacher, one view."""

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        student, teacher = run.out("student").logits, run.signal("teacher").logits
        assert student is not None
        assert teacher is not None
        total = kl_divergence(student, teacher, temperature=run.cfg.temperature, axis=1, reduction="sum")
        return {"kd": Term(total, weight=run.cfg.kd_weight, per="item")}


class Distil:
    """A method with a part for every hook of a training step: a connector, a teacher, an average of weights."""

    @hookimpl
    def prepare_batch(self, run: Run, batch: Batch) -> None:
        noise = torch.randn(batch.views["image"].shape, generator=run.rng("noise"))
        batch.views["noisy"] = batch.views["image"] + run.cfg.noise * noise.to(batch.views["image"].device)

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        student, teacher = run.out("student").logits, run.signal("teacher", "noisy").logits
        assert student is not None
        assert teacher is not None
        connected = run.models["connector"](student)
        total = kl_divergence(connected, teacher, temperature=run.cfg.temperature, axis=1, reduction="sum")
        return {"kd": Term(total, weight=run.cfg.kd_weight, per="item")}

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        pairs = zip(run.models["average"].parameters(), run.models["student"].parameters(), strict=True)
        for average, weight in pairs:
            average.lerp_(weight.detach(), 0.1)


def run(
    folder: Path,
    *,
    engine: Callable[..., Any] | None = None,
    roles: Sequence[Role] = TAUGHT,
    add: Sequence[Any] = (),
    streams: Sequence[str] = ("train",),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    method: bool = True,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    signals: str = "live",
    fixed: Sequence[str] = (),
) -> Run:
    """A fresh run of the toy task, as a bench's worker opens one.

    Args:
        folder: where checkpoint and weights go; with a checkpoint in it, `fit_stage` goes on from there.
        engine: the `fit` hook of the task; core's if None.
        roles: TAUGHT (with the method `Distil`) or ALONE (without), or others.
        add: further plugins, registered last as extensions are.
        streams: splits that give training batches.
        settings: changes to SETTINGS.
        seed: the run's seed.
        method: whether `Distil` is active where there is a teacher.
        device: where to compute.
        report: what `Run.report` calls.
        signals: where the teacher's answers come from, as ``kdzoo bench --signals`` has it.
        fixed: splits whose rows look the same each time (`looks_the_same`).
    """
    import kdzoo.testing.toy as task

    given = dict(settings or {})
    if unknown := sorted(given.keys() - SETTINGS.keys()):
        raise KdzooError(f"the toy task has no setting {unknown[0]!r}; it has {', '.join(sorted(SETTINGS))}")
    manager = plugins.new_manager()
    served = ModuleType("task")  # the task's hooks, with the engine under test in place of core's
    for name in ("build_model", "loss_terms", "evaluate"):
        setattr(served, name, getattr(task, name))
    if engine is not None:
        served.fit = _marked(engine)  # type: ignore[attr-defined]
    parts: dict[str, Any] = {"core": builtin.engine(), "task": served}
    if method and any(role.name == "teacher" for role in roles):
        parts["method"] = Distil()
    parts |= {f"extension:{place}": part for place, part in enumerate(add)}
    for name, part in parts.items():
        if why := plugins.register(manager, part, name):
            raise KdzooError(f"toy run: {why}")
    folder.mkdir(parents=True, exist_ok=True)
    spec = StageSpec(
        key="",
        task="toy",
        method=None,
        arm="toy",
        seed=seed,
        stage=fit_stage(),
        settings={**SETTINGS, **given},
        roles=tuple(roles),
        ships=("student",),
        needs={},
        device=device,
        signals=signals,
    )
    return Run(
        spec,
        task_card(streams),
        None,
        manager,
        lambda run, split: looks_the_same(split) if split in fixed else data(run, split),
        folder,
        {},
        open_device(device, "float32"),
        report,
    )


def _marked(engine: Callable[..., Any]) -> Callable[..., Any]:
    """The engine as a hook implementation, whether or not it carries the mark already."""
    if hasattr(engine, "kdzoo_impl"):
        return engine

    def fit(run: Run) -> bool | None:
        result: bool | None = engine(run)
        return result

    return hookimpl(fit)
