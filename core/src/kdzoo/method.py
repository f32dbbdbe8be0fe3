"""What a method is made of: the words that cross the border between core, tasks and methods.

A method is a card (`<slug>.toml`) and a module (`<slug>.py`) of pluggy hook implementations; this file holds the
small data classes that those hooks take and return. Nothing here does work, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from kdzoo.runs import Run

RoleKind = Literal["train", "frozen", "own"]


@dataclass(slots=True)
class Batch:
    """One micro-batch.

    Attributes:
        ids: one stable sample id per row, e.g. ``train/17``; caches and augmentation are keyed by it.
        views: view name -> what the framework's model takes (a tensor, a dict of tensors, ...).
        labels: supervision, in the task's own form; -1 marks a row without a label.
        counts: normaliser name -> how many such units this micro-batch holds ("item", "label", "token", "edge").
        norm: `counts` summed over all micro-batches of the optimiser step and over all ranks, plus
            ``norm["step"]`` = micro-batches x ranks. Stamped by the loader; a term is divided by it.
        drawn: where the rows come from (`kdzoo.drawn.Drawn`), stamped by the loader where teacher signals are
            recorded, else None. Nobody else sets or reads it.
    """

    ids: list[str]
    views: dict[str, Any]
    labels: Any = None
    counts: dict[str, int] = field(default_factory=dict)
    norm: dict[str, float] = field(default_factory=dict)
    drawn: Any = None


@dataclass(slots=True)
class Output:
    """What a model says about one view. Any part may be None.

    Attributes:
        logits: (B, C), (B, C, H, W) for maps (class axis 1) or (B, T, V) for tokens (class axis last).
        features: name -> inner activation, e.g. ``stage2`` -> (B, C, H, W).
        embedding: (B, D), the vector that represents a sample.
        tokens: generated token ids, or text.
        mask: (B, ...) bool, True where the values count.
        extra: anything a task and its methods agree on.
    """

    logits: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None
    tokens: Any = None
    mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Term(NamedTuple):
    """One named part of the loss: the loss is the sum of ``weight * total / norm[per]``.

    `total` is a SUM over the units named by `per` (items, labelled items, tokens ...), so that gradient
    accumulation and ranks do not change the result. ``per="step"`` is for values that already are means over a
    batch and cannot be split (relational and in-batch losses): each micro-batch then weighs the same.
    """

    total: Tensor
    weight: float = 1.0
    per: str = "step"


@dataclass(slots=True)
class Metric:
    """A measured value: a fraction, never percent; `n` samples; `items` the per-sample values, (n,)."""

    value: float | None
    n: int
    items: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Role:
    """A model with a part to play.

    Attributes:
        name: "student", "teacher", "connector", ...
        kind: `train` (in the optimiser and the checkpoint), `frozen` (weights from elsewhere; eval, no gradient,
            known by its hash) or `own` (in the checkpoint, not in the optimiser: the method moves it).
        source: where its first weights come from: ``init`` (build_model as it is), ``init:ROLE`` (built as another
            role), ``random`` (as init, but never with pretrained weights: a teacher that knows nothing), ``task``
            (the task's teacher: shipped weights or its `teacher` stage), ``stage:NAME`` or
            ``stage:NAME/ROLE`` (the artefact of a stage this one needs; ROLE defaults to "student").
        seed: None for the run's own seed, or a number that fixes this role's initialisation for all runs.
    """

    name: str
    kind: RoleKind = "train"
    source: str = "init"
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A named, resumable step of an arm; its result is an artefact whose folder is named by the stage's key.

    Attributes:
        name: unique within the plan.
        call: ``module:function`` taking a `Run`, writing to ``run.folder``.
        needs: names of stages whose artefacts it reads (``run.inputs[name]`` is the folder).
        reads: the settings it may read, as glob patterns; ``!pattern`` takes some back. Another setting raises.
        set: settings patched for this stage alone.
        seeded: False if all seeds share one artefact (teachers, by default).
        version: raise it when the code changes in a way that changes results.
        roles: the roles of this stage; None means the arm's.
    """

    name: str
    call: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("*", "!eval.*")
    set: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = True
    version: int = 1
    roles: tuple[Role, ...] | None = None


FIT = "kdzoo.fit:fit_stage"
EVALUATE = "kdzoo.evaluate:evaluate_stage"


def fit_stage(name: str = "fit", **changes: Any) -> Stage:
    """The stage that builds the roles and lets the task's engine train them."""
    return Stage(**{"name": name, "call": FIT, **changes})


def evaluate_stage(needs: str = "fit", **changes: Any) -> Stage:
    """The stage that opens the test split, once, on the artefact of `needs`.

    It reads what builds a model and what evaluation is configured by, never what only training used; the
    training settings are in the key of the stage it needs.

    In a plan, `roles` may name frozen roles of earlier stages (teachers that the method trained itself): core builds
    them beside what ships and the task's teacher, for the method's own `evaluate`.
    """
    return Stage(**{"name": "evaluate", "call": EVALUATE, "needs": (needs,) if needs else (), **changes})


StageFunction = Callable[["Run"], None]
