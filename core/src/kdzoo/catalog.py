"""The catalogue: all cards of all loaded plugins. Never imports torch."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kdzoo import plugins
from kdzoo.card_cache import open_cache
from kdzoo.cards import Baseline, MethodCard, Param, TaskCard, read, value_problem
from kdzoo.errors import KdzooError, unknown

FACETS = ("plugin", "knowledge", "scheme", "family", "teacher", "fidelity", "task", "year")


@dataclass(slots=True)
class Catalog:
    """Cards by slug, where their files are, and the cards that could not be read."""

    methods: dict[str, MethodCard] = field(default_factory=dict)
    tasks: dict[str, TaskCard] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def method(self, slug: str) -> MethodCard:
        if slug in self.broken:
            raise KdzooError(self.broken[slug])
        if slug not in self.methods:
            raise unknown("method", slug, self.methods, _remedy("'kdzoo list' shows all of them."))
        return self.methods[slug]

    def task(self, slug: str) -> TaskCard:
        if slug in self.broken:
            raise KdzooError(self.broken[slug])
        if slug not in self.tasks:
            raise unknown("task", slug, self.tasks, _remedy("'kdzoo list --tasks' shows all of them."))
        return self.tasks[slug]

    def module(self, slug: str) -> ModuleType:
        """The Python module beside the card of a method or a task."""
        name = module_name(self.paths[slug])
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                raise KdzooError(
                    f"card {slug}.toml has no module: expected {name} beside it (hyphens become underscores). "
                    "Nothing would be trained. Add the file, or reinstall the plugin."
                ) from error
            raise KdzooError(
                f"{slug} needs the package {error.name!r}, which is not installed. Install it, for example by "
                f"'pip install --force-reinstall kdzoo-{(self.methods.get(slug) or self.tasks[slug]).plugin}'."
            ) from error

    def select(self, pattern: str = "*", facets: Mapping[str, str] | None = None) -> list[MethodCard]:
        """Methods whose slug fits the glob and whose card has every wanted facet value, in order of slug."""
        facets = facets or {}
        for facet, wanted in facets.items():
            values = {value for card in self.methods.values() for value in facet_values(card, facet)}
            if wanted not in values:
                raise unknown(f"{facet}", wanted, values, f"Known: {', '.join(sorted(values)) or 'none'}.")
        return [
            card
            for slug, card in sorted(self.methods.items())
            if fnmatch.fnmatch(slug, pattern)
            and all(wanted in facet_values(card, facet) for facet, wanted in facets.items())
        ]


def facet_values(card: MethodCard, facet: str) -> set[str]:
    """What a card says on a facet, as strings."""
    if facet == "task":
        return set(card.tasks)
    if facet == "year":
        return {str(card.paper.year)}
    value = getattr(card, facet)
    return set(value) if isinstance(value, list) else {str(value)}


def _remedy(plain: str) -> str:
    """Where a plugin is broken, the name may be missing for that reason: say so."""
    broken = plugins.load().broken
    return f"{plain} Broken plugins: {'; '.join(p.error or '' for p in broken)}." if broken else plain


def module_name(card_path: Path) -> str:
    """``.../kdzoo_vision/methods/rkd.toml`` -> ``kdzoo_vision.methods.rkd``."""
    parts = [card_path.stem.replace("-", "_")]
    folder = card_path.parent
    while (folder / "__init__.py").exists():
        parts.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(parts))


def collect(folders: Iterable[Path], read_card: Callable[[Path, Any], Any] = read) -> Catalog:
    """Read all cards of the given folders; a folder's name says what they are (``methods`` or ``tasks``)."""
    catalog = Catalog()
    for folder in folders:
        if folder.name not in ("tasks", "methods") or not folder.is_dir():
            catalog.broken[str(folder)] = (
                f"no folder of cards: {folder}; expected one called tasks or methods"
            )
            continue
        for path in sorted(folder.glob("*.toml")):
            slug = path.stem
            if slug in catalog.paths:
                catalog.broken[slug] = (
                    f"two cards have the slug {slug!r}, {catalog.paths[slug]} and {path}: rename one"
                )
                catalog.methods.pop(slug, None)
                catalog.tasks.pop(slug, None)
                continue
            catalog.paths[slug] = path
            try:
                if folder.name == "tasks":
                    catalog.tasks[slug] = read_card(path, TaskCard)
                else:
                    catalog.methods[slug] = read_card(path, MethodCard)
            except KdzooError as error:
                catalog.broken[slug] = str(error)
    for card in list(catalog.methods.values()):
        tasks = [catalog.tasks[name] for name in card.tasks if name in catalog.tasks]
        found = [why for task in tasks for why in _misfits(card, task, _baseline(catalog, task))]
        if found:
            catalog.broken[card.slug] = f"card {card.slug}.toml: " + "; ".join(dict.fromkeys(found))
            del catalog.methods[card.slug]
    return catalog


def _baseline(catalog: Catalog, task: TaskCard) -> dict[str, Param]:
    """The settings of a task's baseline: its arm is part of every bench on the task."""
    method = catalog.methods.get(task.kd.method) if isinstance(task.kd, Baseline) else None
    return method.params if method else {}


def _misfits(card: MethodCard, task: TaskCard, baseline: Mapping[str, Param]) -> list[str]:
    """What a method's card sets that neither it nor the task defines, or to a value the setting does not take.

    What it sets for its whole bench may be a setting of the `baseline` too.
    """
    params = {**task.params, **card.params}
    found = [
        f"it and task {task.slug!r} both define the setting {name!r}"
        for name in card.params
        if name in task.params
    ]
    here = task.slug
    given = [(f"tasks.{here}.set", key, value) for key, value in card.tasks[here].set.items()]
    for name, arm in card.arms.items():
        if not arm.tasks or here in arm.tasks:
            given += [(f"arms.{name}.set", key, value) for key, value in arm.set.items()]
            given += [
                (f"arms.{name}.grid", key, value) for key, values in arm.grid.items() for value in values
            ]
    for name, switch in card.switches.items():
        if not switch.tasks or here in switch.tasks:
            given += [(f"switches.{name}.off", key, value) for key, value in switch.off.items()]
    checked = [(where, key, value, params) for where, key, value in given]
    wide = {**baseline, **params}
    checked += [(f"tasks.{here}.bench", key, value, wide) for key, value in card.tasks[here].bench.items()]
    for where, key, value, known in checked:
        if key not in known:
            found.append(str(unknown("setting", key, known, f"It is set in [{where}].")))
        elif why := value_problem(known[key], value):
            found.append(f"{where}.{key}: {why}")
    return found


@cache
def load() -> Catalog:
    """The catalogue of all loaded plugins, read once a process."""
    folders = [Path(folder) for _, answer in plugins.load().collect("cards", list) for folder in answer]
    remembered = open_cache()
    cards = collect(folders, remembered.read)
    remembered.save()
    return cards
