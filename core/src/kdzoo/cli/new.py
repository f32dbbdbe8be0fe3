"""``kdzoo new`` and ``kdzoo new-plugin``"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli import complete


def new(
    slug: Annotated[str, typer.Argument(help="The name of the method: lower-case words joined by '-'.")],
    plugin: Annotated[
        str,
        typer.Option(help="Put the method into this plugin.", autocompletion=complete.plugins),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            help="Run it on this local task; without it, the one that most methods of the plugin run on.",
            autocompletion=complete.all_tasks,
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(help="Look for the plugin's source in this folder, not in or above the current one."),
    ] = None,
) -> None:
    """Begin a method: card, module, tests.

    The card loads, the module runs up to the equation that is missing, and the tests say what to write next. Nothing is
    overwritten.
    """
    from kdzoo import skeletons

    files = skeletons.method_files(slug, plugin, task, path)
    skeletons.write(files)
    _say(files)
    tests = next(file for file in files if file.name.startswith("test_"))
    _next(
        f"pytest {_short(tests)}    # fails, and says what to write",
        f"kdzoo show {slug}",
        f"kdzoo bench {slug} --smoke    # once the equation is in",
    )
    _say_where_it_is_loaded_from(plugin, files)


def new_plugin(
    name: Annotated[
        str, typer.Argument(help="The name of the plugin; its distribution is called kdzoo-NAME.")
    ],
    path: Annotated[
        Path | None,
        typer.Option(
            help="Make the distribution in this folder; without it, in plugins/NAME of a checkout of kdzoo, or in "
            "kdzoo-NAME here."
        ),
    ] = None,
) -> None:
    """Begin a plugin: a distribution that works.

    It holds a task, a baseline and their tests; put data, models and methods of your own in the place of those made up.
    """
    from kdzoo import skeletons

    files, home = skeletons.plugin_files(name, path)
    skeletons.write(files)
    _say(files)
    _next(
        f"pip install -e {_short(home)}",
        "kdzoo plugins",
        f"kdzoo bench {name}-soft-labels --smoke",
        f"pytest {_short(next(file.parent for file in files if file.name == 'test_contract.py'))}",
        f"kdzoo new my-method --plugin {name}"
        + ("" if home.parent.name == "plugins" else f" --path {_short(home)}"),
    )


def _say(files: Iterable[Path]) -> None:
    for file in files:
        print(f"wrote {_short(file)}")


def _next(*commands: str) -> None:
    print("next:")
    for command in commands:
        print(f"  {command}")


def _short(path: Path) -> str:
    """As one would type it here."""
    whole, here = path.resolve(), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(path)


def _say_where_it_is_loaded_from(plugin: str, files: Iterable[Path]) -> None:
    """A copy that is not the installed one is written to without effect: say so at once."""
    from importlib.util import find_spec

    from kdzoo import plugins

    package = plugins.load().found[plugin].target.partition(".")[0]
    spec = find_spec(package)
    folders = [Path(folder).resolve() for folder in (spec.submodule_search_locations or [] if spec else [])]
    if not any(file.resolve().is_relative_to(folder) for file in files for folder in folders):
        print(
            f"note: kdzoo loads {package} from {', '.join(map(str, folders))}, so it does not see these files yet. "
            "Install their distribution: pip install -e FOLDER."
        )
