"""Make one artefact: the only place where a stage function is called."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch

from kdzoo import builtin, catalog, plugins
from kdzoo.artefacts import Store, disk_errors, key_of, write_atomic
from kdzoo.cards import is_shipped
from kdzoo.device import Device, launched_ranks, open_device
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import PROJECT
from kdzoo.method import EVALUATE, Stage
from kdzoo.reliability import reliability
from kdzoo.runs import Run, StageSpec
from kdzoo.settings import Settings, restrict
from kdzoo.task import Data

MARK = f"{PROJECT}_impl"  # what pluggy's marker leaves on a hook implementation

Report = Callable[[dict[str, Any]], None]


def modules_of(task: str, method: str | None, extensions: tuple[str, ...]) -> list[tuple[str, ModuleType]]:
    """The plugins of a stage in registration order: core, task, method, extensions."""
    cards = catalog.load()
    found = [("core", builtin.engine()), ("task", cards.module(task))]
    if method is not None:
        found.append(("method", cards.module(method)))
    known = plugins.extensions()
    found += [(f"extension:{name}", known[name.partition("==")[0]].load()) for name in extensions]
    return found


OWN_SPLITS = ("train", "pool")
"""Splits that a method may serve itself. What is measured and chosen on stays the task's."""


def serve(run: Run, split: str) -> Data:
    """A split, as the method's module serves it where it does (what an earlier stage has generated), else the task's."""
    cards = catalog.load()
    own = getattr(cards.module(run.spec.method), "data", None) if run.spec.method else None
    if own is not None and split in OWN_SPLITS:
        made: Data | None = own(run, split)
        if made is not None:
            return made
    data: Data = cards.module(run.spec.task).data(run, split)
    return data


def key_content(spec: StageSpec, data_hash: str) -> dict[str, Any]:
    """Everything the result of a stage depends on."""
    cards, stage = catalog.load(), spec.stage
    method = cards.method(spec.method) if spec.method else None
    return {
        "call": stage.call,
        "version": stage.version,
        "name": stage.name,
        "settings": restrict(spec.settings, stage.reads),
        "needs": dict(sorted(spec.needs.items())),
        "roles": [[role.name, role.kind, role.source, role.seed] for role in spec.roles],
        "ships": list(spec.ships),
        "task": [spec.task, cards.task(spec.task).version],
        "teacher": teacher_hash(spec),
        "method": [spec.method, method.version] if method else None,
        "data": data_hash,
        "seed": spec.seed,
        "extensions": list(spec.extensions),
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "device": torch.device(spec.device).type,
        "dtype": spec.dtype,
        "threads": spec.threads,
        "smoke": spec.smoke,
        # Even where recorded answers equal live ones to the bit, that is measured, not known beforehand.
        **({"signals": spec.signals} if pulls_recorded(spec) else {}),
        # Batch norm sees a rank's share of the batch only.
        **({"ranks": ranks} if (ranks := launched_ranks()) > 1 else {}),
    }


def pulls_recorded(spec: StageSpec) -> bool:
    """Whether recorded answers may take part in the result of a stage."""
    frozen = any(role.kind == "frozen" for role in spec.roles)
    return spec.signals != "live" and frozen and spec.stage.call != EVALUATE


def fixed_splits(spec: StageSpec) -> list[str]:
    """The training streams of the task that show a sample the same way each time, under these settings."""
    module, streams = catalog.load().module(spec.task), catalog.load().task(spec.task).streams
    return [one.split for one in streams if module.data(_Planner(spec), one.split).fixed_views]


def teacher_hash(spec: StageSpec) -> str | None:
    """The hash of the shipped teacher, where a role of the stage is it."""
    teacher = catalog.load().task(spec.task).teacher
    asked = any(role.source == "task" for role in spec.roles)
    return teacher.sha256 if asked and teacher and is_shipped(teacher, spec.settings) else None


def source_hash(spec: StageSpec) -> str:
    """sha256 over the code of the stage's function and of every hook of the task and the method.

    Over the code as Python reads it: layout, comments and docstrings change no result. A hook that a task imports
    from a module it shares with others counts with that whole module.
    """
    module = importlib.import_module(spec.stage.call.partition(":")[0]).__name__
    cards = catalog.load()
    plugged = [cards.module(spec.task), *([cards.module(spec.method)] if spec.method else [])]
    names = {module, *(part.__name__ for part in plugged)}
    names |= {hook.__module__ for part in plugged for hook in vars(part).values() if hasattr(hook, MARK)}
    return hashlib.sha256("".join(_code(sys.modules[name]) for name in sorted(names)).encode()).hexdigest()[
        :16
    ]


def _code(module: ModuleType) -> str:
    """A module's syntax tree without docstrings, as text."""
    path = Path(module.__file__ or "")
    found = path.stat()
    return _code_of(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _code_of(path: Path, modified: int, size: int) -> str:
    """Parsed once a state of the file: every stage of a bench asks for the same modules."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        scope = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if scope and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
            node.body = node.body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)


def open_run(
    spec: StageSpec,
    store: Store,
    folder: Path,
    report: Report = lambda _: None,
    device: Device | None = None,
) -> Run:
    """The `Run` of a stage, with fresh hooks."""
    cards = catalog.load()
    return Run(
        spec=spec,
        task=cards.task(spec.task),
        method=cards.method(spec.method) if spec.method else None,
        manager=plugins.run_manager(modules_of(spec.task, spec.method, spec.extensions)),
        serve=serve,
        folder=folder,
        inputs={name: store.folder(key) for name, key in spec.needs.items()},
        device=device or open_device(spec.device, spec.dtype),
        report=report,
    )


def execute(
    spec: StageSpec,
    store: Store,
    *,
    resume: bool = True,
    fresh: bool = False,
    report: Report = lambda _: None,
    started: Callable[[Run], None] = lambda _: None,
) -> dict[str, Any]:
    """Find or make the artefact of a stage; returns its manifest, with ``reused``.

    `resume` goes on from a checkpoint, where one is; `fresh` makes it again although it is whole.

    Under torchrun every rank calls this for the same stages in the same order. Rank 0 alone holds the lock, decides
    whether the artefact is to be made, and writes it; the others compute along in a folder that is thrown away, and
    wait for the manifest. A rank that fails must end its process: the others wait for it in a collective call.
    """
    source = source_hash(spec)
    device = open_device(spec.device, spec.dtype)
    with store.lock(spec.key) if device.main else nullcontext():
        manifest = device.share(store.manifest(spec.key) if device.main and not fresh else None)
        if manifest is not None:
            return manifest | {"reused": True, "source_changed": manifest["source_hash"] != source}
        with _folder(spec, store, device, resume, fresh) as folder:
            _reset_peak_memory()
            began = time.perf_counter()
            run = open_run(spec, store, folder, report, device)
            run.store, run.started = store, started
            run.checkpoint_seconds = float(os.environ.get("KDZOO_CHECKPOINT_SECONDS", "10"))
            started(run)
            plugins.resolve(spec.stage.call)(run)
            if device.main:
                run.cost.peak_memory_bytes = max(run.cost.peak_memory_bytes, _peak_memory())
                _write_items(run)
                if bins := reliability(run):
                    run.facts["reliability"] = bins
                store.finish(spec.key, _manifest(run, source, time.perf_counter() - began))
        manifest = device.share(store.manifest(spec.key) if device.main else None)
        assert manifest is not None
        return manifest | {"reused": False, "source_changed": False}


@contextmanager
def _folder(spec: StageSpec, store: Store, device: Device, resume: bool, fresh: bool) -> Iterator[Path]:
    """Where a stage writes: the part folder of its key, or for ranks above 0 a folder that nobody reads."""
    if not device.main:
        with TemporaryDirectory(prefix="kdzoo-rank-") as name:
            yield Path(name)
        return
    if fresh or not resume:
        store.discard(spec.key, whole=fresh)
    folder = store.part(spec.key)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _manifest(run: Run, source: str, seconds: float) -> dict[str, Any]:
    spec = run.spec
    return {
        "key": spec.key,
        "name": spec.stage.name,
        "call": spec.stage.call,
        "version": spec.stage.version,
        "source_hash": source,
        "task": spec.task,
        "method": spec.method,
        "seed": spec.seed,
        "needs": dict(spec.needs),
        "settings": restrict(spec.settings, spec.stage.reads),
        "seconds": seconds,
        "facts": run.facts,
        "metrics": {name: {"value": metric.value, "n": metric.n} for name, metric in run.metrics.items()},
        **run.books(),
    }


def _write_items(run: Run) -> None:
    """Per-sample values of the metrics, beside the manifest."""
    items = {name: metric.items for name, metric in run.metrics.items() if metric.items is not None}
    if items:
        from safetensors.torch import save

        content = save({name: value.to(torch.float32).contiguous() for name, value in items.items()})
        write_atomic(run.folder / "items.safetensors", content)


def run_inner_stage(run: Run, stage: Stage) -> Path:
    """``run.do``: a stage asked for from inside another one, with the same store, locks and costs."""
    if run.store is None:
        raise KdzooError(
            f"run.do({stage.name!r}) needs a store; it can be called only while a stage is executed"
        )
    needs = {name: run.spec.needs[name] for name in stage.needs}
    inner = replace(
        run.spec,
        key="",
        stage=stage,
        settings={**run.spec.settings, **stage.set},
        roles=stage.roles if stage.roles is not None else run.spec.roles,
        needs=needs,
        seed=run.spec.seed if stage.seeded else None,
    )
    data = data_hash(inner)
    inner = replace(inner, key=key_of(key_content(inner, data)))
    manifest = execute(inner, run.store, report=run.report, started=run.started)
    for kind, amount in manifest["cost"]["spent"].items():
        run.spend(kind, amount)
    run.cost.seconds += manifest["cost"]["seconds"]
    run.cost.steps += manifest["cost"]["steps"]
    return run.store.folder(inner.key)


def data_hash(spec: StageSpec) -> str:
    """One hash over all splits of the task under these settings."""
    planner = _Planner(spec)
    module = catalog.load().module(spec.task)
    splits = catalog.load().task(spec.task).splits
    return hashlib.sha256(" ".join(module.data(planner, split).hash for split in splits).encode()).hexdigest()


class _Planner:
    """What a task's `data` function may look at while a bench is planned: settings and the data root."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.seed = spec, spec.seed or 0
        self.cfg: Mapping[str, Any] = Settings(spec.settings, ("*",), "plan")
        self.data_root = Path(spec.data_root) if spec.data_root else None


def _reset_peak_memory() -> None:
    """Let VmHWM start anew (Linux); elsewhere the peak is the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Peak resident bytes since the last reset; GPU memory where there is one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
