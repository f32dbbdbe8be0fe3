"""Find, load and isolate plugins.

One broken plugin must not take the command line with it: whatever goes wrong while a plugin is imported or
registered is kept beside its name (`Plugin.error`, one line that names plugin, hook and reason) and the rest works.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy

from kdzoo import hookspecs
from kdzoo.errors import KdzooError, unknown

GROUP = "kdzoo"
EXTENSION_GROUP = "kdzoo.extensions"


@dataclass(slots=True)
class Plugin:
    """One entry point and what became of it. `error` is None for a plugin that works."""

    name: str
    target: str
    distribution: str
    version: str
    hooks: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(slots=True)
class Plugins:
    """All plugins found, and the manager that holds those that work."""

    manager: pluggy.PluginManager
    found: dict[str, Plugin]

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.found.values() if plugin.error]

    @property
    def hook(self) -> Any:
        return self.manager.hook


def new_manager() -> pluggy.PluginManager:
    """A manager that knows the ten hooks and nothing else; it prints every call where ``KDZOO_TRACE=1``."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if os.environ.get("KDZOO_TRACE", "") not in ("", "0"):
        manager.add_hookcall_monitoring(_trace, lambda *_: None)
    return manager


def _trace(name: str, implementations: list[pluggy.HookImpl], arguments: dict[str, Any]) -> None:
    given = {key: value for key, value in arguments.items() if isinstance(value, str | int | float)}
    said = ", ".join(f"{key}={value!r}" for key, value in given.items())
    who = ", ".join(implementation.plugin_name for implementation in reversed(implementations))
    print(f"hook {name}({said}) <- {who or 'nobody'}", file=sys.stderr)


def register(manager: pluggy.PluginManager, module: Any, name: str) -> str | None:
    """Register one plugin; return why not, in one line, with the plugin left out, or None."""
    try:
        manager.register(module, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return " ".join(str(error).split())
    return None


def _wanted() -> set[str] | None:
    """The names in ``KDZOO_PLUGINS`` (core is always loaded), or None for all."""
    limit = os.environ.get("KDZOO_PLUGINS")
    return None if limit is None else {"core", *(name.strip() for name in limit.split(",") if name.strip())}


@cache
def load() -> Plugins:
    """Load the registration modules named by the entry points of group ``kdzoo``, once a process.

    ``KDZOO_PLUGINS=core,vision`` limits what is loaded; a name in it that is not installed is an error.
    """
    manager, found, wanted = new_manager(), {}, _wanted()
    entry_points = sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name != "core", entry.name))
    for entry in entry_points:
        if wanted is not None and entry.name not in wanted:
            continue
        distribution = entry.dist
        plugin = Plugin(
            name=entry.name,
            target=entry.value,
            distribution=distribution.name if distribution else "?",
            version=distribution.version if distribution else "?",
        )
        found[entry.name] = plugin
        try:
            module = entry.load()
        except Exception as error:  # a plugin may fail in any way at import; the rest must live
            plugin.error = f"plugin {entry.name!r} ({entry.value}): import failed: {type(error).__name__}: {error}"
            continue
        if why := register(manager, module, entry.name):
            plugin.error = f"plugin {entry.name!r} ({entry.value}): {why}"
            continue
        plugin.hooks = sorted(call.name for call in manager.get_hookcallers(module) or [])
    if wanted is not None and (missing := wanted - set(found)):
        installed = ", ".join(entry.name for entry in entry_points)
        raise KdzooError(
            f"KDZOO_PLUGINS names {', '.join(sorted(missing))}, which is not installed (installed: {installed}). "
            "Install it, for example 'pip install kdzoo-vision', or take the name out."
        )
    return Plugins(manager, found)


def merged(results: Iterable[dict[str, str]], what: str) -> dict[str, str]:
    """One mapping out of what several plugins returned; a name given twice is an error."""
    whole: dict[str, str] = {}
    for part in results:
        if twice := sorted(whole.keys() & part.keys()):
            raise KdzooError(f"two plugins bring the {what} {twice[0]!r}: uninstall or rename one of them")
        whole.update(part)
    return whole


def resolve(target: str) -> Any:
    """The object that ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise KdzooError(f"cannot load {target!r}: {error}. Reinstall the distribution that names it.") from error


def extensions() -> dict[str, metadata.EntryPoint]:
    """Extensions that ``--with`` may name: name -> entry point."""
    return {entry.name: entry for entry in metadata.entry_points(group=EXTENSION_GROUP)}


def extension_versions(names: Iterable[str]) -> tuple[str, ...]:
    """``name==version`` of each named extension, for keys and records; an unknown name is an error."""
    known = extensions()
    said = []
    for name in names:
        if name not in known:
            raise unknown("extension", name, known, "'kdzoo plugins' lists those installed.")
        distribution = known[name].dist
        said.append(f"{name}=={distribution.version if distribution else '?'}")
    return tuple(said)


def run_manager(modules: Iterable[tuple[str, ModuleType]]) -> pluggy.PluginManager:
    """A fresh manager for one stage: `modules` in registration order (core, task, method, extensions)."""
    manager = new_manager()
    for name, module in modules:
        if why := register(manager, module, name):
            raise KdzooError(f"{name} ({module.__name__}) cannot be used: {why}")
    return manager
