"""Arms: what a bench compares, and the stages each arm is made of."""

from __future__ import annotations

import fnmatch
import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdzoo.cards import Baseline, MethodCard, TaskCard, is_shipped
from kdzoo.catalog import Catalog
from kdzoo.claim_rows import Claim, metric_names
from kdzoo.errors import KdzooError, unknown
from kdzoo.method import Role, Stage, evaluate_stage, fit_stage
from kdzoo.metric_names import Better
from kdzoo.settings import Settings, resolve


@dataclass(frozen=True, slots=True)
class Arm:
    """One training configuration.

    Attributes:
        name: unique within the bench.
        method: slug of the method whose hooks are active, or None (teacher, student).
        set: what the arm changes in the settings.
        default: part of the plain bench.
        differs: what differs by design from the student arm (steps, init, order, size), with `why`.
        control: whether it is there to be held against, not to be good.
        until: name of the stage after which the arm is evaluated; empty for the whole plan.
        extensions: active in this arm alone, beside those that ``--with`` names.
        random_teacher: the task's teacher has random weights here.
        settled_by: what a setting of the arm waits for (`kdzoo.controls`): "time", "entropy", or nothing.
    """

    name: str
    method: str | None
    text: str
    set: Mapping[str, Any] = field(default_factory=dict)
    default: bool = False
    differs: tuple[str, ...] = ()
    why: str = ""
    control: bool = False
    until: str = ""
    extensions: tuple[str, ...] = ()
    random_teacher: bool = False
    settled_by: str = ""


def arms_of(cards: Catalog, card: MethodCard, task: TaskCard) -> dict[str, Arm]:
    """All arms of a method on a task, in the order of the table: teacher, student, baseline, method, variants."""
    arms: list[Arm] = []
    if task.teacher:
        arms.append(Arm("teacher", None, task.teacher.text, default=True))
    arms.append(Arm("student", None, "the student alone: the task's own loss, no teacher", default=True))
    if isinstance(task.kd, Baseline) and task.kd.method != card.slug:
        said = _differs(cards.method(task.kd.method))
        arms.append(
            Arm(task.kd.method, task.kd.method, "the plain baseline", task.kd.set, default=True, **said)
        )
    own = _differs(card)
    arms.append(Arm(card.slug, card.slug, card.title, default=True, **own))
    for name, switch in card.switches.items():
        if not switch.tasks or task.slug in switch.tasks:
            text = f"without {card.components[switch.component].text}"
            arms.append(
                Arm(f"{card.slug}.without-{name}", card.slug, text, switch.off, switch.default, **own)
            )
    for name, arm in card.arms.items():
        if arm.tasks and task.slug not in arm.tasks:
            continue
        plain = Arm(
            name,
            card.slug,
            arm.text,
            arm.set,
            arm.default,
            tuple(dict.fromkeys((*card.differs, *arm.differs))),
            " ".join(filter(None, (card.why, arm.why))),
            arm.control,
            arm.until,
        )
        for values in itertools.product(*arm.grid.values()):
            chosen = dict(zip(arm.grid, values, strict=True))
            arms.append(replace(plain, name=_grid_name(name, chosen), set={**arm.set, **chosen}))
    known = {arm.name for arm in arms}
    for claim in claims_on(card, task):
        for name in claim.arms:
            if name not in known and name in cards.methods and task.slug in cards.methods[name].tasks:
                known.add(name)
                arms.append(Arm(name, name, cards.methods[name].title, **_differs(cards.methods[name])))
    return {arm.name: arm for arm in arms}


def _differs(card: MethodCard) -> dict[str, Any]:
    """What all arms of a method differ in from the student arm, with the reason."""
    return {"differs": tuple(card.differs), "why": card.why}


CORE_METRICS: dict[str, Better] = {
    "agreement": "higher",
    "teacher_kl": "lower",
    "ece": "lower",
    "seconds": "lower",
    "steps": "lower",
}
"""Metrics that core measures on every task that has logits, and costs."""


def directions(task: TaskCard) -> dict[str, Better]:
    """Which way is better, for every metric a claim on this task may name."""
    return {**CORE_METRICS, **{name: metric.better for name, metric in task.metrics.items()}}


def claims_on(card: MethodCard, task: TaskCard) -> list[Claim]:
    """The claims of a method that speak of this task: of its metrics, and of no arm that only other tasks have."""
    known = directions(task)
    bound = {f"{card.slug}.without-{name}": switch.tasks for name, switch in card.switches.items()}
    bound |= {name: arm.tasks for name, arm in card.arms.items()}
    absent = {name for name, tasks in bound.items() if tasks and task.slug not in tasks}
    return [
        claim
        for claim in card.claims
        if all(name.name in known for name in metric_names(claim))
        and not any(arm.partition("[")[0] in absent for arm in claim.arms)
    ]


def _grid_name(name: str, chosen: Mapping[str, Any]) -> str:
    """``name`` without a grid, ``name[0.25]`` with one axis, ``name[a=1,b=2]`` with more."""
    if not chosen:
        return name
    if len(chosen) == 1:
        return f"{name}[{next(iter(chosen.values()))}]"
    return f"{name}[{','.join(f'{key}={value}' for key, value in chosen.items())}]"


def select(arms: Mapping[str, Arm], wanted: str, task: TaskCard) -> dict[str, Arm]:
    """The arms that ``--arms`` names: ``default``, ``all``, or a list of names and globs.

    Teacher and student always come along: without them no other number means anything.
    """
    chosen = {"teacher", "student"}
    patterns = [part.strip() for part in split(wanted) if part.strip()]
    if not patterns:
        raise KdzooError(f"--arms got {wanted!r}, expected 'default', 'all', or names: {', '.join(arms)}")
    for pattern in patterns:
        if pattern == "kd":
            if not isinstance(task.kd, Baseline):
                raise KdzooError(
                    f"--arms kd: task {task.slug!r} has no plain baseline ({task.kd}). Leave 'kd' out."
                )
            pattern = task.kd.method
        glob = pattern.replace("[", "[[]")  # brackets belong to the names of grid arms
        hits = [name for name in arms if fnmatch.fnmatchcase(name, glob)]
        if pattern in ("all", "default"):
            hits = [name for name, arm in arms.items() if arm.default or pattern == "all"]
        if not hits:
            raise unknown("arm", pattern, arms, f"Known: {', '.join(arms)}.")
        chosen |= set(hits)
    return {name: arm for name, arm in arms.items() if name in chosen}


def split(text: str) -> Iterable[str]:
    """Split at commas outside square brackets: grid arms have commas in their names."""
    depth, part = 0, ""
    for letter in text:
        depth = max(0, depth + (letter == "[") - (letter == "]"))
        if letter == "," and not depth:
            yield part
            part = ""
        else:
            part += letter
    yield part


def roles_of(arm: Arm, cards: Catalog, task: TaskCard) -> tuple[Role, ...]:
    """The roles of an arm's fit, in card order."""
    roles = cards.method(arm.method).roles if arm.method else task.roles
    return _taught(arm, (role.role(name) for name, role in roles.items()))


def _taught(arm: Arm, roles: Iterable[Role]) -> tuple[Role, ...]:
    """The roles of an arm; where its teacher is to be random, the task's teacher gets no weights."""
    if not arm.random_teacher:
        return tuple(roles)
    return tuple(replace(role, source="random") if role.source == "task" else role for role in roles)


def stages_of(arm: Arm, cards: Catalog, task: TaskCard, values: Mapping[str, Any]) -> list[Stage]:
    """The plan of an arm: the task's teacher if it is to be trained, the method's stages, the evaluation."""
    roles = roles_of(arm, cards, task)
    ships = ships_of(arm, cards, task)
    teacher_trained = task.teacher is not None and not is_shipped(task.teacher, values)
    stages: list[Stage] = []
    if teacher_trained:
        assert task.teacher is not None
        learner = (Role("student", "train", "init:teacher"),)
        followed = {name: values[source] for name, source in task.teacher.follow.items()}
        stages.append(fit_stage("teacher", set={**task.teacher.set, **followed}, seeded=False, roles=learner))
    if arm.name == "teacher":
        shipped = (Role("teacher", "frozen", "task"),)
        needs: tuple[str, ...] = ("teacher",) if teacher_trained else ()
        return [*stages, Stage("evaluate", "kdzoo.evaluate:evaluate_stage", needs, ("*",), roles=shipped)]
    # A task that is learnt in parts plans every arm whose method has no plan of its own, the student alone too.
    modules = [cards.module(slug) for slug in (arm.method, task.slug) if slug]
    planner = next((module for module in modules if hasattr(module, "plan")), None)
    if planner is not None:
        own: list[Stage] = list(planner.plan(Settings(values, ("*",), "plan")))
    else:
        own = [fit_stage()]
    beside = [role for stage in own if stage.name == "evaluate" for role in stage.roles or ()]
    own = [
        stage if stage.roles is None else replace(stage, roles=_taught(arm, stage.roles))
        for stage in own
        if stage.name != "evaluate"
    ]
    if teacher_trained:  # a plan need not know whether the task's teacher is shipped or a stage
        own = [
            replace(s, needs=(*s.needs, "teacher")) if _asks(s.roles if s.roles is not None else roles) else s
            for s in own
        ]
    if arm.until:
        names = [stage.name for stage in own]
        if arm.until not in names:
            raise unknown(
                "stage", arm.until, names, f"Arm {arm.name!r} is evaluated after one of its stages."
            )
        own = own[: names.index(arm.until) + 1]
    last = own[-1].name
    shown = tuple(Role(name, "frozen", f"stage:{last}/{name}") for name in ships)
    if task.teacher is not None and "teacher" not in ships:
        shown += (Role("teacher", "frozen", "task"),)
    needs = (last, "teacher") if teacher_trained else (last,)
    # Who taught where it was not the task's teacher: the method measures against it beside core's own measures.
    made, known = {stage.name for stage in own}, {role.name for role in shown}
    beside = [role for role in beside if role.name not in known and _maker(role) in made]
    needs = tuple(dict.fromkeys((*needs, *map(_maker, beside))))
    shown += tuple(replace(role, kind="frozen") for role in beside)
    return [*stages, *own, replace(evaluate_stage(last), needs=needs, reads=("*",), roles=shown)]


def _maker(role: Role) -> str:
    """The stage whose artefact holds a role's weights."""
    return role.source.removeprefix("stage:").partition("/")[0]


def _asks(roles: Iterable[Role]) -> bool:
    return any(role.source == "task" for role in roles)


def ships_of(arm: Arm, cards: Catalog, task: TaskCard) -> tuple[str, ...]:
    if arm.name == "teacher":
        return ("teacher",)
    return tuple(cards.method(arm.method).ships if arm.method else task.ships)


def settings_of(arm: Arm, cards: Catalog, task: TaskCard, user: Mapping[str, Any]) -> dict[str, Any]:
    """All values of an arm."""
    method = cards.method(arm.method) if arm.method else None
    values = resolve(task, method, user, arm.set)
    sample_by_sample = not (method and method.couples_batch) and not (
        task.couples_batch and values.get("task_weight", 1.0)
    )
    if arm.name == "teacher" or sample_by_sample:
        return values
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise KdzooError(
            f"{ranks} processes with {arm.name!r}: its loss couples the samples of a batch, and each process would see "
            "only its share of them. Train it in one process; other arms and seeds can use the other GPUs."
        )
    if int(values.get("accumulate", 1)) > 1:
        raise KdzooError(
            f"accumulate = {values['accumulate']} with {arm.name!r}: its loss couples the samples of a batch, and its "
            "mean over micro-batches is another loss. Use accumulate = 1 and a batch that fits the memory."
        )
    return values
