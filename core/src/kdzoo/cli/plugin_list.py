"""``kdzoo plugins``"""

from __future__ import annotations

from typing import Annotated

import typer


def plugins(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")
    ] = False,
) -> None:
    """List plugins and extensions: origin, version, hooks.

    What is wrong with those that do not work is said in one line each; the others work without them.
    """
    from kdzoo import catalog
    from kdzoo import plugins as loading

    catalog.load()
    for hook in ("commands", "checks"):  # what is wrong with an answer is known once it is asked for
        loading.load().targets(hook)
    found = loading.load().found.values()
    named = {name: entry.value for name, entry in loading.extensions().items()}
    if as_json:
        import json

        fields = ("name", "target", "distribution", "version", "hooks", "error")
        rows = [{field: getattr(plugin, field) for field in fields} for plugin in found]
        print(json.dumps({"plugins": rows, "extensions": named}, indent=1))
        return
    for plugin in found:
        state = f"hooks: {', '.join(plugin.hooks)}" if plugin.error is None else f"BROKEN: {plugin.error}"
        print(f"{plugin.name}  {plugin.distribution} {plugin.version}  ({plugin.target})  {state}")
    for name, target in named.items():
        print(f"extension {name}  ({target})  use: kdzoo bench SLUG --with {name}")
