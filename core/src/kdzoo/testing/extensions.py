"""Extensions that watch or disturb a run of the toy task: what a check of an engine registers beside it."""

from __future__ import annotations

import signal

import torch

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo.runs import Run

CUT = 7  # whole steps before an interruption
BROKEN = 5  # the step at which a term is made NaN


class Witness:
    """An extension that notes what an engine does, hook by hook."""

    def __init__(self) -> None:
        self.prepared: list[tuple[int, list[str]]] = []
        self.seen: list[tuple[int, list[str]]] = []
        self.closed: list[int] = []
        self.rates: list[float] = []
        self.odd: list[str] = []

    @hookimpl
    def prepare_batch(self, run: Run, batch: Batch) -> None:
        self.prepared.append((run.step, batch.ids))

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        self.seen.append((run.step, batch.ids))
        for name, module in run.models.items():
            if module.training != (run.roles[name].kind == "train"):
                self.odd.append(f"role {name} had training = {module.training} at step {run.step}")
        return {}

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        self.closed.append(run.step)
        if run.current_optimizer is not None:
            self.rates.append(run.current_optimizer.param_groups[0]["lr"])


class Draws:
    """An extension that draws random numbers wherever it can."""

    @hookimpl
    def prepare_batch(self, run: Run, batch: Batch) -> None:
        torch.rand(7)
        torch.rand(3, generator=run.rng("waste"))

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        torch.rand(5)
        return {}

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        torch.rand(11)


class NaN:
    """An extension whose term is NaN at one step."""

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        logits = run.out("student").logits
        assert logits is not None
        return {"odd": Term(logits.sum() * (float("nan") if run.step == BROKEN else 0.0))}


class NaNGradient:
    """An extension whose term is finite and whose gradient is not: the square root at 0."""

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        logits = run.out("student").logits
        assert logits is not None
        return {"odd": Term((logits * (run.step != BROKEN)).square().sum().sqrt() * 1e-3)}


class Stop:
    """An extension that asks for a stop after so many whole steps, as Ctrl-C does."""

    def __init__(self, after: int = CUT) -> None:
        self.after = after

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        run.stopping = run.step == self.after - 1


class Kill:
    """An extension that ends its process in the middle of a step, after the update and before any checkpoint."""

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        if run.step == CUT:
            signal.raise_signal(signal.SIGKILL)
