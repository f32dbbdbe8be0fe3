"""The extension ``permuted``: every sample gets the teacher's answer to another sample. A control.

What is left of a method's gain under it is not knowledge about the samples: it is softer targets, their mean over the
classes, a longer or otherwise regularised training. ``kdzoo bench SLUG --controls`` runs it as the arm
``SLUG.permuted``; ``--with permuted`` puts it on every arm of a bench.

Answers are exchanged within the micro-batch, anew at each step, under a seed of the run and the step. A fixed
exchange over the whole training set was the other choice. It would ask the teacher about samples that are not in the
batch, which a view made in `prepare_batch` (mixup, masks) does not allow, and with few samples a student could learn
the wrong answers by heart. Within the batch the answers of a step are exactly those that the method would have got, at
no cost, whatever the views are. The price: over many steps a sample meets many wrong answers.

Shapes: B rows of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Output
from kdzoo.recorded_answer import Answer

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl(wrapper=True)
def teacher_signal(run: Run, role: str, view: str) -> Generator[None, Output | None, Output | None]:
    """Deal the answers out anew; all roles and views of a micro-batch in the same way. Never while measuring."""
    output = yield
    if output is None or run.evaluating:
        return output
    assert run.batch is not None
    return dealt(output, deal(run.batch.ids, run.rng("permuted")))


def deal(ids: Sequence[str], generator: torch.Generator) -> Tensor:
    """(B,) int64: the row whose answer each row gets; a random permutation that leaves no sample its own answer.

    Rows with one id (two views of a sample in a batch) are one sample. They are put side by side in a random order of
    all samples, and each row gets the answer of the row that stands as many places further as the most frequent
    sample has rows. Without repeated samples that is a random cycle through all rows.

    Args:
        ids: sample id of each row.
        generator: the only source of randomness.

    Raises:
        KdzooError: one sample holds more than half of the rows, so that it must keep an answer of its own.
    """
    known: dict[str, int] = {}
    sample = torch.tensor([known.setdefault(name, len(known)) for name in ids], dtype=torch.int64)
    most = int(sample.bincount().max()) if ids else 0
    if len(ids) < 2 * max(1, most):
        raise KdzooError(
            f"permuted: a micro-batch of {len(ids)} rows holds {len(known)} different samples, expected that no sample "
            "has more than half of the rows: some would keep the teacher's true answer, and the control would teach. "
            "Use a larger batch or a smaller accumulate."
        )
    order = torch.randperm(len(ids), generator=generator)
    place = torch.randperm(len(known), generator=generator)[sample]
    order = order[place[order].argsort(stable=True)]
    source = torch.empty_like(order)
    source[order] = order.roll(-most)
    return source


def dealt(output: Output, source: Tensor) -> Output:
    """The same answers in other rows: logits, features, embedding, tokens and mask together.

    Of `extra` what has one entry a row is dealt too; the rest belongs to no row and stays.

    Args:
        output: first dimension B in every part.
        source: (B,) the row that each row gets its answer from.

    Raises:
        KdzooError: a part whose first dimension is not B.
    """
    if isinstance(output, Answer):  # its parts are read when they are looked at: nobody else's are wanted
        return output.dealt(source)
    rows = len(source)

    def one(name: str, value: Any) -> Any:
        if value is None:
            return None
        if (entries := _entries(value)) != rows:
            raise KdzooError(
                f"permuted: the teacher's {name} has {entries or 'no'} entries, expected one for each of the "
                f"{rows} samples of the micro-batch: which entry belongs to which sample is not known, so a sample "
                "might keep its own. Such a method needs a control of its own (control = true in its card)."
            )
        return _rows(value, source)

    return replace(
        output,
        logits=one("logits", output.logits),
        features={name: one(f"feature {name!r}", value) for name, value in output.features.items()},
        embedding=one("embedding", output.embedding),
        tokens=one("tokens", output.tokens),
        mask=one("mask", output.mask),
        extra={
            name: _rows(value, source) if _entries(value) == rows else value
            for name, value in output.extra.items()
        },
    )


def _entries(value: Any) -> int | None:
    """How many rows a value has, or None for one that has none."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    return len(value) if isinstance(value, list | tuple) else None


def _rows(value: Any, source: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(0, source.to(value.device))
    return type(value)(value[row] for row in source.tolist())
