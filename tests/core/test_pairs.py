"""Teachers that cannot teach: refused while a bench is planned, with what, why and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from kdzoo import catalog
from kdzoo.cards import LayerNeed, MethodCard, Side, TaskCard, read
from kdzoo.errors import KdzooError
from kdzoo.pairs import needs_of, problems_of, sides_of
from kdzoo.plan import Request, make_plan

LAYERS = {"stage1": [8, 14, 14], "stage2": [16, 7, 7], "pooled": [16]}
WIDE = {"stage1": [32, 14, 14], "stage2": [64, 4, 4], "pooled": [64]}


@pytest.fixture
def card() -> MethodCard:
    return catalog.load().method("fitnets")


@pytest.fixture
def task() -> TaskCard:
    return catalog.load().task("fashion-few-labels")


def said(
    card: MethodCard, task: TaskCard, student: Side, teacher: Side, values: dict[str, Any] | None = None
) -> str:
    """All problems of a pair, in one text."""
    given = {"hint_share": 0.1, "kd_weight": 1.0, "guided": "stage2", "hint": "stage2", **(values or {})}
    return " ".join(problems_of(card, task, given, {"student": student, "teacher": teacher}))


def test_what_nobody_states_is_not_checked(card: MethodCard, task: TaskCard) -> None:
    """Would catch a task of another plugin that cannot run because its card has no [gives]."""
    assert said(card, task, Side(), Side()) == ""


def test_an_output_that_is_missing(card: MethodCard, task: TaskCard) -> None:
    """Would catch a soft-label term that is silently left out because the teacher has no logits."""
    teacher = Side(outputs=["features", "embedding"])
    found = said(card, task, Side(), teacher)
    assert "fitnets needs the teacher's logits (since kd_weight is 1.0)" in found
    assert "gives features, embedding" in found
    assert "set kd_weight=0, or use a task whose teacher has it: fashion-few-labels, cifar100" in found
    assert said(card, task, Side(), teacher, {"kd_weight": 0.0}) == ""


def test_needs_follow_the_settings(card: MethodCard) -> None:
    """Would catch an ablation that is refused for what it has switched off, and a need that no setting asks for."""
    assert needs_of(card, {"hint_share": 0.1, "kd_weight": 0.0}) == {"features": "hint_share"}
    bare = structs.replace(card, needs={}, teacher=["logits"])
    assert needs_of(bare, {}) == {"logits": ""}
    assert needs_of(structs.replace(bare, teacher=["logits", "features"]), {}) == {}
    assert needs_of(structs.replace(bare, teacher=["weights"]), {}) == {}


def test_one_of_several_is_enough_where_the_card_says_no_more(card: MethodCard, task: TaskCard) -> None:
    """Would catch a method that is refused for an output it can spare; and one that has none left."""
    either = structs.replace(card, needs={}, layers=[])
    assert said(either, task, Side(), Side(outputs=["features"])) == ""
    assert "can use features or logits of a teacher" in said(
        either, task, Side(), Side(outputs=["embedding"])
    )


def test_other_classes(card: MethodCard, task: TaskCard) -> None:
    """Would catch a teacher whose class 3 is the student's class 7."""
    student, teacher = Side(classes=10), Side(classes=1000)
    assert "the student has 10 classes and the teacher 1000" in said(card, task, student, teacher)
    assert said(card, task, student, teacher, {"kd_weight": 0.0}) == ""
    assert said(structs.replace(card, aligns=["classes"]), task, student, teacher) == ""


def test_other_vocabularies(card: MethodCard, task: TaskCard) -> None:
    """Would catch a KL between distributions over different tokens."""
    student, teacher = Side(vocabulary="aa11"), Side(vocabulary="bb22")
    found = said(card, task, student, teacher)
    assert "aa11" in found
    assert "bb22" in found
    assert "one tokenizer" in found
    assert said(card, task, student, Side(vocabulary="aa11")) == ""
    assert said(structs.replace(card, aligns=["vocabulary"]), task, student, teacher) == ""


def test_other_normalisation(card: MethodCard, task: TaskCard) -> None:
    """Would catch a teacher that is asked about pixels it has never seen the like of."""
    student, teacher = Side(normalisation="mean 0, sd 1"), Side(normalisation="mean 0.5, sd 0.5")
    found = said(card, task, student, teacher)
    assert "normalised for the student (mean 0, sd 1), the teacher expects mean 0.5, sd 0.5" in found
    assert said(card, task, student, structs.replace(teacher, view="teacher-image")) == ""
    assert said(structs.replace(card, aligns=["normalisation"]), task, student, teacher) == ""


def test_a_layer_that_does_not_exist(card: MethodCard, task: TaskCard) -> None:
    """Would catch a misspelt layer after the models were built and the teacher was trained."""
    found = said(card, task, Side(layers=LAYERS), Side(layers=WIDE), {"hint": "stage4", "guided": "stage3"})
    assert "hint names the layer 'stage4', which the teacher does not have. Did you mean stage" in found
    assert "guided names the layer 'stage3', which the student does not have" in found
    assert "It has stage1, stage2, pooled" in found
    assert said(card, task, Side(layers=LAYERS), Side(layers=WIDE), {"hint_share": 0.0, "hint": "x"}) == ""


@pytest.mark.parametrize(
    ("match", "guided", "hint", "refused"),
    [
        ("any", "stage2", "stage2", False),
        ("any", "stage2", "pooled", True),
        ("any", ["stage1", "stage2"], ["stage1", "stage2"], False),
        ("grid", "stage1", "stage1", False),
        ("grid", "stage2", "stage2", True),
        ("grid", ["stage1", "stage2"], ["stage1", "stage2"], True),
        ("shape", "stage1", "stage1", True),
    ],
)
def test_maps_that_cannot_be_aligned(
    card: MethodCard, task: TaskCard, match: Any, guided: Any, hint: Any, refused: bool
) -> None:
    """Would catch maps that are compared pixel by pixel although they have other sizes."""
    need = structs.replace(card, layers=[LayerNeed(student="guided", teacher="hint", match=match)])
    found = said(need, task, Side(layers=LAYERS), Side(layers=WIDE), {"guided": guided, "hint": hint})
    assert ("have no counterparts" in found) == refused
    if refused:
        assert "stage2 (16 x 7 x 7)" in found


def test_the_card_and_the_settings_are_put_together(task: TaskCard) -> None:
    """Would catch facts of the card that are lost when the task's module adds its own."""
    values = {name: param.default for name, param in task.params.items()}
    sides = sides_of(task, values)
    assert sides["teacher"].outputs == ["logits", "features", "embedding"]
    assert sides["teacher"].normalisation == sides["student"].normalisation
    assert sides["student"].layers is not None
    assert sides["student"].layers["stage2"] == [16, 7, 7]
    assert sides_of(task, {**values, "student": "cnn-m"})["student"].layers["stage2"] == [32, 7, 7]  # type: ignore[index]


def test_refused_before_weights_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a refusal after minutes of loading."""
    from kdzoo import roles
    from kdzoo_vision.data import fashion

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("read before the pair was checked")

    monkeypatch.setattr(fashion, "load", forbidden)
    monkeypatch.setattr(roles, "load_weights", forbidden)
    with pytest.raises(KdzooError, match=r"^fitnets cannot be trained on fashion-few-labels: hint names"):
        make_plan(Request("fitnets", set=("hint=stage9",), seeds=1))


def test_a_teacher_as_timm_gives_it() -> None:
    """Would catch weights for other classes or another normalisation that are taken as they are."""
    task = catalog.load().task("imagenet")
    hinton = catalog.load().method("hinton-kd")
    values = {name: param.default for name, param in task.params.items()}

    def problems(teacher: str, **changes: Any) -> str:
        given = {**values, "teacher": teacher, **changes}
        return " ".join(problems_of(hinton, task, given, sides_of(task, given)))

    assert problems(str(values["teacher"])) == ""
    odd = "timm:vit_tiny_patch16_224.augreg_in21k"
    assert "the teacher 21843" in problems(odd)
    assert "the teacher expects mean 0.5 0.5 0.5, sd 0.5 0.5 0.5" in problems(odd)
    assert problems(odd, teacher_steps=1000) == ""


# Teachers that come in packages of their own, which these tests do without: another one with another tokenizer.
NOT_INSTALLED = {"smollm2-endings": ("teacher=llama-xs", "teacher_vocabulary=file:verses-2k")}


def test_every_local_method_can_be_paired() -> None:
    """Would catch a card whose needs contradict a task that it says it runs on."""
    cards = catalog.load()
    for slug, card in cards.methods.items():
        for name, use in card.tasks.items():
            if use.profile == "local" and name in cards.tasks:
                make_plan(Request(slug, task=name, arms="all", seeds=1, set=NOT_INSTALLED.get(name, ())))


def test_a_need_of_an_unknown_setting_breaks_the_card(write_cards: Any) -> None:
    """Would catch a condition that is never true because its setting is misspelt."""
    package: Path = write_cards(
        method=('teacher = ["logits"]\n', 'teacher = ["logits"]\nneeds = { logits = "kd_wight" }\n')
    )
    with pytest.raises(
        KdzooError, match=r"unknown setting 'kd_wight'. Did you mean kd_weight\?.*needs.logits"
    ):
        read(package / "methods" / "toy-kd.toml", MethodCard)
