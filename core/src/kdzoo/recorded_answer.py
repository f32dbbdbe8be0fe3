"""One recorded answer of a teacher: an `Output` whose parts are put together when they are looked at.

Rows that are recorded are read from disk, the others are asked live; what nobody looks at is never recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kdzoo import top_k
from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo.recording_maker import PROBE, ROUNDING, class_back, class_last, difference, from_rows, parts_of

if TYPE_CHECKING:
    from kdzoo.recorded import SignalCache, Teacher

FILL = 32  # live rows beside recorded ones are filled up to a multiple of this


class RecordedRows(NamedTuple):
    """Rows of a batch that are on disk: their place in it, their split, their rows in the split."""

    place: slice
    split: str
    rows: Tensor


@dataclass(slots=True)
class Source:
    """Where the parts of one answer come from; each part is read, or asked, once."""

    cache: SignalCache
    teacher: Teacher
    value: Any
    size: int
    recorded: list[RecordedRows]
    live: list[slice]
    _whole: Output | None = None
    _rest: dict[str, Tensor] | None = None
    _parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def template(self) -> Output:
        """The answer about a few samples: it says which parts there are."""
        return self.teacher.probe(self.cache.fixed[self.recorded[0].split], PROBE)

    def whole(self) -> Output:
        """The live answer to the whole view."""
        if self._whole is None:
            self._count(self.size)
            self._whole = self.teacher.ask(self.value)
        return self._whole

    def _count(self, rows: int) -> None:
        self.cache.run.cost.teacher_forwards += rows * self.cache.run.device_info.ranks

    def part(self, name: str) -> Tensor:
        """A part for all rows of the batch: recorded rows from disk, the others live, each in its place."""
        found = self._parts.get(name)
        if found is None:
            k = self.cache.choice.k
            found = self._parts[name] = self._kept(name) if k else self._plain(name)
            if name not in self.teacher.checked:
                self._check(name, found)
                self.teacher.checked.add(name)
        return found

    def _plain(self, name: str) -> Tensor:
        device = self.cache.run.device
        pieces: list[tuple[int, Tensor]] = []
        for piece in self.recorded:
            recording = self.cache.recording(self.teacher, piece.split, name)
            values = recording.take(piece.rows)
            pieces.append((piece.place.start, from_rows(values, recording.facts["order"]).to(device)))
        if not self.live:
            return pieces[0][1] if len(pieces) == 1 else torch.cat([value for _, value in pieces])
        for place, value in self._rest_of(name):
            pieces.append((place, value))
        return torch.cat([value for _, value in sorted(pieces, key=lambda piece: piece[0])])

    def _kept(self, name: str) -> Tensor:
        """Logits by way of the k largest, recorded or not: one batch holds one kind of signal."""
        if name != "logits":
            raise KdzooError(
                f"--signals {self.cache.choice}: arm {self.cache.run.arm!r} pulls {name} of role "
                f"{self.teacher.role!r}, but only logits are kept. Name what it needs in the card's teacher = [...], "
                "and use --signals recorded."
            )
        kept, classes = self._top(), self._classes()
        if self.cache.choice.policy == "tail-bucket":
            return class_back(top_k.bucket(kept))
        return class_back(top_k.dense(kept, classes, self.cache.choice.policy))

    def _classes(self) -> int:
        logits = self.template.logits
        assert logits is not None
        return class_last(logits).shape[-1]

    def _top(self) -> top_k.TopK:
        device, k = self.cache.run.device, self.cache.choice.k
        pieces: list[tuple[int, top_k.TopK]] = []
        for piece in self.recorded:
            recording = self.cache.recording(self.teacher, piece.split, "logits")
            columns = (recording.take(piece.rows, column).to(device) for column in top_k.TopK._fields)
            pieces.append((piece.place.start, top_k.TopK(*columns)))
        if self.live:
            pieces += [
                (place, top_k.compress(class_last(value), k)) for place, value in self._rest_of("logits")
            ]
        pieces.sort(key=lambda piece: piece[0])
        return top_k.TopK(*(torch.cat(column) for column in zip(*(kept for _, kept in pieces), strict=True)))

    def classes_kept(self) -> Tensor:
        """(B, K) the classes of a tail-bucket answer."""
        return self._top().indices

    def _rest_of(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(place, values) of the live rows, asked in one forward pass."""
        if self._rest is None:
            rows = torch.cat([torch.arange(place.start, place.stop) for place in self.live])
            fill = -len(rows) % FILL
            asked, cycle = rows, torch.cat([torch.arange(p.place.start, p.place.stop) for p in self.recorded])
            if fill:
                asked = torch.cat([rows, cycle[torch.arange(fill) % len(cycle)]])
            self._count(len(asked))
            said = parts_of(self.teacher.ask(_select(self.value, asked)))
            self._rest = {part: value[: len(rows)] for part, value in said.items()}
        first = 0
        for place in self.live:
            count = place.stop - place.start
            yield place.start, self._rest[name][first : first + count]
            first += count

    def _check(self, name: str, served: Tensor) -> None:
        """The first batch, asked both ways."""
        live, choice = parts_of(self.whole())[name], self.cache.choice
        if choice.k:
            kept = top_k.compress(class_last(live), choice.k)
            policy = choice.policy
            live = class_back(
                top_k.bucket(kept) if policy == "tail-bucket" else top_k.dense(kept, self._classes(), policy)
            )
        apart = difference(live, served)
        keys = {
            piece.split: self.cache.recording(self.teacher, piece.split, name).key for piece in self.recorded
        }
        self.cache.facts(self.teacher.role, self.teacher.view)[name] = {
            "recordings": keys,
            "exact": apart == 0.0,
            "apart": apart if apart < float("inf") else None,
        }
        if apart > ROUNDING:
            said, says = (value.flatten()[:3].tolist() for value in (served, live))
            raise KdzooError(
                f"arm {self.cache.run.arm!r}: {name} of role {self.teacher.role!r} as recorded "
                f"({', '.join(keys.values())}) and as the teacher gives it now differ by {apart:.2g} of the largest "
                f"value: recorded {said}..., live {says}.... Training on it would teach something else than the "
                "teacher says. 'kdzoo cache verify' tells whether it is damaged; 'kdzoo cache prune --all' removes "
                "it; --signals live does without."
            )


def _select(value: Any, rows: Tensor) -> Any:
    """Rows of a view; neighbours are not copied, and a constant is that of every row."""
    if isinstance(value, dict):
        return {name: _select(part, rows) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    first, last = int(rows[0]), int(rows[-1]) + 1
    if last - first == len(rows) and bool((rows[1:] == rows[:-1] + 1).all()):
        return value[first:last]
    return value.index_select(0, rows.to(value.device))


class Features(Mapping[str, Tensor]):
    """A teacher's inner layers by name; a layer is read from disk when it is asked for."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._answer.source.template.features:
            raise KeyError(name)
        return self._answer.part(f"features/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._answer.source.template.features)

    def __len__(self) -> int:
        return len(self._answer.source.template.features)


class Answer(Output):
    """An `Output` whose parts are read when they are looked at: what nobody looks at is never recorded.

    `source` says where they come from, `rows` (B,) in which order its rows are given, None for their own.
    """

    __slots__ = ("rows", "source")

    def __new__(cls, *given: Any, **fields: Any) -> Any:
        # dataclasses.replace builds a new object of the same class from all fields: that one holds them all.
        return Output(**fields) if fields else object.__new__(cls)

    def __init__(self, source: Source, rows: Tensor | None = None) -> None:
        self.source, self.rows = source, rows

    def dealt(self, rows: Tensor) -> Answer:
        """The same answers in other rows: row k has the answer to row ``rows[k]``."""
        return Answer(self.source, rows if self.rows is None else self.rows[rows])

    def part(self, name: str) -> Tensor:
        """A part by its name in recordings, for example "features/stage2"."""
        return self._in_order(self.source.part(name))

    def _in_order(self, value: Any) -> Any:
        if self.rows is None or value is None:
            return value
        if isinstance(value, Tensor):
            return value.index_select(0, self.rows.to(value.device))
        return type(value)(value[row] for row in self.rows.tolist())

    @property
    def logits(self) -> Tensor | None:  # type: ignore[override]
        return None if self.source.template.logits is None else self.part("logits")

    @property
    def embedding(self) -> Tensor | None:  # type: ignore[override]
        return None if self.source.template.embedding is None else self.part("embedding")

    @property
    def features(self) -> Features:  # type: ignore[override]
        return Features(self)

    @property
    def tokens(self) -> Any:
        return None if self.source.template.tokens is None else self._in_order(self.source.whole().tokens)

    @property
    def mask(self) -> Tensor | None:  # type: ignore[override]
        return None if self.source.template.mask is None else self._in_order(self.source.whole().mask)

    @property
    def extra(self) -> dict[str, Any]:  # type: ignore[override]
        source, found = self.source, {}
        if source.template.extra:
            for name, value in source.whole().extra.items():
                has_rows = isinstance(value, Tensor | list | tuple) and len(value) == source.size
                found[name] = self._in_order(value) if has_rows else value
        if source.cache.choice.k and source.cache.choice.policy == "tail-bucket":
            found["classes"] = self._in_order(source.classes_kept())
        return found
