"""What kdzoo-llm registers: its cards and its checks. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from kdzoo.hookspecs import hookimpl

HERE = Path(__file__).parent


@hookimpl
def cards() -> list[Path]:
    return [HERE / "tasks", HERE / "methods"]


@hookimpl
def checks() -> dict[str, str]:
    return {"llm": "kdzoo_llm.doctor:packages", "llm-data": "kdzoo_llm.doctor:shipped_data"}
