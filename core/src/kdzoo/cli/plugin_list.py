"""``kdzoo plugins``"""

from __future__ import annotations

import json
from typing import Annotated

import typer


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """List the plugins found: origin, version, hooks, and what is wrong with those that do not work."""
    from dataclasses import asdict

    from kdzoo import plugins as loading

    found = loading.load().found.values()
    named = {name: entry.value for name, entry in loading.extensions().items()}
    if as_json:
        print(json.dumps({"plugins": [asdict(plugin) for plugin in found], "extensions": named}, indent=1))
        return
    for plugin in found:
        state = f"hooks: {', '.join(plugin.hooks)}" if plugin.error is None else f"BROKEN: {plugin.error}"
        print(f"{plugin.name}  {plugin.distribution} {plugin.version}  ({plugin.target})  {state}")
    for name, target in named.items():
        print(f"extension {name}  ({target})  use: kdzoo bench SLUG --with {name}")
