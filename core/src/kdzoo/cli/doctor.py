"""``kdzoo doctor``"""

from __future__ import annotations

import typer


def doctor() -> None:
    """Check this installation: versions, data, folders, plugins.

    Exit code 1 means that something is wrong; every such line says what to do.
    """
    from kdzoo import plugins
    from kdzoo.errors import KdzooError

    wrong = 0
    for name, target in plugins.load().targets("checks").items():
        try:
            print(f"ok     {name}: {plugins.resolve(target)()}")
        except KdzooError as error:
            wrong += 1
            print(f"WRONG  {name}: {error}")
        except (
            Exception
        ) as error:  # a check of a plugin may fail in any way; the others are still worth reading
            wrong += 1
            print(f"WRONG  {name}: {type(error).__name__}: {error}")
    for plugin in plugins.load().broken:
        wrong += 1
        print(f"WRONG  {plugin.error}")
    if wrong:
        raise typer.Exit(1)
