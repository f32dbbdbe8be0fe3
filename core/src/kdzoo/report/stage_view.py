"""All that the page of one stage shows: one artefact, one arm at one seed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdzoo.artefacts import MANIFEST
from kdzoo.records import RunRow
from kdzoo.report import charts, details, figures, quality
from kdzoo.report.charts import Series
from kdzoo.report.details import Grid, duration, said
from kdzoo.report.figures import Figure, Gallery
from kdzoo.report.scale import finite
from kdzoo.report.svg import Style
from kdzoo.report.table import Cell, number


@dataclass(frozen=True, slots=True)
class StageView:
    """See the template ``stage.html``."""

    title: str
    about: list[tuple[str, str, str]]
    metrics: Grid | None
    curves: Gallery
    terms: Gallery
    logged: Gallery
    calibration: Gallery
    cost: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    ships: Grid | None
    needs: list[tuple[str, str]]
    files: list[tuple[str, str]]
    facts: list[tuple[str, str]]


def stage_view(manifest: Mapping[str, Any], folder: Path) -> StageView:
    """Gather what the page shows; the manifest is what ``artefact.json`` holds."""
    manifest = details.scrub(dict(manifest))
    facts = dict(manifest.get("facts") or {})
    bins, ships = facts.pop("reliability", {}), facts.pop("ships", {})
    name = str(manifest["name"])
    who = manifest["method"] or "no method"
    logs = RunRow(arm=name, seed=manifest["seed"], status="done", losses=manifest.get("logs") or {})
    others = sorted({n.rpartition("/")[0] for n in logs.losses} - {"loss", ""})
    more = [figures.term_charts([(prefix, [logs])], f"{prefix}/") for prefix in others]
    return StageView(
        title=f"{name} of {who} on {manifest['task']}, seed {_seed(manifest)}",
        about=[
            (
                "Stage",
                name,
                "a named step of an arm; its result is kept and shared by all arms that need the same",
            ),
            ("Method", who, "whose hooks were active"),
            ("Task", str(manifest["task"]), "data, models and metrics"),
            ("Seed", _seed(manifest), ""),
            ("Function", f"{manifest['call']}, version {manifest['version']}", "what made it"),
            ("Source", str(manifest["source_hash"]), "hash of the code that made it"),
            ("Key", str(manifest["key"]), "name of the artefact: a hash of everything its result depends on"),
            ("Made", _made(folder), "local time"),
        ],
        metrics=_metrics(manifest.get("metrics") or {}),
        curves=_curves(manifest.get("curves") or {}),
        terms=figures.term_charts([(name, [logs])]),
        logged=Gallery([f for g in more for f in g.first], [], [e for g in more for e in g.legend]),
        calibration=_calibration(bins),
        cost=_cost(manifest),
        settings=[(key, said(value)) for key, value in sorted(manifest["settings"].items())],
        ships=_ships(ships),
        needs=sorted(manifest["needs"].items()),
        files=sorted(manifest["files"].items()),
        facts=[(key, said(value)) for key, value in sorted(facts.items())],
    )


def _seed(manifest: Mapping[str, Any]) -> str:
    return "shared by all" if manifest["seed"] is None else str(manifest["seed"])


def _made(folder: Path) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((folder / MANIFEST).stat().st_mtime))
    except OSError:
        return "unknown"


def _metrics(metrics: Mapping[str, Any]) -> Grid | None:
    rows = [
        [
            Cell(name, name),
            Cell(number(metric["value"]), metric["value"]),
            Cell(f"{metric['n']:,}", metric["n"]),
        ]
        for name, metric in sorted(metrics.items())
    ]
    hints = {"n": "test samples that the value is a mean over"}
    return Grid("Metrics", ["metric", "value", "n"], rows, hints) if rows else None


def _curves(curves: Mapping[str, Any]) -> Gallery:
    """Every validation metric in a chart of its own: they have different scales."""
    found = []
    for i, (name, points) in enumerate(curves.items()):
        kept = [(step, value) for step, value in points if finite([value])]
        if kept:
            text = f"{number(kept[-1][1])} at step {kept[-1][0]:g}"
            picture = charts.lines(
                f"curve-{i}",
                [Series(figures.short(name), kept, Style(3, 0, 0), text=text)],
                title=name,
                text=text,
                x_label="optimiser steps",
                y_label=name,
                height=300,
            )
            found.append(Figure(name, picture, marks=len(kept)))
    return Gallery(found[:1], found[1:])


def _calibration(bins: Mapping[str, Any]) -> Gallery:
    found: list[Figure] = []
    for role, one in bins.items():
        picture = charts.reliability(
            f"calibration-{len(found)}",
            quality.pooled([one]),
            title=f"reliability of {role}",
            text=f"{sum(one['count'])} items",
            style=Style(3, 0, 0),
        )
        found.append(Figure(role, picture, "", sum(1 for count in one["count"] if count)))
    return Gallery(found)


def _cost(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("wall time of the stage", duration(manifest["seconds"]))]
    for name, value in manifest["cost"].items():
        if name == "peak_memory_bytes":
            rows.append(("peak memory", f"{value / 2**20:,.0f} MB"))
        elif isinstance(value, dict):
            rows += [(kind, f"{amount:,.0f}") for kind, amount in sorted(value.items())]
        elif "seconds" in name:
            rows.append((name.replace("_", " "), f"{value:.1f}"))
        else:
            rows.append((name.replace("_", " "), f"{value:,}"))
    return rows


def _ships(ships: Mapping[str, Any]) -> Grid | None:
    rows = [
        [
            Cell(role, role),
            Cell(f"{facts['params']:,}", facts["params"]),
            Cell(f"{facts['flops'] / 1e6:.2f}", facts["flops"]),
            Cell(str(facts["sha256"])[:16], None),
        ]
        for role, facts in ships.items()
    ]
    return Grid("Models", ["role", "params", "Mflop", "weights"], rows) if rows else None
