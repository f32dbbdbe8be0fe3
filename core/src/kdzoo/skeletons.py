"""Skeletons of methods and plugins: which files, with what in them, where. Nothing is overwritten; all or nothing.

The texts are in ``templates/``; ``$name`` in them is replaced. Nothing here imports torch.
"""

from __future__ import annotations

import keyword
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

from kdzoo import catalog, plugins
from kdzoo.cards import Baseline, TaskCard
from kdzoo.errors import KdzooError, unknown

LONGEST = 30  # letters of a name: the generated lines then fit into 110 columns
_WORDS = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plugin's files are: its import package, that package's folder, and the folder of its tests."""

    package: str
    source: Path
    tests: Path


def method_files(slug: str, plugin: str, task: str | None, path: Path | None) -> dict[Path, str]:
    """The card, module and test of a new method, in a plugin that is installed and whose source is here.

    Raises:
        KdzooError: a name that cannot be one or is taken, a plugin or task that is not there, no source to write to.
    """
    _check_name("method", slug)
    known = plugins.load().found
    if plugin not in known or plugin == "core":
        others = [name for name in known if name != "core"]
        raise unknown(
            "plugin", plugin, others, "'kdzoo plugins' lists them; 'kdzoo new-plugin' begins another."
        )
    if why := known[plugin].error:
        raise KdzooError(f"{why}. A method in it could not be loaded: put the plugin right first.")
    cards = catalog.load()
    if slug in cards.paths:
        raise KdzooError(
            f"the name {slug!r} is taken by {cards.paths[slug].parent.name}/{slug}.toml: two cards of one name would "
            "hide each other. Choose another name."
        )
    card = _task(cards, plugin, task)
    place = find_place(plugin, path)
    module = slug.replace("-", "_")
    if f"{module}_weight" in card.params:
        raise KdzooError(
            f"task {card.slug!r} has a setting {module}_weight already. Choose another name than {slug!r}."
        )
    takes = _variant(cards, card)
    values = {
        **takes,
        "slug": slug,
        "module": module,
        "plugin": plugin,
        "package": place.package,
        "task": card.slug,
        "metric": next(name for name, metric in card.metrics.items() if metric.primary),
        "rival": card.kd.method if isinstance(card.kd, Baseline) else "student",
        "year": str(date.today().year),
    }
    methods = place.source / "methods"
    files = {
        methods / f"{slug}.toml": _filled("method/card.toml", values),
        methods / f"{module}.py": _filled("method/module.py", values),
        place.tests / f"test_{module}.py": _filled("method/test.py", values),
    }
    if not (methods / "__init__.py").exists():
        files[methods / "__init__.py"] = ""
    return files


def plugin_files(name: str, path: Path | None) -> tuple[dict[Path, str], Path]:
    """The files of a new distribution, and its folder: ``plugins/<name>`` in a checkout, else ``kdzoo-<name>`` here.

    Raises:
        KdzooError: a name that cannot be one or is taken, or a folder that is not empty.
    """
    _check_name("plugin", name)
    package = f"kdzoo_{name.replace('-', '_')}"
    taken = sorted({*plugins.load().found, "core"})
    if name in taken or find_spec(package) is not None:
        raise KdzooError(
            f"the name {name!r} is taken (installed plugins: {', '.join(taken)}): the second plugin of a name "
            "is left out. Choose another name."
        )
    root = _checkout(Path.cwd()) if path is None else None
    home = path or (root / "plugins" / name if root else Path.cwd() / f"kdzoo-{name}")
    if home.is_file() or (home.is_dir() and any(home.iterdir())):
        raise KdzooError(
            f"{home} is there already, expected a folder that is new or empty. Name another with --path."
        )
    values = {
        "name": name,
        "module": name.replace("-", "_"),
        "package": package,
        "distribution": f"kdzoo-{name}",
        "licence": '\nlicense = "Apache-2.0"\nlicense-files = ["LICENSE"]' if root else "",
    }
    source, tests = home / "src" / package, root / "tests/plugins" / name if root else home / "tests"
    starter, baseline = f"{values['module']}_starter", f"{values['module']}_soft_labels"
    tools = "" if root else _filled("plugin/tools.toml", values)
    files = {
        home / "pyproject.toml": _filled("plugin/pyproject.toml", values) + tools,
        home / "README.md": _filled("plugin/README.md", values),
        source / "__init__.py": "",
        source / "py.typed": "",
        source / "plugin.py": _filled("plugin/plugin.py", values),
        source / "tasks/__init__.py": "",
        source / f"tasks/{name}-starter.toml": _filled("plugin/task.toml", values),
        source / f"tasks/{starter}.py": _filled("plugin/task.py", values),
        source / "methods/__init__.py": "",
        source / f"methods/{name}-soft-labels.toml": _filled("plugin/baseline.toml", values),
        source / f"methods/{baseline}.py": _filled("plugin/baseline.py", values),
        tests / "test_contract.py": _filled("plugin/test_contract.py", values),
        tests / "test_starter.py": _filled("plugin/test_task.py", values),
    }
    if root:
        files[home / "LICENSE"] = (root / "LICENSE").read_text(encoding="utf-8")
    return files, home


def write(files: Mapping[Path, str]) -> None:
    """Write all files, or none.

    Raises:
        KdzooError: one of them is there already, or the disk refused.
    """
    if there := [path for path in files if path.exists()]:
        raise KdzooError(
            f"{', '.join(map(str, there))}: there already, and nothing is overwritten. No file was written; move it "
            "away or choose another name."
        )
    made: list[Path] = []
    try:
        for path, text in files.items():
            for folder in reversed([p for p in path.parents if not p.exists()]):
                folder.mkdir()
                made.append(folder)
            with open(path, "x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except BaseException as error:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            raise KdzooError(
                f"{error.filename or path}: {error.strerror or error}. No file was left behind; name a folder you "
                "may write to with --path."
            ) from error
        raise


def find_place(plugin: str, path: Path | None) -> Place:
    """The source of a plugin: under `path`, or in the checkout or distribution that the current folder is in.

    Raises:
        KdzooError: no pyproject.toml there that names the plugin's entry point, or one whose package is not there.
    """
    looked = [path.resolve()] if path else [Path.cwd(), *Path.cwd().parents]
    for folder in looked:
        for home in (folder, folder / "plugins" / plugin):
            if package := _named_in(home / "pyproject.toml", plugin):
                source = next((p for p in (home / "src" / package, home / package) if p.is_dir()), None)
                if source is None:
                    raise KdzooError(
                        f"{home / 'pyproject.toml'} names the plugin {plugin!r}, but there is no folder src/{package} "
                        "beside it. Put the package there."
                    )
                root = _checkout(home)
                return Place(package, source, root / "tests/plugins" / plugin if root else home / "tests")
    raise KdzooError(
        f"no source of the plugin {plugin!r} {'in' if path else 'in or above'} {looked[0]}: expected a pyproject.toml "
        f"with an entry point {plugin!r} in the group 'kdzoo'. Name the folder of the distribution with --path."
    )


def _named_in(pyproject: Path, plugin: str) -> str | None:
    """The package in which a distribution's registration module lies, if it is the plugin's distribution."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        target: str = project["entry-points"]["kdzoo"][plugin]
    except (OSError, KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    return target.partition(":")[0].partition(".")[0]


def _checkout(folder: Path) -> Path | None:
    """The root of the checkout of kdzoo that a folder is in."""
    for root in (folder.resolve(), *folder.resolve().parents):
        if (root / "core/src/kdzoo/hookspecs.py").exists() and (root / "plugins").is_dir():
            return root
    return None


def _check_name(kind: str, name: str) -> None:
    """A slug that makes a module's name too."""
    near = "-".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("0123456789-")
    hint = f" For example {near!r}." if near and near != name and not keyword.iskeyword(near) else ""
    if not _WORDS.fullmatch(name):
        raise KdzooError(
            f"{name!r} cannot be the name of a {kind}: expected lower-case letters and digits in words joined by '-', "
            f"a letter first; it becomes a file, a module and a command-line argument.{hint}"
        )
    if keyword.iskeyword(name):
        raise KdzooError(
            f"{name!r} cannot be the name of a {kind}: it is a word of Python, so no module can be called so."
        )
    if len(name) > LONGEST:
        raise KdzooError(
            f"{name!r} has {len(name)} letters, expected at most {LONGEST}: tables would not fit. Shorten it."
        )


def _task(cards: catalog.Catalog, plugin: str, task: str | None) -> TaskCard:
    """The task asked for; else the local task of the plugin that most of its methods run on by default."""
    local = {slug: card for slug, card in sorted(cards.tasks.items()) if card.profile == "local"}
    if task is not None:
        if task in local:
            return local[task]
        if task in cards.tasks:
            raise KdzooError(
                f"task {task!r} is of the paper profile, so the new method could not be tried here. Name a local one: "
                f"{', '.join(local)}; add the paper's to the card later."
            )
        raise unknown("task", task, local, "'kdzoo list --tasks' shows all of them.")
    own = [slug for slug, card in local.items() if card.plugin == plugin]
    if not own:
        raise KdzooError(
            f"the plugin {plugin!r} has no local task, so there is nothing to train on. Name one with --task: "
            f"{', '.join(local) or 'none is installed'}."
        )
    uses = [use for method in cards.methods.values() for use in method.tasks.items()]
    return local[max(own, key=lambda slug: sum(name == slug and use.default for name, use in uses))]


def _variant(cards: catalog.Catalog, task: TaskCard) -> dict[str, str]:
    """What the skeleton matches: logits where the task has classes, else embeddings, whose widths may differ."""
    baseline = cards.methods.get(task.kd.method) if isinstance(task.kd, Baseline) else None
    if "classes" in task.sizes or (baseline is not None and baseline.teacher == ["logits"]):
        return {
            "output": "logits",
            "knowledge": "response",
            "student": "BC",
            "teacher": "BC",
            "legend": "B items, C classes",
            "mismatch": "s_BC.shape != t_BC.shape",
            "expected": "equal shapes",
            "raises": "shapes differ; broadcasting would compare items with each other",
        }
    return {
        "output": "embedding",
        "knowledge": "relation",
        "student": "BD",
        "teacher": "BE",
        "legend": "B items, D and E embedding widths",
        "mismatch": "len(s_BD) != len(t_BE)",
        "expected": "as many items",
        "raises": "the numbers of items differ",
    }


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = resources.files("kdzoo").joinpath(f"templates/{template}.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(values)
