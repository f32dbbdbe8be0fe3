"""Worker processes: one stage at a time each, one thread each; the parent hands out stages whose needs are made.

A worker that dies is noticed and named. On Ctrl-C a worker finishes its optimiser step, writes a checkpoint and stops;
a worker whose parent is gone ends at once: what it leaves is what SIGKILL leaves, and that can be gone on from.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError
from kdzoo.runs import StageSpec

Event = Callable[[str, StageSpec, dict[str, Any]], None]
"""Called with what happened ("started", "progress", "done", "failed", "skipped"), the stage, and details."""

INTERRUPTED = 130  # exit code of a worker that Ctrl-C has stopped
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


def run_all(
    specs: Mapping[str, StageSpec],
    options: Options,
    event: Event,
    made: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make every artefact; returns key -> manifest, or key -> {"error": ...} where a stage failed.

    A failed stage takes those that need it with it, and nothing else. `made` are results of the same call before,
    which are taken over as they are.
    """
    results: dict[str, dict[str, Any]] = dict(made or {})
    waiting = {key: spec for key, spec in specs.items() if key not in results}
    if options.jobs == 0:
        return _run_here(waiting, options, event, results)
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
        process = context.Process(target=_serve, args=(theirs, options, len(workers)), daemon=True)
        with _no_interrupt():
            process.start()
        theirs.close()
        workers.append(_Worker(process, ours))
        idle.append(workers[-1])
    return idle


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Children started here ignore Ctrl-C until they set their own answer: it must not hit them while they import."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
        # Ctrl-C has reached it while this process, starting another worker, did not listen.
        if code == INTERRUPTED:
            raise KeyboardInterrupt from None
        how = (
            f"was killed by signal {-code} ({signal.Signals(-code).name})"
            if code and code < 0
            else f"ended ({code})"
        )
        hint = " The machine may be out of memory: try --jobs 1." if code == -signal.SIGKILL else ""
        workers.remove(worker)
        kind, details = "failed", {"error": f"the worker process {how} while it made this stage.{hint}"}
    if kind in ("done", "failed"):
        results[spec.key] = details
        worker.spec = None
    event(kind, spec, details)


def _interrupt(workers: list[_Worker]) -> None:
    """Ask every worker to stop at its next whole step, and wait; a second Ctrl-C ends them at once."""
    end = time.monotonic() + _GRACE_SECONDS
    try:
        while (
            alive := [worker for worker in workers if worker.process.is_alive()]
        ) and time.monotonic() < end:
            for worker in alive:  # asked again and again: one that still imports does not listen yet
                os.kill(worker.process.pid, signal.SIGINT)
                with suppress(EOFError, OSError):  # a full pipe would keep the worker from stopping
                    while worker.pipe.poll():
                        worker.pipe.recv()
            wait([worker.process.sentinel for worker in alive], timeout=0.3)
    except KeyboardInterrupt:
        pass
    for worker in workers:
        worker.process.kill()


def _run_here(
    waiting: dict[str, StageSpec], options: Options, event: Event, results: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """All stages in this process, one after the other: for debuggers, and under torchrun."""
    from kdzoo.device import launched_ranks
    from kdzoo.runs import Stopped

    ranks, stop = launched_ranks(), _Stop()
    if os.environ.get("RANK", "0") != "0":
        event = _silent  # rank 0 speaks for all
    try:
        with stop.on_interrupt(active=ranks == 1):
            while waiting:
                _skip_hopeless(waiting, results, event)
                spec = _next(waiting, results)
                if spec is None:
                    break
                del waiting[spec.key]
                event("started", spec, {})
                kind, details = _make(spec, options, partial(event, "progress", spec), stop.started)
                if kind == "failed" and ranks > 1:
                    # The other ranks wait for this one in a collective call: only the end of its process frees them.
                    raise KdzooError(f"{details['error']}\n{details.get('traceback', '')}".strip())
                stop.runs.clear()
                results[spec.key] = details
                event(kind, spec, details)
                if stop.asked:
                    raise Interrupted
    except (Stopped, KeyboardInterrupt):
        raise Interrupted from None
    return results


def _silent(kind: str, spec: StageSpec, details: dict[str, Any]) -> None:
    """An event that nobody hears."""


class _Stop:
    """Ctrl-C, remembered until a run can obey it: a run looks at ``stopping`` once an optimiser step."""

    def __init__(self) -> None:
        self.asked = False
        self.runs: list[Any] = []

    def started(self, run: Any) -> None:
        """To be told of every run that starts, those inside other runs too."""
        run.stopping = self.asked
        self.runs.append(run)

    def __call__(self, *_: Any) -> None:
        self.asked = True
        for run in self.runs:
            run.stopping = True

    @contextmanager
    def on_interrupt(self, active: bool) -> Iterator[None]:
        """Take SIGINT over; a second one is a plain KeyboardInterrupt."""
        if not active or threading.current_thread() is not threading.main_thread():
            yield
            return

        def first(*_: Any) -> None:
            signal.signal(signal.SIGINT, before)
            self()

        before = signal.signal(signal.SIGINT, first)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _make(
    spec: StageSpec,
    options: Options,
    report: Callable[[dict[str, Any]], None],
    started: Callable[[Any], None],
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


def _end_with_parent() -> None:
    """Wait for the end of the parent, killed or not, and go with it: nobody would read the result."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _take_gpu(spec: StageSpec, place: int) -> None:
    """Workers share the GPUs out: ``cuda`` without a number is the worker's own."""
    if spec.device == "cuda":
        import torch

        torch.cuda.set_device(place % torch.cuda.device_count())


def _serve(pipe: Connection, options: Options, place: int) -> None:
    """A worker's life: receive a stage, make it, answer. `place` numbers the workers from 0."""
    from kdzoo.runs import Stopped

    stop = _Stop()

    def interrupted(*_: Any) -> None:
        if not stop.runs:
            os._exit(INTERRUPTED)
        stop()

    def report(details: dict[str, Any]) -> None:
        try:
            pipe.send(("progress", details))
        except OSError:
            os._exit(1)  # the parent is gone: nobody will read the result

    signal.signal(signal.SIGINT, interrupted)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            spec = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            _take_gpu(spec, place)
            answer = _make(spec, options, report, stop.started)
        except Stopped:
            os._exit(INTERRUPTED)
        stop.runs.clear()
        try:
            pipe.send(answer)
        except OSError:
            os._exit(1)
