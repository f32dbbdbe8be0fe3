"""The order of samples and the loader of micro-batches.

Epochs exist here only: an `Order` is an endless sequence of rows that can be entered anywhere, so that a resumed run
sees what an uninterrupted one sees, and one more (unlabelled) stream leaves the order of the others alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdzoo.drawn import Drawn
from kdzoo.errors import KdzooError
from kdzoo.method import Batch
from kdzoo.rng import id_words, mix, sample_seeds
from kdzoo.task import Data

if TYPE_CHECKING:
    from kdzoo.runs import Run


class Order:
    """An endless, seekable order over the rows of one split.

    Args:
        data: the split.
        seed: the run's seed.
        name: the stream's name; it enters the seed, so streams are independent of each other.
        batch: rows a step (all micro-batches and ranks together).
        per_group: 0 for plain shuffled epochs; else each batch holds batch / per_group groups with per_group rows
            each, groups in shuffled epochs, rows within a group drawn without repetition where there are enough.
    """

    def __init__(self, data: Data, seed: int, name: str, batch: int, per_group: int = 0) -> None:
        if batch < 1:
            raise KdzooError(f"stream {name!r}: batch is {batch}, expected at least 1")
        if not len(data):
            raise KdzooError(
                f"stream {name!r} is empty: there is nothing to train on. Check the task's data settings."
            )
        self.data, self.seed, self.name, self.batch, self.per_group = data, seed, name, batch, per_group
        self.words, self._size = id_words(data.ids), len(data)
        self._epoch = lru_cache(maxsize=2)(self._drawn)
        if per_group:
            if data.groups is None:
                raise KdzooError(
                    f"stream {name!r} asks for {per_group} samples a group, but its split has no groups"
                )
            if batch % per_group:
                raise KdzooError(
                    f"stream {name!r}: batch {batch} is no multiple of per_group {per_group}; the last group of each "
                    f"batch would be cut. Use {batch // per_group * per_group or per_group}."
                )
            order = data.groups.argsort(stable=True)
            sizes = data.groups.bincount()
            self._members = [rows for rows in order.split(sizes.tolist()) if len(rows)]
            self._group_epoch = lru_cache(maxsize=2)(
                lambda epoch: (self._shuffled(len(self._members), epoch),)
            )

    def _shuffled(self, n: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix(self.seed, "order", self.name, epoch))
        return torch.randperm(n, generator=generator)

    def _drawn(self, epoch: int) -> tuple[Tensor, Tensor]:
        """An epoch's rows and the seed of each drawn sample: made once an epoch, so that a step only slices."""
        rows = self._shuffled(len(self.data), epoch)
        return rows, sample_seeds(mix(self.seed, "sample", self.name, epoch), self.words[rows])

    def rows(self, step: int) -> tuple[Tensor, Tensor]:
        """Rows of the batch of a step and the seed of each drawn sample: (batch,) int64 each."""
        if not self.per_group:
            epoch, start = divmod(step * self.batch, self._size)
            if (end := start + self.batch) <= self._size:
                rows, seeds = self._epoch(epoch)
                return rows[start:end], seeds[start:end]
            rows, seeds = _window(self._epoch, self._size, step * self.batch, self.batch)
            return rows, seeds
        groups_a_batch = self.batch // self.per_group
        (groups,) = _window(self._group_epoch, len(self._members), step * groups_a_batch, groups_a_batch)
        generator = torch.Generator().manual_seed(mix(self.seed, "group", self.name, step))
        chosen = []
        for group in groups.tolist():
            members = self._members[group]
            picks: list[Tensor] = []
            while sum(map(len, picks)) < self.per_group:  # a group smaller than per_group is drawn again
                picks.append(members[torch.randperm(len(members), generator=generator)])
            chosen.append(torch.cat(picks)[: self.per_group])
        rows = torch.cat(chosen)
        # A row can be drawn twice in one batch: its place in the batch enters the seed, so the two views differ.
        place = torch.arange(len(rows)) * 0x9E3779B9
        return rows, sample_seeds(mix(self.seed, "sample", self.name, step), self.words[rows] + place)

    def hash(self, steps: int) -> str:
        """A name for the order over `steps` steps: equal for two runs that see the same samples in the same order."""
        digest = hashlib.sha256(f"{self.data.hash} {self.batch} {self.per_group} {steps}".encode())
        if self.per_group:
            for step in range(steps):
                digest.update(self.rows(step)[0].numpy().tobytes())
        else:
            for epoch in range(-(-steps * self.batch // len(self.data))):
                digest.update(self._shuffled(len(self.data), epoch).numpy().tobytes())
        return digest.hexdigest()


def _window(
    columns_of: Callable[[int], tuple[Tensor, ...]], n: int, first: int, count: int
) -> tuple[Tensor, ...]:
    """`count` entries from position `first` of an endless sequence whose epochs of length `n` `columns_of` gives."""
    epoch, start = divmod(first, n)
    if start + count <= n:
        return tuple(column[start : start + count] for column in columns_of(epoch))
    pieces = []
    while count:
        taken = min(count, n - start)
        pieces.append([column[start : start + taken] for column in columns_of(epoch)])
        epoch, start, count = epoch + 1, 0, count - taken
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


def join(parts: list[Batch]) -> Batch:
    """One batch out of several streams': a view that both have is concatenated, counts are added."""
    if len(parts) == 1:
        return parts[0]
    views: dict[str, Any] = {}
    for name in {name: None for part in parts for name in part.views}:
        values = [part.views[name] for part in parts if name in part.views]
        views[name] = values[0] if len(values) == 1 else torch.cat(values)
    counts: dict[str, int] = {}
    for part in parts:
        for unit, count in part.counts.items():
            counts[unit] = counts.get(unit, 0) + count
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        ids=[name for part in parts for name in part.ids],
        views=views,
        labels=torch.cat(labels) if labels else None,
        counts=counts,
    )


class Loader:
    """Micro-batches from ``run.step`` to ``run.steps``: what an engine hands to its framework as it is.

    Each micro-batch is prepared (`prepare_batch`) under the seeds of its place, just before it is handed out; the
    counts of an optimiser step are summed over its micro-batches and over ranks first, since every term needs them.
    """

    def __init__(self, run: Run, orders: list[Order], accumulate: int, rank: int = 0, ranks: int = 1) -> None:
        self.run, self.orders, self.accumulate, self.rank, self.ranks = run, orders, accumulate, rank, ranks
        self._edited = bool(run.hook.prepare_batch.get_hookimpls())
        self._recorded = run.spec.signals != "live"
        share = accumulate * ranks
        for order in orders:
            if (order.batch // (order.per_group or 1)) % share:
                raise KdzooError(
                    f"stream {order.name!r}: {order.batch} samples a step cannot be shared equally by {accumulate} "
                    f"micro-batches x {ranks} ranks. Choose a batch that is a multiple of {share}."
                )

    def __len__(self) -> int:
        return (self.run.steps - self.run.step) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.run.step, self.run.steps):
            yield from self._step(step)

    def _step(self, step: int) -> Iterator[Batch]:
        run = self.run
        drawn = [order.rows(step) for order in self.orders]
        batches = [self._collate(drawn, micro) for micro in range(self.accumulate)]
        if self._edited:
            with torch.no_grad():
                for micro, batch in enumerate(batches):
                    run.seed_micro_step(step, micro)
                    run.enter(batch)
                    run.hook.prepare_batch(run=run, batch=batch)
        norm = self._norm(batches)
        for micro, batch in enumerate(batches):
            batch.norm = norm
            run.seed_micro_step(step, micro)
            yield batch

    def _collate(self, drawn: list[tuple[Tensor, Tensor]], micro: int) -> Batch:
        parts, taken = [], []
        for order, (rows, seeds) in zip(self.orders, drawn, strict=True):
            if self.accumulate * self.ranks > 1:
                size = order.batch // (self.accumulate * self.ranks)
                first = (micro * self.ranks + self.rank) * size
                rows, seeds = rows[first : first + size], seeds[first : first + size]
            parts.append(order.data.collate(order.data.items, rows, seeds))
            taken.append((order.name, rows, frozenset(parts[-1].views)))
        batch = self.run.to_device(join(parts))
        if self._recorded:
            batch.drawn = Drawn(taken, batch.views, copies=self._edited)
        return batch

    def _norm(self, batches: list[Batch]) -> dict[str, float]:
        norm: dict[str, float] = {}
        for batch in batches:
            for unit, count in batch.counts.items():
                norm[unit] = norm.get(unit, 0) + count
        if self.ranks > 1:
            import torch.distributed as dist

            units = sorted(norm)
            total = torch.tensor([norm[unit] for unit in units], dtype=torch.float64, device=self.run.device)
            dist.all_reduce(total)
            norm = dict(zip(units, total.tolist(), strict=True))
        norm["step"] = self.accumulate * self.ranks
        return norm
