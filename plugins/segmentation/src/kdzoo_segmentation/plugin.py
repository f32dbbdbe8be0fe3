"""What kdzoo-segmentation registers: its cards, its command and its checks. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from kdzoo.hookspecs import hookimpl

HERE = Path(__file__).parent


@hookimpl
def cards() -> list[Path]:
    return [HERE / "tasks", HERE / "methods"]


@hookimpl
def commands() -> dict[str, str]:
    return {"pictures": "kdzoo_segmentation.cli:pictures"}


@hookimpl
def checks() -> dict[str, str]:
    return {
        "segmentation": "kdzoo_segmentation.doctor:packages",
        "segmentation-data": "kdzoo_segmentation.doctor:shipped_data",
    }
