"""Which images a student is distilled on: those its teacher has learned from, fresh ones, or both.

The teacher's own images are the first share of the split ``train``; the rest of it and the unlabelled split ``pool``,
where the task has one, are fresh. The loader draws from both splits as it does for every arm; here rows that an arm may
not use are replaced by random ones that it may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdzoo.errors import KdzooError
from kdzoo.loader import join
from kdzoo.method import Batch
from kdzoo.rng import id_words, mix, sample_seeds, uniforms
from kdzoo.task import Data
from kdzoo_vision.data.batch_images import shifted

if TYPE_CHECKING:
    from kdzoo.runs import Run

SHIFT = (
    2  # pixels that an image of the pool is shifted by, as the task's own augmentation shifts labelled ones
)


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `first` to `last` (excluded) of a split. `augments`: whether the split's own loader augments its images."""

    data: Data
    first: int
    last: int
    augments: bool

    def __len__(self) -> int:
        return self.last - self.first


def own_and_fresh(run: Run, own_share: float, fresh_images: int) -> tuple[list[Segment], list[Segment]]:
    """The images the teacher learned from, and `fresh_images` others (0: all there are)."""
    train = run.data("train")
    border = max(1, round(own_share * len(train)))
    left = fresh_images or 1 << 62
    fresh = []
    for data, first, augments in [(train, border, True), *((pool, 0, False) for pool in _pools(run))]:
        last = min(len(data), first + left)
        if last > first:
            fresh.append(Segment(data, first, last, augments))
            left -= last - first
    return [Segment(train, 0, border, True)], fresh


def _pools(run: Run) -> list[Data]:
    return [run.data("pool")] if any(stream.split == "pool" for stream in run.task.streams) else []


def restrict(run: Run, batch: Batch, *, use: str, own_share: float, fresh_images: int, augment: bool) -> None:
    """Replace every row of the batch that does not come from the images to be used, in place; labels come along.

    Args:
        use: "own", "fresh" or "both". With "both" the part of the batch that the loader drew from the pool is fresh and
            the rest is the teacher's own; without a pool the whole batch is drawn from their union.
        own_share: share of ``train`` that the teacher learned from, above 0.
        fresh_images: how many of the others may be used, the first ones; 0 for all.
        augment: the standard augmentation (the task's for labelled images, shift and mirror image for the pool), or
            none.

    Raises:
        KdzooError: fresh images are asked for where there are none.
    """
    own, fresh = own_and_fresh(run, own_share, fresh_images)
    if use != "own" and not fresh:
        raise KdzooError(
            f"distill_on = {use!r} on task {run.task.slug!r}: expected images that the teacher has not seen, but it "
            f"has no pool and the teacher learns from all of train (own_share = {own_share:g}). The student would be "
            "trained on nothing. Set own_share below 1, or distill_on = 'own'."
        )
    has_pool = bool(_pools(run))
    both = own if has_pool else [*own, *fresh]
    targets = {
        "train": {"own": own, "fresh": fresh, "both": both}[use],
        "pool": own if use == "own" else fresh,
    }
    parts = []
    for split, some in _by_split(run, batch):
        purpose = f"transfer-{split}"
        if not _covers(targets[split], run.data(split)) or (split == "train" and not augment):
            some = drawn(run, some.ids, targets[split], augment, purpose)
        elif split == "pool" and augment:  # the task gives its pool as it is
            _shift(run, some, purpose)
        parts.append(some)
    joined = join(parts)
    batch.ids, batch.views, batch.labels = joined.ids, joined.views, joined.labels
    batch.counts = recounted(joined)


def keep_to_own(run: Run, batch: Batch, own_share: float) -> None:
    """What a teacher learns from: labelled images that are not its own are replaced; the pool, unlabelled, stays."""
    own, fresh = own_and_fresh(run, own_share, 0)
    if not any(segment.augments for segment in fresh):
        return
    parts = [
        drawn(run, some.ids, own, True, "own") if split == "train" else some
        for split, some in _by_split(run, batch)
    ]
    joined = join(parts)
    batch.ids, batch.views, batch.labels = joined.ids, joined.views, joined.labels
    batch.counts = recounted(joined)


def _by_split(run: Run, batch: Batch) -> list[tuple[str, Batch]]:
    """The batch taken apart into what each stream of the task gave."""
    share = int(run.cfg.get("accumulate", 1)) * run.device_info.ranks
    found: list[tuple[str, Batch]] = []
    first = 0
    for stream in run.task.streams:
        last = first + int(run.cfg[stream.batch]) // share
        rows = slice(first, last)
        views = {name: value[rows] for name, value in batch.views.items()}
        found.append((stream.split, Batch(batch.ids[rows], views, batch.labels[rows])))
        first = last
    return found


def _covers(target: list[Segment], data: Data) -> bool:
    return len(target) == 1 and target[0].data is data and len(target[0]) == len(data)


def drawn(run: Run, replaced: list[str], segments: list[Segment], augment: bool, purpose: str) -> Batch:
    """A row for each one that is replaced, drawn with repetition from all segments alike, on the run's device.

    What is drawn depends on the seed, the step and the id of the row that is replaced; not on how the batch is shared
    out to micro-batches and ranks.
    """
    base = mix(run.seed, "transfer", purpose, run.step)
    seeds = sample_seeds(base, id_words(replaced))
    total = sum(map(len, segments))
    picks = torch.from_numpy((uniforms(seeds, 1)[:, 0] * total).astype("int64"))
    parts, before = [], 0
    for segment in segments:
        here = (picks >= before) & (picks < before + len(segment))
        rows = picks[here] - before + segment.first
        before += len(segment)
        if not len(rows):
            continue
        data = segment.data
        part = run.to_device(data.collate(data.items, rows, seeds[here] if augment else None))
        if augment and not segment.augments:
            _shift(run, part, purpose)
        parts.append(part)
    return join(parts)


def _shift(run: Run, batch: Batch, purpose: str) -> None:
    batch.views["image"] = shifted(batch.views["image"], SHIFT, run.rng(f"{purpose}-shift"))


def recounted(batch: Batch) -> dict[str, int]:
    """Items and labelled items of a batch whose rows were replaced."""
    return {"item": len(batch.ids), "label": int((batch.labels >= 0).sum())}
