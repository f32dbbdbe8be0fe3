"""Multi-Granularity Distillation, against JayQine/MGD-SSSS."""

from __future__ import annotations

import numpy as np
from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.affinity import cosine_affinity
from kdzoo_segmentation.cutmix import box_masks
from kdzoo_segmentation.methods.mgd_semi import image_semantic_loss, region_content_loss, regions

GRID = 7  # regions along a side in the official code


@parity("mgd-semi", "box-masks")
def boxes(case: Case) -> dict[str, Tensor]:
    args = case.args
    assert args["prop_by_area"]
    assert args["within_bounds"]
    masks = box_masks(
        args["n_masks"],
        tuple(args["mask_shape"]),
        random=np.random.RandomState(args["seed"]),
        boxes=args["n_boxes"],
        low=args["prop_range"][0],
        high=args["prop_range"][1],
        random_aspect=args["random_aspect_ratio"],
        invert=args["invert"],
    )
    return {"masks": masks.to(case.expected["masks"].dtype)}


@parity("mgd-semi", "image-semantic")
def image(case: Case) -> dict[str, Tensor]:
    apart = image_semantic_loss(case.leaf("student"), case.inputs["teacher"], reduction="sum")
    return case.with_gradients(loss=case.args["lambda_1"] * apart)


@parity("mgd-semi", "region-content")
def region(case: Case) -> dict[str, Tensor]:
    student, teacher = case.leaf("student_feat"), case.inputs["teacher_feat"]
    loss = case.args["lambda_2"] * region_content_loss(student, teacher, grid=GRID, reduction="mean")
    return case.with_gradients(
        loss=loss,
        sim_student=cosine_affinity(regions(student, GRID)),
        sim_teacher=cosine_affinity(regions(teacher, GRID)),
    )
