"""What the tasks on the papers' own data share: splits from the files under ``--data-root``, models from local weights.

The papers train on all training images and have no validation split, so `val_share` is 0 by default and `val` is then
empty; with ``--set val_share=0.1`` a tenth of the training images is kept for choices: see
`kdzoo_segmentation.data.photos`.

Shapes: B images, C classes, H x W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo.cards import Side, TaskCard
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo.task import Data
from kdzoo_segmentation import models, weights
from kdzoo_segmentation.data import photos
from kdzoo_segmentation.data.photo_sets import PHOTO_SETS
from kdzoo_segmentation.data.photo_views import Recipe
from kdzoo_segmentation.segmentation import cross_entropy

if TYPE_CHECKING:
    from kdzoo.runs import Run

MOST_DECODERS = 32
FILES = ("pretrained", "teacher_pretrained", "teacher_weights")
"""Settings that name local files."""

CLASS_WEIGHTS: dict[str, tuple[float, ...]] = {
    "none": (),
    # Cityscapes' classes: RuipingL/TransKD@39ab795 train/train_TransKDBase.py, after ERFNet
    "enet": (
        2.5959737, 6.741505, 3.5353868, 9.866315, 9.690922, 9.369371, 10.289124, 9.953209, 4.3098087, 9.490392,
        7.674411, 9.396925, 10.347794, 6.3928986, 10.226673, 10.241072, 10.28059, 10.396977, 10.05567,
    ),
}  # fmt: skip


def serve(name: str, run: Run, split: str) -> Data:
    """A split of the photo set `name`, as the settings want it.

    Raises:
        KdzooError: no data root, files that do not lie as expected, or weights that are not there.
    """
    info = PHOTO_SETS[name]
    if run.data_root is None:
        raise KdzooError(
            f"{info.title} does not ship with this package: name the folder that holds {info.folders[0]}/ with "
            f"--data-root DIR. It is had at {info.home}; terms: {info.terms}."
        )
    cfg = run.cfg
    # A changed file at the same path must not be taken for the old one: stages know settings, and data by their hash.
    salt = " ".join(weights.fingerprint(str(cfg.get(setting, ""))) for setting in FILES)
    if split == "val" and not cfg.val_share:
        return Data(items=None, ids=[], collate=_no_samples, hash="no validation split")
    return _load(
        name,
        split,
        Path(run.data_root),
        recipe_of(name, cfg),
        float(cfg.val_share),
        float(cfg.get("labelled", 1.0)),
        decoders(int(cfg.decoders)),
        CLASS_WEIGHTS[str(cfg.get("class_weights", "none"))],
        salt,
    )


def recipe_of(name: str, cfg: Mapping[str, Any]) -> Recipe:
    """What the settings say of the images of a data set.

    Raises:
        KdzooError: a size that is not two numbers.
    """
    pairs: dict[str, tuple[Any, Any]] = {}
    for setting in ("scale", "crop", "jitter"):
        values = tuple(cfg[setting])
        if len(values) != 2 or min(values) <= 0:
            raise KdzooError(
                f"--set {setting} got {', '.join(map(str, values))}, expected two numbers above 0: scale is the long "
                "and the short side, crop height and width, jitter the range of the factor on scale."
            )
        pairs[setting] = (values[0], values[1])
    return Recipe(
        scale=pairs["scale"],
        crop=pairs["crop"],
        jitter=pairs["jitter"],
        augment=str(cfg.get("augment", "mmseg")),
        pad=name == "voc2012-aug",  # mmseg configs/_base_/datasets/pascal_voc12_aug.py, and no other there
        resized=bool(cfg["eval_resize"]),
        stride=int(cfg.get("label_stride", 1)),
        pixels=str(cfg.get("pixels", "imagenet")),
        coloured=name == "deepglobe-land",
    )


@lru_cache(maxsize=6)
def _load(
    name: str,
    split: str,
    root: Path,
    recipe: Recipe,
    val_share: float,
    labelled: float,
    threads: int,
    class_weights: tuple[float, ...],
    salt: str,
) -> Data:
    """Kept, since a bench asks for the same split once an arm, and listing COCO takes a while. Never changed."""
    return photos.load(
        name,
        split,
        root,
        recipe,
        val_share=val_share,
        labelled=labelled,
        decoders=threads,
        weights=class_weights,
        salt=salt,
    )


def _no_samples(items: object, rows: Tensor, seeds: Tensor | None) -> Batch:
    raise KdzooError("there is no validation split: val_share is 0. Set val_share above 0 to keep one.")


def decoders(wanted: int) -> int:
    """Threads that decode images: `wanted`, or for 0 this process's share of the cores. Results do not depend on it."""
    if wanted:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(MOST_DECODERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings, from local weights where the settings name some.

    Weights are read only where they stay: not where those of an earlier stage are loaded over them.
    """
    if role not in ("student", "teacher"):
        return None
    cfg, sizes = run.cfg, run.task.sizes
    fresh = any(
        r.source == f"init:{role}" or (r.name == role and r.source == "init") for r in run.roles.values()
    )
    whole = str(cfg.get("teacher_weights", "")) if role == "teacher" else ""
    backbone = str(cfg.get("teacher_pretrained" if role == "teacher" else "pretrained", ""))
    if role == "teacher" and run.stage == "teacher" and not run.steps and not whole:
        raise KdzooError(
            f"the teacher {cfg.teacher!r} has teacher_steps = 0 and no teacher_weights: it would teach random numbers. "
            "Set teacher_steps to the length of its training, or teacher_weights to a file of trained weights."
        )
    model = models.build(cfg[role], classes=sizes["classes"], channels=sizes["channels"])
    if fresh and whole:
        weights.load_whole(model, Path(whole))
    elif fresh and backbone:
        weights.load_backbone(model, Path(backbone))
    return model


def check_pair(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Side]:
    """Layers of both nets on a training view, before any weights are loaded."""
    height, width = (int(side) for side in cfg["crop"])
    sizes = task.sizes["classes"], task.sizes["channels"], height, width
    return {role: models.side(cfg[role], *sizes) for role in ("student", "teacher")}


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Cross-entropy summed over the labelled pixels (nats), weighted by class if asked; auxiliary heads at 0.4 of it.

    With labels at a stride, the head's scores are held against them, not their enlargement to the image.
    """
    output, cfg = run.out("student"), run.cfg
    if int(cfg.get("label_stride", 1)) > 1:
        output = replace(output, logits=models.resized(output.features["score"], batch.labels))
    table = CLASS_WEIGHTS[str(cfg.get("class_weights", "none"))]
    if not table:
        return {"task": Term(cross_entropy(output, batch.labels), per="pixel")}
    of_class = torch.tensor(table, device=batch.labels.device)
    return {"task": Term(cross_entropy(output, batch.labels, weight=of_class), per="weight")}
