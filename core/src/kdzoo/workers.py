"""Worker processes: one stage at a time each, one thread each; the parent hands out stages whose needs are made.

A worker that dies is noticed and named. On Ctrl-C a worker finishes its optimiser step, writes a checkpoint and stops;
a worker whose parent is gone stops at its next report.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError
from kdzoo.runs import StageSpec

Event = Callable[[str, StageSpec, dict[str, Any]], None]
"""Called with what happened ("started", "progress", "done", "failed", "skipped"), the stage, and details."""

_GRACE_SECONDS = 60.0


class Interrupted(Exception):
    """Ctrl-C: every worker has stopped at a whole step."""


@dataclass(frozen=True, slots=True)
class Options:
    """How artefacts are made; nothing here changes a result."""

    root: Path
    jobs: int
    resume: bool = True
    fresh: bool = False


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Connection
    spec: StageSpec | None = None


def run_all(specs: Mapping[str, StageSpec], options: Options, event: Event) -> dict[str, dict[str, Any]]:
    """Make every artefact; returns key -> manifest, or key -> {"error": ...} where a stage failed.

    A failed stage takes those that need it with it, and nothing else.
    """
    if options.jobs == 0:
        return _run_here(specs, options, event)
    results: dict[str, dict[str, Any]] = {}
    waiting = dict(specs)
    context = mp.get_context("spawn")
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.spec for worker in workers):
            _skip_hopeless(waiting, results, event)
            for worker in _idle(workers, options, context, len(waiting)):
                spec = _next(waiting, results)
                if spec is None:
                    break
                del waiting[spec.key]
                worker.spec = spec
                worker.pipe.send(spec)
                event("started", spec, {})
            busy = [worker for worker in workers if worker.spec]
            if not busy:
                continue
            for pipe in wait([worker.pipe for worker in busy], timeout=1.0):
                _listen(next(w for w in busy if w.pipe is pipe), workers, results, event)
    except KeyboardInterrupt:
        _interrupt(workers)
        raise Interrupted from None
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
    return results


def _idle(workers: list[_Worker], options: Options, context: Any, wanted: int) -> list[_Worker]:
    """Workers without a stage; new ones are started only while there is work for them."""
    idle = [worker for worker in workers if worker.spec is None]
    while len(workers) < options.jobs and len(idle) < wanted:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, options), daemon=True)
        process.start()
        theirs.close()
        workers.append(_Worker(process, ours))
        idle.append(workers[-1])
    return idle


def _next(waiting: Mapping[str, StageSpec], results: Mapping[str, Any]) -> StageSpec | None:
    return next((s for s in waiting.values() if all(key in results for key in s.needs.values())), None)


def _skip_hopeless(waiting: dict[str, StageSpec], results: dict[str, dict[str, Any]], event: Event) -> None:
    """Drop stages whose needs have failed."""
    for spec in list(waiting.values()):
        lost = [name for name, key in spec.needs.items() if "error" in results.get(key, {})]
        if lost:
            del waiting[spec.key]
            results[spec.key] = {"error": f"stage {lost[0]!r} failed", "skipped": True}
            event("skipped", spec, results[spec.key])


def _listen(worker: _Worker, workers: list[_Worker], results: dict[str, Any], event: Event) -> None:
    spec = worker.spec
    assert spec is not None
    try:
        kind, details = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code and code < 0 else f"ended ({code})"
        hint = " The machine may be out of memory: try --jobs 1." if code == -signal.SIGKILL else ""
        workers.remove(worker)
        kind, details = "failed", {"error": f"the worker process {how} while it made this stage.{hint}"}
    if kind in ("done", "failed"):
        results[spec.key] = details
        worker.spec = None
    event(kind, spec, details)


def _interrupt(workers: list[_Worker]) -> None:
    """Ask every worker to stop at its next whole step, and wait; a second Ctrl-C ends them at once."""
    busy = [worker for worker in workers if worker.spec]
    for worker in workers:
        if worker.process.is_alive():
            os.kill(worker.process.pid, signal.SIGINT)
    end = time.monotonic() + _GRACE_SECONDS
    try:
        for worker in busy:
            while worker.process.is_alive() and time.monotonic() < end:
                worker.process.join(timeout=0.1)
                while worker.process.is_alive() and worker.pipe.poll():
                    try:
                        worker.pipe.recv()
                    except (EOFError, OSError):
                        break
    except KeyboardInterrupt:
        pass
    for worker in workers:
        worker.process.kill()


def _run_here(specs: Mapping[str, StageSpec], options: Options, event: Event) -> dict[str, dict[str, Any]]:
    """All stages in this process, one after the other: for debuggers, and under torchrun."""
    results: dict[str, dict[str, Any]] = {}
    waiting = dict(specs)
    while waiting:
        _skip_hopeless(waiting, results, event)
        spec = _next(waiting, results)
        if spec is None:
            break
        del waiting[spec.key]
        event("started", spec, {})
        kind, details = _make(spec, options, lambda d, s=spec: event("progress", s, d), lambda run: None)
        results[spec.key] = details
        event(kind, spec, details)
    return results


def _make(
    spec: StageSpec, options: Options, report: Callable[[dict[str, Any]], None], started: Callable[[Any], None]
) -> tuple[str, dict[str, Any]]:
    import torch

    from kdzoo.artefacts import Store
    from kdzoo.execute import execute

    torch.set_num_threads(spec.threads)
    try:
        store = Store(options.root)
        made = execute(
            spec, store, resume=options.resume, fresh=options.fresh, report=report, started=started
        )
        return "done", made
    except KdzooError as error:
        return "failed", {"error": str(error)}
    except Exception as error:  # a bug in a plugin must not end the other runs; its traceback is kept
        return "failed", {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def _serve(pipe: Connection, options: Options) -> None:
    """A worker's life: receive a stage, make it, answer."""
    from kdzoo.runs import Run, Stopped

    current: list[Run] = []

    def stop(*_: Any) -> None:
        if not current:
            os._exit(130)
        current[-1].stopping = True

    def report(details: dict[str, Any]) -> None:
        try:
            pipe.send(("progress", details))
        except OSError:
            os._exit(1)  # the parent is gone: nobody will read the result

    signal.signal(signal.SIGINT, stop)
    while True:
        try:
            spec = pipe.recv()
        except (EOFError, OSError):
            return
        current.clear()
        try:
            answer = _make(spec, options, report, current.append)
        except Stopped:
            os._exit(130)
        current.clear()
        try:
            pipe.send(answer)
        except OSError:
            os._exit(1)
