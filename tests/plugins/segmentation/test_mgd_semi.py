"""Multi-Granularity Distillation: its losses, whose labels an arm learns from, and the batch that it makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.method import Batch
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.runs import Run
from kdzoo.settings import Settings
from kdzoo.testing.subject import Subject
from kdzoo_segmentation import models
from kdzoo_segmentation.cutmix import pasted
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.methods import mgd_semi

TASK = "brain-few-labels"
NETS = ("wide=fcn-r18-xs", "deep=fcn-r18-xxs")
SMALL = ("batch=2", "pool_batch=3", *NETS)
Open = Callable[..., Subject]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- losses -------------------------------------------------------------------------------------------------


def test_pseudo_labels_by_a_slow_reference() -> None:
    """A mean over the batch's pixels in place of each image's, or teachers averaged in place of summed."""
    logits = rand(2, 3, 2, 2)
    labels = [torch.randint(3, (2, 2, 2), generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    found = mgd_semi.pseudo_label_loss(logits, labels, reduction="none")
    for b in range(2):
        total = 0.0
        for one in labels:
            pixels = [
                -float(torch.log_softmax(logits[b, :, y, x], 0)[one[b, y, x]]) for y in (0, 1) for x in (0, 1)
            ]
            total += sum(pixels) / 4
        assert float(found[b]) == pytest.approx(total, rel=1e-5)
    both = mgd_semi.pseudo_label_loss(logits, labels, reduction="sum")
    assert float(both) == pytest.approx(float(found.sum()), rel=1e-6)
    one = mgd_semi.pseudo_label_loss(torch.zeros(1, 4, 1, 1), [torch.zeros(1, 1, 1).long()], reduction="mean")
    assert float(one) == pytest.approx(1.386294, rel=1e-5)  # log 4: one pixel, no opinion


def test_the_image_s_semantics_by_hand() -> None:
    """Absolute values before the mean over positions, or a mean over classes that the official sum is not."""
    student = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])  # means 2 and 0
    teacher = torch.tensor([[[[5.0, 0.0]], [[1.0, -4.0]]]])  # means 2.5 and -1.5
    found = mgd_semi.image_semantic_loss(student, teacher, reduction="none")
    assert found.tolist() == [2.0]
    shuffled = teacher.flip(3)
    assert mgd_semi.image_semantic_loss(student, shuffled, reduction="none").tolist() == [2.0]
    larger = F.interpolate(teacher, (4, 8), mode="nearest")
    assert mgd_semi.image_semantic_loss(student, larger, reduction="sum").item() == 2.0
    with pytest.raises(ValueError, match="same images and classes"):
        mgd_semi.image_semantic_loss(student, teacher[:, :1], reduction="sum")


def test_regions_by_a_slow_reference() -> None:
    """Similarities of channels in place of regions, or a sum over pairs in place of the mean."""
    student, teacher = rand(2, 3, 4, 4), rand(2, 5, 6, 6, seed=1)
    found = mgd_semi.region_content_loss(student, teacher, grid=2, reduction="none")
    for b in range(2):
        tables = []
        for side, cell in ((student, 2), (teacher, 3)):
            parts = [
                side[b, :, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell].mean((1, 2))
                for y in (0, 1)
                for x in (0, 1)
            ]
            tables.append([[float(F.cosine_similarity(p, q, dim=0)) for q in parts] for p in parts])
        apart = [(tables[0][i][j] - tables[1][i][j]) ** 2 for i in range(4) for j in range(4)]
        assert float(found[b]) == pytest.approx(sum(apart) / 16, rel=1e-4)


def test_losses_that_are_zero_at_equality() -> None:
    """A student that is its teacher, or a rotated and scaled form of it, must not be pushed away."""
    logits = rand(2, 3, 4, 4).requires_grad_()
    loss = mgd_semi.image_semantic_loss(logits, logits, reduction="sum")
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0.0
    features = rand(2, 3, 8, 8)
    turned = 7.0 * torch.einsum("dc,bchw->bdhw", torch.linalg.qr(rand(3, 3, seed=2))[0], features)
    assert mgd_semi.region_content_loss(turned, features, grid=7, reduction="sum").item() < 1e-9
    one = mgd_semi.region_content_loss(rand(1, 3, 4, 4), rand(1, 3, 4, 4, seed=1), grid=1, reduction="sum")
    assert one.item() == pytest.approx(0.0, abs=1e-9)  # a single region is like itself


def test_no_gradient_reaches_a_teacher() -> None:
    """A teacher that is trained along, though core froze it."""
    student, teacher = rand(2, 3, 8, 8).requires_grad_(), rand(2, 3, 8, 8, seed=1).requires_grad_()
    loss = mgd_semi.image_semantic_loss(student, teacher, reduction="sum")
    loss = loss + mgd_semi.region_content_loss(student, teacher, grid=7, reduction="sum")
    loss.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0
    both = mgd_semi.image_semantic_loss(student, teacher, reduction="sum", teacher_grad=True)
    both.backward()
    assert teacher.grad is not None


def test_half_precision_is_widened() -> None:
    """A mean over ten thousand pixels, or a cosine, taken in eight bits."""
    student, teacher = rand(2, 3, 96, 96), rand(2, 3, 96, 96, seed=1)
    labels = [teacher.argmax(1)]
    for loss in (
        lambda a, b: mgd_semi.image_semantic_loss(a, b, reduction="sum"),
        lambda a, b: mgd_semi.region_content_loss(a, b, grid=7, reduction="sum"),
        lambda a, b: mgd_semi.pseudo_label_loss(a, labels, reduction="sum"),
    ):
        half = loss(student.bfloat16(), teacher.bfloat16())
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(loss(student, teacher).item(), rel=0.05, abs=1e-3)


# --- whose labels -------------------------------------------------------------------------------------------


def planned(arms: str, *settings: str) -> Plan:
    return make_plan(Request("mgd-semi", task=TASK, arms=arms, seeds=1, set=settings))


def stages(plan: Plan, arm: str) -> dict[str, str]:
    """Stage -> key."""
    return {spec.stage.name: spec.key for spec in plan.runs[(arm, 0)]}


def test_all_arms_have_the_same_teachers() -> None:
    """An arm that trains teachers of its own compares teachers, and costs as much as all others together."""
    plan = planned("all")
    whole = stages(plan, "mgd-semi")
    for arm in plan.arms:
        if arm in ("teacher", "student", "pixel-kd") or arm.endswith(("[8]", "[32]")):
            continue
        own = stages(plan, arm)
        assert {own[name] for name in mgd_semi.PAIR if name in own} <= {whole["wide"], whole["deep"]}, arm
    assert stages(plan, "mgd-semi.share[16]") == whole
    assert stages(plan, "mgd-semi.share[8]")["wide"] != whole["wide"]


@pytest.mark.parametrize(
    ("arm", "pair"),
    [
        ("mgd-semi", {"wide", "deep"}),
        ("mgd-semi.swapped", {"wide", "deep"}),
        ("mgd-semi.without-pixel", {"wide", "deep"}),
        ("mgd-semi.one-teacher[deep]", {"deep"}),
        ("mgd-semi.one-teacher[wide]", {"wide"}),
        ("mgd-semi.self-training", set()),
        ("mgd-semi.share-alone[8]", set()),
    ],
)
def test_an_arm_trains_the_teachers_that_it_asks(arm: str, pair: set[str]) -> None:
    """Minutes spent on a teacher that nobody asks, or a teacher that is missing in the fit."""
    assert set(stages(planned(arm), arm)) & set(mgd_semi.PAIR) == pair


def test_arms_that_would_not_be_what_they_are_called() -> None:
    """A student whose own scores are its target has a loss of 0, in silence."""
    for settings, said in [
        (("teachers=self",), "by nothing"),
        (
            ("teachers=self", "image_weight=0", "region_weight=0", "distill_on=labelled"),
            "nothing left to learn",
        ),
        (("box_low=0.6",), "no area lies between"),
    ]:
        with pytest.raises(KdzooError, match=said):
            planned("mgd-semi", *settings)


def test_a_net_asked_in_training_mode_stays_as_it_was() -> None:
    """Running statistics that drift make another teacher in each arm; a mode that stays on adds dropout to tests."""
    torch.manual_seed(0)
    net = models.build("fcn-r18-xxs", classes=3, channels=1).eval()
    net.net.decode_head.dropout = None
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = rand(4, 1, 32, 32)
    by_batch = mgd_semi.answer(net, image, training=True)
    assert not any(part.training for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(mgd_semi.answer(net, image, training=False).logits, net(image).logits)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = net.train()(image).logits
    torch.testing.assert_close(by_batch.logits, expected)


# --- the batch ----------------------------------------------------------------------------------------------


def test_a_batch_without_a_pool_is_refused() -> None:
    """Labelled images taken for unlabelled ones lose their labels, in silence."""
    labels = torch.full((6, 2, 2), IGNORE)
    labels[:4] = 1
    batch = Batch([str(k) for k in range(6)], {}, labels)
    assert mgd_semi.labelled_rows(batch, Settings({"batch": 8, "pool_batch": 4})) == 4
    for settings, said in [({"batch": 4, "pool_batch": 8}, "have labels"), ({"batch": 6}, "does not stream")]:
        with pytest.raises(KdzooError, match=said):
            mgd_semi.labelled_rows(batch, Settings(settings))


def test_one_image_is_not_mixed_with_itself(kdzoo_subject: Open) -> None:
    """CutMix that does nothing."""
    with pytest.raises(KdzooError, match="pasted into itself"):
        kdzoo_subject("mgd-semi", TASK, ("pool_batch=1", *NETS)).look(lambda run: next(iter(run.loader())))


def test_terms_are_put_together_as_the_method_says(kdzoo_subject: Open) -> None:
    """Labels mixed by another mask than the images, a term on the wrong rows, or teachers that changed places."""
    subject = kdzoo_subject("mgd-semi", TASK, SMALL)

    @torch.no_grad()
    def look(run: Run) -> tuple[dict[str, float], dict[str, float]]:
        batch = next(iter(run.loader()))
        StepModule(run)(batch)
        found = {
            name: sum(float(total) * scale for total, scale in parts) for name, parts in run.terms.items()
        }
        cfg, student = run.cfg, run.out("student")
        assert student.logits is not None
        clean, masks = batch.views["pool"], batch.views["boxes"]
        assert torch.equal(batch.views["image"][2:], pasted(clean, clean.roll(1, 0), masks))
        expected = {"pixel-pool": 0.0, "pixel-labelled": 0.0}
        for role in ("wide", "deep"):
            net = run.models[role]
            logits = net(clean).logits
            mixed = torch.where(masks, logits.roll(1, 0), logits)
            expected["pixel-pool"] += float(F.cross_entropy(student.logits[2:], mixed.argmax(1)))
            own = net(batch.views["image"][:2]).logits.argmax(1)
            expected["pixel-labelled"] += float(F.cross_entropy(student.logits[:2], own))
        seen = batch.views["image"][2:]
        deep, wide = run.models["deep"](seen), run.models["wide"](seen)
        means = student.logits[2:].mean((2, 3)) - deep.logits.mean((2, 3))
        expected["image"] = float(cfg.image_weight) * float(means.abs().mean())
        apart = mgd_semi.region_content_loss(
            student.features["head"][2:], wide.features["head"], grid=7, reduction="mean"
        )
        expected["region"] = float(cfg.region_weight) * float(apart)
        expected["task"] = float(F.cross_entropy(student.logits, batch.labels, ignore_index=IGNORE))
        return found, expected

    found, expected = subject.look(look)
    assert found == pytest.approx(expected, rel=1e-4)


def test_terms_of_the_arms(kdzoo_subject: Open) -> None:
    """An arm that looks at images it is said to leave out."""

    def terms(arm: str, *settings: str, step: int = 0) -> tuple[set[str], bool]:
        @torch.no_grad()
        def look(run: Run) -> tuple[set[str], bool]:
            run.step = step
            batch = next(iter(run.loader()))
            StepModule(run)(batch)
            n = mgd_semi.labelled_rows(batch, run.cfg)
            return set(run.terms), torch.equal(batch.views["image"][n:], batch.views["pool"])

        return kdzoo_subject("mgd-semi", TASK, (*SMALL, *settings)).look(look, arm)

    assert terms("mgd-semi.labelled-only") == ({"task", "pixel-labelled", "image", "region"}, True)
    assert terms("mgd-semi", "distill_on=pool") == ({"task", "pixel-pool", "image", "region"}, False)
    assert terms("mgd-semi.self-training", "self_from=0.5") == ({"task"}, False)
    late = terms("mgd-semi.self-training", "self_from=0.5", "steps=10", step=5)
    assert late == ({"task", "pixel-pool"}, False)
    assert terms("mgd-semi.share-alone[16]") == ({"task"}, True)


def test_hard_pixels_take_the_place_of_the_task_s_loss(kdzoo_subject: Open) -> None:
    """Both losses at once, or hard pixels looked for among unlabelled ones."""
    settings = (*SMALL, "supervised=ohem", "ohem_threshold=0.05", "ohem_pixels=100")

    @torch.no_grad()
    def look(run: Run) -> tuple[float, float]:
        batch = next(iter(run.loader()))
        StepModule(run)(batch)
        logits = run.out("student").logits
        assert logits is not None
        values = F.cross_entropy(logits, batch.labels, ignore_index=IGNORE, reduction="none")
        hardest = values[batch.labels != IGNORE].sort(descending=True).values[:200]
        assert len(run.terms["task"]) == 1
        return float(run.terms["task"][0][0]), float(hardest.mean())

    found, expected = kdzoo_subject("mgd-semi", TASK, settings).look(look, "mgd-semi.share-alone[16]")
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_student_labels_in_evaluation_mode_and_goes_on_in_training_mode(kdzoo_subject: Open) -> None:
    """Labels of dropped-out scores; or a student that trains with frozen batch statistics after the first step."""

    @torch.no_grad()
    def look(run: Run) -> None:
        batch = next(iter(run.loader()))
        run.enter(batch)
        net = run.models["student"]
        said = run.signal("student", "pool").logits
        assert all(part.training for part in net.modules())
        torch.testing.assert_close(said, net.eval()(batch.views["pool"]).logits)

    kdzoo_subject("mgd-semi", TASK, SMALL).look(look, "mgd-semi.self-training")
