"""The form in which every data set here gives its rows: a question and what is to be written after it."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """One row.

    Attributes:
        id: stable and unique over all splits, e.g. ``train/17``.
        prompt: what the model reads; may be empty (plain language modelling).
        answer: what it is to write; empty where it is not known (an unlabelled pool).
    """

    id: str
    prompt: str
    answer: str
