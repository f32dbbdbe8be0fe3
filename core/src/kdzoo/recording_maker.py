"""How a teacher's answers about a split are recorded: in groups of one size, after a look at what they are like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kdzoo import top_k
from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo.recording import Columns, Identity
from kdzoo.recordings import SHARD_BYTES
from kdzoo.task import Data

if TYPE_CHECKING:
    from kdzoo.recorded import Teacher
    from kdzoo.runs import Run

GROUP = 64  # rows of a forward pass when recording: a multiple of every kernel's block that was met
PROBE, FEWER = 8, 5  # rows of the two forward passes that say what a teacher's answers are like
ROUNDING = 0.01  # share of the largest value up to which a difference may be rounding: TF32 has 10 bits


class Part(NamedTuple):
    """One part of a teacher's `Output` as it comes: shape of one row, order of its axes in memory, dtype."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype


def parts_of(output: Output) -> dict[str, Tensor]:
    """The tensors of an output that may belong to samples, by name."""
    found = {"logits": output.logits, "embedding": output.embedding}
    found |= {f"features/{name}": value for name, value in output.features.items()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


class Maker:
    """Makes the recording of one part of a teacher's answers about one split."""

    def __init__(self, run: Run, teacher: Teacher, data: Data, part: str, k: int) -> None:
        self.run, self.teacher, self.data, self.part, self.k = run, teacher, data, part, k
        self.probe = parts_of(teacher.probe(data, PROBE))[part]
        self.form = form_of(self.probe)

    def identity(self, split: str, ids: str) -> Identity:
        """What the recording will depend on; `ids` is the hash of the split's ids."""
        run, kept = self.run, to_rows(self.probe, self.form).cpu()
        answers = hashlib.sha256(repr(self.form).encode() + kept.view(torch.uint8).numpy().tobytes())
        return Identity(
            kind="top-k" if self.k else self.part.partition("/")[0],  # type: ignore[arg-type]
            part=self.part,
            role=self.teacher.role,
            teacher=self.teacher.weights,
            answers=answers.hexdigest(),
            task=run.task.slug,
            task_version=run.task.version,
            split=split,
            data=self.data.hash,
            ids=ids,
            view=self.teacher.view,
            dtype=str(self.form.dtype).removeprefix("torch."),
            k=self.k,
            device=run.device.type,
            precision=run.device_info.dtype,
            threads=torch.get_num_threads(),
        )

    def check(self) -> None:
        """Refuse what is not one sample's own: answers that depend on the rest of a batch, views that change."""
        count = min(FEWER, len(self.data))
        rows = torch.arange(count)
        fewer = parts_of(self.teacher.probe(self.data, count))[self.part]
        what = f"role {self.teacher.role!r}, {self.part} of the view {self.teacher.view!r}"
        if len(fewer) != count or fewer.shape[1:] != self.probe.shape[1:]:
            raise KdzooError(
                f"{what}: its shape is {tuple(self.probe.shape)} for {len(self.probe)} samples and "
                f"{tuple(fewer.shape)} for {count}, so it does not consist of one answer a sample, and a recorded "
                "one would be of another batch. Use --signals live."
            )
        if (apart := difference(self.probe[:count], fewer)) > ROUNDING:
            raise KdzooError(
                f"{what}: the answer about a sample changes by {apart:.2g} of the largest value when {count} samples "
                f"are asked about instead of {len(self.probe)}: it depends on the rest of the batch. Use --signals "
                "live."
            )
        plain = self.data.collate(self.data.items, rows, None).views[self.teacher.view]
        for seed in (1, 2):
            drawn = self.data.collate(self.data.items, rows, rows * 7919 + seed).views[self.teacher.view]
            if not same(plain, drawn):
                raise KdzooError(
                    f"the data of task {self.run.task.slug!r} say fixed_views, but their view {self.teacher.view!r} "
                    "changes with the sample's seed: a recorded answer would be about another view. Put fixed_views "
                    "right in the task, or use --signals live."
                )

    @property
    def shard_rows(self) -> int:
        """As many rows as fill a shard, in whole groups; a group at least, however large a row is."""
        row = self.probe[0].numel() * self.probe.element_size() if not self.k else self.k * 8 + 4
        return max(1, SHARD_BYTES // max(1, row) // GROUP) * GROUP

    def columns(self, first: int, last: int) -> Columns:
        """What the teacher says about rows first to last, in groups of one size."""
        found: list[Columns] = []
        for start in range(first, last, GROUP):
            count = min(GROUP, last - start)
            rows = torch.arange(start, start + GROUP) % len(self.data)
            answer = parts_of(self.teacher.about(self.data, rows))[self.part][:count]
            if self.k:
                kept = top_k.compress(class_last(answer), self.k)
                found.append({name: value.cpu() for name, value in kept._asdict().items()})
            else:
                found.append({"values": to_rows(answer, self.form).cpu()})
        return {name: torch.cat([columns[name] for columns in found]) for name in found[0]}

    def facts(self) -> dict[str, Any]:
        return {
            "shape": list(self.form.shape),
            "order": list(self.form.order),
            "group": GROUP,
            "teacher_forwards": -(-len(self.data) // GROUP) * GROUP,
        }


def form_of(value: Tensor) -> Part:
    """Shape and dtype of a row, and the order of its axes in memory: channels-last maps come back as such."""
    order = sorted(range(1, value.dim()), key=value.stride, reverse=True)
    return Part(tuple(value.shape[1:]), tuple(order), value.dtype)


def to_rows(value: Tensor, form: Part) -> Tensor:
    """(n, ...) as it is kept: axes in the order of the memory."""
    return value.permute(0, *form.order).contiguous()


def from_rows(value: Tensor, order: Sequence[int]) -> Tensor:
    """The inverse of `to_rows`, without moving a number."""
    if len(order) < 2:
        return value
    return value.permute(0, *(order.index(axis) + 1 for axis in range(1, len(order) + 1)))


def class_last(logits: Tensor) -> Tensor:
    """Maps (B, C, H, W) have their class axis second, all others last."""
    return logits.movedim(1, -1) if logits.dim() == 4 else logits


def class_back(logits: Tensor) -> Tensor:
    return logits.movedim(-1, 1) if logits.dim() == 4 else logits


def same(one: Any, other: Any) -> bool:
    """Whether two views hold the same numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(part, other[name]) for name, part in one.items())
    if not isinstance(one, Tensor):
        return bool(one == other)
    return torch.equal(one, other)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference as a share of the largest finite value; 0 where every bit is equal, NaN as NaN."""
    if torch.equal(one, other):
        return 0.0
    a, b = one.double(), other.double()
    gaps = (a - b).abs()
    gaps[(a == b) | (a.isnan() & b.isnan())] = 0.0  # inf - inf
    scale = a.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    apart = float((gaps / scale).max())
    return apart if apart == apart else float("inf")
