"""What the readers of layouts share: the list they return, and careful reading of other people's files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from kdzoo.data_layout import layout_error
from kdzoo.errors import KdzooError
from kdzoo_vision.data.datasets import DatasetInfo

Part = Literal["train", "test"]

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
WNID = re.compile(r"n\d{8}")


@dataclass(slots=True)
class Listing:
    """The images of an official part.

    Attributes:
        paths: relative to the data set's folder, with "/", sorted.
        classes: one class key per image: a name or the official number as text.
        known: all class keys in label order; in metric learning those of this part alone.
    """

    paths: list[str]
    classes: list[str]
    known: tuple[str, ...]


def listing(pairs: list[tuple[str, str]], known: list[str]) -> Listing:
    """(path, class) pairs in the order of the paths: the order on disk or in a file does not matter."""
    ordered = sorted(pairs)
    return Listing([path for path, _ in ordered], [key for _, key in ordered], tuple(known))


def numbered(rows: list[tuple[str, int]]) -> Listing:
    """A listing whose classes are the numbers that occur, in numeric order."""
    known = [str(number) for number in sorted({number for _, number in rows})]
    return listing([(path, str(number)) for path, number in rows], known)


def damaged(path: Path, problem: str, line: int | None = None) -> KdzooError:
    """The error for a file whose content is not what the layout says."""
    where = f"{path}, line {line}" if line else f"{path}"
    return KdzooError(
        f"{where}: {problem}. Images or labels would be wrong, so nothing was loaded. "
        "Unpack the archive again; check that it is complete and of the right data set."
    )


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-empty lines of a text file with their number, from 1."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"cannot be read as text ({error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line


def fields(path: Path, number: int, line: str, count: int, numeric: tuple[int, ...]) -> list[str]:
    """The `count` fields of a line (the last may hold blanks); those at `numeric` are whole numbers."""
    parts = line.strip().split(maxsplit=count - 1)
    if len(parts) != count or not all(parts[k].isdecimal() for k in numeric):
        raise damaged(path, f"{line[:80]!r} has not the {count} fields of this layout", number)
    return parts


def inside(path: str, source: Path) -> str:
    """A relative path that stays in its folder, in one spelling."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise damaged(source, f"lists {path!r}, which is not a path inside the data set")
    return str(pure)


def wnid_folders(place: Path) -> list[str]:
    """Names of the class folders (n and 8 digits), sorted; none if there is no such place."""
    try:
        found = [entry.name for entry in os.scandir(place) if WNID.fullmatch(entry.name) and entry.is_dir()]
    except OSError:
        return []
    return sorted(found)


def image_names(place: Path) -> list[str]:
    """File names of the images of a folder, sorted."""
    try:
        found = [entry.name for entry in os.scandir(place)]
    except OSError as error:
        raise damaged(place, f"cannot be listed ({error.strerror})") from error
    return sorted(name for name in found if name.lower().endswith(IMAGE_SUFFIXES))


def need(info: DatasetInfo, home: Path, files: tuple[str, ...] = (), folders: tuple[str, ...] = ()) -> None:
    """Raise the layout message if one of these is missing."""
    missing = [name for name in files if not (home / name).is_file()]
    missing += [f"{name}/" for name in folders if not (home / name).is_dir()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise layout_error(info, home, f"{' and '.join(missing)} {verb} not there")
