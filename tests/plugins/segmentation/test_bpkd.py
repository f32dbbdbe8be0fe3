"""Boundary privileged KD: masks by hand and by definition, both losses against loops, and what they turn into."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.losses.maps import channel_wise_divergence
from kdzoo.method import Batch, Output
from kdzoo.settings import Settings, resolve
from kdzoo_segmentation import models
from kdzoo_segmentation.borders import Element, bodies, class_edges, edges
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.methods import bpkd

CLASSES = 4
LABELS = torch.tensor(
    [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, IGNORE, IGNORE, 1]]
).unsqueeze(0)


def random_labels(seed: int = 0) -> Tensor:
    """Two images of blocks, the last class absent, some pixels to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, CLASSES - 1, (2, 3, 4), generator=generator)
    labels = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)
    labels[0, 2:5, 3:5] = IGNORE
    return labels


def scores(seed: int, like: Tensor = LABELS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(like), CLASSES, *like.shape[1:], generator=generator, dtype=torch.float64) * 3


def window(element: Element, radius: int) -> list[tuple[int, int]]:
    reach = range(-radius, radius + 1)
    return [(y, x) for y in reach for x in reach if element == "square" or abs(y) + abs(x) <= radius]


def slow_masks(labels: Tensor, radius: int, element: Element) -> tuple[Tensor, Tensor]:
    """E_c and B_c pixel by pixel: dilation reaches a pixel of c, erosion one of another class."""
    images, height, width = labels.shape
    edge = torch.zeros(images, CLASSES, height, width, dtype=torch.bool)
    body = edge.clone()
    for i in range(images):
        for y in range(height):
            for x in range(width):
                if labels[i, y, x] == IGNORE:
                    continue
                near = [
                    int(labels[i, y + dy, x + dx])
                    for dy, dx in window(element, radius)
                    if 0 <= y + dy < height and 0 <= x + dx < width and labels[i, y + dy, x + dx] != IGNORE
                ]
                for c in range(CLASSES):
                    edge[i, c, y, x] = c in near and any(other != c for other in near)
                    body[i, c, y, x] = labels[i, y, x] == c and not edge[i, c, y, x]
    return edge, body


# --- masks --------------------------------------------------------------------------------------------------


def test_masks_by_hand() -> None:
    """An edge along the image's border or around pixels to be ignored, or a band on one side only."""
    edge = edges(LABELS, radius=1, element="square")
    assert edge[0].int().tolist() == [[0, 0, 1, 1, 0, 0]] * 3 + [[0, 0, 1, 0, 0, 0]]
    inside = bodies(LABELS, edge, classes=CLASSES)
    assert inside[0, 0].int().tolist() == [[1, 1, 0, 0, 0, 0]] * 4
    assert inside[0, 1].int().tolist() == [[0, 0, 0, 0, 1, 1]] * 3 + [[0, 0, 0, 0, 0, 1]]
    assert not inside[0, 2:].any()
    cross = edges(LABELS, radius=1, element="cross")
    assert cross[0].int().tolist() == [[0, 0, 1, 1, 0, 0]] * 3 + [[0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("element", ["square", "cross"])
@pytest.mark.parametrize("radius", [1, 2])
def test_masks_are_the_definition(radius: int, element: Element) -> None:
    """The short cut by class numbers gives other masks than dilation and erosion of each class."""
    labels = random_labels()
    slow_edge, slow_body = slow_masks(labels, radius, element)
    edge = edges(labels, radius=radius, element=element)
    assert edge.equal(slow_edge.any(1))
    assert class_edges(labels, classes=CLASSES, radius=radius, element=element).equal(slow_edge)
    assert bodies(labels, edge, classes=CLASSES).equal(slow_body)
    assert slow_body.any()
    assert slow_edge.any()


def test_no_border_no_edge() -> None:
    """One class only, nothing to be counted, one pixel: no edge, and no body where all is to be ignored."""
    for labels in (torch.zeros(1, 3, 3).long(), torch.full((1, 3, 3), IGNORE), torch.ones(1, 1, 1).long()):
        for element in ("square", "cross"):
            edge = edges(labels, radius=2, element=element)
            assert not edge.any()
            assert not class_edges(labels, classes=CLASSES, radius=2, element=element).any()
        held = int((labels != IGNORE).sum())
        assert int(bodies(labels, edge, classes=CLASSES).sum()) == held


def test_no_band_is_refused() -> None:
    """A radius of 0 is a method without edges, in silence."""
    with pytest.raises(ValueError, match="at least 1"):
        edges(LABELS, radius=0, element="square")
    with pytest.raises(ValueError, match="'square' or 'cross'"):
        edges(LABELS, radius=1, element="disc")  # type: ignore[arg-type]


# --- losses -------------------------------------------------------------------------------------------------


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of two vectors of scores."""
    p, q = teacher.softmax(0), student.softmax(0)
    return (p * (p / q).log()).sum()


def test_edge_loss_is_the_formula() -> None:
    """A softmax over positions, a mean over all pixels, or a pixel of two edges counted twice."""
    labels = random_labels()
    student, teacher = scores(0, labels), scores(1, labels)
    edge = edges(labels, radius=1, element="square")
    places = edge.nonzero().tolist()
    expected = [divergence(student[i, :, y, x] / 2, teacher[i, :, y, x] / 2) for i, y, x in places]
    found = bpkd.edge_loss(student, teacher, edge, temperature=2.0, reduction="mean")
    torch.testing.assert_close(found, torch.stack(expected).mean())
    everywhere = bpkd.edge_loss(student, teacher, None, temperature=2.0, reduction="none")
    assert everywhere.shape == labels.shape
    assert (everywhere > 0).all()


def test_body_loss_is_the_formula() -> None:
    """Zeroed positions that leave the softmax, or a softmax over the whole batch."""
    labels = random_labels()
    student, teacher = scores(0, labels), scores(1, labels)
    _, body = slow_masks(labels, 1, "square")
    options: dict[str, Any] = {"temperature": 2.0, "reduction": "none"}
    zeroed = bpkd.masked_shapes(student, teacher, body, mask_mode="zero", **options)
    left_out = bpkd.masked_shapes(student, teacher, body, mask_mode="neginf", **options)
    for i in range(2):
        for c in range(CLASSES):
            s, t, inside = student[i, c].flatten(), teacher[i, c].flatten(), body[i, c].flatten()
            torch.testing.assert_close(zeroed[i, c], divergence(s * inside / 2, t * inside / 2))
            kept = divergence(s[inside] / 2, t[inside] / 2) if inside.any() else torch.zeros(()).double()
            torch.testing.assert_close(left_out[i, c], kept)
    assert zeroed[:, -1].tolist() == left_out[:, -1].tolist() == [0, 0]  # no image holds the last class


@pytest.mark.parametrize("mask_mode", ["zero", "neginf"])
def test_gradient_stays_inside_and_finite(mask_mode: bpkd.MaskMode) -> None:
    """-inf minus -inf in the backward pass, an absent class that moves, or a teacher that learns."""
    labels = random_labels()
    student, teacher = scores(0, labels).requires_grad_(), scores(1, labels).requires_grad_()
    body = bodies(labels, edges(labels, radius=1, element="square"), classes=CLASSES)
    total = bpkd.masked_shapes(student, teacher, body, temperature=1.0, mask_mode=mask_mode, reduction="sum")
    mine, taught = torch.autograd.grad(total, (student, teacher), allow_unused=True)
    assert taught is None
    assert mine.isfinite().all()
    assert mine[body].abs().sum() > 0
    assert mine[~body].abs().max() == 0


def test_equal_scores_cost_nothing() -> None:
    """A cross-entropy in place of a divergence: not 0 where both sides say the same."""
    student = scores(3)
    edge = edges(LABELS, radius=1, element="square")
    assert bpkd.edge_loss(student, student, edge, temperature=1.0, reduction="sum").abs() < 1e-12
    body = bodies(LABELS, edge, classes=CLASSES)
    for mode in ("zero", "neginf"):
        value = bpkd.masked_shapes(student, student, body, temperature=1.0, mask_mode=mode, reduction="sum")
        assert value.abs() < 1e-12


def test_half_precision() -> None:
    """bf16 scores summed in bf16 lose what tells positions apart."""
    student, teacher = scores(0).bfloat16(), scores(1).bfloat16()
    edge = edges(LABELS, radius=1, element="square")
    body = bodies(LABELS, edge, classes=CLASSES)
    for mode in ("zero", "neginf"):
        options: dict[str, Any] = {"temperature": 1.0, "mask_mode": mode, "reduction": "none"}
        half = bpkd.masked_shapes(student, teacher, body, **options)
        assert half.dtype == torch.float32
        full = bpkd.masked_shapes(student.double(), teacher.double(), body, **options)
        torch.testing.assert_close(half.double(), full, rtol=1e-4, atol=1e-5)
    half = bpkd.edge_loss(student, teacher, edge, temperature=1.0, reduction="mean")
    full = bpkd.edge_loss(student.double(), teacher.double(), edge, temperature=1.0, reduction="mean")
    torch.testing.assert_close(half.double(), full, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    """One mask for all classes broadcasts over them, in silence."""
    options: dict[str, Any] = {"temperature": 1.0, "reduction": "sum"}
    with pytest.raises(ValueError, match="a mask for every class"):
        bpkd.masked_shapes(scores(0), scores(1), LABELS[:, None] == 0, mask_mode="zero", **options)
    with pytest.raises(ValueError, match="'zero' or 'neginf'"):
        bpkd.masked_shapes(scores(0), scores(1), scores(0) > 0, mask_mode="none", **options)  # type: ignore[arg-type]


# --- the terms of a step ------------------------------------------------------------------------------------


def settings(**changes: Any) -> Settings:
    cards = catalog.load()
    values = resolve(cards.task("brain-slices"), cards.method("bpkd"), {}, changes)
    return Settings(values, ("*",), "plan")


def said(score: Tensor) -> Output:
    logits = F.interpolate(score, scale_factor=4, mode="bilinear", align_corners=False)
    return Output(logits=logits, features={"score": score})


def loss_of(labels: Tensor, mine: Tensor, taught: Tensor, **changes: Any) -> dict[str, float]:
    """The terms as they enter the sum, of a batch whose scores have the size that the student's net would give."""
    grid = mine.shape[2:]
    sides = {"student": mine, "teacher": taught}
    run: Any = SimpleNamespace(
        cfg=settings(**changes),
        task=SimpleNamespace(sizes={"classes": CLASSES}),
        out=lambda role: said(sides[role]),
        signal=lambda role: said(sides[role]),
    )
    image = torch.zeros(len(labels), 1, 4 * grid[0], 4 * grid[1])
    batch = Batch(
        ids=[str(k) for k in range(len(labels))],
        views={"image": image},
        labels=labels,
        counts={"item": len(labels)},
    )
    bpkd.prepare_batch(run=run, batch=batch)
    terms = bpkd.loss_terms(run=run, batch=batch)
    return {
        name: float(term.total) * term.weight / (batch.counts[term.per] or 1) for name, term in terms.items()
    }


def test_terms_by_definition() -> None:
    """Another normaliser: the weights 50 and 20 would mean something else."""
    labels = random_labels()
    student, teacher = scores(0, labels), scores(1, labels)
    edge, body = slow_masks(labels, 1, "square")
    pixels = bpkd.edge_loss(student, teacher, edge.any(1), temperature=2.0, reduction="mean")
    shapes = bpkd.masked_shapes(
        student, teacher, body, temperature=2.0, mask_mode="zero", reduction="none"
    ).mean(1)
    found = loss_of(labels, student, teacher, edge_weight=50.0, body_weight=20.0, temperature=2.0)
    assert found["edge"] == pytest.approx(50 * 4 * pixels.item())
    assert found["body"] == pytest.approx(20 * 4 * shapes.mean().item())


def test_at_the_images_size() -> None:
    """Labels that are shrunk and grown again, or scores of the head: another band than the setting says."""
    labels = random_labels().repeat_interleave(4, 1).repeat_interleave(4, 2)
    small = random_labels()
    student, teacher = scores(0, small), scores(1, small)
    edge = edges(labels, radius=2, element="square")
    mine, taught = said(student).logits, said(teacher).logits
    assert mine is not None
    assert taught is not None
    pixels = bpkd.edge_loss(mine, taught, edge, temperature=1.0, reduction="mean")
    found = loss_of(labels, student, teacher, resolution="image", radius=2, edge_weight=1.0)
    assert found["edge"] == pytest.approx(pixels.item())
    assert found["body"] > 0


def test_without_masks_it_is_two_known_methods() -> None:
    """The arms that stand for uniform and channel-wise distillation would not be them."""
    labels = random_labels()
    student, teacher = scores(0, labels), scores(1, labels)
    found = loss_of(
        labels, student, teacher, edge_where="all", body_where="all", edge_weight=3.0, body_weight=2.0
    )
    uniform = bpkd.edge_loss(student, teacher, None, temperature=1.0, reduction="mean")
    channels = channel_wise_divergence(student, teacher, temperature=1.0, reduction="mean")
    assert found == {
        "edge": pytest.approx(3 * uniform.item()),
        "body": pytest.approx(2 * channels.item()),
    }


def test_third_partys_edge_loss() -> None:
    """Not over the positions of each class's own edge, or divided by another count of pixels."""
    labels = random_labels()
    student, teacher = scores(0, labels), scores(1, labels)
    edge, _ = slow_masks(labels, 1, "cross")
    expected = 0.0
    for i in range(2):
        total = sum(
            divergence((student[i, c] * edge[i, c]).flatten(), (teacher[i, c] * edge[i, c]).flatten())
            for c in range(CLASSES)
        )
        expected += float(total) / int(edge[i].any(0).sum()) / 2
    found = loss_of(
        labels, student, teacher, edge_form="positions", element="cross", edge_weight=5.0, body_weight=0.0
    )
    assert found == {"edge": pytest.approx(5 * expected)}


def test_a_batch_without_edges_is_zero() -> None:
    """0 / 0 edge pixels, or a class of nothing, is NaN and stops a run."""
    labels = torch.full((1, 4, 4), IGNORE)
    for mode in ("zero", "neginf"):
        for form in ("pixels", "positions"):
            found = loss_of(labels, scores(0, labels), scores(1, labels), mask_mode=mode, edge_form=form)
            assert found == {"edge": 0.0, "body": 0.0}


def test_grid_is_the_models() -> None:
    """Edges counted on another grid than the loss sees divide by a wrong number."""
    for name in ("deeplabv3p-r18-xs", "fcn-r18-xs", "segformer-xs"):
        net = models.build(name, classes=CLASSES, channels=1).eval()
        image = torch.zeros(1, 1, 40, 56)
        with torch.no_grad():
            score = net(image).features["score"]
        assert bpkd._grid(name, CLASSES, 1, 40, 56) == tuple(score.shape[2:])
    with pytest.raises(KdzooError, match="edges were counted at"):
        loss_of(LABELS, scores(0), scores(1), student="fcn-r18-xs")
