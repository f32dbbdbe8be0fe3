"""Lines of text that ship compressed, beside a manifest with their hash."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

from kdzoo.shipped import Shipped


def lines(shipped: Shipped, folder: Path, manifest: str, name: str) -> tuple[list[str], dict[str, Any]]:
    """The lines of a shipped .xz file, and its manifest.

    Args:
        shipped: whose file it is.
        folder: where file and manifest are.
        manifest: name of the manifest.
        name: name of the file.

    Raises:
        KdzooError: one of them cannot be read, or is not the one in the manifest.
    """
    path = folder / manifest
    said = shipped.parsed(path, shipped.content(path), ("sha256",))
    if name not in said["sha256"]:
        raise shipped.damaged(path, f"lacks the sha256 of {name}")
    content = shipped.content(folder / name, said["sha256"][name])
    # Not splitlines(): verses and code may hold the other characters that it cuts at.
    return lzma.decompress(content).decode().removesuffix("\n").split("\n"), said
