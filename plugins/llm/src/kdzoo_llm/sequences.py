"""Examples as token ids, and batches of them.

A view of a batch, which every model of `kdzoo_llm.models` takes, is a dictionary:

    prompt       (B, P) int64, padded on the LEFT, so that every prompt ends in the same column
    prompt_mask  (B, P) bool
    answer       (B, A) int64, padded on the right, with the end token
    answer_mask  (B, A) bool
    vocabulary   hash of the vocabulary that the ids are of

``batch.labels`` are the student's answer ids, -1 on padding; ``batch.counts`` has "item" and "token" (of its answers).
A task whose teacher has another vocabulary, or reads another prompt, gives it a view of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.method import Batch
from kdzoo.task import Data
from kdzoo_llm.data.examples import Example
from kdzoo_llm.vocabularies import Vocabulary

TEXT = "text"
"""The view that students read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a view is made of an example.

    Attributes:
        vocabulary: of the model that reads it.
        prompt: the text before the answer.
        answer: the text that is to be written; None takes the example's.
        prompt_length, answer_length: tokens that it may have, special tokens included.
        fixed: pad every answer to `answer_length`, not to the longest of its batch: teachers can then be recorded,
            since what they say of a row has the same shape in every batch.
    """

    vocabulary: Vocabulary
    prompt_length: int
    answer_length: int
    prompt: Callable[[Example], str] | None = None
    answer: Callable[[Example], str] | None = None
    fixed: bool = False


@dataclass(slots=True)
class Encoded:
    """One row under one reading: ids of the prompt and of the answer."""

    prompt: list[int]
    answer: list[int]


def encode(examples: Sequence[Example], reading: Reading) -> list[Encoded]:
    """All rows of a split as ids.

    Raises:
        KdzooError: a prompt or an answer is longer than the reading allows.
    """
    vocabulary = reading.vocabulary
    prompts = [reading.prompt(example) if reading.prompt else example.prompt for example in examples]
    answers = [reading.answer(example) if reading.answer else example.answer for example in examples]
    rows = [
        Encoded([vocabulary.bos, *prompt], [*answer, vocabulary.eos])
        for prompt, answer in zip(vocabulary.encode_all(prompts), vocabulary.encode_all(answers), strict=True)
    ]
    for example, row in zip(examples, rows, strict=True):
        _fits(example.id, "prompt", len(row.prompt), reading.prompt_length)
        _fits(example.id, "answer", len(row.answer), reading.answer_length)
    return rows


def _fits(name: str, part: str, length: int, room: int) -> None:
    if length > room:
        raise KdzooError(
            f"example {name!r}: its {part} has {length} tokens, {part}_length is {room}: it would be cut, and the "
            f"model would learn from broken text. Raise {part}_length, or leave such examples out."
        )


def view_of(rows: Sequence[Encoded], vocabulary: Vocabulary, least: int = 0) -> dict[str, Any]:
    """Rows as one view of a batch; answers are padded to the longest, or to `least`."""
    wide = max(len(row.prompt) for row in rows)
    long = max(least, *(len(row.answer) for row in rows))
    prompt = torch.full((len(rows), wide), vocabulary.pad)
    answer = torch.full((len(rows), long), vocabulary.pad)
    prompt_mask = torch.zeros(len(rows), wide, dtype=torch.bool)
    answer_mask = torch.zeros(len(rows), long, dtype=torch.bool)
    for i, row in enumerate(rows):
        p, a = len(row.prompt), len(row.answer)
        prompt[i, wide - p :] = torch.tensor(row.prompt)
        prompt_mask[i, wide - p :] = True
        answer[i, :a] = torch.tensor(row.answer)
        answer_mask[i, :a] = True
    return {
        "prompt": prompt,
        "prompt_mask": prompt_mask,
        "answer": answer,
        "answer_mask": answer_mask,
        "vocabulary": vocabulary.hash,
    }


class Rows:
    """The rows of a split under one or more readings, encoded when they are first needed.

    Planning a bench asks for hashes only, so nothing is encoded then.
    """

    def __init__(self, examples: Sequence[Example], readings: Mapping[str, Reading]) -> None:
        self.examples, self.readings = examples, dict(readings)
        self._encoded: dict[str, list[Encoded]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def encoded(self, view: str) -> list[Encoded]:
        """The rows under the reading of a view."""
        if view not in self._encoded:
            self._encoded[view] = encode(self.examples, self.readings[view])
        return self._encoded[view]


def collate(items: Rows, rows: Tensor, seeds: Tensor | None) -> Batch:
    """A batch with a view for each reading; the labels are those of the view "text"."""
    places = rows.tolist()
    views = {
        name: view_of(
            [items.encoded(name)[i] for i in places],
            reading.vocabulary,
            reading.answer_length if reading.fixed else 0,
        )
        for name, reading in items.readings.items()
    }
    text = views[TEXT]
    labels = text["answer"].masked_fill(~text["answer_mask"], -1)
    return Batch(
        ids=[items.examples[i].id for i in places],
        views=views,
        labels=labels,
        counts={"item": len(places), "token": int(text["answer_mask"].sum())},
    )


def data_of(examples: Sequence[Example], readings: Mapping[str, Reading]) -> Data:
    """A split for core: examples under the readings of the task's models."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update("\x1f".join(example).encode())
        digest.update(b"\x1e")
    for name, reading in sorted(readings.items()):
        digest.update(
            f"{name} {reading.vocabulary.hash} {reading.prompt_length} {reading.answer_length}".encode()
        )
        for example in examples if reading.prompt or reading.answer else ():
            digest.update((reading.prompt(example) if reading.prompt else "").encode())
            digest.update((reading.answer(example) if reading.answer else "").encode())
    fixed = all(reading.fixed for reading in readings.values())
    rows = Rows(examples, readings)
    return Data(rows, [example.id for example in examples], collate, digest.hexdigest(), fixed_views=fixed)
