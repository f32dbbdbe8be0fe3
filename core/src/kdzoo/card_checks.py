"""A card held against itself: what it names must exist in it, once, and every value must fit its setting."""

from __future__ import annotations

from typing import Any

from kdzoo.cards import MethodCard, Param, TaskCard, value_problem
from kdzoo.errors import unknown


def _setting_problems(where: str, given: dict[str, Any], params: dict[str, Param]) -> list[str]:
    """Values that do not fit; names that are not the method's may be the task's (`kdzoo.catalog` looks at both)."""
    problems = []
    for key, value in given.items():
        if key in params and (why := value_problem(params[key], value)):
            problems.append(f"{where}.{key}: {why}")
    return problems


def method_problems(card: MethodCard) -> list[str]:
    """What is wrong with a method's card, one line each."""
    problems = []
    for name, switch in card.switches.items():
        if switch.component not in card.components:
            problems.append(f"switches.{name}: component {switch.component!r} is not in [components]")
    defaults = [name for name, arm in card.arms.items() if arm.default]
    defaults += [name for name, switch in card.switches.items() if switch.default]
    if len(defaults) > 3:
        problems.append(f"{len(defaults)} arms are marked default, at most 3 keep the plain bench short")
    if card.differs and not card.why:
        problems.append(f"differs = {card.differs} needs a why")
    for name, arm in card.arms.items():
        if not name.startswith(f"{card.slug}."):
            problems.append(f"arms: {name!r} must begin with '{card.slug}.'")
        if arm.differs and not arm.why:
            problems.append(f"arms.{name}: differs = {arm.differs} needs a why")
    problems += _role_problems(card)
    problems += _need_problems(card)
    for where, named in _task_lists(card):
        if lost := [task for task in named if task not in card.tasks]:
            problems.append(f"{where}.tasks: {lost[0]!r} is not in [tasks], so the arm would never exist")
    for name in card.switches:
        if f"{card.slug}.without-{name}" in card.arms:
            problems.append(
                f"arms: '{card.slug}.without-{name}' is the arm of switches.{name}; rename one of them"
            )
    for name, arm in card.arms.items():
        for key, values in arm.grid.items():
            if not values or len(set(map(repr, values))) < len(values):
                problems.append(
                    f"arms.{name}.grid.{key}: got {values}, expected one or more values, all different"
                )
            for value in values:
                problems += _setting_problems(f"arms.{name}.grid", {key: value}, card.params)
    tables: dict[str, dict[str, Any]] = {f"arms.{n}.set": a.set for n, a in card.arms.items()}
    tables |= {f"switches.{n}.off": s.off for n, s in card.switches.items()}
    tables |= {f"tasks.{n}.set": t.set for n, t in card.tasks.items()}
    for where, given in tables.items():
        problems += _setting_problems(where, given, card.params)
    problems += _name_problems(card.params)
    for name, param in card.params.items():
        if why := value_problem(param, param.default):
            problems.append(f"params.{name}.default: {why}")
    for profile in ("local", "paper"):
        uses = [name for name, use in card.tasks.items() if use.profile == profile]
        chosen = [name for name in uses if card.tasks[name].default]
        if uses and len(chosen) != 1:
            problems.append(f"tasks: profile {profile!r} needs exactly one default = true, got {len(chosen)}")
    return problems


def _role_problems(card: MethodCard | TaskCard) -> list[str]:
    """Roles that could not be built, and names that ship but are no role."""
    problems = []
    for name, role in card.roles.items():
        if role.kind == "frozen" and role.source == "init":
            problems.append(f"roles.{name}: a frozen role needs a source (task, or stage:NAME)")
        kind, _, rest = role.source.partition(":")
        if role.source not in ("init", "task") and not (kind in ("init", "stage") and rest):
            problems.append(
                f"roles.{name}: source {role.source!r}, expected init, init:ROLE, task or stage:NAME[/ROLE]"
            )
    return problems + [f"ships: {name!r} is not in [roles]" for name in card.ships if name not in card.roles]


def _need_problems(card: MethodCard) -> list[str]:
    """Settings named by `needs` and `layers` that the method does not have."""
    named = [(f"needs.{output}", setting) for output, setting in card.needs.items() if setting]
    named += [("layers", setting) for layer in card.layers for setting in (layer.student, layer.teacher)]
    return [
        str(unknown("setting", setting, card.params, f"It is named in [{where}]."))
        for where, setting in named
        if setting not in card.params
    ]


def _name_problems(params: dict[str, Param]) -> list[str]:
    """``cfg.items`` would be the method of a mapping, never the setting: such names cannot be read."""
    taken = ("get", "items", "keys", "values")
    return [
        f"params.{name}: the name is taken by cfg.{name}(); rename the setting"
        for name in taken
        if name in params
    ]


def _task_lists(card: MethodCard) -> list[tuple[str, list[str]]]:
    """(place, tasks) of every arm and switch that exists on some tasks only."""
    arms = [(f"arms.{name}", arm.tasks) for name, arm in card.arms.items()]
    return arms + [(f"switches.{name}", switch.tasks) for name, switch in card.switches.items()]


def task_problems(card: TaskCard) -> list[str]:
    """What is wrong with a task's card, one line each."""
    problems = []
    primary = [name for name, metric in card.metrics.items() if metric.primary]
    if len(primary) != 1:
        problems.append(f"metrics: exactly one needs primary = true, got {len(primary)}")
    problems += _role_problems(card)
    for stream in card.streams:
        if stream.split not in card.splits:
            problems.append(f"streams: split {stream.split!r} is not in splits = {card.splits}")
        for setting in filter(None, (stream.batch, stream.per_group)):
            if setting not in card.params:
                problems.append(f"streams: setting {setting!r} is not in [params]")
    if isinstance(card.kd, str) and not card.kd.startswith("none: "):
        problems.append(f"kd: got {card.kd!r}, expected {{method = ...}} or 'none: <why>'")
    if card.teacher and card.teacher.file and not (card.teacher.sha256 and card.teacher.command):
        problems.append("teacher: a shipped file needs its sha256 and the command that made it")
    for name, value in (card.teacher.set if card.teacher else {}).items():
        if name not in card.params:
            problems.append(str(unknown("setting", name, card.params, "It is set in [teacher.set].")))
        elif why := value_problem(card.params[name], value):
            problems.append(f"teacher.set.{name}: {why}")
    for name in card.teacher.fits if card.teacher else ():
        if name not in card.params:
            problems.append(str(unknown("setting", name, card.params, "It is named in [teacher.fits].")))
    for name, source in (card.teacher.follow if card.teacher else {}).items():
        for key in (name, source):
            if key not in card.params:
                problems.append(str(unknown("setting", key, card.params, "It is named in [teacher.follow].")))
    problems += _name_problems(card.params)
    for name, param in card.params.items():
        if why := value_problem(param, param.default):
            problems.append(f"params.{name}.default: {why}")
    return problems
