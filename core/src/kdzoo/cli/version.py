"""``kdzoo version``"""

from __future__ import annotations

from importlib import metadata


def version() -> None:
    """Print the versions of kdzoo and its plugins."""
    from kdzoo import plugins

    print(f"kdzoo {metadata.version('kdzoo')}")
    for plugin in plugins.load().found.values():
        if plugin.name != "core":
            print(f"{plugin.distribution} {plugin.version}")
