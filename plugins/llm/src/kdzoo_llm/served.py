"""Training text that a method serves itself: what an earlier stage has written, in the form of the task's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.task import Data
from kdzoo_llm.data.examples import Example
from kdzoo_llm.sequences import Rows, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run


def rows_of(run: Run, split: str) -> Sequence[Example]:
    """The examples of a split of the task, before any method has changed them."""
    return _own(run, split).examples


def serve_examples(run: Run, examples: Sequence[Example], split: str = "train") -> Data:
    """Written examples under the readings of the task's split: same vocabularies, same lengths.

    Empty answers, and those that are longer than the task allows in any of its views, are left out: what a teacher
    writes keeps to no limits of its student's tokenizer.

    Raises:
        KdzooError: nothing is left.
    """
    readings = _own(run, split).readings
    kept = [example for example in examples if example.answer.strip()]
    empty = len(examples) - len(kept)
    for reading in readings.values():
        answers = [reading.answer(example) if reading.answer else example.answer for example in kept]
        lengths = map(len, reading.vocabulary.encode_all(answers))
        kept = [
            example
            for example, length in zip(kept, lengths, strict=True)
            if length + 1 <= reading.answer_length  # and its end token
        ]
    if not kept:
        raise KdzooError(
            f"of {len(examples):,} written answers {empty:,} are empty and the others longer than answer_length: "
            "there is no text to learn from. Look at the prompts that the teacher was given and at its end token, or "
            "raise answer_length."
        )
    return data_of(kept, readings)


def _own(run: Run, split: str) -> Rows:
    data: Data = catalog.load().module(run.spec.task).data(run, split)
    assert isinstance(data.items, Rows)
    return data.items
