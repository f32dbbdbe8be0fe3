"""Which training classes or images become the validation split: a ranking by hash, without a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def held_out(keys: Sequence[str], share: float) -> set[str]:
    """The round(share * n) keys with the smallest sha256: at least one if share > 0 and n > 1, and never all.

    A larger share adds keys to those of a smaller one, and the order of `keys` does not matter.
    """
    if share == 0 or len(keys) < 2:
        return set()
    count = min(max(1, round(share * len(keys))), len(keys) - 1)
    return set(sorted(keys, key=lambda key: hashlib.sha256(f"kdzoo val {key}".encode()).digest())[:count])


def held_out_per_class(keys: Sequence[str], classes: Sequence[str], share: float) -> set[str]:
    """`held_out` within each class, so that both splits have all classes (those of one image go to train)."""
    members: dict[str, list[str]] = {}
    for key, name in zip(keys, classes, strict=True):
        members.setdefault(name, []).append(key)
    return set().union(*(held_out(group, share) for group in members.values()))
