"""Core's own plugin: its commands and checks are registered like anybody's, its engine serves every task."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from kdzoo.hookspecs import hookimpl


@hookimpl
def cards() -> list[Path]:
    """Core brings no method and no task: they live in the domains' distributions."""
    return []


@hookimpl
def commands() -> dict[str, str]:
    return {
        "list": "kdzoo.cli.listing:list_methods",
        "show": "kdzoo.cli.show:show",
        "bench": "kdzoo.cli.bench:bench",
        "compare": "kdzoo.cli.compare:compare",
        "report": "kdzoo.cli.report:report",
        "diagnose": "kdzoo.cli.diagnose:diagnose",
        "cache": "kdzoo.cli.cache:cache",
        "new": "kdzoo.cli.new:new",
        "new-plugin": "kdzoo.cli.new:new_plugin",
        "plugins": "kdzoo.cli.plugin_list:plugins",
        "doctor": "kdzoo.cli.doctor:doctor",
        "version": "kdzoo.cli.version:version",
    }


@hookimpl
def checks() -> dict[str, str]:
    return {
        "python": "kdzoo.cli.checks:python",
        "torch": "kdzoo.cli.checks:torch",
        "cores": "kdzoo.cli.checks:cores",
        "home": "kdzoo.cli.checks:home",
        "cards": "kdzoo.cli.checks:cards",
    }


def engine() -> ModuleType:
    """The module whose hooks are core's part of every running stage: live signals, the loop, core's metrics."""
    from kdzoo import engine as module

    return module
