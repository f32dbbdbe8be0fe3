"""Label-assisted distillation: codes and noise, the net that takes labels, the losses, and who trains on what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.losses.divergences import kl_divergence
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run
from kdzoo.testing.subject import Subject, backward, few_evaluated, terms_of
from kdzoo_segmentation.label_input import (
    code_table,
    label_channel,
    random_codes,
    with_label_input,
)
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.methods import lad
from kdzoo_segmentation.models import build

TASK = "brain-slices"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def test_fixed_codes_are_the_official_ones_of_voc_and_spread_alike_for_others() -> None:
    """Would catch a table of K codes, without one for ignored pixels, or the wrong denominator."""
    torch.testing.assert_close(code_table(21), (torch.arange(22) - 11) / 10)
    torch.testing.assert_close(code_table(4), torch.tensor([-1.25, -0.75, -0.25, 0.25, 0.75]))
    assert code_table(1).tolist() == [-2.0, 0.0]


def test_label_channel_by_hand() -> None:
    """Would catch an ignored pixel that takes a class's code, a scale without the noise, or a missing dimension."""
    labels = torch.tensor([[[0, 1], [IGNORE, 1]]])
    codes = torch.tensor([-1.0, 0.5, 7.0])
    plain = label_channel(labels, codes, noise=0.0, scale=10.0, generator=seeded())
    assert plain.tolist() == [[[[-10.0, 5.0], [70.0, 5.0]]]]
    noisy = label_channel(labels, codes, noise=0.5, scale=10.0, generator=seeded(3))
    torch.testing.assert_close(noisy, plain + 5.0 * rand(1, 2, 2, seed=3).unsqueeze(1))


def test_random_codes_belong_to_an_image_and_a_symbol() -> None:
    """Would catch codes that are shared by the images of a batch: the class would be known from its neighbours."""
    codes = random_codes(3, 4, seeded())
    assert len(codes.flatten().unique()) == 15
    labels = torch.tensor([[0, 3, 3, IGNORE]]).view(1, 2, 2).repeat(3, 1, 1)
    found = label_channel(labels, codes, noise=0.0, scale=1.0, generator=seeded()).flatten(1)
    for image in range(3):
        assert found[image].tolist() == [codes[image, k].item() for k in (0, 3, 3, 4)]


def test_noised_labels_are_distributed_as_in_the_official_code() -> None:
    """100 (N(0, 1) an image and symbol + 0.03 N(0, 1) a pixel): would catch a variance where a deviation belongs."""
    labels = (torch.arange(40 * 40) % 2).view(1, 40, 40).repeat(400, 1, 1)
    codes = random_codes(400, 2, seeded(1))
    channel = label_channel(labels, codes, noise=0.03, scale=100.0, generator=seeded(2))
    of_class = channel.flatten(1)[:, ::2]
    assert of_class.std(1).mean().item() == pytest.approx(3.0, rel=0.02)
    assert of_class.mean(1).std().item() == pytest.approx(100.0, rel=0.1)
    assert abs(of_class.mean(1).mean().item()) < 15


def test_labels_without_a_code_are_refused() -> None:
    """A class number that is read from another image's codes trains on noise, in silence."""
    with pytest.raises(ValueError, match="got 0 to 2, expected 0 to 1 or 255"):
        label_channel(torch.tensor([[[0, 2]]]), code_table(2), noise=0.0, scale=1.0, generator=seeded())
    with pytest.raises(ValueError, match="rows for 1 images, expected 2"):
        label_channel(
            torch.zeros(2, 1, 1).long(),
            random_codes(1, 2, seeded()),
            noise=0.0,
            scale=1.0,
            generator=seeded(),
        )


@pytest.mark.parametrize("name", ["fcn-r18-xs", "segformer-xs"])
def test_an_empty_label_channel_changes_nothing(name: str) -> None:
    """The widened net starts as the plain one; a label channel that is not last would read labels as pixels."""
    torch.manual_seed(0)
    plain = build(name, classes=3, channels=2).eval()
    torch.manual_seed(0)
    model = with_label_input(build(name, classes=3, channels=2), 2, init=1e-4).eval()
    image = rand(2, 2, 32, 32)
    with torch.no_grad():
        want, empty = plain(image), model(image)
        zeros = model(torch.cat((image, torch.zeros(2, 1, 32, 32)), 1))
        told = model(torch.cat((image, 1e5 * rand(2, 1, 32, 32, seed=1)), 1))
    torch.testing.assert_close(empty.logits, want.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(zeros.logits, empty.logits, rtol=0, atol=0)
    assert set(empty.features) == set(want.features)
    assert not torch.allclose(told.logits, empty.logits, atol=1e-3)
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    assert first.weight[:, 2].std().item() == pytest.approx(1e-4, rel=0.3)
    with pytest.raises(
        KdzooError, match="an image of 4 channels for a net with a label channel, expected 2, or 3"
    ):
        model(rand(1, 4, 32, 32))


def slow_cwd(student: Tensor, teacher: Tensor, t: float) -> float:
    """tau^2 / (B C) times the sum of KL over positions, from the formula, in plain numbers."""
    total = 0.0
    images, classes = student.shape[:2]
    for b in range(images):
        for c in range(classes):
            s, p = (side[b, c].flatten().double().tolist() for side in (student, teacher))
            whole_s, whole_p = (math.log(sum(math.exp(v / t) for v in side)) for side in (s, p))
            log_s, log_p = [v / t - whole_s for v in s], [v / t - whole_p for v in p]
            total += sum(math.exp(b_) * (b_ - a) for a, b_ in zip(log_s, log_p, strict=True))
    return t * t * total / (images * classes)


def test_losses_are_the_formula() -> None:
    """Would catch a softmax over classes, a sum over images, T in place of T^2, or one direction taken twice."""
    a, b = 3 * rand(2, 3, 2, 4), 3 * rand(2, 3, 2, 4, seed=1)
    found = lad.cwd_loss(a, b, temperature=4.0, reduction="mean").item()
    assert found == pytest.approx(slow_cwd(a, b, 4.0), rel=1e-4)
    both = lad.dual_path_loss(a, b, temperature=4.0, reduction="none")
    assert both.shape == (2,)
    assert both.mean().item() == pytest.approx(slow_cwd(a, b, 4.0) + slow_cwd(b, a, 4.0), rel=1e-4)
    assert lad.cwd_loss(a, b, temperature=4.0, reduction="sum").item() == pytest.approx(2 * found, rel=1e-5)


def test_losses_vanish_at_equality_and_on_one_position() -> None:
    """A softmax over one position is 1 whatever the scores; a constant added to a class moves nothing."""
    a = rand(2, 3, 4, 4)
    moved = a + rand(1, 3, 1, 1, seed=2)
    assert lad.cwd_loss(a, moved, temperature=4.0, reduction="none").abs().max() < 1e-5
    one = lad.dual_path_loss(rand(1, 3, 1, 1), rand(1, 3, 1, 1, seed=1), temperature=4.0, reduction="mean")
    assert one.item() == 0.0


def test_only_the_first_side_of_each_part_gets_a_gradient() -> None:
    """A teacher that moves towards its student; a consistency that pulls each path by both parts."""
    a, b = rand(1, 2, 3, 3).requires_grad_(), rand(1, 2, 3, 3, seed=1).requires_grad_()
    lad.cwd_loss(a, b, temperature=4.0, reduction="mean").backward()
    assert b.grad is None
    assert a.grad is not None
    alone = a.grad.clone()
    a.grad = None
    lad.dual_path_loss(a, b, temperature=4.0, reduction="mean").backward()
    torch.testing.assert_close(a.grad, alone)
    assert b.grad is not None


def test_losses_in_bfloat16() -> None:
    """A softmax over many positions summed in eight bits of mantissa is far from one."""
    a, b = 3 * rand(2, 3, 24, 24), 3 * rand(2, 3, 24, 24, seed=1)
    want = lad.cwd_loss(a, b, temperature=4.0, reduction="mean")
    got = lad.cwd_loss(a.bfloat16(), b.bfloat16(), temperature=4.0, reduction="mean")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.03, atol=0.0)


@pytest.fixture
def subject_of(kdzoo_subject: Callable[..., Subject]) -> Iterator[Callable[[str], Subject]]:
    """The method on few images, with a student by its name."""
    with few_evaluated(8):
        yield lambda student: kdzoo_subject("lad", TASK, ("batch=2", "labelled=8", f"student={student}"), 4)


@pytest.fixture
def subject(subject_of: Callable[[str], Subject]) -> Subject:
    return subject_of("fcn-r18-xxs")


def opened(subject: Subject, stage: str, arm: str = "lad") -> Run:
    """A stage of the arm as the bench opens it, models built, at its first step."""
    from kdzoo import roles
    from kdzoo.execute import open_run

    spec = next(one for one in subject.plan(arm).runs[(arm, 0)] if one.stage.name == stage)
    run = open_run(spec, subject.store, subject.folder())
    roles.build(run)
    return run


def test_the_teacher_trains_on_two_noisings_of_the_same_images(subject: Subject) -> None:
    """Would catch one noising given twice, a cross-entropy of one path, or one that is halved by the longer batch."""
    run = opened(subject, lad.LABEL)
    batch = next(iter(run.loader()))
    image = batch.views["image"]
    assert image.shape == (4, 2, 104, 104)
    assert torch.equal(image[:2, :1], image[2:, :1])
    assert not torch.equal(image[:2, 1:], image[2:, 1:])
    assert torch.equal(batch.labels[:2], batch.labels[2:])
    assert (batch.counts["item"], batch.norm["item"]) == (2, 2)
    for k in (0, 1):  # within a class, path and image only the noise of 0.03 * 1.7 is left
        inside = image[k, 1][batch.labels[k] == 0]
        assert inside.std().item() == pytest.approx(0.051, rel=0.1)
    backward(run, 0)
    terms = terms_of(run)
    assert set(terms) == {"task", "consistency"}
    scores, labels = run.out("student").logits, batch.labels
    assert scores is not None
    assert terms["task"] == pytest.approx(2 * nn.functional.cross_entropy(scores, labels).item(), rel=0.02)
    first, second = run.out("student").features["score"].chunk(2)
    weight = run.cfg.consistency_weight
    assert weight != 1.0
    wanted = weight * (slow_cwd(first, second, 4.0) + slow_cwd(second, first, 4.0))
    assert terms["consistency"] == pytest.approx(wanted, rel=1e-3)


def test_one_path_and_no_consistency(subject: Subject) -> None:
    """An ablation that still sees the images twice, or a weight of 0 that comes back."""
    for setting, names, rows in (
        ({"paths": 1, "consistency_weight": 0.0}, {"task"}, 2),
        ({"consistency_weight": 0.0}, {"task"}, 4),
    ):
        values = tuple(f"{name}={value}" for name, value in setting.items())
        request = Request("lad", task=TASK, set=(*subject.settings, *values), smoke=True)
        spec = next(one for one in make_plan(request).runs[("lad", 0)] if one.stage.name == lad.LABEL)
        from kdzoo import roles
        from kdzoo.execute import open_run

        run = open_run(spec, subject.store, subject.folder())
        roles.build(run)
        backward(run, 0)
        assert set(terms_of(run)) == names
        assert run.batch is not None
        assert len(run.batch.views["image"]) == rows


def test_arms_share_the_teacher_where_only_the_student_differs(subject: Subject) -> None:
    """Each arm would train its own teacher, or, worse, ablations of the teacher would share one."""
    plan = subject.plan("all")
    keys = {
        arm: next(one.key for one in specs if one.stage.name in (lad.LABEL, lad.PLAIN))
        for (arm, seed), specs in plan.runs.items()
        if arm.startswith("lad") and seed == 0
    }
    same = {arm for arm, key in keys.items() if key == keys["lad"]}
    assert same == {"lad", "lad.random-codes", "lad.zero-channel-student"}
    assert (
        len({keys[f"lad.{name}"] for name in ("without-noising", "without-dual-path", "plain-teacher")}) == 3
    )


def test_own_teachers_make_one_for_every_seed() -> None:
    """An interval that claims to cover teachers, over copies of one."""
    for value, count in (("false", 1), ("true", 2)):
        request = Request("lad", task=TASK, arms="lad", seeds=2, set=(f"own_teachers={value}",), smoke=True)
        runs = make_plan(request).runs
        keys = {one.key for seed in (0, 1) for one in runs[("lad", seed)] if one.stage.name == lad.LABEL}
        assert len(keys) == count


def test_impossible_settings_are_refused_before_training() -> None:
    """One path has no other to agree with; DIST over half a batch is another loss."""
    for settings, said in (
        (("paths=1",), "with one noising there is nothing to agree with"),
        (("loss=dist", "accumulate=2"), "in micro-batches it is another loss"),
    ):
        with pytest.raises(KdzooError, match=said):
            make_plan(Request("lad", task=TASK, set=settings, smoke=True))


def looked(subject: Subject, arm: str, *settings: str) -> tuple[dict[str, float], Run]:
    """The loss terms of the student's first step, and the run it was in."""

    def look(run: Run) -> tuple[dict[str, float], Run]:
        backward(run, 0)
        return terms_of(run), run

    return subject.look(look, arm, set=settings)


def test_what_the_teacher_sees_while_it_teaches(subject: Subject) -> None:
    """Would catch a student that sees the labels, or a teacher whose codes are drawn anew though they are fixed."""
    _, run = looked(subject, "lad")
    assert run.batch is not None
    image, told = run.batch.views["image"], run.batch.views["assisted"]
    assert image.shape[1] == 1
    assert torch.equal(told[:, :1], image)
    wanted = 1.7 * code_table(8)[run.batch.labels]
    assert (told[:, 1] - wanted).std().item() == pytest.approx(1.7 * 0.02, rel=0.05)
    _, run = looked(subject, "lad.random-codes")
    assert run.batch is not None
    told, labels = run.batch.views["assisted"][:, 1], run.batch.labels
    assert abs((told[0][labels[0] == 0].mean() - told[1][labels[1] == 0].mean()).item()) > 0.2


def test_each_loss_is_the_one_it_is_called(subject: Subject) -> None:
    """A setting that names a loss and does not use it."""

    def look(run: Run) -> tuple[float, float]:
        backward(run, 0)
        s, t = (
            run.out("student").features["score"].detach(),
            run.signal(lad.LABEL, "assisted").features["score"],
        )
        if run.cfg.loss == "cwd":
            wanted = slow_cwd(s, t, 4.0)
        elif run.cfg.loss == "pixel-kl":
            wanted = 16 * kl_divergence(s, t, temperature=4.0, axis=1, reduction="mean").item()
        else:
            q, p = (side.softmax(1).movedim(1, -1).flatten(0, 2).double() for side in (s, t))
            inter = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(q, p, strict=True)])
            intra = torch.stack(
                [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(q.T, p.T, strict=True)]
            )
            wanted = (2 - inter.mean() - intra.mean()).item()
        return terms_of(run)["lad"], run.cfg.lad_weight * wanted

    for loss in ("cwd", "pixel-kl", "dist"):
        found, wanted = subject.look(look, set=(f"loss={loss}",))
        assert found == pytest.approx(wanted, rel=2e-3, abs=1e-5)


def test_auxiliary_heads_of_the_student_have_a_weight_of_their_own(
    subject_of: Callable[[str], Subject],
) -> None:
    """0.4 of the task and 0.02 of the method together, or the task's alone."""
    subject = subject_of("fcn-r18-xs-aux")
    terms, run = looked(subject, "lad")
    assert run.batch is not None
    plain, _ = looked(subject, "lad", "auxiliary_weight=0")
    assert "auxiliary" not in plain
    assert terms["task"] == pytest.approx(plain["task"], rel=1e-5)
    double, _ = looked(subject, "lad", "auxiliary_weight=0.04")
    assert double["auxiliary"] == pytest.approx(2 * terms["auxiliary"], rel=1e-5)
    assert 0.5 * math.log(8) < terms["auxiliary"] / 0.02 < 3 * math.log(8)  # a cross-entropy of eight classes


def test_a_student_with_an_empty_label_channel_learns_the_same(subject: Subject) -> None:
    """Would catch labels that reach the student, or first weights that are not those of the other arms."""
    plain, _ = looked(subject, "lad")
    empty, run = looked(subject, "lad.zero-channel-student")
    assert empty.keys() == plain.keys()
    assert all(empty[name] == pytest.approx(plain[name], rel=1e-4) for name in plain)
    first = next(part for part in run.models["student"].modules() if isinstance(part, nn.Conv2d))
    assert first.weight.grad is not None
    assert first.weight.grad[:, 1].abs().max() == 0
    assert first.weight.grad[:, 0].abs().max() > 0


class Reader(nn.Module):
    """Answers with the class whose fixed code is nearest to the label channel; class 0 without one."""

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] == 1:
            image = torch.cat((image, torch.full_like(image, 1.7 * code_table(8)[0].item())), 1)
        return -(image[:, 1:] - 1.7 * code_table(8)[:-1].view(1, -1, 1, 1)).abs()


def test_teachers_are_measured_with_what_they_see(subject: Subject) -> None:
    """A teacher measured without its labels, one noising compared with itself, or labels given to the plain one."""
    run = subject.open()
    run.stage, run.models = "evaluate", {lad.LABEL: Reader()}
    found = {name: metric.value for name, metric in lad.evaluate(run, "val").items()}
    assert found["miou[model=own-teacher]"] == 1.0
    noised, agreed = found["miou[model=own-teacher-noised]"], found["agreement[of=noisings]"]
    assert noised is not None
    assert agreed is not None
    assert noised < 0.3
    assert 0.05 < agreed < 0.6
    run.models = {lad.PLAIN: Reader()}
    plain = {name: metric.value for name, metric in lad.evaluate(run, "val").items()}
    assert set(plain) == {"miou[model=own-teacher]"}
    assert plain["miou[model=own-teacher]"] is not None
    assert plain["miou[model=own-teacher]"] < 0.15
    run.stage = "fit"
    assert lad.evaluate(run, "val") == {}
