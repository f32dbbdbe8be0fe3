"""Live progress of a bench on stderr: bars where it is a terminal, plain lines where it is not."""

from __future__ import annotations

import sys
import time
from typing import Any

from kdzoo.runs import StageSpec


class Progress:
    """Use as a context; `event` is what `kdzoo.workers.run_all` calls."""

    def __init__(self) -> None:
        self.live: Any = None
        self._bars: dict[str, Any] = {}
        self._began = time.monotonic()
        self._done = 0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self.live = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[said]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def event(self, kind: str, spec: StageSpec, details: dict[str, Any]) -> None:
        name = f"{spec.arm}" + ("" if spec.seed is None else f" seed {spec.seed}") + f" {spec.stage.name}"
        if self.live is None:
            self._plain(kind, name, details)
            return
        if kind == "started":
            self._bars[spec.key] = self.live.add_task(name, total=None, said="")
        elif kind == "progress":
            self.live.update(
                self._bars[spec.key], total=details["steps"], completed=details["step"], said=details["metric"]
            )
        elif spec.key in self._bars:
            self.live.remove_task(self._bars.pop(spec.key))
        if kind == "failed":
            self.live.console.print(f"failed: {name}: {details['error']}", markup=False)

    def _plain(self, kind: str, name: str, details: dict[str, Any]) -> None:
        seconds = time.monotonic() - self._began
        if kind == "done":
            self._done += 1
            how = "kept from before" if details["reused"] else f"{details['seconds']:.1f} s"
            print(f"[{seconds:6.1f} s] {name}: {how}", file=sys.stderr, flush=True)
        elif kind == "failed":
            print(f"[{seconds:6.1f} s] {name}: FAILED: {details['error']}", file=sys.stderr, flush=True)
