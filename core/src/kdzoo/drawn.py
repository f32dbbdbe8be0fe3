"""Where the rows of a batch come from, and whether its views still are what the loader made.

A recorded answer belongs to one sample seen in one way. The loader notes here what it drew; whoever edits a view
afterwards (mixup in `prepare_batch`, an in-place operation in a loss) is noticed, and the teacher is asked live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Rows of one stream: `size` neighbours in the batch, at the positions `rows` (count,) of the split."""

    split: str
    rows: Tensor
    size: int


@dataclass(slots=True)
class _Seen:
    value: Any
    versions: tuple[int, ...]
    copy: Any


class Drawn:
    """What the loader drew for one micro-batch.

    Args:
        parts: (split, rows, names of its views) of every stream, in the order of the batch.
        views: the views as they were made.
        copies: keep a copy of every view: `prepare_batch` is going to see them and may write through any alias.
    """

    __slots__ = ("_parts", "_seen")

    def __init__(
        self, parts: Sequence[tuple[str, Tensor, frozenset[str]]], views: dict[str, Any], copies: bool
    ) -> None:
        self._parts = parts
        self._seen = {
            name: _Seen(value, _versions(value), _copied(value) if copies else None)
            for name, value in views.items()
            # What else a view is made of could change unseen: it is never served from disk.
            if _can_be_watched(value)
        }

    def pieces(self, view: str) -> list[Piece]:
        """The rows of a view, stream by stream: a stream without this view has no rows in it."""
        return [Piece(split, rows, len(rows)) for split, rows, names in self._parts if view in names]

    def untouched(self, view: str, value: Any) -> bool:
        """Whether a view is the one that was drawn.

        It must be the same object, no torch operation may have written to it, and, where copies were kept, it must
        hold the same numbers. What is not seen: a write around torch (``.numpy()``, ``.data``) outside
        `prepare_batch`.
        """
        seen = self._seen.get(view)
        if seen is None:
            return False
        if seen.copy is not None:
            return _equal(seen.copy, value)
        return value is seen.value and _versions(value) == seen.versions


CONSTANTS = (str, int, float, bool)
"""What a view may hold beside tensors that is the same for every row, as the hash of a vocabulary."""


def _can_be_watched(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_can_be_watched(part) for part in value.values())
    return isinstance(value, (Tensor, *CONSTANTS))


def _versions(value: Any) -> tuple[int, ...]:
    """How often each tensor was written to; a constant can only be replaced."""
    if isinstance(value, dict):
        return tuple(version for part in value.values() for version in _versions(part))
    return (value._version if isinstance(value, Tensor) else hash(value),)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_equal(part, other[name]) for name, part in one.items())
        )
    if not isinstance(one, Tensor):
        return type(one) is type(other) and bool(one == other)
    return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
