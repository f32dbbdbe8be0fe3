"""The packed files of a data set, held against the manifest beside them."""

from __future__ import annotations

import gzip
import lzma
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from kdzoo.shipped import Shipped

FILES = Path(__file__).with_name("files")


@cache
def manifest(stem: str, tool: str, folder: Path = FILES) -> dict[str, Any]:
    """What ``<stem>-manifest.json`` says: source, rules, sha256 of each file.

    Raises:
        KdzooError: it is missing, unreadable or of another form.
    """
    shipped = Shipped(stem, tool, "kdzoo-llm")
    path = folder / f"{stem}-manifest.json"
    return shipped.parsed(path, shipped.content(path), ("sha256",))


def text(stem: str, tool: str, name: str, folder: Path = FILES) -> str:
    """The unpacked text of one file, packed by gzip or (.xz) by lzma.

    Args:
        stem: the data set, first part of its files' names.
        tool: the program under tools/ that builds it.
        name: the file.
        folder: where the shipped files are.

    Raises:
        KdzooError: a file that is missing, unreadable, or not the one in the manifest.
    """
    shipped = Shipped(stem, tool, "kdzoo-llm")
    expected = manifest(stem, tool, folder)["sha256"].get(name)
    if expected is None:
        raise shipped.damaged(folder / f"{stem}-manifest.json", f"lacks the sha256 of {name}")
    content = shipped.content(folder / name, expected)
    try:
        unpack = lzma.decompress if name.endswith(".xz") else gzip.decompress
        return unpack(content).decode("utf-8")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise shipped.damaged(folder / name, f"cannot be unpacked ({error})") from error
