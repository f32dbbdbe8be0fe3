"""L2D on its task: weights, labels of unlabelled images, metrics; and the recipe of its paper profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.label_metrics import average_precision
from kdzoo.losses.label_wise import class_wise_distance, instance_wise_distance, structure_gap
from kdzoo.losses.multilabel import binary_cross_entropy, binary_kl
from kdzoo.method import Batch, Output
from kdzoo.runs import Run
from kdzoo_vision import multilabel, one_cycle
from kdzoo_vision.data import randaugment
from kdzoo_vision.data.transforms import Recipe
from kdzoo_vision.methods import l2d

Open = Callable[..., Run]
TASK = "emoji-keywords"
SMALL = ("batch=12", "pool_batch=8")


def test_the_total_is_the_papers_divided_by_the_batch(open_arm: Open) -> None:
    """Would catch a converted weight that is off by the batch size: the balance of the terms is the method."""
    weights = ("mld_weight=0.5", "cd_weight=100", "id_weight=1000")
    run = open_arm("l2d", TASK, set=("batch=20", "pool_batch=1", *weights))
    loss, batch = step(run)
    # By hand, on the labelled rows and the unlabelled one alike.
    student, teacher = run.out("student"), run.signal("teacher")
    assert student.logits is not None
    assert teacher.logits is not None
    targets = l2d.positives(batch, teacher.logits, 0.5)
    pair = student.extra["labels"], teacher.extra["labels"]
    bce = binary_cross_entropy(student.logits[:20], batch.labels[:20], reduction="sum") / 20
    mld = binary_kl(student.logits, teacher.logits, reduction="sum")
    cd = class_wise_distance(*pair, targets, reduction="sum")
    instance = instance_wise_distance(*pair, targets, reduction="sum")
    assert cd > 0
    assert instance > 0
    expected = bce + (0.5 * mld + 100 * cd + 1000 * instance) / 21
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def step(run: Run) -> tuple[float, Batch]:
    batch = next(iter(run.loader()))
    return float(StepModule(run)(batch).detach()), batch


def test_positives_of_unlabelled_images_are_the_teachers() -> None:
    """Would catch -1 read as a label, and the teacher overruling true labels."""
    labels = torch.tensor([[1.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    logits = torch.tensor([[-5.0, 5.0, 5.0], [-0.1, 0.1, 2.0]])
    batch = Batch(ids=["a", "b"], views={}, labels=labels, counts={"item": 2, "label": 1})
    assert l2d.positives(batch, logits, 0.5).tolist() == [[True, False, False], [False, True, True]]
    assert l2d.positives(batch, logits, 0.85).tolist() == [[True, False, False], [False, False, True]]
    known = replace(batch, labels=labels.clamp(min=0), counts={"item": 2, "label": 2})
    assert l2d.positives(known, logits, 0.5).tolist() == [[True, False, False], [False, False, False]]


def test_hidden_labels_do_not_matter(open_arm: Open) -> None:
    """Would catch the pool's true labels in the student's loss, which knows only -1."""
    run = open_arm("l2d", TASK, arm="student", set=SMALL)
    loss, batch = step(run)
    logits = run.out("student").logits
    assert logits is not None
    assert (batch.labels[12:] == -1).all()
    expected = binary_cross_entropy(logits[:12], batch.labels[:12], reduction="mean")
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_model_without_label_wise_embeddings_is_refused() -> None:
    """Would catch a KeyError for a head whose labels share queries."""
    with pytest.raises(KdzooError, match=r"one query a label.*cd_weight"):
        l2d.label_wise(Output(logits=torch.zeros(2, 3)))


def test_metrics_of_a_split(open_arm: Open) -> None:
    """Would catch rare and common labels swapped, and subsets whose labels overlap or are forgotten."""
    run = open_arm("l2d", TASK, set=SMALL)
    with run.validating():
        found = multilabel.evaluate(run, "val")
        said = run.predict("student", "val")
    assert said.logits is not None
    precision = average_precision(said.logits, said.labels)
    rare = catalog.load().module(TASK).rare_labels(run)
    assert found["map"].value == pytest.approx(float(precision.mean()))
    assert found["map[rare]"].value == pytest.approx(float(precision[rare].mean()))
    assert found["map[common]"].value == pytest.approx(float(precision[~rare].mean()))
    assert found["map[rare]"].n + found["map[common]"].n == int(said.labels.sum())
    assert found["map[rare]"].n >= 50
    assert "of1" not in found, "validation is paid for at every curve point"


def test_structure_gap_of_a_split(open_arm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch chunks that are joined wrongly, and a teacher that is not its own reference."""
    run = open_arm("l2d", TASK, set=SMALL)
    with run.validating():
        whole = multilabel.structure_gaps(run, "student", "val")
        monkeypatch.setattr(multilabel, "CHUNK", 64)
        parts = multilabel.structure_gaps(run, "student", "val")
        itself = multilabel.structure_gaps(run, "teacher", "val")
        data = run.data("val")
        batch = data.collate(data.items, torch.arange(len(data)), None)
        vectors = [run.models[role](batch.views["image"]).extra["labels"] for role in ("student", "teacher")]
    for name in ("class_structure", "instance_structure"):
        torch.testing.assert_close(whole[name], parts[name], atol=1e-4, rtol=1e-4)
        assert float(itself[name].max()) == 0.0
        assert float(whole[name].mean()) > 0.05
    torch.testing.assert_close(
        whole["instance_structure"], structure_gap(*vectors, batch.labels), atol=1e-4, rtol=1e-4
    )


def test_rarest_third() -> None:
    """Would catch the most frequent third."""
    labels = torch.zeros(9, 6)
    for label, count in enumerate((5, 1, 9, 1, 7, 3)):
        labels[:count, label] = 1

    class Fake:
        def data(self, split: str) -> object:
            assert split == "train"
            return type("Data", (), {"items": type("Files", (), {"labels": labels})})

    found = multilabel.rarest_third(Fake())  # type: ignore[arg-type]
    assert found.tolist() == [False, True, False, True, False, False]


def test_one_cycle_is_torchs() -> None:
    """Would catch a peak at another place, or another start or end, than OneCycleLR's."""
    steps = 50
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    for k in range(steps):
        rate = one_cycle.one_cycle(k, peak=0.3, share=0.2, steps=steps)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if k < steps - 1:
            schedule.step()
    assert one_cycle.one_cycle(0, peak=0.3, share=0.2, steps=2) <= 0.3


def test_biases_and_norms_do_not_decay(open_arm: Open) -> None:
    """Would catch weight decay on every parameter, and a rate that does not follow the cycle."""
    task = catalog.load().task("coco-multilabel")
    values = {name: param.default for name, param in task.params.items()}
    run = open_arm("l2d", TASK, set=SMALL)
    run.cfg = run.cfg.__class__({**dict(run.cfg), **values, "cycle_steps": 100})
    optimizer = one_cycle.make_optimizer(run)
    decayed = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert decayed.keys() == {0.0, values["weight_decay"]}
    assert all(p.dim() == 1 for p in decayed[0.0])
    assert all(p.dim() > 1 for p in decayed[values["weight_decay"]])
    assert sum(map(len, decayed.values())) == len(list(run.models["student"].parameters()))
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {one_cycle.one_cycle(0, peak=values["lr"], share=0.2, steps=max(100, run.steps))}


@pytest.mark.parametrize(("task", "images"), [("coco-multilabel", 82_081), ("voc2007-multilabel", 5_011)])
def test_paper_schedules(task: str, images: int) -> None:
    """Would catch another number of epochs, or a teacher that finishes a cycle of its own."""
    card = catalog.load().task(task)
    values = {name: param.default for name, param in card.params.items()}
    epoch = images // 64  # the last, smaller batch is dropped
    assert (values["steps"], values["teacher_steps"]) == (80 * epoch, 30 * epoch)
    assert card.teacher is not None
    assert card.teacher.set["cycle_steps"] == values["steps"]
    assert values["weight_decay"] * 64 == pytest.approx(1e-4)
    assert catalog.load().method("l2d").params["mld_weight"].default == 10 / 64


# Cutout and RandAugment


def photo(side: int = 40) -> Image.Image:
    pixels = torch.randint(
        60, 200, (side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return Image.fromarray(pixels.numpy())


def pixels(image: Image.Image) -> Tensor:
    return torch.tensor(np.asarray(image)).long()


def test_cutout_fills_half_of_each_side() -> None:
    """Would catch a box of another size or place, one colour for all, or a changed original."""
    image = photo()
    before = pixels(image)
    found = pixels(randaugment.cutout(image, (0.5, 0.5, 0.1, 0.5, 0.9)))
    assert torch.equal(pixels(image), before)
    assert (found[10:30, 10:30] == torch.tensor([25, 128, 230])).all()
    found[10:30, 10:30] = before[10:30, 10:30]
    assert torch.equal(found, before)
    corner = pixels(randaugment.cutout(image, (0.0, 0.99, 0, 0, 0)))
    assert not corner[29:, :10].any()
    assert torch.equal(corner[:29], before[:29])


def test_every_operation_is_used_and_keeps_the_size() -> None:
    """Would catch an operation out of reach of the draws, one that fails at its end, or another size."""
    image = photo()
    for which in range(len(randaugment.TABLE)):
        for sign in (0.2, 0.8):
            draw = (which + 0.5) / len(randaugment.TABLE)
            found = randaugment.cut_and_distort(image, (0.5, 0.5, 0, 0, 0, draw, sign, 0.01, 0.2))
            assert (found.size, found.mode) == ((40, 40), "RGB")
            plain = randaugment.cutout(image, (0.5, 0.5, 0, 0, 0))
            assert torch.equal(pixels(found), pixels(plain)) == (which == 0), which


def test_the_recipe_squashes_and_keeps_evaluation_plain() -> None:
    """Would catch a crop where the whole image is wanted, and augmentation in evaluation."""
    recipe = Recipe(16, 16, "rand", True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    image = photo().resize((50, 30))
    plain = recipe(image, None)
    assert plain.shape == (16, 16, 3)
    squashed = image.resize((16, 16), Image.Resampling.BILINEAR)
    assert torch.equal(torch.from_numpy(plain.copy()).long(), pixels(squashed))
    draws = [0.5] * 41
    assert (recipe(image, draws) == recipe(image, draws)).all()
    assert (recipe(image, draws) != plain).any()
    assert recipe.normalized(torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)).eq(1).all()
