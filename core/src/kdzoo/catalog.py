"""The catalogue: all cards of all loaded plugins. Never imports torch."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from kdzoo import plugins
from kdzoo.cards import MethodCard, TaskCard, read
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
        return importlib.import_module(module_name(self.paths[slug]))

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


def collect(folders: Iterable[Path]) -> Catalog:
    """Read all cards of the given folders; a folder's name says what they are (``methods`` or ``tasks``)."""
    catalog = Catalog()
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            if path.stem in catalog.paths:
                catalog.broken[path.stem] = f"two cards have the slug {path.stem!r}: rename one of them"
                continue
            catalog.paths[path.stem] = path
            try:
                if folder.name == "tasks":
                    catalog.tasks[path.stem] = read(path, TaskCard)
                else:
                    catalog.methods[path.stem] = read(path, MethodCard)
            except KdzooError as error:
                catalog.broken[path.stem] = str(error)
    for card in catalog.methods.values():
        for task in card.tasks:
            if task in catalog.tasks:
                _check_settings(catalog, card, task)
    return catalog


def _check_settings(catalog: Catalog, card: MethodCard, task: str) -> None:
    """Every setting that a method card changes must exist, in the method or in the task."""
    known = {*card.params, *catalog.tasks[task].params}
    if both := sorted(card.params.keys() & catalog.tasks[task].params.keys()):
        catalog.broken[card.slug] = f"card {card.slug}.toml and task {task!r} both define the setting {both[0]!r}"
    tables = {f"tasks.{task}.set": card.tasks[task].set}
    tables |= {f"arms.{n}": {**a.set, **a.grid} for n, a in card.arms.items() if not a.tasks or task in a.tasks}
    tables |= {f"switches.{n}.off": s.off for n, s in card.switches.items() if not s.tasks or task in s.tasks}
    for where, given in tables.items():
        for key in given:
            if key not in known:
                error = unknown("setting", key, known, f"It is set in [{where}].")
                catalog.broken[card.slug] = f"card {card.slug}.toml: {error}"


@cache
def load() -> Catalog:
    """The catalogue of all loaded plugins, read once a process."""
    folders = [folder for result in plugins.load().hook.cards() for folder in result]
    return collect(folders)
