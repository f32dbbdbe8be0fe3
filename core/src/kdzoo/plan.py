"""Plan a bench before anything runs: arms x seeds -> stages with keys, each key once.

Sharing needs no declaration: two arms whose stages have equal keys have one artefact.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdzoo import catalog, execute, plugins, signal_choice
from kdzoo.arms import (
    Arm,
    arms_of,
    claims_on,
    directions,
    roles_of,
    select,
    settings_of,
    ships_of,
    split,
    stages_of,
)
from kdzoo.artefacts import key_of
from kdzoo.cards import Baseline, MethodCard, TaskCard
from kdzoo.claim_rows import validate
from kdzoo.controls import SMOOTHING, controls_of, entropy_stage_of
from kdzoo.errors import KdzooError, unknown
from kdzoo.pairs import refuse_impossible
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
    controls: bool = False
    signals: str = "live"


@dataclass(slots=True)
class Plan:
    """The stages of a bench.

    Attributes:
        runs: (arm, seed) -> its stages in order; seed None for a shared arm.
        pending: controls that cannot be planned before their numbers are settled (`kdzoo.controls`).
        left_out: controls that this bench cannot have, with the reason.
        questions: stages that settle a control's number, by key; part of no run.
    """

    request: Request
    card: MethodCard
    task: TaskCard
    arms: dict[str, Arm]
    all_arms: dict[str, Arm]
    settings: dict[str, dict[str, Any]]
    data: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, int | None], list[StageSpec]] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    questions: dict[str, StageSpec] = field(default_factory=dict)

    @property
    def specs(self) -> dict[str, StageSpec]:
        """Every artefact once, in an order that respects needs."""
        return {spec.key: spec for stages in self.runs.values() for spec in stages} | self.questions

    def without(self, made: Container[str]) -> Plan:
        """The part of the plan that is not among the keys `made`: what is still to be shown as work."""
        runs = {
            run: left
            for run, specs in self.runs.items()
            if (left := [spec for spec in specs if spec.key not in made])
        }
        return replace(self, runs=runs, questions={k: s for k, s in self.questions.items() if k not in made})

    def data_hash(self, spec: StageSpec) -> str:
        """Hashes are asked of the task once for each set of values that its settings take."""
        name = key_of(dict(spec.settings))
        if name not in self.data:
            self.data[name] = execute.data_hash(spec)
        return self.data[name]


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


def make_plan(request: Request, settled: Mapping[str, Mapping[str, Any]] | None = None) -> Plan:
    """Check everything that can be checked without training, and name every artefact.

    `settled` holds what is known of the controls whose numbers are measured; others of them stay pending.
    """
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
    controls, left_out = controls_of(card, task)
    for claim in claims_on(card, task):
        validate(claim, [*all_arms, *controls], directions(task))
    params = defined(task, card)
    if isinstance(task.kd, Baseline):
        params = defined(task, cards.method(task.kd.method)) | params
    user = {**card.tasks[task.slug].bench, **parse_assignments(request.set, params)}
    if request.smoke:
        user |= {name: value for name, value in _smoke().items() if name in params}
    chosen, all_arms = _with_controls(request, task, all_arms, controls)
    plan = Plan(request, card, task, {}, all_arms, {}, left_out=left_out if request.controls else {})
    alone = resolve(task, None, user, {})
    versions = plugins.extension_versions(request.extensions)
    for arm in _settle(plan, chosen, settled or {}):
        plan.arms[arm.name] = arm
        values = plan.settings[arm.name] = settings_of(arm, cards, task, user)
        refuse_impossible(arm, cards, task, values)
    if "entropy" in {arm.settled_by for arm in chosen.values()}:
        taught = settings_of(all_arms[card.slug], cards, task, user)
        stage = entropy_stage_of(task, float(taught.get("temperature") or 1.0), alone)
        before = [s for s in stages_of(all_arms["student"], cards, task, alone) if s.name == "teacher"]
        arm = replace(chosen[SMOOTHING], set={})
        values = settings_of(arm, cards, task, user)
        asked = _specs(plan, arm, None, [*before, stage], values, alone, versions, cards)
        plan.questions = {spec.key: spec for spec in asked}
    for arm in plan.arms.values():
        values = plan.settings[arm.name]
        stages = stages_of(arm, cards, task, values)
        seeded = arm.name != "teacher"
        seeds = range(request.first_seed, request.first_seed + request.seeds)
        for seed in seeds if seeded else [None]:
            plan.runs[(arm.name, seed)] = _specs(plan, arm, seed, stages, values, alone, versions, cards)
    _check_signals(plan, cards)
    return plan


def _check_signals(plan: Plan, cards: catalog.Catalog) -> None:
    """Refuse teacher signals that cannot be served to one of the arms, before weights load."""
    choice = signal_choice.parse(plan.request.signals)
    if choice != signal_choice.LIVE:
        methods = [(arm.name, cards.method(arm.method)) for arm in plan.arms.values() if arm.method]
        spec = next(specs[0] for (arm, _), specs in plan.runs.items() if arm != "teacher")
        signal_choice.check(choice, plan.task, methods, bool(execute.fixed_splits(spec)))


def _with_controls(
    request: Request, task: TaskCard, all_arms: dict[str, Arm], controls: Mapping[str, Arm]
) -> tuple[dict[str, Arm], dict[str, Arm]]:
    """(the arms of this bench, all that it could have had): controls come when asked for, by option or by name."""
    named = {part.strip() for part in split(request.arms)} & controls.keys()
    chosen = select({**all_arms, **{name: controls[name] for name in named}}, request.arms, task)
    pool = {**all_arms, **{name: arm for name, arm in controls.items() if request.controls or name in named}}
    asked = {name for name, arm in pool.items() if arm.control and request.controls}
    return {name: arm for name, arm in pool.items() if name in chosen or name in asked}, pool


def _settle(plan: Plan, chosen: Mapping[str, Arm], settled: Mapping[str, Mapping[str, Any]]) -> Iterator[Arm]:
    """The arms that can be planned now; those that wait for a number are noted as pending, or as left out."""
    for arm in chosen.values():
        if not arm.settled_by:
            yield arm
        elif arm.name not in settled:
            plan.pending.append(arm.name)
        elif "left_out" in settled[arm.name]:
            plan.left_out[arm.name] = settled[arm.name]["left_out"]
        else:
            yield replace(arm, **settled[arm.name])


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
    own = plugins.extension_versions(arm.extensions)
    done: dict[str, StageSpec] = {}
    for stage in stages:
        shared = stage.name == "teacher"  # the task's own teacher: no arm's settings may reach it
        settings = {**(teacher_values if shared else values), **stage.set}
        if request.smoke:
            settings |= {name: value for name, value in _smoke().items() if name in settings}
        roles = stage.roles if stage.roles is not None else roles_of(arm, cards, plan.task)
        spec = StageSpec(
            key="",
            task=plan.task.slug,
            method=None if shared else arm.method,
            arm="teacher" if shared else arm.name,
            seed=seed if stage.seeded else None,
            stage=replace(stage, roles=roles),
            settings=settings,
            roles=roles,
            ships=("student",) if shared else ships_of(arm, cards, plan.task),
            needs={name: done[name].key for name in stage.needs},
            extensions=versions if shared else tuple(dict.fromkeys((*versions, *own))),
            device=request.device,
            dtype=request.dtype,
            threads=request.threads,
            data_root=request.data_root,
            smoke=request.smoke,
            signals=str(signal_choice.parse(request.signals)),
        )
        done[stage.name] = replace(spec, key=key_of(execute.key_content(spec, plan.data_hash(spec))))
    return list(done.values())
