"""Jaccard metric losses in segmentation: labels at borders, the objective, the tutor, scores image by image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.losses.jaccard import jaccard_loss
from kdzoo.method import Output
from kdzoo.plan import Request, make_plan
from kdzoo.settings import Settings, resolve
from kdzoo_segmentation import models
from kdzoo_segmentation.boundary_labels import at_border, smoothed
from kdzoo_segmentation.image_wise import ImageAreas
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.methods import jml

LABELS = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [IGNORE, 0, 0, 0]]])


def settings(**changes: Any) -> Settings:
    cards = catalog.load()
    values = resolve(cards.task("brain-slices"), cards.method("jml"), {}, {})
    return Settings({**values, **changes}, ("*",), "plan")


def maps(seed: int, classes: int = 3, size: int = 4) -> Tensor:
    return torch.randn(
        2, classes, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def labels_of(seed: int, classes: int = 3, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (2, size, size), generator=generator)
    labels[0, :2, 1] = IGNORE
    return labels


# --- labels at borders --------------------------------------------------------------------------------------


def test_border_by_hand() -> None:
    """The image's own border taken for a border of classes, or pixels beside one to be ignored smoothed, too."""
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert at_border(LABELS, 3)[0].int().tolist() == expected
    wider = at_border(LABELS, 5)[0].int().tolist()
    assert wider == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_border_is_the_definition() -> None:
    """A dilation of some classes only, or a neighbourhood that is shifted by a pixel."""
    labels = labels_of(0, size=9)
    for side in (3, 5):
        reach = side // 2
        for image in range(2):
            for y in range(9):
                for x in range(9):
                    near = labels[image, max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
                    expected = bool((near != labels[image, y, x]).any()) and not bool((near == IGNORE).any())
                    assert at_border(labels, side)[image, y, x] == expected


def test_smoothed_by_hand() -> None:
    """Mass that gets lost, or smoothing away from borders."""
    soft = smoothed(LABELS, classes=4, epsilon=0.5, side=3)
    assert soft[0, :, 0, 0].tolist() == [1, 0, 0, 0]
    assert soft[0, :, 0, 2].tolist() == [0.625, 0.125, 0.125, 0.125]
    assert soft[0, :, 0, 3].tolist() == [0.125, 0.625, 0.125, 0.125]
    assert soft[0, :, 3, 0].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(soft.sum(1), (LABELS != IGNORE).float())


def test_no_border_and_nothing_to_count() -> None:
    """One class has no border; a batch without labels has no target."""
    same = torch.ones(1, 3, 3, dtype=torch.int64)
    assert not at_border(same, 3).any()
    torch.testing.assert_close(smoothed(same, classes=2, epsilon=0.5, side=3)[:, 1], torch.ones(1, 3, 3))
    assert (smoothed(torch.full((1, 3, 3), IGNORE), classes=2, epsilon=0.5, side=3) == 0).all()
    torch.testing.assert_close(
        smoothed(LABELS, classes=4, epsilon=0.0, side=3).argmax(1)[LABELS != IGNORE], LABELS[LABELS != IGNORE]
    )
    with pytest.raises(KdzooError, match="odd"):
        at_border(same, 4)


# --- the objective ------------------------------------------------------------------------------------------


def output(seed: int, auxiliary: bool = True) -> Output:
    extra = {"auxiliary": [maps(seed + 10, size=2)]} if auxiliary else {}
    return Output(logits=maps(seed), extra=extra)


def mean_kl(student: Tensor, target: Tensor, keep: Tensor, temperature: float = 1.0) -> float:
    """From the definition, pixel by pixel; a sum over those that count."""
    log_q = (student / temperature).log_softmax(1)
    values = torch.where(target > 0, target * (target.clamp(min=1e-300).log() - log_q), 0.0).sum(1)
    return float(values[keep].sum())


def big(score: Tensor) -> Tensor:
    return F.interpolate(score, (4, 4), mode="bilinear", align_corners=False)


def test_pixel_losses_are_the_formula() -> None:
    """Heads that weigh twice or not at all, a T^2 that is missing, pixels to be ignored that count."""
    cfg = SimpleNamespace(main_weight=0.5, auxiliary_weight=0.25, temperature=2.0)
    student, tutor, labels = output(0), output(1), labels_of(2)
    keep = labels != IGNORE
    heads = [(0.5, lambda said: said.logits), (0.25, lambda said: big(said.extra["auxiliary"][0]))]
    soft = smoothed(labels, classes=3, epsilon=0.5, side=3)
    hard = F.one_hot(labels.masked_fill(~keep, 0), 3).movedim(-1, 1).double()
    for target, given in ((hard, None), (soft.double(), soft)):
        expected = sum(weight * mean_kl(of(student), target, keep) for weight, of in heads)
        found = jml.pixel_labels(cfg, student, labels, given)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected, rel=1e-5)
    expected = sum(
        4 * weight * mean_kl(of(student), (of(tutor) / 2).softmax(1), keep, 2.0) for weight, of in heads
    )
    found = jml.pixel_soft(cfg, student, tutor, labels, labels != IGNORE)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("sides", [(True, False), (False, True), (False, False)])
def test_a_missing_auxiliary_head_drops_its_term(sides: tuple[bool, bool]) -> None:
    """A teacher's auxiliary head compared with the student's main one, or a crash."""
    cfg = SimpleNamespace(main_weight=0.5, auxiliary_weight=0.5, temperature=1.0)
    labels = labels_of(2)
    student, tutor = output(0, sides[0]), output(1, sides[1])
    found = jml.pixel_soft(cfg, student, tutor, labels, None)  # type: ignore[arg-type]
    alone = jml.pixel_soft(cfg, output(0, False), output(1, False), labels, None)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(alone.item())
    assert alone.item() > 0


def test_labels_smaller_than_the_image() -> None:
    """Scores enlarged to the image and shrunk again are not those of the head."""
    score = maps(3, size=2)
    output = Output(logits=F.interpolate(score, (8, 8), mode="bilinear"), features={"score": score})
    torch.testing.assert_close(jml.main_head(output, torch.zeros(2, 4, 4)), big(score))
    assert jml.main_head(output, torch.zeros(2, 8, 8)) is output.logits


def test_overlap_joins_as_weighted() -> None:
    """A weight that is read for another aggregation; classes of soft labels by the rule of hard ones."""
    labels, logits = labels_of(2), maps(0)
    labels[labels == 2] = 0
    soft = maps(1).softmax(1)
    cfg = settings(batch_weight=0.5, image_weight=0.25, class_weight=2.0, smooth=0.1)
    shared = {"axis": 1, "form": "jml-1", "reduction": "mean", "smooth": 0.1, "mask": labels != IGNORE}
    for target, active in ((labels, "present"), (soft, "all")):
        parts = {
            over: jaccard_loss(logits, target, over=over, active=active, **shared).item()  # type: ignore[arg-type]
            for over in ("batch", "image", "class")
        }
        expected = 0.5 * parts["batch"] + 0.25 * parts["image"] + 2.0 * parts["class"]
        assert jml.overlap_loss(cfg, logits, target, labels != IGNORE).item() == pytest.approx(expected)


def test_a_batch_without_labels_teaches_nothing() -> None:
    """NaN from a mean over no pixel, or soft labels of pixels that are to be ignored."""
    cfg, labels = settings(), torch.full((2, 4, 4), IGNORE)
    keep = labels != IGNORE
    student = Output(logits=maps(0).requires_grad_(), extra={"auxiliary": [maps(10, size=2)]})
    total = jml.pixel_labels(cfg, student, labels, None) + jml.pixel_soft(
        cfg, student, output(1), labels, keep
    )
    for target in (labels, maps(3).softmax(1)):
        assert student.logits is not None
        total = total + jml.overlap_loss(cfg, student.logits, target, keep)
    soft = smoothed(labels, classes=3, epsilon=0.5, side=3)
    total = total + jml.pixel_labels(cfg, student, labels, soft)
    (gradient,) = torch.autograd.grad(total, student.logits)  # type: ignore[arg-type]
    assert total.item() == 0
    assert (gradient == 0).all()


def terms(cfg: Settings, batch_labels: Tensor, tutor: Output | None) -> tuple[dict[str, Any], Tensor]:
    """The terms of one batch beside a task's, and the student's logits."""
    student = output(0)
    assert student.logits is not None
    student.logits.requires_grad_()

    def signal(_: str) -> Output:
        assert tutor is not None, "nobody may ask a teacher that is not there"
        return tutor

    run: Any = SimpleNamespace(cfg=cfg, out=lambda _: student, signal=signal)
    pixels = int((batch_labels != IGNORE).sum())
    hook = jml.loss_terms(run, SimpleNamespace(labels=batch_labels, counts={"pixel": pixels}))  # type: ignore[arg-type]
    next(hook)
    with pytest.raises(StopIteration) as stopped:
        hook.send([{"task": "the task's", "other": "of an extension"}])  # type: ignore[dict-item]
    found: dict[str, Any] = {}
    for part in stopped.value.value:
        assert not found.keys() & part.keys()
        found |= part
    assert found.pop("other") == "of an extension"
    return found, student.logits


def test_terms_replace_the_tasks_and_the_tutor_gets_no_gradient() -> None:
    """Cross-entropy that counts twice, or a teacher that drifts to its student."""
    tutor = output(1)
    assert tutor.logits is not None
    tutor.logits.requires_grad_()
    paper = settings(pixel_weight=0.25, jaccard_weight=0.75)
    found, logits = terms(paper, labels_of(2), tutor)
    weights = {name: (term.weight, term.per) for name, term in found.items()}
    assert weights == {
        "task": (0.125, "pixel"),
        "jaccard": (0.375, "step"),
        "soft-labels": (0.125, "pixel"),
        "soft-jaccard": (0.375, "step"),
    }
    sum(term.total for term in found.values()).backward()
    assert tutor.logits.grad is None
    assert logits.grad is not None
    alone, _ = terms(settings(soft_weight=0.0), labels_of(2), None)
    assert alone.keys() == {"task", "jaccard"}
    distilled, _ = terms(settings(label_weight=0.0, jaccard_weight=0.0), labels_of(2), tutor)
    assert distilled.keys() == {"soft-labels"}


def test_other_classes_are_refused() -> None:
    """Class k of a teacher that was trained on other classes."""
    tutor = Output(logits=maps(1, classes=5))
    with pytest.raises(KdzooError, match="another class"):
        jml._soft_terms(
            SimpleNamespace(cfg=settings(), out=lambda _: output(0), signal=lambda _: tutor),  # type: ignore[arg-type]
            labels_of(2),
            None,
        )


# --- the tutor ----------------------------------------------------------------------------------------------


def test_arms_share_their_tutor() -> None:
    """A setting of the student that reaches the teacher's training: every arm would have another teacher."""
    plan = make_plan(Request("jml", task="brain-slices", arms="all", seeds=2))
    tutors: dict[str, set[str]] = {}
    for (arm, _), specs in plan.runs.items():
        for spec in specs:
            if spec.stage.name == "tutor":
                tutors.setdefault(spec.key, set()).add(arm)
    groups = sorted(tutors.values(), key=len)
    assert groups[0] == {"jml.without-smooth-teacher"}
    assert len(groups) == 2
    assert {
        "jml",
        "jml.without-jaccard",
        "jml.soft-jaccard",
        "jml.without-batch-sums",
        "jml.without-auxiliary",
    } <= groups[1]
    alone = groups[0] | groups[1]
    assert (
        not {"jml.without-teacher", "jml.smooth-labels[jml-1]", "jml.without-own-teacher", "student"} & alone
    )


def test_the_tutor_learns_from_smoothed_labels_and_the_student_from_hard_ones() -> None:
    """The two smoothings exchanged."""
    stages = {stage.name: stage for stage in jml.plan(settings(jaccard_weight=0.0))}
    own = stages["tutor"].set
    assert (own["label_smoothing"], own["jaccard_weight"], own["pixel_weight"]) == (0.5, 0.75, 0.25)
    assert (own["label_weight"], own["soft_weight"]) == (1.0, 0.0)
    assert not stages["tutor"].seeded
    assert not stages["fit"].set
    roles = {role.name: role.source for role in stages["fit"].roles or ()}
    assert roles == {"student": "init", "tutor": "stage:tutor"}
    of_task = jml.plan(settings(tutor="task"))
    assert {role.name: role.source for role in of_task[0].roles or ()}["tutor"] == "task"
    assert [stage.name for stage in jml.plan(settings(soft_weight=0.0))] == ["fit"]


def test_arms_that_learn_nothing_are_refused() -> None:
    """A run of hours on a loss of 0."""
    for changes, said in (
        ({"soft_weight": 0.0, "label_weight": 0.0}, "nothing to learn"),
        ({"pixel_weight": 0.0, "jaccard_weight": 0.0}, "nothing to learn"),
        ({"batch_weight": 0.0}, "left out in silence"),
        ({"border_side": 4}, "odd number"),
        ({"teacher_steps": 0, "tutor_steps": 0}, "random numbers"),
        ({"class_weights": "enet"}, "would be ignored"),
    ):
        with pytest.raises(KdzooError, match=said):
            jml.plan(settings(**changes))
    assert jml.plan(settings(teacher_steps=0, tutor="task"))


def test_a_teacher_that_is_asked_gives_its_auxiliary_scores() -> None:
    """Without them the auxiliary heads' term would be left out in silence: a frozen teacher is in evaluation mode."""
    model = models.build("deeplabv3p-r18-xs-aux", classes=3, channels=1).eval()
    image = torch.zeros(1, 1, 16, 16)
    with torch.no_grad():
        assert not model(image).extra
        model.always_auxiliary = True
        (score,) = model(image).extra["auxiliary"]
    assert score.shape[:2] == (1, 3)
    task = SimpleNamespace(sizes={"classes": 3, "channels": 1})
    run: Any = SimpleNamespace(task=task, cfg=settings(teacher="deeplabv3p-r18-xs-aux"), stage="fit", steps=1)
    built = jml.build_model(run, "tutor")
    assert isinstance(built, models.Segmentor)
    assert built.always_auxiliary
    assert jml.build_model(run, "student") is None


# --- image by image -----------------------------------------------------------------------------------------


def test_image_wise_by_hand() -> None:
    """Absent classes that count, sums before the division, images without labels that weigh along."""
    truth = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]], [[IGNORE] * 2] * 2])
    said = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 1]], [[0, 1], [1, 1]]])
    areas = ImageAreas(3)
    areas.add(said, truth)
    # Image 0: class 0 1/2, class 1 2/3; image 1: class 0 3/4 (class 1 is predicted, but not there).
    assert areas.mean("iou", "image") == pytest.approx(((1 / 2 + 2 / 3) / 2 + 3 / 4) / 2)
    assert areas.mean("iou", "class") == pytest.approx(((1 / 2 + 3 / 4) / 2 + 2 / 3) / 2)
    assert areas.mean("iou", "dataset") == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert areas.mean("accuracy", "image") == pytest.approx(((1 / 2 + 1) / 2 + 3 / 4) / 2)
    assert areas.mean("dice", "class") == pytest.approx(((2 / 3 + 6 / 7) / 2 + 4 / 5) / 2)
    assert ImageAreas(3).mean("iou", "image") is None
