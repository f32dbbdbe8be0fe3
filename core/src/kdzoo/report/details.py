"""The tables behind a report: settings, costs, where everything comes from, what went wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdzoo.records import Record
from kdzoo.report.arms_view import ArmView, done_rows, mean
from kdzoo.report.table import Cell, number

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(?i)(\b(?:api[_-]?key|secret|password|passwd|access[_-]?token|auth[_-]?token|bearer)\b\s*[=: ]\s*)[^\s,;'\"]+"
    r"|(://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|\b(?:hf_|sk-|ghp_|xox[bp]-)[A-Za-z0-9_-]{16,}"
)
HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class Grid:
    """A plain table. `hints` explain heads; a head without one is in no need of it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    hints: Mapping[str, str] = field(default_factory=dict)
    foot: Sequence[str] = ()


def scrub(value: Any) -> Any:
    """The same with what looks like a secret hidden, and with it every value of a variable that bears a secret's name.

    Command lines and error texts are written by programs; a key that was typed into one must not be handed on with
    the page.
    """
    if isinstance(value, str):
        for name, secret in os.environ.items():
            if _SECRET_NAME.search(name) and len(secret) >= 8:
                value = value.replace(secret, HIDDEN)
        return _SECRET_TEXT.sub(lambda m: (m[1] or m[2] or "") + HIDDEN, value)
    if isinstance(value, dict):
        return {key: scrub(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(part) for part in value]
    return value


def said(value: Any) -> str:
    """A setting's value, as it would be written after ``--set``."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- settings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """What an arm sets otherwise than another: (setting, value, value there); settings that only one of them has."""

    changed: list[tuple[str, str, str]]
    only_here: list[tuple[str, str]]
    only_there: list[str]


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """An arm's settings against the method's and the student's; None against itself or what was not run.

    `like_method`: what it has and the student has not is what the method's arm has.
    """

    arm: ArmView
    to_method: Changes | None
    to_student: Changes | None
    like_method: bool


def arm_settings(record: Record, arms: Sequence[ArmView]) -> list[ArmSettings]:
    """Every arm whose settings are known, against those of the method's and the student's arm."""
    settings = record.config.get("settings", {})

    def against(name: str, other: str) -> Changes | None:
        return None if name == other or other not in settings else changes(settings[name], settings[other])

    found = []
    for arm in arms:
        if arm.name in settings:
            to_method, to_student = against(arm.name, record.id["method"]), against(arm.name, "student")
            like = to_method is not None and not to_method.only_here and not to_method.only_there
            found.append(ArmSettings(arm, to_method, to_student, like))
    return found


def changes(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Changes:
    shared = [key for key in sorted(mine) if key in theirs]
    return Changes(
        [(key, said(mine[key]), said(theirs[key])) for key in shared if mine[key] != theirs[key]],
        [(key, said(mine[key])) for key in sorted(mine) if key not in theirs],
        [key for key in sorted(theirs) if key not in mine],
    )


def method_settings(record: Record, params: Mapping[str, Any]) -> Grid | None:
    """All settings of the method's own arm, with the paper's values where the card has them."""
    mine = record.config.get("settings", {}).get(record.id["method"])
    if not mine:
        return None
    rows = []
    for key in sorted(mine):
        param = params.get(key)
        paper = "" if param is None or param.paper is None else said(param.paper)
        about = "" if param is None else param.text
        unit = f" {param.unit}" if param is not None and param.unit else ""
        rows.append(
            [Cell(key, key), Cell(said(mine[key]) + unit, None), Cell(paper, None), Cell(about, None)]
        )
    return Grid(f"Settings of {record.id['method']}", ["setting", "here", "in the paper", "meaning"], rows)


# --- costs ------------------------------------------------------------------------------------------------------


def costs(record: Record, arms: Sequence[ArmView]) -> Grid:
    """What each arm costs, a run, and what the whole bench cost."""
    heads = [
        "arm",
        "runs",
        "train s",
        "validation s",
        "steps",
        "samples",
        "student forwards",
        "teacher forwards",
        "peak MB",
    ]
    kinds = sorted({kind for row in record.runs for kind in row.cost.get("spent", {})})
    rows = []
    for arm in arms:
        done = done_rows(record, arm.name)

        def average(name: str) -> float | None:
            return mean(row.cost.get(name) for row in done)  # noqa: B023 - called in this turn of the loop

        memory = max((row.cost.get("peak_memory_bytes", 0) for row in done), default=0)
        row = [Cell(arm.name, arm.name), Cell(str(len(done)), len(done))]
        row += [Cell(number(average(name), 1), average(name)) for name in ("seconds", "validation_seconds")]
        row += [
            _count(average(name)) for name in ("steps", "examples", "student_forwards", "teacher_forwards")
        ]
        row.append(Cell(f"{memory / 2**20:,.0f}" if memory else "-", memory or None))
        row += [_count(mean(r.cost.get("spent", {}).get(kind) for r in done)) for kind in kinds]
        rows.append(row)
    spent = sum(stage["seconds"] for stage in record.stages.values())
    reused = sum(bool(stage["reused"]) for stage in record.stages.values())

    def total(name: str) -> int:
        return int(sum(stage.get("cost", {}).get(name, 0) for stage in record.stages.values()))

    foot = [
        f"All {len(record.stages)} stages together: {duration(spent)} of computing"
        + (
            f"; {reused} of them were kept from earlier benches and are counted at what they cost then."
            if reused
            else "."
        ),
        f"Samples through the student in training: {total('student_forwards'):,}; through the teacher: "
        f"{total('teacher_forwards'):,}; optimiser steps: {total('steps'):,}.",
    ]
    hints = {
        "train s": "seconds of training of one run, validation left out",
        "samples": "training samples seen by one run",
        "student forwards": "samples that went through the student, with gradient",
        "teacher forwards": "samples that went through the teacher",
        "peak MB": "largest memory of the process, of all runs; of the GPU where there is one",
    }
    return Grid("Cost of one run, by arm", [*heads, *kinds], rows, hints, foot)


def _count(value: float | None) -> Cell:
    return Cell("-" if value is None else f"{value:,.0f}", value)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads well."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


# --- provenance -------------------------------------------------------------------------------------------------


def environment(record: Record) -> list[tuple[str, str]]:
    """Hardware and versions, flat."""
    env = dict(record.env)
    hardware, packages = env.pop("hardware", {}) or {}, env.pop("packages", {}) or {}
    flat = {**hardware, **env, **packages}
    return [(str(key), said(value)) for key, value in flat.items() if value is not None]


def data_rows(record: Record) -> list[tuple[str, str]]:
    """Sizes and hashes of the data."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(record.data.items()):
        if isinstance(value, dict):
            rows += [(f"{key}: {name}", said(part)) for name, part in sorted(value.items())]
        elif isinstance(value, list):
            rows += [(key.removesuffix("es") if key == "hashes" else key, said(part)) for part in value]
        else:
            rows.append((key, said(value)))
    return rows


def run_rows(record: Record) -> Grid:
    """Every run with the hashes that show what it had in common with the others."""
    heads = [
        "arm",
        "seed",
        "status",
        "steps",
        "samples",
        "first weights",
        "order of samples",
        "final weights",
    ]
    rows = []
    for run in record.runs:
        weights = "; ".join(f"{facts.get('sha256', '')[:12]}" for facts in run.ships.values())
        rows.append(
            [
                Cell(run.arm, run.arm),
                Cell("all" if run.seed is None else str(run.seed), -1 if run.seed is None else run.seed),
                Cell(run.status, run.status),
                Cell(f"{run.steps:,}", run.steps),
                Cell(f"{run.examples:,}", run.examples),
                Cell((run.init_hash or "")[:12], run.init_hash),
                Cell((run.order_hash or "")[:12], run.order_hash),
                Cell(weights, weights),
            ]
        )
    hints = {
        "first weights": "hash of the student before training: equal at equal seed, or the arm says that it differs",
        "order of samples": "hash of the order in which samples were drawn",
        "final weights": "hash of what was evaluated",
    }
    return Grid("Runs", heads, rows, hints)


def fairness(record: Record) -> str:
    """Whether the arms had what a fair comparison asks for, in a sentence."""
    alone = {run.seed: run for run in record.runs if run.arm == "student" and run.status == "done"}
    equal: list[str] = []
    apart: list[str] = []
    for arm in dict.fromkeys(run.arm for run in record.runs):
        pairs = [
            (run, alone[run.seed])
            for run in record.runs
            if run.arm == arm and run.status == "done" and run.seed in alone and arm != "student"
        ]
        if not pairs:
            continue
        same = all(
            (a.init_hash, a.order_hash, a.steps) == (b.init_hash, b.order_hash, b.steps) for a, b in pairs
        )
        (equal if same else apart).append(arm)
    if not equal and not apart:
        return ""
    text = f"At equal seed {len(equal)} of {len(equal) + len(apart)} arms start from the student's own first weights, "
    text += "see the same samples in the same order, and take as many steps."
    return text + (f" Not so, by design: {', '.join(apart)}." if apart else "")


# --- what went wrong --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trouble:
    """A failure or a warning, with all places it concerns."""

    kind: str
    where: list[str]
    text: str
    traceback: str = ""


def troubles(record: Record) -> list[Trouble]:
    """Failures, refusals and warnings; one that many runs share is said once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for failure in record.failures:
        kind = "skipped" if failure.get("skipped") else "failed"
        seed = "" if failure.get("seed") is None else f" seed {failure['seed']}"
        place = f"{failure.get('arm')}{seed}, stage {failure.get('stage')}"
        key = (kind, str(failure.get("error", "no reason given")), str(failure.get("traceback", "")))
        found.setdefault(key, []).append(place)
    for run in record.runs:
        seed = "" if run.seed is None else f" seed {run.seed}"
        for warning in run.warnings:
            kind = "refused" if run.status == "refused" else "warning"
            found.setdefault((kind, warning, ""), []).append(f"{run.arm}{seed}")
    order = ("failed", "refused", "skipped", "warning")
    return sorted(
        (Trouble(kind, where, text, traceback) for (kind, text, traceback), where in found.items()),
        key=lambda trouble: order.index(trouble.kind),
    )
