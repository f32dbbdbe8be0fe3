"""Label-assisted distillation, against skyshoumeng/Label_Assisted_Distillation."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.correlation import dist
from kdzoo_segmentation.methods.lad import cwd_loss, dual_path_loss


@parity("lad", "cwd")
def cwd(case: Case) -> dict[str, Tensor]:
    loss = cwd_loss(
        case.leaf("student"), case.leaf("teacher"), temperature=case.args["temperature"], reduction="mean"
    )
    return case.with_gradients(loss=loss)


@parity("lad", "dual-path")
def dual_path(case: Case) -> dict[str, Tensor]:
    loss = dual_path_loss(
        case.leaf("o1"), case.leaf("o2"), temperature=case.args["temperature"], reduction="mean"
    )
    return case.with_gradients(loss=loss)


@parity("lad", "dist")
def correlation(case: Case) -> dict[str, Tensor]:
    loss = dist(
        case.leaf("student"),
        case.inputs["teacher"],
        beta=1.0,
        gamma=1.0,
        temperature=1.0,
        scale_by_temperature_squared=False,
        axis=1,
    )
    return case.with_gradients(loss=loss)
