"""A bench: plan, run, compare, answer, record."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from kdzoo import controls, plugins, records
from kdzoo.arms import claims_on, directions
from kdzoo.artefacts import Store, home, key_of, write_atomic
from kdzoo.cards import Baseline
from kdzoo.claims import Results, answer, bootstrap, paired
from kdzoo.errors import KdzooError
from kdzoo.method import EVALUATE, FIT
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.records import Record, RunRow
from kdzoo.runs import StageSpec
from kdzoo.workers import Event, Options, run_all

Manifests = Mapping[str, Mapping[str, Any]]


def run_bench(
    request: Request,
    options: Options,
    event: Event,
    command: str,
    measure_latency: bool = True,
    planned: Callable[[Plan], None] = lambda _: None,
) -> tuple[Record, Path]:
    """Run all arms and seeds and write the record; returns it and the folder it lies in."""
    plan = make_plan(request)
    check_writable(options.root)
    store = Store(options.root)
    if settled := controls.known(plan, store):
        plan = make_plan(request, settled)
    planned(plan)
    made = run_all(plan.specs, options, event)
    if plan.pending:
        plan = make_plan(request, settled | controls.measure(plan, made, store))
        planned(plan.without(made))
        made = run_all(plan.specs, options, event, made)
    main = int(os.environ.get("RANK", "0")) == 0  # under torchrun one process measures and writes
    latencies = _latencies(plan, made, options) if measure_latency and main else {}
    record = make_record(plan, made, store, command, latencies)
    folder = options.root / "benches" / f"{plan.card.slug}-{plan.task.slug}-{record.config_hash[:12]}"
    if main:
        records.write(record, folder / "record.json")
    return record, folder


def check_writable(root: Path) -> None:
    """Fail before training, not after it, where results could not be written."""
    probe = root / f".writable-{os.getpid()}"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


def _latencies(plan: Plan, made: Manifests, options: Options) -> dict[str, dict[str, float]]:
    """Latency of what each arm ships, one after the other with no worker running."""
    import torch

    from kdzoo.evaluate import latency_stage
    from kdzoo.execute import open_run

    torch.set_num_threads(plan.request.threads)
    store, found, seen = Store(options.root), {}, {}
    for (arm, _), specs in plan.runs.items():
        spec = specs[-1]
        if arm in found or "error" in made.get(spec.key, {"error": ""}):
            continue
        ships = made[spec.key]["facts"]["ships"]
        shape = key_of([[s["params"], s["flops"]] for s in ships.values()])
        if shape not in seen:  # arms that ship the same architecture share one measurement
            seen[shape] = latency_stage(open_run(spec, store, store.folder(spec.key)))
        found[arm] = dict(zip(ships, seen[shape].values(), strict=True))
    return found


def make_record(
    plan: Plan, made: Manifests, store: Store, command: str, latencies: Mapping[str, Mapping[str, float]]
) -> Record:
    """Put together what the stages left."""
    request = plan.request
    rows = [run_row(plan, arm, seed, made, latencies) for arm, seed in plan.runs]
    refuse_undeclared(plan, rows)
    controls.warn_of_idle(rows, plan.card.slug)
    unsaid = ("data_root", *(() if request.controls else ("controls",)))
    unsaid += ("signals",) if request.signals == "live" else ()
    config = {
        "request": {k: v for k, v in asdict(request).items() if k not in unsaid},
        "settings": plan.settings,
        "task": plan.task.slug,
        "data": sorted(set(plan.data.values())),
        **({"left_out": plan.left_out} if plan.left_out else {}),
    }
    results = results_of(rows)
    better = directions(plan.task)
    answers = [
        answer(claim, results, better, list(plan.all_arms)) for claim in claims_on(plan.card, plan.task)
    ]
    return Record(
        id={
            "method": plan.card.slug,
            "task": plan.task.slug,
            "profile": plan.task.profile,
            "method_version": plan.card.version,
            "task_version": plan.task.version,
            "fidelity": plan.card.fidelity,
            "extensions": list(plugins.extension_versions(request.extensions)),
            "smoke": request.smoke,
        },
        command=command,
        config=msgspec.to_builtins(config),
        config_hash=key_of(msgspec.to_builtins(config)),
        env=records.environment(request.device, request.dtype, request.threads),
        data={"hashes": sorted(set(plan.data.values())), "sizes": plan.task.sizes},
        arms={
            name: {
                "method": arm.method,
                "text": arm.text,
                "set": dict(arm.set),
                "stages": [spec.stage.name for spec in _first(plan, name)],
                "differs": list(arm.differs),
                "why": arm.why,
                "control": arm.control,
                **({"extensions": plugins.extension_versions(arm.extensions)} if arm.extensions else {}),
                "baseline": isinstance(plan.task.kd, Baseline) and plan.task.kd.method == name,
            }
            for name, arm in plan.arms.items()
        },
        stages={key: _stage_row(made[key]) for key in plan.specs if key in made and "error" not in made[key]},
        runs=rows,
        comparisons=_comparisons(plan, rows, store),
        claims=[msgspec.to_builtins(one) for one in answers],
        paper=[msgspec.to_builtins(result) for result in plan.card.results],
        failures=[
            {
                "stage": spec.stage.name,
                "arm": spec.arm,
                "seed": spec.seed,
                **made.get(key, {"error": "never ran"}),
            }
            for key, spec in plan.specs.items()
            if key not in made or "error" in made[key]
        ],
        made_at=records.now(),
    )


def _first(plan: Plan, arm: str) -> list[Any]:
    return next(specs for (name, _), specs in plan.runs.items() if name == arm)


def _stage_row(manifest: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "call", "version", "source_hash", "needs", "method", "seed", "seconds", "cost", "reused")
    return {name: manifest[name] for name in kept}


def _start_of(specs: Sequence[StageSpec], manifests: Sequence[Mapping[str, Any]]) -> str | None:
    """The start of what ships: that of the first training whose weights reach the last one, as a role of it or of one
    between them.

    A critic that chooses the data is trained before the student and is no role beside it: not where that starts.
    """
    fits = {
        spec.stage.name: (spec, manifest["facts"]["init_hash"])
        for spec, manifest in zip(specs, manifests, strict=True)
        if spec.stage.seeded and manifest["call"] == FIT
    }
    start, reached = None, {next(reversed(fits), None)}
    for name in reversed(fits):
        if name in reached:
            spec, start = fits[name]
            reached |= {role.source.removeprefix("stage:").partition("/")[0] for role in spec.roles}
    return start


def run_row(
    plan: Plan, arm: str, seed: int | None, made: Manifests, latencies: Mapping[str, Mapping[str, float]]
) -> RunRow:
    """One arm at one seed, its costs added over its own stages."""
    specs = plan.runs[(arm, seed)]
    manifests = [made.get(spec.key, {"error": "never ran"}) for spec in specs]
    if any("error" in manifest for manifest in manifests):
        return RunRow(arm=arm, seed=seed, status="failed")
    own = [m for m, spec in zip(manifests, specs, strict=True) if spec.stage.seeded and m["call"] != EVALUATE]
    fit = next((m for m in reversed(own) if m["call"] == FIT), None)
    last = manifests[-1]
    ships = {role: dict(facts) for role, facts in last["facts"].get("ships", {}).items()}
    for role, milliseconds in latencies.get(arm, {}).items():
        ships[role]["latency_ms"] = milliseconds
    cost: dict[str, Any] = {}
    for manifest in own:
        for name, value in manifest["cost"].items():
            if name == "peak_memory_bytes":
                cost[name] = max(cost.get(name, 0), value)
            elif isinstance(value, dict):
                cost[name] = {k: cost.get(name, {}).get(k, 0) + v for k, v in value.items()}
            else:
                cost[name] = cost.get(name, 0) + value
    metrics = dict(last["metrics"])
    for name in ("seconds", "steps"):
        if name in cost:
            metrics[f"cost/{name}"] = {"value": cost[name], "n": 1}
    warnings = [
        f"stage {m['name']!r} was made by other source code than is installed now; raise its version if results change"
        for m in manifests
        if m.get("source_changed")
    ]
    warnings += [
        f"{part} of {signal} as recorded and live differ by {fact['apart']:.1g} of the largest value in the first "
        "batch: the teacher's kernels treat batches of other sizes otherwise, so this is not the live result to the bit"
        for m in own
        for signal, facts in m["facts"].get("signals", {}).items()
        for part, fact in facts.items()
        if part != "live" and not fact["exact"]
    ]
    return RunRow(
        arm=arm,
        seed=seed,
        status="done",
        init_hash=_start_of(specs, manifests),
        order_hash=fit["facts"]["order_hash"] if fit else None,
        steps=sum(m["cost"]["steps"] for m in own),
        examples=sum(m["cost"]["examples"] for m in own),
        metrics=metrics,
        curves=fit["curves"] if fit else {},
        losses=fit["logs"] if fit else {},
        items=last["key"] if any(name == "items.safetensors" for name in last["files"]) else None,
        cost=cost,
        ships=ships,
        reliability=last["facts"].get("reliability", {}),
        warnings=warnings,
    )


def refuse_undeclared(plan: Plan, rows: list[RunRow]) -> None:
    """An arm that had another start, order or budget than the student at the same seed must have said so."""
    for row in rows:
        alone = next((r for r in rows if r.arm == "student" and r.seed == row.seed), None)
        if (
            row.status != "done"
            or alone is None
            or alone.status != "done"
            or row is alone
            or row.seed is None
        ):
            continue
        found = {
            "init": row.init_hash != alone.init_hash,
            "order": row.order_hash != alone.order_hash,
            "steps": row.steps != alone.steps,
            "size": {r: s["params"] for r, s in row.ships.items()}
            != {r: s["params"] for r, s in alone.ships.items()},
        }
        undeclared = [
            name for name, differs in found.items() if differs and name not in plan.arms[row.arm].differs
        ]
        if undeclared:
            row.status = "refused"
            row.warnings.append(
                f"differs from the student arm in {', '.join(undeclared)} without saying so in the card: the "
                "comparison would not be fair. Declare differs and why in the arm, or make them equal."
            )


def results_of(rows: list[RunRow]) -> Results:
    """What `claims.answer` reads."""
    done = [row for row in rows if row.status == "done"]

    def table(pick: Callable[[RunRow], Any]) -> dict[str, dict[int | None, Any]]:
        whole: dict[str, dict[int | None, Any]] = {}
        for row in done:
            whole.setdefault(row.arm, {})[row.seed] = pick(row)
        return whole

    return Results(
        values=table(lambda row: {name: m["value"] for name, m in row.metrics.items()}),
        counts=table(lambda row: {name: m["n"] for name, m in row.metrics.items()}),
        curves=table(lambda row: row.curves),
        budgets=table(lambda row: row.steps),
    )


def _comparisons(plan: Plan, rows: list[RunRow], store: Store) -> list[dict[str, Any]]:
    """Paired differences of every arm to the student and to the baseline, on every declared test metric.

    A metric that is measured of several models or on subsets, ``test/knn[model=cnn]``, is compared in each of them.
    """
    results = results_of(rows)
    against = ["student"]
    if isinstance(plan.task.kd, Baseline) and plan.task.kd.method in plan.arms:
        against.append(plan.task.kd.method)
    measured = list(dict.fromkeys(name for row in rows for name in row.metrics))
    names: list[str] = []
    for metric in plan.task.metrics:
        names += [f"test/{metric}", *(name for name in measured if name.startswith(f"test/{metric}["))]
    found = []
    for name in names:
        for arm in plan.arms:
            for other in against:
                if arm == other or arm not in results.values or other not in results.values:
                    continue
                mine = {seed: values.get(name) for seed, values in results.values[arm].items()}
                theirs = {seed: values.get(name) for seed, values in results.values[other].items()}
                row = {"arms": [arm, other], "metric": name, **msgspec.structs.asdict(paired(mine, theirs))}
                # The numbers of a smoke run mean nothing: seconds of resampling would be spent on noise.
                interval = None if plan.request.smoke else _item_interval(arm, other, name, rows, store)
                if interval is not None:
                    row["items_low"], row["items_high"] = interval
                found.append(row)
    return found


def _item_interval(
    arm: str, other: str, name: str, rows: list[RunRow], store: Store
) -> tuple[float, float] | None:
    """A bootstrap over test items: the seeds share one test set, so their interval says nothing about it."""
    import numpy as np
    from safetensors import safe_open

    def items(which: str) -> Any:
        found = []
        for row in rows:
            if row.arm == which and row.status == "done" and row.items:
                with safe_open(store.folder(row.items) / "items.safetensors", "np") as file:
                    if name in list(file.keys()):
                        found.append(file.get_tensor(name))
        return np.stack(found) if found else None

    mine, theirs = items(arm), items(other)
    if mine is None or theirs is None or mine.shape[1] != theirs.shape[1]:
        return None
    low, high = bootstrap(mine, theirs, np.random.default_rng(0))
    return float(low), float(high)


def default_options(jobs: int | None, resume: bool, fresh: bool, device: str) -> Options:
    """As many workers as cores, or as GPUs; one process under torchrun."""
    if jobs is not None and jobs < 0:
        raise KdzooError(f"--jobs got {jobs}, expected 0 (no worker process) or more")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        jobs = 0
    if jobs is None:
        if device.startswith("cuda"):
            import torch

            jobs = max(1, torch.cuda.device_count())
        else:
            jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Options(home(), jobs, resume, fresh)
