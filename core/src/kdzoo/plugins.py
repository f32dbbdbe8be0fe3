"""Find, load and isolate plugins.

One broken plugin must not take the command line with it: whatever goes wrong while a plugin is imported or
registered is kept beside its name (`Plugin.error`, one line that names plugin, hook and reason) and the rest works.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from kdzoo import hookspecs
from kdzoo.errors import KdzooError, did_you_mean, unknown

GROUP = "kdzoo"
EXTENSION_GROUP = "kdzoo.extensions"


@dataclass(slots=True)
class Plugin:
    """One entry point and what became of it. `error` is None for a plugin that works."""

    name: str
    target: str
    dist: metadata.Distribution | None = None
    hooks: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def distribution(self) -> str:
        return self.dist.name if self.dist else "?"

    @property
    def version(self) -> str:
        """Read when asked for: parsing a distribution's metadata costs more than loading the plugin."""
        return self.dist.version if self.dist else "?"

    def fail(self, why: str) -> None:
        """Note why this plugin does not work, or not whole, in one line; what was noted before stays."""
        said = " ".join(why.split())
        if self.error is None:
            self.error = f"plugin {self.name!r} ({self.target}): {said}"
        elif said not in self.error:
            self.error += f"; {said}"


@dataclass(slots=True)
class Plugins:
    """All plugins found, and the manager that holds those that work."""

    manager: pluggy.PluginManager
    found: dict[str, Plugin]

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.found.values() if plugin.error]

    def collect(self, hook: str, kind: type) -> list[tuple[Plugin, Any]]:
        """(plugin, its answer) for a registration hook, core first.

        Every plugin is asked apart, so that one that raises, or answers with anything but a `kind`, is noted as
        broken and the others are still heard.
        """
        answers = []
        modules = {name: self.manager.get_plugin(name) for name in self.found}
        for name, plugin in self.found.items():
            if hook not in plugin.hooks:
                continue
            others = [module for other, module in modules.items() if other != name and module is not None]
            try:
                results = self.manager.subset_hook_caller(hook, others)()
            except (Exception, SystemExit) as error:  # a plugin may fail in any way; the rest must live
                plugin.fail(f"hook {hook}: {type(error).__name__}: {error}")
                continue
            if len(results) == 1 and isinstance(results[0], kind):
                answers.append((plugin, results[0]))
            else:
                got = type(results[0]).__name__ if results else "None"
                plugin.fail(f"hook {hook}: returned {got}, expected {kind.__name__}")
        return answers

    def targets(self, hook: str) -> dict[str, str]:
        """name -> ``module:attribute`` of all plugins. A name keeps its first owner, and core comes first."""
        whole: dict[str, str] = {}
        owners: dict[str, Plugin] = {}
        for plugin, answer in self.collect(hook, dict):
            for name, target in answer.items():
                if not (isinstance(name, str) and isinstance(target, str) and target.count(":") == 1):
                    plugin.fail(f"hook {hook}: got {name!r}: {target!r}, expected name: 'module:function'")
                elif name in owners:
                    plugin.fail(f"hook {hook}: {name!r} is {owners[name].name}'s already; rename it")
                else:
                    whole[name], owners[name] = target, plugin
        return whole


def new_manager() -> pluggy.PluginManager:
    """A manager that knows the ten hooks and nothing else; it prints every call where ``KDZOO_TRACE=1``."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if os.environ.get("KDZOO_TRACE", "") not in ("", "0"):
        manager.add_hookcall_monitoring(_trace, lambda *_: None)
    return manager


def _trace(name: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
    given = {key: value for key, value in arguments.items() if isinstance(value, str | int | float)}
    said = ", ".join(f"{key}={value!r}" for key, value in given.items())
    who = ", ".join(implementation.plugin_name for implementation in reversed(implementations))
    print(f"hook {name}({said}) <- {who or 'nobody'}", file=sys.stderr)


def register(manager: pluggy.PluginManager, module: Any, name: str) -> str | None:
    """Register one plugin; return why not, in one line that names the hook, with the plugin left out, or None."""
    try:
        manager.register(module, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        if manager.get_plugin(name) is module:
            manager.unregister(name=name)
        return _unknown_hook(module) or " ".join(str(error).split())
    if unmarked := [hook for hook in _specs() if _is_unmarked(module, hook)]:
        manager.unregister(name=name)
        return f"hook {unmarked[0]}: the function lacks @hookimpl, so it would never be called. Mark or rename it."
    return None


def _specs() -> list[str]:
    """The names of the ten hooks, in the order of their file."""
    return [
        name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{hookspecs.PROJECT}_spec")
    ]


def _unknown_hook(module: Any) -> str | None:
    """What to say of a marked function that no hook has the name of."""
    mark, known = f"{hookspecs.PROJECT}_impl", _specs()
    for name in sorted(vars(module)):
        options = getattr(getattr(module, name), mark, None)
        if options and name not in known and not options.get("optionalhook"):
            near = did_you_mean(name, known, n=1)
            return f"unknown hook {name!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            )
    return None


def _is_unmarked(module: Any, hook: str) -> bool:
    """A function written in this very module under a hook's name, but without the mark."""
    function = vars(module).get(hook)
    here = isinstance(function, FunctionType) and function.__module__ == getattr(module, "__name__", None)
    return here and not hasattr(function, f"{hookspecs.PROJECT}_impl")


def _wanted() -> set[str] | None:
    """The names in ``KDZOO_PLUGINS`` (core is always loaded), or None for all."""
    limit = os.environ.get("KDZOO_PLUGINS")
    return None if limit is None else {"core", *(name.strip() for name in limit.split(",") if name.strip())}


@cache
def load() -> Plugins:
    """Load the registration modules named by the entry points of group ``kdzoo``, once a process.

    ``KDZOO_PLUGINS=core,vision`` limits what is loaded; a name in it that is not installed is an error.
    """
    manager, wanted = new_manager(), _wanted()
    found: dict[str, Plugin] = {}
    entry_points = sorted(
        metadata.entry_points(group=GROUP), key=lambda entry: (entry.name != "core", entry.name)
    )
    for entry in entry_points:
        if wanted is not None and entry.name not in wanted:
            continue
        plugin = Plugin(entry.name, entry.value, entry.dist)
        if entry.name in found:
            found[entry.name].fail(
                f"{plugin.distribution} brings a plugin of the same name ({entry.value}); left out"
            )
            continue
        found[entry.name] = plugin
        try:
            module = entry.load()
        except (Exception, SystemExit) as error:  # a plugin may fail in any way at import; the rest must live
            plugin.fail(f"import failed: {type(error).__name__}: {error}")
            continue
        if why := register(manager, module, entry.name):
            plugin.fail(why)
            continue
        plugin.hooks = sorted(call.name for call in manager.get_hookcallers(module) or [])
        if not plugin.hooks:
            plugin.fail("it implements no hook; mark its functions with @kdzoo.hookspecs.hookimpl")
    if wanted is not None and (missing := wanted - set(found)):
        installed = sorted({entry.name for entry in entry_points})
        near = [name for given in sorted(missing) for name in did_you_mean(given, installed)]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise KdzooError(
            f"KDZOO_PLUGINS names {', '.join(sorted(missing))}, which is not installed (installed: "
            f"{', '.join(installed)}).{hint} Its methods would be missing without a word. Install it, for example "
            "'pip install kdzoo-vision', or take the name out."
        )
    return Plugins(manager, found)


def resolve(target: str) -> Any:
    """The object that ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise KdzooError(
            f"cannot load {target!r}: {error}. Reinstall the distribution that names it."
        ) from error


def extensions() -> dict[str, metadata.EntryPoint]:
    """Extensions that ``--with`` may name: name -> entry point."""
    return {entry.name: entry for entry in metadata.entry_points(group=EXTENSION_GROUP)}


def extension_versions(names: Iterable[str]) -> tuple[str, ...]:
    """``name==version`` of each named extension, for keys and records; an unknown or broken one is an error.

    It is imported here, so that what is wrong with it is said before anything is trained.
    """
    known = extensions()
    said = []
    for name in names:
        if name not in known:
            raise unknown("extension", name, known, "'kdzoo plugins' lists those installed.")
        target, distribution = known[name].value, known[name].dist
        try:
            module = known[name].load()
        except (
            Exception,
            SystemExit,
        ) as error:  # an extension may fail in any way at import; the user named it, so it is told
            raise KdzooError(
                f"extension {name!r} ({target}): import failed: {type(error).__name__}: {error}. "
                "Reinstall it, or run without --with."
            ) from error
        if why := register(new_manager(), module, name):
            raise KdzooError(f"extension {name!r} ({target}): {why}")
        said.append(f"{name}=={distribution.version if distribution else '?'}")
    return tuple(said)


def run_manager(modules: Iterable[tuple[str, ModuleType]]) -> pluggy.PluginManager:
    """A fresh manager for one stage: `modules` in registration order (core, task, method, extensions)."""
    manager = new_manager()
    for name, module in modules:
        if why := register(manager, module, name):
            raise KdzooError(f"{name} ({module.__name__}) cannot be used: {why}")
    return manager
