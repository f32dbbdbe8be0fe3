"""Teacher signals: core's own answer is the live forward pass, or what was recorded of a frozen role.

What another plugin answers comes before core's and is never recorded: it may depend on anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Output
from kdzoo.runs import as_output

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def teacher_signal(run: Run, role: str, view: str) -> Output:
    """The role's answer to the view of the current batch, without gradient.

    Frozen and method-owned roles are in eval mode since they were built. A role that is being trained (mutual
    learning) answers in training mode with what it has already said with gradient: one forward pass, detached.

    Under ``--signals recorded`` or ``top-k`` a frozen role's answers are read from disk where they are worth recording
    (`kdzoo.recorded`); roles of another kind change from step to step and are always live.
    """
    assert run.batch is not None
    kind = run.roles[role].kind
    if kind == "train":
        return detached(run.out(role, view))
    if kind == "frozen" and run.spec.signals != "live":
        answer = run.signal_cache.answer(role, view)
        if answer is not None:
            return answer
    with torch.no_grad(), run.device_info.autocast():
        run.cost.teacher_forwards += len(run.batch.ids) * run.device_info.ranks
        return as_output(run.models[role](run.batch.views[view]))


def detached(output: Output) -> Output:
    """The same values, cut from the graph."""
    return Output(
        logits=None if output.logits is None else output.logits.detach(),
        features={name: value.detach() for name, value in output.features.items()},
        embedding=None if output.embedding is None else output.embedding.detach(),
        tokens=output.tokens,
        mask=output.mask,
        extra=output.extra,
    )
