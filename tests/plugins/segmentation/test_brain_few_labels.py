"""The task with few labelled slices: who has labels, and what the pool shows of them."""

from __future__ import annotations

import torch

from kdzoo.plan import Request, make_plan
from kdzoo_segmentation.data import brain
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.tasks import brain_few_labels, brain_slices


def test_the_pool_has_no_label_in_any_view() -> None:
    """Augmentation brings in black at the border, and its label, air, would be a label of the pool."""
    data = brain.load("pool")
    rows = torch.arange(8)
    for seeds in (None, rows + 5):
        batch = data.collate(data.items, rows, seeds)
        assert bool((batch.labels == IGNORE).all())
        assert batch.counts == {"item": 8, "pixel": 0}


def test_pool_and_training_slices_are_augmented_alike() -> None:
    """A pool of fixed views beside moving labelled slices: what labels which would follow from the view."""
    pool, train = brain.load("pool"), brain.load("train", labelled=134)
    rows, seeds = torch.arange(4), torch.arange(4) + 9
    views = [data.collate(data.items, rows, seeds).views["image"] for data in (pool, train)]
    assert torch.equal(*views)
    assert not torch.equal(views[0], pool.collate(pool.items, rows, None).views["image"])
    assert not pool.fixed_views
    assert brain.load("val").fixed_views
    assert len(pool) == 134


def test_few_labels_come_from_all_planes() -> None:
    """Sixteen neighbours of one plane would leave two planes without a label."""
    data = brain.load("train", labelled=16)
    planes = [name.split("/")[1] for name in data.ids]
    assert len(planes) == 16
    assert len(set(planes)) == 3
    assert min(map(planes.count, set(planes))) >= 3
    assert set(data.ids) <= {name.replace("pool/", "train/") for name in brain.load("pool").ids}


def test_both_tasks_share_their_classes_and_hooks() -> None:
    """A copy that drifts."""
    for name in ("METAINFO", "SUBSETS", "build_model", "evaluate", "fit", "loss_terms"):
        assert getattr(brain_few_labels, name) is getattr(brain_slices, name)


def test_every_arm_sees_labelled_and_unlabelled_slices() -> None:
    """Another number of slices in a batch is another batch norm, and another cost, for the student alone."""
    plan = make_plan(Request("pixel-kd", task="brain-few-labels", seeds=1))
    for values in plan.settings.values():
        assert (values["labelled"], values["batch"], values["pool_batch"]) == (16, 8, 4)
    assert [stream.split for stream in plan.task.streams] == ["train", "pool"]
