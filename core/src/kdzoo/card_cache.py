"""Cards that were read before, so that ``kdzoo list`` need not parse all the TOML again.

114 cards take 0.1 s to parse and check and 3 ms to load from here. One file in the home folder holds every card that
was whole, by path, with the file's times and size; a card whose file changed, and all cards when the code that checks
them changed, are read anew. The cache only saves time: where it cannot be read or written, nothing is said or lost.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from kdzoo import card_checks, cards, claim_rows
from kdzoo.artefacts import home, write_atomic
from kdzoo.cards import Card, MethodCard, TaskCard
from kdzoo.errors import KdzooError

Stamp = tuple[int, int, int]


class _Stored(msgspec.Struct):
    """The file. `code` stamps the modules that say what a card is: another code may judge a card otherwise."""

    code: list[Stamp]
    methods: dict[str, tuple[Stamp, MethodCard]] = {}
    tasks: dict[str, tuple[Stamp, TaskCard]] = {}


class CardCache:
    """Reads cards, from the cache where it can; `save` writes what was new."""

    def __init__(self, file: Path) -> None:
        self.file, self.changed = file, False
        code = [_stamp(Path(str(module.__file__))) for module in (cards, card_checks, claim_rows)]
        self.stored = _Stored(code)
        try:
            stored = msgspec.msgpack.decode(file.read_bytes(), type=_Stored)
        except (OSError, msgspec.DecodeError):
            return
        if stored.code == code:
            self.stored = stored

    def read(self, path: Path, card_type: type[Card]) -> Card:
        """`kdzoo.cards.read`, remembered. A card that is broken is read, and complained of, every time."""
        table: dict[str, Any] = self.stored.tasks if card_type is TaskCard else self.stored.methods
        try:
            stamp = _stamp(path)
        except OSError:
            return cards.read(path, card_type)
        known = table.get(str(path))
        if known is not None and known[0] == stamp:
            remembered: Card = known[1]
            return remembered
        card = cards.read(path, card_type)
        table[str(path)] = (stamp, card)
        self.changed = True
        return card

    def save(self) -> None:
        """Write the cache if it changed, without cards whose files are gone."""
        if not self.changed:
            return
        for table in (self.stored.methods, self.stored.tasks):
            for path in [path for path in table if not Path(path).exists()]:
                del table[path]
        with suppress(OSError, KdzooError):  # a cache that cannot be written costs time, no more
            write_atomic(self.file, msgspec.msgpack.encode(self.stored))


def open_cache() -> CardCache:
    """The cache in the home folder."""
    return CardCache(home() / "cache" / "cards.msgpack")


def _stamp(path: Path) -> Stamp:
    """Times and size of a file. The change time tells apart what an installer gave one modification time."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
