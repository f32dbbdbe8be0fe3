"""The ten hooks: everything a plugin may implement. A plugin author need read no other file.

A plugin is a module whose functions carry ``@hookimpl``; there are no classes to inherit and a module keeps no state
(one worker process runs many runs). Three kinds of modules are plugins:

* the registration module of a distribution (entry point group ``kdzoo``), imported at every start of the command
  line: it implements `cards`, `commands`, `checks` and imports nothing heavy;
* a task's module and a method's module, beside their cards: they implement the seven hooks of a running stage;
* an extension (entry point group ``kdzoo.extensions``): the same seven hooks, active only when named by ``--with``.

For every stage of every arm and seed a fresh plugin manager registers core, task, method, extensions, in this order.
pluggy calls the last registered first: an extension comes before the method, the method before the task, the task
before core. "First result" means that the first implementation that does not return None ends the call; "all" means
that every implementation is called. An implementation may leave out arguments it does not need.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from kdzoo.method import Batch, Metric, Output, Term
    from kdzoo.runs import Run

PROJECT = "kdzoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- registration: when the command line starts -----------------------------------------------------------------


@hookspec
def cards() -> list[Path]:  # type: ignore[empty-body]
    """Folders that hold method and task cards (TOML). All.

    When: once, when the catalogue is read. Order: does not matter, slugs must be unique.
    Returns: folders inside the distribution; each is read flat, ``*.toml``. The module beside a card has the card's
    name with underscores for hyphens.

    Example::

        @hookimpl
        def cards():
            here = Path(__file__).parent
            return [here / "tasks", here / "methods"]
    """


@hookspec
def commands() -> dict[str, str]:  # type: ignore[empty-body]
    """Commands to add to ``kdzoo``: name -> ``module:function``. All; of a name given twice the first
    plugin's stays and the second plugin is reported.

    When: once, when the command line is built; the module is imported only when its command is called or its help
    line is printed. The function is what Typer takes: annotated parameters, the docstring is the help.

    Example::

        @hookimpl
        def commands():
            return {"bench": "kdzoo.cli.bench:bench"}
    """


@hookspec
def checks() -> dict[str, str]:  # type: ignore[empty-body]
    """Checks for ``kdzoo doctor``: name -> ``module:function``. All; of a name given twice the
    first plugin's stays and the second plugin is reported.

    When: only when ``kdzoo doctor`` runs. The function takes nothing and returns one line that says what was found;
    it raises `KdzooError` with the remedy when something is wrong.

    Example::

        @hookimpl
        def checks():
            return {"timm": "kdzoo_vision.doctor:timm_version"}
    """


# --- a running stage --------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def build_model(run: Run, role: str) -> nn.Module | None:
    """Build the model of one role. First result.

    When: at the start of a stage, once a role, in the order of the card, under a seed made of (run seed, role): one
    more projector or teacher never moves the student's initialisation. Roles built earlier are in ``run.models``
    (an EMA copy and a grown head need them).
    Returns: a module whose ``forward(view)`` returns an `Output` (a bare tensor counts as logits), or None to leave
    the role to the next implementation. Core loads weights into it afterwards if the role has a source.

    Example::

        @hookimpl
        def build_model(run, role):
            if role == "connector":
                return nn.Conv2d(run.models["student"].channels, run.models["teacher"].channels, 1)
    """


@hookspec
def prepare_batch(run: Run, batch: Batch) -> None:
    """Edit ``batch.views`` and ``batch.counts`` in place. All, core last.

    When: once a micro-batch, by core's loader, in the main process, without gradient, never ahead of the optimiser
    step it serves; ``run.models`` hold the weights of that step. Mixup, CutMix, edge masks, on-policy samples.
    Randomness comes from ``run.rng(purpose)``.

    Example::

        @hookimpl
        def prepare_batch(run, batch):
            share = torch.rand((), generator=run.rng("mixup"))
            batch.views["image"] = batch.views["image"].lerp(batch.views["image"].flip(0), share)
    """


@hookspec(firstresult=True)
def teacher_signal(run: Run, role: str, view: str) -> Output | None:
    """What a teacher says about one view of the current batch. First result.

    When: only when somebody pulls it with ``run.signal(role, view)``; the answer is kept until the end of the
    micro-batch. Core's implementation is the live forward pass, in eval mode and without gradient.
    Returns: an `Output`, or None to leave it to the next implementation. What a plugin returns is never cached.

    Example::

        @hookimpl(wrapper=True)
        def teacher_signal(run, role, view):
            output = yield
            order = torch.randperm(len(run.batch.ids), generator=run.rng("permute"))
            return Output(logits=output.logits[order])
    """


@hookspec
def loss_terms(run: Run, batch: Batch) -> dict[str, Term] | None:
    """Named terms of the loss of one micro-batch. All; merged, and summed in the order of their names.

    When: in every forward of the training step. The task gives ``task`` (core leaves it out where the setting
    ``task_weight`` is 0), the method its own, an extension more. A name given twice is an error.
    Returns: name -> `Term`; the loss is the sum of ``weight * total / norm[per]``.

    Example::

        @hookimpl
        def loss_terms(run, batch):
            student, teacher = run.out("student", "image"), run.signal("teacher", "image")
            total = kl_divergence(student.logits, teacher.logits, temperature=4.0, axis=1, reduction="sum")
            return {"kd": Term(total, weight=run.cfg.kd_weight, per="item")}
    """


@hookspec
def after_step(run: Run, batch: Batch) -> None:
    """Act once the weights are updated. All, core last.

    When: once an optimiser step, after the update and before ``run.step`` advances; `batch` is the last micro-batch.
    EMA copies, queues, prototypes, centres, a policy's own update. Without gradient unless switched on inside.

    Example::

        @hookimpl
        def after_step(run, batch):
            for average, weight in zip(run.models["ema"].parameters(), run.models["student"].parameters()):
                average.lerp_(weight, 0.01)
    """


@hookspec(firstresult=True)
def fit(run: Run) -> bool | None:
    """Train until ``run.steps``: the task's engine. First result: the engine returns True.

    When: once in a fit stage, after the roles are built and a checkpoint, if there is one, is restored. Core's engine
    serves every task that brings none. "Before" and "after" training are one wrapper; its ``finally`` also runs on
    NaN and on Ctrl-C.

    Example::

        @hookimpl(wrapper=True)
        def fit(run):
            taps = Taps(run.models["student"], ["layer3"])
            try:
                return (yield)
            finally:
                taps.release()
    """


@hookspec
def evaluate(run: Run, split: str) -> dict[str, Metric] | None:
    """Measure the models of a stage on a split. All; merged, a name given twice is an error.

    When: on ``val`` during training, on ``test`` once, in the last stage of a bench. Core adds fidelity to the
    teacher, calibration and size where there are logits.
    Returns: metric name -> `Metric`; a name without ``/`` belongs to `split`, ``train/agreement`` is taken as it is.

    Example::

        @hookimpl
        def evaluate(run, split):
            predicted = run.predict("student", split)
            hits = (predicted.logits.argmax(1) == predicted.labels).float()
            return {"accuracy": Metric(hits.mean().item(), len(hits), hits)}
    """
