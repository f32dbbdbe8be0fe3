"""What the tasks on the papers' own text share: rows from the files under ``--data-root``, cut to what models can hold.

The papers cut long texts at the model's length; here a row whose prompt or answer is longer than `prompt_length` or
`answer_length` is left out, since a broken answer would be learnt as if it were whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.rng import mix
from kdzoo.task import Data
from kdzoo_llm.data import paper_files
from kdzoo_llm.data.examples import Example
from kdzoo_llm.language import measure, readings
from kdzoo_llm.sequences import Reading, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

AT_ONCE = 1000


Choice = Callable[[list[Example]], list[Example]]
"""Takes the rows of a split; gives those that are served."""


def serve(name: str, run: Run, split: str, choose: Choice | None = None) -> Data:
    """A split of a data set, at most `labelled` training rows and `measured` others (0 for all) of those chosen.

    Raises:
        KdzooError: no data root, or files that do not lie as expected.
    """
    if run.data_root is None:
        raise paper_files.missing_root(name)
    most = int(run.cfg.labelled) if split == "train" else int(run.cfg.measured)
    return _served(name, split, run.data_root, most, tuple(readings(run.cfg).items()), choose)


@lru_cache(maxsize=6)
def _served(
    name: str,
    split: str,
    root: Path,
    most: int,
    how: tuple[tuple[str, Reading], ...],
    choose: Choice | None,
) -> Data:
    rows = paper_files.load(name, split, root)
    rows = choose(rows) if choose else rows
    if most and most < len(rows):
        rows = sorted(rows, key=lambda row: mix("paper rows", row.id))
    kept: list[Example] = []
    for first in range(0, len(rows), AT_ONCE):  # no more is encoded than is needed
        kept += _fitting(rows[first : first + AT_ONCE], how)
        if most and len(kept) >= most:
            kept = kept[:most]
            break
    return data_of(kept, dict(how))


def _fitting(rows: list[Example], how: tuple[tuple[str, Reading], ...]) -> list[Example]:
    """The rows that every reading can hold; one special token is added to each side."""
    for _, reading in how:
        prompts = reading.vocabulary.encode_all([row.prompt for row in rows])
        answers = reading.vocabulary.encode_all([row.answer for row in rows])
        rows = [
            row
            for row, prompt, answer in zip(rows, prompts, answers, strict=True)
            if len(prompt) < reading.prompt_length and len(answer) < reading.answer_length
        ]
    return rows


def data_from(name: str) -> partial[Data]:
    """The function `data` of a task on the data set `name`."""
    return partial(serve, name)


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    return measure(run, split)
