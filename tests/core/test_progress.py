"""Progress of a bench: bars on a terminal, plain lines elsewhere, both on stderr and with the same counts."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kdzoo.method import EVALUATE, FIT, Stage
from kdzoo.report.progress import Progress

STEPS = 10


def spec(arm: str, seed: int | None, stage: str) -> Any:
    made = Stage(stage, EVALUATE if stage == "evaluate" else FIT)
    return SimpleNamespace(
        key=f"{arm}-{seed}-{stage}", arm=arm, seed=seed, stage=made, settings={"steps": STEPS}
    )


def plan() -> Any:
    """Two runs of two stages and a third one that shares the fit of the second."""
    runs = {
        ("student", seed): [spec("student", seed, "fit"), spec("student", seed, "evaluate")]
        for seed in (0, 1)
    }
    runs[("fine", 1)] = [runs[("student", 1)][0], spec("fine", 1, "evaluate")]
    specs = {one.key: one for stages in runs.values() for one in stages}
    named = SimpleNamespace(slug="toy-kd")
    return SimpleNamespace(runs=runs, specs=specs, card=named, task=SimpleNamespace(slug="toy-task"))


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A run counts as done once its last stage is; what was kept from before says so."""
    made = plan()
    with Progress() as progress:
        progress.planned(made)
        for one in made.specs.values():
            progress.event("started", one, {})
            progress.event("progress", one, {"step": 5, "steps": STEPS, "metric": ""})
            progress.event("done", one, {"reused": one.seed == 0, "seconds": 1.25})
    said = capsys.readouterr()
    assert said.out == ""
    lines = [re.sub(r"^\[ *[0-9.]+ s\] ", "", line) for line in said.err.splitlines()]
    assert lines == [
        "toy-kd on toy-task: 3 runs (arms x seeds), 5 stages",
        "student seed 0 fit: kept from before (0/3 runs)",
        "student seed 0 evaluate: kept from before (1/3 runs)",
        "student seed 1 fit: 1.2 s (1/3 runs)",
        "student seed 1 evaluate: 1.2 s (2/3 runs)",
        "fine seed 1 evaluate: 1.2 s (3/3 runs)",
    ]


def test_a_reason_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve runs that fail for one reason must not bury it."""
    with Progress() as progress:
        progress.event("failed", spec("student", 0, "fit"), {"error": "no teacher"})
        progress.event("failed", spec("student", 1, "fit"), {"error": "no teacher"})
        progress.event("failed", spec("student", 2, "fit"), {"error": "NaN"})
    text = capsys.readouterr().err
    assert text.count("no teacher") == 1
    assert "seed 1 fit: FAILED, as above" in text
    assert progress.said == {"no teacher", "NaN"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest puts its own stderr back after fixtures."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


def rows(progress: Progress) -> dict[str, Any]:
    return {task.description.strip(): task for task in progress._live.tasks}


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bar for the whole in steps and runs, one for every running stage with its step and metric."""
    terminal = on_terminal(monkeypatch)
    made = plan()
    first, shown, second, *rest = made.specs.values()
    with Progress() as progress:
        progress.planned(made)
        progress.event("started", first, {})
        progress.event("progress", first, {"step": 4, "steps": STEPS, "metric": "val/accuracy 0.812"})
        whole, stage = rows(progress)["toy-kd"], rows(progress)["student seed 0 fit"]
        assert (whole.completed, whole.total, whole.fields["count"]) == (4, 2 * STEPS, "0/3 runs")
        assert (stage.completed, stage.total) == (4, STEPS)
        assert (stage.fields["count"], stage.fields["said"]) == ("4/10", "val/accuracy 0.812")
        progress.event("done", first, {"reused": False, "seconds": 1.0})
        progress.event("done", shown, {"reused": False, "seconds": 1.0})
        assert list(rows(progress)) == ["toy-kd"]
        assert (rows(progress)["toy-kd"].completed, rows(progress)["toy-kd"].fields["count"]) == (
            10,
            "1/3 runs",
        )
        progress.event("done", second, {"reused": True, "seconds": 1.0})
        assert (
            rows(progress)["toy-kd"].total == STEPS
        )  # steps that are not taken leave the estimate of what is left
        for one in rest:
            progress.event("done", one, {"reused": False, "seconds": 1.0})
        assert rows(progress)["toy-kd"].fields["count"] == "3/3 runs"
        progress.event("failed", second, {"error": "[red]not markup[/red]"})
        progress._live.refresh()
    text = terminal.getvalue()
    for part in ("toy-kd", "runs", "left", "FAILED: [red]not markup[/red]"):
        assert part in text
    assert "\x1b[?25h" in text  # the cursor is shown again


def test_a_bar_for_a_stage_that_was_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """``run.do`` reports stages that no plan knew of."""
    terminal = on_terminal(monkeypatch)
    with Progress() as progress:
        one = spec("student", 0, "fit")
        progress.event("started", one, {})
        progress.event("progress", one, {"step": 1, "steps": STEPS, "metric": ""})
        progress.event("done", one, {"reused": False, "seconds": 1.0})
        progress.event("skipped", spec("student", 1, "fit"), {"error": "x"})
    assert "student seed 0 fit" in terminal.getvalue()
