"""Plan a bench before anything runs: arms x seeds -> stages with keys, each key once.

Sharing needs no declaration: two arms whose stages have equal keys have one artefact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdzoo import catalog, execute, plugins
from kdzoo.arms import (
    Arm,
    arms_of,
    claims_on,
    directions,
    roles_of,
    select,
    settings_of,
    ships_of,
    stages_of,
)
from kdzoo.artefacts import key_of
from kdzoo.cards import Baseline, MethodCard, TaskCard
from kdzoo.claim_rows import validate
from kdzoo.errors import KdzooError, unknown
from kdzoo.runs import StageSpec
from kdzoo.settings import defined, parse_assignments, resolve

SMOKE_STEPS = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; all of it that can change a number enters keys and record."""

    method: str
    task: str | None = None
    profile: str = "local"
    seeds: int = 3
    first_seed: int = 0
    arms: str = "default"
    set: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    data_root: str | None = None
    smoke: bool = False


@dataclass(slots=True)
class Plan:
    """The stages of a bench. `runs` maps (arm, seed) to its stages in order; seed None for a shared arm."""

    request: Request
    card: MethodCard
    task: TaskCard
    arms: dict[str, Arm]
    all_arms: dict[str, Arm]
    settings: dict[str, dict[str, Any]]
    data: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, int | None], list[StageSpec]] = field(default_factory=dict)

    @property
    def specs(self) -> dict[str, StageSpec]:
        """Every artefact once, in an order that respects needs."""
        return {spec.key: spec for stages in self.runs.values() for spec in stages}


def choose_task(card: MethodCard, cards: catalog.Catalog, request: Request) -> TaskCard:
    """The task asked for, or the default of the profile."""
    if request.task is not None:
        task = cards.task(request.task)
        if task.slug not in card.tasks:
            raise unknown(
                f"task for {card.slug}",
                task.slug,
                card.tasks,
                f"{card.slug} runs on: {', '.join(card.tasks)}.",
            )
        return task
    uses = {name: use for name, use in card.tasks.items() if use.profile == request.profile}
    if not uses:
        raise KdzooError(
            f"{card.slug} has no profile {request.profile!r}, so there is nothing to train on; it has "
            f"{', '.join(sorted({use.profile for use in card.tasks.values()}))}. Choose one of these, or name a --task."
        )
    return cards.task(next(name for name, use in uses.items() if use.default))


def make_plan(request: Request) -> Plan:
    """Check everything that can be checked without training, and name every artefact."""
    if request.seeds < 1:
        raise KdzooError(
            f"--seeds got {request.seeds}, expected at least 1 (3 to test claims, 5 for a record)"
        )
    if request.seeds > 1000:
        raise KdzooError(
            f"--seeds got {request.seeds}, expected at most 1000: each seed trains every arm again"
        )
    cards = catalog.load()
    card = cards.method(request.method)
    task = choose_task(card, cards, request)
    if task.profile == "paper" and request.data_root is None:
        data = next(iter(task.data.values()))
        layout = "".join(f"\n  {line}" for line in data.text.splitlines())
        raise KdzooError(
            f"task {task.slug!r} trains on the paper's data: name its folder with --data-root DIR.\n"
            f"Expected in DIR:{layout}\nFrom: {data.source}\nTerms: {data.licence}\n"
            f"'kdzoo show {card.slug}' says what it costs to run."
        )
    all_arms = arms_of(cards, card, task)
    for claim in claims_on(card, task):
        validate(claim, list(all_arms), directions(task))
    params = defined(task, card)
    if isinstance(task.kd, Baseline):
        params = defined(task, cards.method(task.kd.method)) | params
    user = {**card.tasks[task.slug].bench, **parse_assignments(request.set, params)}
    if request.smoke:
        user |= {name: value for name, value in _smoke().items() if name in params}
    chosen = select(all_arms, request.arms, task)
    plan = Plan(request, card, task, chosen, all_arms, {})
    alone = resolve(task, None, user, {})
    versions = plugins.extension_versions(request.extensions)
    for arm in chosen.values():
        values = plan.settings[arm.name] = settings_of(arm, cards, task, user)
        stages = stages_of(arm, cards, task, values)
        seeded = arm.name != "teacher"
        seeds = range(request.first_seed, request.first_seed + request.seeds)
        for seed in seeds if seeded else [None]:
            plan.runs[(arm.name, seed)] = _specs(plan, arm, seed, stages, values, alone, versions, cards)
    return plan


def _smoke() -> dict[str, Any]:
    """Three steps and no validation on the way: does every path run?"""
    return {"steps": SMOKE_STEPS, "eval_every": 0, "warmup": 0}


def _specs(
    plan: Plan,
    arm: Arm,
    seed: int | None,
    stages: list[Any],
    values: Mapping[str, Any],
    teacher_values: Mapping[str, Any],
    versions: tuple[str, ...],
    cards: catalog.Catalog,
) -> list[StageSpec]:
    request = plan.request
    done: dict[str, StageSpec] = {}
    for stage in stages:
        shared = stage.name == "teacher"  # the task's own teacher: no arm's settings may reach it
        settings = {**(teacher_values if shared else values), **stage.set}
        if request.smoke:
            settings |= {name: value for name, value in _smoke().items() if name in settings}
        roles = stage.roles if stage.roles is not None else roles_of(arm, cards)
        spec = StageSpec(
            key="",
            task=plan.task.slug,
            method=None if shared else arm.method,
            arm="teacher" if shared else arm.name,
            seed=seed if stage.seeded else None,
            stage=replace(stage, roles=roles),
            settings=settings,
            roles=roles,
            ships=("student",) if shared else ships_of(arm, cards),
            needs={name: done[name].key for name in stage.needs},
            extensions=versions,
            device=request.device,
            dtype=request.dtype,
            threads=request.threads,
            data_root=request.data_root,
            smoke=request.smoke,
        )
        done[stage.name] = replace(spec, key=key_of(execute.key_content(spec, _data_hash(plan, spec))))
    return list(done.values())


def _data_hash(plan: Plan, spec: StageSpec) -> str:
    """Hashes are asked of the task once for each set of values that its settings take."""
    name = key_of(dict(spec.settings))
    if name not in plan.data:
        plan.data[name] = execute.data_hash(spec)
    return plan.data[name]
