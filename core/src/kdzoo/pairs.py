"""Teachers and students that cannot be paired, refused before any weights are loaded or data are read.

Three sources are held against each other: the method's card (`teacher`, `needs`, `layers`, `aligns`), the task's card
(`gives`: what its models take and say) and, where the task's module has one, its function

    check_pair(task: TaskCard, cfg: Settings) -> dict[str, Side]

which says what follows from an arm's settings (classes of a pretrained teacher, layers of an architecture) without
weights. What neither of them states is not checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import structs

from kdzoo import catalog
from kdzoo.arms import Arm
from kdzoo.cards import LayerNeed, MethodCard, Side, TaskCard
from kdzoo.errors import KdzooError, did_you_mean
from kdzoo.settings import Settings

COMPARED = ("logits", "features", "embedding")
"""Outputs of teacher and student that a loss holds against each other."""


def refuse_impossible(arm: Arm, cards: catalog.Catalog, task: TaskCard, values: Mapping[str, Any]) -> None:
    """Refuse an arm whose teacher cannot teach its student.

    Args:
        arm: a training configuration; one without a method has no teacher and passes.
        values: all its settings.

    Raises:
        KdzooError: what the method needs, what the task's models give, what would go wrong, what to do.
    """
    if arm.method is None:
        return
    card = cards.method(arm.method)
    if not any(role.source == "task" for role in card.roles.values()):
        return
    if problems := list(problems_of(card, task, values, sides_of(task, values))):
        raise KdzooError(f"{arm.name} cannot be trained on {task.slug}: " + " ".join(problems))


def sides_of(task: TaskCard, values: Mapping[str, Any]) -> dict[str, Side]:
    """What is known of student and teacher under an arm's settings: the card, then what the task's module adds."""
    sides = {role: task.gives.get(role, Side()) for role in ("student", "teacher")}
    check = getattr(catalog.load().module(task.slug), "check_pair", None)
    for role, side in (check(task, Settings(values, ("*",), "plan")) if check else {}).items():
        added = {name: value for name, value in structs.asdict(side).items() if value is not None}
        if side.view == "image":  # the default says nothing
            added.pop("view", None)
        sides[role] = structs.replace(sides[role], **added)
    return sides


def problems_of(
    card: MethodCard, task: TaskCard, values: Mapping[str, Any], sides: Mapping[str, Side]
) -> Iterator[str]:
    """Everything that keeps the two sides from being paired by a method, a sentence or two each."""
    needed = needs_of(card, values)
    student, teacher = sides["student"], sides["teacher"]
    for output, setting in needed.items():
        yield from _missing(card, output, setting, values, teacher)
    if not needed and len(card.teacher) > 1:
        yield from _none_of_many(card, teacher)
    if "logits" in needed:
        yield from _classes(card, student, teacher)
        yield from _vocabularies(card, student, teacher)
    if needed.keys() & set(COMPARED) or not needed:
        yield from _normalisations(card, task, student, teacher)
    if "features" in needed:
        for layer in card.layers:
            yield from _layers(layer, values, student, teacher)


def needs_of(card: MethodCard, values: Mapping[str, Any]) -> dict[str, str]:
    """Output -> the setting that asks for it, or "": what a method cannot do without under these settings.

    A card that says nothing of its needs and lists one output needs that; where it lists several, which of them it
    can spare is not known.
    """
    if card.needs:
        return {o: setting for o, setting in card.needs.items() if not setting or values.get(setting)}
    return {o: "" for o in card.teacher if o in COMPARED} if len(card.teacher) == 1 else {}


def _missing(
    card: MethodCard, output: str, setting: str, values: Mapping[str, Any], teacher: Side
) -> Iterator[str]:
    if teacher.outputs is None or output in teacher.outputs:
        return
    asked = f" (since {setting} is {values[setting]!r})" if setting else ""
    found = catalog.load().tasks
    gives = {name: found[name].gives.get("teacher", Side()).outputs for name in card.tasks if name in found}
    able = [name for name, outputs in gives.items() if output in (outputs or ())]
    remedy = [f"set {setting}=0"] if setting else []
    remedy += [f"use a task whose teacher has it: {', '.join(able)}"] if able else []
    remedy = remedy or ["use a method that needs what this teacher gives ('kdzoo list --teacher' finds it)"]
    yield (
        f"{card.slug} needs the teacher's {output}{asked}, but this task's teacher gives "
        f"{', '.join(teacher.outputs) or 'nothing'}: there would be nothing to match. To go on, "
        f"{', or '.join(remedy)}."
    )


def _none_of_many(card: MethodCard, teacher: Side) -> Iterator[str]:
    wanted = [output for output in card.teacher if output in COMPARED]
    if wanted and teacher.outputs is not None and not set(wanted) & set(teacher.outputs):
        yield (
            f"{card.slug} can use {' or '.join(wanted)} of a teacher, but this task's teacher gives "
            f"{', '.join(teacher.outputs) or 'nothing'}: there would be nothing to match. Use another task or method."
        )


def _classes(card: MethodCard, student: Side, teacher: Side) -> Iterator[str]:
    if None in (student.classes, teacher.classes) or student.classes == teacher.classes:
        return
    if "classes" not in card.aligns:
        yield (
            f"the student has {student.classes} classes and the teacher {teacher.classes}, and {card.slug} compares "
            "class by class: entries of one number would be different things. Use a teacher trained on the task's "
            "classes, train it on them first, or use a method that compares features or relations."
        )


def _vocabularies(card: MethodCard, student: Side, teacher: Side) -> Iterator[str]:
    if None in (student.vocabulary, teacher.vocabulary) or student.vocabulary == teacher.vocabulary:
        return
    if "vocabulary" not in card.aligns:
        yield (
            f"the student's tokenizer has the hash {student.vocabulary} and the teacher's {teacher.vocabulary}, and "
            f"{card.slug} compares token by token: equal numbers would be different tokens. Use models with one "
            "tokenizer, or a method whose card says that it aligns vocabularies, or train on text the teacher wrote."
        )


def _normalisations(card: MethodCard, task: TaskCard, student: Side, teacher: Side) -> Iterator[str]:
    if None in (student.normalisation, teacher.normalisation) or student.view != teacher.view:
        return
    if student.normalisation != teacher.normalisation and "normalisation" not in card.aligns:
        yield (
            f"the {student.view} that both sides get is normalised for the student ({student.normalisation}), the "
            f"teacher expects {teacher.normalisation}: it would be asked about inputs it has never seen. Use a teacher "
            f"with the normalisation of {task.slug}, or train it further on this task."
        )


def _layers(need: LayerNeed, values: Mapping[str, Any], student: Side, teacher: Side) -> Iterator[str]:
    """Layers that do not exist, and pairs of maps that the method cannot bring together."""
    names: list[list[str]] = []
    lost = False
    for role, side, setting in (("student", student, need.student), ("teacher", teacher, need.teacher)):
        value = values[setting]
        names.append(list(value) if isinstance(value, list) else [value])
        for name in names[-1]:
            if side.layers is not None and name not in side.layers:
                lost = True
                near = did_you_mean(name, side.layers)
                hint = f" Did you mean {', '.join(near)}?" if near else ""
                yield (
                    f"{setting} names the layer {name!r}, which the {role} does not have.{hint} It has "
                    f"{', '.join(side.layers)}: set {setting} to one of them."
                )
    if lost or student.layers is None or teacher.layers is None:
        return
    for mine, theirs in zip(*names, strict=False):
        s_shape, t_shape = student.layers[mine], teacher.layers[theirs]
        if not _fit(s_shape, t_shape, need.match):
            wanted = {
                "any": "as many dimensions on both sides",
                "grid": "equal height and width",
                "shape": "equal shapes",
            }[need.match]
            yield (
                f"the student's {mine!r} is {_shape(s_shape)} and the teacher's {theirs!r} {_shape(t_shape)}, expected "
                f"{wanted}: their entries have no counterparts. Set {need.student} and {need.teacher} to layers that "
                f"fit; the student has {_list(student.layers)}; the teacher {_list(teacher.layers)}."
            )


def _fit(student: list[int], teacher: list[int], match: str) -> bool:
    if match == "shape":
        return student == teacher
    if len(student) != len(teacher):
        return False
    return match == "any" or student[1:] == teacher[1:]


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _list(layers: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} ({_shape(shape)})" for name, shape in layers.items())
