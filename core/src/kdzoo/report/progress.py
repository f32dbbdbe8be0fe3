"""Live progress of a bench on stderr: bars where it is a terminal, plain lines where it is not."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from kdzoo.method import FIT

if TYPE_CHECKING:
    from kdzoo.plan import Plan
    from kdzoo.runs import StageSpec


class Progress:
    """Use as a context; `planned` and `event` are what `kdzoo.bench.run_bench` calls.

    The whole is counted in runs (arm x seed) and timed in optimiser steps: stages that were kept from before leave
    the sum of steps, so the time that remains is that of what is really trained.

    Attributes:
        said: reasons of failures that were already printed; a reason is printed once.
    """

    def __init__(self) -> None:
        self.said: set[str] = set()
        self._live: Any = None
        self._whole: Any = None
        self._bars: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        self._at: dict[str, int] = {}
        self._runs: list[set[str]] = []
        self._total = 0
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._live = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[said]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def planned(self, plan: Plan) -> None:
        """Learn what the whole consists of, before the first stage starts."""
        self._runs = [{spec.key for spec in specs} for specs in plan.runs.values()]
        self._total = len(self._runs)
        self._steps = {
            key: int(s.settings.get("steps", 0)) for key, s in plan.specs.items() if s.stage.call == FIT
        }
        if self._live is None:
            stages = len(plan.specs)
            print(
                f"{plan.card.slug} on {plan.task.slug}: {self._total} runs (arms x seeds), {stages} stages",
                file=sys.stderr,
                flush=True,
            )
        else:
            self._whole = self._live.add_task(
                plan.card.slug, total=sum(self._steps.values()) or None, count="", said=""
            )
            self._refresh()

    def event(self, kind: str, spec: StageSpec, details: dict[str, Any]) -> None:
        """What `kdzoo.workers.run_all` reports of one stage."""
        name = f"{spec.arm}" + ("" if spec.seed is None else f" seed {spec.seed}") + f" {spec.stage.name}"
        ended = kind in ("done", "failed", "skipped")
        if ended:
            if kind != "done" or details["reused"]:
                self._steps.pop(spec.key, None)
                self._at.pop(spec.key, None)
            else:
                self._at[spec.key] = self._steps.get(spec.key, 0)
            for run in self._runs:
                run.discard(spec.key)
        elif kind == "progress":
            self._at[spec.key] = details["step"]
        if self._live is not None:
            self._draw(kind, name, spec, details, ended)
        if kind == "done" and self._live is None:
            how = "kept from before" if details["reused"] else f"{details['seconds']:.1f} s"
            self._say(f"{name}: {how}{self._count()}")
        elif kind == "failed":
            self._say(f"{name}: FAILED{self._reason(details['error'])}")

    def _draw(self, kind: str, name: str, spec: StageSpec, details: dict[str, Any], ended: bool) -> None:
        """Move the bar of the stage and the bar of the whole."""
        if kind == "started":
            self._bars[spec.key] = self._live.add_task(f"  {name}", total=None, count="", said="")
        elif kind == "progress" and spec.key in self._bars:
            step, steps = details["step"], details["steps"]
            self._live.update(
                self._bars[spec.key],
                total=steps,
                completed=step,
                count=f"{step}/{steps}",
                said=details["metric"],
            )
        elif ended and spec.key in self._bars:
            self._live.remove_task(self._bars.pop(spec.key))
        self._refresh()

    def _refresh(self) -> None:
        if self._whole is not None:
            done, steps = self._total - sum(bool(run) for run in self._runs), sum(self._steps.values())
            self._live.update(
                self._whole,
                total=steps or None,
                completed=min(steps, sum(self._at.get(key, 0) for key in self._steps)),
                count=f"{done}/{self._total} runs",
            )

    def _count(self) -> str:
        """How far the whole is, where it is known what the whole is."""
        return (
            f" ({self._total - sum(bool(run) for run in self._runs)}/{self._total} runs)"
            if self._total
            else ""
        )

    def _reason(self, error: str) -> str:
        """The reason in full the first time; twelve runs that fail alike should not print it twelve times."""
        if error in self.said:
            return ", as above"
        self.said.add(error)
        return f": {error}"

    def _say(self, text: str) -> None:
        line = f"[{time.monotonic() - self._began:6.1f} s] {text}"
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)
