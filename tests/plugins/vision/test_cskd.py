"""Cumulative Spatial Knowledge Distillation: its functions, its student and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run
from kdzoo.settings import Settings
from kdzoo.testing.subject import Subject
from kdzoo_vision.deit import HEADS, DistilledViT
from kdzoo_vision.methods import cskd
from kdzoo_vision.models import build

TASK = "fashion-few-labels"


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(name: str = "deit-xxs", **changes: object) -> DistilledViT:
    model = build(name, **{"num_classes": 10, "in_channels": 1, "image_size": 28, **changes})  # type: ignore[arg-type]
    assert isinstance(model, DistilledViT)
    return model


def test_shares_at_four_epochs() -> None:
    """Would catch a share that reaches 0, one that starts below 1, or a cosine over the wrong interval."""
    found = {
        name: [round(cskd.local_share(name, e, 4), 6) for e in range(4)]
        for name in ("linear", "square", "cosine", "dense", "global")
    }
    assert found["linear"] == [1.0, 0.75, 0.5, 0.25]
    assert found["square"] == [1.0, 0.5625, 0.25, 0.0625]
    assert found["cosine"] == [round(math.cos(e * math.pi / 8), 6) for e in range(4)]
    assert found["dense"] == [1.0] * 4
    assert found["global"] == [0.0] * 4
    with pytest.raises(ValueError, match="expected 0 to 3"):
        cskd.local_share("linear", 4, 4)
    with pytest.raises(ValueError, match="linear, square, cosine"):
        cskd.local_share("cubic", 0, 4)


def test_fusion_ends_are_the_local_and_the_global_target() -> None:
    """Would catch a share on the wrong side; the mean over positions stays the global answer at every share."""
    dense = rand(2, 3, 2, 2)
    whole = dense.mean((2, 3))
    assert torch.equal(cskd.fused_logits(dense, whole, 1.0), dense)
    assert torch.equal(cskd.fused_logits(dense, whole, 0.0), whole[:, :, None, None].expand_as(dense))
    torch.testing.assert_close(cskd.fused_logits(dense, whole, 0.3).mean((2, 3)), whole)


def test_spatial_loss_pools_logits_before_the_softmax() -> None:
    """Would catch an average of probabilities, or targets read in another order than the patches."""
    student, dense = rand(2, 3, 4, 4), rand(2, 3, 2, 2, seed=1)
    whole = dense.mean((2, 3))

    def loss(student: Tensor, dense: Tensor, form: str) -> Tensor:
        return cskd.spatial_loss(
            student, dense, whole, share=0.5, form=form, temperature=1.0, reduction="none"
        )

    found = loss(student, dense, "hard")
    target = (0.5 * dense + 0.5 * whole[:, :, None, None]).argmax(1)
    for b in range(2):
        cells = [
            student[b, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2)) for y in (0, 1) for x in (0, 1)
        ]
        values = [
            -torch.log_softmax(cell, 0)[label] for cell, label in zip(cells, target[b].flatten(), strict=True)
        ]
        assert float(found[b]) == pytest.approx(float(torch.stack(values).mean()), rel=1e-5)
    assert bool((loss(student, dense, "soft") > 0).all())
    with pytest.raises(ValueError, match="'hard' or 'soft'"):
        loss(student, dense, "firm")
    with pytest.raises(ValueError, match="at most that many cells"):
        loss(dense, student, "hard")


def test_token_loss_forms() -> None:
    """Would catch a soft form that is not divided by the classes, or that loses T^2."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    hard = cskd.token_loss(student, teacher, form="hard", temperature=2.0, reduction="mean")
    assert hard.item() == pytest.approx(math.log(2.0))
    soft = cskd.token_loss(student, teacher, form="soft", temperature=2.0, reduction="mean")
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert soft.item() == pytest.approx(4 / 2 * (math.log(2.0) - entropy))
    with pytest.raises(ValueError, match="'hard' or 'soft'"):
        cskd.token_loss(student, teacher, form="", temperature=1.0, reduction="mean")


def test_no_gradient_reaches_the_teacher() -> None:
    """Would catch a teacher that is trained along."""
    student, dense = rand(2, 3, 4, 4).requires_grad_(), rand(2, 3, 2, 2, seed=1).requires_grad_()
    whole = dense.mean((2, 3))
    for form in ("hard", "soft"):
        loss = cskd.spatial_loss(
            student, dense, whole, share=0.5, form=form, temperature=1.0, reduction="sum"
        )
        loss = loss + cskd.token_loss(
            student.mean((2, 3)), whole, form=form, temperature=1.0, reduction="sum"
        )
        loss.backward()
    assert dense.grad is None
    assert student.grad is not None


def test_heads_of_the_student() -> None:
    """Would catch patches read by the class head, prefix tokens taken for patches, or patches out of order."""
    model = small().eval()
    model.inference = HEADS
    x = rand(2, 1, 28, 28)
    out = model(x)
    tokens = model.model.forward_features(x)
    assert tokens.shape[1] == 2 + 16
    torch.testing.assert_close(out.extra["cls"], model.model.head(tokens[:, 0]))
    torch.testing.assert_close(out.extra["dist"], model.model.head_dist(tokens[:, 1]))
    for place in (0, 5, 15):
        row, column = divmod(place, 4)
        expected = model.model.head_dist(tokens[:, 2 + place])
        torch.testing.assert_close(out.extra["dense"][:, :, row, column], expected)
    parts = [out.extra["cls"], out.extra["dist"], out.extra["dense"].mean((2, 3))]
    torch.testing.assert_close(out.logits, torch.stack(parts).mean(0))
    model.dense_head = "cls"
    torch.testing.assert_close(model(x).extra["dense"][:, :, 0, 1], model.model.head(tokens[:, 3]))


def test_only_named_heads_answer() -> None:
    """Would catch an untrained head in the answer of the student alone, and its cost in what ships."""
    model, x = small(), rand(2, 1, 28, 28)
    trained = model.train()(x)
    assert set(trained.extra) == set(HEADS)
    assert trained.logits is trained.extra["cls"]
    alone = model.eval()(x)
    assert set(alone.extra) == {"cls"}
    assert alone.logits is alone.extra["cls"]
    bare = small(num_classes=None).eval()(x)
    assert bare.logits is None
    assert not bare.extra


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("cskd", HEADS),
        ("cskd.without-spatial", ("cls", "dist")),
        ("cskd.without-token", ("cls", "dense")),
        ("cskd.features", ("cls", "dist")),
    ],
)
def test_an_arm_answers_with_the_heads_it_trains(arm: str, expected: tuple[str, ...]) -> None:
    """Would catch DeiT's arm being judged with patches that nothing trained."""
    settings = Settings(make_plan(Request("cskd", task=TASK, arms=arm)).settings[arm])
    assert cskd.trained_heads(settings) == expected


Open = Callable[..., Subject]


def test_the_total_is_put_together_as_the_paper_says(kdzoo_subject: Open) -> None:
    """Would catch alpha that does not take from the labels, or a term that counts the wrong rows."""
    subject = kdzoo_subject("cskd", TASK)

    @torch.no_grad()
    def look(run: Run) -> tuple[float, dict[str, float], int, int]:
        batch = next(iter(run.loader()))
        loss = float(StepModule(run)(batch))
        student, teacher = run.out("student"), run.signal("teacher")
        assert teacher.logits is not None
        labelled = batch.labels >= 0
        parts = {
            "task": float(F.cross_entropy(student.extra["cls"][labelled], batch.labels[labelled])),
            "token": float(F.cross_entropy(student.extra["dist"], teacher.logits.argmax(1))),
        }
        head = cskd.linear_classifier(run.models["teacher"])
        dense = head(teacher.features["stage3"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        parts["spatial"] = float(F.cross_entropy(student.extra["dense"], dense.argmax(1)))  # a = 1 at first
        return loss, parts, int(labelled.sum()), len(labelled)

    loss, parts, labelled, rows = subject.look(look)
    assert 0 < labelled < rows
    assert loss == pytest.approx(0.5 * parts["task"] + 0.5 * parts["token"] + parts["spatial"], rel=1e-5)


def test_a_student_without_distillation_token_is_refused(kdzoo_subject: Open) -> None:
    """Would catch a convolutional student that fails in the middle of a step with a missing key."""
    with pytest.raises(KdzooError, match="has no distillation token"):
        kdzoo_subject("cskd", TASK, ("student=cnn-xs",)).look(lambda run: None)


def test_a_teacher_with_a_finer_map_is_refused(kdzoo_subject: Open) -> None:
    """Would catch one patch with several targets; found before the first step."""
    with pytest.raises(KdzooError, match="at least as many patches"):
        kdzoo_subject("cskd", TASK).look(_against(build_teacher("resnet-8")))


def test_a_teacher_whose_head_is_no_linear_layer_is_refused(kdzoo_subject: Open) -> None:
    """Would catch dense logits that do not average to what the teacher says."""
    with pytest.raises(KdzooError, match="one linear layer"):
        kdzoo_subject("cskd", TASK).look(_against(small("deit-xxs")))
    odd = build_teacher("cnn-s")
    cskd.linear_classifier(odd).register_forward_hook(lambda module, args, value: 2 * value)
    with pytest.raises(KdzooError, match="mean of its logits over positions is not its answer"):
        kdzoo_subject("cskd", TASK).look(_against(odd))


def build_teacher(name: str) -> nn.Module:
    return build(name, num_classes=10, in_channels=1, image_size=28).eval()


def _against(teacher: nn.Module) -> Callable[..., None]:
    def look(run: Run) -> None:
        run.models["teacher"] = teacher
        cskd.refuse_misfit(run)

    return look


@pytest.mark.slow
def test_the_papers_pair_fits() -> None:
    """DeiT-Ti has 14 x 14 patches for RegNetY-16GF's 7 x 7, and the teacher's dense logits average to its answer."""
    student = build("deit-ti", num_classes=7, in_channels=3, image_size=224).eval()
    teacher = build("timm:regnety_160.deit_in1k", num_classes=7, in_channels=3, image_size=224).eval()
    x = rand(1, 3, 224, 224)
    with torch.no_grad():
        said = teacher(x)
        assert cskd.last_map(student(x)).shape[2:] == (14, 14)
        head = cskd.linear_classifier(teacher)
        dense = cskd.dense_logits(cskd.last_map(said), head.weight, head.bias)
    assert dense.shape == (1, 7, 7, 7)
    torch.testing.assert_close(dense.mean((2, 3)), said.logits, rtol=1e-3, atol=1e-4)
