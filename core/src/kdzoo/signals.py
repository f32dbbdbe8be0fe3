"""Teacher signals. Core's own is the live forward pass."""

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
    """
    assert run.batch is not None
    if run.roles[role].kind == "train":
        return detached(run.out(role, view))
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
