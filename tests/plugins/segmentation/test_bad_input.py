"""Labels and models that do not belong together: one message with what was given, expected, and what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo.method import Batch, Output
from kdzoo.plan import Request, make_plan
from kdzoo_segmentation.data import brain
from kdzoo_segmentation.scores import at_scores, pair_of_scores
from kdzoo_segmentation.segmentation import check_labels, loss_terms

LOGITS = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (-1, 2), (0, 254)])
def test_labels_outside_of_the_classes(low: int, high: int) -> None:
    """An index error of a kernel, or on a GPU an assertion that ends the process."""
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 0, 0], labels[0, 1, 1] = low, high
    with pytest.raises(
        KdzooError, match=rf"classes {low} to {high}, expected 0 to 2, or 255.*Map the data set's ids"
    ):
        check_labels(labels, LOGITS)


def test_a_mask_of_another_size() -> None:
    with pytest.raises(
        KdzooError, match=r"\(4, 5\) pixels and the image \(4, 4\).*Crop and resize both alike"
    ):
        check_labels(torch.zeros(1, 4, 5, dtype=torch.int64), LOGITS)


def test_nothing_but_pixels_to_be_ignored() -> None:
    """A run that learns nothing from labels and says so nowhere."""
    labels = torch.full((1, 4, 4), 255)
    batch = Batch(["a"], {"image": torch.zeros(1, 1, 4, 4)}, labels, {"item": 1, "pixel": 0})
    run: Any = SimpleNamespace(step=7, out=lambda role: Output(logits=LOGITS.clone().requires_grad_()))
    batch.norm = {"item": 1.0, "pixel": 0.0, "step": 1.0}
    with pytest.raises(KdzooError, match=r"step 7 has no pixel with a label.*set task_weight to 0"):
        loss_terms(run, batch)
    batch.norm["pixel"] = 5.0  # another micro-batch of the step has some
    assert loss_terms(run, batch)["task"].total.item() == 0


def test_other_classes_and_other_strides() -> None:
    """Channel k held against another class; scores of another grid are resized, labels go to the scores' grid."""

    def pair(teacher: torch.Tensor) -> Any:
        said = {"score": teacher}
        return SimpleNamespace(
            out=lambda role: Output(features={"score": LOGITS}), signal=lambda role: Output(features=said)
        )

    with pytest.raises(KdzooError, match=r"scores 3 classes and the teacher 4.*same set of classes"):
        pair_of_scores(pair(torch.zeros(1, 4, 4, 4)))
    assert pair_of_scores(pair(torch.rand(1, 3, 2, 2)))[1].shape == LOGITS.shape
    labels = torch.arange(64).view(1, 8, 8)
    assert at_scores(labels, LOGITS)[0, 0].tolist() == [0, 2, 4, 6]


def test_layers_of_another_stride_are_refused_before_weights_load() -> None:
    """A broadcast, or a resized layer that nobody asked for, after minutes of training."""
    with pytest.raises(KdzooError, match="transkd"):
        make_plan(Request("transkd", task="brain-slices", set=("student=fcn-r18-xs",)))


def test_splits_and_counts_that_brain_slices_has_not() -> None:
    with pytest.raises(KdzooError, match="It has train, pool, val, test"):
        brain.load("tests")
