"""Record teacher signals beforehand: for ``kdzoo cache build``, and for tests that want a recording without a
bench."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from kdzoo import catalog, roles
from kdzoo.artefacts import Store, home
from kdzoo.bench import check_writable
from kdzoo.errors import KdzooError, unknown
from kdzoo.execute import open_run, pulls_recorded
from kdzoo.plan import Request, make_plan
from kdzoo.recording import Recording
from kdzoo.recording_maker import PROBE, parts_of
from kdzoo.runs import Run
from kdzoo.workers import Options, run_all


def record_signals(
    run: Run, parts: Sequence[str] = (), views: Sequence[str] = ()
) -> Iterator[tuple[Recording, bool]]:
    """Record what a run's frozen roles say about the streams that show a sample the same way each time.

    Args:
        run: with its roles built, and with ``spec.signals`` "recorded" or "top-k=...". Recordings go to the home of
            ``run.store``, or to $KDZOO_HOME where the run has no store.
        parts: of the roles' outputs, such as "logits" or "features/stage2"; without any, those of logits and
        embedding
            that the method's card names.
        views: names of views; without any, the first of the split.

    Yields:
        (recording, whether it was made now).

    Raises:
        KdzooError: nothing can be recorded, or a role has no such part.
    """
    cache = run.signal_cache
    frozen = [name for name, role in run.roles.items() if role.kind == "frozen"]
    if not cache.fixed or not frozen:
        what = "frozen role" if not frozen else "stream that shows a sample the same way each time"
        raise KdzooError(
            f"arm {run.arm!r} on {run.task.slug!r} has no {what}: there is nothing to record. Use --signals live."
        )
    wanted = parts or [p for p in ("logits", "embedding") if run.method is None or p in run.method.teacher]
    if not wanted:
        assert run.method is not None
        raise KdzooError(
            f"{run.method.slug} takes {', '.join(run.method.teacher)} from its teacher, and which layers it reads is "
            "known only while it trains: name them, for example --part features/stage2, or let the first bench "
            "record them."
        )
    for split, data in cache.fixed.items():
        for view in views or list(data.collate(data.items, torch.arange(1), None).views)[:1]:
            for role in frozen:
                teacher = cache.teacher(role, view)
                has = parts_of(teacher.probe(data, PROBE))
                for part in wanted:
                    if part not in has:
                        if not parts:
                            continue
                        raise unknown(f"part of the role {role!r}", part, has, f"It has {', '.join(has)}.")
                    before = {entry.folder for entry in cache.recordings.entries() if entry.recording}
                    recording = cache.recording(teacher, split, part)
                    yield recording, recording.folder not in before


def build(request: Request, parts: Sequence[str]) -> Iterator[tuple[Recording, bool]]:
    """Record for the first training stage of a method with a frozen role; a teacher that is missing is trained."""
    check_writable(home())
    torch.set_num_threads(request.threads)
    plan = make_plan(request)
    slug = catalog.load().method(request.method).slug
    specs = plan.runs[(slug, request.first_seed)]
    at = next((k for k, spec in enumerate(specs) if pulls_recorded(spec)), None)
    if at is None:
        raise KdzooError(
            f"{slug} trains without a frozen role: there is nothing to record. Use --signals live."
        )
    store, needed = Store(home()), set(specs[at].needs.values())
    before = {spec.key: spec for spec in specs[:at] if spec.key in needed}
    made = run_all(before, Options(home(), jobs=0), lambda *_: None)
    if failed := [result["error"] for result in made.values() if "error" in result]:
        raise KdzooError(f"the teacher could not be made: {failed[0]}")
    with TemporaryDirectory(prefix="kdzoo-record-") as folder:
        run = open_run(specs[at], store, Path(folder))
        run.store = store
        roles.build(run)
        yield from record_signals(run, parts)
