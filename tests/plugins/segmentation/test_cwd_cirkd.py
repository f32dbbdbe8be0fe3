"""The peers: channel-wise distillation and cross-image relations, as terms of a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.image_pairs import cross_image_divergence
from kdzoo.method import Batch, Output, Term
from kdzoo.settings import Settings, resolve
from kdzoo_segmentation.methods import cirkd, cwd


def terms_of(
    module: Any, method: str, student: Output, teacher: Output, images: int, **changes: Any
) -> dict[str, Term]:
    cards = catalog.load()
    values = resolve(cards.task("brain-slices"), cards.method(method), {}, changes)
    sides = {"student": student, "teacher": teacher}
    run: Any = SimpleNamespace(
        cfg=Settings(values, ("*",), "plan"), out=sides.__getitem__, signal=sides.__getitem__
    )
    labels = torch.zeros(images, 8, 8).long()
    batch = Batch(ids=[str(k) for k in range(images)], views={}, labels=labels, counts={"item": images})
    return module.loss_terms(run=run, batch=batch)


def said(seed: int, size: int, width: int, images: int = 2) -> Output:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"head": (images, width, size, size), "score": (images, 3, size, size)}
    return Output(features={name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def worth(term: Term, images: int = 2) -> float:
    assert term.per == "item"
    return float(term.total) * term.weight / images


def softmax_over_positions(scores: Tensor, temperature: float) -> Tensor:
    return (scores.double().flatten(2) / temperature).softmax(2)


def test_cwd_is_the_official_sum() -> None:
    """T^2 sum KL / (B C): a sum over classes, or no T^2, would make the paper's weight another one."""
    student, teacher = said(0, 4, 5), said(1, 4, 7)
    q, p = (softmax_over_positions(side.features["score"], 4.0) for side in (student, teacher))
    expected = 16 * float((p * (p / q).log()).sum()) / (2 * 3)
    (term,) = terms_of(cwd, "cwd", student, teacher, 2, cwd_weight=3.0, temperature=4.0).values()
    assert worth(term) == pytest.approx(3 * expected, rel=1e-4)


def test_a_teacher_of_another_stride_is_resized() -> None:
    """Positions of two grids held against each other in the order of memory."""
    student, teacher = said(0, 4, 5), said(1, 8, 7)
    resized = {
        name: F.interpolate(part, (4, 4), mode="bilinear", align_corners=False)
        for name, part in teacher.features.items()
    }
    for module, method in ((cwd, "cwd"), (cirkd, "cirkd")):
        found = terms_of(module, method, student, teacher, 2)
        expected = terms_of(module, method, student, Output(features=resized), 2)
        assert {k: worth(v) for k, v in found.items()} == {k: worth(v) for k, v in expected.items()}


def test_cirkd_is_relations_and_soft_labels() -> None:
    """A mean over another number of pairs, or pooling that changes one side only."""
    student, teacher = said(0, 5, 5), said(1, 5, 7)
    found = terms_of(
        cirkd,
        "cirkd",
        student,
        teacher,
        2,
        pool=2,
        relation_weight=3.0,
        relation_temperature=0.1,
        kd_weight=2.0,
        temperature=2.0,
    )
    pooled = [F.avg_pool2d(s.features["head"], 2, 2, ceil_mode=True) for s in (student, teacher)]
    relation = cross_image_divergence(*pooled, temperature=0.1, pairs="all", reduction="mean")
    assert worth(found["relation"]) == pytest.approx(3 * relation.item(), rel=1e-5)
    scores = [side.features["score"] for side in (student, teacher)]
    soft = kl_divergence(*scores, temperature=2.0, axis=1, reduction="mean")
    assert worth(found["pixel-wise"]) == pytest.approx(2 * 4 * soft.item(), rel=1e-5)
    assert set(terms_of(cirkd, "cirkd", student, teacher, 2, relation_weight=0.0)) == {"pixel-wise"}


def test_one_image_has_no_other() -> None:
    """A relation to no image at all is 0 / 0; the message says what to set."""
    student, teacher = said(0, 4, 5, images=1), said(1, 4, 7, images=1)
    with pytest.raises(KdzooError, match="Set batch to 2 or more"):
        terms_of(cirkd, "cirkd", student, teacher, 1, pairs="cross")
    alone = terms_of(cirkd, "cirkd", student, teacher, 1, pairs="same")
    every = terms_of(cirkd, "cirkd", student, teacher, 1, pairs="all")
    assert worth(alone["relation"], 1) == worth(every["relation"], 1) > 0
