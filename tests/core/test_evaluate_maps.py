"""Core's share of the last stage where models answer with maps instead of one vector a sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo import evaluate
from kdzoo.device import open_device
from kdzoo.method import Batch, Output
from kdzoo.runs import Predicted
from kdzoo.task import Data


class Maps(nn.Module):
    """(B, C) or (B, C, H, W) logits of an image (B, C, H, W)."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, image: Tensor) -> Output:
        return Output(logits=image if self.dense else image.mean((2, 3)))


def a_run(dense: bool, asked: list[str]) -> Any:
    images = [torch.randn(1, 3, 4, 4 + k) for k in range(3)]

    def collate(items: list[Tensor], rows: Tensor, seeds: Tensor | None) -> Batch:
        chosen = [items[row] for row in rows.tolist()]
        image = torch.cat([part[..., :4] for part in chosen]) if len(chosen) > 1 else chosen[0]
        return Batch(ids=["x"] * len(rows), views={"image": image}, labels=torch.zeros(len(rows)), counts={})

    data = Data(images, ["a", "b", "c"], collate, "hash")

    def predict(role: str, split: str) -> Predicted:
        asked.append(role)
        part = data.collate(images, torch.arange(3), None)
        logits = Maps(dense)(part.views["image"]).logits
        return Predicted(logits, None, torch.tensor([0, 1, 2]), list(data.ids))

    return SimpleNamespace(
        stage="evaluate",
        view_of=lambda role: "image",
        models={"student": Maps(dense), "teacher": Maps(dense)},
        shipped=lambda: [("student", "")],
        data=lambda split: data,
        to_device=lambda batch: batch,
        device_info=open_device("cpu", "float32"),
        predict=predict,
    )


def test_maps_of_a_whole_split_are_never_held() -> None:
    """The scores of 500 photos of two million pixels each are 80 GB; and photos of two sizes are no tensor."""
    asked: list[str] = []
    assert evaluate.evaluate(a_run(True, asked), "test") == {}
    assert asked == []


def test_vectors_are_measured_against_the_teacher() -> None:
    """The look at one sample must not switch off what core measures of classifiers."""
    asked: list[str] = []
    found = evaluate.evaluate(a_run(False, asked), "test")
    assert set(found) == {"ece", "agreement", "teacher_kl"}
    assert found["agreement"].value == 1.0
    assert sorted(asked) == ["student", "teacher"]
