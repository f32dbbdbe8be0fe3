"""What a task serves: data by split. Models, supervised loss, metrics and the engine come through the hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from kdzoo.method import Batch

SPLITS = ("train", "pool", "dev", "val", "test")
"""train: labelled; pool: unlabelled; dev: rewards and stopping; val: choices; test: the bench's last stage only."""


@dataclass(slots=True)
class Data:
    """One split.

    Attributes:
        items: whatever `collate` understands (tensors of the whole split, a list of files, ...).
        ids: one stable id per sample; ``len(ids)`` is the size of the split.
        collate: ``collate(items, rows, seeds) -> Batch``. `rows` is an int64 tensor (B,) of positions, `seeds` an
            int64 tensor (B,) with one seed per drawn sample, made of (run seed, epoch, sample id): augmentation
            takes its randomness from there and from nothing else. `seeds` is None for evaluation: no augmentation.
        hash: sha256 (hex) of the content: enters the keys of all stages that read the split.
        fixed_views: True if `collate` gives a sample the same views whatever its seed, None included: what a frozen
            teacher says about it is then worth recording (``kdzoo bench --signals recorded``).
        groups: (N,) int64 class or group of each row, for streams that draw several samples a group; or None.
    """

    items: Any
    ids: Sequence[str]
    collate: Callable[[Any, Tensor, Tensor | None], Batch]
    hash: str
    groups: Tensor | None = None
    fixed_views: bool = False

    def __len__(self) -> int:
        return len(self.ids)
