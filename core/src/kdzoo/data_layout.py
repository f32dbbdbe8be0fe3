"""The message for a user's data that do not lie, or do not read, as expected; shared by all plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from kdzoo.errors import KdzooError


class Layout(Protocol):
    """What a plugin knows of a data set on disk.

    Attributes:
        title: its name for people.
        layout: the tree that is expected, line by line.
        folders: names that its folder may have.
        home, terms: where it is had, and on what terms.
        gigabytes: size when unpacked.
    """

    @property
    def title(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def folders(self) -> tuple[str, ...]: ...
    @property
    def home(self) -> str: ...
    @property
    def terms(self) -> str: ...
    @property
    def gigabytes(self) -> float: ...


def layout_error(info: Layout, place: Path, problem: str, remedy: str = "") -> KdzooError:
    """Problem, what was found in `place` (or in the data set's folder there), expected layout, home, terms, remedy."""
    place = next((place / name for name in info.folders if (place / name).is_dir()), place)
    tree = "\n".join(f"  {line}" for line in info.layout.splitlines())
    steps = remedy or f"get it from its home, unpack it and pass the folder that holds {info.folders[0]}/"
    return KdzooError(
        f"{info.title}: {problem}\n"
        f"Found in {place}: {_found(place)}\n"
        f"Expected:\n{tree}\n"
        f"Home: {info.home} (about {info.gigabytes:g} GB unpacked)\n"
        f"Terms: {info.terms}\n"
        f"What to do: {steps}"
    )


def _found(place: Path, most: int = 12) -> str:
    """What a folder holds, in one line."""
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in place.iterdir())
    except FileNotFoundError:
        return "nothing, it does not exist"
    except NotADirectoryError:
        return "a file, not a folder"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) if names else "nothing, it is empty"
