"""Controls: arms that say what a gain of a method is worth, by putting something else in the teacher's place.

    SLUG.permuted          the method, every sample with the teacher's answer to another sample (`kdzoo.permuted`)
    SLUG.random-teacher    the method, taught by the teacher's architecture with random weights
    student.longer         the student alone, for as many steps as the method's training time buys
    student.smoothing      the student alone, its labels smoothed to the teacher's mean entropy

The last two hold a number that is known only once something has run: a count of steps, a share of smoothing. A bench
makes its other arms first, settles the numbers from what they left, and then plans these arms like any other: the
number is a setting, in the keys and in the record. The count of steps rests on measured seconds, so it is written
into ``<home>/controls`` and read from there ever after; the smoothing rests on the teacher's logits alone, whose
entropy is an artefact.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.arms import Arm
from kdzoo.cards import MethodCard, TaskCard, is_shipped
from kdzoo.errors import KdzooError
from kdzoo.method import EVALUATE, Role, Stage

if TYPE_CHECKING:
    from kdzoo.artefacts import Store
    from kdzoo.plan import Plan
    from kdzoo.records import RunRow
    from kdzoo.runs import Run, StageSpec

LONGER, SMOOTHING = "student.longer", "student.smoothing"
ENTROPY = "kdzoo.controls:entropy_stage"
PULLED = ("logits", "features", "embedding", "text", "scores")
"""What a method may need of a teacher that comes as a signal; weights are loaded, not pulled."""

Settled = dict[str, dict[str, Any]]
"""Arm -> what was found for it: `set` (settings) with `text` or `why`, or `left_out` (the reason)."""


def controls_of(card: MethodCard, task: TaskCard) -> tuple[dict[str, Arm], dict[str, str]]:
    """(the controls of a method on a task, arm -> why it is left out), both in the order of the table."""
    arms: list[Arm] = []
    left_out: dict[str, str] = {}
    slug = card.slug
    permuted, random = f"{slug}.permuted", f"{slug}.random-teacher"
    if not set(PULLED) & set(card.teacher):
        left_out[permuted] = f"{slug} pulls no teacher signal{_own_controls(card)}"
    elif permuted not in card.arms:
        text = "every sample gets the teacher's answer to another sample"
        arms.append(Arm(permuted, slug, text, control=True, extensions=("permuted",)))
    if task.teacher is None or not any(role.source == "task" for role in card.roles.values()):
        left_out[random] = f"{slug} has no role that is the task's teacher{_own_controls(card)}"
    elif random not in card.arms:
        text = "the teacher's architecture with random weights, frozen"
        arms.append(Arm(random, slug, text, control=True, random_teacher=True))
    text = f"the student alone, for as many steps as the training time of {slug} buys"
    arms.append(Arm(LONGER, None, text, differs=("steps", "order"), control=True, settled_by="time"))
    if why := _no_smoothing(task):
        left_out[SMOOTHING] = why
    else:
        text = "the student alone, labels smoothed to the teacher's mean entropy"
        arms.append(Arm(SMOOTHING, None, text, control=True, settled_by="entropy"))
    return {arm.name: arm for arm in arms}, left_out


def _own_controls(card: MethodCard) -> str:
    """What a method brings in the place of a control that it cannot have."""
    own = [name for name, arm in card.arms.items() if arm.control]
    return f"; its own control: {', '.join(own)}" if own else ", and its card names no control of its own"


def _no_smoothing(task: TaskCard) -> str | None:
    """Why labels cannot be smoothed on a task."""
    if "label_smoothing" not in task.params or "classes" not in task.sizes:
        return f"the loss of {task.slug} has no class labels to smooth (no setting label_smoothing)"
    return None if task.teacher else f"{task.slug} has no teacher whose entropy the labels could take"


def entropy_stage_of(task: TaskCard, temperature: float, values: Mapping[str, Any]) -> Stage:
    """The stage that measures how uncertain the task's teacher, under these settings, is on the training data."""
    trained = task.teacher is not None and not is_shipped(task.teacher, values)
    return Stage(
        "entropy",
        ENTROPY,
        needs=("teacher",) if trained else (),
        set={"temperature": temperature},
        seeded=False,
        roles=(Role("teacher", "frozen", "task"),),
    )


def entropy_stage(run: Run) -> None:
    """Mean entropy (nats) of the teacher at `temperature` over the split ``train``, without augmentation.

    That is the split whose labels are smoothed. An unlabelled pool has none, and is left out.
    """
    import torch

    from kdzoo import roles
    from kdzoo.losses.divergences import entropy
    from kdzoo.runs import as_output

    roles.build(run)
    data, total, classes = run.data("train"), 0.0, 0
    with torch.no_grad(), run.device_info.autocast():
        for rows in torch.arange(len(data)).split(500):
            batch = run.to_device(data.collate(data.items, rows, None))
            logits = as_output(run.models["teacher"](next(iter(batch.views.values())))).logits
            if logits is None or logits.dim() != 2:
                raise KdzooError(
                    f"the teacher of {run.task.slug!r} gives no logits of shape (samples, classes), so it has no "
                    f"entropy that labels could take: run the bench without the arm {SMOOTHING}"
                )
            classes = logits.shape[1]
            said = entropy(logits.float(), temperature=float(run.cfg.temperature), axis=1, reduction="sum")
            total += float(said.double())
    run.facts |= {"entropy": total / len(data), "classes": classes, "samples": len(data)}


def smoothed_entropy(smoothing: float, classes: int) -> float:
    """Entropy in nats of a smoothed label: 1 - e + e / C on the label's class, e / C on each of the others.

    Args:
        smoothing: e, in [0, 1].
        classes: C, at least 2.
    """
    other = smoothing / classes
    label = 1.0 - smoothing + other
    return -sum(share * math.log(share) * n for share, n in ((label, 1), (other, classes - 1)) if share > 0)


def smoothing_of(entropy: float, classes: int) -> float:
    """The label smoothing whose entropy is the given one: bisection, since the entropy grows with the smoothing.

    Args:
        entropy: nats, from 0 (a hard label) to log C (all classes alike).
        classes: C, at least 2.

    Returns:
        e in [0, 1]; its entropy is within 1e-9 of the given one.

    Raises:
        KdzooError: an entropy that no distribution over C classes has.
    """
    most = math.log(classes) if classes > 1 else 0.0
    if classes < 2 or not -1e-6 <= entropy <= most + 1e-6:  # the sum over the data is rounded
        raise KdzooError(
            f"an entropy of {entropy:.6g} nats over {classes} classes was given, expected 0 to {most:.6g} and at "
            "least 2 classes: no label smoothing has it. Check that the teacher's logits are finite."
        )
    low, high = 0.0, 1.0
    for _ in range(64):
        middle = (low + high) / 2
        if smoothed_entropy(middle, classes) < entropy:
            low = middle
        else:
            high = middle
    return (low + high) / 2


# --- settling the numbers of a plan ---------------------------------------------------------------------------------


def known(plan: Plan, store: Store) -> Settled:
    """What earlier benches have settled for the plan's pending controls; under torchrun, what rank 0 knows."""
    return _shared(plan, lambda: _known(plan, store)) if plan.pending else {}


def measure(plan: Plan, made: Mapping[str, Mapping[str, Any]], store: Store) -> Settled:
    """Settle the pending controls from the results of the other arms, and write down what rests on seconds."""
    return _shared(plan, lambda: _measure(plan, made, store)) if plan.pending else {}


def _shared(plan: Plan, find: Any) -> Settled:
    from kdzoo.device import launched_ranks, open_device

    if launched_ranks() == 1:
        found: Settled = find()
        return found
    device = open_device(plan.request.device, plan.request.dtype)
    shared: Settled = device.share(find() if device.main else None)
    return shared


def _known(plan: Plan, store: Store) -> Settled:
    found: Settled = {}
    for name in plan.pending:
        if name == LONGER:
            entry = _read(_note(plan, store))
        else:
            entry = _smoothing(plan, {key: store.manifest(key) or {} for key in plan.questions})
        if entry is not None:
            found[name] = entry
    return found


def _measure(plan: Plan, made: Mapping[str, Mapping[str, Any]], store: Store) -> Settled:
    from kdzoo.artefacts import dump_json, write_atomic

    found: Settled = {}
    for name in plan.pending:
        if name != LONGER:
            found[name] = _smoothing(plan, made) or {
                "left_out": "the teacher's entropy could not be measured"
            }
            continue
        entry = _longer(plan, made)
        if entry is None:
            why = f"no finished run of student and {plan.card.slug} to take the time from"
            found[name] = {"left_out": why}
            continue
        note = _note(plan, store)
        with store.lock(note.stem):  # of two benches at a time the first one settles it for both
            found[name] = _read(note) or entry
            if not note.exists():
                write_atomic(note, dump_json(entry))
    return found


def _smoothing(plan: Plan, made: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    for key, spec in plan.questions.items():
        facts = made.get(key, {}).get("facts")
        if spec.stage.call != ENTROPY or not facts:
            continue
        temperature = spec.settings["temperature"]
        text = (
            f"the student alone, labels smoothed to the teacher's mean entropy: {facts['entropy']:.4f} nats at "
            f"temperature {temperature:g} over {facts['samples']} training samples"
        )
        smoothing = smoothing_of(facts["entropy"], facts["classes"])
        return {"set": {"label_smoothing": smoothing}, "text": text}
    return None


def _longer(plan: Plan, made: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """How many steps of the student the method's training time buys: medians over the seeds, validation left out."""
    slug = plan.card.slug
    alone, taught = (_costs(plan, arm, made) for arm in ("student", slug))
    if not alone or not taught:
        return None
    step = statistics.median(seconds / steps for seconds, steps in alone)
    time = statistics.median(seconds for seconds, _ in taught)
    before, steps = alone[0][1], round(time / step)
    if plan.request.smoke:  # three steps measure nothing; the arm must be there, and longer
        steps = max(steps, before + 1)
    if steps <= before:
        return {"left_out": f"{slug} trains no slower than the student alone: its time buys no more steps"}
    seeds = min(len(alone), len(taught))
    why = (
        f"{slug} trained for {time:.4g} s, a step of the student took {1000 * step:.4g} ms (measured once, medians "
        f"over {seeds} seed{'' if seeds == 1 else 's'}): {steps} steps in place of {before}; they begin with the "
        "student's samples in the student's order"
    )
    return {"set": {"steps": steps}, "why": why}


def _costs(plan: Plan, arm: str, made: Mapping[str, Mapping[str, Any]]) -> list[tuple[float, int]]:
    """(training seconds, optimiser steps) of every finished seed of an arm, summed over its own stages."""
    found = []
    for (name, _), specs in plan.runs.items():
        costs = [made.get(spec.key, {}).get("cost") for spec in _own(specs)] if name == arm else []
        whole = [cost for cost in costs if cost]
        if costs and len(whole) == len(costs) and (steps := sum(cost["steps"] for cost in whole)):
            found.append((math.fsum(cost["seconds"] for cost in whole), steps))
    return found


def _own(specs: list[StageSpec]) -> list[StageSpec]:
    return [spec for spec in specs if spec.stage.seeded and spec.stage.call != EVALUATE]


def _note(plan: Plan, store: Store) -> Path:
    """Where the steps of `student.longer` are written down: a file named by all that both trainings depend on.

    Seeds are left out, so that a bench with more of them keeps the count.
    """
    from kdzoo.artefacts import key_of
    from kdzoo.execute import key_content

    content = []
    for arm in ("student", plan.card.slug):
        specs = next((specs for (name, _), specs in plan.runs.items() if name == arm), [])
        for spec in _own(specs):
            seedless = replace(spec, seed=None, needs=dict.fromkeys(spec.needs, ""))
            content.append(key_content(seedless, plan.data_hash(spec)))
    return store.root.parent / "controls" / f"{LONGER}-{key_of(content)}.json"


def _read(note: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(note.read_bytes())
        if entry.keys() in ({"left_out"}, {"set", "why"}):
            whole: dict[str, Any] = entry
            return whole
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        pass
    raise KdzooError(
        f"{note} cannot be read: it holds the steps of {LONGER} as they were settled once, and other steps would be "
        "another control. Put the file back, or delete it to settle them anew."
    )


# --- looking at the results -----------------------------------------------------------------------------------------


def warn_of_idle(rows: list[RunRow], slug: str) -> None:
    """A control whose weights are the method's own has controlled nothing: the method pulled no signal."""
    weights = {
        (row.arm, row.seed): [facts["sha256"] for facts in row.ships.values()]
        for row in rows
        if row.status == "done"
    }
    for row in rows:
        own = weights.get((slug, row.seed))
        idle = row.arm in (f"{slug}.permuted", f"{slug}.random-teacher") and own is not None
        if idle and weights.get((row.arm, row.seed)) == own:
            row.warnings.append(
                f"its weights are those of {slug}: no answer of the teacher took part in the training, so this "
                "control says nothing. Give the method a control of its own (control = true in its card)."
            )
