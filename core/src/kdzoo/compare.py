"""Several methods on the same tasks: one table, all paired differences, ranks with their tests.

The runs are those of the methods' benches, artefact by artefact: what a bench has made is reused here, and the other
way round. A bench may change models and schedule for all its arms (`bench` in the card's `[tasks.X]`); where two
methods do so differently there is no common student to compare them by, and the comparison is refused.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from kdzoo import catalog, records
from kdzoo.artefacts import dump_json, key_of, write_atomic
from kdzoo.bench import Manifests, check_writable, refuse_undeclared, results_of, run_row
from kdzoo.cards import Baseline, MethodCard, TaskCard
from kdzoo.claims import MIN_SEEDS_TESTABLE
from kdzoo.errors import KdzooError
from kdzoo.intervals import BySeed, common_seeds, mean_interval, paired, sd
from kdzoo.metric_names import Better, MetricName, better_of, parse
from kdzoo.plan import Plan, Request, directions, make_plan
from kdzoo.ranks import Test, critical_difference, friedman, holm, paired_p, ranks
from kdzoo.records import RunRow
from kdzoo.settings import defined, parse_assignments
from kdzoo.workers import Event, Options, run_all

SCHEMA = 1


class Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An arm on a task: value by seed (None for a model that all seeds share), mean and differences of them."""

    arm: str
    values: dict[str, float]
    mean: float | None
    sd: float | None
    n: int
    to_student: dict[str, Any] | None = None
    to_baseline: dict[str, Any] | None = None


class Difference(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Mean of a - b over common seeds with its 95 % interval; p of a paired t test, before and after Holm."""

    arms: tuple[str, str]
    n: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None = None
    p_holm: float | None = None


class TaskPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What one task says."""

    metric: str
    better: Better
    baseline: str | None
    rows: list[Row]
    differences: list[Difference]
    settings: dict[str, dict[str, Any]]


class Comparison(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole answer; docs/compare.md describes the fields."""

    schema: int = SCHEMA
    methods: list[str]
    seeds: list[int]
    smoke: bool
    tasks: dict[str, TaskPart]
    blocks: list[dict[str, Any]]
    ranks: dict[str, float]
    friedman: dict[str, float] | None
    critical_difference: float | None
    notes: list[str]
    failures: list[dict[str, Any]]
    command: str
    env: dict[str, Any]
    made_at: str


# --- what is to be run ----------------------------------------------------------------------------------------------


def common_tasks(methods: Sequence[str], tasks: Sequence[str], profile: str = "local") -> list[TaskCard]:
    """The tasks asked for, or the default task of the first method; refused where a method does not run on one."""
    cards = catalog.load()
    found = [cards.method(slug) for slug in methods]
    if len(methods) < 2:
        raise KdzooError(
            f"compare got {len(methods)} method{'' if methods else 's'}, expected at least 2: one alone has nothing to "
            "be ranked against. 'kdzoo bench' runs one method against the student and the baseline."
        )
    if twice := [slug for slug in methods if methods.count(slug) > 1]:
        raise KdzooError(f"compare got {twice[0]} twice: its ranks would be ties with itself. Name it once.")
    if twice := [task for task in tasks if tasks.count(task) > 1]:
        raise KdzooError(f"--task {twice[0]} is given twice: its seeds would count double. Name it once.")
    if not tasks:
        first = [name for name, use in found[0].tasks.items() if use.profile == profile and use.default]
        tasks = first or list(found[0].tasks)[:1]
    chosen = [cards.task(task) for task in tasks]
    lost = [(card, task.slug) for task in chosen for card in found if task.slug not in card.tasks]
    if lost:
        shared = [name for name in found[0].tasks if all(name in card.tasks for card in found)]
        said = "; ".join(f"{card.slug} runs on {', '.join(card.tasks)}, not on {task}" for card, task in lost)
        able = (
            f"All of them run on {', '.join(shared)}: name it with --task."
            if shared
            else "They share no task."
        )
        raise KdzooError(f"{said}. Nothing could be compared there. {able}")
    return chosen


def metric_of(task: TaskCard, wanted: str | None) -> tuple[MetricName, Better]:
    """The metric that ranks on a task, and which way it is better: its primary one, or the one asked for."""
    primary = next(name for name, metric in task.metrics.items() if metric.primary)
    text = wanted or primary
    name = parse(text if "/" in text else f"test/{text}")
    better = better_of(name, directions(task))
    if name.derive or name.split not in ("test", "cost"):
        raise KdzooError(
            f"--metric {wanted}: methods are ranked by what is measured at the end, test/... or cost/seconds; "
            f"{name.split!r} is measured on the way and is for choices. Name such a metric: test/{primary}."
        )
    return name, better


def plan_task(
    methods: Sequence[str], task: TaskCard, request: Request, assignments: Mapping[str, str]
) -> Plan:
    """One plan of all methods' main arms on a task, with teacher, student and baseline, from the plans of the benches.

    Raises:
        KdzooError: two benches would train the student, or another arm, differently.
    """
    cards = catalog.load()
    whole: Plan | None = None
    for slug in methods:
        card = cards.method(slug)
        given = tuple(
            f"{name}={value}" for name, value in assignments.items() if name in settings_on(card, task)
        )
        arms = f"kd,{slug}" if isinstance(task.kd, Baseline) else slug
        plan = make_plan(replace(request, method=slug, task=task.slug, arms=arms, set=given))
        if whole is None:
            whole = plan
            continue
        _same(whole, plan)
        whole.arms |= plan.arms
        whole.all_arms |= plan.all_arms
        whole.settings |= {
            name: values for name, values in plan.settings.items() if name not in whole.settings
        }
        whole.runs |= plan.runs
    assert whole is not None
    return whole


def settings_on(card: MethodCard, task: TaskCard) -> dict[str, Any]:
    """The settings that a bench of a method on a task knows: its own, the task's, the baseline's."""
    baseline = catalog.load().method(task.kd.method) if isinstance(task.kd, Baseline) else None
    return {**defined(task, baseline), **defined(task, card)}


def assignments_of(given: Sequence[str], methods: Sequence[str], tasks: Sequence[TaskCard]) -> dict[str, str]:
    """``--set`` by name, each checked against the settings of all methods and tasks."""
    cards = catalog.load()
    known: dict[str, Any] = {}
    for task, slug in itertools.product(tasks, methods):
        known |= settings_on(cards.method(slug), task)
    parse_assignments(given, known)
    pairs = (text.partition("=") for text in given)
    return {name.strip(): value for name, _, value in pairs}


def _same(one: Plan, other: Plan) -> None:
    """Arms of one name must be one training."""
    for run in one.runs.keys() & other.runs.keys():
        if [spec.key for spec in one.runs[run]] == [spec.key for spec in other.runs[run]]:
            continue
        arm = run[0]
        mine, theirs = one.settings[arm], other.settings[arm]
        apart = {
            name: (mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        }
        said = ", ".join(f"{name} = {a} and {b}" for name, (a, b) in apart.items())
        raise KdzooError(
            f"the benches of {one.card.slug} and {other.card.slug} on {one.task.slug} train the arm {arm!r} "
            f"differently: {said or 'in their roles or versions'}. Methods with different students cannot be ranked. "
            f"Give both the same: {' '.join(f'--set {name}=VALUE' for name in apart)}".rstrip()
        )


# --- running and answering ------------------------------------------------------------------------------------------


def run_compare(
    methods: Sequence[str],
    tasks: Sequence[TaskCard],
    request: Request,
    options: Options,
    event: Event,
    command: str,
    metric: str | None = None,
    planned: Callable[[Plan], None] = lambda _: None,
) -> tuple[Comparison, Path]:
    """Run what is missing, compare, and keep the answer; returns it and the folder it lies in.

    `request` holds the settings of the runs; its method, task and arms are filled in here.
    """
    named = {task.slug: metric_of(task, metric) for task in tasks}  # a wrong name costs no training
    assignments = assignments_of(request.set, methods, tasks)
    plans = [plan_task(methods, task, request, assignments) for task in tasks]
    check_writable(options.root)
    parts: dict[str, TaskPart] = {}
    failures: list[dict[str, Any]] = []
    notes: list[str] = []
    for plan in plans:
        planned(plan)
        made = run_all(plan.specs, options, event)
        rows = [run_row(plan, arm, seed, made, {}) for arm, seed in plan.runs]
        refuse_undeclared(plan, rows)
        failures += _failures(plan, made, rows)
        name, better = named[plan.task.slug]
        parts[plan.task.slug] = task_part(plan, rows, methods, str(name), better)
    seeds = range(request.first_seed, request.first_seed + request.seeds)
    answer = rank(parts, methods, list(seeds), notes)
    whole = Comparison(
        methods=list(methods),
        seeds=list(seeds),
        smoke=request.smoke,
        tasks=parts,
        notes=notes,
        failures=failures,
        command=command,
        env=records.environment(request.device, request.dtype, request.threads),
        made_at=records.now(),
        **answer,
    )
    asked = {
        "methods": list(methods),
        "tasks": {slug: [part.metric, part.settings] for slug, part in parts.items()},
        "seeds": list(seeds),
        "made by": [request.device, request.dtype, request.threads, request.smoke],
    }
    folder = options.root / "compares" / f"{'-'.join(sorted(methods))[:60]}-{key_of(asked)[:12]}"
    write(whole, folder / "compare.json")
    return whole, folder


def _failures(plan: Plan, made: Manifests, rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    """Stages that failed, and runs that were refused: neither takes part."""
    found = [
        {"task": plan.task.slug, "arm": spec.arm, "seed": spec.seed, "stage": spec.stage.name, **made[key]}
        for key, spec in plan.specs.items()
        if "error" in made.get(key, {})
    ]
    refused = [row for row in rows if row.status == "refused"]
    return found + [
        {
            "task": plan.task.slug,
            "arm": row.arm,
            "seed": row.seed,
            "stage": "record",
            "error": row.warnings[-1],
        }
        for row in refused
    ]


def task_part(
    plan: Plan, rows: list[RunRow], methods: Sequence[str], metric: str, better: Better
) -> TaskPart:
    """Means and paired differences on one task.

    Raises:
        KdzooError: the runs finished, but the metric was not measured in them.
    """
    read = results_of(rows).values
    values = {
        arm: {seed: found[metric] for seed, found in by_seed.items() if _finite(found.get(metric))}
        for arm, by_seed in read.items()
    }
    if any(read.values()) and not any(values.get(slug) for slug in methods):
        measured = sorted({name for by_seed in read.values() for found in by_seed.values() for name in found})
        raise KdzooError(
            f"--metric {metric} was not measured on {plan.task.slug}, where {', '.join(measured)} were. The runs are "
            "kept: the same command with another metric takes no time."
        )
    baseline = plan.task.kd.method if isinstance(plan.task.kd, Baseline) else None
    found = []
    for arm in plan.arms:
        mine = values.get(arm, {})
        numbers = list(mine.values())
        found.append(
            Row(
                arm=arm,
                values={"all" if seed is None else str(seed): value for seed, value in mine.items()},
                mean=statistics.fmean(numbers) if numbers else None,
                sd=sd(numbers),
                n=len(numbers),
                to_student=_to(values, arm, "student"),
                to_baseline=_to(values, arm, baseline),
            )
        )
    differences = [difference(values, pair) for pair in itertools.combinations(methods, 2)]
    tested = [one for one in differences if one.p is not None]
    for one, corrected in zip(tested, holm([one.p for one in tested if one.p is not None]), strict=True):
        one.p_holm = corrected
    return TaskPart(
        metric=metric,
        better=better,
        baseline=baseline,
        rows=found,
        differences=differences,
        settings=plan.settings,
    )


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _to(values: Mapping[str, BySeed], arm: str, other: str | None) -> dict[str, Any] | None:
    if other is None or arm == other or not values.get(arm) or not values.get(other):
        return None
    return msgspec.structs.asdict(paired(values[arm], values[other]))


def difference(values: Mapping[str, BySeed], pair: tuple[str, str]) -> Difference:
    """a - b over the seeds that both have; a test where there are enough of them."""
    a, b = (values.get(arm) or {} for arm in pair)
    apart = [a[seed] - b[seed] for seed in common_seeds([a, b])] if a and b else []
    interval = mean_interval(apart)
    p = paired_p(apart) if len(apart) >= MIN_SEEDS_TESTABLE else None
    return Difference(arms=pair, n=interval.n, mean=interval.mean, low=interval.low, high=interval.high, p=p)


def rank(
    parts: Mapping[str, TaskPart], methods: Sequence[str], seeds: Sequence[int], notes: list[str]
) -> dict[str, Any]:
    """Ranks in every block (task, seed) that all methods finished, their means, and the tests; says what is missing."""
    blocks: list[dict[str, Any]] = []
    fewest = len(seeds)
    for slug, part in parts.items():
        values = {row.arm: row.values for row in part.rows}
        whole = [seed for seed in map(str, seeds) if all(seed in values.get(m, {}) for m in methods)]
        fewest = min(fewest, len(whole))
        if len(whole) < len(seeds):
            notes.append(
                f"{slug}: {len(seeds) - len(whole)} of {len(seeds)} seeds left out, not finished by all"
            )
        for seed in whole:
            row = [values[method][seed] for method in methods]
            placed = dict(zip(methods, ranks(row, part.better), strict=True))
            blocks.append({"task": slug, "seed": int(seed), "ranks": placed})
    means = {m: statistics.fmean(block["ranks"][m] for block in blocks) for m in methods} if blocks else {}
    test: Test | None = None
    critical: float | None = None
    if fewest < MIN_SEEDS_TESTABLE:
        notes.append(
            f"ranks are not testable: {fewest} seed{'' if fewest == 1 else 's'} that all methods finished, needed: "
            f"{MIN_SEEDS_TESTABLE}"
        )
    else:
        test = friedman([[block["ranks"][m] for m in methods] for block in blocks])
        critical = critical_difference(len(methods), len(blocks))
        notes.append(
            "blocks are (task, seed): the tests say whether other seeds on these tasks would rank alike, and nothing "
            "of other tasks"
        )
    return {
        "blocks": blocks,
        "ranks": means,
        "friedman": None if test is None else test._asdict(),
        "critical_difference": critical,
    }


# --- keeping it -----------------------------------------------------------------------------------------------------


def to_json(whole: Comparison) -> bytes:
    """Readable JSON, keys sorted."""
    return dump_json(msgspec.to_builtins(whole))


def plot(whole: Comparison) -> str | None:
    """The critical-difference plot; None where there is no block to rank in."""
    from kdzoo.report.critical import critical_svg

    if not whole.ranks:
        return None
    tasks = ", ".join(f"{part.metric} on {slug}" for slug, part in whole.tasks.items())
    count = len(whole.blocks)
    caption = [tasks, f"mean ranks over {count} block{'' if count == 1 else 's'} (task, seed); 1 is best"]
    tested = whole.critical_difference is not None
    caption.append(
        "under one bar: not shown to differ (Nemenyi, 5 %)" if tested else "not testable: too few seeds"
    )
    if whole.smoke:
        caption.append("smoke run: the numbers mean nothing")
    return critical_svg(whole.ranks, whole.critical_difference, caption)


def write(whole: Comparison, path: Path) -> None:
    """The data as JSON, and beside it the plot as SVG."""
    write_atomic(path, to_json(whole))
    if (drawing := plot(whole)) is not None:
        write_atomic(path.with_suffix(".svg"), drawing.encode())
