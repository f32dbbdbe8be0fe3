"""The contract's checks of a training: who learns, in which precision, repeatable, resumable, in micro-batches."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.rng import mix
from kdzoo.runs import NotFinite, Run, Stopped
from kdzoo.testing.extensions import Stop
from kdzoo.testing.subject import (
    SHORT,
    NotApplicable,
    Subject,
    Trained,
    backward,
    fewer_rows,
    finish,
    loss_if_any,
    moments,
    refusal,
)

CUT = SHORT // 2  # whole steps before the interruption
RECORDED_ROWS = 256  # of each stream: a pool's feature maps are hundreds of megabytes
Gradients = dict[str, Tensor]


def only_trained_roles_get_gradients(subject: Subject) -> None:
    """Every trained role is reached by a gradient, no frozen and no own role is."""

    def look(run: Run) -> set[str]:
        reached = set()
        for _, step in moments(run):
            backward(run, step)
            for name, module in run.models.items():
                if any(parameter.grad is not None for parameter in module.parameters()):
                    reached.add(name)
                assert module.training == (run.roles[name].kind == "train"), (
                    f"role {name!r} is {run.roles[name].kind} and has training = {module.training}: "
                    "batch norm and dropout would change what it says"
                )
        return reached

    run = subject.open()
    kinds = {name: role.kind for name, role in run.roles.items()}
    reached = subject.look(look)
    for name, kind in kinds.items():
        if kind == "train":
            assert name in reached, (
                f"role {name!r} is trained but gets no gradient, in the first step and in the last: no term depends "
                "on it. Use it in loss_terms, or make it frozen or own."
            )
        else:
            assert name not in reached, (
                f"role {name!r} is {kind} and gets a gradient: its parameters ask for one, though core switched that "
                "off. A teacher that is trained along drifts towards its student. Take run.signal, or make it train."
            )


def frozen_roles_stay(subject: Subject) -> None:
    """Frozen weights and buffers are after training what they were before."""
    trained = subject.train()
    kinds = {name: role.kind for name, role in subject.open().roles.items()}
    for name, (before, after) in trained.hashes.items():
        assert kinds[name] != "frozen" or before == after, (
            f"role {name!r} is frozen, but its weights or buffers moved in {SHORT} steps: each arm would have another "
            "teacher. Look for train() on it (batch norm counts along) or for an update in after_step."
        )


def finite_in_bfloat16(subject: Subject) -> None:
    """Loss and gradients are finite under autocast, in the first step and in the last."""

    def look(run: Run) -> None:
        for when, step in moments(run):
            try:
                loss = backward(run, step)
            except NotFinite as error:
                raise AssertionError(f"in bfloat16, {when}: {error}") from error
            assert math.isfinite(loss), f"in bfloat16, {when}: the loss is {loss}"
            for name, module in run.models.items():
                for place, parameter in module.named_parameters():
                    assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), (
                        f"in bfloat16, {when}: the gradient of {name}.{place} is not finite although the loss is. "
                        "Compute what is small or large in float32: x.float()."
                    )

    subject.look(look, dtype="bfloat16")


def same_seed_same_result(subject: Subject) -> None:
    """Two trainings with one seed give the same weights, bit by bit, and another seed gives others."""
    first = subject.train()
    assert subject.repeatable, (
        "trained twice with seed 0, the weights or the loss terms differ: results could not be repeated. Draw from "
        "run.rng(purpose), and keep no state in the module: a worker runs many runs."
    )
    other = subject.train(seed=1)
    assert not first.same_weights(other), (
        "seeds 0 and 1 give the same weights, so the interval over seeds would be empty: a seed is fixed somewhere. "
        "Draw from run.rng(purpose) and leave torch's own seed alone."
    )


def resume_is_exact(subject: Subject) -> None:
    """Stopped in the middle and gone on from the checkpoint, a run ends as if nothing had been."""
    if not subject.repeatable:
        raise NotApplicable(
            "equal seeds give different results: an interruption could not be told from chance"
        )
    patch = subject.short(steps=SHORT, eval_every=CUT, warmup=0)
    whole = finish(subject.open(patch=patch))
    folder = subject.folder()
    stopped = subject.open(patch=patch, folder=folder)
    stopped.manager.register(Stop(CUT), "stop")
    try:
        finish(stopped)
    except Stopped:
        pass
    else:
        raise AssertionError(
            f"asked to stop after step {CUT}, the run trained on: Ctrl-C would lose what was done. "
            "An engine calls run.stepped once an optimiser step."
        )
    with _as_in_a_new_process(subject.method):
        resumed = finish(subject.open(patch=patch, folder=folder))
    assert whole.same_weights(resumed), (
        f"stopped after step {CUT} and resumed, the weights differ by {whole.apart(resumed):.3g} from an "
        "uninterrupted run's: state is outside the checkpoint. Put it in run.keep(name, thing) or in an own role."
    )
    for name in ("curves", "logs"):
        assert whole.books[name] == resumed.books[name], (
            f"stopped after step {CUT} and resumed, the {name} differ from an uninterrupted run's: "
            f"{whole.books[name]} and {resumed.books[name]}"
        )
    for name in ("steps", "examples", "student_forwards", "teacher_forwards"):
        assert whole.books["cost"][name] == resumed.books["cost"][name], (
            f"stopped after step {CUT} and resumed, {name} = {resumed.books['cost'][name]}, expected "
            f"{whole.books['cost'][name]}: the record's costs would depend on interruptions"
        )


def batch_may_be_split(subject: Subject) -> None:
    """Two micro-batches give the loss and the gradient of one batch, or the card says ``couples_batch``.

    Models are in evaluation mode, since batch norm couples a batch whatever the method does; the task's own loss is
    left out where the task says that it couples. A method that draws random numbers draws others for other
    micro-batches and cannot be compared.
    """
    if subject.card.couples_batch:
        _splitting_is_refused(subject)
        return
    alone = {"task_weight": 0.0} if subject.task_card.couples_batch else {}
    try:
        whole, halves, moved = (
            _gradients(subject, {**alone, "accumulate": micro}, moved=seeds)
            for micro, seeds in ((1, False), (2, False), (1, True))
        )
    except KdzooError as error:
        if "cannot be shared equally" in str(error):
            raise NotApplicable(str(error)) from error
        raise
    if not whole:
        raise NotApplicable(
            "beside the task's loss, which couples the batch, the method has no term to compare"
        )
    for when, (loss, gradients) in whole.items():
        if _differ(loss, gradients, *moved[when]):
            raise NotApplicable(f"{when} draws random numbers, which are others in other micro-batches")
        if what := _differ(loss, gradients, *halves[when]):
            raise AssertionError(
                f"{when}: in two micro-batches {what}. Under gradient accumulation another loss would be trained. Sum "
                "over items and give Term(total, per='item'); or, if the loss compares samples of a batch, say "
                "couples_batch = true in the card: accumulation is then refused."
            )


def recorded_signals_are_live(subject: Subject) -> None:
    """On recorded answers of the teacher a run ends as on live ones: bit by bit, where the answers are equal so."""
    if said := refusal(partial(subject.plan, signals="recorded")):
        raise NotApplicable(said)
    if not subject.repeatable:
        raise NotApplicable("equal seeds give different results, so two trainings could not be compared")

    def trained(signals: str) -> Trained:
        run = subject.open(patch=subject.short(steps=SHORT, eval_every=0, warmup=0), signals=signals)
        fewer_rows(run, RECORDED_ROWS)
        return finish(run)

    live = trained("live")
    try:
        recorded = trained("recorded")
    except KdzooError as error:
        raise AssertionError(str(error)) from error
    parts = [
        part
        for facts in recorded.facts.get("signals", {}).values()
        for part in facts.values()
        if isinstance(part, dict) and "exact" in part
    ]
    if not parts:
        raise NotApplicable("it reads no answer that could be recorded")
    exact = all(part["exact"] for part in parts)
    apart = live.apart(recorded)
    assert live.same_weights(recorded) if exact else apart <= 1e-3 * live.largest(), (
        f"on recorded signals that {'equal live ones' if exact else 'differ from live ones by rounding'} the weights "
        f"end {apart:.3g} away from those on live signals. A method must not change what run.signal gives, nor take "
        "from the teacher beside it."
    )


def _gradients(subject: Subject, patch: dict[str, Any], moved: bool) -> dict[str, tuple[float, Gradients]]:
    """Loss and gradients of the first and the last step; with `moved`, under other random numbers."""

    def look(run: Run) -> dict[str, tuple[float, Gradients]]:
        found = {}
        if moved:
            run._base = mix(run.seed, "moved")
        for module in run.models.values():
            module.eval()
        for when, step in moments(run):
            if (loss := loss_if_any(run, step)) is not None:
                found[when] = (
                    loss,
                    {
                        f"{role}.{name}": parameter.grad.clone()
                        for role, module in run.models.items()
                        for name, parameter in module.named_parameters()
                        if parameter.grad is not None
                    },
                )
        return found

    return subject.look(look, patch=patch)


def _differ(loss: float, gradients: Gradients, other_loss: float, others: Gradients) -> str:
    """What differs by more than rounding, in words; empty if nothing does."""
    if abs(loss - other_loss) > 1e-4 * max(abs(loss), abs(other_loss)) + 1e-7:
        return f"the loss is {other_loss:.6g}, in one batch {loss:.6g}"
    largest = max((float(value.abs().max()) for value in gradients.values()), default=0.0)
    for name in gradients.keys() | others.keys():
        mine, theirs = gradients.get(name), others.get(name)
        apart = float(
            (torch.zeros(()) if mine is None else mine).sub(0 if theirs is None else theirs).abs().max()
        )
        if apart > 1e-3 * largest + 1e-7:
            return f"the gradient of {name} differs by {apart:.3g} (the largest gradient is {largest:.3g})"
    return ""


def _splitting_is_refused(subject: Subject) -> None:
    """Accumulation and ranks are refused while a bench is planned, and the message says why."""
    attempts: list[tuple[str, dict[str, str], tuple[str, ...]]] = [("2 ranks", {"WORLD_SIZE": "2"}, ())]
    if "accumulate" in {**subject.task_card.params, **subject.card.params}:
        attempts.append(("accumulate = 2", {}, ("accumulate=2",)))
    for what, environment, settings in attempts:
        with _environment(environment):
            said = refusal(partial(subject.plan, set=settings))
        assert said, f"the card says couples_batch, but a bench with {what} is planned"
        assert "couples the samples" in said, f"{what} is refused for another reason: {said}"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _as_in_a_new_process(method: str) -> Iterator[None]:
    """Import the method's module anew: what a module has kept for itself is gone, as it is after a crash."""
    module = catalog.load().module(method)
    name = module.__name__
    package, _, attribute = name.rpartition(".")
    parts = [part for part in sys.modules if part == name or part.startswith(f"{name}.")]
    kept = {part: sys.modules.pop(part) for part in parts}
    try:
        yield
    finally:
        for part in [part for part in sys.modules if part == name or part.startswith(f"{name}.")]:
            del sys.modules[part]
        sys.modules.update(kept)
        if package in sys.modules:
            setattr(sys.modules[package], attribute, module)
