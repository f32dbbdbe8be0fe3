"""Recordings of words and of judgements: what a teacher wrote about each item, and the scores it gave.

Both are folders like those of tensors (`kdzoo.recordings`): same manifest, same checks, made in shards and gone on
from at the last whole one, which matters where each answer is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.recording import Columns, Identity, Recording, ragged, ragged_bytes
from kdzoo.recordings import Recordings
from kdzoo.speakers.speech import Generation as Generation

_TEXTS, _VALUES, _CANDIDATES = "texts", "values", "candidates"


class Candidate(msgspec.Struct, frozen=True):
    """The score of one candidate of a query."""

    id: str
    score: float


def record_texts(
    recordings: Recordings,
    identity: Identity,
    ids: Sequence[str],
    generate: Callable[[Sequence[str]], Sequence[Sequence[Generation]]],
    *,
    shard_rows: int = 1000,
) -> Texts:
    """Open or make a recording of texts.

    Args:
        recordings: where it lies.
        identity: of kind "text".
        ids: the items, no two alike.
        generate: ids of a shard -> for each its generations, several or none.
        shard_rows: items a shard; an interrupted maker repeats at most so many.
    """

    def make(first: int, last: int) -> Columns:
        answers = _as_many(generate(ids[first:last]), last - first, "lists of generations")
        return ragged_bytes(_TEXTS, [msgspec.json.encode(list(answer)) for answer in answers])

    return Texts(recordings.build(_of_kind(identity, "text"), ids, make, shard_rows=shard_rows))


class Texts:
    """A recording of texts, by item id."""

    def __init__(self, recording: Recording) -> None:
        _of_kind(recording.identity, "text")
        self.recording = recording

    def __len__(self) -> int:
        return len(self.recording)

    def __getitem__(self, item: str) -> list[Generation]:
        """The generations of an item; an id that was not recorded is a `KdzooError`."""
        row = int(self.recording.rows_of([item])[0])
        content = self.recording.row(row, _TEXTS).numpy().tobytes()
        return msgspec.json.decode(content, type=list[Generation])


def record_scores(
    recordings: Recordings,
    identity: Identity,
    ids: Sequence[str],
    score: Callable[[Sequence[str]], Sequence[float] | Sequence[Mapping[str, float]]],
    *,
    shard_rows: int = 10_000,
) -> Scores:
    """Open or make a recording of scores, one per item or one per (query, candidate).

    Args:
        recordings: where it lies.
        identity: of kind "scores"; its part is "item" or "pair".
        ids: the items or queries, no two alike.
        score: ids of a shard -> for each a number, or a mapping from candidate id to number; float32 is kept.
        shard_rows: items a shard.
    """
    pairs = _form(_of_kind(identity, "scores")) == "pair"

    def make(first: int, last: int) -> Columns:
        answers = _as_many(score(ids[first:last]), last - first, "scores")
        if not pairs:
            return {_VALUES: torch.tensor(answers, dtype=torch.float32)}
        rows: list[Mapping[str, float]] = list(answers)
        values = [torch.tensor(list(row.values()), dtype=torch.float32) for row in rows]
        return {
            **ragged(_VALUES, values),
            **ragged_bytes(_CANDIDATES, [msgspec.json.encode(list(row)) for row in rows]),
        }

    return Scores(recordings.build(identity, ids, make, shard_rows=shard_rows))


class Scores:
    """A recording of scores."""

    def __init__(self, recording: Recording) -> None:
        _of_kind(recording.identity, "scores")
        self.recording, self._form = recording, _form(recording.identity)

    def __len__(self) -> int:
        return len(self.recording)

    def items(self, ids: Sequence[str]) -> Tensor:
        """(B,) float32, the scores of items."""
        if self._form != "item":
            raise KdzooError(
                "these scores are of pairs: ask for the candidates of one query, scores.candidates(query)"
            )
        return self.recording.take(self.recording.rows_of(ids), _VALUES)

    def candidates(self, query: str) -> list[Candidate]:
        """The candidates of a query in the order in which they were given."""
        if self._form != "pair":
            raise KdzooError("these scores are one per item: ask for scores.items(ids)")
        row = int(self.recording.rows_of([query])[0])
        names = msgspec.json.decode(self.recording.row(row, _CANDIDATES).numpy().tobytes(), type=list[str])
        values = self.recording.row(row, _VALUES).tolist()
        return [Candidate(name, value) for name, value in zip(names, values, strict=True)]


def _of_kind(identity: Identity, kind: str) -> Identity:
    if identity.kind != kind:
        raise KdzooError(
            f"a recording of kind {identity.kind!r} was given, expected {kind!r}: its columns mean something else"
        )
    return identity


def _form(identity: Identity) -> str:
    if identity.part not in ("item", "pair"):
        raise KdzooError(
            f"scores: part is {identity.part!r}, expected 'item' or 'pair' (query and candidate)"
        )
    return identity.part


def _as_many(answers: Sequence[Any], count: int, what: str) -> Sequence[Any]:
    if len(answers) != count:
        raise KdzooError(
            f"the teacher gave {len(answers)} {what} for {count} items: which item lacks one cannot be known. Return "
            "one for each item, an empty one where there is none."
        )
    return answers
